"""What a waiter may be kept waiting by, so that the rest of its wait can be judged. See docs/limits.md.

For every request: a coordinator that is dead, until its successor has heard everybody; a fence, until the death is
confirmed; a stall that a client asked for. For an ask also: a hold (a client's or a change of policy), the host visits
of siblings, and the turn of each other VM, once each. A repetition of the request is neither an excuse nor progress.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from asid.audit.exclusion import stalls_of
from asid.audit.history import CoreHistory, History
from asid.audit.intervals import Interval

Span = tuple[int, int]
GAP_NS = 5_000_000_000  # a dead process excuses no more than this: L4 wants it back by then
SERVES = frozenset({"gate.admit", "gate.grant"})
HEARD = frozenset({"gate.resync", "gate.dead"})
UNFENCED = frozenset({"gate.dead", "gate.answer", "gate.ready", "gate.resync"})


def overlap_ns(spans: list[Span], start: int, end: int) -> int:
    """Return how much of [start, end) these cover together."""
    covered, at = 0, start
    for a, b in sorted(spans):
        a, b = max(a, at), min(b, end)
        if b > a:
            covered += b - a
            at = b
    return covered


class Excuses:
    """The excuses of one core. What is the same for all its waits is found once, when it is first wanted."""

    def __init__(self, history: History, number: int, intervals: list[Interval]) -> None:
        self._history = history
        self._number = number
        self._core: CoreHistory = history.core(number)
        self._visits = [row for row in intervals if row.mode == "HOST"]
        self._of_all: list[Span] | None = None
        self._of_asks: list[Span] = []
        self._turns: list[tuple[int, int]] = []  # (from when, whose room)

    def unexcused_ns(self, kind: str, ht: int, vm: int, start: int, end: int) -> int:
        """Return how long of [start, end) nothing excuses."""
        if self._of_all is None:
            self._of_all = self._gaps() + self._fences() + stalls_of(self._history, self._number)
            self._of_asks = self._holds()
            self._turns = [(row.ts, row.number) for row in self._core.gate if row.kind == "gate.turn"]
        spans = list(self._of_all)
        if kind == "ask":
            spans += self._of_asks
            spans += [(row.start, row.end) for row in self._visits if row.ht != ht]
            spans += self._others_turns(ht, vm, start, end)
        return end - start - overlap_ns(spans, start, end)

    def _gaps(self) -> list[Span]:
        """No coordinator, or one that has not heard everybody yet: from a death to its successor's last resync."""
        core, out = self._core, []
        for death in core.deaths.get(-1, ()):
            at = bisect_right(core.gate, death.ts, key=lambda row: row.ts)
            back = core.gate[at].ts if at < len(core.gate) else self._history.end_ts
            while at < len(core.gate) and core.gate[at].kind not in SERVES:
                if core.gate[at].kind in HEARD:
                    back = core.gate[at].ts
                at += 1
            out.append((death.ts, min(back, death.ts + GAP_NS)))
        return out

    def _fences(self) -> list[Span]:
        out: list[Span] = []
        fenced: dict[int, int] = {}
        for row in self._core.gate:
            if row.kind == "gate.fence":
                fenced.setdefault(row.ht, row.ts)
            elif row.ht in fenced and row.kind in UNFENCED:
                since = fenced.pop(row.ht)
                out.append((since, min(row.ts, since + GAP_NS)))
        return out + [(since, since + GAP_NS) for since in fenced.values()]

    def _holds(self) -> list[Span]:
        out: list[Span] = []
        since: int | None = None
        for row in self._core.gate:
            if row.kind == "gate.hold" and since is None:
                since = row.ts
            elif row.kind == "gate.release" and since is not None:
                out.append((since, row.ts))
                since = None
        return out if since is None else [*out, (since, self._history.end_ts)]

    def _others_turns(self, ht: int, vm: int, start: int, end: int) -> list[Span]:
        """The turns of others: each may have the core once before it is this one's turn."""
        own = vm if self._history.regime(start).rooms_are_vms else ht + 1
        out: list[Span] = []
        had: set[int] = set()
        now = -1
        first = max(0, bisect_right(self._turns, (start, 1 << 62)) - 1)
        last = bisect_left(self._turns, (end, 0))
        for at in range(first, last):
            since, whose = self._turns[at]
            until = self._turns[at + 1][0] if at + 1 < len(self._turns) else end
            if whose not in (0, own) and (whose == now or whose not in had):
                out.append((since, until))
            had.add(whose)
            now = whose
        return out
