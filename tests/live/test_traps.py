"""Traps for tests: the right process, before the right step, and nobody else."""

from __future__ import annotations

import os

import pytest

from asid.core.events import Action, Bid, Do, Mode, Order, Said, Timer
from asid.live import traps
from asid.live.traps import LATE_VARIABLE, RECEIVE, VARIABLE, step_name, trap_of


@pytest.fixture
def sent(monkeypatch):
    """Signals that a trap would have sent to this very process."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(traps.os, "kill", lambda pid, signum: found.append((pid, int(signum))))
    return found


def test_a_trap_goes_off_once_before_the_nth_step_of_its_name(monkeypatch, sent):
    monkeypatch.setenv(VARIABLE, "c0h1.1:SEND_ANSWER:3:KILL c0h1.1:LOOK:1:STOP c0h1.2:LOOK:1:KILL")
    trap = trap_of("c0h1.1")
    assert trap is not None
    for step in ["SEND_ANSWER", "LOOK", "SEND_ANSWER", "SEND_ASK", "SEND_ANSWER", "SEND_ANSWER", "LOOK"]:
        trap(step)
    assert sent == [(os.getpid(), 19), (os.getpid(), 9)]


def test_a_late_trap_counts_from_when_it_is_told(monkeypatch, tmp_path, sent):
    monkeypatch.setenv(VARIABLE, "c0.1:LOOK:2:KILL:LATE")
    monkeypatch.setenv(LATE_VARIABLE, str(tmp_path / "now"))
    trap = trap_of("c0.1")
    for _ in range(5):
        trap("LOOK")
    assert sent == []
    (tmp_path / "now").touch()
    trap("LOOK")
    assert sent == []
    trap("LOOK")
    assert sent == [(os.getpid(), 9)]


def test_whoever_is_not_named_has_none(monkeypatch):
    monkeypatch.setenv(VARIABLE, "c0h1.1:LOOK:1:KILL")
    assert trap_of("c0h1.2") is None
    assert trap_of("c0.1") is None
    monkeypatch.delenv(VARIABLE)
    assert trap_of("c0h1.1") is None


@pytest.mark.parametrize("bad", ["c0h1.1", "c0h1.1:LOOK:x:KILL", "c0h1.1:LOOK:1:HUG"])
def test_a_trap_that_cannot_be_read_is_no_trap_at_all(monkeypatch, bad):
    monkeypatch.setenv(VARIABLE, bad)
    with pytest.raises((ValueError, KeyError)):
        trap_of("c0h1.1")


@pytest.mark.parametrize(
    ("action", "within", "name"),
    [
        (Action(Do.SET_MODE, Mode.HOST), "", "SET_MODE_HOST"),
        (Action(Do.SET_MODE, Mode.HOST), "NMI", "NMI_SET_MODE_HOST"),
        (Action(Do.SET_DEPTH, 1), "MCE", "MCE_SET_DEPTH_1"),
        (Action(Do.SET_FLAG, 0), "", "SET_FLAG_0"),
        (Action(Do.SEND, Said.ANSWER), "", "SEND_ANSWER"),
        (Action(Do.ORDER, Order(Bid.GRANT, 0, 1, 1, 1, 1, 0)), "", "ORDER_GRANT"),
        (Action(Do.TIMER, Timer.KICK, 5), "", "TIMER"),
        (Action(Do.LOOK), "", "LOOK"),
    ],
)
def test_steps_have_names(action, within, name):
    assert step_name(action, within) == name
    assert name != RECEIVE
