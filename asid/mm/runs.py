"""What a page table maps, as stretches, and whether two tables map the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from asid.mm.directories import Frames
from asid.mm.entry import ENTRIES, FLAGS, FRAME, Level, Paging, is_leaf, pieces


class Run(NamedTuple):
    """[start, end) is mapped by entries of one level with the same flags; flags: 0 for empty entries."""

    start: int
    end: int
    level: Level
    flags: int


def runs_of(
    frames: Frames, paging: Paging, top: list[int], low: int, high: int, holes: bool, flags: int
) -> Iterator[Run]:
    """Yield the stretches of the table whose root is `top`, cut to the translated bits [low, high)."""
    run: Run | None = None
    half = 1 << paging.address_bits - 1
    # Empty entries on both sides of the hole of addresses that are not canonical are two stretches.
    parts = ((low, min(high, half)), (max(low, half), high))
    stretches = (_stretches(frames, paging, top, 0, 0, *part) for part in parts if part[0] < part[1])
    for start, end, level, seen in chain.from_iterable(stretches):
        if not seen and not holes:
            continue
        # What is present keeps a flag that a hole never has, until it is shown.
        kept = seen & flags | bool(seen)
        at = paging.canonical(start)
        if run and run.end == at and run.level is level and run.flags == kept:
            run = run._replace(end=at + end - start)
            continue
        if run:
            yield run._replace(flags=run.flags & flags)
        run = Run(at, at + end - start, level, kept)
    if run:
        yield run._replace(flags=run.flags & flags)


def _stretches(
    frames: Frames, paging: Paging, entries: list[int], depth: int, base: int, low: int, high: int
) -> Iterator[tuple[int, int, Level, int]]:
    """Yield (start, end, level, flags) of the entries of one directory and those below; equal ones of it together."""
    level = paging.levels[depth]
    shift = paging.shift(level)
    first, last = low - base >> shift, (high - 1 - base >> shift) + 1
    begun, flags = first, -1
    for index, entry in enumerate(entries[first:last], start=first):
        seen = -2 if entry and not is_leaf(entry, level) else entry & FLAGS
        if seen == flags and seen != -2:
            continue
        if flags >= 0:
            yield max(low, base + (begun << shift)), base + (index << shift), level, flags
        begun, flags = index, seen
        if seen == -2:
            slot = base + (index << shift)
            below = frames.directories[entry & FRAME].entries
            part = max(low, slot), min(high, slot + (1 << shift))
            yield from _stretches(frames, paging, below, depth + 1, slot, *part)
    if flags >= 0:
        yield max(low, base + (begun << shift)), min(high, base + (last << shift)), level, flags


def same_entries(frames: Frames, paging: Paging, one: list[int], other: list[int], low: int, high: int) -> bool:
    """Say whether two tables, given by their roots, map the translated bits [low, high) to the same memory."""
    return _same(frames, paging, one, other, 0, 0, low, high)


def _same(
    frames: Frames, paging: Paging, one: list[int], other: list[int], depth: int, base: int, low: int, high: int
) -> bool:
    level = paging.levels[depth]
    shift = paging.shift(level)
    first, last = low - base >> shift, (high - 1 - base >> shift) + 1
    if one[first:last] == other[first:last]:
        return True
    for index in range(first, last):
        mine, theirs = one[index], other[index]
        if mine == theirs:
            continue
        if level is Level.PTE:
            return False
        slot = base + (index << shift)
        part = max(low, slot), min(high, slot + (1 << shift))
        mine_below, theirs_below = _below(frames, mine, level), _below(frames, theirs, level)
        if not _same(frames, paging, mine_below, theirs_below, depth + 1, slot, *part):
            return False
    return True


def _below(frames: Frames, entry: int, level: Level) -> list[int]:
    """Return the entries of the level below that map what an entry does."""
    if not entry:
        return [0] * ENTRIES
    if is_leaf(entry, level):
        return list(pieces(entry, level))
    return frames.directories[entry & FRAME].entries
