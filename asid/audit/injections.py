"""G8: what became of each injection. The daemon's word for it needs somebody else's record."""

from __future__ import annotations

import re
from bisect import bisect_left

from asid.audit.finding import Finding
from asid.audit.history import History
from asid.audit.rows import DoneRow, InjectRow, IntrRow

UNSENT_NS = 1_000_000_000  # how long a hyperthread may keep records before it sends them
STOP_NS = 10_000_000_000  # from refusing what is open because the machine stops to the end of the run
DETACHED = frozenset({"gate.idle", "gate.ready"})  # said without a vCPU
ATTACHED = DETACHED | {"gate.ask", "gate.admit"}
_PLACE = re.compile(r"c(\d+)(?:h(\d+))?$")


def g8_injections(history: History) -> Finding:
    """G8. Each accepted injection is done exactly once, or lost with the hyperthread that died.

    Reads: inject, inject.done, intr (id), exit (reason, n), death, gate.idle, gate.bye, run.end. Broken by: an id
    accepted or done twice, never done, done or handled without being accepted, or handled twice by one hyperthread; one
    called
    handled   NMI or #MC: no handler ran for it; exits: its hyperthread had fewer of that reason while it was open
    merged    that is no NMI or #MC, or that no later handler of its hyperthread took along
    lost      while its hyperthread lived
    refused   while its hyperthread kept its vCPU and the machine did not stop
    """
    finding = Finding("G8")
    handled: dict[tuple[int, int, int], int] = {}  # (id, core, ht) -> seq
    ids_run: set[int] = set()
    for number, core in history.cores.items():
        for ht, rows in core.intrs.items():
            for intr in rows:
                if intr.id == 0:
                    continue  # nobody injected it: the hardware's own, or a sibling's broadcast
                ids_run.add(intr.id)
                if intr.id not in history.injects and history.begin:
                    text = f"c{number}h{ht} handled injection {intr.id}, which was never accepted"
                    finding.violate(intr.ts, number, (ht,), (intr.seq,), text)
                before = handled.setdefault((intr.id, number, ht), intr.seq)
                if before != intr.seq:
                    text = f"injection {intr.id} was handled twice by c{number}h{ht}"
                    finding.violate(intr.ts, number, (ht,), (before, intr.seq), text)
    for id_, accepted in history.injects.items():
        finding.checked += 1
        dones = history.dones.get(id_, [])
        row = accepted[0]
        where, hts = row.core, (row.ht,) if row.ht >= 0 else ()
        what = f"injection {id_} ({row.what} {row.target})"
        if len(accepted) > 1:
            seqs = tuple(a.seq for a in accepted[:2])
            finding.violate(accepted[1].ts, where, hts, seqs, f"{what} was accepted twice")
        if len(dones) > 1:
            seqs = (row.seq, *(done.seq for done in dones[:3]))
            finding.violate(dones[1].ts, where, hts, seqs, f"{what} was done {len(dones)} times")
        elif not dones:
            if history.complete:
                finding.violate(row.ts, where, hts, (row.seq,), f"{what} was never done")
        else:
            why = _belied(history, id_, row, dones[0], id_ in ids_run)
            if why:
                finding.violate(dones[0].ts, where, hts, (row.seq, dones[0].seq), f"{what} {why}")
    for id_, dones in history.dones.items():
        if id_ not in history.injects:
            finding.violate(dones[0].ts, -1, (), (dones[0].seq,), f"injection {id_} was done and never accepted")
    return finding


def _belied(history: History, id_: int, row: InjectRow, done: DoneRow, ran: bool) -> str:
    """Return what speaks against the result of an injection; empty for nothing."""
    interrupt = row.what in ("nmi", "mce")
    if done.result == "lost":
        return "" if _died(history, row, done.ts) else "was lost, but its hyperthread lived"
    if done.result == "merged":
        if not interrupt:
            return "counts as merged, and only NMIs and #MCs merge"
        return "" if _taken_along(history, id_, row, done) else "counts as merged, but no later handler took it along"
    if not history.complete:
        return ""
    if done.result == "refused":
        return "" if _had_reason(history, row, done) else "was refused, and nothing kept its hyperthread from taking it"
    # The handler's record may have died with a hyperthread that was killed right after it.
    if interrupt and not ran and not _died(history, row, done.ts + UNSENT_NS):
        return "counts as handled, but no handler ran"
    counted = history.exits_of.get(id_)
    if counted is not None and counted < row.n and not _died(history, row, done.ts + UNSENT_NS):
        return f"counts as handled, but its hyperthread had {counted} of its {row.n} exits"
    return ""


def _taken_along(history: History, id_: int, row: InjectRow, done: DoneRow) -> bool:
    rows: list[IntrRow] = history.core(row.core).intrs.get(row.ht, []) if row.core >= 0 else []
    at = bisect_left(rows, row.ts, key=lambda intr: intr.ts)
    while at < len(rows) and rows[at].ts <= done.ts:
        if rows[at].what == row.what and rows[at].id > id_:
            return True
        at += 1
    return False


def _had_reason(history: History, row: InjectRow, done: DoneRow) -> bool:
    """Tell whether the target lost its vCPU (exits need one), said goodbye or died, or the machine was stopping."""
    if row.core < 0:
        return True  # of no core: nothing that could be looked at
    core = history.core(row.core)
    if row.what in ("exit", "irq"):
        begin, end = row.ts - UNSENT_NS, done.ts + UNSENT_NS
        told = [said for said in core.gate_of.get(row.ht, ()) if said.kind in ATTACHED and said.ts <= end]
        if told and (told[-1].kind in DETACHED or any(s.kind in DETACHED and s.ts >= begin for s in told)):
            return True
        if any(begin <= death.ts <= end for death in core.deaths.get(row.ht, ())):
            return True
    if history.end_ts > done.ts + STOP_NS:
        return False
    # The machine stops: everybody goes, and nobody comes back.
    gone = [death.ts for death in core.deaths.get(row.ht, ()) if row.ts <= death.ts]
    back = any(spawn.ts > done.ts for spawn in core.spawns.get(row.ht, ()))
    return bool(gone) and not back


def _died(history: History, row: InjectRow, until: int) -> bool:
    """Tell whether the target was dead, or died, between the injection and `until`."""
    core_number, ht = row.core, row.ht
    place = _PLACE.match(row.target)
    if core_number < 0 and place is not None:
        core_number = int(place[1])
        ht = int(place[2]) if place[2] is not None else -1
    for number, core in history.cores.items():
        if core_number >= 0 and number != core_number:
            continue
        for who, deaths in core.deaths.items():
            if ht >= 0 and who not in (ht, -1):
                continue
            for death in deaths:
                # By incarnation, not by time: in virtual time a birth and a death may be of the same nanosecond.
                alive_again = any(born.inc > death.inc and born.ts <= row.ts for born in core.spawns.get(who, ()))
                if death.ts <= until and not (death.ts < row.ts and alive_again):
                    return True
    return False
