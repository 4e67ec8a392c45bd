"""The hyperthread: one sibling's own view of its life between PARKED, ISOLATED, guest and HOST.

Rule 1. Everything that changes a HyperthreadState is in this file.
Rule 2. This file reads no clock, no socket, no page and no environment, and draws no random number.
Rule 3. A hyperthread acts on what it was told and on what it read itself; it never guesses about a sibling.

Theory of operation
    The state holds what is still to be done: `todo`, one action at a time, each a step on something that the
    siblings share (a word of the core page, an IPI, a message). An engine performs `next_action(state)` and
    returns with PERFORMED; only when nothing is to be done does it bring an event. Between any two actions an
    NMI or a #MC may come. It gets a frame of its own on top, with its own actions; the interrupted ones wait.
    So "an NMI at every step" is not a test, it is the shape of this file.

Entry
    publish ENTER, full memory barrier (the engine's), then look: own pending bit, own request word, every
    sibling's flag and depth. All clear: GUEST. This is KVM's own pattern (Documentation/virt/kvm/vcpu-requests.rst).
    The pending bit is looked at again before every guest instruction, so a kick that comes after the look still
    stops the first instruction.

Kicks
    A kick from the gate is a request word and then a pending bit. The hyperthread goes PARKED, *then* answers,
    and its answer carries what it wants next. It answers in every waiting state. A kick that finds an ask under
    way makes its grant void: wait for it, drop it, ask again. A kick from an NMI, a #MC or a `send` leave is the
    sibling's depth or flag and then the pending bit: leave guest, wait until it is clear, keep the lease.

NMI and #MC
    The handler raises its depth, kicks every sibling, and is in HOST; it asks nobody and waits for nobody. On its
    way out the mode is restored first and the depth lowered after. It never clears a pending bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from asid.core.events import Action, Bid, Do, Kick, Mode, Order, Report, Said, Seen, Want
from asid.core.limits import INTERRUPT_DEPTH_MAX
from asid.errors import ProtocolFault


class Phase(IntEnum):
    """Where the main line of a hyperthread stands. NMI and #MC handlers run on top of any phase."""

    IDLE = 0  # PARKED, no vCPU
    HALTED = 1  # PARKED, the vCPU sleeps in HLT
    ASKING = 2  # PARKED, waits for ADMIT
    ENTERING = 3  # has a lease, on its way into guest
    HELD = 4  # has a lease; a sibling's NMI, #MC or `send` leave keeps it out of guest
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
    EXIT = 5  # the guest exited; `full` if its handler needs the full address space
    WORKED = 6  # the work in HOST is done; `full` here means the vCPU halted
    RUNNABLE = 7  # a halted vCPU was woken
    TIMEOUT = 8  # no answer to a request for too long
    NMI = 9
    MCE = 10


class Event(NamedTuple):
    what: What
    order: Order | None = None
    seen: Seen | None = None
    full: bool = False


PERFORMED: Final = Event(What.PERFORMED)
DOORBELL: Final = Event(What.DOORBELL)
RETIRED: Final = Event(What.RETIRED)
INTERRUPTED: Final = Event(What.INTERRUPTED)
FAST_EXIT: Final = Event(What.EXIT)
FULL_EXIT: Final = Event(What.EXIT, full=True)
WORKED: Final = Event(What.WORKED)
HALT: Final = Event(What.WORKED, full=True)
RUNNABLE: Final = Event(What.RUNNABLE)
TIMEOUT: Final = Event(What.TIMEOUT)
NMI: Final = Event(What.NMI)
MCE: Final = Event(What.MCE)


class Frame(NamedTuple):
    """One NMI or #MC handler under way."""

    what: What
    todo: tuple[Action, ...]
    saved: Mode  # the mode it restores: the interrupted one, ISOLATED where that was GUEST


@dataclass(frozen=True, slots=True)
class Spec:
    """What does not change in a hyperthread's life: its place on the core and its policy."""

    ht: int
    siblings: tuple[int, ...]  # every other hyperthread of the core
    kick: Kick = Kick.ACK
    guarded: bool = True  # heeds siblings in HOST, and kicks them from NMI and #MC; False under `none`


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
    todo: tuple[Action, ...] = ()  # of the main line
    frames: tuple[Frame, ...] = ()  # handlers on top of it, innermost last


LOOK: Final = Action(Do.LOOK)
WORK: Final = Action(Do.WORK)
CLEAR_PENDING: Final = Action(Do.CLEAR_PENDING)


