"""Halt polling: a halt that ends soon is waited for where its exit is handled, and nobody is scheduled out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from one_hyperthread import OneHyperthread

from asid.core.events import Bid, Mode, Said
from asid.core.hyperthread import Phase
from asid.guest.base import Exit
from asid.live.node import Node
from asid.live.page import FLAG

US = 1_000
SHORT = Exit(0, "HLT", "vmx", 0, True, 100 * US)
NEXT = Exit(0, "HLT", "vmx", 0, True, 201 * US)  # a little too long
FAR = Exit(0, "CPUID", "vmx", 0, False, 0)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(Node, "watch_parent", lambda self: None)
    with tempfile.TemporaryDirectory(prefix="asid-") as root:
        all_ = []

        def make(policy="asi", kick="ack", poll_ns=200 * US):
            one = OneHyperthread(Path(root), policy=policy, kick=kick)
            all_.append(one)
            one.enter()
            one.ht.vcpu.poll_ns = poll_ns
            one.records(), one.reports()
            return one

        yield make
        for one in all_:
            one.close()


def halts(one, event=SHORT):
    one.ht.vcpu.exit, one.ht.vcpu.until_ns = event, 0
    begin_ns = one.ht.node.now_ns()
    one.ht.vcpu.in_guest()
    one.settle()
    return begin_ns


def works(one, begin_ns):
    """What it does in HOST, to the end; return how long it was there."""
    while one.ht.state.phase is Phase.HOSTING:
        one.ht.vcpu.in_host()
    took_ns = one.ht.node.now_ns() - begin_ns
    one.settle()
    return took_ns


def exits(one):
    one.ht.chronicle.flush(1)
    return [(data["full"], data.get("halt")) for kind, data in one.records() if kind == "exit"]


def said(one):
    return [report.said for report in one.reports()]


def test_asi_waits_in_the_isolated_address_space_and_never_leaves(made):
    one = made()
    begin_ns = halts(one)
    assert one.ht.node.now_ns() - begin_ns >= SHORT.wake_ns, "no guest instruction before it is awake"
    assert one.ht.state.phase is Phase.GUEST and one.ht.state.session
    assert said(one) == []
    assert exits(one) == [(False, "polled")]
    assert one.ht.vcpu.exit is None, "it is over"


@pytest.mark.parametrize("event", [NEXT, SHORT])
def test_a_halt_that_is_longer_or_not_polled_for_leaves_as_ever(made, event):
    one = made(poll_ns=0 if event is SHORT else 200 * US)
    halts(one, event)
    assert one.ht.state.phase is Phase.LEAVING and said(one) == [Said.LEAVE]
    one.order(Bid.GRANT)
    works(one, 0)
    assert one.ht.state.phase is Phase.HALTED and said(one) == [Said.DONE]
    assert exits(one) == [(True, "slept")]


def test_a_policy_that_handles_every_exit_in_host_waits_there_and_its_kick_counts(made):
    one = made("kick-every-exit")
    halts(one)
    assert said(one) == [Said.LEAVE]
    begin_ns = one.ht.node.now_ns()
    one.order(Bid.GRANT)
    assert works(one, begin_ns) >= SHORT.wake_ns
    assert one.ht.state.phase is Phase.ASKING, "runnable, not scheduled out"
    assert said(one) == [Said.DONE]
    assert exits(one) == [(True, "polled")]


def test_asi_irqoff_has_no_short_exit_in_a_halt(made):
    one = made("asi-irqoff")
    halts(one)
    assert one.ht.state.phase is Phase.LEAVING


def test_it_is_a_halt_to_a_policy_that_kicks_at_all_exits_but_those(made):
    one = made("kick-except-idle", "send")
    begin_ns = halts(one)
    assert one.ht.state.phase is Phase.HOSTING and one.ht.state.session
    assert one.words[one.own + FLAG] == 0, "nobody was kicked"
    assert works(one, begin_ns) >= SHORT.wake_ns
    assert one.ht.state.phase is Phase.GUEST and exits(one) == [(True, "polled")]


def test_a_kick_ends_the_poll_and_the_halt_goes_on_by_the_clock(made):
    one = made()
    one.ht.vcpu.poll_ns = 10**12
    long = SHORT._replace(wake_ns=10**11)
    one.between = lambda action: (one.ht.state.mode is Mode.ISOLATED and one.kick(one.ht.state.answered + 1)) or None
    halts(one, long)
    one.between = None
    assert one.ht.state.phase is Phase.ASKING and said(one) == [Said.ANSWER]
    assert one.ht.vcpu.unfinished, "it sleeps on"
    one.ht.vcpu.awake_ns = one.ht.node.now_ns()  # parked long enough
    one.order(Bid.ADMIT, vm=1)
    assert one.ht.state.phase is Phase.GUEST and not one.ht.vcpu.unfinished
    assert exits(one) == [(False, "polled")]


def test_what_is_no_halt_is_never_polled_for(made):
    one = made()
    halts(one, FAR)
    assert exits(one) == [(False, None)]
    halts(one, FAR._replace(full=True))
    assert one.ht.state.phase is Phase.LEAVING


def test_the_next_vcpu_has_the_poll_of_its_own_guest(made):
    one = made()
    one.ht.vcpu.attach(1)
    assert one.ht.vcpu.poll_ns == 0
    one.ht.vcpu.poll_ns = 5
    one.ht.vcpu.attach(0)
    assert one.ht.vcpu.poll_ns == 0
