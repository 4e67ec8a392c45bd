"""Guest time: for what share of the time that a run served guests its vCPUs ran guest instructions.

A recorded stay in GUEST spans the visits to ISOLATED of the fast exits in it: the journal has how long their handlers
took, not each visit. That time is taken off. The handler of a fast exit that a kick cut in two is taken off as a whole,
although its second part was recorded as ISOLATED: guest time is too little by that much, never too much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asid.audit.history import History
from asid.audit.intervals import Interval


class Served(NamedTuple):
    """The time in which a run served guests: [start, end) in ns, by so many vCPUs."""

    start: int
    end: int
    vcpus: int

    def percent(self, ns: int) -> float:
        """Return what part of the time of all vCPUs this is; 0 where none was served."""
        whole_ns = (self.end - self.start) * self.vcpus
        return round(100.0 * ns / whole_ns, 2) if whole_ns else 0.0


def served_of(history: History, stays: Mapping[int, Sequence[Interval]]) -> Served:
    """Return the time served. stays: by core, those of every hyperthread in HOST, ISOLATED and GUEST.

    From the begin of the first of them to the end of the last: neither the start of the processes nor their end is
    part of it.
    """
    vcpus = int(history.begin.get("vcpus", 0))
    if not vcpus:
        vcpus = len({(core, stay.ht) for core, rows in stays.items() for stay in rows
                     if stay.mode == "GUEST" and not stay.suspect})  # fmt: skip
    starts = [stay[0] for rows in stays.values() for stay in rows if not stay.suspect]
    if not starts:
        return Served(0, 0, vcpus)
    return Served(min(starts), max(stay[1] for rows in stays.values() for stay in rows if not stay.suspect), vcpus)


def guest_time(history: History, stays: Mapping[int, Sequence[Interval]], served: Served) -> dict[str, Any]:
    """Return served_ns, guest_ns (of all vCPUs together) and guest_percent; zeros where nobody ran."""
    in_guest_ns = sum(
        stay.end - stay.start for rows in stays.values() for stay in rows if stay.mode == "GUEST" and not stay.suspect
    )
    guest_ns = max(0, in_guest_ns - history.counts.fast_ns)
    return {
        "served_ns": served.end - served.start,
        "guest_ns": guest_ns,
        "guest_percent": served.percent(guest_ns),
    }