# Made once, by number.
_SET_MODE: Final = tuple(Action(Do.SET_MODE, mode) for mode in Mode)
_SEND: Final = tuple(Action(Do.SEND, said) for said in Said)


def set_mode(mode: Mode) -> Action:
    return _SET_MODE[mode]


def send(said: Said) -> Action:
    return _SEND[said]


ENTRY: Final = (set_mode(Mode.ENTER), LOOK)
FAST: Final = (set_mode(Mode.ISOLATED), WORK, *ENTRY)

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

# The words by plain names: an attribute of an enum costs several times what a name of the module does, and these
# functions are on the way of every leave and of every step of the explorer.
BID_ADMIT: Final = Bid.ADMIT
BID_ATTACH: Final = Bid.ATTACH
BID_DETACH: Final = Bid.DETACH
BID_RESYNC: Final = Bid.RESYNC
BID_STOP: Final = Bid.STOP
DO_IPI: Final = Do.IPI
DO_LOOK: Final = Do.LOOK
DO_SET_DEPTH: Final = Do.SET_DEPTH
DO_SET_FLAG: Final = Do.SET_FLAG
DO_SET_MODE: Final = Do.SET_MODE
DO_WAKE: Final = Do.WAKE
KICK_ACK: Final = Kick.ACK
KICK_SEND: Final = Kick.SEND
MODE_ENTER: Final = Mode.ENTER
MODE_GUEST: Final = Mode.GUEST
MODE_HOST: Final = Mode.HOST
MODE_ISOLATED: Final = Mode.ISOLATED
MODE_PARKED: Final = Mode.PARKED
PHASE_ASKING: Final = Phase.ASKING
PHASE_ENTERING: Final = Phase.ENTERING
PHASE_GUEST: Final = Phase.GUEST
PHASE_HALTED: Final = Phase.HALTED
PHASE_HELD: Final = Phase.HELD
PHASE_HOSTING: Final = Phase.HOSTING
PHASE_IDLE: Final = Phase.IDLE
PHASE_LEAVING: Final = Phase.LEAVING
PHASE_STOPPED: Final = Phase.STOPPED
SAID_ANSWER: Final = Said.ANSWER
SAID_ASK: Final = Said.ASK
SAID_BYE: Final = Said.BYE
SAID_DONE: Final = Said.DONE
SAID_ENTERED: Final = Said.ENTERED
SAID_IDLE: Final = Said.IDLE
SAID_LEAVE: Final = Said.LEAVE
SAID_READY: Final = Said.READY
WANT_ASK: Final = Want.ASK
WANT_LEAVE: Final = Want.LEAVE
WANT_NONE: Final = Want.NONE
WHAT_DOORBELL: Final = What.DOORBELL
WHAT_EXIT: Final = What.EXIT
WHAT_INTERRUPTED: Final = What.INTERRUPTED
WHAT_MCE: Final = What.MCE
WHAT_NMI: Final = What.NMI
WHAT_ORDER: Final = What.ORDER
WHAT_PERFORMED: Final = What.PERFORMED
WHAT_RETIRED: Final = What.RETIRED
WHAT_RUNNABLE: Final = What.RUNNABLE
WHAT_TIMEOUT: Final = What.TIMEOUT
WHAT_WORKED: Final = What.WORKED


def next_action(s: HyperthreadState) -> Action | None:
    """Return the action that comes next, or None when the hyperthread waits for an event."""
    if s.frames:
        return s.frames[-1].todo[0]
    return s.todo[0] if s.todo else None


def report(spec: Spec, s: HyperthreadState, said: Said) -> Report:
    """Return the report as it leaves now: the whole state at this moment, not at the moment it was planned."""
    return Report(
        said, spec.ht, s.inc, s.coord, s.round, s.req, s.want, s.void, s.mode, s.vm, s.session, s.used, s.answered
    )


def born(inc: int, coord: int, answered: int) -> HyperthreadState:
    """Return the first state of a new process: PARKED, no lease, about to say so (I18). Never HOST.

    `answered` is its request word as it finds it: kicks of an earlier life are not for it.
    """
    return HyperthreadState(inc=inc, coord=coord, answered=answered, todo=(send(SAID_READY),))


