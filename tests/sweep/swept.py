"""What tests of sweeps share: a small matrix, and a pool that plays in this process."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from asid.sweep.pools import Lost

ROOT = Path(__file__).parent.parent.parent
SMT2 = ROOT / "configs" / "smt2.toml"
SMALL = f"""
config   = "{SMT2}"
duration = "2ms"

[axes]
"policy.name" = ["none", "asi", "asi-stun"]
"policy.kick" = ["ack", "send"]
seed          = "1..3"
"""
RUNS = 12  # none and asi-stun once, asi with two kicks; three seeds
ASID = (sys.executable, "-m", "asid")


class Inline:
    """A pool that plays when it is asked for a result, the last submitted first. loses: how many of the first results
    are lost. ends_after: then ^C comes."""

    def __init__(self, loses: int = 0, ends_after: int = 1_000_000) -> None:
        self.loses = loses
        self.ends_after = ends_after
        self.played: list[int] = []
        self.closed = False

    def room(self) -> int:
        return 4

    def submit(self, function: Callable[[Any], Any], job: Any) -> Any:
        return (function, job.number, _Held(job))

    def ended(self, futures: set[Any], seconds: float) -> set[Any]:
        return {max(futures, key=lambda future: future[1])}

    def result(self, future: Any) -> Any:
        function, number, held = future
        if len(self.played) == self.ends_after:
            raise KeyboardInterrupt
        if self.loses:
            self.loses -= 1
            raise Lost("killed")
        self.played.append(number)
        return function(held.job)

    def close(self) -> None:
        self.closed = True


class _Held:
    """A job, hashable."""

    def __init__(self, job: Any) -> None:
        self.job = job


def dies_at_first(job: Any) -> dict[str, Any]:
    """Play nothing: kill the process that plays, unless the file that the job names is there already."""
    mark = Path(job.config["mark"])
    if job.number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return {"number": job.number}


def never_ends(job: Any) -> dict[str, Any]:
    """Play nothing, for longer than any test."""
    threading.Event().wait(600)
    return {}


def always_dies(job: Any) -> dict[str, Any]:
    """Kill whoever plays."""
    os.kill(os.getpid(), 9)
    return {}


def assert_within(seconds: float, what: Callable[[], bool], words: str) -> None:
    """Wait until it holds; fail when it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, words
        threading.Event().wait(0.01)


def words_of(process: psutil.Process) -> str:
    """Return the command line of a process; nothing of one that is dead, waited for or not."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that is dead and not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
