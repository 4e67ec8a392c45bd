"""Random sequences of operations on page tables and spaces, beside dictionaries of pages that are never wrong.

The dictionaries know every page at which an operation may begin or end, around the borders of entries of each level;
after each operation all of them are compared. `ASID_MM_OPERATIONS` sets how many operations are drawn in all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from asid.errors import MappingRefused
from asid.mm.entry import KERNEL, KERNEL_TEXT, PAGE, PSE, USER, Level, ceil_to, floor_to
from asid.mm.pagetable import PageTable
from asid.mm.space import Space

OPERATIONS = int(os.environ.get("ASID_MM_OPERATIONS", "10000"))
LENGTH = 60

MIB2, GIB = 1 << 21, 1 << 30
BORDERS = {4: 0xFFFF_8900_0000_0000, 5: 0xFF11_0000_0000_0000}  # of two PGD entries
SLOTS = (-512, -2, -1, 0, 1, 511, 512)  # in 2 MiB from the border; 512 begins another 1 GiB
EDGES = (0, 3, 255, 511)  # in pages from the beginning of a slot
# What begins at an edge ends up to 3 slots and 4 pages behind it, or 1 GiB: one page of each part that can differ.
PARTS = (*range(8), *range(255, 260), 511)
ENDS = {slot + slots for slot in SLOTS for slots in range(4)}
FAR_ENDS = {slot + slots for slot in SLOTS for slots in (512, 513)}
SEEN = sorted({slot * MIB2 + page * PAGE for slot in ENDS for page in PARTS} | {slot * MIB2 for slot in FAR_ENDS})
PLACES = [slot * MIB2 + page * PAGE for slot in SLOTS for page in EDGES]
SIZES = [1, 100, PAGE, 2 * PAGE, 3 * PAGE, MIB2, 2 * MIB2, GIB]
LEAF_SIZES = [PAGE, PAGE, PAGE, MIB2, MIB2, GIB]
LEVELS = [Level.PTE, Level.PTE, Level.PMD, Level.PUD, Level.P4D, Level.PGD]
FLAGS = [KERNEL, KERNEL_TEXT, KERNEL | USER]


class Page(NamedTuple):
    """What an address is translated to, with which flags, by an entry of how many bytes. shared: the bytes of the entry
    that points at the host's directory in which that one is, 0 for one of the table's own."""

    physical: int
    flags: int
    leaf: int
    shared: int = 0


Pages = dict[int, Page]


class Machine:
    """A host's table, and what it has to map."""

    def __init__(self, levels: int, mappings: list[tuple]) -> None:
        self.mappings = mappings
        self.levels = levels
        self.border = BORDERS[levels]
        self.seen = tuple(self.border + place for place in SEEN)
        self.host = PageTable("host", levels=levels)
        self.pages: Pages = {}
        self.taken = 0
        self._changed()
        for _, place, size, _, choice, _ in mappings:
            self.map_host(place, min(size, 2 * MIB2), LEAF_SIZES[choice], FLAGS[choice % 3])

    def __repr__(self) -> str:
        return f"Machine({self.levels}, {self.mappings})"

    def span(self, level: Level) -> int:
        if level >= Level.P4D:
            return 1 << (48 if level is Level.PGD and self.levels == 5 else 39)
        return PAGE << 9 * level

    def whole(self, place: int, size: int, leaf: int) -> tuple[int, int]:
        start = floor_to(self.border + place, leaf)
        return start, start + ceil_to(size, leaf)

    def cover(self, start: int, end: int, level: Level, split: bool) -> tuple[int, int]:
        def unit(address: int) -> int:
            large = (size for size in (MIB2, GIB) if not split and (floor_to(address, size), size) in self.large)
            return max((self.span(level), *large))

        return floor_to(start, unit(start)), ceil_to(end, unit(end - 1))

    def within(self, start: int, end: int) -> Iterator[int]:
        return (page for page in self.seen if start <= page < end)

    def new_pages(self, start: int, end: int, leaf: int, flags: int) -> tuple[int, Pages]:
        """Return memory that nothing was mapped to before, and the pages if [start, end) is mapped to it."""
        self.taken += 1
        physical = self.taken * 4 * GIB
        return physical, {page: Page(physical + page - start, flags, leaf) for page in self.within(start, end)}

    def map_host(self, place: int, size: int, leaf: int, flags: int) -> str:
        start, end = self.whole(place, size, leaf)
        physical, pages = self.new_pages(start, end, leaf, flags)
        errno = outcome(lambda: self.host.map(start, end, physical, flags, leaf))
        taken = any(True for page in self.within(start, end) if page in self.pages)
        assert (errno == "EBUSY") == taken or (errno == "EBUSY" and leaf > PAGE), "only a directory may be in the way"
        if not errno:
            self.pages.update(pages)
            self._changed()
        return errno

    def unmap_host(self, place: int, size: int) -> str:
        start, end = self.whole(place, size, PAGE)
        errno = outcome(lambda: self.host.unmap(start, end))
        assert errno == ("EINVAL" if cuts_a_leaf(self.pages, start, end) else "")
        if not errno:
            for page in self.within(start, end):
                self.pages.pop(page, None)
            self._changed()
        return errno

    def _changed(self) -> None:
        self.image = self.host.image()
        self.large = {(floor_to(at, page.leaf), page.leaf) for at, page in self.pages.items() if page.leaf > PAGE}


