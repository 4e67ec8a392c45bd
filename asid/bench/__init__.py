"""Speed of this build beside the bare limit of this machine, measured interleaved in one run.

A figure of one machine says little, and a figure of yesterday's machine nothing. So each benchmark measures asid and
the least that could do the same job with the same libraries (a bare relay, a bare echo, a bare loop) in turns, in the
same run, and reports the ratio. A benchmark never judges: its figures are for people and for CI to compare.

One file a benchmark; each has `measure(quick, on_progress) -> Result`. `bare` holds the processes to compare with.
"""

from __future__ import annotations

BENCHMARKS: tuple[tuple[str, str], ...] = (
    ("kick", "a voluntary leave: from wanting the full address space to having it, a sibling kicked out of guest"),
    ("exits", "fast exits of one hyperthread, as fast as possible"),
    ("kvm", "a real guest beside a bare KVM_RUN loop, and signal to out of guest"),
    ("control", "round trips of the control socket"),
    ("sim", "exits of two siblings in virtual time, beside a SimPy model of them"),
    ("startup", "from nothing to ready, 64 hyperthreads; memory of each"),
)
NAMES: tuple[str, ...] = tuple(name for name, _ in BENCHMARKS)
