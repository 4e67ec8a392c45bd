"""The safety guarantees, one function each, from the history alone.

Each function says what it reads and what breaks it. Where the order of two records of different processes cannot be
told from their stamps, the run gets the benefit of the doubt; a check that needs a coordinator's record looks no
further than that coordinator's last one (`History.horizon_ns`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise

from asid.audit.finding import Finding, name_of
from asid.audit.history import CoreHistory, History
from asid.audit.intervals import Lease
from asid.audit.origins import admissions, kicks
from asid.audit.rows import GateRow, ModeRow

OF_SIBLINGS = frozenset({"gate.admit", "gate.grant", "gate.leave", "gate.ask", "gate.done", "gate.answer", "gate.dead",
                         "gate.idle", "gate.bye", "gate.resync", "gate.ready"})  # fmt: skip


def _guest_begins(core: CoreHistory, ht: int, until: int) -> list[ModeRow]:
    rows = core.guests.get(ht, [])
    return rows if until >= core.guests_until_ns else [row for row in rows if row.ts <= until]


def g1_admission(history: History, held: dict[int, dict[int, list[Lease]]]) -> Finding:
    """G1. Guest only under a lease, and a lease only when every sibling has reported isolated.

    Reads: ht.mode to GUEST, gate.admit, and what ends a lease (gate.grant, answer, leave, dead, an ask under a new
    number); of the siblings the last thing the gate wrote down. Broken by: a GUEST without an admission of the same
    round and incarnation in force, an admission while the gate knew a sibling in HOST or leased to another VM, or one
    that nobody had asked for.
    """
    finding = Finding("G1")
    if history.gateless and not history.counts.admits:
        finding.remark = "policy none has no gate"
        return finding
    for number, core in history.cores.items():
        horizon = history.horizon_ns(core)
        for ht in core.hts():
            _g1_leases(finding, number, ht, _guest_begins(core, ht, horizon), held[number].get(ht, []))
        _g1_siblings(finding, history, number, core)
        admissions(finding, number, core)
    return finding


def _g1_leases(finding: Finding, number: int, ht: int, begins: list[ModeRow], held: list[Lease]) -> None:
    starts = [lease.start for lease in held]
    for row in begins:
        finding.checked += 1
        # Leases of one hyperthread follow each other; at equal stamps two of them may cover the moment.
        at = bisect_right(starts, row.ts) - 1
        if at >= 0:
            last = held[at]
            if last.end >= row.ts and last.round == row.round and last.inc == row.inc:
                continue  # as nearly always
        near = [lease for lease in held[max(0, at - 1) : at + 1] if lease.end >= row.ts]
        if any(lease.round == row.round and lease.inc == row.inc for lease in near):
            continue
        seqs = (row.seq, *(lease.seq for lease in held[max(0, at) : at + 1]))
        if near:
            why = f"its lease is of round {near[-1].round} incarnation {near[-1].inc}"
        else:
            why = "its lease had ended" if at >= 0 else "it was never admitted"
        text = f"{name_of(number, ht)} entered guest in round {row.round} incarnation {row.inc}, but {why}"
        finding.violate(row.ts, number, (ht,), seqs, text)


def _g1_siblings(finding: Finding, history: History, number: int, core: CoreHistory) -> None:
    # (word, vm, its record) as the gate last wrote it down; TOLD is compatible with all, for its mode is not in there.
    known: dict[int, tuple[str, int, GateRow]] = {}
    for row in core.gate:
        if row.kind not in OF_SIBLINGS:
            continue
        if row.kind == "gate.admit":
            regime = history.regime(row.ts)
            finding.checked += regime.guarded or regime.keeps_vms_apart
            for ht, (word, vm, told) in known.items():
                host = word == "HOST" and regime.guarded
                if ht != row.ht and (host or (word == "LEASE" and vm != row.vm and regime.keeps_vms_apart)):
                    # A coordinator that comes back is born knowing who is dead, and writes nothing down about it.
                    if any(told.ts <= death.ts <= row.ts for death in core.deaths.get(ht, ())):
                        continue
                    beside = "was granted HOST" if word == "HOST" else f"held a lease of vm{vm}"
                    text = f"{name_of(number, row.ht)} was admitted for vm{row.vm} while {name_of(number, ht)} {beside}"
                    finding.violate(row.ts, number, (row.ht, ht), (told.seq, row.seq), text)
            known[row.ht] = ("LEASE", row.vm, row)
        elif row.kind == "gate.grant":
            known[row.ht] = ("HOST", 0, row)
        elif row.kind in ("gate.leave", "gate.ask") and known.get(row.ht, ("",))[0] == "HOST":
            # It asks again under a new number: it had not seen that grant, and will not use it.
            known[row.ht] = ("TOLD", 0, row)
        elif row.kind == "gate.ask" and row.ht in known and row.number != known[row.ht][2].number:
            known[row.ht] = ("OUT", 0, row)  # as to an admission: who asks anew has none, and will not use the last
        elif row.kind in ("gate.done", "gate.answer", "gate.dead", "gate.idle", "gate.bye") or _parked(row):
            known[row.ht] = ("OUT", 0, row)
        elif row.kind in ("gate.resync", "gate.ready"):
            # With `send` a hyperthread leaves HOST without a word, so its report of HOST may be over by now.
            sure = row.mode == "HOST" and history.regime(row.ts).via == "grant"
            known[row.ht] = ("HOST" if sure else "TOLD", 0, row)


def _parked(row: GateRow) -> bool:
    """Tell whether a leave came from one that holds no lease, and will use none that is under way."""
    return row.kind == "gate.leave" and row.mode == "PARKED"


def g4_kick(history: History) -> Finding:
    """G4. After its pending bit is visible a hyperthread starts no guest instruction before a later admission.

    Reads: kick.seen (insns), gate.kick, gate.answer, gate.admit, ht.mode to GUEST. Broken by: an instruction retired
    behind the bit (the one that had passed its look is announced before it, so the kicker's count has it already; a
    kick whose insns were not measured is not counted as checked); a GUEST after the kick was seen and before the next
    admission; a second GUEST after the kick was sent; a kick that was seen or answered and never sent. The first GUEST
    may have been under way when the bit was set: counted as suspect, and its insns tell.
    """
    finding = Finding("G4")
    for number, core in history.cores.items():
        horizon = history.horizon_ns(core)
        for ht in core.hts():
            seen = core.seen.get(ht, [])
            for row in seen:
                if row.insns is None:
                    continue
                finding.checked += 1
                if row.insns > 0:
                    n = f"{row.insns} instruction{'s' * (row.insns > 1)}"
                    text = f"{name_of(number, ht)} retired {n} after kick {row.number} was visible"
                    finding.violate(row.ts, number, (ht,), (row.seq,), text)
            told = core.gate_of.get(ht, ())
            admits = [row.ts for row in told if row.kind == "gate.admit"]
            sent = [row for row in told if row.kind == "gate.kick"]
            _g4_entries(finding, number, ht, _guest_begins(core, ht, horizon), admits, sent,
                        [(row.ts, row.seq) for row in seen])  # fmt: skip
        kicks(finding, history, number, core)
    return finding


def _g4_entries(
    finding: Finding,
    number: int,
    ht: int,
    begins: list[ModeRow],
    admits: list[int],
    kicks: list[GateRow],
    seen: list[tuple[int, int]],
) -> None:
    kick_ts, seen_ts = [row.ts for row in kicks], [ts for ts, _ in seen]
    in_flight = -1  # the admission under which one entry was under way already
    for row in begins:
        at = bisect_right(admits, row.ts)
        admitted = admits[at - 1] if at else -1
        s = bisect_left(seen_ts, row.ts) - 1
        k = bisect_left(kick_ts, row.ts) - 1
        if s >= 0 and seen_ts[s] > admitted:
            text = f"{name_of(number, ht)} entered guest after it had seen a kick, and was not admitted again"
            finding.violate(row.ts, number, (ht,), (seen[s][1], row.seq), text)
        elif k >= 0 and kick_ts[k] > admitted:
            if in_flight == at:
                text = f"{name_of(number, ht)} entered guest twice after it was kicked"
                finding.violate(row.ts, number, (ht,), (kicks[k].seq, row.seq), text)
            else:
                finding.suspects += 1
            in_flight = at


def g5_rounds(history: History) -> Finding:
    """G5. Rounds and incarnations only grow, and nobody is ahead of the gate.

    Reads: the round of every gate record, ht.mode (round, inc), spawn and death. Broken by: a smaller round after a
    larger one; a hyperthread in a round that its gate has not reached; an incarnation used twice; a record of a
    process stamped after its confirmed death.
    """
    finding = Finding("G5")
    for number, core in history.cores.items():
        steps: list[int] = []
        rounds: list[int] = []
        for row in core.gate:
            if row.round == 0:
                continue
            finding.checked += 1
            if rounds and row.round < rounds[-1]:
                text = f"the gate of c{number} went back from round {rounds[-1]} to {row.round}"
                finding.violate(row.ts, number, (), (row.seq,), text)
            elif not rounds or row.round > rounds[-1]:
                steps.append(row.ts)
                rounds.append(row.round)
        for ht, spawns in core.spawns.items():
            for before, after in pairwise(spawns):
                finding.checked += 1
                if after.inc <= before.inc:
                    who = name_of(number, ht) if ht >= 0 else f"the coordinator of c{number}"
                    text = f"incarnation {after.inc} of {who} was started after incarnation {before.inc}"
                    finding.violate(after.ts, number, (ht,), (before.seq, after.seq), text)
        horizon = history.horizon_ns(core)
        for ht, modes in core.modes.items():
            _g5_modes(finding, number, core, ht, modes, steps, rounds, horizon)
    return finding


def _g5_modes(
    finding: Finding,
    number: int,
    core: CoreHistory,
    ht: int,
    modes: list[ModeRow],
    steps: list[int],
    rounds: list[int],
    horizon: int,
) -> None:
    died = {row.inc: row for row in core.deaths.get(ht, ())}
    inc = 0
    for row in modes:
        if row.inc < inc:
            text = f"{name_of(number, ht)} of incarnation {row.inc} acted after incarnation {inc} had begun"
            finding.violate(row.ts, number, (ht,), (row.seq,), text)
        inc = max(inc, row.inc)
        death = died.get(row.inc)
        if death is not None and row.ts > death.ts:
            text = f"{name_of(number, ht)} acted after its death was confirmed"
            finding.violate(row.ts, number, (ht,), (death.seq, row.seq), text)
        if row.round and rounds and row.ts <= horizon:
            finding.checked += 1
            at = bisect_right(steps, row.ts)
            reached = rounds[at - 1] if at else 0
            if row.round > reached:
                text = f"{name_of(number, ht)} is in round {row.round}, its gate in round {reached}"
                finding.violate(row.ts, number, (ht,), (row.seq,), text)
