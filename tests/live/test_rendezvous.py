"""One hyperthread in the rendezvous of #MC handlers, the test playing its siblings on the page."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from one_hyperthread import OneHyperthread

from asid.core import mce
from asid.core.events import Action, Do, Mode
from asid.core.hyperthread import Phase
from asid.core.mce import CallIn, Severity
from asid.core.record import Record, fault_of
from asid.isolated_exits import ShutDown
from asid.live.node import Node, ring_doorbell
from asid.live.page import BROADCAST, CALLIN, DEPTH, FAILED, MCE, MODE, NMI, SEVERITY, base_of
from asid.live.rendezvous import Rendezvous

ALL = 0b1111


class Siblings:
    """c0h1 to c0h3, and the hardware."""

    def __init__(self, one: OneHyperthread) -> None:
        self.one = one
        self.broadcasts = 0
        self.told: list[dict[str, Any]] = []
        one.ht.link.tell = self.told.append  # type: ignore[method-assign]
        one.ht.rendezvous.timeout_ns = 30_000_000

    def hit(self, severity: Severity = Severity.RECOVERABLE, *, party: int = ALL) -> None:
        """A machine check of all siblings, or of c0h0 alone (party 0)."""
        words, own = self.one.words, self.one.own
        if party:
            self.broadcasts += 1
            words[own + BROADCAST] = mce.broadcast_word(self.broadcasts, party)
        words[own + SEVERITY] = mce.severity_word(words[own + SEVERITY], severity)
        self.one.interrupt(MCE)

    def call_in(self, ht: int, order: int, *, done: bool = False, severity: Severity = Severity.RECOVERABLE) -> None:
        self.write(ht, CallIn(self.broadcasts, order, done, severity))

    def write(self, ht: int, word: CallIn) -> None:
        self.one.words[base_of(ht) + CALLIN] = mce.packed(word)
        ring_doorbell(self.one.bells[0])

    @property
    def word(self) -> CallIn:
        return mce.unpacked(self.one.words[self.one.own + CALLIN])


@pytest.fixture
def one(monkeypatch):
    monkeypatch.setattr(Node, "watch_parent", lambda self: None)
    with tempfile.TemporaryDirectory(prefix="asid-") as root:
        made = OneHyperthread(Path(root))
        made.enter()
        made.records()
        yield made
        made.close()


@pytest.fixture
def others(one):
    return Siblings(one)


def handler(one: OneHyperthread) -> dict[str, Any]:
    """The record of the one #MC handler, which is as the catalogue says."""
    records = one.records()
    for kind, data in records:
        assert fault_of(Record(1, 1, 1, kind, 0, 0, 0, 0, data)) is None
    [found] = [data for kind, data in records if kind == "intr" and data["what"] == "mce"]
    return found


def at(one: OneHyperthread, do: Do, what: Any) -> None:
    """Do something once, in front of the first action of this kind."""
    waiting = [what]

    def between(action: Action) -> None:
        if action.do is do and waiting:
            waiting.pop()()

    one.between = between


def test_the_first_in_is_monarch_and_goes_when_all_have_worked(one, others):
    def come():
        assert others.word == CallIn(1, 1, False, Severity.RECOVERABLE)
        assert one.words[one.own + MODE] & 0xFF == Mode.HOST
        assert one.words[one.own + DEPTH] == 1
        for ht in (1, 2, 3):
            others.call_in(ht, ht + 1, done=True)

    others.hit()
    at(one, Do.AWAIT_ALL, come)
    one.settle()
    found = handler(one)
    assert (found["broadcast"], found["role"], found["order"]) == (1, "monarch", 1)
    assert found["severity"] == "recoverable"
    assert others.word == CallIn(1, 1, True, Severity.RECOVERABLE)
    assert one.words[one.own + DEPTH] == 0
    assert not others.told


def test_one_that_comes_later_waits_for_its_turn(one, others):
    worked = []

    def come():
        others.call_in(3, 3)

    def between(action: Action) -> None:
        if action.do is Do.AWAIT_ALL:
            come()
        elif action.do is Do.AWAIT_TURN:
            worked.append("wait")
            if len(worked) == 3:
                others.call_in(1, 1, done=True)
                others.call_in(3, 3, done=True)
        elif action.do is Do.WORK:
            worked.append("work")

    others.hit(party=0b1011)
    others.call_in(1, 1)
    one.between = between
    one.settle()
    found = handler(one)
    assert worked[:2] == ["wait", "wait"] and worked[-1] == "work"
    assert (found["role"], found["order"]) == ("joined", 2)
    assert 0 < found["wait_ns"] < others.one.ht.rendezvous.timeout_ns


