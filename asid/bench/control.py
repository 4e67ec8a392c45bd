"""asid bench control: round trips of the control socket beside a bare REQ and ROUTER echo of the same size."""

from __future__ import annotations

import time
from collections.abc import Callable

from asid.bench.bare import Echo
from asid.bench.figures import Progress, Result, Row, ratio_of
from asid.bench.machine import idle_machine

NAME = "control"
REQUEST = bytes(120)  # about what a ping is on the wire


def measure(quick: bool, on_progress: Progress) -> Result:
    rounds, trips = (2, 10) if quick else (8, 100)
    samples: dict[str, list[list[float]]] = {"ping": [], "status.get": [], "inject.nmi, handled": [], "bare": []}
    with Echo() as echo, idle_machine() as daemon:
        client = daemon.client(name="bench")
        calls: dict[str, Callable[[], object]] = {
            "ping": client.ping,
            "status.get": client.status,
            "inject.nmi, handled": lambda: client.inject_nmi("c0h1", wait=True),
        }
        for number in range(rounds):
            on_progress(f"control: round {number + 1} of {rounds}")
            for name, call in calls.items():
                samples[name].append(timed(call, trips))
            samples["bare"].append([ns / 1000 for ns in echo.run(trips, REQUEST)])
    rows = {name: Row(name, "us", tuple(us for one in each for us in one)) for name, each in samples.items()}
    ratios = tuple(
        ratio_of(rows[name], rows["bare"], list(zip(samples[name], samples["bare"], strict=True))) for name in calls
    )
    return Result(NAME, "one client, one request at a time", tuple(rows.values()), ratios)


def timed(call: Callable[[], object], n: int) -> list[float]:
    """Return n durations of a call in us."""
    took = []
    for _ in range(n):
        begin_ns = time.monotonic_ns()
        call()
        took.append((time.monotonic_ns() - begin_ns) / 1000)
    return took
