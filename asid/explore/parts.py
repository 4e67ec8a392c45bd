"""What a core is made of in the explorer: the model, its siblings, its coordinator, and the faults that are left.

A world is one `Sibling` a hyperthread, one `Desk` for the coordinator, and one `Budget`. Each of them is frozen and
hashable, and none refers to another: what one does to another is a `Touch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from asid.core import gate, hyperthread
from asid.core.apic import IDLE, Apic, Registers
from asid.core.events import Action, Kick, Order, Report
from asid.core.hyperthread import HyperthreadState
from asid.core.limits import OVERTAKES_MAX
from asid.core.mce import CallIn


class Budget(NamedTuple):
    """How many events of each kind may still come from outside, at any moment."""

    nmi: int = 0
    mce: int = 0
    kill: int = 0  # of a hyperthread
    restart: int = 0  # of a killed hyperthread
    coordinator: int = 0  # kills of the coordinator; it always comes back
    loss: int = 0  # of a message
    retry: int = 0  # a request times out although nothing was lost
    timer: int = 0  # a kick, re-kick or sticky time-out although nobody is stuck
    hotplug: int = 0  # a vCPU is detached or attached
    hold: int = 0  # a client holds the gate; it always lets go
    unplug: int = 0  # a hyperthread is told to stop
    irq: int = 0  # an external interrupt
    broadcast: int = 0  # a #MC that reaches every living sibling; each takes it at any later step
    stop: int = 0  # a process stops (SIGSTOP) before its #MC handler has worked; it goes on never
    fatal: int = 0  # so many of the #MCs, of either kind, may be fatal where they are taken


NO_FAULTS: Final = Budget()


class Arrivals(IntEnum):
    """How fairly the coordinator reads its peers; matters to progress only."""

    EACH = 0  # every peer's messages are read in the end
    ANY = 1  # some peer's messages are read in the end (the naive way, V28)


@dataclass(frozen=True, slots=True)
class Model:
    """What is explored."""

    vms: tuple[int, ...]  # by hyperthread, the VM whose vCPU it runs, 0 for none
    kick: Kick = Kick.ACK
    rooms: gate.Rooms = gate.Rooms.VM
    budget: Budget = NO_FAULTS
    halts: bool = False  # a visit to HOST may end with a halted vCPU, woken at any moment
    fast_exits: bool = True
    overtakes_max: int = OVERTAKES_MAX
    arrivals: Arrivals = Arrivals.EACH
    torn: bool = False  # a look reads its words one at a time
    guarded: bool = True
    host_alone: bool = True
    idle_kick: Kick | None = None  # of a leave for idling; None: as every other
    irq_kick: Kick | None = None  # of a leave for an interrupt without a lease; None: as every other
    full_exits: bool = True
    idle_exits: bool = False  # the guest may exit in order to idle
    taints: bool = False  # what the buffers hold is looked at
    flush: bool = False  # ... and flushed before an entry
    nmi_isolated: bool = False
    apic: Apic = Apic.X2APIC
    icr_fix: bool = True
    irqs_off: bool = False  # a fast exit is handled with interrupts off

    @property
    def siblings(self) -> int:
        return len(self.vms)


class Words(NamedTuple):
    """One hyperthread's line of the core page."""

    pending: bool = False
    request: int = 0
    flag: bool = False
    depth: int = 0
    arrived: int = 0  # round of the last meeting it has come to
    tainted: bool = False  # something was loaded on this core since the last flush; the same for all siblings
    apic: Registers = IDLE
    callin: CallIn = CallIn()
    broadcast: int = 0  # the last #MC that it was hit by with all its siblings
    party: int = 0  # whom that one reached
    failed: bool = False  # the core is; the same for all siblings


class Dead(NamedTuple):
    """A hyperthread without a process. `told`: its coordinator knows; `buried`: it may be born again."""

    inc: int
    told: bool = False
    buried: bool = False


UpLink = tuple[tuple[int, tuple[Report, ...]], ...]  # by incarnation of the sender; reports oldest first
DownLink = tuple[Order, ...]  # oldest first


class Glimpse(NamedTuple):
    """A look that is under way: what was read so far, in this order."""

    pending: bool
    request: int = -1  # not read yet
    holders: bool = False
    next_ht: int = 0  # the sibling whose words come next


