"""Forced idle: for what share of the vCPUs' time one of them could have run, and waited because the core was another's.

A vCPU that asks waits for one of two things. Either the gate is closed for a host visit (a sibling wants to leave, or
is in HOST after it asked) or by a hold, and nobody may enter. Or the gate is open and it is the turn of another room:
of another VM, with `nosmt` of another hyperthread. The second is the price of not sharing a core ("forced idle" in core
scheduling's words), the first that of sharing one with the host. A visit during another's turn counts as a visit; a
change of turns, for which the gate is closed too, is part of the turns. A leave that asks nobody closes no gate.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from asid.audit.guest_time import Served
from asid.audit.history import CoreHistory, History
from asid.audit.liveness import Wait, Waits

HOLDER = -1  # who keeps the gate closed when a client or a change of policy does
VISIT_ENDS = frozenset({"gate.done", "gate.ask", "gate.admit", "gate.bye", "gate.idle", "gate.dead", "gate.ready"})


class Closed:
    """When a gate was closed for a host visit or by a hold, as spans that neither meet nor overlap."""

    def __init__(self, core: CoreHistory, end_ts: int) -> None:
        self._starts = array("q")
        self._ends = array("q")
        self._before = array("q", (0,))  # length of all spans before this one
        keeps: set[int] = set()
        since = 0
        for row in core.gate:
            was = bool(keeps)
            if row.kind == "gate.leave":
                keeps.add(row.ht)
            elif row.kind == "gate.hold":
                keeps.add(HOLDER)
            elif row.kind == "gate.release":
                keeps.discard(HOLDER)
            elif row.kind in VISIT_ENDS:
                keeps.discard(row.ht)
            if keeps and not was:
                since = row.ts
            elif was and not keeps:
                self._add(since, row.ts)
        if keeps:
            self._add(since, end_ts)

    def _add(self, start: int, end: int) -> None:
        self._starts.append(start)
        self._ends.append(end)
        self._before.append(self._before[-1] + max(0, end - start))

    def until(self, ts: int) -> int:
        """Return for how many ns before `ts` it was closed."""
        at = bisect_right(self._starts, ts) - 1
        return 0 if at < 0 else self._before[at] + min(ts, self._ends[at]) - self._starts[at]


class Turns:
    """Whose turn it was: room and from when, by time. Room 0 is nobody's, also from a coordinator's death on."""

    def __init__(self, core: CoreHistory) -> None:
        turns = [(row.ts, row.number) for row in core.gate if row.kind == "gate.turn"]
        turns += [(row.ts, 0) for row in core.deaths.get(-1, ())]
        turns.sort()
        self._since = [ts for ts, _ in turns]
        self._rooms = [room for _, room in turns]

    def of_others(self, own: int, start: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [start, end) in which it was the turn of a room that is not `own`."""
        out = []
        at = max(0, bisect_right(self._since, start) - 1)
        while at < len(self._since) and self._since[at] < end:
            until = self._since[at + 1] if at + 1 < len(self._since) else end
            begin, until = max(start, self._since[at]), min(end, until)
            if self._rooms[at] not in (0, own) and until > begin:
                out.append((begin, until))
            at += 1
        return out


def forced_idle(history: History, waits: Mapping[int, Waits], served: Served) -> dict[str, Any]:
    """Return forced_idle_ns and gate_closed_ns of all vCPUs together, and what percent of their time each is.

    waits: by core, as `liveness.waits_of` tells them. Their time is that which the run served, as in `guest_time`; of a
    wait that reaches out of it counts the part inside. The two together are all the time between an ask and its end.
    """
    forced_ns = waited_ns = 0
    for number, (rows, _) in waits.items():
        asks = [_inside(wait, served) for wait in rows if wait.kind == "ask"]
        if not asks:
            continue
        core = history.cores[number]
        closed, turns = Closed(core, history.end_ts), Turns(core)
        for wait in asks:
            if wait.end <= wait.start:
                continue
            waited_ns += wait.end - wait.start
            regime = history.regime(wait.start)
            room = wait.vm if regime.rooms_are_vms else wait.ht + 1
            if not regime.keeps_vms_apart:
                continue  # the core is everybody's
            for start, end in turns.of_others(room, wait.start, wait.end):
                forced_ns += end - start - (closed.until(end) - closed.until(start))
    closed_ns = waited_ns - forced_ns
    return {
        "forced_idle_ns": forced_ns,
        "forced_idle_percent": served.percent(forced_ns),
        "gate_closed_ns": closed_ns,
        "gate_closed_percent": served.percent(closed_ns),
    }


def _inside(wait: Wait, served: Served) -> Wait:
    if wait.start >= served.start and wait.end <= served.end:
        return wait
    return wait._replace(start=max(wait.start, served.start), end=min(wait.end, served.end))
