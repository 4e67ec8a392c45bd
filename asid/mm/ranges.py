"""Ranges of addresses that were mapped into an isolated table, found by address, and sums of intervals.

A range has two extents: what was asked for, [start, end), and its cover, which is that rounded outwards to the entries
that map it. Two ranges overlap when their covers do: they share an entry. The end is exclusive, so neighbours do not.
(Version 2 of the RFC's postings takes neighbours for overlapping when it unmaps, and not when it maps.)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from asid.mm.entry import Level, bytes_text

Interval = tuple[int, int]  # start, exclusive end


class Range(NamedTuple):
    """Something that was mapped. level, split: how it was copied. cover: what its entries map."""

    start: int
    size: int
    level: Level
    what: str
    split: bool
    cover: Interval

    @property
    def end(self) -> int:
        """The first address behind what was asked for."""
        return self.start + self.size

    def __str__(self) -> str:
        return f"{self.what or 'a range'} at {self.start:#x}, {bytes_text(self.size)} at {self.level.name} level"


class Ranges:
    """Ranges by their start, of which there is one each, and by what they cover.

    Covers are kept in classes by the power of two that is not below their size, so that those which may reach into an
    interval follow each other in each class.
    """

    __slots__ = ("_by_start", "_classes")

    def __init__(self) -> None:
        self._by_start: dict[int, Range] = {}
        self._classes: dict[int, list[Interval]] = {}

    def __len__(self) -> int:
        return len(self._by_start)

    def __iter__(self) -> Iterator[Range]:
        """In order of address."""
        return iter(sorted(self._by_start.values()))

    def get(self, start: int) -> Range | None:
        """Return the range that starts there, None for none."""
        return self._by_start.get(start)

    def add(self, added: Range) -> None:
        """Take in a range. None may start where it does."""
        assert added.start not in self._by_start, "two ranges of one start could not be told apart"
        self._by_start[added.start] = added
        insort(self._classes.setdefault(_class_of(added), []), (added.cover[0], added.start))

    def remove(self, removed: Range) -> None:
        """Forget a range that is in it."""
        del self._by_start[removed.start]
        covers = self._classes[_class_of(removed)]
        del covers[bisect_left(covers, (removed.cover[0], removed.start))]

    def overlapping(self, low: int, high: int) -> list[Range]:
        """Return the ranges whose cover shares a byte with [low, high), those of the highest level first."""
        found = []
        for size_bits, covers in self._classes.items():
            # Nothing in this class is longer than 1 << size_bits.
            place = bisect_left(covers, (low - (1 << size_bits) + 1,))
            while place < len(covers) and covers[place][0] < high:
                seen = self._by_start[covers[place][1]]
                if seen.cover[1] > low:
                    found.append(seen)
                place += 1
        return sorted(found, key=lambda seen: (-seen.level, seen.start))


def _class_of(seen: Range) -> int:
    return (seen.cover[1] - seen.cover[0] - 1).bit_length()


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same bytes as intervals in order that do not touch each other."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def without(intervals: list[Interval], taken: list[Interval]) -> list[Interval]:
    """Return the bytes of `intervals` that are not in `taken`. Both as union() returns them, and so is the result."""
    left = []
    ends = [end for _, end in taken]
    for start, end in intervals:
        place = bisect_left(ends, start + 1)
        while place < len(taken) and taken[place][0] < end:
            if taken[place][0] > start:
                left.append((start, taken[place][0]))
            start = max(start, taken[place][1])
            place += 1
        if start < end:
            left.append((start, end))
    return left
