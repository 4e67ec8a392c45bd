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

    A `rendezvous` admission names a party: each of them says that it has arrived, and none is in guest before all have.
    Whoever drops such an admission arrives all the same, for the others wait for it. After a `stun` leave the flag
    stays up until the buffers are flushed; after a `send` leave, until HOST is left.

Buffers
    What is loaded in HOST stays behind in the buffers of the core, and so does what a lease of another VM loaded. A
    look finds that; under a policy that protects, the buffers are flushed and looked at again before the guest goes on.

Interrupts
    `leave` is the only way out of the isolated address space into HOST but for NMI and #MC, whatever the cause: an
    exit, or an interrupt in guest, in a fast exit's handler, or while parked. An interrupt whose handler touches only
    what is mapped runs where it hits, in a frame of its own; the outermost return goes back.

NMI and #MC
    The handler raises its depth, kicks every sibling, and is in HOST; it asks nobody and waits for nobody. On its
    way out the mode is restored first and the depth lowered after. It never clears a pending bit. A handler that is
    mapped in the isolated address space needs none of this: it runs there, and puts off what needs more by an IPI to
    itself.

    A #MC that reached all siblings is worked on in a rendezvous of their handlers (`asid.core.mce`), inside #MC and by
    words of the page alone: no gate, no coordinator, and no wait without an end. Whoever was missing is told, and
    heeded by the way in, only when the handler is over. One that is fatal marks the core as failed before it ends.
"""

from __future__ import annotations

from typing import Final

from asid.core import apic, mce
from asid.core.events import Action, Bid, Do, Kick, Mode, Order, Report, Said, Seen, Want
from asid.core.life import (
    DO,
    DOORBELL,
    FAST_EXIT,
    FAST_IRQ,
    FULL_EXIT,
    FULL_IRQ,
    HALT,
    IDLE_EXIT,
    IGNORE,
    INTERRUPTED,
    MCE,
    NMI,
    ORDERS,
    PERFORMED,
    REJECT,
    RETIRED,
    RUNNABLE,
    TABLE,
    TIMEOUT,
    WORKED,
    Event,
    Frame,
    HyperthreadState,
    Phase,
    Spec,
    What,
)
from asid.core.limits import INTERRUPT_DEPTH_MAX
from asid.errors import ProtocolFault

# The data of `life`, by which the engines know this module.
__all__ = [
    "DO", "DOORBELL", "FAST_EXIT", "FAST_IRQ", "FULL_EXIT", "FULL_IRQ", "HALT", "IDLE_EXIT", "IGNORE", "INTERRUPTED",
    "MCE", "NMI", "ORDERS", "PERFORMED", "REJECT", "RETIRED", "RUNNABLE", "TABLE", "TIMEOUT", "WORKED", "Event",
    "Frame", "HyperthreadState", "Phase", "Spec", "What",
]  # fmt: skip

LOOK: Final = Action(Do.LOOK)
LOOK_ONCE: Final = Action(Do.LOOK, 1)  # after the one flush of an entry
WORK: Final = Action(Do.WORK)
CLEAR_PENDING: Final = Action(Do.CLEAR_PENDING)
FLUSH: Final = Action(Do.FLUSH)
AWAIT_ALL: Final = Action(Do.AWAIT_ALL)
AWAIT_TURN: Final = Action(Do.AWAIT_TURN)
AWAIT_OUT: Final = Action(Do.AWAIT_OUT)
CALL_OUT: Final = Action(Do.CALL_OUT)
FAIL: Final = Action(Do.FAIL)

# Made once, by number.
_SET_MODE: Final = tuple(Action(Do.SET_MODE, mode) for mode in Mode)
_SEND: Final = tuple(Action(Do.SEND, said) for said in Said)


def set_mode(mode: Mode) -> Action:
    return _SET_MODE[mode]


def send(said: Said) -> Action:
    return _SEND[said]


ENTRY: Final = (set_mode(Mode.ENTER), LOOK)
FAST: Final = (set_mode(Mode.ISOLATED), WORK, *ENTRY)
TO_GUEST: Final = (set_mode(Mode.GUEST),)

# The words by plain names: an attribute of an enum costs several times what a name of the module does, and these
# functions are on the way of every leave and of every step of the explorer.
BID_ADMIT: Final = Bid.ADMIT
BID_ATTACH: Final = Bid.ATTACH
BID_DETACH: Final = Bid.DETACH
BID_RESYNC: Final = Bid.RESYNC
BID_STOP: Final = Bid.STOP
DO_ICR2: Final = Do.ICR2
DO_ARRIVE: Final = Do.ARRIVE
DO_FAIL: Final = Do.FAIL
DO_LOOK: Final = Do.LOOK
DO_SET_DEPTH: Final = Do.SET_DEPTH
DO_SET_FLAG: Final = Do.SET_FLAG
DO_SET_MODE: Final = Do.SET_MODE
DO_WAKE: Final = Do.WAKE
KICK_ACK: Final = Kick.ACK
KICK_RENDEZVOUS: Final = Kick.RENDEZVOUS
KICK_SEND: Final = Kick.SEND
KICK_STUN: Final = Kick.STUN
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
WHAT_IRQ: Final = What.IRQ
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

    PERFORMED is for `next_action`; NMI, MCE and IRQ come when `may_interrupt` says so; all others only while
    `next_action` is None.
    """
    what = event.what
    if what is WHAT_PERFORMED:
        return on_performed(spec, s, event.seen) if event.met is None else on_met(spec, s, event.met)
    if what is WHAT_NMI or what is WHAT_MCE:
        return on_interrupt(spec, s, what, event.check)
    if what is WHAT_IRQ:
        return on_irq(spec, s, event.full)
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
        return on_exit(spec, s, event.full, event.idle)
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
            return on_look(spec, s, seen, True) if act.a else on_look(spec, s, seen)
    value = act.a
    if act.do is DO_SET_MODE:
        assert isinstance(value, Mode)
        return moved(s, PHASE_GUEST if value is MODE_GUEST else s.phase, value, s.todo)
    if act.do is DO_SET_DEPTH:
        assert isinstance(value, int)
        return s._replace(depth=value)
    if act.do is DO_SET_FLAG:
        return s._replace(flag=bool(value))
    if act.do is DO_ICR2:
        assert isinstance(value, int)
        return s._replace(icr2=value)
    if act.do is DO_FAIL and s.todo == TO_GUEST:
        return s._replace(todo=(LOOK,))  # it had its look before, and no kick of its own reaches it
    return s


