"""A coordinator whose timers fire late: a pause of its own is held against nobody, but not for ever (L1)."""

from __future__ import annotations

import pytest
from played_machine import Clock

from asid.core.events import Timer
from asid.core.gate import key_of
from asid.live.coordinator import LATE_NS, LATE_TIMES_MAX, Coordinator
from asid.live.page import page_bytes

AFTER_NS = 50_000_000


@pytest.fixture
def late():
    """A coordinator with nothing but its timers."""
    coordinator = Coordinator.__new__(Coordinator)
    coordinator.node = Clock()  # type: ignore[assignment]
    coordinator.after_ns = [AFTER_NS] * len(Timer)
    coordinator.words = [0] * (page_bytes(2) // 8)  # type: ignore[assignment]  # nobody is in a machine check
    coordinator.cause = 0
    coordinator.events = []  # type: ignore[attr-defined]
    coordinator.step = coordinator.events.append  # type: ignore[attr-defined,method-assign]
    return coordinator


def passes(coordinator, ns):
    coordinator.node.now += ns
    coordinator.node.fire()


@pytest.mark.parametrize("timer", [Timer.KICK, Timer.RESYNC])
def test_a_deadline_that_this_process_slept_through_begins_anew(late, timer):
    late.set_timer(timer, key_of(1, 5))
    passes(late, 10 * AFTER_NS)
    assert late.events == []
    passes(late, AFTER_NS)
    assert [(event.timer, event.ht, event.key) for event in late.events] == [(timer, 1, 5)]


@pytest.mark.parametrize("timer", [Timer.KICK, Timer.RESYNC])
def test_where_every_timer_is_late_a_silent_sibling_is_fenced_all_the_same(late, timer):
    late.set_timer(timer, key_of(1, 5))
    for _ in range(LATE_TIMES_MAX):
        passes(late, AFTER_NS + LATE_NS + 1)
        assert late.events == []
    passes(late, AFTER_NS + LATE_NS + 1)
    assert len(late.events) == 1
    late.set_timer(timer, key_of(1, 6))
    passes(late, AFTER_NS + LATE_NS + 1)
    assert len(late.events) == 1, "the next kick has its own patience"


def test_other_timers_judge_nobody(late):
    late.set_timer(Timer.REKICK, key_of(1, 5))
    passes(late, 10 * AFTER_NS)
    assert len(late.events) == 1
