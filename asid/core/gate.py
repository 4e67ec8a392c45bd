"""The gate: one coordinator's view of the siblings of one physical core, and its rule for who may enter guest.

Rule 1. Everything that changes a GateState is in this file.
Rule 2. This file reads no clock, no socket, no page and no environment, and draws no random number.
Rule 3. It knows what siblings *reported* and what it *granted*, never what they are; its belief leads on the way
        in and lags on the way out (I9). Telemetry and the core page never decide (I20).

Theory of operation
    Every report carries its sender's whole state. `absorb` turns it into a belief, unless a grant is under way
    that the sender had not seen: then the belief stays what was granted. `decide` then serves the requests:

    * a leave needs every other lease handed back: kick the holders, wait for their answers, grant;
    * an ask needs the core's room: no other VM's lease, nobody in HOST, nobody unknown; then admit.

    A kick is a standing request word first and then the pending bit (I8). A time-out never opens the gate: it
    fences, and only the confirmed death that follows counts as an answer (I16, I17).

Rooms
    Leases of one room may coexist. A room is a VM (policies that isolate), a hyperthread (`nosmt`: one vCPU at a
    time on the core), or the same for all (`none`). The room that has the core keeps it for a slice while it has
    anything to run; then the others' turn comes.

Fairness
    A leave may overtake a waiting ask OVERTAKES_MAX times in a row (R14). A lease is sticky until its first
    guest instruction (R13).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from asid.core.events import Action, Bid, Do, Mode, Order, Report, Said, Timer, Want
from asid.core.limits import OVERTAKES_MAX


class Belief(IntEnum):
    """What the gate believes of a sibling. UNKNOWN counts as HOST and as every VM's guest at once."""

    OFFLINE = 0
    PARKED = 1
    SESSION = 2  # holds a lease: ISOLATED, ENTER or GUEST of its room
    HOST = 3
    UNKNOWN = 4


class Member(NamedTuple):
    """One sibling, as the gate sees it."""

    inc: int = 0  # incarnation; 0 before the first report
    belief: Belief = Belief.OFFLINE
    attached: int = 0  # VM of the vCPU that is to run here, 0 for none
    room: int = 0  # of its lease. Invariant: belief is SESSION implies room was set at the admission
    fresh: bool = False  # admitted and no instruction reported yet
    kicked: int = 0  # number of the kick that is out, 0 for none
    want: Want = Want.NONE  # its unanswered request
    req: int = 0  # that request's number
    vm: int = 0  # the VM it asks for
    granted: int = -1  # number of the request last granted, while the grant may be under way
    kicks: int = 0  # kicks sent to this sibling; numbers the next one
    leaving: Bid | None = None  # DETACH or STOP to be ordered once it holds no lease


class GateState(NamedTuple):
    """Everything the gate knows. Equal states behave equally."""

    coord: int = 1  # own incarnation
    round: int = 0  # grows by one each time the gate opens; never shrinks (G5)
    open: bool = False  # closed from the first leave, turn or hold to the next admission
    members: tuple[Member, ...] = ()
    queue: tuple[int, ...] = ()  # siblings with an unanswered request, oldest first
    overtaken: int = 0  # leaves that overtook the oldest ask since the last admission
    turn: int = 0  # room that has the core, 0 for none
    turn_over: bool = False  # its slice has ended
    held: bool = False  # a client holds the gate closed


class Rooms(IntEnum):
    """Which leases may coexist."""

    VM = 0
    HYPERTHREAD = 1
    ALL = 2


@dataclass(frozen=True, slots=True)
class Spec:
    """What does not change in a gate's life."""

    rooms: Rooms = Rooms.VM
    overtakes_max: int = OVERTAKES_MAX
    host_alone: bool = True  # HOST and guest exclude each other; without, only rooms do (core scheduling)
    together: bool = False  # whoever asks for a room is admitted in one go, and they meet before the first instruction

    def room(self, ht: int, vm: int) -> int:
        if self.rooms is Rooms.VM:
            return vm
        return ht + 1 if self.rooms is Rooms.HYPERTHREAD else 1

    @property
    def exclusive(self) -> bool:
        """Whether anything excludes anything; not under policy `none`."""
        return self.rooms is not Rooms.ALL


