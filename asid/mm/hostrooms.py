"""How a host gives out addresses: vmalloc, whole pages, and slabs in which neighbours share pages, across VMs too.

Rule 1. Addresses are given out in order, and what was given back first.
Rule 2. Slabs are by type for a task's structures, and by size for the rest, packed as SLUB does. What is larger than a
        page has pages of its own, a power of two of them.
"""

from __future__ import annotations

from typing import Final

from asid.errors import ConfigError
from asid.mm.entry import PAGE, ceil_to

_SLAB_BYTES: Final = 8 * PAGE
_PER_SLAB_MIN: Final = 4
# Caches of one type each; all else is kmalloc's.
_CACHES: Final = {
    "task_struct": "task_struct",
    "other task": "task_struct",
    "mm_struct": "mm_struct",
    "signals": "signal",
}
_KMALLOC: Final = (64, 96, 128, 192, 256, 512, 1024, 2048, 4096)


class Room:
    """Addresses that are given out in order, and again when they were given back."""

    def __init__(self, start: int, end: int, what: str) -> None:
        self._next, self._end, self._what = start, end, what
        self._free: dict[object, list[int]] = {}

    def take(self, size: int, kind: object = None, align: int = PAGE) -> int:
        """Return the start of `size` bytes. kind: what is given back under the same kind is taken first."""
        free = self._free.get(kind)
        if free:
            return free.pop()
        start = ceil_to(self._next, align)
        if start + size > self._end:
            raise ConfigError(
                f"no room for {size} bytes more",
                where=f"host, {self._what}",
                state=f"up to {self._next:#x}",
                allowed=f"as much as ends at {self._end:#x}",
                hint="Make the machine smaller.",
            )
        self._next = start + size
        return start

    def has_free(self, kind: object) -> bool:
        """Say whether something of this kind was given back."""
        return bool(self._free.get(kind))

    def give(self, start: int, kind: object) -> None:
        """Give back what `take` returned."""
        self._free.setdefault(kind, []).append(start)


class LinearMemory:
    """What lies in the direct map: slabs and whole pages, each in a room of addresses."""

    def __init__(self, slabs: Room, pages: Room) -> None:
        self.slabs = slabs
        self.pages = pages

    def take(self, name: str, size: int) -> int:
        """Return where a new object of that name and size is."""
        if size > PAGE and name not in _CACHES:
            return self.pages.take(power_of_two(size), power_of_two(size))
        kind = _slab_of(name, size)
        each = ceil_to(size, 64) if name in _CACHES else next(each for each in _KMALLOC if size <= each)
        whole = max(_SLAB_BYTES, ceil_to(each, PAGE) * _PER_SLAB_MIN)
        if not self.slabs.has_free(kind):
            slab = self.slabs.take(whole)
            for place in reversed(range(whole // each)):
                self.slabs.give(slab + place * each, kind)
        return self.slabs.take(each, kind)

    def give(self, start: int, name: str, size: int) -> None:
        """Give an object's memory back."""
        if size > PAGE and name not in _CACHES:
            self.pages.give(start, power_of_two(size))
        else:
            self.slabs.give(start, _slab_of(name, size))


def power_of_two(size: int) -> int:
    """Return the least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def _slab_of(name: str, size: int) -> object:
    return _CACHES.get(name) or next(each for each in _KMALLOC if size <= each)
