"""External interrupts of one hyperthread: they wait until they may be taken, and are taken wherever it stands.

In guest one is a VM exit like any other. Outside guest it hits the isolated address space, a fast exit's handler, or a
parked hyperthread, idle or not; there, too, one that needs the full address space makes a leave first. What it means
is decided by `asid.core.hyperthread`; here is which of them, when, and who is told that it was handled.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asid.core import hyperthread as core
from asid.core.events import Mode
from asid.core.hyperthread import HyperthreadState, Phase, What
from asid.guest.base import Exit
from asid.isolated_exits import WHATEVER_IS_MAPPED

if TYPE_CHECKING:
    from asid.live.hyperthread import Hyperthread


@dataclass
class Line:
    """Interrupts of one injection that still wait. id: of the injection; n: how many; mapped: their handler touches
    nothing but what is mapped, whatever that is."""

    id: int
    event: Exit
    n: int
    mapped: bool = False


class Irqs:
    """The interrupts of hyperthread `ht`, oldest first."""

    def __init__(self, ht: Hyperthread) -> None:
        self.ht = ht
        self.lines: deque[Line] = deque()
        self.begun: tuple[int, Mode] | None = None  # one that is being handled: since when, and where it hit

    def raise_line(self, id_: int, event: Exit, n: int, *, mapped: bool = False) -> None:
        """n interrupts, handled one after another. mapped: see Line."""
        self.lines.append(Line(id_, event, n, mapped))

    def due(self) -> bool:
        """Return whether one waits and may be taken now. A lease is left its first instruction."""
        ht, state = self.ht, self.ht.state
        if not self.lines or self.begun is not None or not core.may_interrupt(ht.spec, state, What.IRQ):
            return False
        return state.phase is not Phase.GUEST or state.used

    def take(self) -> None:
        """Let the oldest in."""
        ht, state, line = self.ht, self.ht.state, self.lines[0]
        event = line.event
        self.begun = (ht.node.now_ns(), state.mode)
        if state.phase is Phase.HOSTING:
            ht.spin(event.service_ns)
            ht.step(core.FULL_IRQ)
            self.handled(full=False)
        elif (missed := self.missed(line)) is not None:
            ht.chronicle.wants_host(event.reason, missed)
            ht.vcpu.interrupted(event, halted=state.phase is Phase.HALTED)
            ht.step(core.FULL_IRQ)
        else:
            ht.step(core.FAST_IRQ)

    def missed(self, line: Line) -> str | None:
        """Return what a handler misses first; None when it runs where the interrupt hits."""
        ht, event = self.ht, line.event
        if line.mapped:
            return WHATEVER_IS_MAPPED if ht.policy.needs_full(False, event.reason) else None
        return ht.isolation.missed(event)

    def frame_ended(self, before: HyperthreadState) -> None:
        """A handler on top of something else has ended; was it an interrupt's?"""
        if before.frames[-1].what is What.IRQ:
            self.handled(full=False)

    def handled(self, *, full: bool) -> None:
        """The oldest is done; its sender is told when it was the last of its injection."""
        assert self.begun is not None
        line, ht = self.lines[0], self.ht
        begin_ns, mode = self.begun
        self.begun = None
        took_ns = max(1, ht.node.now_ns() - begin_ns)
        if mode is Mode.GUEST and not full:
            ht.chronicle.tally.add(line.event.reason, line.event.isa, 1, took_ns)
        elif mode is not Mode.GUEST:
            ht.chronicle.interrupt_handled(line.id, mode, full, took_ns, ht.state.round)
        line.n -= 1
        if line.n == 0:
            self.lines.popleft()
            ht.chronicle.flush(ht.state.round)
            ht.link.tell({"op": "done", "id": line.id, "left": 0})
