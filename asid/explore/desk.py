"""The steps of the coordinator: read one report, hear of a death, perform what was decided, and its own faults.

A decision of the gate is one step. What it decides is performed one action at a time, except that an order is on
its way at once: one that is sent later is one that travels longer. A killed coordinator may not have sent its
newest orders; `world` takes care of that.
"""

from __future__ import annotations

from collections.abc import Iterator

from asid.core import gate, hyperthread
from asid.core.events import Action, Do, Order, Report, Said, Timer, Want
from asid.explore import numbers
from asid.explore.parts import (
    COORDINATOR,
    Budget,
    Dead,
    Desk,
    DeskMove,
    Down,
    Label,
    Model,
    Sibling,
    Touch,
    Touched,
    Who,
    actor,
)

SENT_AT_ONCE = (Do.ORDER, Do.BURIED)
UNSENT_MAX = 2  # a fenced process may not have sent so many of its newest reports


def opened(model: Model, spec: gate.Spec) -> Desk:
    """Return the desk of a core whose hyperthreads are about to be born, its numbers at the base."""
    g = gate.opened(spec, 1, model.siblings, model.vms)
    members = tuple(m._replace(kicks=numbers.BASE) for m in g.members)
    return Desk(g._replace(members=members, round=numbers.BASE))


def performs(d: Desk, budget: Budget) -> Iterator[DeskMove]:
    """Yield the step that performs the next thing decided; a fence comes before or after the last reports."""
    action = d.todo[0]
    label = Label(COORDINATOR, "does", action)
    d = Desk(d.gate, d.todo[1:])
    for touch in touches_of(action):
        rest, sent = sent_at_once(d)
        yield DeskMove(label, actor(Who.GATE), rest, budget, (touch, *sent))


def touches_of(action: Action) -> tuple[Touch, ...]:
    """Return the ways an action can turn out; one, but for a fence."""
    do = action.do
    if do is Do.ORDER:
        order = action.a
        assert isinstance(order, Order)
        return (Touch(order.ht, Touched.ORDERED, order=order),)
    ht: int = action.a  # type: ignore[assignment]
    if do is Do.FENCE:
        return tuple(Touch(ht, Touched.KILLED, unsent) for unsent in range(UNSENT_MAX + 1))
    return (Touch(ht, TOUCHES[do], action.b),)


TOUCHES = {
    Do.REQUEST: Touched.REQUEST,
    Do.PEND: Touched.PENDING,
    Do.WIPE: Touched.WIPED,
    Do.BURIED: Touched.BURIED,
}


def sent_at_once(d: Desk) -> tuple[Desk, tuple[Touch, ...]]:
    """Return the desk without the orders that are next, and the orders as touches."""
    touches: list[Touch] = []
    todo = d.todo
    while todo and todo[0].do in SENT_AT_ONCE:
        touches += touches_of(todo[0])
        todo = todo[1:]
    return Desk(d.gate, todo), tuple(touches)


def decides(
    spec: gate.Spec, d: Desk, event: gate.Event, label: Label, who: int, budget: Budget, before: tuple[Touch, ...] = ()
) -> DeskMove:
    """One event at the gate, and what follows from it."""
    assert isinstance(d.gate, gate.GateState)
    g, actions = gate.step(spec, d.gate, event)
    return rebased(Desk(g, to_perform(actions)), label, who, budget, before)


