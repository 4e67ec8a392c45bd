"""A hyperthread's life as data: its phases, what can happen in each, what it is told at its birth, all that it knows.

What becomes of it is `asid.core.hyperthread`; whoever wants to know what is allowed when reads the two tables here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from asid.core.apic import Apic
from asid.core.events import Action, Bid, Kick, Mode, Order, Seen, Want
from asid.core.mce import LOCAL, Check, Met, Role


class Phase(IntEnum):
    """Where the main line of a hyperthread stands. NMI and #MC handlers run on top of any phase."""

    IDLE = 0  # PARKED, no vCPU
    HALTED = 1  # PARKED, the vCPU sleeps in HLT
    ASKING = 2  # PARKED, waits for ADMIT
    ENTERING = 3  # has a lease, on its way into guest
    HELD = 4  # has a lease; a sibling's NMI, #MC, `send` or `stun` leave, or a meeting, keeps it out of guest
    GUEST = 5
    LEAVING = 6  # ISOLATED (PARKED once kicked), waits for GRANT
    HOSTING = 7  # works in the full address space
    STOPPED = 8  # said goodbye; the process ends


class What(IntEnum):
    """What happens to a hyperthread. The engines bring these."""

    PERFORMED = 0  # the next action was performed; `seen` for a LOOK
    ORDER = 1  # a message of the coordinator; `order`
    DOORBELL = 2  # woken: look at the page
    RETIRED = 3  # one guest instruction ran (the engine found the pending bit clear)
    INTERRUPTED = 4  # the engine found the pending bit set: exit with EXTERNAL_INTERRUPT
    EXIT = 5  # the guest exited; `full` if its handler needs the full address space, `idle` if it was for idling
    WORKED = 6  # the work in HOST is done; `full` here means the vCPU halted
    RUNNABLE = 7  # a halted vCPU was woken
    TIMEOUT = 8  # no answer to a request for too long
    NMI = 9
    MCE = 10
    IRQ = 11  # an external interrupt; `full` if its handler touches what the isolated address space does not map


class Event(NamedTuple):
    what: What
    order: Order | None = None
    seen: Seen | None = None
    full: bool = False
    idle: bool = False
    check: Check = LOCAL  # of a #MC: what it is part of
    met: Met | None = None  # with PERFORMED of a wait in a rendezvous: what it came to


PERFORMED: Final = Event(What.PERFORMED)
DOORBELL: Final = Event(What.DOORBELL)
RETIRED: Final = Event(What.RETIRED)
INTERRUPTED: Final = Event(What.INTERRUPTED)
FAST_EXIT: Final = Event(What.EXIT)
FULL_EXIT: Final = Event(What.EXIT, full=True)
IDLE_EXIT: Final = Event(What.EXIT, full=True, idle=True)
WORKED: Final = Event(What.WORKED)
HALT: Final = Event(What.WORKED, full=True)
RUNNABLE: Final = Event(What.RUNNABLE)
TIMEOUT: Final = Event(What.TIMEOUT)
NMI: Final = Event(What.NMI)
MCE: Final = Event(What.MCE)
FAST_IRQ: Final = Event(What.IRQ)
FULL_IRQ: Final = Event(What.IRQ, full=True)


class Frame(NamedTuple):
    """One handler under way: of an NMI, a #MC, or an interrupt that runs where it hit."""

    what: What
    todo: tuple[Action, ...]
    saved: Mode  # the mode it restores: the interrupted one, ISOLATED where that was GUEST
    # Of a #MC that reached all siblings.
    check: Check = LOCAL
    role: Role = Role.NONE
    late: bool = False  # it gave up a wait


@dataclass(frozen=True, slots=True)
class Spec:
    """What does not change in a hyperthread's life: its place on the core and its policy."""

    ht: int
    siblings: tuple[int, ...]  # every other hyperthread of the core
    kick: Kick = Kick.ACK
    guarded: bool = True  # heeds siblings in HOST, and kicks them from NMI and #MC; False under `none`
    idle_kick: Kick | None = None  # of a leave for idling; None: as every other
    irq_kick: Kick | None = None  # of a leave for an interrupt without a lease; None: as every other
    flush: bool = False  # the buffers are flushed before an entry when they hold what they must not
    nmi_isolated: bool = False  # handlers of NMI and #MC are mapped in the isolated address space
    irqs_off: bool = False  # a fast exit is handled with interrupts off
    apic: Apic = Apic.X2APIC
    icr_fix: bool = True  # handlers leave the APIC as they found it
    mcip: bool = False  # a #MC inside a #MC shuts the hyperthread down; else it is held until IRET


