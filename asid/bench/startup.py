"""asid bench startup: 64 hyperthreads from start to READY, and their memory, beside 64 bare children.

A bare child is forked by the same fork server, makes a ZeroMQ context and a socket, and says hello: the least that a
process of the live engine is. Memory is PSS, each page counted once, divided among those that share it.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import zmq

from asid.bench.bare import DEADLINE_S, Bare, hello, pause
from asid.bench.figures import Progress, Result, Row, ratio_of
from asid.bench.machine import idle_machine
from asid.errors import NoAnswer
from asid.live import sockets
from asid.live.children import without_main

NAME = "startup"
AIM = "<= 3 s to READY"
SIBLINGS = 8


def measure(quick: bool, on_progress: Progress) -> Result:
    rounds, cores = (1, 1) if quick else (3, 8)
    ready: list[float] = []
    bare: list[float] = []
    memory: list[float] = []
    bare_memory: list[float] = []
    for number in range(rounds):
        on_progress(f"startup: round {number + 1} of {rounds}")
        begin_ns = time.monotonic_ns()
        with idle_machine(cores=cores, smt=SIBLINGS) as daemon:
            ready.append((time.monotonic_ns() - begin_ns) / 1e6)
            hts = [ht for core in daemon.client(name="bench").status()["cores"] for ht in core["hts"]]
            memory += [pss_mib(int(ht["pid"])) for ht in hts]
        with Crowd(cores * SIBLINGS) as crowd:
            bare.append(crowd.took_ms)
            bare_memory += [pss_mib(pid) for pid in crowd.pids()]
    n = cores * SIBLINGS
    rows = (
        Row(f"asid, {n} hyperthreads READY", "ms", tuple(ready)),
        Row(f"{n} bare children say hello", "ms", tuple(bare)),
        Row("PSS of a hyperthread", "MiB", tuple(memory)),
        Row("PSS of a bare child", "MiB", tuple(bare_memory)),
    )
    ratios = (
        ratio_of(rows[0], rows[1], [([a], [b]) for a, b in zip(ready, bare, strict=True)]),
        ratio_of(rows[2], rows[3], [(memory, bare_memory)]),
    )
    about = "from the start of the daemon's interpreter until a client is answered"
    return Result(NAME, about, rows, ratios, {"aim": AIM, "coordinators": cores})


def pss_mib(pid: int) -> float:
    """Return the proportional set size of a process in MiB; 0 when it is gone."""
    try:
        return float(psutil.Process(pid).memory_full_info().pss) / (1 << 20)
    except psutil.NoSuchProcess:
        return 0.0


class Crowd(Bare):
    """n bare children, counted from the first start until the last hello. took_ms: that time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        context = sockets.new_context()
        router = sockets.daemon_link_router(context, Path(self.path))
        begin_ns = time.monotonic_ns()
        with without_main():
            for number in range(n):
                self.start(hello, f"hello {number}", self.path)
        deadline_ns = begin_ns + int(DEADLINE_S * 1e9)
        here = 0
        while here < n:
            if time.monotonic_ns() > deadline_ns:
                raise NoAnswer(f"{here} of {n} bare children said hello", where="bench", state=f"{DEADLINE_S:g} s")
            if router.poll(100, zmq.POLLIN):
                router.recv_multipart(zmq.NOBLOCK)
                here += 1
        self.took_ms = (time.monotonic_ns() - begin_ns) / 1e6
        pause(200_000_000)
        sockets.close(context, router)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]
