"""The words of the protocol: modes, what hyperthreads report, what coordinators order, and what engines perform.

Three kinds of things are named here.

* A `Report` goes from a hyperthread to its coordinator, an `Order` the other way. Both carry both incarnations
  and the request number; a report also carries the sender's whole state, so nobody guesses what it was not told.
* An `Action` is one step on something that others share: a word of the core page, an IPI, a message. The step
  functions return actions; an engine performs them one at a time, and anything may happen between two of them.
* A `Note` is a fact for the journal. Notes never decide.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Mode(IntEnum):
    """What a hyperthread is doing. HOST is the full address space; see design, "Modes"."""

    OFFLINE = 0
    PARKED = 1
    HOST = 2
    ISOLATED = 3
    ENTER = 4
    GUEST = 5


class Kick(IntEnum):
    """How a voluntary leave treats its siblings."""

    ACK = 0  # wait until every other lease has been handed back (RFC comments 4, 5 and 15)
    SEND = 1  # raise the leave flag, send the IPIs and go on (RFC comments 9 to 11)
    BARE = 2  # tell nobody: today's kernels; safe only where no sibling can have a lease
    RENDEZVOUS = 3  # as ACK, and all siblings meet again before any of them is in guest (Xen's core scheduling)
    STUN = 4  # as SEND, and the siblings are kept out until the buffers are flushed (Google's stun and unstun)


class Want(IntEnum):
    """The one request a hyperthread may have outstanding."""

    NONE = 0
    ASK = 1
    LEAVE = 2


class Said(IntEnum):
    """Why a report was sent. The state it carries is what counts."""

    READY = 0
    ASK = 1
    LEAVE = 2
    DONE = 3
    ANSWER = 4
    ENTERED = 5
    IDLE = 6
    BYE = 7


class Bid(IntEnum):
    """What a coordinator orders."""

    ATTACH = 0
    DETACH = 1
    ADMIT = 2
    GRANT = 3
    RESYNC = 4
    STOP = 5


class Report(NamedTuple):
    """Hyperthread to coordinator. Not to be confused with `Order`, its twin in the other direction."""

    said: Said
    ht: int
    inc: int  # incarnation of the sender
    coord: int  # incarnation of the coordinator it believes in
    round: int  # round of its lease, 0 without one
    req: int  # number of its last request
    want: Want  # that request's kind, NONE once it is answered
    void: bool  # a kick crossed the request: its grant will be dropped
    mode: Mode
    vm: int  # VM of the attached vCPU, 0 for none
    session: bool  # holds a lease
    used: bool  # has run a guest instruction under it
    answered: int  # number of the last kick it answered


class Order(NamedTuple):
    """Coordinator to hyperthread."""

    bid: Bid
    ht: int
    inc: int
    coord: int
    round: int
    req: int  # the request this answers, 0 where it answers none
    vm: int
    party: int = 0  # of an admission: bits of the siblings to be met before the first instruction, 0 for none


class Do(IntEnum):
    """Kinds of actions."""

    # by a hyperthread
    SET_MODE = 0  # a: Mode
    SET_FLAG = 1  # a: 0 or 1, own leave flag
    SET_DEPTH = 2  # a: own depth of NMI and #MC handlers that are, or are going, HOST
    CLEAR_PENDING = 3
    IPI = 4  # a: sibling whose pending bit is set
    WAKE = 5  # a: sibling whose doorbell rings; changes no word
    LOOK = 6  # read own pending bit and request word, all siblings' flags and depths; a: 1 after an entry's only flush
    WORK = 7  # a handler's own time
    SEND = 8  # a: Said
    # by a coordinator
    ORDER = 9  # a: Order
    REQUEST = 10  # a: sibling, b: kick number; the standing request that the IPI points at
    PEND = 11  # a: sibling; its pending bit, then its doorbell
    WIPE = 12  # a: sibling, b: round it counts as arrived in; clear pending bit, flag and depth of a dead hyperthread
    FENCE = 13  # a: sibling, b: incarnation; kill it, and report the confirmed death
    BURIED = 14  # a: sibling, b: incarnation, 0 for any; its death is done with, it may be born again
    TIMER = 15  # a: Timer, b: key
    # by a hyperthread, through its local APIC and on the buffers of the core
    ICR2 = 16  # a: sibling; xAPIC, first write: the destination
    ICR = 17  # a: 0 for the destination in ICR2, 1 for the shorthand "all but self"; second write: it is on the bus
    ICR_IDLE = 18  # wait until the bus has delivered
    ARRIVE = 19  # a: round; own arrival at the meeting of that round
    FLUSH = 20  # clear the buffers of the core
    # by a hyperthread's #MC handler, see `asid.core.mce`
    CALL_IN = 21  # write own word, with the order of arrival; atomic
    AWAIT_ALL = 22  # wait until everybody whom the broadcast reached is in; for a limited time
    AWAIT_TURN = 23  # ... until everybody who came before has worked
    CALL_OUT = 24  # write own word: has worked
    AWAIT_OUT = 25  # wait until everybody has worked
    FAIL = 26  # mark the core as failed: no guest runs on it ever again


class Timer(IntEnum):
    """Timers a gate may ask for. Setting a timer that is set changes nothing, but TURN starts anew."""

    KICK = 0  # key: (sibling, kick number)
    REKICK = 1  # key: (sibling, kick number)
    STICKY = 2  # key: (sibling, request number of its admission)
    TURN = 3  # key: (0, 0)
    RESYNC = 4  # key: (sibling, incarnation)


class Action(NamedTuple):
    """One step on something shared. `a` and `b` are named at each kind in `Do`."""

    do: Do
    a: int | Order = 0
    b: int = 0


class Seen(NamedTuple):
    """What a LOOK read, in one go."""

    pending: bool
    request: int  # own request word
    holders: bool  # a sibling's flag or depth is raised, or one is waited for: of the party, or by a machine check
    tainted: bool = False  # the buffers hold what was loaded in HOST, or by another lease, since the last flush
    failed: bool = False  # a machine check was fatal: the core takes no guest any more