class Sibling(NamedTuple):
    """All there is of one hyperthread: its process, its line of the page, its links to and from the coordinator.

    Messages of a dead incarnation are a queue of their own, so they may arrive after those of the next.
    """

    process: HyperthreadState | Dead
    words: Words
    up: UpLink
    down: DownLink
    glimpse: Glimpse | None = None
    taken: int = 0  # the last #MC of all siblings that it has taken
    stopped: bool = False

    @property
    def runs_never(self) -> bool:
        """Whether it goes into guest never again: stopped from outside, or on a core that a #MC has failed."""
        return self.stopped or self.words.failed


class Down(NamedTuple):
    """A coordinator that was killed: what the daemon knows of it, for the next one."""

    coord: int
    round: int
    kicks: int  # no kick of any sibling has a higher number
    attached: tuple[int, ...]


class Desk(NamedTuple):
    """The coordinator's process: its gate, and what the gate decided and is not yet performed."""

    gate: gate.GateState | Down
    todo: tuple[Action, ...] = ()


class Touched(IntEnum):
    """What can be done to a sibling from outside."""

    PENDING = 0  # its pending bit is set
    REQUEST = 1  # its request word is written; number
    WIPED = 2  # its words are cleared after its death
    TOLD = 3  # its coordinator has processed its death
    BURIED = 4  # it may be born again; number: the incarnation
    KILLED = 5
    ORDERED = 6  # an order is on its way; order
    BORN = 7  # a new process; number: incarnation of the coordinator it is told
    KICKS = 8  # kick numbers are counted from elsewhere; number: by how much
    ROUNDS = 9  # rounds likewise
    UNSENT = 10  # its newest orders were never sent; number: how many
    UNBURIED = 11  # the coordinator that buried it is gone
    TAINTED = 12  # a sibling loaded something into the buffers of the core
    FLUSHED = 13  # a sibling flushed them
    RAISED = 14  # a #MC reaches it and all its siblings; number: a BROADCAST word
    FAILED = 15  # a #MC of a sibling was fatal


class Touch(NamedTuple):
    """One thing done to sibling `ht`."""

    ht: int
    what: Touched
    number: int = 0
    order: Order | None = None


class Who(IntEnum):
    """Whose step it is. Progress assumes that every actor but FREE and FAULT moves when it keeps being able to."""

    FREE = 0  # the guest's own choice: to exit, to halt, to wake up
    FAULT = 1  # comes from the budget, at any moment or never
    PROCESS = 2  # a hyperthread goes on, hears its doorbell, runs guest instructions
    INBOX = 3  # a hyperthread reads its orders, in guest too
    LINK = 4  # the coordinator reads what this hyperthread sent
    GATE = 5  # the coordinator performs what its gate decided
    TURN = 6  # the slice of the room that has the core ends
    DEATH = 7  # the coordinator hears of this hyperthread's death
    DAEMON = 8  # a process is started again, a client lets go
    TIME = 9  # a message was lost, so a time-out strikes in the end
    BUS = 10  # an IPI that is on the bus is delivered
    CHECK = 11  # a hyperthread takes the #MC that it was hit by


def actor(who: Who, ht: int = 0) -> int:
    """Return the number of an actor: below 128 for up to 8 siblings, FREE and FAULT below 16."""
    return who << 3 | ht


COORDINATOR: Final = -1


class Label(NamedTuple):
    """One step in words: who (a hyperthread, or COORDINATOR), what, and what about."""

    who: int
    what: str
    detail: str | Report | Order | Action | int = ""


class SiblingMove(NamedTuple):
    """A step of one sibling: itself after it, and what it does to others."""

    label: Label
    actor: int
    sibling: Sibling
    budget: Budget
    touches: tuple[Touch, ...] = ()
    renumbered: int = 0  # its request numbers are counted from elsewhere now: by how much, for the gate


class DeskMove(NamedTuple):
    """A step of the coordinator: itself after it, and what it does to siblings, in order."""

    label: Label
    actor: int
    desk: Desk
    budget: Budget
    touches: tuple[Touch, ...] = ()


def spec_of(model: Model, ht: int) -> hyperthread.Spec:
    """Return what a hyperthread of the model is told at its birth."""
    others = tuple(other for other in range(model.siblings) if other != ht)
    return hyperthread.Spec(
        ht, others, model.kick, model.guarded, idle_kick=model.idle_kick, irq_kick=model.irq_kick, flush=model.flush,
        nmi_isolated=model.nmi_isolated, irqs_off=model.irqs_off, apic=model.apic, icr_fix=model.icr_fix,
    )  # fmt: skip


class Death(NamedTuple):
    """The coordinator is told of it by the daemon."""

    ht: int
    inc: int
