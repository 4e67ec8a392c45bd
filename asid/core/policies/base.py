"""What a policy is. Every one is a class of its own module, with no state but the kick that it was given.

A policy decides nothing at run time but where an exit is handled: the step functions read the rest from the `Spec`
that it makes for a hyperthread and for the gate, the same for all of them. To write one: subclass `Policy`, say what
differs, and let `asid policy test` look at it before it runs live. What it promises follows from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from asid.core import gate, hyperthread
from asid.core.apic import Apic
from asid.core.events import Kick
from asid.core.gate import Rooms

CHOICE: tuple[Kick, ...] = (Kick.ACK, Kick.SEND, Kick.RENDEZVOUS, Kick.STUN)

# Who keeps nobody out of guest, or lets some exits by, cannot promise it.
UNPROMISED: Final[dict[str, frozenset[str]]] = {
    "none": frozenset({"G2", "G3", "G9"}),
    "core-sched": frozenset({"G2", "G9"}),
    "kick-except-idle": frozenset({"G2", "G9"}),
}


@dataclass(frozen=True)
class Policy:
    """One policy with its kick. Class attributes are what it is, methods what it decides."""

    kick: Kick

    name: ClassVar[str]
    about: ClassVar[str]
    kicks: ClassVar[tuple[Kick, ...]] = CHOICE  # that it may be given; a single one is its own
    rooms: ClassVar[Rooms] = Rooms.VM  # which leases may coexist
    guarded: ClassVar[bool] = True  # siblings in HOST are heeded, and kick from NMI and #MC
    host_alone: ClassVar[bool] = True  # HOST and guest exclude each other
    flush: ClassVar[bool] = True  # the buffers are flushed before an entry when they hold what they must not
    irqs_off: ClassVar[bool] = False  # fast exits are handled with interrupts off
    idle_kick: ClassVar[Kick | None] = None  # of a leave for idling, None for that of every other
    irq_kick: ClassVar[Kick | None] = None  # of an interrupt that hits a parked hyperthread, None likewise
    every_exit_full: ClassVar[bool] = False

    def needs_full(self, full: bool, reason: str = "") -> bool:
        """Return whether an exit is handled in HOST. full: its handler needs the full address space; reason: the
        kernel's name of the exit."""
        return full or self.every_exit_full

    @classmethod
    def like(cls) -> str:
        """Return the name of asid's own policy whose promises this one makes."""
        if Kick.BARE in cls.kicks:
            if cls.rooms is Rooms.ALL:
                return "none"
            return "nosmt" if cls.rooms is Rooms.HYPERTHREAD else "core-sched"
        if cls.idle_kick is Kick.BARE:
            return "kick-except-idle"
        return "asi-stun" if cls.kicks == (Kick.STUN,) else "asi"

    @classmethod
    def unpromised(cls) -> frozenset[str]:
        """Return the guarantees that it does not make, by design: broken under it, they are what is to be seen."""
        return UNPROMISED.get(cls.like(), frozenset())

    def hyperthread_spec(
        self, ht: int, siblings: tuple[int, ...], *, apic: Apic = Apic.X2APIC, icr_fix: bool = True,
        nmi_isolated: bool = False, mcip: bool = False,
    ) -> hyperthread.Spec:  # fmt: skip
        """Return what a hyperthread is told of the policy and of its APIC."""
        return hyperthread.Spec(
            ht, siblings, self.kick, self.guarded, idle_kick=self.idle_kick, irq_kick=self.irq_kick, flush=self.flush,
            nmi_isolated=nmi_isolated, irqs_off=self.irqs_off, apic=apic, icr_fix=icr_fix, mcip=mcip,
        )  # fmt: skip

    def gate_spec(self) -> gate.Spec:
        """Return what a gate is told of the policy."""
        return gate.Spec(self.rooms, host_alone=self.host_alone, together=self.kick is Kick.RENDEZVOUS)
