"""A page table: walk it, map and unmap, copy a range of another table's entries at a level, clear them, free it.

Rule 1. An operation is done as a whole, or is refused with MappingRefused and has changed nothing.
Rule 2. It writes into its own directories only (G7, `asid.mm.directories`). A copy at level L points at the directories
        below L of the table it copies from, and so follows what that table changes in them.
Rule 3. After a copy the range is translated as in the source, rounded outwards to whole entries of its level.
Rule 4. Restrictions are in the entries that map memory; entries that point at directories let everything through.

Where the postings of the RFC differ or are silent
    A source entry above the level asked for that maps memory itself (2 MiB, 1 GiB) is copied as it is, as there; with
    `split` its parts are copied at the level asked for, into directories of the copy's own.
    PTEs may be written over by a copy; of higher entries only the same value may be set again (EBUSY).
    A clear that would have to write into another table's directory is refused; version 1 skips it and says nothing.
    A directory that a clear has emptied is given back; there it is kept until the table is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from asid.errors import MappingRefused
from asid.mm import entry as bits
from asid.mm.descent import Clear, Copy, Descent
from asid.mm.directories import DIRECTORIES_MAX, AllOrNothing, Directories, Frames
from asid.mm.entry import ADDRESS_END, ENTRIES, FRAME, PAGE, PAGING, PRESENT, PSE, Level, Paging
from asid.mm.runs import Run, runs_of, same_entries


class Walk(NamedTuple):
    """Where a walk ended. entry: what maps the address, 0 for nothing; level: of it, or of the empty one."""

    level: Level
    entry: int

    def physical(self, address: int) -> int:
        """Return the physical address that `address`, which must be mapped, is translated to."""
        assert self.entry, "nothing maps it"
        within = bits.FOUR_LEVELS.span(self.level) - 1
        return self.entry & FRAME & ~within | address & within


class PageTable:
    """One table. levels: 4 or 5. over: a table of the same host, from which this one can then copy; None for a host's
    own. directories_max: how many directories it may own."""

    def __init__(
        self, name: str, *, levels: int = 4, over: PageTable | None = None, directories_max: int = DIRECTORIES_MAX
    ) -> None:
        self.name: Final = name
        self.paging: Final[Paging] = over.paging if over else PAGING[levels]
        self.frames: Final[Frames] = over.frames if over else Frames()
        self._own = Directories(name, self.frames, directories_max)
        self._descent = Descent(self._own, self.paging)
        self._steps = tuple((self.paging.shift(level), level) for level in self.paging.levels)
        self._sign = self.paging.address_bits - 1
        self._signs = (0, ADDRESS_END - 1 >> self._sign)
        with self.all_or_nothing():
            self._root = self._own.allocate(Level.PGD)
        self._top = self.frames.directories[self._root].entries
        self._freed = False

    @property
    def generation(self) -> int:
        """Grows with each change of what an address may be translated to: what was found before it may be stale."""
        return self._own.generation

    @property
    def directories(self) -> int:
        """How many directories it owns."""
        return len(self._own.own)

    def owns(self, at: int) -> bool:
        """Say whether the directory at this physical address is its own."""
        return self._own.owns(at)

    def image(self) -> dict[int, tuple[int, ...]]:
        """Return its own directories by physical address. Tables of equal images are equal bit by bit."""
        return {at: tuple(self.frames.directories[at].entries) for at in self._own.own}

    def all_or_nothing(self) -> AllOrNothing:
        """Return a context of several operations, all of which are undone when an exception leaves it."""
        return self._own.all_or_nothing()

    def on_undo(self, action: Callable[[], object]) -> None:
        """Have `action` done if the context that is open is undone."""
        self._own.on_undo(action)

    # --- looking ------------------------------------------------------------------------------------------

    def walk(self, address: int) -> Walk:
        """Return where an address leads. Raise MappingRefused, EINVAL, for one that is not canonical."""
        if address >> self._sign not in self._signs:
            raise self._not_canonical(address)
        directories = self.frames.directories
        entries = self._top
        for shift, level in self._steps:  # noqa: B007, the level is used when the loop has ended
            entry = entries[address >> shift & 511]
            if not entry or entry & PSE or shift == 12:
                break
            entries = directories[entry & FRAME].entries
        return Walk(level, entry)

    def lookup(self, address: int) -> int:
        """Return the entry that maps an address, 0 for none and for an address that is not canonical."""
        if address >> self._sign not in self._signs:
            return 0
        directories = self.frames.directories
        entries = self._top
        for shift, _ in self._steps:
            entry = entries[address >> shift & 511]
            if not entry or entry & PSE or shift == 12:
                break
            entries = directories[entry & FRAME].entries
        return entry

    def runs(
        self, start: int = 0, end: int = ADDRESS_END, *, holes: bool = False, flags: int = bits.FLAGS
    ) -> Iterator[Run]:
        """Yield what [start, end) maps: stretches of entries that follow each other at one level with the same flags.

        holes: with the empty entries, as stretches without flags. flags: those that tell stretches apart and are
        shown; a dump of debugfs, for one, does not show ACCESSED and DIRTY. Do not change the table meanwhile.
        """
        low, high = self._bounds(start, end)
        return runs_of(self.frames, self.paging, self._top, low, high, holes, flags)

    def mapped_bytes(self, start: int, end: int) -> int:
        """Return how many bytes of [start, end) are mapped."""
        return sum(run.end - run.start for run in self.runs(start, end, flags=0))

    def same_as(self, other: PageTable, start: int, end: int) -> bool:
        """Say whether [start, end) leads to the same memory with the same flags in another table of the same host."""
        low, high = self._bounds(start, end)
        return same_entries(self.frames, self.paging, self._top, other._top, low, high)

    def cover(self, start: int, end: int, level: Level, split: bool = False) -> tuple[int, int]:
        """Return the range that a copy of [start, end) from this table at `level` maps in another."""
        whole = self.paging.span(self.paging.level(level))
        first, last = (
            max(whole, self.paging.span(seen.level)) if seen.entry and not split else whole
            for seen in (self.walk(start), self.walk(end - 1))
        )
        return bits.floor_to(start, first), bits.ceil_to(end, last)

    # --- changing -----------------------------------------------------------------------------------------

    def map(self, start: int, end: int, physical: int, flags: int, size: int = PAGE) -> None:
        """Map [start, end) to the memory from `physical` on in entries of `size` bytes: 4 KiB, 2 MiB or 1 GiB.

        Raise MappingRefused: EINVAL for what is not aligned or not canonical, or lies in another table's directory;
        EBUSY over another entry; ENOMEM at the limit of directories.
        """
        target = bits.LEAVES.get(size)
        low, high = self._bounds(start, end)
        if target is None or (start | end | physical) & size - 1 or not 0 <= physical <= (1 << 52) - (end - start):
            raise self._refused(
                "EINVAL",
                f"{end - start:#x} bytes at physical {physical:#x} do not fit entries of {size} bytes",
                start,
                allowed="entries of 4 KiB, 2 MiB or 1 GiB, and addresses aligned to them, physical ones below 1 << 52",
                hint="Map what does not fill an entry in smaller ones.",
            )
        if flags & (FRAME | PSE):
            raise self._refused(
                "EINVAL",
                f"{flags:#x} is more than flags",
                start,
                allowed="bits 0 to 11 and 52 to 63, without PSE, which follows from the size",
                hint="Take the flags from asid.mm.entry.",
            )
        leaf = flags | PRESENT | (0 if target is Level.PTE else PSE)
        with self.all_or_nothing():
            self._descent.map(self._root, 0, 0, low, high, physical, leaf, target)

    def reserve(self, start: int, end: int, level: Level) -> None:
        """Make the directories of the entries of [start, end) at `level`, as a host does for what it will share: a copy
        above that level sees what is mapped there later. Raise as map does."""
        low, high = self._bounds(start, end)
        with self.all_or_nothing():
            self._descent.reserve(self._root, 0, 0, low, high, self.paging.level(level))

    def unmap(self, start: int, end: int) -> None:
        """Take [start, end) away and keep the directories, as Linux does with those of its vmalloc area.

        Raise MappingRefused, EINVAL, for a part of a larger entry or of a page, or what another table's directory maps.
        """
        low, high = self._bounds(start, end)
        if (start | end) & PAGE - 1:
            raise self._refused(
                "EINVAL",
                f"{end - start:#x} bytes are no whole pages",
                start,
                allowed="aligned to 4 KiB at both ends",
                hint="Round the range to pages.",
            )
        with self.all_or_nothing():
            self._descent.clear(self._root, 0, 0, low, high, Clear(Level.PTE, whole=True, keep=True))

    def copy(
        self,
        source: PageTable,
        start: int,
        end: int,
        level: Level = Level.PTE,
        *,
        split: bool = False,
        replace: bool = False,
    ) -> int:
        """Copy the entries of [start, end) at `level` from another table, and return how many of them map something.

        split: of a larger entry copy only the parts asked for. replace: an entry may take the place of directories of
        this table's own, with all that they map. Raise MappingRefused: EBUSY over another entry, EINVAL, ENOMEM.
        """
        low, high = self._bounds(start, end)
        if source is self or source.frames is not self.frames or source._freed:
            raise self._refused(
                "EINVAL",
                f"{source.name} is no table to copy from",
                start,
                allowed="another table of the same host that was not freed",
                hint="Create this one over the host's table.",
            )
        with self.all_or_nothing():
            how = Copy(self.paging.level(level), split, replace)
            return self._descent.copy(self._root, 0, 0, source._top, low, high, how)

    def clear(self, start: int, end: int, level: Level, *, skip_borrowed: bool = False) -> None:
        """Clear the entries of [start, end) at `level`, the one at which they were mapped; a larger one goes whole.

        skip_borrowed: leave what a copy at a higher level has mapped. Raise MappingRefused: EINVAL where the entries
        are in another table's directory, EBUSY where another table points at a directory that would go.
        """
        low, high = self._bounds(start, end)
        with self.all_or_nothing():
            how = Clear(self.paging.level(level), skip_borrowed)
            self._descent.clear(self._root, 0, 0, low, high, how)

    def free(self) -> None:
        """Give back every directory of its own; those of others stay as they are. The table is then of no more use.

        Raise MappingRefused, EBUSY, if another table points at one of them.
        """
        self._bounds(0, PAGE)
        with self.all_or_nothing():
            for index in range(ENTRIES):
                self._descent.take_out(self._root, index, Level.PGD)
            self._own.release(self._root)
        assert not self.directories, "a directory that no entry leads to"
        self._freed = True

    # --- refusals -----------------------------------------------------------------------------------------

    def _bounds(self, start: int, end: int) -> tuple[int, int]:
        """Return the translated bits of a range. Raise MappingRefused, EINVAL, for what is none, or has no table."""
        if self._freed:
            raise self._refused(
                "EINVAL", "the table was freed", start, allowed="a table in use", hint="Create another one."
            )
        if not 0 <= start < end <= ADDRESS_END:
            raise self._refused(
                "EINVAL",
                f"up to {end:#x} it is no range",
                start,
                allowed="at least one byte, below 1 << 64",
                hint="Look at the size.",
            )
        for address in (start, end - 1):
            if not self.paging.is_canonical(address):
                raise self._not_canonical(address)
        low = self.paging.low(start)
        return low, self.paging.low(end - 1) + 1

    def _not_canonical(self, address: int) -> MappingRefused:
        top = self.paging.address_bits - 1
        return self._refused(
            "EINVAL",
            "the address is not canonical",
            address,
            allowed=f"one whose bits above {top} all repeat bit {top}",
            hint="See linux Documentation/arch/x86/x86_64/mm.rst for what is where.",
        )

    def _refused(self, errno: str, what: str, address: int, *, allowed: str, hint: str) -> MappingRefused:
        return MappingRefused(
            errno,
            what,
            where=f"{self.name}, {address:#x}",
            state=f"{len(self.paging.levels)} levels, {self.directories} directories",
            allowed=allowed,
            hint=hint,
        )