def moved(s: HyperthreadState, phase: Phase, mode: Mode, todo: tuple[Action, ...]) -> HyperthreadState:
    """Return the state with these three; without the price of `_replace`, for this is done at every action."""
    inc, coord, _, _, vm, session, used, round_, req, want, void, answered, flag, depth, icr2, party, absent, _, fs = s
    return HyperthreadState(
        inc, coord, phase, mode, vm, session, used, round_, req, want, void, answered, flag, depth, icr2, party, absent,
        todo, fs,
    )  # fmt: skip


def taints(before: Mode, after: Mode) -> bool:
    """Say whether a change of mode leaves something in the buffers of the core that a look has to find: work in HOST.

    What another VM's lease leaves needs no mark: every lease begins with a flush.
    """
    return before is MODE_HOST or after is MODE_HOST


def on_look(spec: Spec, s: HyperthreadState, seen: Seen, flushed: bool = False) -> HyperthreadState:
    """Act on what the look saw: a standing request first, then siblings that keep us out, then the pending bit.

    flushed: this entry has had its flush. Where a sibling may work in HOST unheeded the buffers are tainted again and
    again, and one flush an entry has to do; nobody would ever get in.
    """
    if seen.request != s.answered:
        return on_kick(spec, s, seen.request)
    if s.phase is PHASE_ENTERING or s.phase is PHASE_HELD:
        if (seen.holders and spec.guarded) or seen.failed:
            back = () if s.mode is MODE_ISOLATED else (set_mode(MODE_ISOLATED),)
            return s._replace(phase=PHASE_HELD, todo=back)
        if s.absent:
            s = s._replace(absent=0)
        if seen.pending:
            # Clear, then look again: whoever set it wrote its request before, so the second look sees that.
            return s._replace(phase=PHASE_ENTERING, todo=(CLEAR_PENDING, LOOK))
        if s.mode is MODE_ENTER:
            if seen.tainted and spec.flush and not flushed:
                return s._replace(todo=(FLUSH, LOOK_ONCE if unheeded(spec) else LOOK))
            s = s._replace(party=0) if s.party else s
            return s._replace(todo=TO_GUEST)
        return s._replace(phase=PHASE_ENTERING, todo=ENTRY)
    if seen.pending:
        return s._replace(todo=(CLEAR_PENDING, LOOK))
    return s


def unheeded(spec: Spec) -> bool:
    """Say whether siblings may work in HOST while this hyperthread runs guest instructions."""
    return not spec.guarded or spec.idle_kick is Kick.BARE


