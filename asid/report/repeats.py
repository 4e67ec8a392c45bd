"""What repeats of several variants say together: one row a variant, ratios to the baseline of the same repeat.

Rates and shares are means over the runs, counts are sums, a p99 is the median of the runs' p99s, a maximum the largest.
Rates are of the time in which guests were served, not of the start and the end of the processes. Kicks are those of the
gate and those that leavers sent themselves, without asking it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, median
from typing import Any, Final

from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_UNKNOWN, gravest
from asid.report.variants import BASELINE, Variant
from asid.units import format_ns

DRAWS: Final = 10_000
CONFIDENCE_PERCENT: Final = 95
REPEATS_FEW: Final = 6  # below it a bootstrap interval is narrower than its name says
WORDS: Final = ("FAIL", "UNKNOWN", "PASS")  # the gravest first

HEADINGS: Final = (
    ("", "policy"),
    ("", "exits/s"),
    ("guest", "time"),
    ("forced", "idle"),
    ("", "kicks/s"),
    ("", "full%"),
    ("gate", "p99"),
    ("leaks (conc./", "residual)"),
    ("", "vs none"),
    ("exposed", "count"),
    ("", "p99"),
    ("", "max"),
    ("", "verdict"),
)
LEFT: Final = frozenset({"policy", "vs none", "verdict"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One run that was completed. repeat: from 1. document: as in verdict.json."""

    variant: Variant
    repeat: int
    document: Mapping[str, Any]

    @property
    def word(self) -> str:
        return str(self.document.get("verdict", "UNKNOWN"))

    @property
    def broken(self) -> frozenset[str]:
        found = self.document.get("guarantees", {})
        return frozenset(name for name, finding in found.items() if finding.get("broken"))

    @property
    def kept(self) -> bool:
        """Whether the policy kept what it promises, as far as the run can tell: whatever is broken was `allowed`."""
        found = [self.document["guarantees"][name] for name in self.broken]
        return self.word != "FAIL" or (bool(found) and all(each["broken"] == each.get("allowed", 0) for each in found))

    @property
    def exit_code(self) -> int:
        return EXIT_FAIL if not self.kept else EXIT_OK if self.word in ("PASS", "FAIL") else EXIT_UNKNOWN

    def per_second(self, *counts: str) -> float:
        """Return the sum of these counts of the figures over the seconds in which guests were served."""
        figures = self.document.get("figures", {})
        seconds = (figures.get("served_ns") or figures.get("duration_ns") or 0) / 1e9
        return float(sum(figures.get(count, 0) for count in counts) / seconds) if seconds else 0.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio to the baseline; low and high are None for a single repeat."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def undecided(self) -> bool:
        """Whether the interval covers 1: no difference was detected."""
        return self.low is not None and self.high is not None and self.low <= 1.0 <= self.high


def ratio_of(pairs: Sequence[tuple[float, float]], seed: int) -> Ratio | None:
    """Return the sum of the firsts over that of the seconds, with a bootstrap interval over the pairs.

    pairs: (of the variant, of the baseline), one a repeat. None without a pair, or when the baseline did nothing.
    The interval holds the middle CONFIDENCE_PERCENT of what DRAWS samples of the pairs, with replacement, give.
    """
    below = sum(second for _, second in pairs)
    if not pairs or below <= 0:
        return None
    value = sum(first for first, _ in pairs) / below
    if len(pairs) == 1:
        return Ratio(value)
    random = Random(seed)
    drawn = []
    for _ in range(DRAWS):
        sample = random.choices(pairs, k=len(pairs))
        under = sum(second for _, second in sample)
        if under > 0:
            drawn.append(sum(first for first, _ in sample) / under)
    drawn.sort()
    tail = round(len(drawn) * (100 - CONFIDENCE_PERCENT) / 200)
    return Ratio(value, drawn[tail], drawn[-1 - tail])


def rows_of(samples: Sequence[Sample], seed: int) -> list[dict[str, Any]]:
    """Return a row a variant, as plain values, in the order in which the variants first come. seed: of the draws."""
    base = {sample.repeat: sample for sample in samples if sample.variant.policy == BASELINE}
    by_variant: dict[Variant, list[Sample]] = {}
    for sample in samples:
        by_variant.setdefault(sample.variant, []).append(sample)
    return [_row(variant, own, base, seed) for variant, own in by_variant.items()]


def _row(variant: Variant, own: Sequence[Sample], base: Mapping[int, Sample], seed: int) -> dict[str, Any]:
    figures = [sample.document.get("figures", {}) for sample in own]
    exposures = [sample.document.get("exposure", {}) for sample in own]
    exits = sum(part.get("exits", 0) for part in figures)
    exposed = [part["p99_ns"] for part in exposures if part.get("count")]
    waited = [part["gate_waits"]["p99_ns"] for part in figures if part.get("gate_waits", {}).get("count")]
    pairs = [
        (sample.per_second("exits"), base[sample.repeat].per_second("exits")) for sample in own if sample.repeat in base
    ]
    ratio = ratio_of(pairs, seed)
    words = Counter(sample.word for sample in own)
    beside = [base[sample.repeat] for sample in own if sample.repeat in base]
    return {
        "label": variant.label,
        "policy": variant.policy,
        "kick": variant.kick,
        "runs": len(own),
        "exits_per_s": round(fmean(sample.per_second("exits") for sample in own), 1),
        "guest_percent": _mean(figures, "guest_percent"),
        "forced_idle_percent": _mean(figures, "forced_idle_percent"),
        "gate_closed_percent": _mean(figures, "gate_closed_percent"),
        "kicks_per_s": round(fmean(sample.per_second("kicks", "kicks_sent") for sample in own), 1),
        "full_percent": round(100 * sum(part.get("full", 0) for part in figures) / exits, 2) if exits else 0.0,
        "gate_wait_p99_ns": round(median(waited)) if waited else 0,
        "leaks": _leaks(figures),
        "exposure": {
            "count": sum(part.get("count", 0) for part in exposures),
            "sum_ns": sum(part.get("sum_ns", 0) for part in exposures),
            "p99_ns": round(median(exposed)) if exposed else 0,
            "max_ns": max((part.get("max_ns", 0) for part in exposures), default=0),
        },
        "vs_none": None
        if ratio is None
        else {
            "ratio": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
            "undecided": ratio.undecided,
            "doubtful": any(sample.word == "UNKNOWN" for sample in (*own, *beside)),
        },
        "doubtful": words["UNKNOWN"] > 0,
        "verdict": next((word for word in WORDS if words[word]), "UNKNOWN"),
        "verdicts": dict(sorted(words.items())),
        "broken": sorted(set().union(*(sample.broken for sample in own))),
        "kept": all(sample.kept for sample in own),
    }


