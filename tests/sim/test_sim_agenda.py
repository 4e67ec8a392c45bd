"""Virtual time: what happens when, and what does not happen any more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asid.sim.agenda import Agenda


@given(st.lists(st.integers(0, 50), max_size=30))
def test_things_happen_by_time_and_then_in_the_order_in_which_they_were_put_down(times: list[int]):
    agenda, seen = Agenda(), []
    for number, ns in enumerate(times):
        agenda.after(ns, lambda ns=ns, number=number: seen.append((agenda.now_ns, ns, number)))
    agenda.run(100)
    assert seen == [(ns, ns, number) for ns, number in sorted((ns, n) for n, ns in enumerate(times))]
    assert agenda.now_ns == 100


def test_what_is_due_at_the_end_belongs_to_the_next_run():
    agenda, seen = Agenda(), []
    agenda.after(10, lambda: seen.append(agenda.now_ns))
    agenda.run(10)
    assert seen == []
    agenda.run(11)
    assert seen == [10]


def test_a_timer_that_is_set_again_or_dropped_does_not_happen():
    agenda, seen = Agenda(), []
    agenda.set_timer("a", 5, lambda: seen.append("first"))
    agenda.set_timer("a", 8, lambda: seen.append("second"))
    agenda.set_timer("b", 3, lambda: seen.append("dropped"))
    agenda.drop_timer("b")
    assert agenda.has_timer("a") and not agenda.has_timer("b")
    agenda.run(20)
    assert seen == ["second"]
    assert not agenda.has_timer("a")
