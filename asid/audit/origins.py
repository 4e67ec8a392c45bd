"""Nothing comes from nothing: an admission answers an ask, an answer a kick, and who acts was started and tells of it.

Records that stand alone mean either a gate that did what nobody had asked for, which breaks a guarantee, or a journal
that lacks what must be there (`holes`): nothing is claimed then.
"""

from __future__ import annotations

from asid.audit.finding import Finding
from asid.audit.history import CoreHistory, History

SIGKILLED = -9
HOLES_KEPT = 5


def admissions(finding: Finding, number: int, core: CoreHistory) -> None:
    """Part of G1: an admission answers the last ask of its hyperthread, or what a new coordinator was told."""
    for ht, rows in core.gate_of.items():
        asked = 0  # the request that is open; 0 for none
        told = False  # the whole state, by which an ask may be open
        for row in rows:
            if row.kind == "gate.ask":
                asked, told = row.number, False
            elif row.kind == "gate.resync":
                told = True
            elif row.kind == "gate.admit":
                if asked != row.number and not told:
                    why = f"it had asked in request {asked}" if asked else "it had not asked"
                    text = f"c{number}h{ht} was admitted in request {row.number}, but {why}"
                    finding.violate(row.ts, number, (ht,), (row.seq,), text)
                asked, told = 0, False


def kicks(finding: Finding, history: History, number: int, core: CoreHistory) -> None:
    """Part of G4: a kick that was answered or seen was sent. A coordinator that is killed takes records along."""
    lost = not history.complete or any(death.status for death in core.deaths.get(-1, ()))
    for ht, rows in core.seen.items() if not lost else ():
        sent = {row.number for row in core.gate_of.get(ht, ()) if row.kind == "gate.kick"}
        for seen in rows:
            if seen.number not in sent:
                text = f"c{number}h{ht} saw kick {seen.number}, which was never sent"
                finding.violate(seen.ts, number, (ht,), (seen.seq,), text)
    for ht, told in core.gate_of.items():
        kicked: set[int] = set()
        for row in told:
            if row.kind == "gate.kick":
                kicked.add(row.number)
            elif row.kind == "gate.answer" and row.number not in kicked:
                text = f"c{number}h{ht} answered kick {row.number}, which was never sent"
                finding.violate(row.ts, number, (ht,), (row.seq,), text)


def holes(history: History) -> list[str]:
    """Return what must be in a whole journal and is not: the start of who acts, and the modes of who reports."""
    out: list[str] = []
    for number, core in history.cores.items():
        for ht in core.hts():
            started = {row.inc for row in core.spawns.get(ht, ())}
            killed = {row.inc for row in core.deaths.get(ht, ()) if row.status == SIGKILLED}
            acted = {row.inc for row in core.modes.get(ht, ())}
            told = {row.inc for row in core.gate_of.get(ht, ()) if row.kind in ("gate.ready", "gate.resync")}
            if history.complete and not killed:
                seen = {row.number for row in core.seen.get(ht, ())}
                out += [f"c{number}h{ht} answered kick {row.number}, and did not note that it saw it"
                        for row in core.gate_of.get(ht, ())
                        if row.kind == "gate.answer" and row.number not in seen]  # fmt: skip
            out += [f"c{number}h{ht} acted in incarnation {inc}, of whose start there is no record"
                    for inc in sorted((acted | told) - started)]  # fmt: skip
            if history.complete:
                out += [f"c{number}h{ht} of incarnation {inc} reported to its gate, and no mode of it is recorded"
                        for inc in sorted(told - acted - killed)]  # fmt: skip
        if core.gate and history.begin and history.complete:
            out += [f"of the start of c{number}h{ht} there is no record"
                    for ht in range(history.frame.smt) if ht not in core.spawns]  # fmt: skip
        if core.gate and -1 not in core.spawns:
            out.append(f"the gate of c{number} acted, and of its coordinator's start there is no record")
    more = len(out) - HOLES_KEPT
    return out[:HOLES_KEPT] + ([f"and {more} more of this kind"] if more > 0 else [])
