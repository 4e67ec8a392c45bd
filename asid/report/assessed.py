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
NAMED: Final = 4  # objects of one reason
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
        waits = own.document["figures"]["gate_waits"]
        row["gate_waits"] = waits["count"]
        row["gate_wait_p50_ns"] = waits["p50_ns"]
        row["leaves_for"] = [cause._asdict() for cause in found.causes[variant.label]]
    return rows


def assessed_lines(
    rows: Sequence[dict[str, Any]], about: str, found: Assessed, work: Workload, moved: Sequence[Swing],
    columns: Columns,
) -> list[str]:  # fmt: skip
    """Return the whole answer. about: label of the variant whose kicks are told of. columns: of commands.session."""
    cells = [_cells(row, found.vcpus) for row in rows]
    vcpus = f"{found.vcpus} vCPU{'' if found.vcpus == 1 else 's'}"
    lines = [
        columns(HEADINGS, cells, right=tuple(range(1, 9))),
        "",
        f"Each policy: {format_ns(work.duration_ns)} of virtual time; exits and kicks are of {vcpus} together.",
        "Leaks (concurrent / residual) and exposures are counts of that time; gate waits are those to enter guest.",
        "vs none: exits/s over those of none; [least, most] over seeds and low, typical and high costs.",
        "",
        *paragraph(about, found.causes[about]),
    ]
    told = [word.removeprefix("assumed: ") for word in work.words if word.startswith("assumed: ")]
    known = [word for word in work.words if not word.startswith("assumed: ")]
    lines += ["", "Known:", *(f"  {word}" for word in known)] if known else []
    lines += ["", "Assumed:", *(f"  {word}" for word in told)] if told else []
    if moved:
        lines += ["", f"How far {about} vs none moves with each assumption:", columns(*_tornado(moved))]
    return lines


def paragraph(about: str, causes: Sequence[Cause]) -> list[str]:
    """Return in words what the kicks of a policy are for, and what would save them."""
    kicks = sum(cause.kicks_hz for cause in causes)
    leaves = sum(cause.leaves_hz for cause in causes)
    if not leaves:
        return [f"{about}: nobody left the isolated address space."]
    what, whole = ("kicks", kicks) if kicks else ("leaves", leaves)
    lines = [f"{about}: {_rate(leaves)} leaves/s and {_rate(kicks)} kicks/s."]
    told = 0.0
    for number, cause in enumerate(causes):
        if kicks and told >= TOLD * kicks:
            more = len(causes) - number
            lines.append(f"  {more} further kind{' makes' if more == 1 else 's make'} the rest.")
            break
        told += _of(cause, what)
        lines.append(f"  {cause.reason}: {_of(cause, what) / whole:.0%} of the {what}: {_why(cause)}")
    saved = sum(_of(cause, what) for cause in causes if cause.object and not _secrets(cause))
    lines.append(f"  To map what holds no secret would save {saved / whole:.0%} of the {what}.")
    return lines


def _of(cause: Cause, what: str) -> float:
    return cause.kicks_hz if what == "kicks" else cause.leaves_hz


def _rate(hz: float) -> str:
    return f"{hz:,.0f}" if hz >= 10 or not hz else f"{hz:.2g}"


def _secrets(cause: Cause) -> list[str]:
    return [name for name in (cause.object, *cause.others) if is_secret(OBJECT[name].sensitivity)]


def _why(cause: Cause) -> str:
    if not cause.object:
        return "full whatever is mapped"
    named = [f"{name} ({OBJECT[name].sensitivity.value})" for name in (cause.object, *cause.others)]
    text = f"misses {', '.join(named[:NAMED])}{f' and {len(named) - NAMED} more' if len(named) > NAMED else ''}"
    them = "it" if len(named) == 1 else "them"
    if _secrets(cause):
        return f"{text}: to map {them} would expose {them if len(_secrets(cause)) == len(named) else 'secrets'}"
    return f"{text}: mapped, it would be fast (asid space learn)"


def _cells(row: dict[str, Any], vcpus: int) -> tuple[str, ...]:
    def lasts(ns: int) -> str:
        return format_ns(ns) if ns else "-"

    ratio, leaks, exposure = row["vs_none"], row["leaks"], row["exposure"]
    waited = row["gate_waits"] > vcpus  # more than the first time, when everybody starts
    return (
        row["label"],
        _rate(row["exits_per_s"]),
        "-" if row["guest_percent"] is None else f"{row['guest_percent']:.1f} %",
        _rate(row["kicks_per_s"]),
        f"{row['full_percent']:.1f} %",
        lasts(row["gate_wait_p50_ns"] * waited),
        lasts(row["gate_wait_p99_ns"] * waited),
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