def step(spec: Spec, s: HyperthreadState, event: Event) -> HyperthreadState:
    """Return the next state. Raise ProtocolFault on a REJECT cell; nothing changes then.

    PERFORMED is for `next_action`; NMI and MCE come at any time; all others only while `next_action` is None.
    """
    what = event.what
    if what is WHAT_PERFORMED:
        return on_performed(spec, s, event.seen)
    if what is WHAT_NMI or what is WHAT_MCE:
        return on_interrupt(spec, s, what)
    assert next_action(s) is None, "an event while actions are to be performed"
    cell = TABLE[s.phase][what - 1]
    if cell is IGNORE:
        return s
    if cell is REJECT:
        raise ProtocolFault(
            f"hyperthread {spec.ht} does not allow {what.name.lower()} in phase {s.phase.name}",
            state=f"mode {s.mode.name}, vm {s.vm}, round {s.round}",
            hint="the engine brought an event that cannot happen here; please report it with the journal",
        )
    if what is WHAT_ORDER:
        assert event.order is not None
        return on_order(spec, s, event.order)
    if what is WHAT_EXIT:
        return on_exit(spec, s, event.full)
    if what is WHAT_WORKED:
        return on_worked(spec, s, event.full)
    return _PLAIN[what](spec, s)


# --- actions performed ------------------------------------------------------------------------------------


def on_performed(spec: Spec, s: HyperthreadState, seen: Seen | None) -> HyperthreadState:
    """Return the state after the next action was performed: a handler's first, else the main line's."""
    if s.frames:
        frame = s.frames[-1]
        act, rest = frame.todo[0], frame.todo[1:]
        s = s._replace(frames=(*s.frames[:-1], frame._replace(todo=rest)) if rest else s.frames[:-1])
    else:
        act, rest = s.todo[0], s.todo[1:]
        s = moved(s, s.phase, s.mode, rest)
        if act.do is DO_LOOK:
            assert seen is not None, "a look without what it saw"
            return on_look(spec, s, seen)
    value = act.a
    if act.do is DO_SET_MODE:
        assert isinstance(value, Mode)
        return moved(s, PHASE_GUEST if value is MODE_GUEST else s.phase, value, s.todo)
    if act.do is DO_SET_DEPTH:
        assert isinstance(value, int)
        return s._replace(depth=value)
    if act.do is DO_SET_FLAG:
        return s._replace(flag=bool(value))
    return s


def moved(s: HyperthreadState, phase: Phase, mode: Mode, todo: tuple[Action, ...]) -> HyperthreadState:
    """Return the state with these three; without the price of `_replace`, for this is done at every action."""
    inc, coord, _, _, vm, session, used, round_, req, want, void, answered, flag, depth, _, frames = s
    return HyperthreadState(
        inc, coord, phase, mode, vm, session, used, round_, req, want, void, answered, flag, depth, todo, frames
    )


def on_look(spec: Spec, s: HyperthreadState, seen: Seen) -> HyperthreadState:
    """Act on what the look saw: a standing request first, then siblings that keep us out, then the pending bit."""
    if seen.request != s.answered:
        return on_kick(spec, s, seen.request)
    if s.phase is PHASE_ENTERING or s.phase is PHASE_HELD:
        if seen.holders and spec.guarded:
            back = () if s.mode is MODE_ISOLATED else (set_mode(MODE_ISOLATED),)
            return s._replace(phase=PHASE_HELD, todo=back)
        if seen.pending:
            # Clear, then look again: whoever set it wrote its request before, so the second look sees that.
            return s._replace(phase=PHASE_ENTERING, todo=(CLEAR_PENDING, LOOK))
        if s.mode is MODE_ENTER:
            return s._replace(todo=(set_mode(MODE_GUEST),))
        return s._replace(phase=PHASE_ENTERING, todo=ENTRY)
    if seen.pending:
        return s._replace(todo=(CLEAR_PENDING, LOOK))
    return s


