"""G10: the handlers of NMIs and #MCs, from each hyperthread's own records in its own order."""

from __future__ import annotations

from bisect import bisect_right
from heapq import merge
from operator import attrgetter

from asid.audit.finding import Finding, name_of
from asid.audit.history import CoreHistory, History
from asid.audit.meetings import meetings
from asid.audit.regime import INVOLUNTARY
from asid.audit.rows import IntrRow, ModeRow


def g10_interrupts(history: History) -> Finding:
    """G10. NMI and #MC handlers nest by depth, restore the interrupted mode, and wait for nobody, but in the rendezvous
    of a machine check of all siblings: that has one monarch, and an end (see `meetings`).

    Reads: intr and ht.mode of each hyperthread in its own order; held, gate.wait and leave. Broken by: an outer
    handler that ends before an inner one, an NMI inside an NMI, a HOST by nmi or mce that does not go back to the mode
    it came from (ISOLATED for GUEST), a HOST by nmi or mce that no handler ended (its hyperthread was not killed in
    it), a wait inside a handler.
    """
    finding = Finding("G10")
    for number, core in history.cores.items():
        for ht in sorted({*core.intrs, *core.modes}):
            intrs, modes = core.intrs.get(ht, []), core.modes.get(ht, [])
            if intrs:
                deaths = [row.ts for row in core.deaths.get(ht, ())]
                _g10_nesting(finding, number, ht, intrs, deaths, history.complete)
            if any(row.via in INVOLUNTARY for row in core.hosts.get(ht, ())):
                _g10_restore(finding, number, ht, modes, core.waited.get(ht, []))
                _g10_handlers(finding, history, number, core, ht)
    meetings(finding, history)
    return finding


def _g10_nesting(
    finding: Finding, number: int, ht: int, intrs: list[IntrRow], deaths: list[int], complete: bool
) -> None:
    inner: IntrRow | None = None  # the handler that ended last, while those around it still run
    ends = merge(((row.ts, row.seq, row) for row in intrs), ((ts, 1 << 62, None) for ts in deaths))
    for _, _, row in ends:
        if row is None:
            inner = None  # a death ends all handlers
            continue
        finding.checked += 1
        what = f"{name_of(number, ht)}: the {row.what} handler of depth {row.depth}"
        seqs = (inner.seq, row.seq) if inner else (row.seq,)
        if row.depth < 1:
            finding.violate(row.ts, number, (ht,), seqs, f"{what}: the outermost has depth 1")
        elif inner is not None and row.depth < inner.depth - 1:
            finding.violate(row.ts, number, (ht,), seqs, f"{what} ended before the one of depth {inner.depth - 1}")
        elif inner is not None and row.depth == inner.depth - 1 and row.what == inner.what == "nmi":
            finding.violate(row.ts, number, (ht,), seqs, f"{what} had an NMI inside: an NMI blocks NMIs")
        inner = row if row.depth > 1 else None
    if inner is not None and complete:
        text = f"{name_of(number, ht)}: the handler around one of depth {inner.depth} never ended"
        finding.violate(inner.ts, number, (ht,), (inner.seq,), text)


def _g10_restore(finding: Finding, number: int, ht: int, modes: list[ModeRow], waited: list[tuple[int, str]]) -> None:
    entry: ModeRow | None = None
    for row in modes:
        if entry is not None and row.inc != entry.inc:
            entry = None  # killed inside the handler
        if entry is not None and row.new == "HOST":
            continue  # a handler on top of it; it is still HOST
        if entry is not None:
            finding.checked += 1
            due = "ISOLATED" if entry.old == "GUEST" else entry.old
            if row.new != due:
                text = f"{name_of(number, ht)} came back from an {entry.via} to {row.new}, not to {due}"
                finding.violate(row.ts, number, (ht,), (entry.seq, row.seq), text)
            at = bisect_right(waited, (entry.seq, ""))
            if at < len(waited) and waited[at][0] < row.seq:
                seq, kind = waited[at]
                text = f"{name_of(number, ht)} waited ({kind}) inside an {entry.via} handler"
                finding.violate(row.ts, number, (ht,), (entry.seq, seq), text)
            entry = None
        elif row.new == "HOST" and row.old != "HOST" and row.via in INVOLUNTARY:
            entry = row


def _g10_handlers(finding: Finding, history: History, number: int, core: CoreHistory, ht: int) -> None:
    """Each HOST by nmi or mce has its handler's end, before the main line goes on and before the next of its kind."""
    rows: list[ModeRow | IntrRow] = [*core.modes.get(ht, ()), *core.intrs.get(ht, ())]
    rows.sort(key=attrgetter("seq"))
    under_way: dict[str, ModeRow] = {}
    inc, inside = 0, ""
    for row in rows:
        if isinstance(row, IntrRow):
            under_way.pop(row.what, None)
            continue
        if row.inc != inc:
            _g10_lost(finding, number, core, ht, under_way)
            inc, inside = row.inc, ""
        if row.new == "HOST" and row.via in INVOLUNTARY:
            entry: ModeRow | None = under_way.get(row.via)
            inside = row.via
        elif row.new == "HOST" or not inside:
            entry = next(iter(under_way.values()), None)  # the main line goes on
        else:
            entry, inside = None, ""  # back from it: its end comes next
        if entry is not None:
            text = f"{name_of(number, ht)} went HOST by {entry.via}, and no handler ended"
            finding.violate(entry.ts, number, (ht,), (entry.seq, row.seq), text)
            under_way.pop(entry.via)
        if row.new == "HOST" and row.via in INVOLUNTARY:
            under_way[row.via] = row
    if history.complete:
        _g10_lost(finding, number, core, ht, under_way)


def _g10_lost(finding: Finding, number: int, core: CoreHistory, ht: int, under_way: dict[str, ModeRow]) -> None:
    """Of what is under way for ever: only a death that was no orderly exit may have come in between."""
    for entry in under_way.values():
        if not any(death.inc >= entry.inc and death.status != 0 for death in core.deaths.get(ht, ())):
            text = f"{name_of(number, ht)} went HOST by {entry.via}, and no handler ended"
            finding.violate(entry.ts, number, (ht,), (entry.seq,), text)
    under_way.clear()
