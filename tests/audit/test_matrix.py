"""The compatibility matrix, each cell once good (side by side in turn) and once bad where it may not be."""

from __future__ import annotations

import itertools

import pytest
from audit_tale import Tale

from asid.audit.intervals import Interval, clashes, compatible

# Written out by hand from the table of the modes, so that the audit's own rule is not its own witness.
STAYS = [("HOST", 0), ("ISOLATED", 1), ("ISOLATED", 2), ("GUEST", 1), ("GUEST", 2), ("PARKED", 0), ("OFFLINE", 0)]
FORBIDDEN = {
    frozenset({("HOST", 0), ("GUEST", 1)}),
    frozenset({("HOST", 0), ("GUEST", 2)}),
    frozenset({("ISOLATED", 1), ("GUEST", 2)}),
    frozenset({("ISOLATED", 2), ("GUEST", 1)}),
    frozenset({("GUEST", 1), ("GUEST", 2)}),
}
CELLS = list(itertools.product(STAYS, STAYS))


def stay(ht: int, mode: str, vm: int, start: int, end: int) -> Interval:
    return Interval(start, end, mode, vm, "grant" if mode == "HOST" else "", ht, ht + 1, False)


@pytest.mark.parametrize(("a", "b"), CELLS)
def test_each_cell_of_the_matrix(a, b):
    first, second = stay(0, *a, 0, 10), stay(1, *b, 5, 15)
    allowed = frozenset({a, b}) not in FORBIDDEN
    assert compatible(first, second) is allowed
    assert compatible(second, first) is allowed, "the matrix is symmetric"
    found = list(clashes([first, second]))
    assert [(clash.start, clash.ns) for clash in found] == ([] if allowed else [(5, 5)])


@pytest.mark.parametrize(("a", "b"), CELLS)
def test_one_after_the_other_is_always_allowed(a, b):
    assert list(clashes([stay(0, *a, 0, 10), stay(1, *b, 10, 20)])) == []


@pytest.mark.parametrize(("a", "b"), CELLS)
def test_each_cell_through_the_whole_audit(a, b):
    """The same cells as records: the first hyperthread stays, the second comes 10 us later."""
    tale = Tale()
    for ht, (mode, vm) in enumerate((a, b)):
        if mode == "HOST":
            tale.grant(90 + 10 * ht, ht)
        tale.goes(100 + 10 * ht, ht, mode, vm=vm, via="grant" if mode == "HOST" else "")
    verdict = tale.end(200)
    broken = {name for name in ("G2", "G3") if verdict.finding(name).broken}
    if frozenset({a, b}) not in FORBIDDEN:
        assert broken == set()
    else:
        assert broken == ({"G2"} if "HOST" in (a[0], b[0]) else {"G3"})
        guarantee = verdict.finding(broken.pop())
        assert guarantee.broken == 1
        assert guarantee.violations[0].ts == 110_000
        assert guarantee.violations[0].hts in ((0, 1), (1, 0))


@pytest.mark.parametrize("smt", [1, 2, 4, 8])
def test_every_pair_of_n_siblings_is_seen(smt):
    """One hyperthread in HOST for the whole time, all others in GUEST: n - 1 violations, whoever it is."""
    for host in range(smt):
        tale = Tale(smt=smt)
        tale.grant(90, host)
        for ht in range(smt):
            tale.goes(100, ht, "HOST" if ht == host else "GUEST", via="grant" if ht == host else "")
        assert tale.end(200).finding("G2").broken == smt - 1


def test_an_interval_that_was_left_clashes_with_nobody():
    rows = [stay(0, "GUEST", 1, 0, 10), stay(0, "PARKED", 0, 10, 20), stay(1, "HOST", 0, 10, 20)]
    assert list(clashes(rows)) == []
    assert [clash.ns for clash in clashes([rows[0], stay(1, "HOST", 0, 9, 20)])] == [1]