def on_kick(spec: Spec, s: HyperthreadState, number: int) -> HyperthreadState:
    """Hand the lease back: PARKED first, then the answer, which carries what is wanted next (R7, R8, R9)."""
    if s.phase is PHASE_ASKING:
        # The gate kicks lease holders only: a grant is under way. Wait for it, drop it, ask again.
        return s._replace(answered=number, void=s.want is WANT_ASK, todo=(send(SAID_ANSWER),))
    if s.phase is PHASE_ENTERING or s.phase is PHASE_HELD:
        return s._replace(
            answered=number, session=False, used=False, round=0, phase=PHASE_ASKING, void=False, want=WANT_ASK,
            req=s.req + 1, todo=(set_mode(MODE_PARKED), send(SAID_ANSWER)),
        )  # fmt: skip
    if s.phase is PHASE_LEAVING and s.session:
        s = s._replace(answered=number, session=False, used=False, round=0)
        return s._replace(todo=(set_mode(MODE_PARKED), send(SAID_ANSWER)))
    # In HOST after a `send` leave the lease goes back at once; the flag keeps the siblings out until the end.
    return s._replace(answered=number, session=False, used=False, round=0, todo=(send(SAID_ANSWER),))


# --- guest and host ---------------------------------------------------------------------------------------


def on_doorbell(spec: Spec, s: HyperthreadState) -> HyperthreadState:
    return s._replace(todo=(LOOK,))


def on_retired(spec: Spec, s: HyperthreadState) -> HyperthreadState:
    """The first instruction under a lease is reported, so that the lease is no longer sticky (R13)."""
    if s.used:
        return s
    return s._replace(used=True, todo=(send(SAID_ENTERED),))


def on_interrupted(spec: Spec, s: HyperthreadState) -> HyperthreadState:
    """EXTERNAL_INTERRUPT: out of guest, clear the doorbell, then look who rang."""
    return s._replace(phase=PHASE_ENTERING, todo=(set_mode(MODE_ISOLATED), CLEAR_PENDING, LOOK))


def on_exit(spec: Spec, s: HyperthreadState, full: bool) -> HyperthreadState:
    """A VM exit. Fast: handled in ISOLATED and back, no message. Full: a leave, in the policy's way."""
    if not full:
        return s._replace(phase=PHASE_ENTERING, todo=FAST)
    if spec.kick is KICK_ACK:
        leave = (set_mode(MODE_ISOLATED), send(SAID_LEAVE))
        return s._replace(phase=PHASE_LEAVING, want=WANT_LEAVE, req=s.req + 1, void=False, todo=leave)
    if spec.kick is KICK_SEND:
        kicks = tuple(Action(DO_IPI, other) for other in spec.siblings)
        todo = (set_mode(MODE_ISOLATED), Action(DO_SET_FLAG, 1), *kicks, set_mode(MODE_HOST))
        return s._replace(phase=PHASE_HOSTING, todo=todo)
    return s._replace(phase=PHASE_HOSTING, todo=(set_mode(MODE_HOST),))


def on_worked(spec: Spec, s: HyperthreadState, halted: bool) -> HyperthreadState:
    """Back from HOST. With the lease: ISOLATED and in again. Without: PARKED, done, and the next ask."""
    lower: tuple[Action, ...] = ()
    if s.flag:
        lower = (Action(DO_SET_FLAG, 0), *(Action(DO_WAKE, other) for other in spec.siblings))
    if s.session and not halted:
        return s._replace(phase=PHASE_ENTERING, todo=(set_mode(MODE_ISOLATED), *lower, *ENTRY))
    s = s._replace(session=False, used=False, round=0, todo=(set_mode(MODE_PARKED), *lower, send(SAID_DONE)))
    if halted:
        return s._replace(phase=PHASE_HALTED)
    return s._replace(phase=PHASE_ASKING, want=WANT_ASK, req=s.req + 1, void=False)


def on_runnable(spec: Spec, s: HyperthreadState) -> HyperthreadState:
    s = s._replace(phase=PHASE_ASKING, want=WANT_ASK, req=s.req + 1, void=False)
    return s._replace(todo=(send(SAID_ASK),))


def on_timeout(spec: Spec, s: HyperthreadState) -> HyperthreadState:
    """Ask again under a new number (R16); the state that goes with it tells all the gate may believe."""
    if s.phase is PHASE_ASKING:
        return s._replace(req=s.req + 1, void=False, todo=(send(SAID_ASK),))
    if s.phase is PHASE_LEAVING:
        return s._replace(req=s.req + 1, void=False, todo=(send(SAID_LEAVE),))
    return s._replace(todo=(send(SAID_READY),))


# --- orders -----------------------------------------------------------------------------------------------


def of_this_life(s: HyperthreadState, order: Order) -> bool:
    """Say whether an order is for this incarnation and from the coordinator we know (I11)."""
    return order.inc == s.inc and order.coord == s.coord


