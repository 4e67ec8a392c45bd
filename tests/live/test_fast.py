"""The hot loop against the step functions: the same accesses to the page in the same order, whatever happens when.

A page that notes every access plays the part of the memory that siblings share. Before each single access of the loop
somebody else may write one word; both the loop and the step functions must then do the same, and stand at the same
place afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from asid.core import hyperthread as core
from asid.core.events import Do, Kick, Mode, Seen
from asid.core.hyperthread import HyperthreadState, Phase, What
from asid.core.policy import POLICIES
from asid.live.fast import Left, run_fast, sees_all
from asid.live.page import (
    CORE_LINES,
    DEPTH,
    FLAG,
    HT_LINES,
    INSNS,
    LINE_WORDS,
    MCE,
    MODE,
    NMI,
    PENDING,
    REQUEST,
    base_of,
)

VM = 3
ANSWERED = 7
EXITS = 3


class Meddling(NamedTuple):
    """Before access number `at`, somebody else writes `value` to word `word`."""

    at: int
    word: int
    value: int


class Page:
    """Words that note every access, and into which somebody else writes at a given moment."""

    def __init__(self, siblings: int, meddling: Meddling | None) -> None:
        self.words = [0] * ((CORE_LINES + siblings * HT_LINES) * LINE_WORDS)
        self.log: list[tuple[str, int, int]] = []
        self.meddling = meddling

    def _access(self) -> None:
        if self.meddling is not None and self.meddling.at == len(self.log):
            self.words[self.meddling.word] = self.meddling.value

    def __getitem__(self, at: int) -> int:
        self._access()
        self.log.append(("read", at, self.words[at]))
        return self.words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._access()
        self.log.append(("write", at, value))
        self.words[at] = value

    def fence(self) -> None:
        self._access()
        self.log.append(("fence", 0, 0))


def page_of(siblings: int, ht: int, meddling: Meddling | None) -> Page:
    """A page on which `ht` is in guest with a lease, and nobody is in its way."""
    page = Page(siblings, meddling)
    own = base_of(ht)
    page.words[own + MODE] = Mode.GUEST | VM << 8
    page.words[own + REQUEST] = ANSWERED
    page.words[own + INSNS] = 100
    return page


def by_the_loop(siblings: int, ht: int, meddling: Meddling | None) -> tuple[Page, int, Left]:
    page = page_of(siblings, ht, meddling)
    others = tuple(other for other in range(siblings) if other != ht)
    done, left = run_fast(
        page, base_of(ht), others, page.fence, vm=VM, answered=ANSWERED, interrupts=(0, 0), n=EXITS  # type: ignore[arg-type]
    )  # fmt: skip
    return page, done, left


def by_the_steps(siblings: int, ht: int, meddling: Meddling | None) -> tuple[Page, int, Left]:
    """The same exits, each action as the step functions give it. Instructions are announced as `retire` does."""
    page = page_of(siblings, ht, meddling)
    own = base_of(ht)
    others = tuple(other for other in range(siblings) if other != ht)
    spec = core.Spec(ht, others)
    state = HyperthreadState(
        phase=Phase.GUEST, mode=Mode.GUEST, vm=VM, session=True, used=True, round=1, answered=ANSWERED
    )  # fmt: skip
    insns = page[own + INSNS]
    for done in range(EXITS + 1):
        if done == 0:
            page[own + INSNS] = insns + 1
            page.fence()
        if done == EXITS:
            page[own + INSNS] = insns
            return page, EXITS, Left.DONE
        if page[own + PENDING] or page[own + NMI] or page[own + MCE]:
            page[own + INSNS] = insns
            return page, done, Left.INTERRUPTED
        insns += 1
        state = core.step(spec, state, core.FAST_EXIT)
        while (action := core.next_action(state)) is not None:
            event = core.PERFORMED
            if action.do is Do.SET_MODE:
                page[own + MODE] = int(action.a) | VM << 8  # type: ignore[arg-type]
                if action.a is Mode.ENTER:
                    page[own + INSNS] = insns + 1
                    page.fence()
            elif action.do is Do.LOOK:
                seen = look(page, own, others)
                if seen is None:
                    page[own + INSNS] = insns
                    return page, done + 1, Left.LOOKING
                event = core.Event(What.PERFORMED, seen=seen)
            else:
                assert action.do is Do.WORK
            state = core.step(spec, state, event)
        assert state.phase is Phase.GUEST
    raise AssertionError("not reached")


def look(page: Page, own: int, others: tuple[int, ...]) -> Seen | None:
    """A look as far as it is clear; None at the first word that is not."""
    if page[own + PENDING] or page[own + REQUEST] != ANSWERED:
        return None
    for other in others:
        for field in (FLAG, DEPTH):
            if page[base_of(other) + field]:
                return None
    return Seen(False, ANSWERED, False)


def meddlings(siblings: int, ht: int) -> Iterator[Meddling]:
    """Every word that somebody else may write, before every single access of the loop."""
    own = base_of(ht)
    words = [own + PENDING, own + REQUEST, own + NMI, own + MCE]
    words += [base_of(other) + field for other in range(siblings) if other != ht for field in (FLAG, DEPTH)]
    accesses = len(by_the_loop(siblings, ht, None)[0].log)
    for at in range(accesses):
        for word in words:
            yield Meddling(at, word, 9)


@pytest.mark.parametrize("siblings", [1, 2, 4, 8])
def test_undisturbed_the_loop_does_what_the_steps_do(siblings):
    loop, done, left = by_the_loop(siblings, 0, None)
    steps, *same = by_the_steps(siblings, 0, None)
    assert (done, left) == (EXITS, Left.DONE) == tuple(same)
    assert loop.log == steps.log
    assert loop.words == steps.words
    assert loop.words[base_of(0) + INSNS] == 100 + EXITS, "each exit is an instruction, and none is left announced"


@pytest.mark.parametrize(("siblings", "ht"), [(1, 0), (2, 0), (2, 1), (4, 2), (8, 5)])
def test_whatever_comes_between_two_accesses_the_loop_does_what_the_steps_do(siblings, ht):
    ends = set()
    for meddling in meddlings(siblings, ht):
        loop, done, left = by_the_loop(siblings, ht, meddling)
        steps, done_steps, left_steps = by_the_steps(siblings, ht, meddling)
        assert (done, left) == (done_steps, left_steps), meddling
        assert loop.log == steps.log, meddling
        assert loop.words == steps.words, meddling
        ends.add(left)
    assert ends == set(Left), "every way out was taken"


@pytest.mark.parametrize(
    ("field", "left"),
    [(PENDING, Left.INTERRUPTED), (NMI, Left.INTERRUPTED), (MCE, Left.INTERRUPTED), (REQUEST, Left.LOOKING)],
)
def test_a_word_that_was_set_before_lets_no_exit_end_in_guest(field, left):
    page = page_of(2, 0, None)
    page.words[base_of(0) + field] = 9
    done, how = run_fast(
        page, base_of(0), (1,), page.fence, vm=VM, answered=ANSWERED, interrupts=(0, 0), n=EXITS  # type: ignore[arg-type]
    )  # fmt: skip
    assert how is left
    assert done == (0 if left is Left.INTERRUPTED else 1)
    assert page.words[base_of(0) + INSNS] == 100 + done


@pytest.mark.parametrize("field", [FLAG, DEPTH])
@pytest.mark.parametrize("other", range(1, 8))
def test_a_sibling_in_host_keeps_the_loop_out_of_guest(other, field):
    page = page_of(8, 0, None)
    page.words[base_of(other) + field] = 1
    done, left = run_fast(
        page, base_of(0), tuple(range(1, 8)), page.fence, vm=VM, answered=ANSWERED, interrupts=(0, 0), n=EXITS  # type: ignore[arg-type]
    )  # fmt: skip
    assert (done, left) == (1, Left.LOOKING)
    assert page.words[base_of(0) + MODE] == Mode.ENTER | VM << 8, "the look has been, the guest has not"


def test_interrupts_that_were_taken_do_not_end_the_loop():
    page = page_of(2, 0, None)
    page.words[base_of(0) + NMI], page.words[base_of(0) + MCE] = 4, 5
    done, left = run_fast(
        page, base_of(0), (1,), page.fence, vm=VM, answered=ANSWERED, interrupts=(4, 5), n=EXITS  # type: ignore[arg-type]
    )  # fmt: skip
    assert (done, left) == (EXITS, Left.DONE)


@pytest.mark.parametrize("name", ["none", "asi", "asi-irqoff", "asi-stun"])
def test_the_loop_is_for_every_policy_whose_exits_are_fast(name):
    for kick in POLICIES[name].kicks:
        assert sees_all(POLICIES[name](kick).hyperthread_spec(0, (1,)))


@pytest.mark.parametrize(
    "changes", [{"guarded": False}, {"kick": Kick.BARE}, {"idle_kick": Kick.BARE}, {"irq_kick": Kick.BARE}], ids=str
)
def test_where_a_sibling_may_taint_the_buffers_unseen_the_loop_is_only_for_who_never_flushes(changes):
    assert not sees_all(core.Spec(0, (1,), flush=True, **changes))
    assert sees_all(core.Spec(0, (1,), **changes))


def test_whoever_sets_the_bit_and_then_counts_has_counted_what_is_in_flight():
    """G4 as it is measured: pending bit first, INSNS after; nothing beyond that count may retire."""
    own = base_of(0)
    accesses = len(by_the_loop(2, 0, None)[0].log)
    for at in range(accesses):
        loop, _, _ = by_the_loop(2, 0, Meddling(at, own + PENDING, 1))
        seen_then = 100
        for kind, word, value in loop.log[:at]:
            if (kind, word) == ("write", own + INSNS):
                seen_then = value
        assert loop.words[own + INSNS] <= seen_then, f"an instruction ran behind the bit set at access {at}"
