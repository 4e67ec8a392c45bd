"""Sums over a run: what is only counted is counted at once."""

from __future__ import annotations


class Counts:
    """Sums over the run. Histograms are maps from bucket to count."""

    def __init__(self) -> None:
        self.halts = self.polled = 0
        self.exits = self.full = self.kicks = self.kicks_seen = self.avoidable = self.fences = 0
        self.admits = self.leaves = self.nmis = self.mces = self.merged = self.deaths = self.ipis = 0
        self.gate_wait: dict[int, int] = {}
        self.gate_wait_max_ns = 0
        self.leave_wait: dict[int, int] = {}
        self.leave_wait_max_ns = 0
        self.fast_ns = 0  # in the handlers of fast exits
        self.kicks_sent = 0  # IPIs of leaves that asked no gate
