"""G6: what the isolated address space does not map is never served from it in silence."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from asid.audit.finding import Finding, name_of
from asid.audit.history import CoreHistory, History
from asid.audit.regime import INVOLUNTARY
from asid.audit.rows import FastKind, FaultRow
from asid.audit.spaces import Asked, Spaces
from asid.errors import AsidError

INTERRUPTS = frozenset({"EXTERNAL_INTERRUPT", "interrupt"})
JUST_BEFORE_NS = 1_000_000  # from a decision to the stamp that its leave's wait is counted from: less than this


def g6_isolation(history: History, spaces: Spaces | None) -> Finding:
    """G6. An access that the isolated space does not map is reported and makes a leave; it is never served in silence.

    Reads: fault, ht.mode, exit, leave, space.map and space.unmap; of the run directory what was mapped at the start.
    Broken by: a fault whose hyperthread enters guest again before it was in HOST, unless it died or its vCPU was taken
    away; a fast exit although not even the least that handling its reason touches was mapped; a leave for an object
    that was mapped. The last two are asked of the policies that isolate. Not exercised when no exit was decided by a
    mapping.
    """
    finding = Finding("G6")
    for number, core in history.cores.items():
        for ht, faults in core.decided.faults.items():
            for row in faults:
                _left(finding, number, core, ht, row)
    if spaces is None or not spaces.exist:
        return finding
    try:
        for number, core in history.cores.items():
            _fast(finding, history, number, core, spaces)
            _missed(finding, history, number, core, spaces)
    except AsidError as unknown:
        finding.remark = f"what was mapped is not known: {unknown}"
    return finding


def _left(finding: Finding, number: int, core: CoreHistory, ht: int, fault: FaultRow) -> None:
    """A fault is followed by HOST, before its hyperthread enters guest again."""
    finding.checked += 1
    if fault.ending == "stopped":
        return
    modes = core.modes.get(ht, [])
    at = bisect_left(modes, (fault.ts, fault.seq), key=lambda row: (row.ts, row.seq))  # one writer's, so in its order
    if at and modes[at - 1].new == "HOST":
        return
    for row in modes[at:]:
        if row.new == "HOST" and row.via not in INVOLUNTARY:
            return
        if row.new == "OFFLINE" or row.old == "OFFLINE":
            return  # it died, and this is another life
        if row.new == "GUEST":
            if not _idled(core, ht, fault.ts, row.ts):
                text = f"{name_of(number, ht)} entered guest again without a leave after it missed {fault.object!r}"
                finding.violate(row.ts, number, (ht,), (fault.seq, row.seq), f"{text} in an exit {fault.reason}")
            return


def _idled(core: CoreHistory, ht: int, start: int, end: int) -> bool:
    return any(row.kind == "gate.idle" and start <= row.ts <= end for row in core.gate_of.get(ht, ()))


def _fast(finding: Finding, history: History, number: int, core: CoreHistory, spaces: Spaces) -> None:
    """What a fast exit touches in any case was mapped."""
    from asid.mm.footprint import footprint_of

    for kind, (ts, seq, n) in core.decided.fast.items():
        if not kind.vms or not history.regime(ts).isolates or _told_how(history, number, kind):
            continue
        accesses = footprint_of(kind.reason, "svm" if kind.isa == "svm" else "vmx")
        if not accesses:
            continue
        finding.checked += n
        asked = [Asked(number, kind.ht, vm, ts, kind.changes) for vm in kind.vms]
        if not any(spaces.translate(history, one, accesses) for one in asked):
            text = f"an exit {kind.reason} of vm{kind.vms[-1]} on {name_of(number, kind.ht)} was fast"
            text += ", although what it touches in any case was not mapped"
            finding.violate(ts, number, (kind.ht,), (seq,), text)


def _told_how(history: History, number: int, kind: FastKind) -> bool:
    """Whether a client may have said itself what its interrupt's handler touches."""
    return kind.reason in INTERRUPTS and any(
        row.what == "irq" and (row.core, row.ht) == (number, kind.ht)
        for rows in history.injects.values()
        for row in rows
    )


def _missed(finding: Finding, history: History, number: int, core: CoreHistory, spaces: Spaces) -> None:
    """What a leave was for was not mapped when it was missed."""
    from asid.mm.footprint import footprint_of

    known: set[tuple[object, ...]] = set()  # what was found to be true, and is for all that decided alike
    for ht, rows in core.decided.missed.items():
        stamps = [row.ts for row in core.decided.changes.get(ht, ())]
        for row in rows:
            if not row.vm or not history.regime(row.decided_ns).isolates:
                continue
            finding.checked += 1
            changes = tuple(_between(stamps, row.decided_ns - JUST_BEFORE_NS, row.decided_ns))
            alike = (ht, row.vm, row.object, row.reason, changes)
            if alike in known:
                continue
            accesses = footprint_of(row.reason, whole=True)
            asked = [Asked(number, ht, row.vm, row.decided_ns, n) for n in changes]
            if not accesses or any(spaces.lack(history, one, row.object, accesses) for one in asked):
                known.add(alike)
                continue
            text = f"{name_of(number, ht)} left for {row.object!r} in an exit {row.reason}, although it was mapped"
            finding.violate(row.ts, number, (ht,), (row.seq,), text)


def _between(stamps: list[int], start: int, end: int) -> Iterator[int]:
    """Yield how many of the stamps may have passed at some moment from start to end."""
    yield from range(bisect_left(stamps, start), bisect_left(stamps, end + 1) + 1)
