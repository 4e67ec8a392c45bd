"""External interrupts of one simulated hyperthread: they wait until they may be taken, and are taken where it stands.

In guest one is a VM exit like any other. Outside guest it hits the isolated address space, a fast exit's handler, or a
parked hyperthread; there, too, one that needs the full address space makes a leave first.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from asid.core import hyperthread as core
from asid.core.events import Mode
from asid.core.hyperthread import HyperthreadState, Phase, What
from asid.sim.vcpu import Injected

if TYPE_CHECKING:
    from asid.sim.hyperthread import Hyperthread


class Line:
    """An interrupt line: numbers of the injections that it stands for, oldest first; those raised together are one."""

    def __init__(self, event: core.Event) -> None:
        self.event = event
        self.raised: list[int] = []
        self.handled: list[list[int]] = []  # taken, innermost last: handlers of the same kind do not nest


class Irqs:
    """The interrupts of hyperthread `ht`, oldest first."""

    def __init__(self, ht: Hyperthread) -> None:
        self.ht = ht
        self.waiting: deque[Injected] = deque()
        self.begun: tuple[int, Mode] | None = None  # one that is being handled: since when, and where it hit

    def due(self) -> bool:
        """Return whether one waits and may be taken now. A lease is left its first instruction."""
        ht, state = self.ht, self.ht.state
        if not self.waiting or self.begun is not None or not core.may_interrupt(ht.spec, state, What.IRQ):
            return False
        return state.phase is not Phase.GUEST or state.used

    def service_ns(self) -> int:
        """The time that the handler of the oldest takes where it runs isolated."""
        return self.waiting[0].event.service_ns or self.ht.costs.nmi

    def take(self) -> None:
        """Let the oldest in."""
        ht, state, event = self.ht, self.ht.state, self.waiting[0].event
        self.begun = (ht.agenda.now_ns, state.mode)
        if state.phase is Phase.HOSTING:
            ht.step(core.FULL_IRQ)
            self.handled(full=False)
        elif (missed := ht.isolation.missed(event)) is not None:
            ht.chronicle.wants_host(event.reason, missed)
            ht.vcpu.interrupted(event, halted=state.phase is Phase.HALTED)
            ht.step(core.FULL_IRQ)
        else:
            ht.step(core.FAST_IRQ)

    def frame_ended(self, before: HyperthreadState) -> None:
        if before.frames[-1].what is What.IRQ:
            self.handled(full=False)

    def handled(self, *, full: bool) -> None:
        """The oldest is done."""
        assert self.begun is not None
        ht, line = self.ht, self.waiting[0]
        begin_ns, mode = self.begun
        self.begun = None
        took_ns = max(1, ht.agenda.now_ns - begin_ns)
        if mode is Mode.GUEST and not full:
            ht.chronicle.tally.add(line.event.reason, line.event.isa, 1, took_ns)
        elif mode is not Mode.GUEST:
            ht.chronicle.interrupt_handled(line.id, mode, full, took_ns, ht.state.round)
        line.n -= 1
        if not line.n:
            self.waiting.popleft()
            ht.core.injection_done(ht.ht, line.id, "handled")
