"""The guarantees about what goes wrong: doubt and deaths. From the history alone, as in `checks`."""

from __future__ import annotations

from bisect import bisect_left

from asid.audit.finding import Finding
from asid.audit.history import CoreHistory, History
from asid.audit.rows import ProcessRow

RECOVERY_NS = 5_000_000_000
OPENINGS = frozenset({"gate.admit", "gate.grant"})
OF_DOUBT = OPENINGS | {
    "gate.fence",
    "gate.dead",
    "gate.ready",
    "gate.resync",
    "gate.answer",
    "gate.hold",
    "gate.release",
}


def g11_fail_closed(history: History) -> Finding:
    """G11. In doubt the gate is closed; only a confirmed death counts as one.

    Reads: gate.* of each core in the coordinator's own order, spawn and death. Broken by:
    (a) gate.dead without a confirmed death of that incarnation before it;
    (b) an admission or a grant between gate.fence and the gate.dead of that hyperthread: it is silent, so it may be
        anywhere (after a confirmed death it runs nothing, and the gate may not know yet: that is no doubt; nor is
        there any once its answer, or its state after a restart of the coordinator, has come after all, while the
        SIGKILL was on its way);
    (c) an admission of a hyperthread that is dead to the gate, before its new incarnation is ready;
    (d) after a coordinator's death, an admission or a grant before every hyperthread that was alive then has told
        its state to the new one, or is confirmed dead;
    (e) an admission while a client holds the gate.
    Exercised by fences, deaths, restarts and holds.
    """
    finding = Finding("G11")
    for number, core in history.cores.items():
        _g11_core(finding, number, core)
    return finding


def _g11_core(finding: Finding, number: int, core: CoreHistory) -> None:
    restarts = [row.ts for row in core.deaths.get(-1, ())]
    dead_ts: dict[tuple[int, int], int] = {}
    for ht, rows in core.deaths.items():
        for death in rows:
            dead_ts.setdefault((ht, death.inc), death.ts)
    fenced: dict[int, int] = {}  # ht -> seq of the fence
    buried: dict[int, int] = {}  # ht -> seq of the gate.dead
    silent: dict[int, int] = {}  # ht -> incarnation that has not told its state to this coordinator
    hold_seq = 0
    next_restart = 0
    for row in core.gate:
        while next_restart < len(restarts) and row.ts > restarts[next_restart]:
            ts = restarts[next_restart]
            silent = {ht: inc for ht in core.hts() if (inc := _alive_at(core, ht, ts))}
            fenced, hold_seq = {}, 0
            finding.checked += 1
            next_restart += 1
        if row.kind not in OF_DOUBT:
            continue
        if row.kind == "gate.fence":
            finding.checked += 1
            fenced[row.ht] = row.seq
        elif row.kind == "gate.dead":
            finding.checked += 1
            fenced.pop(row.ht, None)
            silent.pop(row.ht, None)
            buried[row.ht] = row.seq
            if dead_ts.get((row.ht, row.inc), row.ts + 1) > row.ts:
                text = f"the gate took incarnation {row.inc} of c{number}h{row.ht} for dead without a confirmed death"
                finding.violate(row.ts, number, (row.ht,), (row.seq,), text)
        elif row.kind in ("gate.ready", "gate.resync"):
            silent.pop(row.ht, None)
            buried.pop(row.ht, None)
            fenced.pop(row.ht, None)
        elif row.kind == "gate.answer":
            fenced.pop(row.ht, None)
        elif row.kind == "gate.hold":
            finding.checked += 1
            hold_seq = row.seq
        elif row.kind == "gate.release":
            hold_seq = 0
        elif row.kind in OPENINGS and (fenced or silent or hold_seq or row.ht in buried):
            what = f"c{number}h{row.ht} was {'admitted' if row.kind == 'gate.admit' else 'granted HOST'}"
            for ht, seq in fenced.items():
                text = f"{what} while c{number}h{ht} was fenced and not confirmed dead"
                finding.violate(row.ts, number, (row.ht, ht), (seq, row.seq), text)
            for ht, inc in list(silent.items()):
                if dead_ts.get((ht, inc), row.ts + 1) <= row.ts:
                    del silent[ht]
                    continue
                text = f"{what} before c{number}h{ht} had told its state to the new coordinator"
                finding.violate(row.ts, number, (row.ht, ht), (row.seq,), text)
            if row.kind == "gate.admit" and row.ht in buried:
                text = f"{what}, dead to the gate and not ready again"
                finding.violate(row.ts, number, (row.ht,), (buried[row.ht], row.seq), text)
            if row.kind == "gate.admit" and hold_seq:
                finding.violate(row.ts, number, (row.ht,), (hold_seq, row.seq), f"{what} while a client held the gate")


def _alive_at(core: CoreHistory, ht: int, ts: int) -> int:
    """Return the incarnation alive at a moment, 0 for none."""
    born = [row for row in core.spawns.get(ht, ()) if row.ts <= ts]
    if not born:
        return 0
    inc = born[-1].inc
    return 0 if any(row.inc >= inc and row.ts <= ts for row in core.deaths.get(ht, ())) else inc


def l4_recovery(history: History) -> Finding:
    """L4. After the death of any one process the rest goes on: it is back within 5 s, or the run ends in order.

    Reads: death, spawn, gate.ready, gate.resync, gate.bye, ht.mode, run.end. Broken by: a death by signal or error
    that no ready successor follows. An orderly exit (status 0, or after gate.bye) needs no successor, and one that is
    killed again before it is ready is judged at its next death.
    """
    finding = Finding("L4")
    for number, core in history.cores.items():
        for ht, deaths in core.deaths.items():
            for at, death in enumerate(deaths):
                if death.status == 0 or _said_bye(core, ht, death):
                    continue
                limit = death.ts + RECOVERY_NS
                back = _is_back(core, ht, death, limit)
                dies_again = at + 1 < len(deaths) and deaths[at + 1].ts <= limit
                if not back and (dies_again or history.end_ts <= limit):
                    continue  # not judged: it died again, or the run or its journal ended, before the time was up
                finding.checked += 1
                if not back:
                    who = f"c{number}h{ht}" if ht >= 0 else f"the coordinator of c{number}"
                    text = f"{who} died (status {death.status}) and was not ready again within 5 s"
                    finding.violate(death.ts, number, (ht,), (death.seq,), text)
    return finding


def _said_bye(core: CoreHistory, ht: int, death: ProcessRow) -> bool:
    born = max((row.ts for row in core.spawns.get(ht, ()) if row.inc <= death.inc), default=0)
    return any(row.kind == "gate.bye" and born <= row.ts <= death.ts for row in core.gate_of.get(ht, ()))


def _is_back(core: CoreHistory, ht: int, death: ProcessRow, limit: int) -> bool:
    if not any(row.inc > death.inc and row.ts <= limit for row in core.spawns.get(ht, ())):
        return False
    if ht < 0:
        at = bisect_left(core.gate, death.ts + 1, key=lambda row: row.ts)
        return at < len(core.gate) and core.gate[at].ts <= limit
    told = any(
        row.kind in ("gate.ready", "gate.resync") and row.inc > death.inc and row.ts <= limit
        for row in core.gate_of.get(ht, ())
    )
    return told or any(row.inc > death.inc and row.ts <= limit for row in core.modes.get(ht, ()))