def on_kick(spec: Spec, s: HyperthreadState, number: int) -> HyperthreadState:
    """Hand the lease back: PARKED first, then the answer, which carries what is wanted next (R7, R8, R9)."""
    if s.phase is PHASE_ASKING:
        # The gate kicks lease holders only: a grant is under way. Wait for it, drop it, ask again.
        return s._replace(answered=number, void=s.want is WANT_ASK, todo=(send(SAID_ANSWER),))
    if s.phase is PHASE_ENTERING or s.phase is PHASE_HELD:
        return s._replace(
            answered=number, session=False, used=False, round=0, phase=PHASE_ASKING, void=False, want=WANT_ASK,
            party=0, req=s.req + 1, todo=(set_mode(MODE_PARKED), send(SAID_ANSWER)),
        )  # fmt: skip
    if s.phase is PHASE_LEAVING and s.session:
        s = s._replace(answered=number, session=False, used=False, round=0, party=0)
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


def on_exit(spec: Spec, s: HyperthreadState, full: bool, idle: bool = False) -> HyperthreadState:
    """A VM exit. Fast: handled in ISOLATED and back, no message. Full: a leave, in the policy's way."""
    if not full:
        return s._replace(phase=PHASE_ENTERING, todo=FAST)
    return leave(spec, s, spec.kick if not idle or spec.idle_kick is None else spec.idle_kick)


def leave(spec: Spec, s: HyperthreadState, kick: Kick) -> HyperthreadState:
    """Go to the full address space: the one isolation exit, from guest, from ISOLATED, and from PARKED."""
    out = (set_mode(MODE_ISOLATED),) if s.mode is MODE_GUEST else ()
    if kick is KICK_ACK or kick is KICK_RENDEZVOUS:
        todo = (*out, send(SAID_LEAVE))
        return s._replace(phase=PHASE_LEAVING, want=WANT_LEAVE, req=s.req + 1, void=False, todo=todo)
    if s.want is not WANT_NONE:
        s = s._replace(want=WANT_NONE, void=False)  # it was asking; it asks again when it is back
    if kick is KICK_SEND or kick is KICK_STUN:
        kicks = apic.kicks(spec.apic, spec.siblings)
        todo = (*out, Action(DO_SET_FLAG, 1), *kicks, set_mode(MODE_HOST))
        return s._replace(phase=PHASE_HOSTING, todo=todo)
    return s._replace(phase=PHASE_HOSTING, todo=(set_mode(MODE_HOST),))


def on_worked(spec: Spec, s: HyperthreadState, halted: bool) -> HyperthreadState:
    """Back from HOST. With the lease: ISOLATED and in again. Without: PARKED, done, and the next ask."""
    lower: tuple[Action, ...] = ()
    if s.flag:
        lower = (Action(DO_SET_FLAG, 0), *wakes(spec))
        if spec.flush and spec.kick is KICK_STUN:
            lower = FLUSH, *lower  # the siblings stay stunned until nothing is left to be read
    if s.session and not halted:
        return s._replace(phase=PHASE_ENTERING, todo=(set_mode(MODE_ISOLATED), *lower, *ENTRY))
    s = s._replace(session=False, used=False, round=0, todo=(set_mode(MODE_PARKED), *lower, send(SAID_DONE)))
    if halted:
        return s._replace(phase=PHASE_HALTED)
    if not s.vm:
        return s._replace(phase=PHASE_IDLE)
    return s._replace(phase=PHASE_ASKING, want=WANT_ASK, req=s.req + 1, void=False)


def wakes(spec: Spec) -> tuple[Action, ...]:
    return tuple(Action(DO_WAKE, other) for other in spec.siblings)


def on_runnable(spec: Spec, s: HyperthreadState) -> HyperthreadState:
    s = s._replace(phase=PHASE_ASKING, want=WANT_ASK, req=s.req + 1, void=False)
    return s._replace(todo=(send(SAID_ASK),))