def _mean(figures: Sequence[Mapping[str, Any]], what: str) -> float | None:
    found = [part[what] for part in figures if what in part]
    return round(fmean(found), 2) if found else None


def _leaks(figures: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """Return the sums of both kinds, None when a run was not looked at for leaks."""
    found = [part.get("leaks") for part in figures]
    if not all(isinstance(leaks, Mapping) for leaks in found):
        return None
    return {kind: sum(int(leaks.get(kind, 0)) for leaks in found if leaks) for kind in ("concurrent", "residual")}


def exit_code_of(samples: Sequence[Sample]) -> int:
    """Return 1 when a policy broke what it promises, 3 when a run is UNKNOWN, else 0: a comparison is a measurement."""
    return gravest([sample.exit_code for sample in samples])


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table and what its marks mean. rows: of `rows_of`."""
    uneven = len({row["runs"] for row in rows}) > 1
    headings = [*HEADINGS, *([("", "runs")] if uneven else [])]
    body = [(*_cells(row), *([str(row["runs"])] if uneven else [])) for row in rows]
    table = [[above for above, _ in headings], [name for _, name in headings], *body]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]
    out = []
    for line in table:
        cells = [
            cell.ljust(width) if heading in LEFT else cell.rjust(width)
            for cell, width, (_, heading) in zip(line, widths, headings, strict=True)
        ]
        out.append("  ".join(cells).rstrip())
    return [*out, "", *_notes(rows)]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def lasts(ns: int) -> str:
        return format_ns(ns) if ns else "-"

    def share(percent: float | None) -> str:
        return "-" if percent is None else f"{percent:.1f} %"

    leaks, exposure = row["leaks"], row["exposure"]
    return (
        row["label"],
        f"{'?' * row['doubtful']}{row['exits_per_s']:,.0f}",
        share(row["guest_percent"]),
        share(row["forced_idle_percent"]),
        f"{row['kicks_per_s']:,.0f}",
        f"{row['full_percent']:.1f} %",
        lasts(row["gate_wait_p99_ns"]),
        "-" if leaks is None else f"{leaks['concurrent']:,} / {leaks['residual']:,}",
        _ratio_cell(row["vs_none"]),
        f"{exposure['count']:,}",
        lasts(exposure["p99_ns"]),
        lasts(exposure["max_ns"]),
        _verdict_cell(row),
    )


def _ratio_cell(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return "-"
    mark = " ?" * ratio["doubtful"]
    if ratio["low"] is None or ratio["low"] == ratio["high"] == 1.0:
        return f"{ratio['ratio']:.2f}x{mark}"
    return f"{ratio['ratio']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]{' ~' if ratio['undecided'] else ''}{mark}"


def _verdict_cell(row: Mapping[str, Any]) -> str:
    word, runs = row["verdict"], row["runs"]
    times = row["verdicts"].get(word, 0)
    text = word if times == runs else f"{word} {times} of {runs}"
    if word != "FAIL":
        return text
    return f"{text} *" if row["kept"] else f"{text}: {', '.join(row['broken'])}"


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    ratios = [row["vs_none"] for row in rows if row["vs_none"] is not None]
    out = ["vs none: exits/s over those of none in the same repeat." if ratios else _no_ratio(rows)]
    if any(ratio["low"] is not None for ratio in ratios):
        few = min(row["runs"] for row in rows) < REPEATS_FEW
        note = f"[low, high]: {CONFIDENCE_PERCENT} % bootstrap interval over the repeats"
        out.append(f"{note}; of fewer than {REPEATS_FEW} it is too narrow." if few else f"{note}.")
    if any(ratio["undecided"] and ratio["low"] != ratio["high"] for ratio in ratios):
        out.append("~ no difference detected: the interval covers 1.00.")
    if any(row["doubtful"] for row in rows):
        out.append("? Of a run that is UNKNOWN: the figures are of what there is of it, and no comparison.")
    if expected := [row for row in rows if row["verdict"] == "FAIL" and row["kept"]]:
        by_broken: dict[str, list[str]] = {}
        for row in expected:
            by_broken.setdefault(", ".join(row["broken"]), []).append(row["label"])
        said = "; ".join(f"{broken} by {', '.join(labels)}" for broken, labels in by_broken.items())
        out.append(f"* A negative control: what is broken was never promised ({said}).")
    return out


def _no_ratio(rows: Sequence[Mapping[str, Any]]) -> str:
    base = [row for row in rows if row["policy"] == BASELINE]
    if not base:
        return f"vs none: {BASELINE} was not run."
    return f"vs none: {BASELINE} was run, and made no exit that could be counted."
