"""The steps of one sibling: its process, the faults that hit it, and what others do to it.

One step is one action on something shared (publish a word, look, an IPI), or one event taken in (an order, a
doorbell, the guest's next instruction). Three things cost no step of their own, because nobody can tell them from a
delay: work and doorbells change nothing shared; a report is sent with the action before it, since one that is sent
later is one that travels longer (a killed process may not have sent its newest reports, see `killed`); and an event
goes with its first action while no NMI can come between.
"""

from __future__ import annotations

from collections.abc import Iterator

from asid.core import apic, gate, hyperthread, mce
from asid.core.events import Action, Do, Mode, Report, Said, Seen, Want
from asid.core.hyperthread import Event, HyperthreadState, Phase, What
from asid.explore import numbers
from asid.explore.parts import (
    COORDINATOR,
    Budget,
    Dead,
    Glimpse,
    Label,
    Model,
    Sibling,
    SiblingMove,
    Touch,
    Touched,
    UpLink,
    Who,
    Words,
    actor,
)

FAULT = actor(Who.FAULT)
# Phases in which a hyperthread waits for its coordinator, and so keeps a time-out.
WAITS = frozenset({Phase.IDLE, Phase.HALTED, Phase.ASKING, Phase.LEAVING})
# The word for a step, whose budget it is of, and the event.
INTERRUPTS = (
    ("nmi", "nmi", hyperthread.NMI),
    ("mce", "mce", hyperthread.MCE),
    ("fast irq", "irq", hyperthread.FAST_IRQ),
    ("full irq", "irq", hyperthread.FULL_IRQ),
)

FATAL_MCE = Event(What.MCE, check=mce.Check(severity=mce.Severity.FATAL))


def moves(model: Model, spec: hyperthread.Spec, s: Sibling, raised: int, budget: Budget) -> Iterator[SiblingMove]:
    """Yield the steps of one sibling, but for those of `meetings`. `raised`: bits of the others that keep it out: by
    flag, depth or absence."""
    if s.words.apic.bus:
        yield delivered(spec, s, budget)
    if isinstance(s.process, Dead) or s.stopped:
        return
    ht, holders = spec.ht, raised > 0
    action = hyperthread.next_action(s.process)
    if action is not None and action.do is Do.LOOK and model.torn:
        yield glimpsed(model, spec, s, raised, budget)
    elif action is not None and action.do is Do.ICR_IDLE and s.words.apic.bus:
        pass  # it spins until the bus has delivered
    elif action is not None and action.do in mce.MEETS:
        pass  # it reads the siblings' words, see `meetings`
    elif action is not None:
        t, touches = performed(model, spec, s, action, holders)
        yield settled(model, spec, Label(ht, "does", action), actor(Who.PROCESS, ht), t, budget, touches)
    elif s.process.phase is Phase.STOPPED:
        t = s._replace(process=Dead(s.process.inc), down=())
        yield SiblingMove(Label(ht, "ends"), actor(Who.PROCESS, ht), t, budget)
    else:
        interruptible = budget.nmi or budget.mce or budget.broadcast or s.words.broadcast > s.taken
        for what, who, event in menu(model, s, holders):
            t = s
            detail: Report | object = ""
            if event.what is What.ORDER:
                detail, t = s.down[0], s._replace(down=s.down[1:])
            t, touches = stepped(spec, t, event), ()
            first = hyperthread.next_action(t.process)  # type: ignore[arg-type]
            if first is not None and not interruptible and not (model.torn and first.do is Do.LOOK):
                t, touches = performed(model, spec, t, first, holders)
            label = Label(ht, what, detail)  # type: ignore[arg-type]
            yield settled(model, spec, label, actor(who, ht), t, budget, touches)
    yield from faults(model, spec, s, budget)


def delivered(spec: hyperthread.Spec, s: Sibling, budget: Budget) -> SiblingMove:
    """The bus sets the pending bit of everybody whom the IPI on it is for, and the ICR is idle."""
    targets = s.words.apic.bus
    words = s.words._replace(apic=s.words.apic._replace(bus=0), pending=s.words.pending or bool(targets >> spec.ht & 1))
    touches = tuple(Touch(other, Touched.PENDING) for other in spec.siblings if targets >> other & 1)
    names = ",".join(f"h{ht}" for ht in range(len(spec.siblings) + 1) if targets >> ht & 1)
    label = Label(spec.ht, "its IPI is delivered", names)
    return SiblingMove(label, actor(Who.BUS, spec.ht), s._replace(words=words), budget, touches)


