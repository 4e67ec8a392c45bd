"""Intervals: who was in which mode from when to when, and which two siblings should not have been.

A hyperthread's interval begins at the stamp of its ht.mode and ends at its next one, or at its confirmed death. The
stamps are causal: a hyperthread stamps what it left before it tells anybody, and what it enters after it was told.
So two intervals that overlap did overlap.

Killed hyperthreads
    Whoever is killed takes its last unsent records along, so its last interval may reach too far. If the gate heard
    from it that it had left that mode, the interval ends there, and the rest until the death is kept as `suspect`:
    counted apart, never called a violation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

from asid.audit.history import CoreHistory, History
from asid.audit.rows import GateRow

# What the coordinator heard that proves that a hyperthread is no longer in this mode.
LEFT_BY = {
    "GUEST": frozenset({"gate.answer", "gate.leave", "gate.done", "gate.ask", "gate.idle", "gate.bye"}),
    "ISOLATED": frozenset({"gate.answer", "gate.done", "gate.ask", "gate.idle", "gate.bye"}),
    "HOST": frozenset({"gate.done", "gate.ask", "gate.admit", "gate.idle", "gate.bye"}),
}
FOR_EVER = 1 << 63
LEASE_ENDS = frozenset({"gate.grant", "gate.answer", "gate.dead", "gate.leave"})


class Interval(NamedTuple):
    """One stay in a mode, [start, end) in ns. seq: of the ht.mode that began it. suspect: only perhaps."""

    start: int
    end: int
    mode: str
    vm: int
    via: str
    ht: int
    seq: int
    suspect: bool


class Lease(NamedTuple):
    """From a gate.admit until the gate took note of its end, both included."""

    start: int
    end: int
    round: int
    inc: int
    vm: int
    seq: int
    number: int  # of the request that it answers


class Clash(NamedTuple):
    """Two siblings in modes that must not be side by side. `first` began no later than `second`."""

    start: int
    ns: int
    first: Interval
    second: Interval


def mode_intervals(history: History, core: CoreHistory, ht: int) -> list[Interval]:
    """Return the stays of one hyperthread in HOST, ISOLATED and GUEST, in order, without empty ones."""
    rows = core.modes.get(ht, [])
    deaths = core.deaths.get(ht, [])
    ends = sorted(
        [(row.ts, row.inc + 1) for row in deaths] + [(row.ts, row.inc) for row in core.spawns.get(ht, [])]
    )  # (when, first incarnation that is not ended by it)
    heard = core.gate_of.get(ht, []) if deaths or not history.complete else []
    heard_ts = [row.ts for row in heard]
    out: list[Interval] = []
    past, coming = -1, -1  # the birth or death before a row and the one from its stamp on, while they are the same
    for at, row in enumerate(rows):
        start, mode = row.ts, row.new
        if mode not in LEFT_BY:
            continue
        own_end = at + 1 < len(rows)
        if own_end:
            end = rows[at + 1].ts
            if not past < start <= coming:
                next_ = bisect_left(ends, (start, 0))
                past = ends[next_ - 1][0] if next_ else -1
                coming = ends[next_][0] if next_ < len(ends) else FOR_EVER
            if end <= coming:  # it ended by itself
                if end > start:
                    out.append(Interval(start, end, mode, row.vm, row.via, ht, row.seq, False))
                continue
        else:
            end = history.end_ts if history.complete else core.last_ts[ht]
        for ts, inc in ends[bisect_left(ends, (row.ts, 0)) :] if ends else ():
            if own_end and ts >= end:
                break
            if inc > row.inc:
                end, own_end = ts, False
                break
        certain = end
        if not own_end:
            for known in heard[bisect_left(heard_ts, row.ts) :]:
                if known.ts >= end:
                    break
                if known.kind in LEFT_BY[row.new]:
                    certain = known.ts
                    break
        if certain > row.ts:
            out.append(Interval(row.ts, certain, row.new, row.vm, row.via, ht, row.seq, False))
        if end > certain:
            out.append(Interval(certain, end, row.new, row.vm, row.via, ht, row.seq, True))
    return out


def leases(core: CoreHistory, end_ts: int) -> dict[int, list[Lease]]:
    """Return the leases of each hyperthread, as the gate's records tell them."""
    out: dict[int, list[Lease]] = {}
    open_: dict[int, Lease] = {}
    for row in core.gate:
        if row.kind == "gate.admit":
            lease = Lease(row.ts, end_ts, row.round, row.inc, row.vm, row.seq, row.number)
            _close(out, open_, row.ht, row.ts)
            open_[row.ht] = lease
        elif row.kind in LEASE_ENDS or (row.kind == "gate.ask" and _is_anew(row, open_.get(row.ht))):
            _close(out, open_, row.ht, row.ts)
    for ht in list(open_):
        _close(out, open_, ht, end_ts)
    return out


def _is_anew(ask: GateRow, lease: Lease | None) -> bool:
    """Whether an ask gives a lease up. A repetition of the one that the lease answers had only crossed it."""
    return lease is not None and ask.number != lease.number


def _close(out: dict[int, list[Lease]], open_: dict[int, Lease], ht: int, ts: int) -> None:
    lease = open_.pop(ht, None)
    if lease is not None:
        start, _, *rest = lease
        out.setdefault(ht, []).append(Lease(start, ts, *rest))


def is_alive(core: CoreHistory, ht: int, ts: int) -> bool:
    """Tell whether a hyperthread was surely alive at a moment: started before it, and not dead until after it."""
    born = max((row.inc for row in core.spawns.get(ht, ()) if row.ts <= ts), default=0)
    return born > 0 and not any(row.inc >= born and row.ts <= ts for row in core.deaths.get(ht, ()))


def compatible(a: Interval, b: Interval) -> bool:
    """Say whether two siblings may be in these modes side by side; symmetric. The matrix of the modes, in full.

    PARKED and OFFLINE go with everything, HOST with ISOLATED and HOST, ISOLATED with ISOLATED of any VM.
    GUEST(x) goes with ISOLATED(x) and GUEST(x) only.
    """
    if a.mode == "GUEST":
        guest, other = a, b
    elif b.mode == "GUEST":
        guest, other = b, a
    else:
        return True
    if other.mode == "HOST":
        return False
    return other.mode not in ("GUEST", "ISOLATED") or other.vm == guest.vm


def clashes(intervals: list[Interval]) -> Iterator[Clash]:
    """Yield every overlap of two incompatible intervals of different hyperthreads of one core, by start.

    One slot a hyperthread holds its interval of the moment, so n siblings cost n comparisons an interval.
    """
    slots: dict[int, Interval] = {}
    for new in sorted(intervals, key=itemgetter(0)):
        slots.pop(new.ht, None)
        for old in slots.values():
            if old.end > new.start and not compatible(old, new):
                yield Clash(new.start, min(old.end, new.end) - new.start, old, new)
        slots[new.ht] = new
