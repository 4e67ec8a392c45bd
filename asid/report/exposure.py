"""Exposure while the run goes on: how long a sibling was in guest beside an NMI, a #MC or a `send` leave.

The audit measures the same from the whole journal; this one keeps a little of each hyperthread's past, so that the
daemon can say it at any moment. An overlap is counted once, when the second of its two intervals ends.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from asid.core.record import Record, bucket_of, percentile

INVOLUNTARY = frozenset({"nmi", "mce", "send"})
PAST_KEPT = 4096  # intervals of one hyperthread; a guest that nobody kicks may outlast many NMIs of its sibling

GUEST = 0
HOST = 1


class ExposureFold:
    """Feed it the records of a run in the order of the journal; read `as_map` at any time."""

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self.hist: dict[int, int] = {}
        # (core, ht) -> (start, GUEST or HOST) of the stay that counts, absent for all other modes.
        self._now: dict[tuple[int, int], tuple[int, int]] = {}
        # core -> ht -> (end, start, GUEST or HOST), by end
        self._past: dict[int, dict[int, deque[tuple[int, int, int]]]] = {}

    def add(self, record: Record) -> None:
        """Take an ht.mode or a death; every other record is none of its business."""
        if record.type == "ht.mode":
            self._close(record)
            data = record.data
            if data["new"] == "GUEST":
                self._now[record.core, record.ht] = (record.ts, GUEST)
            elif data["new"] == "HOST" and data.get("via") in INVOLUNTARY:
                self._now[record.core, record.ht] = (record.ts, HOST)
        elif record.type == "death":
            self._close(record)

    def _close(self, record: Record) -> None:
        stay = self._now.pop((record.core, record.ht), None)
        if stay is None:
            return
        start, kind = stay
        end = record.ts
        hts = self._past.setdefault(record.core, {})
        for ht, past in hts.items():
            if ht == record.ht:
                continue
            for other_end, other_start, other_kind in reversed(past):
                if other_end <= start:
                    break
                ns = min(end, other_end) - max(start, other_start)
                if other_kind != kind and ns > 0:
                    self._count(ns)
        hts.setdefault(record.ht, deque(maxlen=PAST_KEPT)).append((end, start, kind))

    def _count(self, ns: int) -> None:
        self.count += 1
        self.max_ns = max(self.max_ns, ns)
        bucket = bucket_of(ns)
        self.hist[bucket] = self.hist.get(bucket, 0) + 1

    def as_map(self) -> dict[str, Any]:
        """Return count, p50_ns, p99_ns and max_ns."""
        pairs = list(self.hist.items())
        return {
            "count": self.count,
            "p50_ns": min(self.max_ns, percentile(pairs, 50)),
            "p99_ns": min(self.max_ns, percentile(pairs, 99)),
            "max_ns": self.max_ns,
        }