class HyperthreadState(NamedTuple):
    """Everything a hyperthread knows. Equal states behave equally."""

    inc: int = 1  # own incarnation; a number is never used twice for a hyperthread
    coord: int = 1  # incarnation of the coordinator it believes in
    phase: Phase = Phase.IDLE
    mode: Mode = Mode.PARKED  # what is true now: changes when SET_MODE is performed
    vm: int = 0  # VM of the attached vCPU. Invariant: session implies vm != 0
    session: bool = False  # holds a lease. Invariant: GUEST, ENTER and ISOLATED imply session
    used: bool = False  # has run an instruction under this lease
    round: int = 0  # of the lease; 0 without one
    req: int = 0  # number of the last request
    want: Want = Want.NONE
    void: bool = False  # the grant of `req` is to be dropped
    answered: int = 0  # last kick answered; a request word that differs is a kick
    flag: bool = False  # own leave flag, as published
    depth: int = 0  # own depth, as published
    icr2: int = 0  # xAPIC: own ICR2, as last written
    party: int = 0  # bits of the siblings to be met before the next instruction, 0 once they are met
    absent: int = 0  # bits of the siblings that a machine check missed, 0 once they are fenced or have come
    todo: tuple[Action, ...] = ()  # of the main line
    frames: tuple[Frame, ...] = ()  # handlers on top of it, innermost last


# Phase x event. A missing cell fails at import.
#   do      the event's function below
#   IGNORE  legal and late, e.g. a doorbell that rings for a kick already answered
#   REJECT  the engine or the coordinator is broken: ProtocolFault
IGNORE: Final = "ignore"
REJECT: Final = "reject"
DO: Final = "do"
_EVENTS: Final = (
    What.ORDER,
    What.DOORBELL,
    What.RETIRED,
    What.INTERRUPTED,
    What.EXIT,
    What.WORKED,
    What.RUNNABLE,
    What.TIMEOUT,
)
TABLE: Final[dict[Phase, tuple[str, ...]]] = {
    #                 order  doorbell retired interrupted exit   worked  runnable timeout
    Phase.IDLE: (     DO,    DO,      REJECT, REJECT,     REJECT, REJECT, IGNORE, DO),
    Phase.HALTED: (   DO,    DO,      REJECT, REJECT,     REJECT, REJECT, DO,     DO),
    Phase.ASKING: (   DO,    DO,      REJECT, REJECT,     REJECT, REJECT, IGNORE, DO),
    Phase.ENTERING: ( DO,    IGNORE,  REJECT, REJECT,     REJECT, REJECT, IGNORE, IGNORE),
    Phase.HELD: (     DO,    DO,      REJECT, REJECT,     REJECT, REJECT, IGNORE, IGNORE),
    Phase.GUEST: (    DO,    IGNORE,  DO,     DO,         DO,     REJECT, IGNORE, IGNORE),
    Phase.LEAVING: (  DO,    DO,      REJECT, REJECT,     REJECT, REJECT, IGNORE, DO),
    Phase.HOSTING: (  DO,    DO,      REJECT, REJECT,     REJECT, DO,     IGNORE, IGNORE),
    Phase.STOPPED: (  IGNORE, IGNORE, REJECT, REJECT,     REJECT, IGNORE, IGNORE, IGNORE),
}  # fmt: skip
assert set(TABLE) == set(Phase), "a phase without a row"
assert all(len(row) == len(_EVENTS) for row in TABLE.values()), "a phase with a missing column"

# Phase x order, for orders of the right incarnations. REJECT: the gate believes what cannot be.
ORDERS: Final[dict[Phase, tuple[str, ...]]] = {
    #                 attach  detach  admit   grant   resync stop
    Phase.IDLE: (     DO,     IGNORE, IGNORE, IGNORE, DO,    DO),
    Phase.HALTED: (   IGNORE, DO,     IGNORE, IGNORE, DO,    DO),
    Phase.ASKING: (   IGNORE, DO,     DO,     IGNORE, DO,    DO),
    Phase.ENTERING: ( IGNORE, REJECT, IGNORE, IGNORE, DO,    REJECT),
    Phase.HELD: (     IGNORE, REJECT, IGNORE, IGNORE, DO,    REJECT),
    Phase.GUEST: (    IGNORE, REJECT, IGNORE, IGNORE, DO,    REJECT),
    Phase.LEAVING: (  IGNORE, REJECT, IGNORE, DO,     DO,    REJECT),
    Phase.HOSTING: (  IGNORE, REJECT, IGNORE, IGNORE, DO,    REJECT),
    Phase.STOPPED: (  IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE),
}  # fmt: skip
assert set(ORDERS) == set(Phase), "a phase without a row"
assert all(len(row) == len(Bid) for row in ORDERS.values()), "a phase with a missing column"
