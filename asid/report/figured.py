"""Figures of a machine in virtual time of which no records were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asid.core.record import percentile
from asid.units import format_ns

if TYPE_CHECKING:
    from asid.sim.figures import Figures, Key
    from asid.sim.machine import Measured

MODES = ("GUEST", "ISOLATED", "HOST", "PARKED", "OFFLINE")


def as_map(measured: Measured, hts: list[str]) -> dict[str, Any]:
    """Return the figures. hts: names of the hyperthreads. Durations are nanoseconds; percentiles at most 9 % off."""
    figures, seconds = measured.figures, measured.duration_ns / 1e9
    kicks = figures.sums["records", "gate.kick"] + figures.sums["records", "ipi"]
    return {
        "duration_ns": measured.duration_ns,
        "exits": figures.exits,
        "full_exits": figures.full_exits,
        "leaves": figures.leaves,
        "leaves_counted": measured.counted,
        "kicks": kicks,
        "exits_per_s": round(figures.exits / seconds, 1),
        "leaves_per_s": round(figures.leaves / seconds, 1),
        "kicks_per_s": round(kicks / seconds, 1),
        "reasons": _reasons(figures),
        "waits": [
            {"of": " ".join(key), **_times(figures, key)}
            for key in sorted(figures.hists)
            if key[0] in ("leave", "gate.wait", "held")
        ],
        "modes_ns": {name: _modes(figures, name, measured.duration_ns) for name in hts},
    }


def heading(shown: dict[str, Any]) -> list[str]:
    """Return what `as_map` returned, in a few sentences."""
    share = shown["full_exits"] / shown["exits"] if shown["exits"] else 0.0
    return [
        f"{format_ns(shown['duration_ns'])} of virtual time: {shown['exits']:,} exits, {share:.2%} full;"
        f" {shown['leaves']:,} leaves, {shown['kicks']:,} kicks",
        f"a second: {shown['exits_per_s']:,} exits, {shown['leaves_per_s']:,} leaves, {shown['kicks_per_s']:,} kicks",
        f"leaves that went as one before and were counted, not played: {shown['leaves_counted']:,}",
    ]


def tables(shown: dict[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return headings and rows of exits by reason, of waits, and of time by mode."""
    exits = [(row["reason"], row["way"], *_cells(row)) for row in shown["reasons"]]
    waits = [(row["of"], *_cells(row)) for row in shown["waits"]]
    whole = shown["duration_ns"]
    modes = [(name, *(f"{ns.get(mode, 0) / whole:.2%}" for mode in MODES)) for name, ns in shown["modes_ns"].items()]
    times = ("n", "mean", "p50", "p99")
    return [(("exits", "way", *times), exits), (("waits", *times), waits), (("time", *MODES), modes)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    known = (format_ns(row[key]) if key in row else "-" for key in ("p50_ns", "p99_ns"))
    return f"{row['n']:,}", format_ns(row["mean_ns"]), *known


def _reasons(figures: Figures) -> list[dict[str, Any]]:
    found = []
    for key in sorted({key for key in (*figures.sums, *figures.hists) if key[0] == "exit"}):
        _, reason, isa, way, halt = key
        found.append({"reason": reason, "isa": isa, "way": " ".join(filter(None, (way, halt))), **_times(figures, key)})
    return sorted(found, key=lambda row: (-int(row["n"]), str(row["reason"])))


def _times(figures: Figures, key: Key) -> dict[str, int]:
    """Return number and mean; percentiles too, where there is a histogram."""
    hist = figures.hists.get(key)
    n = figures.sums[key] if hist is None else hist.total()
    told = {"n": n, "mean_ns": round(figures.sums["ns", *key] / n) if n else 0}
    if hist is not None:
        told |= {"p50_ns": percentile(hist.items(), 50), "p99_ns": percentile(hist.items(), 99)}
    return told


def _modes(figures: Figures, name: str, duration_ns: int) -> dict[str, int]:
    found = {key[2]: ns for key, ns in figures.sums.items() if key[:2] == ("mode_ns", name)}
    return {**found, "GUEST": max(0, duration_ns - sum(found.values()))}
