"""An assessment as people and programs read it: the table, what the kicks are for, and what was assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from asid.assessing import Assessed, Cause, Workload, ratios
from asid.mm.objects import OBJECT
from asid.mm.secrets import is_secret
from asid.report.repeats import rows_of
from asid.report.variants import Variant
from asid.sensitivity import Swing
from asid.units import format_ns

HEADINGS: Final = (
    "POLICY", "EXITS/S", "GUEST", "KICKS/S", "FULL", "GATE P50", "GATE P99", "EXPOSED", "MAX", "LEAKS", "VS NONE"
)  # fmt: skip
TOLD: Final = 0.9  # of the kicks: what makes the rest is summed up
BAR: Final = 24

Columns = Callable[..., str]


def rows_of_all(found: Assessed, chosen: Sequence[Variant], seed: int) -> list[dict[str, Any]]:
    """Return a row a variant, as plain values: of its typical runs, and the ratio to none over all of its runs."""
    typical = [sample for sample in found.samples if sample.repeat == 1]
    rows = rows_of(typical, seed)
    for row, variant in zip(rows, chosen, strict=True):
        own = next(sample for sample in typical if sample.variant == variant)
        spread = ratios(found.samples, variant)
        row["vs_none"] = {"ratio": spread[0], "low": min(spread), "high": max(spread)} if spread else None
        row["gate_wait_p50_ns"] = own.document["figures"]["gate_waits"]["p50_ns"]
        row["leaves_for"] = [cause._asdict() for cause in found.causes[variant.label]]
    return rows


def assessed_lines(
    rows: Sequence[dict[str, Any]], about: str, causes: Sequence[Cause], work: Workload, moved: Sequence[Swing],
    columns: Columns,
) -> list[str]:  # fmt: skip
    """Return the whole answer. about: label of the variant whose kicks are told of. columns: of commands.session."""
    cells = [_cells(row) for row in rows]
    lines = [
        columns(HEADINGS, cells, right=tuple(range(1, 9))),
        "",
        "vs none: exits/s over those of none; [least, most] over seeds and low, typical and high costs.",
        "",
        *paragraph(about, causes),
    ]
    lines += ["", "Assumed:", *(f"  {word}" for word in work.words)] if work.words else []
    if moved:
        lines += ["", f"How far {about} vs none moves with each assumption:", columns(*_tornado(moved))]
    return lines


def paragraph(about: str, causes: Sequence[Cause]) -> list[str]:
    """Return in words what the kicks of a policy are for, and what would save them."""
    kicks = sum(cause.kicks_hz for cause in causes)
    leaves = sum(cause.leaves_hz for cause in causes)
    if not leaves:
        return [f"{about}: nobody left the isolated address space."]
    lines = [f"{about}: {leaves:,.0f} leaves/s and {kicks:,.0f} kicks/s."]
    told = 0.0
    for number, cause in enumerate(causes):
        if kicks and told >= TOLD * kicks:
            lines.append(f"  {len(causes) - number} further kinds make the rest.")
            break
        told += cause.kicks_hz
        share = (
            f"{cause.kicks_hz / kicks:.0%} of the kicks" if kicks else f"{cause.leaves_hz / leaves:.0%} of the leaves"
        )
        lines.append(f"  {cause.reason}: {share}: {_why(cause)}")
    return lines


def _why(cause: Cause) -> str:
    if not cause.object:
        return "full whatever is mapped"
    whose = OBJECT[cause.object].sensitivity
    if is_secret(whose):
        return f"misses {cause.object} ({whose.value}): to map it would expose it"
    return f"misses {cause.object} ({whose.value}): mapped, it would be fast (asid space learn)"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def lasts(ns: int) -> str:
        return format_ns(ns) if ns else "-"

    ratio, leaks, exposure = row["vs_none"], row["leaks"], row["exposure"]
    return (
        row["label"],
        f"{row['exits_per_s']:,.0f}",
        "-" if row["guest_percent"] is None else f"{row['guest_percent']:.1f} %",
        f"{row['kicks_per_s']:,.0f}",
        f"{row['full_percent']:.1f} %",
        lasts(row["gate_wait_p50_ns"]),
        lasts(row["gate_wait_p99_ns"]),
        f"{exposure['count']:,} x" if exposure["count"] else "-",
        lasts(exposure["max_ns"]),
        "-" if leaks is None else f"{leaks['concurrent']:,} / {leaks['residual']:,}",
        "-" if ratio is None else f"{ratio['ratio']:.3f}x [{ratio['low']:.3f}, {ratio['high']:.3f}]",
    )


def _tornado(moved: Sequence[Swing]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    widest = max(swing.width for swing in moved) or 1.0
    rows: list[tuple[str, ...]] = [
        (
            swing.what,
            swing.words[0],
            f"{swing.low:.3f}x",
            swing.words[1],
            f"{swing.high:.3f}x",
            "█" * round(BAR * swing.width / widest),
        )
        for swing in moved
    ]
    return ("ASSUMPTION", "WITH", "", "AND WITH", "", "SWING"), rows