def outcome(operation) -> str:
    """Do it and return the errno that it is refused with, or nothing."""
    try:
        operation()
    except MappingRefused as refused:
        return refused.errno
    return ""


def cuts_a_leaf(pages: Pages, start: int, end: int) -> bool:
    return any(
        base < end and start < base + page.leaf and (base < start or end < base + page.leaf)
        for at, page in pages.items()
        if (base := floor_to(at, page.leaf)) is not None and page.leaf > PAGE
    )


def check_same(machine: Machine, table: PageTable, pages: Pages, did: object) -> None:
    """Compare every page that the dictionary may know of."""
    for address in machine.seen:
        page, walk = pages.get(address), table.walk(address)
        if page is None or not walk.entry:
            assert page is None and not walk.entry, f"{did}: {address:#x} is {walk}, not {page}"
            continue
        flags = walk.entry & ~PSE & ~((1 << 52) - PAGE)
        assert (walk.physical(address), flags) == page[:2], f"{did}: {address:#x} is {walk}, not {page}"


drawn = st.tuples(
    st.integers(0, 9),  # what is done; 0 is nothing, so that a counterexample is told by what is left
    st.sampled_from(PLACES),
    st.sampled_from(SIZES),
    st.sampled_from(LEVELS),
    st.integers(0, 5),
    st.booleans(),
)
machines = st.builds(
    Machine, st.sampled_from([4, 5]), st.lists(drawn.filter(lambda step: step[0]), min_size=1, max_size=30)
)
operations = st.lists(drawn, min_size=LENGTH, max_size=LENGTH).map(lambda steps: [step for step in steps if step[0]])
limits = st.sampled_from([1 << 18, 6])


