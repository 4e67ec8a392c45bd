"""What real guests themselves say of G2: their own count of the turns of their loop, read by whoever was in HOST.

It is an oracle beside the intervals: no report of a hyperthread has a part in it. See the record `standstill`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from asid.audit.finding import Finding, name_of
from asid.audit.regime import Regime
from asid.core.record import Record


class StoodRow(NamedTuple):
    """One record `standstill`."""

    ts: int
    seq: int
    core: int
    ht: int
    via: str
    visits: int
    moved: int
    turns: int


def stood_row(record: Record) -> StoodRow:
    """Return a record as a row."""
    return StoodRow(record.ts, record.seq, record.core, record.ht, **record.data)


def stood_still(finding: Finding, rows: list[StoodRow], regime_at: Callable[[int], Regime]) -> None:
    """Violate G2 for each record of visits that promise that no guest moves, in which one did.

    regime_at(ts): the policy in force at a moment.
    """
    for row in rows:
        regime = regime_at(row.ts)
        if row.moved and not regime.exposes(row.via):
            text = (
                f"the guests beside {name_of(row.core, row.ht)} moved on by {row.turns:,} turns in {row.moved:,} of its"
                f" {row.visits:,} visits to HOST by {row.via}, by their own count"
            )
            allowed_by = "" if regime.keeps_apart(row.via) else regime.policy
            finding.violate(row.ts, row.core, (row.ht,), (row.seq,), text, allowed_by=allowed_by)


def stood_beside(
    finding: Finding, rows: list[StoodRow], regime_at: Callable[[int], Regime], exposed: Iterable[tuple[int, int, str]]
) -> None:
    """Violate G2 where guests moved beside more visits to HOST than the intervals have exposure for.

    exposed: (core, hyperthread, how HOST was reached) of each visit that a guest was beside, by the intervals.
    """
    left = Counter(exposed)
    for row in rows:
        if not row.moved or not regime_at(row.ts).exposes(row.via):
            continue
        key = (row.core, row.ht, row.via)
        if row.moved > left[key]:
            text = (
                f"the guests beside {name_of(row.core, row.ht)} moved on in {row.moved:,} of its {row.visits:,} visits"
                f" to HOST by {row.via}, by their own count; the intervals have {left[key]:,} with a guest beside it"
            )
            finding.violate(row.ts, row.core, (row.ht,), (row.seq,), text)
        left[key] = max(0, left[key] - row.moved)


def figures(rows: list[StoodRow]) -> dict[str, Any]:
    """Return the sums by how HOST was reached; nothing for a run without real guests."""
    sums: dict[str, dict[str, int]] = {}
    for row in rows:
        of = sums.setdefault(row.via, {"visits": 0, "moved": 0, "turns": 0})
        of["visits"] += row.visits
        of["moved"] += row.moved
        of["turns"] += row.turns
    return {"standstill": sums} if sums else {}
