"""Guest time: for what share of the time that a run served guests its vCPUs ran guest instructions.

A recorded stay in GUEST spans the visits to ISOLATED of the fast exits in it: the journal has how long their handlers
took, not each visit. That time is taken off. The handler of a fast exit that a kick cut in two is taken off as a whole,
although its second part was recorded as ISOLATED: guest time is too little by that much, never too much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asid.audit.history import History
from asid.audit.intervals import Interval


def guest_time(history: History, stays: Mapping[int, Sequence[Interval]]) -> dict[str, Any]:
    """Return served_ns, guest_ns (of all vCPUs together) and guest_percent; zeros where nobody ran.

    stays: by core, those of every hyperthread in HOST, ISOLATED and GUEST. Time is served from the begin of the first
    of them to the end of the last: neither the start of the processes nor their end is part of it.
    """
    certain = [(core, stay) for core, rows in stays.items() for stay in rows if not stay.suspect]
    in_guest = [(core, stay) for core, stay in certain if stay.mode == "GUEST"]
    served_ns = (max(stay.end for _, stay in certain) - min(stay.start for _, stay in certain)) if certain else 0
    vcpus = int(history.begin.get("vcpus", 0)) or len({(core, stay.ht) for core, stay in in_guest})
    guest_ns = max(0, sum(stay.end - stay.start for _, stay in in_guest) - history.counts.fast_ns)
    whole_ns = served_ns * vcpus
    return {
        "served_ns": served_ns,
        "guest_ns": guest_ns,
        "guest_percent": round(100.0 * guest_ns / whole_ns, 2) if whole_ns else 0.0,
    }
