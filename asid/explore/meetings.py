"""The steps of siblings that a machine check reached all at once: being hit, taking it, and the rendezvous.

A wait in the rendezvous ends when the words of the siblings say so. It is timed out when somebody who is waited for is
dead or stopped, in the end; and at any moment as long as the budget for time-outs lasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from asid.core import hyperthread, mce
from asid.core.events import Action, Do
from asid.core.hyperthread import Event, HyperthreadState, What
from asid.core.mce import CallIn, Check, Meeting, Severity
from asid.explore import siblings
from asid.explore.parts import Budget, Dead, Label, Model, Sibling, SiblingMove, Who, actor

TAKES = "takes the machine check"


class Peers(NamedTuple):
    """What a handler sees of each hyperthread, itself included, and what only the model knows."""

    words: tuple[CallIn, ...]
    gone: int  # bits of those that are dead or stopped


NOBODY = Peers((), 0)


def peers(s: Sibling, all_: Sequence[Sibling]) -> Peers:
    """Return what a sibling reads of the others at its next step, if that is a step in a rendezvous."""
    h = s.process
    if isinstance(h, Dead) or not h.frames or h.frames[-1].todo[0].do not in mce.MEETS:
        return NOBODY
    gone = sum(1 << ht for ht, o in enumerate(all_) if isinstance(o.process, Dead) or o.stopped)
    return Peers(tuple(o.words.callin for o in all_), gone)


def missed(ht: int, s: Sibling, all_: Sequence[Sibling]) -> int:
    """Return the bits of those whom a sibling missed in a rendezvous, and who have not come to an end since."""
    if isinstance(s.process, Dead):
        return 0
    return mce.unfinished(ht, s.process.absent, tuple(o.words.callin for o in all_))


def moves(model: Model, spec: hyperthread.Spec, s: Sibling, budget: Budget, seen: Peers) -> Iterator[SiblingMove]:
    """Yield the steps of one sibling that has been hit."""
    h = s.process
    if isinstance(h, Dead) or s.stopped:
        return
    action = hyperthread.next_action(h)
    if seen is not NOBODY and action is not None:
        if action.do is Do.CALL_IN:
            yield from calls_in(model, spec, s, action, budget, seen)
        else:
            yield from awaits(model, spec, s, action, budget, seen)
    if s.words.broadcast > s.taken and hyperthread.may_interrupt(spec, h, What.MCE):
        check, hit, who = Check(s.words.broadcast, s.words.party), s._replace(taken=s.words.broadcast), Who.CHECK
        t = siblings.stepped(spec, hit, Event(What.MCE, check=check))
        yield siblings.settled(model, spec, Label(spec.ht, TAKES), actor(who, spec.ht), t, budget)
        if budget.fatal:
            t = siblings.stepped(spec, hit, Event(What.MCE, check=check._replace(severity=Severity.FATAL)))
            label, after = Label(spec.ht, TAKES, "as a fatal one"), budget._replace(fatal=budget.fatal - 1)
            yield siblings.settled(model, spec, label, siblings.FAULT, t, after)
    if budget.stop and not mce.is_done(s.words.callin, s.words.broadcast):
        after = budget._replace(stop=budget.stop - 1)
        yield SiblingMove(Label(spec.ht, "is stopped"), siblings.FAULT, s._replace(stopped=True), after)


def calls_in(
    model: Model, spec: hyperthread.Spec, s: Sibling, action: Action, budget: Budget, seen: Peers
) -> Iterator[SiblingMove]:
    """Write own word, with the order of arrival: one step."""
    callin = mce.called_in(check_of(s), others(spec, seen))
    yield called_in(model, spec, s, action, budget, callin)


def called_in(
    model: Model, spec: hyperthread.Spec, s: Sibling, action: Action, budget: Budget, callin: CallIn
) -> SiblingMove:
    t = siblings.stepped(spec, s._replace(words=s.words._replace(callin=callin)), hyperthread.PERFORMED)
    return siblings.settled(model, spec, Label(spec.ht, "does", action), actor(Who.PROCESS, spec.ht), t, budget)


def others(spec: hyperthread.Spec, seen: Peers) -> tuple[CallIn, ...]:
    return tuple(seen.words[other] for other in spec.siblings)


def check_of(s: Sibling) -> Check:
    assert isinstance(s.process, HyperthreadState)
    return s.process.frames[-1].check


def awaits(
    model: Model, spec: hyperthread.Spec, s: Sibling, action: Action, budget: Budget, seen: Peers
) -> Iterator[SiblingMove]:
    """End a wait, or time it out."""
    ht = spec.ht
    missing = mce.awaited(action.do, ht, check_of(s).party, seen.words)
    if not missing:
        yield waited(model, spec, s, Label(ht, "does", action), actor(Who.PROCESS, ht), budget, mce.met(ht, seen.words))
        return
    who = ",".join(f"h{other}" for other in spec.siblings if missing >> other & 1)
    label, late = Label(ht, "waits no longer for", who), mce.met(ht, seen.words, missing)
    if missing & seen.gone:
        yield waited(model, spec, s, label, actor(Who.TIME, ht), budget, late)
    elif budget.timer:
        yield waited(model, spec, s, label, siblings.FAULT, budget._replace(timer=budget.timer - 1), late)


def waited(
    model: Model, spec: hyperthread.Spec, s: Sibling, label: Label, who: int, budget: Budget, met: mce.Met
) -> SiblingMove:
    t = siblings.stepped(spec, s, Event(What.PERFORMED, met=met))
    return siblings.settled(model, spec, label, who, t, budget)


def meeting(s: Sibling) -> Meeting:
    """Return a living sibling's part in a rendezvous, as the guarantees see it."""
    assert isinstance(s.process, HyperthreadState)
    for frame in s.process.frames:
        if frame.check.broadcast:
            works = bool(frame.role) and hyperthread.CALL_OUT in frame.todo
            check, failed = frame.check, s.words.failed
            return Meeting(s.taken, check.broadcast, check.party, frame.role, works, frame.late, failed)
    return Meeting(s.taken, failed=s.words.failed)
