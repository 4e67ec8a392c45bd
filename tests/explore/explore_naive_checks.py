"""Naive variants of the rendezvous in which the handlers of a broadcast #MC meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from explore_planting import put

from asid.core import hyperthread, mce
from asid.core.events import Action
from asid.core.mce import CallIn
from asid.explore import meetings, siblings
from asid.explore.parts import Budget, Glimpse, Label, Model, Sibling, SiblingMove, Touch, Touched, Who, actor


def order_read_then_written(stack: ExitStack) -> None:
    """The order of arrival is read in one step, and written in the next."""

    def calls_in(
        model: Model, spec: hyperthread.Spec, s: Sibling, action: Action, budget: Budget, seen: meetings.Peers
    ) -> Iterator[SiblingMove]:
        callin = mce.called_in(meetings.check_of(s), meetings.others(spec, seen))
        if s.glimpse is None:
            t = s._replace(glimpse=Glimpse(False, next_ht=callin.order))
            yield SiblingMove(Label(spec.ht, "reads", "who is in"), actor(Who.PROCESS, spec.ht), t, budget)
        else:
            callin, t = callin._replace(order=s.glimpse.next_ht), s._replace(glimpse=None)
            yield meetings.called_in(model, spec, t, action, budget, callin)

    put(stack, meetings, "calls_in", calls_in)


def waits_for_ever(stack: ExitStack) -> None:
    """A wait has no time-out."""
    real = meetings.awaits

    def awaits(
        model: Model, spec: hyperthread.Spec, s: Sibling, action: Action, budget: Budget, seen: meetings.Peers
    ) -> Iterator[SiblingMove]:
        return real(model, spec, s, action, budget._replace(timer=0), seen._replace(gone=0))

    put(stack, meetings, "awaits", awaits)


def words_of_the_dead_stay(stack: ExitStack) -> None:
    """The coordinator closes no word of the dead."""
    real = siblings.touched

    def touched(model: Model, spec: hyperthread.Spec, s: Sibling, touch: Touch) -> Sibling:
        t = real(model, spec, s, touch)
        return t._replace(words=t.words._replace(callin=s.words.callin)) if touch.what is Touched.WIPED else t

    put(stack, siblings, "touched", touched)


def one_rendezvous_like_another(stack: ExitStack) -> None:
    """A word that says "in" counts, whichever machine check it was written for."""

    def is_in(word: CallIn, broadcast: int) -> bool:
        return word.order > 0 or word.broadcast >= broadcast

    put(stack, mce, "is_in", is_in)


def all_at_once(stack: ExitStack) -> None:
    """Nobody waits for his turn."""
    real = mce.awaited
    turn = mce.AWAITS[1]

    def awaited(do: mce.Do, ht: int, party: int, words: tuple[CallIn, ...]) -> int:
        return 0 if do is turn else real(do, ht, party, words)

    put(stack, mce, "awaited", awaited)