class Ev(IntEnum):
    """What happens to a gate."""

    REPORT = 0
    DEAD = 1  # confirmed death of `ht`, incarnation `inc`
    TIMER = 2
    ATTACH = 3  # a vCPU of VM `vm` is to run on `ht`
    DETACH = 4
    STOP = 5
    HOLD = 6
    RELEASE = 7


class Event(NamedTuple):
    ev: Ev
    report: Report | None = None
    ht: int = -1
    inc: int = 0
    vm: int = 0
    timer: Timer | None = None
    key: int = 0


Step = tuple[GateState, tuple[Action, ...]]


def opened(spec: Spec, coord: int, siblings: int, attached: tuple[int, ...]) -> GateState:
    """Return the gate of a core whose hyperthreads have not been born yet. `attached`: a VM number a sibling."""
    assert len(attached) == siblings
    return GateState(coord=coord, members=tuple(Member(attached=vm) for vm in attached))


def resumed(
    spec: Spec, coord: int, round_: int, living: tuple[int, ...], attached: tuple[int, ...], kicks: int
) -> Step:
    """Return the gate of a coordinator that comes back, and its first actions (I19).

    It believes nothing of anybody: a living hyperthread (`living[ht]` is its incarnation, 0 for a dead one) is
    UNKNOWN until it has reported under this incarnation; whoever does not in time is fenced. The words of the dead
    are wiped, and only then are they BURIED (incarnation 0: whichever lies there), even those whom an earlier
    coordinator had buried and who were not born again yet: a wipe that came after a birth would take the newborn's
    depth.
    `kicks` is a number that no kick of an earlier coordinator has reached.
    """
    members = []
    actions = []
    for ht, inc in enumerate(living):
        belief = Belief.UNKNOWN if inc else Belief.OFFLINE
        members.append(Member(inc=inc, belief=belief, attached=attached[ht], kicks=kicks))
        if inc:
            actions.append(Action(Do.ORDER, Order(Bid.RESYNC, ht, inc, coord, 0, 0, 0)))
            actions.append(Action(Do.TIMER, Timer.RESYNC, key_of(ht, inc)))
        else:
            dead = Action(Do.WIPE, ht, round_ if spec.together else 0)
            actions += (dead, Action(Do.BURIED, ht, 0))
    return GateState(coord=coord, round=round_, members=tuple(members)), tuple(actions)


def step(spec: Spec, g: GateState, event: Event) -> Step:
    """Return the next state and the actions to perform, in order, before the next event."""
    ev = event.ev
    if ev is Ev.REPORT:
        assert event.report is not None
        g, first = on_report(spec, g, event.report)
    elif ev is Ev.DEAD:
        g, first = on_dead(spec, g, event.ht, event.inc)
    elif ev is Ev.TIMER:
        assert event.timer is not None
        g, first = on_timer(spec, g, event.timer, event.ht, event.key)
    elif ev is Ev.ATTACH:
        g, first = on_attach(spec, g, event.ht, event.vm)
    elif ev is Ev.DETACH or ev is Ev.STOP:
        bid = Bid.DETACH if ev is Ev.DETACH else Bid.STOP
        g, first = put(g, event.ht, leaving=bid), ()
    else:
        g, first = g._replace(held=ev is Ev.HOLD), ()
    g, then = decide(spec, g)
    return g, (*first, *then)


def put(g: GateState, ht: int, **changes: object) -> GateState:
    """Return the gate with one member changed."""
    return with_member(g, ht, g.members[ht]._replace(**changes))  # type: ignore[arg-type]


def with_member(g: GateState, ht: int, m: Member) -> GateState:
    """Return the gate with one member put in another's place; without the price of `_replace`."""
    members = (*g.members[:ht], m, *g.members[ht + 1 :])
    return GateState(g.coord, g.round, g.open, members, g.queue, g.overtaken, g.turn, g.turn_over, g.held)


# --- what is told -----------------------------------------------------------------------------------------


def of_this_life(g: GateState, r: Report) -> bool:
    """Say whether a report is from the living incarnation and meant for this coordinator (I11)."""
    m = g.members[r.ht]
    if r.coord != g.coord:
        return False
    if r.inc == m.inc:
        return m.belief is not Belief.OFFLINE
    # A new incarnation is let in only when the old one's death is done with.
    return r.inc > m.inc and m.belief is Belief.OFFLINE and r.said is Said.READY


