"""asid bench sim: exits of two siblings in virtual time, beside a SimPy model of the same two in the same process.

Both draw the same guests. What is measured is the time to figures: exits, leaves, waits, time in each mode; the
simulator's are those of its full play to the nanosecond, the model's are about the same.

The second part has the same number of exits with ever more leaves among them. If a play takes time for leaves and next
to none for fast exits, its times lie on a line over the leaves; the fit says how well.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final

from asid.bench.figures import Progress, Result, Row, ratio_of
from asid.errors import HostUnsuitable
from asid.guest import make_source
from asid.guest.base import Source
from asid.sim.costs import costs_of
from asid.sim.machine import Measured
from asid.simulating import load_for, machine_of

NAME = "sim"
AIM = ">= 40"
RATE_HZ: Final = 200  # exits a second of guest time, of one vCPU
OTHER_RATES_HZ: Final = (
    1_000,
    5_000,
    25_000,
)  # the busier, the more leaves meet an exit of the sibling, and are played
SHARES: Final = (0.0001, 0.001, 0.01, 0.1)  # of exits that are full
SHARE: Final = 0.01

TABLE = """
isa = "vmx"
[[exit]]
reason = "MSR_WRITE"
share = {fast}
service = "1us"
full = 0.0
[[exit]]
reason = "IO_INSTRUCTION"
share = {full}
service = "4us"
full = 1.0
"""


def measure(quick: bool, on_progress: Progress) -> Result:
    try:
        import numpy  # noqa: F401  the machine plays each exit without it, which is another measurement

        from asid.bench.simpy_pair import Pair
    except ImportError as missing:
        raise HostUnsuitable(
            f"{missing.name} is not installed",
            where="asid bench sim",
            state="the simulator is compared with a model in SimPy",
            allowed="the packages simpy and numpy",
            hint="pip install 'asid[numbers,bench]'",
        ) from None
    rounds, exits = (2, 100_000) if quick else (5, 10_000_000)
    ours: list[float] = []
    theirs: list[float] = []
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="asid-bench-") as directory:
        guests = {share: _table(Path(directory), share) for share in SHARES}
        for number in range(rounds):
            on_progress(f"sim: round {number + 1} of {rounds}")
            took_s, measured = _ours(guests[SHARE], exits)
            ours.append(measured.figures.exits / took_s)
            pair = Pair((_source(guests[SHARE], 0), _source(guests[SHARE], 1)), costs_of("typical"))
            begin = time.perf_counter()
            pair.run(_duration_ns(exits // 50, RATE_HZ))
            theirs.append(pair.exits / (time.perf_counter() - begin))
        figures = measured.figures
        facts["exits a round"] = f"{figures.exits:,}; the model's {pair.exits:,}"
        facts["leaves in a thousand exits"] = (
            f"{1e3 * figures.leaves / figures.exits:.2f}; the model's {1e3 * pair.leaves / pair.exits:.2f}"
        )
        facts |= _rates(guests[SHARE], exits // 5, on_progress)
        facts |= _fit(guests, exits // 2, rounds, on_progress)
    mine, model = Row("asid", "exits/s", tuple(ours)), Row("SimPy", "exits/s", tuple(theirs))
    rounds_of = [([a], [b]) for a, b in zip(ours, theirs, strict=True)]
    about = f"two siblings in virtual time, {SHARE:.0%} of exits full, {RATE_HZ:,}/s a vCPU"
    return Result(NAME, about, (mine, model), (ratio_of(mine, model, rounds_of, AIM),), facts)


def _table(directory: Path, share: float) -> Path:
    path = directory / f"{share}.toml"
    path.write_text(TABLE.format(fast=1 - share, full=share))
    return path


def _config(table: Path, rate_hz: int) -> dict[str, Any]:
    guest = {"source": "mix", "table": str(table), "rate": f"{rate_hz}/s"}
    return {"machine": {"smt": 2}, "vm": [{"on": ["c0h0", "c0h1"], "guest": guest}]}


def _duration_ns(exits: int, rate_hz: int) -> int:
    return exits * 1_000_000_000 // (2 * rate_hz)


def _ours(table: Path, exits: int, rate_hz: int = RATE_HZ) -> tuple[float, Measured]:
    machine = machine_of(load_for(_config(table, rate_hz), {}), costs_of("typical"))
    begin = time.perf_counter()
    measured = machine.measure(_duration_ns(exits, rate_hz))
    return time.perf_counter() - begin, measured


def _source(table: Path, vcpu: int) -> Source:
    loaded = load_for(_config(table, RATE_HZ), {})
    return make_source(loaded.config.vm[0].guest, vm=1, vcpu=vcpu, seed=loaded.config.seed, base_dir=loaded.base_dir)


def _rates(table: Path, exits: int, on_progress: Progress) -> dict[str, str]:
    """Return what busier guests come to."""
    told = {}
    for rate_hz in OTHER_RATES_HZ:
        on_progress(f"sim: guests of {rate_hz:,}/s")
        took_s, measured = _ours(table, exits, rate_hz)
        figures = measured.figures
        told[f"at {rate_hz:,}/s a vCPU"] = (
            f"{figures.exits / took_s:,.0f} exits/s, {measured.counted / figures.leaves:.1%} of leaves not played"
        )
    return told


def _fit(guests: dict[float, Path], exits: int, rounds: int, on_progress: Progress) -> dict[str, str]:
    """Return the least time of each share's plays, and the line through them over the leaves."""
    import numpy as np

    leaves: dict[float, int] = {}
    seconds: dict[float, float] = {}
    for number in range(rounds):
        for share in SHARES:
            on_progress(f"sim: {share:.2%} full, round {number + 1} of {rounds}")
            took_s, measured = _ours(guests[share], exits)
            leaves[share] = measured.figures.leaves
            seconds[share] = min(took_s, seconds.get(share, took_s))
    n, took = np.array(list(leaves.values()), float), np.array(list(seconds.values()))
    slope, rest = np.polyfit(n, took, 1)
    off = np.abs(rest + slope * n - took) / took
    told = {f"{share:.2%} full": f"{leaves[share]:,} leaves in {seconds[share]:.3f} s" for share in SHARES}
    told["fit"] = (
        f"{slope * 1e6:.1f} us a leave and {rest / exits * 1e9:.0f} ns an exit; off by {off.max():.0%} at most"
    )
    return told
