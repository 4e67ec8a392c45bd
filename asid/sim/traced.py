"""A simulated machine that tells which steps its siblings and gates take, in their order: for a schedule of the run.

Rule 1. It is the same machine, with one difference: an IPI is there as soon as it was sent, as in a schedule.
Rule 2. Fast exits that nobody notices are no steps. What a step does to the words happens with the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from asid.core import gate
from asid.core import hyperthread as core
from asid.core.events import Action, Do, Report
from asid.core.gate import Ev
from asid.core.hyperthread import Event, HyperthreadState, What
from asid.core.policies.base import Policy
from asid.sim.core import Core, GuestOf
from asid.sim.costs import Costs
from asid.sim.gate import Gate
from asid.sim.hyperthread import Hyperthread
from asid.sim.machine import Machine

if TYPE_CHECKING:
    from asid.config import Config
    from asid.mm.isolated import Isolated

GATE: Final = -1


class Happened(NamedTuple):
    """One step. who: a hyperthread, or GATE. One of the rest says what: an action performed, an event of the
    hyperthread or of the gate, a report that the gate reads; else `other`: delivered, dies, ends, born.

    idle: nothing changed by it. turn_over: the gate that has read a report knows that the slice of the room is over.
    """

    ts: int
    who: int
    action: Action | None = None
    event: Event | None = None
    decided: gate.Event | None = None
    heard: Report | None = None
    other: str = ""
    idle: bool = False
    turn_over: bool = False


class TracedHyperthread(Hyperthread):
    """Tells its steps."""

    core: TracedCore

    def step(self, event: Event) -> None:
        before, now = self.state, self.agenda.now_ns
        action = core.next_action(before) if event.what is What.PERFORMED else None
        happened = Happened(now, self.ht, action) if action is not None else Happened(now, self.ht, event=event)
        self.core.trace.append(happened)
        super().step(event)
        if action is None and self.state == before and event.what is not What.ORDER:  # which is off the line
            self.core.trace[-1] = happened._replace(idle=True)


class TracedGate(Gate):
    """Tells its steps."""

    core: TracedCore

    def hear(self, report: Report, cause: int) -> None:
        trace = self.core.trace
        at = len(trace)
        trace.append(Happened(self.agenda.now_ns, GATE, heard=report))
        super().hear(report, cause)
        trace[at] = trace[at]._replace(turn_over=self.state.turn_over)

    def step(self, event: gate.Event) -> None:
        trace, before = self.core.trace, self.state
        at = len(trace)
        if event.ev is not Ev.REPORT:
            trace.append(Happened(self.agenda.now_ns, GATE, decided=event))
        self.acted = False
        super().step(event)
        if event.ev is Ev.TIMER and self.state == before and not self.acted:
            trace[at] = trace[at]._replace(idle=True)

    def _perform(self, action: Action) -> None:
        self.acted = self.acted or action.do is not Do.TIMER
        super()._perform(action)


class TracedCore(Core):
    """Keeps what its siblings and its gate tell, in `trace`."""

    def __init__(
        self, config: Config, policy: Policy, number: int, costs: Costs, guest_of: GuestOf,
        isolated: Mapping[int, Isolated],
    ) -> None:  # fmt: skip
        super().__init__(config, policy, number, costs, guest_of, isolated, runs=True, figures=False)
        self.trace: list[Happened] = []
        self.gate = TracedGate(self, policy.gate_spec(), tuple(vm for vm, _ in self.vcpus))
        self._fencing = False

    def new_hyperthread(self, ht: int) -> Hyperthread:
        if self._incs[ht] > 1:
            self._tell(ht, "born")
        return TracedHyperthread(self, ht, self._incs[ht], self.policy)

    def _tell(self, who: int, other: str) -> None:
        self.trace.append(Happened(self.agenda.now_ns, who, other=other))

    def pend(self, ht: int) -> None:
        self._at_once(ht)

    def deliver(self, target: int, by: Hyperthread, state: HyperthreadState) -> None:
        by.chronicle.ipi(target, state, by.spec)
        self._at_once(target)

    def _at_once(self, ht: int) -> None:
        """The pending bit is set with the step that sent the IPI; its target goes on after that step."""
        self.disturb(ht)
        self.page.hts[ht].pending = True
        self.agenda.after(0, lambda: self._go(ht))

    def off_bus(self, by: Hyperthread, state: HyperthreadState) -> None:
        if by.words.apic.bus:
            self._tell(by.ht, "delivered")
        super().off_bus(by, state)

    def fence(self, ht: int, inc: int) -> None:
        self._fencing = True  # a step of the gate, not of the hyperthread
        super().fence(ht, inc)
        self._fencing = False

    def _dies(self, ht: int, status: int) -> None:
        if not self._fencing:
            self._tell(ht, "dies" if status else "ends")
        super()._dies(ht, status)


class TracedMachine(Machine):
    """A machine whose cores keep their traces."""

    def new_core(self, number: int, guest_of: GuestOf) -> Core:
        # While an IPI is on its way its sender waits: it takes as long as ever.
        costs = self.costs._replace(ipi_send=self.costs.ipi_send + self.costs.ipi_delivery)
        return TracedCore(self.config, self.policy, number, costs, guest_of, self.isolated)

    def trace(self, core: int) -> list[Happened]:
        """Return the steps of a core that was played."""
        found = self.cores[core]
        assert isinstance(found, TracedCore)
        return found.trace
