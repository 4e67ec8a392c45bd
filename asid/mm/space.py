"""One VM's isolated address space: a table of its own over the host's, and the ranges that were mapped into it.

Rule 1. Everything in the table is there for a range, and stays as long as one range covers it.
Rule 2. An operation on several ranges (all CPUs, an old buffer and its new one) is done for all of them or for none.
Rule 3. Only the host's table knows what is where. A range is copied from it, and copied again when it has changed.

Where the two postings of the RFC differ
    Version 1 clears what was mapped when a mapping starts at the same place, does not keep a range inside another one,
    and does not see one that begins before another. Here, as in version 2: the same start again is refused (EBUSY; the
    way to another size is `remap`), and any overlap counts, whichever range came first. To unmap is to clear the
    range's entries and to copy again, at its own level, the part of every other range that shared one.
    A range inside another of a higher level is in the table already, and only recorded. One of a higher level over
    others takes the place of their directories; when it goes, theirs come back.
    An unmap of what was never mapped is refused, where version 1 says nothing.
    A range of which the host maps nothing is refused (EFAULT), where both copy entries that are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from asid.errors import MappingRefused
from asid.mm.directories import DIRECTORIES_MAX
from asid.mm.entry import ADDRESS_END, Level
from asid.mm.pagetable import PageTable
from asid.mm.ranges import Interval, Range, Ranges, union, without


class Slack(NamedTuple):
    """Bytes that a range exposes and nobody asked for: [start, end), of which `exposed` are mapped."""

    range: Range
    start: int
    end: int
    exposed: int


class Space:
    """The isolated address space of one VM. percpu_offsets: the distance of each possible CPU's copy of a per-CPU
    variable from its address in the image, in order of CPUs; those that are offline are among them."""

    def __init__(
        self,
        name: str,
        host: PageTable,
        *,
        percpu_offsets: Sequence[int] = (0,),
        directories_max: int = DIRECTORIES_MAX,
    ) -> None:
        self.name: Final = name
        self.host: Final = host
        self.table: Final = PageTable(name, over=host, directories_max=directories_max)
        self.percpu_offsets: Final = tuple(percpu_offsets)
        self._ranges = Ranges()
        self._percpu: set[int] = set()
        self._modules: dict[str, int] = {}

    # --- looking ------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Grows with each change of what an address may be translated to, also of the host's."""
        return self.table.generation

    def ranges(self) -> tuple[Range, ...]:
        """Return what was mapped, in order of address."""
        return tuple(self._ranges)

    def at(self, address: int) -> list[Range]:
        """Return the ranges that have an entry for this address, those of the highest level first."""
        return self._ranges.overlapping(address, address + 1)

    def overlapping(self, start: int, end: int) -> list[Range]:
        """Return the ranges that have an entry for a byte of [start, end), those of the highest level first."""
        return self._ranges.overlapping(start, end)

    def overlaps(self, start: int) -> int:
        """Return how many other ranges share an entry with the one that starts there. Raise MappingRefused, EINVAL."""
        return len(self._ranges.overlapping(*self._known(start).cover)) - 1

    def sharing(self, start: int, end: int) -> list[Range]:
        """Return the ranges that were asked to map a byte of [start, end)."""
        return [seen for seen in self._ranges.overlapping(start, end) if seen.start < end and start < seen.end]

    def is_mapped(self, start: int, size: int) -> bool:
        """Say whether every byte is mapped."""
        return self.table.mapped_bytes(start, start + size) == size

    def slack(self) -> list[Slack]:
        """Return, for each range, what its entries map besides what any range asks for."""
        asked = union((seen.start, seen.end) for seen in self._ranges)
        return [
            Slack(seen, start, end, exposed)
            for seen in self._ranges
            for start, end in without([seen.cover], asked)
            if (exposed := self.table.mapped_bytes(start, end))
        ]

    def exposed_bytes(self) -> int:
        """Return how many bytes are mapped that no range asks for. A byte in the slack of two ranges counts once."""
        asked = union((seen.start, seen.end) for seen in self._ranges)
        return sum(
            self.table.mapped_bytes(*part) for part in without(union(seen.cover for seen in self._ranges), asked)
        )

    def stale(self) -> list[Range]:
        """Return the ranges whose entries are not what the host's are now; see refresh."""
        return [seen for seen in self._ranges if not self.table.same_as(self.host, seen.start, seen.end)]

    # --- ranges -------------------------------------------------------------------------------------------

    def map(self, start: int, size: int, level: Level = Level.PTE, *, what: str = "", split: bool = False) -> Range:
        """Map [start, start + size) as the host does, in whole entries of `level`; split: see PageTable.copy.

        Raise MappingRefused: EBUSY if a range starts there, EFAULT if the host maps none of it, EINVAL, ENOMEM.
        """
        known = self._ranges.get(start)
        if known:
            raise self._refused(
                "EBUSY",
                start,
                f"{known} starts here",
                allowed="one range for each start",
                hint="Unmap it first, or remap it to change its size.",
            )
        with self.table.all_or_nothing():
            added = self._copied(Range(start, size, level, what, split, (start, start + size)))
            self._add(added)
        return added

    def unmap(self, start: int) -> Range:
        """Take away what the range that starts there maps and no other does. Return it.

        Raise MappingRefused: EINVAL if none does; ENOMEM if what others need of a larger entry has no room for its
        directories.
        """
        with self.table.all_or_nothing():
            gone = self._known(start)
            self._remove(gone)
            self.table.clear(*gone.cover, gone.level, skip_borrowed=True)
            for other in self._ranges.overlapping(*gone.cover):
                self._copy_part(other, gone.cover)
        return gone

    def remap(self, old: int | None, new: int | None, size: int = 0, *, what: str = "", split: bool = False) -> None:
        """Follow a buffer that was allocated again (memslots, buses): unmap the one at `old`, map the one at `new`.

        None: there is none. With an old one the new one is mapped as that was. The same buffer in the same size is
        copied again, since the memory behind it may be another. Raise as map and unmap do.
        """
        with self.table.all_or_nothing():
            level = Level.PTE
            if old is not None:
                _, _, level, what, split, _ = self.unmap(old)
            if new is not None:
                self.map(new, size, level, what=what, split=split)

    def refresh(self, start: int = 0, end: int = ADDRESS_END) -> list[Range]:
        """Copy again every range with an entry in [start, end), after the host has changed it, and return them.

        Ranges that share an entry with one of these are copied again too. Raise MappingRefused: ENOMEM.
        """
        found = {seen.start: seen for seen in self._ranges.overlapping(start, end)}
        waiting = list(found.values())
        while waiting:
            more = [seen for seen in self._ranges.overlapping(*waiting.pop().cover) if seen.start not in found]
            found.update((seen.start, seen) for seen in more)
            waiting += more
        with self.table.all_or_nothing():
            for seen in found.values():
                self._remove(seen)
                self.table.clear(*seen.cover, seen.level, skip_borrowed=True)
            again = [self._copied(seen, anew=True) for seen in sorted(found.values(), key=lambda seen: -seen.level)]
            for seen in again:
                self._add(seen)
        return sorted(again)

    def free(self) -> None:
        """Give back the table. What the host owns is as it was. Raise MappingRefused, EBUSY, if another table copied
        from this one."""
        self.table.free()
        self._ranges = Ranges()
        self._percpu.clear()
        self._modules.clear()

    # --- what the kernel has several of, or by name -------------------------------------------------------

    def map_percpu(
        self, variable: int, size: int, level: Level = Level.PTE, *, what: str = "", split: bool = False
    ) -> tuple[Range, ...]:
        """Map a per-CPU variable of every possible CPU. variable: its address in the image. Raise as map does."""
        with self.table.all_or_nothing():
            mapped = tuple(
                self.map(start, size, level, what=f"{what} of cpu {cpu}".lstrip(), split=split)
                for cpu, start in enumerate(self._percpu_starts(variable))
            )
            self._percpu.add(variable)
            self.table.on_undo(partial(self._percpu.discard, variable))
        return mapped

    def unmap_percpu(self, variable: int) -> None:
        """Take away a per-CPU variable of every possible CPU. Raise MappingRefused, EINVAL, if it was not mapped."""
        if variable not in self._percpu:
            raise self._refused(
                "EINVAL",
                variable,
                "no per-CPU variable of this address is mapped",
                allowed="one that map_percpu mapped",
                hint="See the ranges of this space; a CPU's own copy is no variable.",
            )
        with self.table.all_or_nothing():
            self._percpu.discard(variable)
            self.table.on_undo(partial(self._percpu.add, variable))
            for start in self._percpu_starts(variable):
                self.unmap(start)

    def map_module(self, module: str, start: int, size: int) -> Range:
        """Map a module's core layout, in PTEs: its area is no module's alone. Raise MappingRefused, EBUSY, if it is."""
        if module in self._modules:
            raise self._refused(
                "EBUSY",
                start,
                f"module {module} is mapped at {self._modules[module]:#x}",
                allowed="each module once",
                hint="Unmap it first if it was loaded again.",
            )
        with self.table.all_or_nothing():
            mapped = self.map(start, size, what=f"module {module}")
            self._modules[module] = start
            self.table.on_undo(partial(self._modules.pop, module))
        return mapped

    def unmap_module(self, module: str) -> Range:
        """Take away a module. Raise MappingRefused, EINVAL, if it was not mapped."""
        if module not in self._modules:
            raise self._refused(
                "EINVAL",
                0,
                f"no module {module} is mapped",
                allowed=", ".join(sorted(self._modules)) or "none, for none is mapped",
                hint="Map it with map_module first.",
            )
        with self.table.all_or_nothing():
            start = self._modules.pop(module)
            self.table.on_undo(partial(self._modules.__setitem__, module, start))
            return self.unmap(start)

    def _percpu_starts(self, variable: int) -> list[int]:
        # Offsets are unsigned and wrap: the image of per-CPU variables starts at 0, far from where the copies are.
        return [variable + offset & ADDRESS_END - 1 for offset in self.percpu_offsets]

    # --- parts --------------------------------------------------------------------------------------------

    def _copied(self, wanted: Range, anew: bool = False) -> Range:
        """Copy a range and return it with its cover. anew: it has been mapped before, so nothing of it may be left."""
        start, end = wanted.start, wanted.end
        copied = self.table.copy(self.host, start, end, wanted.level, split=wanted.split, replace=True)
        if not copied and not anew:
            raise self._refused(
                "EFAULT",
                start,
                f"{self.host.name} maps none of {wanted}",
                allowed="memory that the host has mapped",
                hint="An access there faults with the full address space too.",
            )
        cover: Interval = self.host.cover(start, end, wanted.level, wanted.split)
        return wanted._replace(cover=cover)

    def _copy_part(self, other: Range, cleared: Interval) -> None:
        """Copy again what a range covers of an interval. The host may have larger entries there than it had."""
        part = max(other.cover[0], cleared[0]), min(other.cover[1], cleared[1])
        self.table.copy(self.host, *part, other.level, split=other.split, replace=True)
        cover = self.host.cover(*part, other.level, other.split)
        hull = min(cover[0], other.cover[0]), max(cover[1], other.cover[1])
        if hull != other.cover:
            self._remove(other)
            self._add(other._replace(cover=hull))

    def _add(self, added: Range) -> None:
        self._ranges.add(added)
        self.table.on_undo(partial(self._ranges.remove, added))

    def _remove(self, removed: Range) -> None:
        self._ranges.remove(removed)
        self.table.on_undo(partial(self._ranges.add, removed))

    def _known(self, start: int) -> Range:
        known = self._ranges.get(start)
        if known:
            return known
        near = ", ".join(str(seen) for seen in self.at(start)[:1])
        raise self._refused(
            "EINVAL",
            start,
            "no range starts here",
            allowed=f"the start of a range, e.g. {near}" if near else "the start of a range that was mapped",
            hint="See the ranges of this space.",
        )

    def _refused(self, errno: str, start: int, what: str, *, allowed: str, hint: str) -> MappingRefused:
        return MappingRefused(
            errno,
            what,
            where=f"{self.name}, {start:#x}",
            state=f"{len(self._ranges)} ranges are mapped",
            allowed=allowed,
            hint=hint,
        )