def resync_again(g: GateState, ht: int, inc: int, coord: int = 0) -> tuple[Action, ...]:
    """Return RESYNC once more, to one that does not know this coordinator yet: the first may have been lost.

    coord: the coordinator it believes in, 0 for one that has not said.
    """
    m = g.members[ht]
    if m.belief is not Belief.UNKNOWN or m.inc != inc or coord >= g.coord:
        return ()
    return (Action(Do.ORDER, Order(Bid.RESYNC, ht, inc, g.coord, 0, 0, 0)),)


def on_report(spec: Spec, g: GateState, r: Report) -> Step:
    if not of_this_life(g, r):
        return g, resync_again(g, r.ht, r.inc, r.coord)
    m = g.members[r.ht]
    if r.inc != m.inc:
        m = Member(inc=r.inc, attached=m.attached, leaving=m.leaving, kicks=m.kicks)
    m = absorb(spec, m, r)
    if r.vm and not m.attached and m.leaving is None:
        m = m._replace(leaving=Bid.DETACH)  # it was ordered before; the order was lost, or died with a coordinator
    g = with_member(g, r.ht, m)
    if (m.want is not Want.NONE) is not (r.ht in g.queue):
        g = g._replace(queue=without(g.queue, r.ht) if r.ht in g.queue else (*g.queue, r.ht))
    if r.session and r.round > g.round:
        g = g._replace(round=r.round, open=True)  # a lease that outlived its coordinator
    actions: tuple[Action, ...] = ()
    if r.vm == 0 and m.attached and m.leaving is None and m.belief is Belief.PARKED:
        actions = (order(g, r.ht, Bid.ATTACH, vm=m.attached),)
    return g, actions


def absorb(spec: Spec, m: Member, r: Report) -> Member:
    """Return the member after a report: what it said, unless a grant is under way that it had not seen (R3)."""
    under_way = m.granted == r.req and r.want is not Want.NONE
    kicked = 0 if r.answered == m.kicked else m.kicked
    # One that wants to leave runs nothing under this lease any more, so there is nothing to protect.
    fresh = m.fresh and not (r.session and (r.used or r.want is Want.LEAVE))
    if under_way and not r.void:
        # It will use that grant: the belief stays ahead of it.
        return m if kicked == m.kicked and fresh == m.fresh else m._replace(kicked=kicked, fresh=fresh)
    belief, fresh = told(r), fresh and r.session
    room = spec.room(r.ht, r.vm) if r.session else m.room
    if under_way:
        # It will drop that grant, and ask again.
        return m._replace(belief=belief, room=room, fresh=fresh, kicked=kicked, want=Want.NONE)
    wants = r.want if r.vm == m.attached or r.want is Want.LEAVE else Want.NONE
    return Member(m.inc, belief, m.attached, room, fresh, kicked, wants, r.req, r.vm, -1, m.kicks, m.leaving)


def without(queue: tuple[int, ...], ht: int) -> tuple[int, ...]:
    return tuple([other for other in queue if other != ht])


def told(r: Report) -> Belief:
    """Return the belief that a report itself gives. A lease counts before HOST: a `send` leave keeps it."""
    if r.session:
        return Belief.SESSION
    return Belief.HOST if r.mode is Mode.HOST else Belief.PARKED


def on_dead(spec: Spec, g: GateState, ht: int, inc: int) -> Step:
    """A confirmed death is an answer to everything (R15)."""
    m = g.members[ht]
    if m.inc > inc or (m.belief is Belief.OFFLINE and m.inc == inc):
        return g, ()  # of an earlier life, or told twice
    dead = Member(inc=inc, attached=0 if m.leaving is not None else m.attached, kicks=m.kicks)
    g = with_member(g, ht, dead)._replace(queue=without(g.queue, ht))
    return g, (wipe(spec, g, ht), Action(Do.BURIED, ht, inc))


def wipe(spec: Spec, g: GateState, ht: int) -> Action:
    """Return the action that clears the words of the dead, who also counts as arrived wherever it is waited for."""
    return Action(Do.WIPE, ht, g.round if spec.together else 0)


def on_attach(spec: Spec, g: GateState, ht: int, vm: int) -> Step:
    m = g.members[ht]
    g = put(g, ht, attached=vm, leaving=None)
    if m.belief is Belief.PARKED and m.vm == 0 and m.want is Want.NONE:
        return g, (order(g, ht, Bid.ATTACH, vm=vm),)
    return g, ()


