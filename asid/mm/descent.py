"""The ways down a page table: what map, copy and clear do at each directory, from the root to the level asked for.

Rule 1. Only directories of the table's own are descended into for a change, and `Directories` refuses any other write.
Rule 2. Addresses are the translated bits alone ("low"), so that they can be counted; errors name the canonical ones.

In all functions: at, a directory of the table's own; depth, of its level from the top; base, the first address that it
translates; [low, high), the part of the range that lies in it, never empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from asid.errors import MappingRefused
from asid.mm.directories import Directories
from asid.mm.entry import FRAME, TABLE, USER, Level, Paging, bytes_text, flag_words, is_leaf, pieces


class Copy(NamedTuple):
    """level: at which entries are copied. split: of a larger one, its parts. replace: directories of its own go."""

    level: Level
    split: bool
    replace: bool


class Clear(NamedTuple):
    """level: at which entries are cleared. skip_borrowed: not those behind a directory of another table's. whole: no
    larger entry of which the range has a part only. keep: directories that are empty then."""

    level: Level
    skip_borrowed: bool = False
    whole: bool = False
    keep: bool = False


class Descent:
    """The ways down one table."""

    __slots__ = ("_levels", "_own", "_paging", "_shifts")

    def __init__(self, own: Directories, paging: Paging) -> None:
        self._own = own
        self._paging = paging
        self._levels = paging.levels
        self._shifts = tuple(paging.shift(level) for level in paging.levels)

    def map(self, at: int, depth: int, base: int, low: int, high: int, physical: int, leaf: int, target: Level) -> None:
        """Set entries of `target` to the memory from `physical`, where `low` is to be, on. leaf: their flags."""
        level, shift = self._levels[depth], self._shifts[depth]
        if level is not target:
            for index, slot, part_low, part_high in self._slots(depth, base, low, high):
                child = self._child(at, depth, index, slot, leaf)
                self.map(child, depth + 1, slot, part_low, part_high, physical + part_low - low, leaf, target)
            return
        first, count = low - base >> shift, high - low >> shift
        values = list(range(physical | leaf, (physical | leaf) + (count << shift), 1 << shift))
        if not any(self._entries(at)[first : first + count]):
            self._own.write_leaves(at, first, values)
            return
        for index, value in enumerate(values, start=first):
            self._put(at, depth, index, base + (index << shift), value, replace=False)

    def reserve(self, at: int, depth: int, base: int, low: int, high: int, target: Level) -> None:
        """Make the directories in which the entries of `target` are."""
        if self._levels[depth] is target:
            return
        for index, slot, part_low, part_high in self._slots(depth, base, low, high):
            self.reserve(self._child(at, depth, index, slot, TABLE), depth + 1, slot, part_low, part_high, target)

    def copy(self, at: int, depth: int, base: int, source: Sequence[int], low: int, high: int, how: Copy) -> int:
        """Set entries to those of `source`, the directory of the same place. Return how many map something."""
        level = self._levels[depth]
        if level is Level.PTE:
            first = low - base >> 12
            values = list(source[first : (high - 1 - base >> 12) + 1])
            self._own.write_leaves(at, first, values)
            return len(values) - values.count(0)
        entries = self._entries(at)
        count = 0
        for index, slot, part_low, part_high in self._slots(depth, base, low, high):
            entry, mine = source[index], entries[index]
            if entry and mine and (entry == mine or self._same_directory(entry, mine, level)):
                count += 1
            elif level is how.level or (entry and is_leaf(entry, level) and not how.split):
                self._put(at, depth, index, slot, entry, how.replace)
                count += bool(entry)
            elif entry:
                below: Sequence[int] = pieces(entry, level) if is_leaf(entry, level) else self._entries(entry & FRAME)
                child = self._child(at, depth, index, slot, entry)
                count += self.copy(child, depth + 1, slot, below, part_low, part_high, how)
                self._prune(at, index)
            elif mine:
                child = self._child(at, depth, index, slot, 0)
                self.clear(child, depth + 1, slot, part_low, part_high, Clear(how.level, whole=True))
                self._prune(at, index)
        return count

    def clear(self, at: int, depth: int, base: int, low: int, high: int, how: Clear) -> None:
        """Set entries to 0, and give back the directories that are empty then."""
        if self._levels[depth] is Level.PTE:
            first = low - base >> 12
            self._own.write_leaves(at, first, [0] * ((high - 1 - base >> 12) + 1 - first))
            return
        for index, slot, part_low, part_high in self._slots(depth, base, low, high):
            if self._entries(at)[index]:
                self._clear_slot(at, depth, index, slot, part_low, part_high, how)

    def take_out(self, at: int, index: int, level: Level) -> None:
        """Set one entry to 0 and give back the directories of the table's own that it led to."""
        entry = self._entries(at)[index]
        if not entry:
            return
        self._own.write(at, index, 0)
        child = entry & FRAME
        if is_leaf(entry, level) or not self._own.owns(child):
            return
        below = self._own.frames.directories[child].level
        if below is not Level.PTE:
            for place, value in enumerate(self._entries(child)):
                if value:
                    self.take_out(child, place, below)
        self._own.release(child)

    # --- one entry ----------------------------------------------------------------------------------------

    def _clear_slot(self, at: int, depth: int, index: int, slot: int, low: int, high: int, how: Clear) -> None:
        level = self._levels[depth]
        entry = self._entries(at)[index]
        if level is how.level or is_leaf(entry, level):
            if how.whole and level is not how.level and high - low != 1 << self._shifts[depth]:
                raise self._refused(
                    "EINVAL",
                    "the range is a part of this entry",
                    level,
                    slot,
                    entry,
                    allowed="a range that takes it whole",
                    hint="Take the whole entry away, and map again what is to stay.",
                )
            self.take_out(at, index, level)
        elif how.skip_borrowed and not self._own.owns(entry & FRAME):
            return
        else:
            self._own.ours(entry & FRAME, self._where(level, slot))
            self.clear(entry & FRAME, depth + 1, slot, low, high, how)
            if not how.keep:
                self._prune(at, index)

    def _put(self, at: int, depth: int, index: int, slot: int, value: int, replace: bool) -> None:
        """Set an entry that is 0, the same, or points at a directory of its own that may go."""
        old = self._entries(at)[index]
        if old == value:
            return
        if old:
            level = self._levels[depth]
            if is_leaf(old, level) or not self._own.owns(old & FRAME):
                raise self._refused(
                    "EBUSY",
                    f"it cannot be overwritten with {value:#x}",
                    level,
                    slot,
                    old,
                    allowed="an empty entry, or the same value again",
                    hint="Clear the range at the level at which it was mapped first.",
                )
            if not replace and not self._is_empty(old & FRAME):
                raise self._refused(
                    "EBUSY",
                    f"something is mapped below it at {self._levels[depth + 1].name} level",
                    level,
                    slot,
                    old,
                    allowed="an empty entry, or the same value again",
                    hint="Clear what is mapped there first, or map at that level.",
                )
            self.take_out(at, index, level)
        self._own.write(at, index, value)

    def _child(self, at: int, depth: int, index: int, slot: int, flags: int) -> int:
        """Return the directory of its own that an entry points at, a new one if there is none."""
        entry = self._entries(at)[index]
        if not entry:
            child = self._own.allocate(self._levels[depth + 1])
            self._own.write(at, index, child | TABLE | flags & USER)
            return child
        level = self._levels[depth]
        if is_leaf(entry, level):
            raise self._refused(
                "EBUSY",
                f"it maps {bytes_text(1 << self._shifts[depth])} as a whole",
                level,
                slot,
                entry,
                allowed="empty, or point at a directory",
                hint="Clear it first: what it was copied from has become finer, or other memory.",
            )
        self._own.ours(entry & FRAME, self._where(level, slot))
        if flags & USER & ~entry:
            self._own.write(at, index, entry | USER)
        return entry & FRAME

    def _is_empty(self, at: int) -> bool:
        """Say whether a directory leads to nothing but empty ones of the table's own."""
        directory = self._own.frames.directories[at]
        return all(
            not is_leaf(entry, directory.level) and self._own.owns(entry & FRAME) and self._is_empty(entry & FRAME)
            for entry in directory.entries
            if entry
        )

    def _prune(self, at: int, index: int) -> None:
        """Give back the directory that an entry points at if it is empty and nobody else points at it."""
        child = self._entries(at)[index] & FRAME
        directory = self._own.frames.directories[child]
        if not directory.borrowed and not any(directory.entries):
            self._own.write(at, index, 0)
            self._own.release(child)

    def _same_directory(self, entry: int, mine: int, level: Level) -> bool:
        return entry & FRAME == mine & FRAME and not is_leaf(entry, level) and not is_leaf(mine, level)

    def _entries(self, at: int) -> list[int]:
        return self._own.frames.directories[at].entries

    def _slots(self, depth: int, base: int, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (index, its first address, the part of the range in it) for each entry that the range touches."""
        shift = self._shifts[depth]
        for index in range(low - base >> shift, (high - 1 - base >> shift) + 1):
            slot = base + (index << shift)
            yield index, slot, max(low, slot), min(high, slot + (1 << shift))

    def _where(self, level: Level, slot: int) -> str:
        return f"{self._own.name}, {level.name} entry of {self._paging.canonical(slot):#x}"

    def _refused(
        self, errno: str, what: str, level: Level, slot: int, entry: int, *, allowed: str, hint: str
    ) -> MappingRefused:
        state = f"it is {entry:#x}: {flag_words(entry)}"
        return MappingRefused(errno, what, where=self._where(level, slot), state=state, allowed=allowed, hint=hint)