def to_perform(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """Return the actions without timers: one may go off at any moment, set or not."""
    return tuple(a for a in actions if a.do is not Do.TIMER)


def rebased(d: Desk, label: Label, who: int, budget: Budget, before: tuple[Touch, ...]) -> DeskMove:
    """Count kicks and rounds from the base again, then send the orders that are next."""
    g = d.gate
    assert isinstance(g, gate.GateState)
    touches = list(before)
    for ht, m in enumerate(g.members):
        delta = numbers.BASE - m.kicks
        if delta:
            d = numbers.desk_kicks(d, ht, delta)
            touches.append(Touch(ht, Touched.KICKS, delta))
    delta = numbers.BASE - g.round
    if delta:
        d = numbers.desk_rounds(d, delta)
        touches += (Touch(ht, Touched.ROUNDS, delta) for ht in range(len(g.members)))
    d, sent = sent_at_once(d)
    return DeskMove(label, who, d, budget, (*touches, *sent))


def receives(spec: gate.Spec, d: Desk, report: Report, budget: Budget) -> DeskMove:
    event = gate.Event(gate.Ev.REPORT, report=report)
    return decides(spec, d, event, Label(COORDINATOR, "receives", report), actor(Who.LINK, report.ht), budget)


def hears_of_death(spec: gate.Spec, d: Desk, ht: int, inc: int, budget: Budget) -> DeskMove:
    event = gate.Event(gate.Ev.DEAD, ht=ht, inc=inc)
    label = Label(COORDINATOR, "hears of the death", ht)
    return decides(spec, d, event, label, actor(Who.DEATH, ht), budget, (Touch(ht, Touched.TOLD),))


def turn(spec: gate.Spec, d: Desk, budget: Budget) -> DeskMove | None:
    """The slice of the room that has the core may end at any moment when another room waits."""
    g = d.gate
    assert isinstance(g, gate.GateState)
    if not g.turn or g.turn_over or not spec.exclusive:
        return None
    if all(g.members[ht].want is not Want.ASK or spec.room(ht, g.members[ht].vm) == g.turn for ht in g.queue):
        return None
    event = gate.Event(gate.Ev.TIMER, timer=Timer.TURN)
    return decides(spec, d, event, Label(COORDINATOR, "ends the turn"), actor(Who.TURN), budget)


def outside(model: Model, spec: gate.Spec, d: Desk, budget: Budget) -> Iterator[DeskMove]:
    """Yield what clients and clocks may do to an idle gate as long as the budget lasts."""
    g, fault = d.gate, actor(Who.FAULT)
    assert isinstance(g, gate.GateState)
    if budget.timer:
        yield from timers(spec, d, budget._replace(timer=budget.timer - 1), fault)
    if budget.hotplug:
        after = budget._replace(hotplug=budget.hotplug - 1)
        for ht, m in enumerate(g.members):
            if m.attached and m.leaving is None:
                event = gate.Event(gate.Ev.DETACH, ht=ht)
                yield decides(spec, d, event, Label(COORDINATOR, "is told to detach", ht), fault, after)
            elif not m.attached and model.vms[ht]:
                event = gate.Event(gate.Ev.ATTACH, ht=ht, vm=model.vms[ht])
                yield decides(spec, d, event, Label(COORDINATOR, "is told to attach", ht), fault, after)
    if budget.unplug:
        after = budget._replace(unplug=budget.unplug - 1)
        for ht, m in enumerate(g.members):
            if m.leaving is None and m.belief is not gate.Belief.OFFLINE:
                event = gate.Event(gate.Ev.STOP, ht=ht)
                yield decides(spec, d, event, Label(COORDINATOR, "is told to unplug", ht), fault, after)
    if g.held:
        event = gate.Event(gate.Ev.RELEASE)
        yield decides(spec, d, event, Label(COORDINATOR, "is let go"), actor(Who.DAEMON), budget)
    elif budget.hold:
        after = budget._replace(hold=budget.hold - 1)
        yield decides(spec, d, gate.Event(gate.Ev.HOLD), Label(COORDINATOR, "is held"), fault, after)


def timers(spec: gate.Spec, d: Desk, budget: Budget, who: int) -> Iterator[DeskMove]:
    """Yield every time-out of the gate that may change anything."""
    assert isinstance(d.gate, gate.GateState)
    for ht, m in enumerate(d.gate.members):
        if m.belief is gate.Belief.UNKNOWN:
            yield timer(spec, d, Timer.RESYNC, ht, budget, who)
        if m.fresh:
            yield timer(spec, d, Timer.STICKY, ht, budget, who)
        if m.kicked:
            yield timer(spec, d, Timer.REKICK, ht, budget, who)
            yield timer(spec, d, Timer.KICK, ht, budget, who)


def timer(spec: gate.Spec, d: Desk, which: Timer, ht: int, budget: Budget, who: int) -> DeskMove:
    assert isinstance(d.gate, gate.GateState)
    m = d.gate.members[ht]
    key = {Timer.STICKY: m.granted, Timer.RESYNC: m.inc}.get(which, m.kicked)
    event = gate.Event(gate.Ev.TIMER, timer=which, ht=ht, key=key)
    return decides(spec, d, event, Label(COORDINATOR, f"{which.name.lower()} time-out", ht), who, budget)


def overdue(s: Sibling, g: gate.GateState, ht: int) -> Timer | None:
    """Return the time-out that strikes in the end: what would have stopped it was lost on the way, or never comes, as
    the first instruction of a guest that a machine check keeps out for good."""
    h, m = s.process, g.members[ht]
    if isinstance(h, Dead) or h.inc != m.inc or s.up:
        return None
    if m.belief is gate.Belief.UNKNOWN:
        under_way = any(o.coord == g.coord for o in s.down) or hyperthread.send(Said.READY) in h.todo
        return None if under_way else Timer.RESYNC
    kept_out = s.words.failed and h.phase is hyperthread.Phase.HELD
    if m.fresh and (h.used or kept_out or not (h.session or s.down)):
        return Timer.STICKY
    if m.kicked and s.words.request == m.kicked == h.answered:
        return Timer.KICK
    return None


def dies(d: Desk) -> Desk:
    """The coordinator is gone; the daemon knows what it told it."""
    g = d.gate
    assert isinstance(g, gate.GateState)
    attached = tuple(0 if m.leaving is not None else m.attached for m in g.members)
    return Desk(Down(g.coord, g.round, max(m.kicks for m in g.members), attached))


def comes_back(spec: gate.Spec, d: Desk, living: tuple[int, ...], budget: Budget) -> DeskMove:
    """A new coordinator: told by the daemon who lives, and nothing else."""
    down = d.gate
    assert isinstance(down, Down)
    g, actions = gate.resumed(spec, down.coord + 1, down.round, living, down.attached, down.kicks + 1)
    told = tuple(Touch(ht, Touched.TOLD) for ht, inc in enumerate(living) if not inc)
    return rebased(Desk(g, to_perform(actions)), Label(COORDINATOR, "comes back"), actor(Who.DAEMON), budget, told)
