"""The simulated gate whose steps come in an order that a script imposes; the counterpart of
`asid.live.directed_coordinator`.

What comes to it is kept until the script says that it reads it, and what it decides is performed an action at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from asid.core import gate
from asid.core.events import Action, Do, Report, Timer
from asid.core.gate import Ev
from asid.core.hyperthread import HyperthreadState
from asid.script import BORN, DELIVERS, DOES, GETS, KILLED, LOST, STALE, Astray, Step, named
from asid.sim.gate import Gate
from asid.sim.notes import Notebook

if TYPE_CHECKING:
    from asid.sim.directed import DirectedCore

AT_ONCE: Final = (Do.ORDER, Do.BURIED)  # what is said and comes first is said at once


class DirectedGate(Gate):
    """Takes its steps when it is told to, then lives on."""

    def __init__(self, of: DirectedCore, spec: gate.Spec, attached: tuple[int, ...]) -> None:
        super().__init__(of, spec, attached)
        self.directed = of
        self.notebook = Notebook(of.noted, of.keys, of.number, -1, of.tick)
        self.todo: deque[Action] = deque()  # decided, and not performed yet
        self.inbox: dict[tuple[int, int], deque[tuple[Report, int]]] = {}  # by hyperthread and life: report and cause
        self.deaths: deque[tuple[int, int]] = deque()  # not heard of yet: hyperthread and life
        self.dead = False
        self.events: dict[str, Callable[[Step], object]] = {
            DOES: lambda step: self.do_next(),
            GETS: lambda step: None,  # what was sent is there at once
            BORN: lambda step: self.comes_back(step.vms),
            KILLED: lambda step: self.dies(),
            LOST: self.lose,
            STALE: self.hear_stale,
            DELIVERS: lambda step: of.off_bus_of_dead(step.ht),
            Ev.REPORT.name: lambda step: self.hear(*self.lose(step)),
            Ev.DEAD.name: self.hear_death,
            Ev.TIMER.name: self.time_out,
        }

    def play(self, step: Step) -> None:
        """Take one step. Raise Astray when it cannot be taken as the script has it."""
        if self.dead and step.event != BORN:
            raise Astray("a coordinator that lives", "a dead one")
        self.events.get(step.event, self.happens)(step)
        while self.todo and self.todo[0].do in AT_ONCE and step.event != GETS:
            self.do_next()
        left = tuple(named(action) for action in self.todo)
        if left != step.left:
            raise Astray(f"to do: {', '.join(step.left) or 'nothing'}", f"to do: {', '.join(left) or 'nothing'}")

    def go_on(self) -> None:
        """Behind the last step: do what was left, and hear what was kept."""
        if self.dead:
            self.comes_back(tuple(0 if m.leaving is not None else m.attached for m in self.state.members))
        while self.todo:
            self.do_next()
        for reports in self.inbox.values():
            for report, cause in reports:
                self.hear(report, cause)
        for ht, inc in self.deaths:
            self.step(gate.Event(Ev.DEAD, ht=ht, inc=inc))

    def keep(self, report: Report, cause: int) -> None:
        """A report has come; the script says when it is read."""
        self.inbox.setdefault((report.ht, report.inc), deque()).append((report, cause))

    def _perform(self, action: Action) -> None:
        if not self.directed.playing:
            super()._perform(action)
        elif action.do is not Do.TIMER:
            self.todo.append(action)

    def do_next(self) -> None:
        if not self.todo:
            raise Astray("something to do", "nothing")
        super()._perform(self.todo.popleft())

    # --- events -------------------------------------------------------------------------------------------

    def happens(self, step: Step) -> None:
        """What a client or the daemon tells it: DETACH, ATTACH, STOP, HOLD, RELEASE."""
        vm = step.vms[step.ht] if step.event == Ev.ATTACH.name else 0
        self._cause = 0
        self.step(gate.Event(Ev[step.event], ht=step.ht, vm=vm))

    def lose(self, step: Step) -> tuple[Report, int]:
        """Take the oldest report of a sender off the line. What it said to a dead coordinator is none."""
        reports = self.inbox.get((step.ht, step.inc), deque())
        while reports and reports[0][0].coord < step.coord:
            reports.popleft()
        if not reports:
            raise Astray(f"a report of h{step.ht}, {step.word}", "none")
        report, cause = reports.popleft()
        if report.said.name != step.word:
            raise Astray(f"the report {step.word} of h{step.ht}", f"the report {report.said.name}")
        return report, cause

    def hear_stale(self, step: Step) -> None:
        """A report to the coordinator before; what it says counts for nothing."""
        self.notebook.note("gate.drop", {"why": "of another life"}, self.state.round)
        for action in gate.resync_again(self.state, step.ht, step.inc, step.coord):
            self._perform(action)

    def hear_death(self, step: Step) -> None:
        told = [death for death in self.deaths if death[0] == step.ht]
        if not told:
            raise Astray(f"the death of h{step.ht}", "none")
        self.deaths.remove(told[0])
        self._cause = 0
        self.step(gate.Event(Ev.DEAD, ht=step.ht, inc=told[0][1]))

    def time_out(self, step: Step) -> None:
        timer = Timer[step.word]
        m = self.state.members[step.ht]
        key = {Timer.STICKY: m.granted, Timer.RESYNC: m.inc, Timer.TURN: 0}.get(timer, m.kicked)
        self._cause = 0
        self.step(gate.Event(Ev.TIMER, timer=timer, ht=step.ht, key=key))

    # --- its own death ------------------------------------------------------------------------------------

    def dies(self) -> None:
        self.dead = True
        self.todo.clear()
        data = {"what": "coordinator", "pid": 0, "inc": self.state.coord, "status": -9}
        self.directed.daemon.note("death", data, ht=-1)

    def comes_back(self, attached: tuple[int, ...]) -> None:
        """A new coordinator, told by the daemon who lives, and nothing else."""
        before, self.dead = self.state, False
        coord, kicks = before.coord + 1, max(m.kicks for m in before.members) + 1
        self.directed.daemon.note("spawn", {"what": "coordinator", "pid": 0, "inc": coord}, ht=-1)
        states: list[HyperthreadState | None] = [None if ht is None else ht.state for ht in self.directed.hts]
        living = tuple(0 if state is None else state.inc for state in states)
        self.deaths.clear()
        self._cause = 0
        self.state, actions = gate.resumed(self.spec, coord, before.round, living, attached, kicks)
        for action in actions:
            self._perform(action)