def on_timeout(spec: Spec, s: HyperthreadState) -> HyperthreadState:
    """Ask again under a new number (R16); the state that goes with it tells all the gate may believe."""
    if s.phase is PHASE_ASKING:
        return s._replace(req=s.req + 1, void=False, todo=(send(SAID_ASK),))
    if s.phase is PHASE_LEAVING:
        # One without a vCPU may not have been heard of at all: its READY was lost, and only that lets a new life in.
        return s._replace(req=s.req + 1, void=False, todo=(send(SAID_LEAVE if s.vm else SAID_READY),))
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
        return declined(spec, s, order)
    if cell is REJECT and not s.session:
        # It left from PARKED, and the gate had not heard of it. The report that follows says what is attached.
        return stopped(spec, s, order) if order.bid is BID_STOP else declined(spec, s, order)
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
        gone = (*parting(spec, order), send(SAID_IDLE))
        return s._replace(vm=0, phase=PHASE_IDLE, want=WANT_NONE, void=False, todo=gone)
    if order.bid is BID_STOP:
        return stopped(spec, s, order)
    if order.req != s.req:
        return declined(spec, s, order)  # an answer to an older request
    if order.bid is BID_ADMIT:
        return on_admit(spec, s, order)
    s = s._replace(phase=PHASE_HOSTING, want=WANT_NONE, session=False, used=False, round=0, party=0)
    return s._replace(todo=(set_mode(MODE_HOST),))


