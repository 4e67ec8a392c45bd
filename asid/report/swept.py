"""What a sweep says at its end: a row a policy and kick, of medians over its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_UNKNOWN, gravest
from asid.units import format_ns

HEADINGS: Final = (
    "policy", "kick", "runs", "exits/s", "guest", "kicks/s", "full%", "leaves", "gate p50", "p99", "exposed",
    "leaks", "verdict",
)  # fmt: skip
RIGHT: Final = tuple(range(2, 12))
MEDIANS: Final = (
    "exits_per_s", "guest_percent", "kicks_per_s", "full_percent", "leaves", "gate_wait_p50_ns", "gate_wait_p99_ns",
    "exposure_count",
)  # fmt: skip


def medians_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a policy and kick, in the order in which they come: medians of what was played, sums of leaks."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["policy.name"], row["policy.kick"]), []).append(row)
    return [_medians(policy, kick, own) for (policy, kick), own in groups.items()]


def _medians(policy: str, kick: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    played = [row for row in rows if row["status"] == "done"]
    statuses = Counter(row["status"] for row in rows)
    found: dict[str, Any] = {"policy": policy, "kick": kick, "runs": len(played)}
    for name in MEDIANS:
        values = [row[name] for row in played if row[name] is not None]
        found[name] = median(values) if values else None
    for name in ("leaks_concurrent", "leaks_residual"):
        found[name] = sum(row[name] or 0 for row in played)
    found["verdicts"] = dict(sorted(Counter(row["verdict"] for row in played).items()))
    found["broken"] = sorted({name for row in played for name in row["broken"].split(",") if name})
    found["kept"] = all(row["kept"] for row in played)
    return {**found, "refused": statuses["refused"], "faults": statuses["fault"]}


def table_of(medians: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the table, for HEADINGS. medians: of `medians_of`."""
    return [_cells(row) for row in medians]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if not row["runs"]:
        return (row["policy"], row["kick"], "0", *["-"] * 9, _verdict(row))

    def share(percent: float | None) -> str:
        return "-" if percent is None else f"{percent:.1f} %"

    return (
        row["policy"],
        row["kick"],
        f"{row['runs']:,}",
        f"{row['exits_per_s']:,.0f}",
        share(row["guest_percent"]),
        f"{row['kicks_per_s']:,.0f}",
        share(row["full_percent"]),
        f"{row['leaves']:,.0f}",
        format_ns(row["gate_wait_p50_ns"]),
        format_ns(row["gate_wait_p99_ns"]),
        f"{row['exposure_count']:,.0f}",
        f"{row['leaks_concurrent']:,} / {row['leaks_residual']:,}",
        _verdict(row),
    )


def _verdict(row: Mapping[str, Any]) -> str:
    words = [f"{word} {times}" if len(row["verdicts"]) > 1 else word for word, times in row["verdicts"].items()]
    words += [f"{row[what]} {what}" for what in ("faults", "refused") if row[what]]
    text = ", ".join(words)
    if row["verdicts"].get("FAIL"):
        text += " *" if row["kept"] else f": {', '.join(row['broken'])}"
    return text


def notes_of(medians: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the table's columns and marks mean."""
    notes = ["Medians over the runs; leaks are sums, concurrent / residual."]
    if any(row["verdicts"].get("FAIL") and row["kept"] for row in medians):
        notes.append("* A negative control: what is broken was never promised.")
    return notes


def exit_code_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return 1 when a run broke a promise or ended by a fault, 3 when one is UNKNOWN, else 0."""
    codes = {EXIT_OK}
    for row in rows:
        if row["status"] == "fault" or row["kept"] is False:
            codes.add(EXIT_FAIL)
        elif row["verdict"] == "UNKNOWN":
            codes.add(EXIT_UNKNOWN)
    return gravest(list(codes))
