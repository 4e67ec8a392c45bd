"""Exposure while the run goes on: how long a sibling was in guest beside an NMI, a #MC, a `send` or a `stun` leave.

The audit measures the same from the whole journal; this one keeps a little of each hyperthread's past, so that the
daemon can say it at any moment. An overlap is counted once, when the second of its two intervals ends, and for the
hyperthread that was in guest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container

from asid.core.record import Record
from asid.report.sums import Place, Sums

INVOLUNTARY = frozenset({"nmi", "mce", "send", "stun"})
PAST_KEPT = 4096  # intervals of one hyperthread; a guest that nobody kicks may outlast many NMIs of its sibling

GUEST = 0
HOST = 1


class ExposureFold:
    """Feed it the records of a run in the order of the journal; read `sums` at any time."""

    def __init__(self) -> None:
        self._sums: dict[Place, Sums] = {}  # by the hyperthread in guest
        # (core, ht) -> (start, GUEST or HOST) of the stay that counts, absent for all other modes.
        self._now: dict[Place, tuple[int, int]] = {}
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
                    exposed = record.ht if kind == GUEST else ht
                    self._sums.setdefault((record.core, exposed), Sums()).add_one(ns)
        hts.setdefault(record.ht, deque(maxlen=PAST_KEPT)).append((end, start, kind))

    def sums(self, places: Container[Place] | None = None) -> Sums:
        """Return the exposure of these hyperthreads, of all by default."""
        return Sums().add_all(own for place, own in self._sums.items() if places is None or place in places)