def glimpsed(model: Model, spec: hyperthread.Spec, s: Sibling, raised: int, budget: Budget) -> SiblingMove:
    """Read the next word of a look: own pending bit, own request, then every sibling's flag and depth in turn."""
    seen, who = s.glimpse, actor(Who.PROCESS, spec.ht)
    if seen is None:
        t = s._replace(glimpse=Glimpse(s.words.pending))
        return SiblingMove(Label(spec.ht, "reads", "its pending bit"), who, t, budget)
    if seen.request < 0:
        t, what = s._replace(glimpse=seen._replace(request=s.words.request)), "its request word"
    else:
        holders = seen.holders or bool(raised >> seen.next_ht & 1)
        t, what = s._replace(glimpse=seen._replace(holders=holders, next_ht=seen.next_ht + 1)), f"h{seen.next_ht}"
    seen = t.glimpse
    assert seen is not None
    if seen.next_ht == spec.ht:
        t = t._replace(glimpse=seen._replace(next_ht=seen.next_ht + 1))
        seen = t.glimpse
    if seen is not None and seen.next_ht > len(spec.siblings):
        event = Event(What.PERFORMED, seen=Seen(*seen[:3], s.words.tainted, s.words.failed))
        t = stepped(spec, t._replace(glimpse=None), event)
    return settled(model, spec, Label(spec.ht, "reads", what), who, t, budget)


def menu(model: Model, s: Sibling, holders: bool) -> Iterator[tuple[str, Who, Event]]:
    """Yield the events that can happen to a hyperthread that waits for one."""
    h, words = s.process, s.words
    assert isinstance(h, HyperthreadState)
    phase = h.phase
    if s.down:
        yield "takes order", Who.INBOX, Event(What.ORDER, order=s.down[0])
    if phase is Phase.GUEST:
        if words.pending:
            yield "is interrupted", Who.PROCESS, hyperthread.INTERRUPTED
        elif not h.used:
            yield "runs an instruction", Who.PROCESS, hyperthread.RETIRED
        if h.used:
            if model.fast_exits:
                yield "fast exit", Who.FREE, hyperthread.FAST_EXIT
            if model.full_exits:
                yield "full exit", Who.FREE, hyperthread.FULL_EXIT
            if model.idle_exits:
                yield "idle exit", Who.FREE, hyperthread.IDLE_EXIT
    elif words.request != h.answered or (phase is Phase.HELD and not holders and not words.failed):
        yield "hears the doorbell", Who.PROCESS, hyperthread.DOORBELL
    if phase is Phase.HOSTING:
        yield "has done its work", Who.PROCESS, hyperthread.WORKED
        if model.halts and h.vm:
            yield "halts", Who.FREE, hyperthread.HALT
    elif phase is Phase.HALTED:
        yield "wakes up", Who.FREE, hyperthread.RUNNABLE


def stepped(spec: hyperthread.Spec, s: Sibling, event: Event) -> Sibling:
    assert isinstance(s.process, HyperthreadState)
    return s._replace(process=hyperthread.step(spec, s.process, event))


def performed(
    model: Model, spec: hyperthread.Spec, s: Sibling, action: Action, holders: bool
) -> tuple[Sibling, tuple[Touch, ...]]:
    """Perform the next action on the page, the APIC, the buffers or a link."""
    h, words, do = s.process, s.words, action.do
    assert isinstance(h, HyperthreadState)
    event = hyperthread.PERFORMED
    touches: tuple[Touch, ...] = ()
    if do is Do.LOOK:
        event = Event(What.PERFORMED, seen=Seen(words.pending, words.request, holders, words.tainted, words.failed))
    elif do is Do.IPI:
        if action.a == spec.ht:
            s = s._replace(words=words._replace(pending=True))
        else:
            touches = (Touch(action.a, Touched.PENDING),)  # type: ignore[arg-type]
    elif do is Do.SET_MODE:
        assert isinstance(action.a, Mode)
        if model.taints and hyperthread.taints(h.mode, action.a):
            s = s._replace(words=words._replace(tainted=True))
            touches = tuple(Touch(other, Touched.TAINTED) for other in spec.siblings)
        elif model.taints and action.a is Mode.PARKED:  # a lease of this VM ends: it leaves something for other VMs
            others = (other for other in spec.siblings if model.vms[other] != model.vms[spec.ht])
            touches = tuple(Touch(other, Touched.TAINTED) for other in others)
    elif do is Do.FLUSH:
        s = s._replace(words=words._replace(tainted=False))
        touches = tuple(Touch(other, Touched.FLUSHED) for other in spec.siblings)
    elif do is Do.ICR2 or do is Do.ICR:
        s = s._replace(words=words._replace(apic=apic.written(words.apic, action, spec.ht, spec.siblings)))
    elif do is Do.ARRIVE:
        assert isinstance(action.a, int)
        s = s._replace(words=words._replace(arrived=max(words.arrived, action.a)))
    elif do is Do.CALL_OUT:
        s = s._replace(words=words._replace(callin=words.callin._replace(done=True)))
    elif do is Do.FAIL:
        s = s._replace(words=words._replace(failed=True))
        touches = tuple(Touch(other, Touched.FAILED) for other in spec.siblings)
    elif do is Do.SET_FLAG:
        s = s._replace(words=words._replace(flag=bool(action.a)))
    elif do is Do.SET_DEPTH:
        s = s._replace(words=words._replace(depth=action.a))  # type: ignore[arg-type]
    elif do is Do.CLEAR_PENDING:
        s = s._replace(words=words._replace(pending=False))
    elif do is Do.SEND:
        assert isinstance(action.a, Said)
        s = s._replace(up=posted(s.up, hyperthread.report(spec, h, action.a)))
    return stepped(spec, s, event), touches


