"""G10: the rendezvous of the handlers of machine checks that reached all siblings, from their records."""

from __future__ import annotations

from typing import Final

from asid.audit.finding import Finding, name_of
from asid.audit.history import CoreHistory, History
from asid.audit.rows import IntrRow

LATE_NS: Final = 3_000_000_000  # beyond its time-out a wait may last so long, on a host that is short of CPU
TIMEOUT_MAX_NS: Final = 1_000_000_000  # that can be configured; for a run that does not say
# A failed core may still see somebody go GUEST who had looked before; no instruction runs, and it ends at once.
FAILED_NS: Final = 1_000_000_000


def meetings(finding: Finding, history: History) -> None:
    """Add what G10 says of them. Reads: intr, death, ht.mode, run.begin (mce_timeout_ns). Broken by: a wait beyond the
    time-out, two monarchs or none, two of the same order, a guest on a core whose machine check was fatal.

    Where a hyperthread of the core died meanwhile, its order goes to another, and a monarch may have no successor.
    """
    longest_ns = history.begin.get("mce_timeout_ns", TIMEOUT_MAX_NS) + LATE_NS
    for number, core in history.cores.items():
        rows = sorted(
            ((row, ht) for ht, intrs in core.intrs.items() for row in intrs if row.what == "mce"),
            key=lambda found: found[0].seq,
        )
        by_broadcast: dict[int, list[tuple[IntrRow, int]]] = {}
        for row, ht in rows:
            if not row.broadcast:
                continue
            finding.checked += 1
            by_broadcast.setdefault(row.broadcast, []).append((row, ht))
            if row.wait_ns > longest_ns:
                text = f"{name_of(number, ht)} waited {row.wait_ns / 1e9:.1f} s in machine check {row.broadcast}"
                finding.violate(row.ts, number, (ht,), (row.seq,), text)
        for broadcast, met in by_broadcast.items():
            _one(finding, history, number, broadcast, met)
        _failed(finding, number, core, rows)


def _one(finding: Finding, history: History, number: int, broadcast: int, met: list[tuple[IntrRow, int]]) -> None:
    begin, end = min(row.ts - row.wait_ns for row, _ in met), max(row.ts for row, _ in met)
    deaths = [death.ts for rows in history.core(number).deaths.values() for death in rows]
    if any(begin - LATE_NS <= ts <= end + LATE_NS for ts in deaths):  # the word for it comes late
        return
    what = f"machine check {broadcast} of core {number}"
    hts = tuple(sorted({ht for _, ht in met}))
    monarchs = [row for row, _ in met if row.role == "monarch"]
    orders = [row.order for row, _ in met]
    seqs = tuple(row.seq for row, _ in met)
    if len(monarchs) > 1:
        finding.violate(monarchs[1].ts, number, hts, tuple(row.seq for row in monarchs), f"{what} had two monarchs")
    elif not monarchs and history.complete:
        finding.violate(end, number, hts, seqs, f"{what} had no monarch")
    elif len(set(orders)) < len(orders):
        finding.violate(end, number, hts, seqs, f"{what} had two of the same order of arrival")


def _failed(finding: Finding, number: int, core: CoreHistory, rows: list[tuple[IntrRow, int]]) -> None:
    fatal = [row for row, _ in rows if row.severity == "fatal"]
    if not fatal:
        return
    since = min(fatal, key=lambda row: row.ts)
    for ht, modes in core.modes.items():
        for mode in modes:
            if mode.new == "GUEST" and mode.ts > since.ts + FAILED_NS:
                text = f"{name_of(number, ht)} went GUEST on a core that had failed"
                finding.violate(mode.ts, number, (ht,), (since.seq, mode.seq), text)