def on_timer(spec: Spec, g: GateState, timer: Timer, ht: int, key: int) -> Step:
    """A time-out is for liveness only: it kicks, kicks again, or fences; it never opens the gate (I17)."""
    if timer is Timer.TURN:
        return g._replace(turn_over=True), ()
    m = g.members[ht]
    if timer is Timer.STICKY:
        return (put(g, ht, fresh=False) if m.fresh and m.granted == key else g), ()
    if timer is Timer.RESYNC:
        return g, (Action(Do.FENCE, ht, key),) if m.belief is Belief.UNKNOWN and m.inc == key else ()
    if m.kicked != key:
        return g, ()
    if timer is Timer.REKICK:
        return g, (Action(Do.REQUEST, ht, key), Action(Do.PEND, ht))
    return g, (Action(Do.FENCE, ht, m.inc),)


# --- what is decided --------------------------------------------------------------------------------------


def order(g: GateState, ht: int, bid: Bid, *, vm: int = 0, party: int = 0) -> Action:
    m = g.members[ht]
    return Action(Do.ORDER, Order(bid, ht, m.inc, g.coord, g.round, m.req, vm, party))


def decide(spec: Spec, g: GateState) -> Step:
    """Serve whatever can be served now, and kick whoever is in the way of what comes next."""
    actions: list[Action] = []
    while True:
        g, farewell = dismiss(spec, g)
        actions += farewell
        if g.held:
            g, kicks = evict(spec, g, tuple(ht for ht, m in enumerate(g.members) if m.belief is Belief.SESSION))
            actions += kicks
        ht = pick(spec, g)
        if ht is None:
            return g, tuple(actions)
        leave = g.members[ht].want is Want.LEAVE
        in_the_way = holders_against(spec, g, ht)
        if in_the_way or not clear_for(spec, g, ht):
            g, kicks = evict(spec, g, in_the_way)
            return g, (*actions, *kicks)
        if leave:
            g, grant_actions = grant_leave(spec, g, ht)
        elif spec.together:
            g, grant_actions = admit_together(spec, g, ht)
        else:
            g, grant_actions = admit(spec, g, ht)
        actions += grant_actions


def active(spec: Spec, g: GateState, room: int) -> bool:
    """Say whether the room has anything to run: a lease, or an ask that waits."""
    return any(
        (m.belief is Belief.SESSION and m.room == room) or (m.want is Want.ASK and spec.room(ht, m.vm) == room)
        for ht, m in enumerate(g.members)
    )


def pick(spec: Spec, g: GateState) -> int | None:
    """Return the sibling whose request is served next, or None.

    First come, first served, but: asks of other rooms wait for their turn, and a leave may overtake an ask.
    """
    keeps = g.turn != 0 and active(spec, g, g.turn)
    ask = leave = None
    others = None
    for ht in g.queue:
        m = g.members[ht]
        if m.want is Want.LEAVE:
            leave = ht if leave is None else leave
            continue
        if g.held or m.leaving is not None:
            continue
        mine = not keeps or spec.room(ht, m.vm) == g.turn
        if mine:
            ask = ht if ask is None else ask
        elif g.turn_over:
            others = ht if others is None else others
    if others is not None:
        ask = others
    if leave is None or ask is None:
        return ask if leave is None else leave
    first_come = g.queue.index(leave) < g.queue.index(ask)
    return leave if first_come or g.overtaken < spec.overtakes_max else ask


def holders_against(spec: Spec, g: GateState, ht: int) -> tuple[int, ...]:
    """Return the lease holders that must go before the request of `ht` can be granted."""
    if not spec.exclusive:
        return ()
    asks = g.members[ht].want is Want.ASK
    room = spec.room(ht, g.members[ht].vm)
    return tuple(
        other
        for other, m in enumerate(g.members)
        if other != ht and m.belief is Belief.SESSION and not (asks and m.room == room)
    )


def clear_for(spec: Spec, g: GateState, ht: int) -> bool:
    """Say whether nobody is unknown and, for an ask, nobody is in HOST and every kick is answered (I7)."""
    if not spec.exclusive:
        return True
    asks = g.members[ht].want is Want.ASK
    room = spec.room(ht, g.members[ht].vm)
    for other, m in enumerate(g.members):
        if m.kicked:
            return False
        if other == ht:
            continue
        if m.belief is Belief.UNKNOWN:
            return False
        if asks and m.belief is Belief.HOST and (spec.host_alone or m.room != room):
            return False
    return True