def settled(
    model: Model, spec: hyperthread.Spec, label: Label, who: int, s: Sibling, budget: Budget,
    touches: tuple[Touch, ...] = (),
) -> SiblingMove:  # fmt: skip
    """Finish a step: perform what costs no step, and count request numbers from the base again.

    Work costs a step while an interrupt may still come, for it may be taken there.
    """
    while True:
        assert isinstance(s.process, HyperthreadState)
        action = hyperthread.next_action(s.process)
        if action is None or action.do not in (Do.SEND, Do.WORK, Do.WAKE):
            break
        if action.do is Do.WORK and budget.irq and hyperthread.may_interrupt(spec, s.process, What.IRQ):
            break
        s, _ = performed(model, spec, s, action, False)
    delta = numbers.BASE - s.process.req
    if delta:
        s = numbers.with_requests(s, delta)
    return SiblingMove(label, who, s, budget, touches, delta)


# --- faults -----------------------------------------------------------------------------------------------


def faults(model: Model, spec: hyperthread.Spec, s: Sibling, budget: Budget) -> Iterator[SiblingMove]:
    """Yield what may come from outside to a living sibling, as long as the budget lasts."""
    h, ht, fault = s.process, spec.ht, actor(Who.FAULT)
    assert isinstance(h, HyperthreadState)
    for word, name, event in INTERRUPTS:
        more = getattr(budget, name)
        if more and hyperthread.may_interrupt(spec, h, event.what):
            t = stepped(spec, s, event)
            yield settled(model, spec, Label(ht, word), fault, t, budget._replace(**{name: more - 1}))
    if budget.mce and budget.fatal and hyperthread.may_interrupt(spec, h, What.MCE):
        after = budget._replace(mce=budget.mce - 1, fatal=budget.fatal - 1)
        yield settled(model, spec, Label(ht, "fatal mce"), fault, stepped(spec, s, FATAL_MCE), after)
    if budget.kill:
        after = budget._replace(kill=budget.kill - 1)
        left: tuple[Touch, ...] = ()
        if model.taints and h.mode is Mode.HOST:  # what it loaded until now stays
            left = tuple(Touch(other, Touched.TAINTED) for other in spec.siblings)
            s = s._replace(words=s.words._replace(tainted=True))
        for unsent in range(unread(s, h.inc) + 1):
            yield SiblingMove(Label(ht, "is killed", unsent), fault, killed(s, unsent), after, left)
    if budget.retry and hyperthread.next_action(h) is None and h.phase in WAITS:
        t = stepped(spec, s, hyperthread.TIMEOUT)
        yield settled(model, spec, Label(ht, "asks again"), fault, t, budget._replace(retry=budget.retry - 1))
    if budget.loss:
        after = budget._replace(loss=budget.loss - 1)
        if s.down:
            t = s._replace(down=s.down[1:])
            yield SiblingMove(Label(ht, "never gets order", s.down[0]), fault, t, after)
        for inc, reports in s.up:
            t = s._replace(up=taken(s.up, inc))
            yield SiblingMove(Label(COORDINATOR, "never gets report", reports[0]), fault, t, after)


def overdue(s: Sibling, m: gate.Member) -> bool:
    """Say whether its time-out strikes in the end: it waits, nothing is under way, and the gate (`m`) owes nothing."""
    h = s.process
    if isinstance(h, Dead) or s.up or s.down or h.phase not in WAITS or hyperthread.next_action(h) is not None:
        return False
    if m.inc != h.inc:
        return True
    if h.want is not Want.NONE:
        return m.want is not h.want or m.req != h.req
    return m.belief is not gate.Belief.PARKED or (h.vm > 0) != (m.attached > 0)


