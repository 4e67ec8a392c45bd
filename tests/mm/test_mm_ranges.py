"""Ranges found by address, and intervals added and taken away, beside sets of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from asid.mm.entry import Level
from asid.mm.ranges import Range, Ranges, union, without

intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], sum(pair))))


def numbers(parts) -> set[int]:
    return {number for start, end in parts for number in range(start, end)}


@given(intervals, intervals)
def test_intervals_are_sets_of_numbers(some, others):
    joined = union(some)
    assert numbers(joined) == numbers(some)
    assert all(one[1] < two[0] for one, two in pairwise(joined))
    assert numbers(without(joined, union(others))) == numbers(some) - numbers(others)


@given(st.dictionaries(st.integers(0, 300), st.integers(1, 200)), st.data())
def test_ranges_are_found_wherever_they_are_touched(sizes, data):
    ranges = Ranges()
    known = {}
    for start, size in sizes.items():
        known[start] = Range(start, size, Level(size % 3), "", False, (start - start % 7, start + size))
        ranges.add(known[start])
    for start in data.draw(st.lists(st.sampled_from(sorted(known)), unique=True)) if known else ():
        ranges.remove(known.pop(start))
    low = data.draw(st.integers(0, 500))
    high = data.draw(st.integers(low + 1, 501))
    found = ranges.overlapping(low, high)
    assert {seen.start for seen in found} == {
        start for start, seen in known.items() if seen.cover[0] < high and low < seen.cover[1]
    }
    assert [seen.level for seen in found] == sorted((seen.level for seen in found), reverse=True)
    assert list(ranges) == [known[start] for start in sorted(known)]
