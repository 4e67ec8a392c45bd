"""The liveness guarantees L1 to L3: what was asked for came in time, and nobody waited in silence.

"In the end" is made a bound, for a run is finite: a wait is judged by its own length, less what excuses it. Asking
again starts no new wait and is no progress. What was asked for in the last second of a run may still be open; about
what is open nothing is said when the journal has no end.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from asid.audit.excuses import Excuses
from asid.audit.finding import Finding
from asid.audit.history import CoreHistory, History

PENDING_NS = 1_000_000_000  # a request younger than this at the end of the run may be open
WAIT_NS = 3_000_000_000  # without an excuse; a wait takes microseconds, and a machine that is short of CPU a second
SILENCE_NS = 2_000_000_000

# A request ends when it is answered, when its hyperthread withdraws it, or dies, or comes back as another.
ANSWERS = {
    "leave": frozenset({"gate.grant", "gate.done"}),
    "ask": frozenset({"gate.admit"}),
}
WITHDRAWS = frozenset({"gate.idle", "gate.bye", "gate.dead"})
OF_WAITS = WITHDRAWS.union(*ANSWERS.values(), {"gate.ask", "gate.leave", "gate.ready", "gate.resync"})


class Wait(NamedTuple):
    """One request: from when it was first made (a repetition does not start it anew) until it ended."""

    kind: str  # ask or leave
    ht: int
    start: int
    end: int  # the end of the run for an open one
    seq: int
    open: bool
    vm: int  # asked for; 0 for a leave


class Waits(NamedTuple):
    """The waits of a core, by end, and when a request was only repeated."""

    rows: list[Wait]
    repeated: set[int]


def waits_of(history: History, core: CoreHistory) -> Waits:
    """Return every ask and leave of a core."""
    out: list[Wait] = []
    repeated: set[int] = set()
    open_: dict[tuple[str, int], tuple[int, int, int]] = {}
    incs: dict[int, int] = {}

    def end(kind: str, ht: int, ts: int) -> None:
        began = open_.pop((kind, ht), None)
        if began is not None:
            out.append(Wait(kind, ht, began[0], ts, began[1], False, began[2]))

    for row in core.gate:
        if row.kind not in OF_WAITS:
            continue
        if row.kind == "gate.ask" or row.kind == "gate.leave":
            kind = row.kind[5:]
            end("leave" if kind == "ask" else "ask", row.ht, row.ts)  # one request at a time
            began = (row.ts, row.seq, row.vm)
            if open_.setdefault((kind, row.ht), began) is not began:
                repeated.add(row.ts)
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
    for (kind, ht), (ts, seq, vm) in open_.items():
        died = [row.ts for row in core.deaths.get(ht, ()) if row.ts >= ts]
        out.append(Wait(kind, ht, ts, died[0] if died else history.end_ts, seq, not died, vm))
    return Waits(_as_felt(core, out), repeated)


def _as_felt(core: CoreHistory, waits: list[Wait]) -> list[Wait]:
    """Let long waits begin when their hyperthreads say so: a coordinator that was stopped read of them late."""
    if not core.long_waits:
        return waits
    ended = {(wait.kind, wait.ht, wait.end): at for at, wait in enumerate(waits) if not wait.open}
    for long in core.long_waits:
        served = core.gate_of.get(long.ht, [])
        at = bisect_right(served, long.ts, key=lambda row: row.ts) - 1
        while at >= 0 and served[at].kind not in ANSWERS[long.kind]:
            at -= 1
        found = ended.get((long.kind, long.ht, served[at].ts)) if at >= 0 else None
        if found is not None:  # what it did after it was served is its own time
            waits[found] = waits[found]._replace(start=min(waits[found].start, long.ts - long.wait_ns))
    return waits


def l1_leaves(history: History, waits: dict[int, Waits], excuses: dict[int, Excuses]) -> Finding:
    """L1. Every leave is granted, or its hyperthread died.

    Reads: gate.leave, leave (how long it felt), gate.grant, gate.done, gate.dead, death; for the excuses gate.fence,
    inject (stall), spawn. Broken by: a leave that waited longer than WAIT_NS beyond what excuses it, or one that is
    older than a second without an excuse when the run ends and was not answered.
    """
    return _judged(Finding("L1"), "leave", history, waits, excuses, "wanted to leave and was not granted it in")


def l2_asks(history: History, waits: dict[int, Waits], excuses: dict[int, Excuses]) -> Finding:
    """L2. Every ask is admitted, withdrawn, or its hyperthread died, if every host visit ends.

    Reads: gate.ask, gate.wait (how long it felt), gate.admit, gate.idle, gate.bye, gate.dead, death; for the excuses
    also gate.hold, gate.release, gate.turn and the HOST intervals. Broken by: as L1.
    """
    return _judged(Finding("L2"), "ask", history, waits, excuses, "asked to enter guest and was not admitted in")


def _judged(
    finding: Finding, kind: str, history: History, waits: dict[int, Waits], excuses: dict[int, Excuses], what: str
) -> Finding:
    excused = 0
    for number, (rows, _) in waits.items():
        for wait in rows:
            if wait.kind != kind:
                continue
            finding.checked += 1
            bound = PENDING_NS if wait.open else WAIT_NS
            if wait.end - wait.start <= bound or (wait.open and not history.complete):
                continue
            left = excuses[number].unexcused_ns(kind, wait.ht, wait.vm, wait.start, wait.end)
            if left <= bound:
                excused += 1
                continue
            text = f"c{number}h{wait.ht} {what} {(wait.end - wait.start) / 1e9:.1f} s"
            if left < wait.end - wait.start:
                text += f", {left / 1e9:.1f} s of it without an excuse"
            finding.violate(wait.start, number, (wait.ht,), (wait.seq,), text)
    if excused:
        finding.remark = f"{excused} long ones excused (a hold, a host visit, another VM's turn, a restart, a fence)"
    return finding


def l3_progress(history: History, waits: dict[int, Waits], excuses: dict[int, Excuses]) -> Finding:
    """L3. Nobody waits on a core on which nothing happens.

    Reads: the stamps of all records of a core but repeated requests, and its waits. Broken by: two seconds without a
    record of the core while somebody waits and nothing excuses it.
    """
    finding = Finding("L3")
    for number, (rows, repeated) in waits.items():
        finding.checked += len(rows)
        long = [wait for wait in rows if wait.end - wait.start >= SILENCE_NS]
        if not long:
            continue
        core = history.cores[number]
        stamps = sorted({*core.stamps} - repeated | ({history.end_ts} if history.complete else set()))
        for start, end in ((a, b) for a, b in pairwise(stamps) if b - a >= SILENCE_NS):
            for wait in long:
                begin, until = max(start, wait.start), min(end, wait.end)
                if until - begin < SILENCE_NS:
                    continue
                if excuses[number].unexcused_ns(wait.kind, wait.ht, wait.vm, begin, until) < SILENCE_NS:
                    continue
                text = (
                    f"c{number}h{wait.ht} waited (gate.{wait.kind}) while c{number} was silent"
                    f" for {(end - start) / 1e9:.1f} s"
                )
                finding.violate(start, number, (wait.ht,), (wait.seq,), text)
                break
    return finding