def on_order(spec: Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
    assert order.ht == spec.ht, "routed to the wrong process"
    if order.bid is BID_RESYNC:
        if order.inc != s.inc or order.coord <= s.coord:
            return s
        # A grant of the old coordinator can no longer match, so nothing is void; the report says what we want.
        todo = () if s.phase is PHASE_STOPPED else (send(SAID_READY),)
        return s._replace(coord=order.coord, void=False, todo=todo)
    if not of_this_life(s, order):
        return s
    cell = ORDERS[s.phase][order.bid]
    if cell is IGNORE:
        return s
    if cell is REJECT:
        raise ProtocolFault(
            f"hyperthread {spec.ht} was ordered to {order.bid.name.lower()} in phase {s.phase.name}",
            state=f"mode {s.mode.name}, session {s.session}, round {s.round}",
            hint="the gate believes what cannot be; please report it with the journal",
        )
    if order.bid is BID_ATTACH:
        s = s._replace(vm=order.vm, phase=PHASE_ASKING, want=WANT_ASK, req=s.req + 1, void=False)
        return s._replace(todo=(send(SAID_ASK),))
    if order.bid is BID_DETACH:
        return s._replace(vm=0, phase=PHASE_IDLE, want=WANT_NONE, void=False, todo=(send(SAID_IDLE),))
    if order.bid is BID_STOP:
        return s._replace(phase=PHASE_STOPPED, want=WANT_NONE, void=False, todo=(send(SAID_BYE),))
    if order.req != s.req:
        return s  # an answer to an older request
    if order.bid is BID_ADMIT:
        return on_admit(spec, s, order)
    todo = (set_mode(MODE_HOST),)
    return s._replace(phase=PHASE_HOSTING, want=WANT_NONE, session=False, used=False, round=0, todo=todo)


def on_admit(spec: Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
    if s.void:
        return s._replace(req=s.req + 1, void=False, todo=(send(SAID_ASK),))
    todo = (set_mode(MODE_ISOLATED), *ENTRY)
    return s._replace(phase=PHASE_ENTERING, session=True, used=False, want=WANT_NONE, round=order.round, todo=todo)


# --- NMI and #MC ------------------------------------------------------------------------------------------


def may_interrupt(s: HyperthreadState, what: What) -> bool:
    """Say whether an NMI or #MC is delivered now. A second of the same kind is held by the hardware until IRET."""
    return s.phase is not PHASE_STOPPED and all(frame.what is not what for frame in s.frames)


def on_interrupt(spec: Spec, s: HyperthreadState, what: What) -> HyperthreadState:
    """Put a handler on top of whatever was going on (R10, I12, I15)."""
    assert may_interrupt(s, what), f"{what.name} while one is under way is latched by the engine"
    assert len(s.frames) < INTERRUPT_DEPTH_MAX
    if s.mode is MODE_GUEST:
        out: tuple[Action, ...] = (set_mode(MODE_ISOLATED),)
        saved = MODE_ISOLATED
        if s.phase is PHASE_GUEST:
            # The interrupted guest goes back in through the check, like after any other exit.
            s = s._replace(phase=PHASE_ENTERING, todo=(*s.todo, *ENTRY))
    else:
        out = ()
        saved = s.mode
    return s._replace(frames=(*s.frames, Frame(what, (*out, *handler(spec, s, saved)), saved)))


def handler(spec: Spec, s: HyperthreadState, saved: Mode) -> tuple[Action, ...]:
    """Return the handler's actions: depth, kicks, HOST, work, mode back, and only then the depth back."""
    back = set_mode(saved)
    if not spec.guarded:
        return (WORK,) if saved is MODE_HOST else (set_mode(MODE_HOST), WORK, back)
    up = Action(DO_SET_DEPTH, s.depth + 1)
    down = Action(DO_SET_DEPTH, s.depth)
    if saved is MODE_HOST:
        return (up, WORK, down)  # the siblings are out already, and nothing is to be restored
    kicks = tuple(Action(DO_IPI, other) for other in spec.siblings)
    wakes = tuple(Action(DO_WAKE, other) for other in spec.siblings)
    return (up, *kicks, set_mode(MODE_HOST), WORK, back, down, *wakes)


_PLAIN = {
    WHAT_DOORBELL: on_doorbell,
    WHAT_RETIRED: on_retired,
    WHAT_INTERRUPTED: on_interrupted,
    WHAT_RUNNABLE: on_runnable,
    WHAT_TIMEOUT: on_timeout,
}