def test_a_sibling_that_never_comes_is_told_after_the_handler_and_keeps_us_out_of_guest(one, others):
    told_inside = []

    def between(action: Action) -> None:
        if one.ht.state.frames:
            told_inside.extend(others.told)

    others.hit()
    for ht in (1, 2):
        others.call_in(ht, ht)
    one.between = between
    one.settle()
    assert not told_inside
    assert others.told == [{"op": "missing", "broadcast": 1, "hts": [3]}]
    records = one.records()
    [timeout] = [data for kind, data in records if kind == "mce.timeout"]
    assert (timeout["broadcast"], timeout["missing"]) == (1, "h3")
    [found] = [data for kind, data in records if kind == "intr"]
    assert (found["role"], found["order"]) == ("alone", 3)
    assert found["wait_ns"] >= others.one.ht.rendezvous.timeout_ns
    assert one.ht.state.phase is Phase.HELD
    for ht in (1, 2):
        others.call_in(ht, ht, done=True)
    one.ht.waiting()
    one.settle()
    assert one.ht.state.phase is Phase.HELD
    others.write(3, mce.closed(1))  # as its coordinator does when it is dead
    one.ht.waiting()
    one.settle()
    assert one.ht.state.phase is Phase.GUEST


def test_an_nmi_is_taken_while_the_handler_waits(one, others):
    waits, worked = [], []

    def between(action: Action) -> None:
        frames = one.ht.state.frames
        if len(frames) == 2 and action.do is Do.WORK:
            worked.append(frames[-1].what.name)
        if action.do is not Do.AWAIT_ALL:
            return
        waits.append(action)
        if len(waits) == 2:
            one.interrupt(NMI)
        elif worked == ["NMI"]:
            for ht in (1, 2, 3):
                others.call_in(ht, ht + 1, done=True)

    others.hit()
    one.between = between
    one.settle()
    inside = [data for kind, data in one.records() if kind == "intr"]
    assert [(data["what"], data["depth"]) for data in inside] == [("nmi", 2), ("mce", 1)]
    assert one.words[one.own + DEPTH] == 0


def test_whoever_holds_the_lock_for_ever_does_not_stop_the_handler(one, others, monkeypatch):
    from asid.live import rendezvous

    def taken(*_: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr(rendezvous.fcntl, "lockf", taken)
    others.hit()
    one.settle()
    assert handler(one)["role"] == "monarch"
    assert others.told[0]["hts"] == [1, 2, 3]


def test_a_second_one_does_not_see_what_the_first_left(one, others):
    for number in (1, 2):
        others.hit()
        seen: list[CallIn] = []

        def arrive(seen: list[CallIn] = seen) -> None:
            seen.append(others.word)
            for ht in (1, 2, 3):
                others.call_in(ht, ht + 1, done=True)

        at(one, Do.AWAIT_ALL, arrive)
        one.settle()
        assert seen == [CallIn(number, 1, False, Severity.RECOVERABLE)]
        assert handler(one)["broadcast"] == number


@pytest.mark.parametrize("party", [0, ALL])
def test_a_fatal_one_keeps_every_guest_out_for_good(one, others, party):
    others.hit(Severity.RECOVERABLE if party else Severity.FATAL, party=party)
    others.call_in(1, 1, severity=Severity.FATAL)
    if party:
        for ht in (2, 3):
            others.call_in(ht, ht, done=True)
        at(one, Do.AWAIT_TURN, lambda: others.call_in(1, 1, done=True, severity=Severity.FATAL))
    one.settle()
    assert handler(one)["severity"] == "fatal"
    assert one.words[FAILED] == 1
    assert one.ht.state.phase is Phase.HELD
    if party:
        others.call_in(1, 1, done=True)
    one.ht.waiting()
    one.settle()
    assert one.ht.state.phase is Phase.HELD
    one.kick(1)
    one.ht.waiting()
    one.settle()
    assert one.ht.state.phase is Phase.ASKING, "the gate takes the lease back as ever"


def test_a_local_one_meets_nobody_and_its_record_keeps_its_form(one, others):
    others.hit(party=0)
    one.settle()
    assert list(handler(one)) == ["what", "id", "depth", "merged", "host_ns", "from"]
    assert others.word == mce.closed(0)


def test_one_inside_another_is_held_unless_it_is_to_shut_the_hyperthread_down(one, others):
    at(one, Do.WORK, lambda: others.hit(party=0))
    others.hit(party=0)
    one.settle()
    assert len([1 for kind, _ in one.records() if kind == "intr"]) == 2
    one.ht.spec = one.ht.policy.hyperthread_spec(0, one.ht.siblings, mcip=True)
    at(one, Do.WORK, lambda: others.hit(party=0))
    others.hit(party=0)
    with pytest.raises(ShutDown):
        one.settle()


def test_a_new_process_takes_no_part_in_what_was_before(one, others):
    others.hit()
    one.settle()  # it waits for everybody until its time is out
    assert others.word.order == 1
    assert mce.broadcast_parts(one.words[one.own + BROADCAST])[0] == 1
    object.__setattr__(one.birth, "checks", (one.words[one.own + BROADCAST], 0))
    again = Rendezvous(one.ht)
    assert others.word == mce.closed(1)
    assert again.taken().broadcast == 0