def stopped(spec: Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
    """Say goodbye, from PARKED. Whoever is in HOST after a `send` leave without a lease ends that first."""
    out: tuple[Action, ...] = ()
    if s.mode is not MODE_PARKED:
        out = (set_mode(MODE_PARKED), *((Action(DO_SET_FLAG, 0), *wakes(spec)) if s.flag else ()))
    todo = (*out, *parting(spec, order), send(SAID_BYE))
    return s._replace(phase=PHASE_STOPPED, want=WANT_NONE, void=False, todo=todo)


def parting(spec: Spec, order: Order) -> tuple[Action, ...]:
    """Return what a sibling that will not run does for a party that may wait for it: an admission was never sent."""
    return (Action(DO_ARRIVE, order.round), *wakes(spec)) if spec.kick is KICK_RENDEZVOUS else ()


def arrival(spec: Spec, order: Order) -> tuple[Action, ...]:
    """Return what an admission with a party asks of whoever it was meant for, whether the lease is used or not."""
    return (Action(DO_ARRIVE, order.round), *wakes(spec)) if order.party else ()


def declined(spec: Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
    """Drop an order. The party of an admission waits for this hyperthread all the same."""
    return s._replace(todo=arrival(spec, order)) if order.party and order.bid is BID_ADMIT else s


def on_admit(spec: Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
    if s.void:
        return s._replace(req=s.req + 1, void=False, todo=(*arrival(spec, order), send(SAID_ASK)))
    s = s._replace(phase=PHASE_ENTERING, session=True, used=False, want=WANT_NONE, round=order.round)
    party = order.party & ~(1 << spec.ht)
    flush = (FLUSH,) if spec.flush else ()
    return s._replace(party=party, todo=(set_mode(MODE_ISOLATED), *arrival(spec, order), *flush, *ENTRY))


# --- interrupts, NMI and #MC ------------------------------------------------------------------------------


def may_interrupt(spec: Spec, s: HyperthreadState, what: What) -> bool:
    """Say whether an interrupt is delivered now.

    A second NMI or #MC of the same kind is held by the hardware until IRET. An external interrupt waits while
    interrupts are off: in every handler, between the exit and its handler, on the way into guest; and while a leave is
    under way, for it will be taken in HOST.
    """
    if s.phase is PHASE_STOPPED:
        return False
    if what is not WHAT_IRQ:
        return all(frame.what is not what for frame in s.frames)
    if s.frames or s.phase is PHASE_LEAVING:
        return False
    return not s.todo or (s.todo[0] is WORK and not spec.irqs_off)


def on_irq(spec: Spec, s: HyperthreadState, full: bool) -> HyperthreadState:
    """An external interrupt. In HOST everything is mapped. Elsewhere it runs where it hit, or makes a leave."""
    assert may_interrupt(spec, s, WHAT_IRQ), "an interrupt while interrupts are off"
    if s.phase is PHASE_HOSTING:
        return s
    if full:
        return leave(spec, s, spec.kick if s.session or spec.irq_kick is None else spec.irq_kick)
    out: tuple[Action, ...] = ()
    if s.phase is PHASE_GUEST:
        out = (set_mode(MODE_ISOLATED),)
        s = s._replace(phase=PHASE_ENTERING, todo=ENTRY)
    saved = MODE_ISOLATED if out else s.mode
    return s._replace(frames=(Frame(WHAT_IRQ, (*out, WORK), saved),))


def shuts_down(spec: Spec, s: HyperthreadState, what: What) -> bool:
    """Say whether this interrupt ends the process: a #MC while the last one is still in progress (MCIP)."""
    return spec.mcip and what is WHAT_MCE and not may_interrupt(spec, s, what) and s.phase is not PHASE_STOPPED


def on_interrupt(spec: Spec, s: HyperthreadState, what: What, check: mce.Check = mce.LOCAL) -> HyperthreadState:
    """Put a handler on top of whatever was going on (R10, I12, I15)."""
    assert may_interrupt(spec, s, what), f"{what.name} while one is under way is latched by the engine"
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
        if spec.flush and (s.todo == TO_GUEST or s.todo == (LOOK_ONCE,)):
            # Between the flush, the look and the entry: what the handler loads must not go along into guest.
            s = s._replace(todo=(LOOK,))
    if check.broadcast and s.absent:
        # Whom this one did not reach has died since, and its word will never be of this one.
        s = s._replace(absent=s.absent & check.party)
    todo = handler(spec, s, saved)
    if check is not mce.LOCAL:
        at = todo.index(WORK)
        todo = (*todo[:at], *checked(spec, s, check), *todo[at + 1 :])
    return s._replace(frames=(*s.frames, Frame(what, (*out, *todo), saved, check)))


def handler(spec: Spec, s: HyperthreadState, saved: Mode) -> tuple[Action, ...]:
    """Return the handler's actions: depth, kicks, HOST, work, mode back, and only then the depth back.

    One that is mapped in the isolated address space stays where it hit, and raises an interrupt for the rest.
    """
    back = set_mode(saved)
    if spec.nmi_isolated:
        to_self = apic.ipi(spec.apic, spec.ht)
        return (WORK, *(apic.left_as_found(spec.apic, s.icr2, to_self) if spec.icr_fix else to_self))
    if not spec.guarded:
        return (WORK,) if saved is MODE_HOST else (set_mode(MODE_HOST), WORK, back)
    up = Action(DO_SET_DEPTH, s.depth + 1)
    down = Action(DO_SET_DEPTH, s.depth)
    if saved is MODE_HOST:
        return (up, WORK, down)  # the siblings are out already, and nothing is to be restored
    kicks = apic.kicks(spec.apic, spec.siblings)
    if spec.icr_fix:
        kicks = apic.left_as_found(spec.apic, s.icr2, kicks)
    return (up, *kicks, set_mode(MODE_HOST), WORK, back, down, *wakes(spec))


def checked(spec: Spec, s: HyperthreadState, check: mce.Check) -> tuple[Action, ...]:
    """Return the work of a #MC handler: by itself when it is local, else in the rendezvous."""
    if not check.broadcast:
        return (*(fails(spec, s) if check.severity is mce.Severity.FATAL else ()), WORK)
    here = Action(Do.CALL_IN, check.broadcast, check.severity)
    return (here, *wakes(spec), AWAIT_ALL, AWAIT_TURN, WORK, CALL_OUT, *wakes(spec), AWAIT_OUT)


def fails(spec: Spec, s: HyperthreadState) -> tuple[Action, ...]:
    """Return what a fatal #MC does: the core is failed first, then nobody may be in guest without having looked."""
    kicks = apic.kicks(spec.apic, spec.siblings)
    return (FAIL, *(apic.left_as_found(spec.apic, s.icr2, kicks) if spec.icr_fix else kicks))


def on_met(spec: Spec, s: HyperthreadState, met: mce.Met) -> HyperthreadState:
    """A wait in the rendezvous is over. Timed out: no other is waited for, and who was missing is remembered."""
    frame = s.frames[-1]
    act, rest = frame.todo[0], frame.todo[1:]
    assert act.do in mce.AWAITS, "nobody waits in a rendezvous"
    if met.missing:
        rest = tuple(action for action in rest if action.do not in mce.AWAITS)
        s = s._replace(absent=s.absent | met.missing)
    role = frame.role
    if not role and (act is AWAIT_TURN or met.missing):
        role = mce.role_of(met)
        if met.severity is mce.Severity.FATAL:
            rest = (*fails(spec, s), *rest)
    frame = frame._replace(todo=rest, role=role, late=frame.late or bool(met.missing))
    return s._replace(frames=(*s.frames[:-1], frame) if rest else s.frames[:-1])


_PLAIN = {
    WHAT_DOORBELL: on_doorbell,
    WHAT_RETIRED: on_retired,
    WHAT_INTERRUPTED: on_interrupted,
    WHAT_RUNNABLE: on_runnable,
    WHAT_TIMEOUT: on_timeout,
}