def timed_out(model: Model, spec: hyperthread.Spec, s: Sibling, budget: Budget) -> SiblingMove:
    t = stepped(spec, s, hyperthread.TIMEOUT)
    return settled(model, spec, Label(spec.ht, "asks again"), actor(Who.TIME, spec.ht), t, budget)


def unread(s: Sibling, inc: int) -> int:
    return sum(len(reports) for i, reports in s.up if i == inc)


def killed(s: Sibling, unsent: int) -> Sibling:
    """A process is gone between two of its steps: its words stay, its inbox is lost, its sent reports arrive.

    `unsent`: so many of its newest reports had not been sent yet. They count as sent in `settled`; not sending
    them and being killed is the same to everybody.
    """
    h = s.process
    if isinstance(h, Dead):
        return s
    up = tuple((i, reports[: len(reports) - unsent] if i == h.inc else reports) for i, reports in s.up)
    return Sibling(Dead(h.inc), s.words, tuple(link for link in up if link[1]), ())


# --- what others do to it ---------------------------------------------------------------------------------


def touched(model: Model, spec: hyperthread.Spec, s: Sibling, touch: Touch) -> Sibling:
    """Return the sibling after something was done to it."""
    what, words, process = touch.what, s.words, s.process
    if what is Touched.PENDING:
        return s._replace(words=words._replace(pending=True))  # the page takes an IPI for the dead, too
    if what is Touched.REQUEST:
        return s._replace(words=words._replace(request=touch.number))
    if what is Touched.ORDERED:
        order = touch.order
        assert order is not None
        gone = isinstance(process, Dead) or process.inc != order.inc or process.phase is Phase.STOPPED
        return s if gone else s._replace(down=(*s.down, order))
    if what is Touched.TAINTED or what is Touched.FLUSHED:
        return s._replace(words=words._replace(tainted=what is Touched.TAINTED))
    if what is Touched.RAISED:
        broadcast, party = mce.broadcast_parts(touch.number)
        return s._replace(words=words._replace(broadcast=broadcast, party=party))
    if what is Touched.FAILED:
        return s._replace(words=words._replace(failed=True))
    if what is Touched.KICKS:
        return numbers.with_kicks(s, touch.number)
    if what is Touched.ROUNDS:
        return numbers.with_rounds(s, touch.number)
    if what is Touched.UNSENT:
        return s._replace(down=s.down[: len(s.down) - touch.number])
    if what is Touched.KILLED:
        return killed(s, touch.number)
    if what is Touched.WIPED:
        arrived = max(words.arrived, touch.number)
        return s._replace(
            words=Words(
                request=words.request, arrived=arrived, tainted=words.tainted, callin=mce.closed(words.broadcast),
                broadcast=words.broadcast, failed=words.failed,
            )
        )  # fmt: skip
    if not isinstance(process, Dead):
        assert what in (Touched.BURIED, Touched.UNBURIED), f"{what.name} is for the dead"
        return s
    if what is Touched.UNBURIED:
        return s._replace(process=process._replace(buried=False))
    if what is Touched.TOLD:
        return s._replace(process=process._replace(told=True))
    if what is Touched.BURIED:
        return s._replace(process=process._replace(buried=process.buried or touch.number in (0, process.inc)))
    assert what is Touched.BORN
    return born(model, spec, process.inc + 1, touch.number, s)


def born(model: Model, spec: hyperthread.Spec, inc: int, coord: int, s: Sibling) -> Sibling:
    """Return the sibling with a new process, which has said that it is ready. Its numbers start at the base."""
    process = hyperthread.born(inc, coord, s.words.request)._replace(req=numbers.BASE)
    words = s.words._replace(callin=mce.closed(s.words.broadcast))
    s = s._replace(process=process, words=words, taken=s.words.broadcast)
    return settled(model, spec, Label(spec.ht, "is born"), 0, s, Budget()).sibling


def posted(link: UpLink, report: Report) -> UpLink:
    """Append a report to the queue of its incarnation."""
    if link and link[-1][0] == report.inc:
        return (*link[:-1], (report.inc, (*link[-1][1], report)))
    return (*link, (report.inc, (report,)))


def taken(link: UpLink, inc: int) -> UpLink:
    """Take the oldest report of one incarnation off the link; an empty queue disappears."""
    return tuple((i, reports[1:] if i == inc else reports) for i, reports in link if i != inc or len(reports) > 1)
