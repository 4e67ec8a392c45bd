"""The liveness guarantees L1 to L3: what was asked for came in the end, and nobody waited in silence.

A run is finite, so "in the end" is "by the end of the run": what was asked for in its last second may still be open.
Nothing is said about a run whose journal has no end.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from asid.audit.finding import Finding
from asid.audit.history import CoreHistory, History
from asid.audit.intervals import Interval

PENDING_NS = 1_000_000_000  # a request younger than this at the end of the run may be open
SILENCE_NS = 2_000_000_000

# A request ends when it is answered, when its hyperthread withdraws it, or dies, or comes back as another.
ANSWERS = {
    "leave": frozenset({"gate.grant", "gate.done"}),
    "ask": frozenset({"gate.admit"}),
}
WITHDRAWS = frozenset({"gate.idle", "gate.bye", "gate.dead"})


class Wait(NamedTuple):
    """One request: from when it was first made (a repetition does not start it anew) until it ended."""

    kind: str  # ask or leave
    ht: int
    start: int
    end: int  # the end of the run for an open one
    seq: int
    open: bool


def waits_of(history: History, core: CoreHistory) -> list[Wait]:
    """Return every ask and leave of a core, by end."""
    out: list[Wait] = []
    open_: dict[tuple[str, int], tuple[int, int]] = {}
    incs: dict[int, int] = {}

    def end(kind: str, ht: int, ts: int) -> None:
        began = open_.pop((kind, ht), None)
        if began is not None:
            out.append(Wait(kind, ht, began[0], ts, began[1], False))

    for row in core.gate:
        if row.kind == "gate.ask" or row.kind == "gate.leave":
            kind = row.kind[5:]
            end("leave" if kind == "ask" else "ask", row.ht, row.ts)  # one request at a time
            open_.setdefault((kind, row.ht), (row.ts, row.seq))
        elif row.kind in WITHDRAWS:
            end("ask", row.ht, row.ts)
            end("leave", row.ht, row.ts)
        elif row.kind in ("gate.ready", "gate.resync"):
            if incs.get(row.ht, row.inc) != row.inc:
                end("ask", row.ht, row.ts)
                end("leave", row.ht, row.ts)
            incs[row.ht] = row.inc
        else:
            for kind, kinds in ANSWERS.items():
                if row.kind in kinds:
                    end(kind, row.ht, row.ts)
    for (kind, ht), (ts, seq) in open_.items():
        died = [row.ts for row in core.deaths.get(ht, ()) if row.ts >= ts]
        out.append(Wait(kind, ht, ts, died[0] if died else history.end_ts, seq, not died))
    return out


def holds_of(core: CoreHistory, end_ts: int) -> list[tuple[int, int]]:
    """Return the times in which a client held the gate, or the core had no coordinator to serve it."""
    out: list[tuple[int, int]] = []
    since: int | None = None
    for row in core.gate:
        if row.kind == "gate.hold" and since is None:
            since = row.ts
        elif row.kind == "gate.release" and since is not None:
            out.append((since, row.ts))
            since = None
    if since is not None:
        out.append((since, end_ts))
    for death in core.deaths.get(-1, ()):
        born = [row.ts for row in core.spawns.get(-1, ()) if row.ts >= death.ts]
        out.append((death.ts, born[0] if born else end_ts))
    return out


def l1_leaves(history: History, waits: dict[int, list[Wait]]) -> Finding:
    """L1. Every leave is granted, or its hyperthread died.

    Reads: gate.leave, gate.grant, gate.done, gate.dead, death. Broken by: a leave that is older than a second when the
    run ends and was not answered.
    """
    finding = Finding("L1")
    for number, rows in waits.items():
        for wait in rows:
            if wait.kind != "leave":
                continue
            finding.checked += 1
            if wait.open and history.complete and wait.end - wait.start > PENDING_NS:
                text = f"c{number}h{wait.ht} wanted to leave and was not granted it in {_seconds(wait)}"
                finding.violate(wait.start, number, (wait.ht,), (wait.seq,), text)
    return finding


def l2_asks(history: History, waits: dict[int, list[Wait]], intervals: dict[int, list[Interval]]) -> Finding:
    """L2. Every ask is admitted, withdrawn, or its hyperthread died, if every host visit ends.

    Reads: gate.ask, gate.admit, gate.idle, gate.bye, gate.dead, death, gate.hold, the HOST intervals. Broken by: an
    ask older than a second at the end of the run, unless the gate is held then or a sibling's host visit goes on.
    """
    finding = Finding("L2")
    excused = 0
    for number, rows in waits.items():
        core = history.cores[number]
        held = any(end >= history.end_ts for _, end in holds_of(core, history.end_ts))
        hosting = {row.ht for row in intervals[number] if row.mode == "HOST" and row.end >= history.end_ts}
        for wait in rows:
            if wait.kind != "ask":
                continue
            finding.checked += 1
            if not (wait.open and history.complete and wait.end - wait.start > PENDING_NS):
                continue
            if held or hosting - {wait.ht}:
                excused += 1
                continue
            text = f"c{number}h{wait.ht} asked to enter guest and was not admitted in {_seconds(wait)}"
            finding.violate(wait.start, number, (wait.ht,), (wait.seq,), text)
    if excused:
        finding.note = f"{excused} open at the end behind a hold or a host visit"
    return finding


def l3_progress(history: History, waits: dict[int, list[Wait]], intervals: dict[int, list[Interval]]) -> Finding:
    """L3. Nobody waits on a core on which nothing happens.

    Reads: the stamps of all records of a core, and its waits. Broken by: two seconds without a record of the core
    while somebody waits, unless the gate is held, the core has no coordinator (L4 looks after that) or, for an ask,
    a sibling works in HOST all the while.
    """
    finding = Finding("L3")
    for number, rows in waits.items():
        finding.checked += len(rows)
        long = [wait for wait in rows if wait.end - wait.start >= SILENCE_NS]
        if not long:
            continue
        core = history.cores[number]
        stamps = sorted({*core.stamps, history.end_ts} if history.complete else core.stamps)
        holds = holds_of(core, history.end_ts)
        hosts = [row for row in intervals[number] if row.mode == "HOST" and row.end - row.start >= SILENCE_NS]
        silences = [(a, b) for a, b in pairwise(stamps) if b - a >= SILENCE_NS]
        for start, end in silences:
            if any(a < end and b > start for a, b in holds):
                continue
            for wait in long:
                if min(end, wait.end) - max(start, wait.start) < SILENCE_NS:
                    continue
                if wait.kind == "ask" and any(
                    row.ht != wait.ht and row.start <= start and row.end >= end for row in hosts
                ):
                    continue
                text = (
                    f"c{number}h{wait.ht} waited (gate.{wait.kind}) while c{number} was silent"
                    f" for {(end - start) / 1e9:.1f} s"
                )
                finding.violate(start, number, (wait.ht,), (wait.seq,), text)
                break
    return finding


def _seconds(wait: Wait) -> str:
    return f"{(wait.end - wait.start) / 1e9:.1f} s"
