"""Runs side by side: the same load under several policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asid.units import format_ns

HEADINGS = (
    "policy",
    "exits/s",
    "full",
    "kicks/s",
    "gate p50",
    "gate p99",
    "exposed",
    "max",
    "G2 broken",
    "verdict",
)


def compare_row(document: Mapping[str, Any], label: str = "") -> dict[str, Any]:
    """Return what is compared, as plain numbers. document: as in verdict.json."""
    figures, exposure = document.get("figures", {}), document.get("exposure", {})
    waits = figures.get("gate_waits", {})
    return {
        "policy": label or str(document.get("run", {}).get("policy", "?")),
        "exits_per_s": figures.get("exits_per_s", 0.0),
        "full_percent": figures.get("full_percent", 0.0),
        "kicks_per_s": figures.get("kicks_per_s", 0.0),
        "gate_wait_p50_ns": waits.get("p50_ns", 0),
        "gate_wait_p99_ns": waits.get("p99_ns", 0),
        "exposure_count": exposure.get("count", 0),
        "exposure_max_ns": exposure.get("max_ns", 0),
        "g2_violations": document.get("guarantees", {}).get("G2", {}).get("broken", 0),
        "verdict": document.get("verdict", "UNKNOWN"),
    }


def compare_lines(documents: Sequence[Mapping[str, Any]], labels: Sequence[str] = ()) -> list[str]:
    """Return a table with a line a run, in the order given; labels replace the policies' names."""
    assert not labels or len(labels) == len(documents)
    rows = [compare_row(document, labels[at] if labels else "") for at, document in enumerate(documents)]
    table = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADINGS))]
    out = []
    for line in table:
        cells = [
            cell.ljust(width) if column in (0, len(HEADINGS) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return out


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def waited(ns: int) -> str:
        return format_ns(ns) if ns else "-"

    return (
        row["policy"],
        f"{row['exits_per_s']:,.0f}",
        f"{row['full_percent']:.1f} %",
        f"{row['kicks_per_s']:,.0f}",
        waited(row["gate_wait_p50_ns"]),
        waited(row["gate_wait_p99_ns"]),
        f"{row['exposure_count']:,} x",
        waited(row["exposure_max_ns"]),
        f"{row['g2_violations']:,}",
        row["verdict"],
    )
