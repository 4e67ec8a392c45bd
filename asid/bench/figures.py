"""Samples, what is told of them, and the host they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was measured, in `unit`. who: `asid` or what it is compared with."""

    who: str
    unit: str
    samples: tuple[float, ...]

    def at(self, q: float) -> float:
        """Return the q-th percentile (0 to 100), by nearest rank; 0 without samples."""
        return percentile(self.samples, q)

    def as_map(self) -> dict[str, Any]:
        samples = self.samples
        told = {"min": min(samples, default=0), "p50": self.at(50), "p90": self.at(90), "p99": self.at(99)}
        told |= {"max": max(samples, default=0), "mean": statistics.fmean(samples) if samples else 0}
        return {"who": self.who, "unit": self.unit, "n": len(samples), **{k: _short(v) for k, v in told.items()}}


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of asid over that of the bare limit, once a round.

    `aim` is what the project holds itself to; nothing is judged by it.
    """

    of: str
    to: str
    rounds: tuple[float, ...]
    aim: str = ""

    @property
    def middle(self) -> float:
        return statistics.median(self.rounds) if self.rounds else 0.0

    def as_map(self) -> dict[str, Any]:
        low, high = (min(self.rounds), max(self.rounds)) if self.rounds else (0.0, 0.0)
        told = {"median": _short(self.middle), "low": _short(low), "high": _short(high)}
        return {"of": self.of, "to": self.to, "rounds": len(self.rounds), **told, "aim": self.aim}


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found. warnings: why its figures may not be what they seem."""

    name: str
    about: str
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_map(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "rows": [row.as_map() for row in self.rows],
            "ratios": [ratio.as_map() for ratio in self.ratios],
            "facts": self.facts,
            "warnings": list(self.warnings),
        }


def percentile(samples: Sequence[float], q: float) -> float:
    """Return the q-th percentile (0 to 100) of samples in any order, by nearest rank; 0 for none."""
    if not samples:
        return 0
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))]


def ratio_of(row: Row, bare: Row, rounds: Sequence[tuple[Sequence[float], Sequence[float]]], aim: str = "") -> Ratio:
    """Return the ratio of medians, round by round: a host that slows down slows both sides of a round."""
    each = tuple(percentile(ours, 50) / percentile(theirs, 50) for ours, theirs in rounds if ours and theirs)
    return Ratio(row.who, bare.who, each, aim)


def host() -> dict[str, Any]:
    """Return what is to be known of the host beside the figures."""
    import zmq

    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
    }


def lines(result: Result) -> list[str]:
    """Return a benchmark's figures as text, at most 100 columns."""
    out = [f"{result.name}: {result.about}"]
    wide = max((len(row.who) for row in result.rows), default=0)
    out.append(f"  {'':<{wide}}  {'n':>7} {'min':>9} {'p50':>9} {'p99':>9} {'max':>9}")
    for row in result.rows:
        told = row.as_map()
        figures = " ".join(f"{_figure(told[key]):>9}" for key in ("min", "p50", "p99", "max"))
        out.append(f"  {row.who:<{wide}}  {len(row.samples):>7} {figures} {row.unit}")
    for ratio in result.ratios:
        told = ratio.as_map()
        more = [f"rounds {told['low']:.2f} to {told['high']:.2f}"] if told["rounds"] > 1 else []
        more += [f"aim {ratio.aim}"] if ratio.aim else []
        out.append(f"  {ratio.of} = {told['median']:.2f} x {ratio.to}{'; ' if more else ''}{', '.join(more)}")
    out += [f"  {key.replace('_', ' ')}: {value}" for key, value in result.facts.items()]
    out += [f"  warning: {text}" for text in result.warnings]
    return out


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 10 else f"{value:.1f}"


def _short(value: float) -> float:
    """Keep what a measurement is good for: integers as they are, five digits of the rest."""
    return value if isinstance(value, int) else float(f"{value:.5g}")
