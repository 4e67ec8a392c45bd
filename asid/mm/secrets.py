"""What a VM's table lets its vCPUs reach that is not theirs: host secrets, data of others, other VMs' memory.

Rule 1. Every byte that the table maps is somebody's: of the smallest object that it lies in, else of its area.
Rule 2. Secret to a VM is what the host keeps (secret, mixed), and what is another VM's. Its guest's memory is its own.
Rule 3. Each exposure names the range that was mapped and so exposes it, and how much of it nobody asked for.

Of several ranges that map the same bytes the one of the highest level is named.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import pairwise
from typing import Final, NamedTuple

from asid.mm.entry import ADDRESS_END
from asid.mm.host import Host, Placed
from asid.mm.isolated import Isolated, object_of
from asid.mm.layout import FREE, MIXED, OWN, SECRET, Sensitivity
from asid.mm.ranges import Interval, Range, union

ANOTHER: Final = "another VM's"


class Owned(NamedTuple):
    """A stretch of addresses and whose it is, as one VM sees it. whose: a word of Sensitivity, or ANOTHER."""

    start: int
    end: int
    name: str
    whose: str

    @property
    def secret(self) -> bool:
        """True when the VM must not reach it."""
        return self.whose in (SECRET.value, MIXED.value, ANOTHER)


class Exposure(NamedTuple):
    """Bytes that a VM reaches and must not. by: the range that maps them, None if none covers them. slack: of `size`,
    bytes that no range asks for."""

    start: int
    end: int
    name: str
    whose: str
    by: Range | None
    slack: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Exposed(NamedTuple):
    """Exposures of one thing by the ranges of one name, together. at: the first of them."""

    name: str
    whose: str
    by: str
    size: int
    slack: int
    at: int


class Ownership:
    """Whose each address of a host is, as VM `vm` (from 1) sees it."""

    def __init__(self, host: Host, vm: int) -> None:
        self._stretches: Final = _flat(host, vm)
        self._starts: Final = [stretch.start for stretch in self._stretches]

    def of(self, start: int, end: int) -> Iterator[Owned]:
        """Yield whose [start, end) is, cut to it. What no area has is left out: nothing is mapped there."""
        place = max(0, bisect_right(self._starts, start) - 1)
        while place < len(self._stretches) and self._stretches[place].start < end:
            owned = self._stretches[place]
            if owned.end > start:
                yield owned._replace(start=max(start, owned.start), end=min(end, owned.end))
            place += 1


def exposures(isolated: Isolated) -> tuple[Exposure, ...]:
    """Return what a VM's table exposes, in order of address, each piece of one thing by one range."""
    asked = union((seen.start, seen.end) for seen in isolated.space.ranges())
    starts = [start for start, _ in asked]
    return tuple(
        Exposure(start, end, owned.name, owned.whose, by, end - start - _overlap(start, end, asked, starts))
        for owned in _secret(isolated, Ownership(isolated.host, isolated.vm))
        for start, end, by in _by_range(isolated, owned.start, owned.end)
    )


def secret_bytes(isolated: Isolated, ownership: Ownership) -> int:
    """Return how many bytes a VM's table exposes. ownership: of its host and VM, and good until something moves."""
    return sum(owned.end - owned.start for owned in _secret(isolated, ownership))


def together(exposed: tuple[Exposure, ...]) -> tuple[Exposed, ...]:
    """Return exposures by thing and mapping, the gravest and largest first."""
    sums: dict[tuple[str, str, str], Exposed] = {}
    for seen in exposed:
        by = object_of(seen.by) if seen.by else ""
        key = seen.name, seen.whose, by
        old = sums.get(key, Exposed(*key, 0, 0, seen.start))
        sums[key] = old._replace(size=old.size + seen.size, slack=old.slack + seen.slack)
    order = {SECRET.value: 0, ANOTHER: 1, MIXED.value: 2}
    return tuple(sorted(sums.values(), key=lambda seen: (order[seen.whose], -seen.size, seen.at)))


def is_secret(sensitivity: Sensitivity) -> bool:
    """Say whether an object of the host is one that a VM must not reach."""
    return sensitivity not in (FREE, OWN)


def _secret(isolated: Isolated, ownership: Ownership) -> Iterator[Owned]:
    for run in isolated.space.table.runs(flags=0):
        for owned in ownership.of(run.start, run.end):
            if owned.secret:
                yield owned


def _overlap(start: int, end: int, intervals: list[Interval], starts: list[int]) -> int:
    """Return how many bytes of [start, end) are in intervals that do not touch. starts: theirs."""
    place = max(0, bisect_right(starts, start) - 1)
    found = 0
    while place < len(intervals) and intervals[place][0] < end:
        found += max(0, min(end, intervals[place][1]) - max(start, intervals[place][0]))
        place += 1
    return found


def _by_range(isolated: Isolated, start: int, end: int) -> Iterator[tuple[int, int, Range | None]]:
    """Cut [start, end) where the range that maps it changes."""
    ranges = isolated.space.overlapping(start, end)
    cuts = sorted({start, end, *(cut for seen in ranges for cut in seen.cover if start < cut < end)})
    for low, high in pairwise(cuts):
        yield low, high, next((seen for seen in ranges if seen.cover[0] <= low and high <= seen.cover[1]), None)


def _flat(host: Host, vm: int) -> list[Owned]:
    """Return stretches in order that do not overlap: of those that lie over each other, the smallest counts."""
    waiting = sorted(_all(host, vm), key=lambda owned: owned.start)
    edges = sorted({edge for owned in waiting for edge in (owned.start, owned.end)})
    flat: list[Owned] = []
    over: list[tuple[int, int, Owned]] = []
    place = 0
    for low, high in pairwise(edges):
        while place < len(waiting) and waiting[place].start <= low:
            heappush(over, (waiting[place].end - waiting[place].start, place, waiting[place]))
            place += 1
        while over and over[0][2].end <= low:
            heappop(over)
        if not over:
            continue
        top = over[0][2]
        last = flat[-1] if flat else None
        if last and last.end == low and (last.name, last.whose) == (top.name, top.whose):
            flat[-1] = last._replace(end=high)
        else:
            flat.append(Owned(low, high, top.name, top.whose))
    return flat


def _all(host: Host, vm: int) -> Iterator[Owned]:
    for area in host.layout.areas:
        yield Owned(area.start, min(area.end, ADDRESS_END), area.name, area.sensitivity.value)
    for number, shape in enumerate(host.vms, start=1):
        start, end = host.user_memory(number)
        whose = OWN.value if number == vm else ANOTHER
        yield Owned(start, end, f"memory of {shape.name}", whose)
    for place in host.placed():
        if place.object.name not in ("kernel image", "percpu first chunk"):
            yield Owned(place.start, place.end, place.object.name, _whose(place, vm))


def _whose(place: Placed, vm: int) -> str:
    if place.vm and place.vm != vm and place.object.sensitivity is not FREE:
        return ANOTHER
    return place.object.sensitivity.value