def evict(spec: Spec, g: GateState, targets: tuple[int, ...]) -> Step:
    """Kick every target that is not kicked yet and whose lease has been used. Closes the gate."""
    actions: list[Action] = []
    for ht in targets:
        m = g.members[ht]
        if g.open:
            g = g._replace(open=False)
        if m.kicked:
            continue
        if m.fresh:
            actions.append(Action(Do.TIMER, Timer.STICKY, key_of(ht, m.granted)))
            continue
        number = m.kicks + 1
        kicked = Member(
            m.inc, m.belief, m.attached, m.room, m.fresh, number, m.want, m.req, m.vm, m.granted, number, m.leaving
        )
        g = with_member(g, ht, kicked)
        actions += (Action(Do.REQUEST, ht, number), Action(Do.PEND, ht))
        actions += (
            Action(Do.TIMER, Timer.REKICK, key_of(ht, number)),
            Action(Do.TIMER, Timer.KICK, key_of(ht, number)),
        )
    return g, tuple(actions)


def key_of(ht: int, number: int) -> int:
    """Pack a sibling and a number into the key of a timer."""
    return number << 8 | ht


def grant_leave(spec: Spec, g: GateState, ht: int) -> Step:
    m = g.members[ht]
    overtook = any(g.members[other].want is Want.ASK for other in g.queue[: g.queue.index(ht)])
    host = Member(
        m.inc, Belief.HOST, m.attached, m.room, False, m.kicked, Want.NONE, m.req, m.vm, m.req, m.kicks, m.leaving
    )
    g = with_member(g, ht, host)
    overtaken = g.overtaken + 1 if overtook else g.overtaken
    g = g._replace(open=False, queue=without(g.queue, ht), overtaken=overtaken)
    return g, (order(g, ht, Bid.GRANT),)


def admit_together(spec: Spec, g: GateState, ht: int) -> Step:
    """Admit everybody who asks for the room of `ht`, each told whom it is to meet: them and those who are in it."""
    room = spec.room(ht, g.members[ht].vm)
    actions: list[Action] = []
    asking = [
        o for o in g.queue
        if g.members[o].want is Want.ASK and g.members[o].leaving is None and spec.room(o, g.members[o].vm) == room
    ]  # fmt: skip
    party = sum(1 << o for o, m in enumerate(g.members) if o in asking or m.belief is Belief.SESSION)
    for other in asking:
        g, more = admit(spec, g, other, party)
        actions += more
    return g, tuple(actions)


def admit(spec: Spec, g: GateState, ht: int, party: int = 0) -> Step:
    m = g.members[ht]
    room = spec.room(ht, m.vm)
    actions: tuple[Action, ...] = ()
    if not g.open:
        # Leases that outlived a leave whose leaver died are of the round that goes on.
        goes_on = any(o.belief is Belief.SESSION for o in g.members)
        g = g._replace(open=True, round=g.round if goes_on else g.round + 1)
    if g.turn != room:
        g = g._replace(turn=room, turn_over=False)
        actions = (Action(Do.TIMER, Timer.TURN, 0),) if spec.exclusive else ()
    elif g.turn_over and not any(spec.room(o, g.members[o].vm) != room for o in g.queue):
        g = g._replace(turn_over=False)
        actions = (Action(Do.TIMER, Timer.TURN, 0),)
    g = put(g, ht, belief=Belief.SESSION, room=room, fresh=True, want=Want.NONE, granted=m.req)
    g = g._replace(queue=without(g.queue, ht), overtaken=0)
    return g, (*actions, order(g, ht, Bid.ADMIT, vm=m.vm, party=party))


def dismiss(spec: Spec, g: GateState) -> Step:
    """Order DETACH or STOP to whoever is to go and holds no lease; kick whoever still holds one."""
    actions: list[Action] = []
    for ht, m in enumerate(g.members):
        if m.leaving is None or m.belief in (Belief.OFFLINE, Belief.UNKNOWN, Belief.HOST):
            continue
        if m.belief is Belief.SESSION:
            g, kicks = evict(spec, g, (ht,))
            actions += kicks
        elif m.want is not Want.LEAVE and not m.kicked:
            g = put(g, ht, leaving=None, attached=0, want=Want.NONE)
            g = g._replace(queue=without(g.queue, ht))
            actions.append(order(g, ht, m.leaving))
    return g, tuple(actions)