def random_sequences(test):
    """Draw the parameters of a test, so many examples that it has its half of the operations."""
    decorated = given(machine=machines, limit=limits, steps=operations)(test)
    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    decorated = settings(max_examples=max(1, OPERATIONS // LENGTH // 2), phases=phases)(decorated)
    return pytest.mark.slow(pytest.mark.timeout(max(60, OPERATIONS // 100))(decorated))


# --- tables ---------------------------------------------------------------------------------------------------


class Isolated:
    """A table over the host's, and what it has to map; the host changes no more."""

    def __init__(self, machine: Machine, limit: int) -> None:
        self.machine = machine
        self.limit = limit
        self.table = PageTable("vm", over=machine.host, directories_max=limit)
        self.pages: Pages = {}

    def behind_shared(self, start: int, end: int, span: int) -> bool:
        """Whether a part of the range is in a directory of the host's above entries of so many bytes."""
        return any(
            page.shared > span and floor_to(at, page.shared) < end and start < floor_to(at, page.shared) + page.shared
            for at, page in self.pages.items()
        )

    def copy(self, start: int, end: int, level: Level, split: bool, replace: bool) -> str:
        low, high = self.machine.cover(start, end, level, split)
        cover = set(self.machine.within(low, high))
        free = not any(page in self.pages for page in cover) and not self.behind_shared(low, high, 0)
        errno = outcome(lambda: self.table.copy(self.machine.host, start, end, level, split=split, replace=replace))
        assert errno in ("", "EBUSY", "EINVAL", "ENOMEM")
        assert not free or errno in ("", "ENOMEM"), "nothing was in the way"
        if not errno:
            span = self.machine.span(level)
            for page in cover:
                self._copied(page, span, split)
        return errno

    def _copied(self, at: int, span: int, split: bool) -> None:
        theirs, mine = self.machine.pages.get(at), self.pages.get(at)
        if theirs is None:
            self.pages.pop(at, None)
        elif mine and mine[:2] == theirs[:2] and (mine.shared > span or mine.leaf == theirs.leaf > span):
            pass  # there already, in one piece with more
        elif theirs.leaf < span:
            self.pages[at] = theirs._replace(shared=span)
        else:
            self.pages[at] = theirs._replace(leaf=span if split else theirs.leaf)

    def clear(self, start: int, end: int, level: Level, skip: bool) -> str:
        span = self.machine.span(level)
        errno = outcome(lambda: self.table.clear(start, end, level, skip_borrowed=skip))
        low, high = floor_to(start, span), ceil_to(end, span)
        assert errno == ("EINVAL" if not skip and self.behind_shared(low, high, span) else "")
        if not errno:
            for at, page in list(self.pages.items()):
                unit = max(span, page.leaf)
                if page.shared <= span and floor_to(at, unit) < end and start < floor_to(at, unit) + unit:
                    del self.pages[at]
        return errno

    def map(self, place: int, size: int, leaf: int, flags: int) -> str:
        start, end = self.machine.whole(place, size, leaf)
        physical, pages = self.machine.new_pages(start, end, leaf, flags)
        taken = any(page in self.pages for page in pages)
        errno = outcome(lambda: self.table.map(start, end, physical, flags, leaf))
        assert errno if taken else errno in ("", "ENOMEM") or self.behind_shared(start, end, 0)
        if not errno:
            self.pages.update(pages)
        return errno

    def unmap(self, place: int, size: int) -> str:
        start, end = self.machine.whole(place, size, PAGE)
        errno = outcome(lambda: self.table.unmap(start, end))
        own = {at: page for at, page in self.pages.items() if not page.shared}
        assert errno == ("EINVAL" if cuts_a_leaf(own, start, end) or self.behind_shared(start, end, 0) else "")
        if not errno:
            for page in self.machine.within(start, end):
                self.pages.pop(page, None)
        return errno

    def free(self) -> str:
        self.table.free()
        assert not self.table.directories
        self.__init__(self.machine, self.limit)
        return ""


@random_sequences
def test_tables_map_what_a_dictionary_of_pages_says(machine, limit, steps):
    check_same(machine, machine.host, machine.pages, "host")
    tables = Isolated(machine, limit), Isolated(machine, 1 << 18)
    for what, place, size, level, choice, flag in steps:
        isolated = tables[choice % 2]
        start = machine.border + place + choice * 50
        errno = ""
        if 1 <= what <= 4:
            errno = isolated.copy(start, start + size, level, flag, choice > 3)
        elif what in (5, 6):
            errno = isolated.clear(start, start + size, level, flag)
        elif what == 7:
            errno = isolated.map(place, min(size, 2 * MIB2), LEAF_SIZES[choice], FLAGS[choice % 3])
        elif what == 8:
            errno = isolated.unmap(place, size)
        elif what == 9 and choice > 3:
            errno = isolated.free()
        check_same(machine, isolated.table, isolated.pages, (what, hex(start), size, level, choice, flag, errno))
    for isolated in tables:
        isolated.table.free()
    assert machine.host.image() == machine.image, "the host's table is not what it was"
    assert set(machine.host.frames.directories) == set(machine.image), "a directory was left behind"


# --- spaces ---------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A range that a space was asked to map."""

    size: int
    level: Level
    split: bool


class Isolation:
    """A space over the host's table, and the ranges that it has to map."""

    def __init__(self, machine: Machine, limit: int) -> None:
        self.machine = machine
        self.limit = limit
        self.space = Space("vm", machine.host, directories_max=limit)
        self.wanted: dict[int, Wanted] = {}

    def pages(self) -> Pages:
        """Return every page of the host's that the cover of a range has."""
        covered = {
            page
            for start, (size, level, split) in self.wanted.items()
            for page in self.machine.within(*self.machine.cover(start, start + size, level, split))
        }
        return {page: self.machine.pages[page] for page in covered if page in self.machine.pages}

    def map(self, start: int, size: int, level: Level, split: bool) -> str:
        errno = outcome(lambda: self.space.map(start, size, level, split=split))
        if start in self.wanted:
            assert errno == "EBUSY"
        elif errno == "EFAULT":
            low, high = self.machine.cover(start, start + size, level, split)
            assert not any(page in self.machine.pages for page in self.machine.within(low, high))
        else:
            assert not errno or (errno == "ENOMEM" and self.limit < 100)
        if not errno:
            self.wanted[start] = Wanted(size, level, split)
        return errno

    def unmap(self, choice: int) -> str:
        start = sorted(self.wanted)[choice * 7 % len(self.wanted)] if self.wanted else self.machine.border
        errno = outcome(lambda: self.space.unmap(start))
        assert errno == ("" if start in self.wanted else "EINVAL") or (errno == "ENOMEM" and self.limit < 100)
        if not errno:
            del self.wanted[start]
        return errno

    def remap(self, choice: int, start: int, size: int) -> str:
        old = sorted(self.wanted)[choice * 5 % len(self.wanted)] if self.wanted else None
        before = self.wanted.get(old)
        errno = outcome(lambda: self.space.remap(old, start, size))
        if not errno:
            self.wanted.pop(old, None)
            self.wanted[start] = before._replace(size=size) if before else Wanted(size, Level.PTE, False)
        return errno

    def check(self, did: object) -> None:
        """Compare the pages, the ranges and their covers."""
        check_same(self.machine, self.space.table, self.pages(), did)
        ranges = {
            start: self.machine.cover(start, start + size, level, split)
            for start, (size, level, split) in self.wanted.items()
        }
        assert {seen.start: seen.cover for seen in self.space.ranges()} == ranges, did
        for start, (low, high) in ranges.items():
            assert self.space.overlaps(start) == sum(a < high and low < b for a, b in ranges.values()) - 1, did

    def check_slack(self) -> None:
        """Compare whether anything is mapped that nobody asked for."""
        asked = [(start, start + wanted.size) for start, wanted in self.wanted.items()]
        assert sum(part.exposed for part in self.space.slack()) >= self.space.exposed_bytes() >= 0
        assert bool(self.space.exposed_bytes()) >= any(
            not any(a < page + PAGE and page < b for a, b in asked) for page in self.pages()
        ), "a page that nobody asked for is not told"


@random_sequences
def test_spaces_map_what_their_ranges_cover_and_follow_the_host(machine, limit, steps):
    spaces = Isolation(machine, limit), Isolation(machine, 1 << 18)
    for what, place, size, level, choice, flag in steps:
        isolation = spaces[choice % 2]
        start = machine.border + place + choice * 50
        errno = ""
        if 1 <= what <= 4:
            errno = isolation.map(start, size, level, flag)
        elif what in (5, 6):
            errno = isolation.unmap(choice)
        elif what == 7:
            errno = isolation.remap(choice, start, size)
        elif what in (8, 9):
            if what == 8:
                machine.unmap_host(place, size)
            else:
                machine.map_host(place, min(size, 2 * MIB2), LEAF_SIZES[choice], FLAGS[choice % 3])
            for other in spaces:
                if outcome(other.space.refresh):
                    assert other.limit < 100
                    other.space.free()
                    other.__init__(machine, other.limit)
        for other in spaces if what in (8, 9) else (isolation,):
            other.check((what, hex(start), size, level, choice, flag, errno))
    for isolation in spaces:
        isolation.check_slack()
        isolation.space.free()
    assert machine.host.image() == machine.image, "the host's table is not what it was"
    assert set(machine.host.frames.directories) == set(machine.image), "a directory was left behind"
