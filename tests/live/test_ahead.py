"""Steps taken ahead: always what the step function says, bounded, and right about an ordinary leave."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.core import gate, hyperthread
from asid.core.events import Action, Do, Mode, Order, Report, Said, Seen
from asid.core.gate import Belief, Ev
from asid.core.hyperthread import Phase, What
from asid.errors import ProtocolFault
from asid.live import ahead as ahead_
from asid.live.ahead import STEPS_MAX, Ahead, likely_of_gate, likely_of_hyperthread


@pytest.fixture
def calls():
    return Counter()


@pytest.fixture
def counter(calls):
    """A machine whose state is a list of one number and whose events are added to it."""

    def step(state: list[int], event: int) -> list[int]:
        if event < 0:
            raise ValueError(event)
        calls[state[0], event] += 1
        return [state[0] + event]

    return Ahead(step, lambda state: (1, 10), lambda result: result)


def test_what_was_foreseen_is_not_computed_again(counter, calls):
    state = [0]
    assert counter.think(state) and counter.think(state)
    assert counter.step(state, 10) == [10]
    assert calls == {(0, 1): 1, (0, 10): 1}


def test_it_goes_on_from_what_it_returned(counter, calls):
    state = [0]
    while counter.think(state):
        pass
    after = counter.step(state, 1)
    assert counter.step(after, 10) == [11]
    assert calls[1, 10] == 1


def test_what_was_not_foreseen_is_computed(counter, calls):
    state = [0]
    counter.think(state)
    assert counter.step(state, 7) == [7]
    assert counter.step([0], 1) == [1], "an equal state is another one"
    assert calls[0, 1] == 2


def test_thinking_ends(counter, calls):
    state = [0]
    thoughts = 0
    while counter.think(state):
        thoughts += 1
    assert thoughts == STEPS_MAX == sum(calls.values())
    assert not counter.think(state)


def test_it_says_when_there_is_nothing_left(counter):
    state = [0]
    assert not counter.ready(state)
    while counter.think(state):
        assert not counter.ready(state)
    assert counter.ready(state)
    assert not counter.ready([0])
    counter.forget()
    assert not counter.ready(state)


def test_a_new_state_is_a_new_thought(counter, calls):
    counter.think([0])
    other = [5]
    assert counter.think(other)
    assert counter.step(other, 1) == [6]
    assert calls[5, 1] == 1


def test_after_forgetting_everything_is_computed(counter, calls):
    state = [0]
    counter.think(state)
    counter.forget()
    counter.step(state, 1)
    assert calls[0, 1] == 2


def test_an_error_is_raised_each_time(counter):
    for _ in range(2):
        with pytest.raises(ValueError, match="-1"):
            counter.step([0], -1)


EVENTS = [
    hyperthread.PERFORMED, hyperthread.DOORBELL, hyperthread.RETIRED, hyperthread.INTERRUPTED, hyperthread.FULL_EXIT,
    hyperthread.FAST_EXIT, hyperthread.WORKED, hyperthread.NMI,
]  # fmt: skip
SPEC = hyperthread.Spec(0, (1,))
IN_GUEST = hyperthread.HyperthreadState(
    phase=Phase.GUEST, mode=Mode.GUEST, vm=1, session=True, used=True, round=4, req=2, answered=7
)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.booleans(), st.integers(0, 20)), max_size=30))
def test_a_hyperthread_that_thinks_does_what_one_does_that_does_not(walk):
    """Any events, thinking any amount in between; also where the step function refuses."""
    thinker = Ahead(
        lambda s, event: hyperthread.step(SPEC, s, event), lambda s: likely_of_hyperthread(0, s), lambda s: s
    )
    plain = thinking = IN_GUEST
    for event, kicked, thoughts in walk:
        for _ in range(thoughts):
            thinker.think(thinking)
        action = hyperthread.next_action(plain)
        if action is not None and event is not hyperthread.NMI:
            event = hyperthread.PERFORMED
            if action.do is Do.LOOK:
                seen = Seen(False, plain.answered + kicked, False)
                event = hyperthread.Event(What.PERFORMED, seen=seen)
        elif event is hyperthread.PERFORMED:
            continue
        if event is hyperthread.NMI and not hyperthread.may_interrupt(SPEC, plain, What.NMI):
            continue
        try:
            expected = hyperthread.step(SPEC, plain, event)
        except ProtocolFault:
            with pytest.raises(ProtocolFault):
                thinker.step(thinking, event)
            continue
        plain, thinking = expected, thinker.step(thinking, event)
        assert thinking == plain


class Machine:
    """Two hyperthreads in guest and their gate, joined without wires; `missed` is what nobody had foreseen."""

    request = IN_GUEST.answered + 1, IN_GUEST.answered + 1  # the next kick of each

    def __init__(self) -> None:
        self.hts = [IN_GUEST, IN_GUEST]
        member = gate.Member(
            inc=1, belief=Belief.SESSION, attached=1, room=1, req=2, vm=1, granted=-1, kicks=7
        )  # fmt: skip
        self.gate = gate.GateState(coord=1, round=4, open=True, members=(member, member), turn=1)
        self.missed: list[object] = []
        spec = gate.Spec()
        self.thinking_gate = Ahead(
            self.watched(lambda g, event: gate.step(spec, g, event)), lambda g: likely_of_gate(spec, g), lambda r: r[0]
        )
        self.thinkers = [
            Ahead(self.watched(self.step_of(ht)), lambda s, ht=ht: likely_of_hyperthread(ht, s), lambda s: s)
            for ht in range(2)
        ]
        self.asleep = True
        while self.thinking_gate.think(self.gate):
            pass
        for thinker, s in zip(self.thinkers, self.hts, strict=True):
            while thinker.think(s):
                pass
        self.asleep = False

    def step_of(self, ht: int):
        spec = hyperthread.Spec(ht, (1 - ht,))
        return lambda s, event: hyperthread.step(spec, s, event)

    def watched(self, step):
        def watch(state, event):
            if not self.asleep:
                self.missed.append(event)
            return step(state, event)

        return watch

    def happen(self, ht: int, event: hyperthread.Event) -> list[Report]:
        """Let something happen to a hyperthread; perform all it does about it, and return what it sends."""
        sent = []
        spec = hyperthread.Spec(ht, (1 - ht,))
        self.hts[ht] = self.thinkers[ht].step(self.hts[ht], event)
        while (action := hyperthread.next_action(self.hts[ht])) is not None:
            done = hyperthread.PERFORMED
            if action.do is Do.LOOK:
                done = hyperthread.Event(What.PERFORMED, seen=Seen(False, self.request[ht], False))
            elif action.do is Do.SEND:
                sent.append(hyperthread.report(spec, self.hts[ht], Said(action.a)))
            self.hts[ht] = self.thinkers[ht].step(self.hts[ht], done)
        return sent

    def hear(self, report: Report) -> tuple[Action, ...]:
        self.gate, actions = self.thinking_gate.step(self.gate, gate.Event(Ev.REPORT, report=report))
        return actions


@pytest.mark.parametrize("leaver", [0, 1])
def test_an_ordinary_leave_is_foreseen_to_its_end(leaver):
    """If this fails, nothing is broken but time: what comes in a leave is no longer what `likely` says."""
    machine = Machine()
    sibling = 1 - leaver
    (leave,) = machine.happen(leaver, hyperthread.FULL_EXIT)
    kick = machine.hear(leave)
    assert [action.do for action in kick[:2]] == [Do.REQUEST, Do.PEND] and kick[0].b == machine.request[sibling]
    (answer,) = machine.happen(sibling, hyperthread.INTERRUPTED)
    (grant,) = machine.hear(answer)
    assert isinstance(grant.a, Order)
    assert machine.happen(leaver, hyperthread.Event(What.ORDER, order=grant.a)) == []
    assert machine.hts[leaver].mode is Mode.HOST
    assert machine.missed == []


def test_nothing_is_foreseen_of_a_gate_that_excludes_nobody():
    assert likely_of_gate(gate.Spec(gate.Rooms.ALL, host_alone=False), Machine().gate) == []


def test_the_limit_leaves_room_for_two_siblings():
    """Two leaves and an answer to each; the way out of guest of one hyperthread, twice."""
    assert ahead_.STEPS_MAX >= 4
    assert ahead_.STEPS_MAX >= 5 + 6
