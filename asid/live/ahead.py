"""Steps taken ahead: while a process waits, it works out what its step function will say to what is likely to come.

A leave is a row of processes that wake up, each with cold caches, to compute a step that it could have computed while
it slept. The step functions are pure, so when they are called makes no difference to what they return; what was
foreseen is looked up, and everything else is computed as ever. Nothing depends on a guess but time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from asid.core import gate, hyperthread
from asid.core.events import Bid, Do, Mode, Order, Report, Said, Seen, Want
from asid.core.gate import Belief, Ev, GateState
from asid.core.hyperthread import HyperthreadState, Phase, What

STEPS_MAX: Final = 16  # taken ahead of one state
QUIET_NS: Final = 500_000  # without anything to do, before thinking begins: who is busy has no time for it

State = TypeVar("State")
Event = TypeVar("Event")
Result = TypeVar("Result")


class Ahead(Generic[State, Event, Result]):
    """A step function that may know its answer already.

    step(state, event) is the pure function; likely(state) the events worth a thought; after(result) the next state.
    States are told apart by identity, so the caller goes on from the very state that it was given.
    """

    def __init__(
        self,
        step: Callable[[State, Event], Result],
        likely: Callable[[State], Iterable[Event]],
        after: Callable[[Result], State],
    ) -> None:
        self._step = step
        self._likely = likely
        self._after = after
        # By identity of a state: the state itself, which keeps the identity its own, and what follows it.
        self._known: dict[int, tuple[State, list[tuple[Event, Result]]]] = {}
        self._thoughts: Iterator[None] = iter(())
        self._done = False

    def step(self, state: State, event: Event) -> Result:
        """Return what the step function returns, or raise what it raises."""
        found = self._known.get(id(state))
        if found is not None:
            for known, result in found[1]:
                if known is event or known == event:
                    return result
        return self._step(state, event)

    def ready(self, state: State) -> bool:
        """Return whether there is nothing left to think of."""
        return self._done and id(state) in self._known

    def think(self, state: State) -> bool:
        """Take one more step ahead of a state; return False when there is none to take."""
        if id(state) not in self._known:
            self.forget()
            self._thoughts = self._think(state)
        self._done = next(self._thoughts, self) is self
        return not self._done

    def forget(self) -> None:
        """Drop what is known: the step function itself has changed, or its state is another."""
        self._known.clear()
        self._thoughts = iter(())
        self._done = False

    def _think(self, state: State) -> Iterator[None]:
        later = deque([state])
        steps = 0
        while later:
            here = later.popleft()
            found: list[tuple[Event, Result]] = []
            self._known[id(here)] = (here, found)
            for event in self._likely(here):
                if steps == STEPS_MAX:
                    return
                steps += 1
                result = self._step(here, event)
                found.append((event, result))
                later.append(self._after(result))
                yield


def likely_of_hyperthread(ht: int, s: HyperthreadState) -> tuple[hyperthread.Event, ...]:
    """What may come to a guest that is worth a thought: a full exit or a kick, and its way out of guest."""
    action = hyperthread.next_action(s)
    if action is not None:
        if action.do is not Do.LOOK:
            return (hyperthread.PERFORMED,)
        return (hyperthread.Event(What.PERFORMED, seen=Seen(False, s.answered + 1, False)),)
    if s.phase is Phase.GUEST:
        return hyperthread.FULL_EXIT, hyperthread.INTERRUPTED
    if s.phase is Phase.LEAVING:
        return (hyperthread.Event(What.ORDER, order=Order(Bid.GRANT, ht, s.inc, s.coord, s.round, s.req, 0)),)
    return ()


def likely_of_gate(spec: gate.Spec, g: GateState) -> list[gate.Event]:
    """What may come to a quiet gate that is worth a thought: somebody's leave, and then the answers to its kicks."""
    events: list[gate.Event] = []
    if not spec.host_alone:
        return events  # nobody asks for HOST
    for ht, m in enumerate(g.members):
        if m.kicked:
            said, want, mode, lease, round_ = Said.ANSWER, Want.ASK, Mode.PARKED, False, 0
        elif m.belief is Belief.SESSION and not m.fresh and not g.queue:
            said, want, mode, lease, round_ = Said.LEAVE, Want.LEAVE, Mode.ISOLATED, True, g.round
        else:
            continue
        r = Report(said, ht, m.inc, g.coord, round_, m.req + 1, want, False, mode, m.vm, lease, lease, m.kicks)
        events.append(gate.Event(Ev.REPORT, report=r))
    return events
