"""The local APIC as far as kicks go: how an IPI to the siblings is written, and what becomes of it on the bus.

Rule 1. Pure: sequences of actions for the step functions, and the registers for the engines.
Rule 2. A hyperthread's APIC is its own. Nobody else writes its ICR2 or ICR; the bus sets pending bits (IRR).

Three ways to send, as Linux has them (arch/x86/kernel/apic/ipi.c and x2apic_phys.c)

    x2apic      one 64-bit write a destination; there is no half-written state
    xapic       wait until idle, write ICR2 (destination), write ICR (command): two writes, and an NMI may come between
    shorthand   xAPIC with the destination "all but self" in the ICR itself; ICR2 is not read

An NMI handler that sends a directed IPI of its own leaves its destination in ICR2, and the write it interrupted goes
there. The fix is its own duty: wait until idle before, put ICR2 back and wait until idle after (RFC comment 10; Linux
avoids the case in arch_irq_work_raise by a shorthand and a wait behind it).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from asid.core.events import Action, Do


class Apic(IntEnum):
    """How IPIs are written."""

    X2APIC = 0
    XAPIC = 1
    SHORTHAND = 2


BY_NAME: Final = {"x2apic": Apic.X2APIC, "xapic": Apic.XAPIC, "shorthand": Apic.SHORTHAND}

BY_ICR2: Final = Action(Do.ICR, 0)
ALL_BUT_SELF: Final = Action(Do.ICR, 1)
ICR_IDLE: Final = Action(Do.ICR_IDLE)


def ipi(apic: Apic, target: int) -> tuple[Action, ...]:
    """Return the actions that send one directed IPI. On xAPIC it is on the bus afterwards, not delivered yet."""
    if apic is Apic.X2APIC:
        return (Action(Do.IPI, target),)
    return (ICR_IDLE, Action(Do.ICR2, target), BY_ICR2)


def kicks(apic: Apic, siblings: tuple[int, ...]) -> tuple[Action, ...]:
    """Return the actions that kick all siblings, until every IPI is delivered: HOST comes only after that (I6)."""
    if not siblings:
        return ()
    if apic is Apic.SHORTHAND:
        return (ICR_IDLE, ALL_BUT_SELF, ICR_IDLE)
    sent = tuple(action for target in siblings for action in ipi(apic, target))
    return sent if apic is Apic.X2APIC else (*sent, ICR_IDLE)


def left_as_found(apic: Apic, icr2: int, sent: tuple[Action, ...]) -> tuple[Action, ...]:
    """Return a handler's IPIs so that the sequence it may have interrupted does not notice (I14): the bus is idle when
    it goes on, for its own write would replace what is there, and on xAPIC ICR2 is put back.

    icr2: the register as the handler found it. A kick by shorthand does not read it, and x2APIC has none.
    """
    if apic is Apic.X2APIC or not sent:
        return sent
    idle = () if sent[-1] == ICR_IDLE else (ICR_IDLE,)
    back = (Action(Do.ICR2, icr2),) if apic is Apic.XAPIC else ()
    return (*sent, *idle, *back)


class Registers(NamedTuple):
    """What an engine keeps of one APIC. icr2: destination last written. bus: bits of the siblings an IPI is on its way
    to; not 0 means that the ICR is busy."""

    icr2: int = 0
    bus: int = 0


IDLE: Final = Registers()


def written(registers: Registers, action: Action, ht: int, siblings: tuple[int, ...]) -> Registers:
    """Return the registers after a write. A command written while the ICR is busy replaces the one on the bus."""
    if action.do is Do.ICR2:
        assert isinstance(action.a, int)
        return Registers(action.a, registers.bus)
    assert action.do is Do.ICR
    if action.a:
        return Registers(registers.icr2, sum(1 << other for other in siblings))
    assert registers.icr2 == ht or registers.icr2 in siblings, "an IPI to nobody on this core"
    return Registers(registers.icr2, 1 << registers.icr2)
