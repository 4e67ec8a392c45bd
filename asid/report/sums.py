"""Sums of durations: how many, how long together, the ends, and a log histogram. What `asid stat` is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asid.core.record import add_hist, bucket_of, hist_pairs, percentile

Place = tuple[int, int]  # (core, ht); ht -1 is the coordinator


class Sums:
    """Durations of one kind. min_ns is -1 while there is none."""

    __slots__ = ("full", "hist", "max_ns", "min_ns", "n", "sum_ns")

    def __init__(self) -> None:
        self.n = self.full = self.sum_ns = self.max_ns = 0
        self.min_ns = -1
        self.hist: dict[int, int] = {}

    def add(self, n: int, full: int, sum_ns: int, min_ns: int, max_ns: int, hist: Iterable[Sequence[int]]) -> None:
        self.n += n
        self.full += full
        self.sum_ns += sum_ns
        self.min_ns = min_ns if self.min_ns < 0 else min(self.min_ns, min_ns)
        self.max_ns = max(self.max_ns, max_ns)
        add_hist(self.hist, hist)

    def add_one(self, ns: int) -> None:
        self.add(1, 0, ns, ns, ns, ((bucket_of(ns), 1),))

    def add_all(self, others: Iterable[Sums]) -> Sums:
        """Add other sums, and return these."""
        for other in others:
            if other.n:
                self.add(other.n, other.full, other.sum_ns, other.min_ns, other.max_ns, other.hist.items())
        return self

    def as_map(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "full": self.full,
            "sum_ns": self.sum_ns,
            "min_ns": max(0, self.min_ns),
            "max_ns": self.max_ns,
            "hist": hist_pairs(self.hist),
        }

    def as_waits(self) -> dict[str, int]:
        """Return count, p50_ns, p99_ns and max_ns."""
        pairs = list(self.hist.items())
        return {
            "count": self.n,
            "p50_ns": min(self.max_ns, percentile(pairs, 50)),
            "p99_ns": min(self.max_ns, percentile(pairs, 99)),
            "max_ns": self.max_ns,
        }
