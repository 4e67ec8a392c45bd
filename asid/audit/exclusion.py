"""G2 and G3: who was beside whom. From the intervals, and from what the gate and the siblings said before.

A hyperthread's own word for how it came to be in HOST is not taken for it: a granted HOST needs its grant, and an NMI,
a #MC or a `send` leave needs the IPIs that go before it (G10 asks for the end of the handler).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from asid.audit.finding import Finding, name_of
from asid.audit.grants import changes_of, granted, grants
from asid.audit.history import CoreHistory, History
from asid.audit.intervals import Clash, Interval, is_alive
from asid.audit.regime import ASYNC, INVOLUNTARY
from asid.audit.rows import ModeRow
from asid.audit.standstill import stood_beside, stood_still

KICKING = INVOLUNTARY | ASYNC
WINDOW_NS = 3_000_000_000  # of exposure; a sibling that runs at all has looked at its pending bit by then


def _host_and_guest(clash: Clash) -> tuple[Interval, Interval]:
    return (clash.first, clash.second) if clash.first.mode == "HOST" else (clash.second, clash.first)


def g2_exclusion(history: History, clashes: dict[int, list[Clash]]) -> Finding:
    """G2. While a hyperthread is in HOST after a granted leave, no sibling is in GUEST.

    Reads: the intervals; gate.leave, gate.grant, gate.kick, gate.answer, kick.seen; ipi; standstill; policy. Broken by:
    (a) an overlap of a sibling's GUEST with a HOST that the kick in force lets nobody be beside;
    (b) a HOST by grant without a grant of its last request, by send or bare where the policy in force has neither;
    (c) a grant while a sibling held a lease or had not answered its kick, and was not confirmed dead;
    (d) a HOST by nmi, mce, send or stun before every living sibling was sent its IPI;
    (e) a GUEST inside such a HOST that was looked for after it began (the one whose look was before is in flight);
    (f) an exposure beyond WINDOW_NS of a guest that was neither stopped nor killed;
    (g) a real guest whose own count moved on beside a HOST as in (a);
    (h) real guests that moved on beside more visits to HOST by nmi, mce, send or stun than a GUEST was beside.
    An overlap that its policy never promised against counts, and is told apart: each of `none` and `core-sched`, and
    under `kick-except-idle` one beside a sibling that idles. (b) and (c) are promised by all.
    Exercised by voluntary HOST intervals of a core with siblings.
    """
    finding = Finding("G2")
    for number, core in history.cores.items():
        if len(core.hts()) < 2:
            continue
        for ht in core.modes:
            finding.checked += sum(row.via in ("grant", "bare", "") for row in core.hosts.get(ht, ()))
            granted(finding, history, number, core, ht)
            _sent(finding, history, number, core, ht)
        grants(finding, history, number, core)
        for clash in clashes[number]:
            _beside(finding, history, number, core, clash)
    stood_still(finding, history.stood, history.regime)
    if history.complete:
        stood_beside(finding, history.stood, history.regime, _exposed(clashes))
    return finding


def _exposed(clashes: dict[int, list[Clash]]) -> list[tuple[int, int, str]]:
    """Return core, hyperthread and way of each stay in HOST that a guest was beside."""
    pairs = ((number, *_host_and_guest(clash)) for number, found in clashes.items() for clash in found)
    stays = {(number, host) for number, host, guest in pairs if (host.mode, guest.mode) == ("HOST", "GUEST")}
    return [(number, host.ht, host.via) for number, host in stays]


def _beside(finding: Finding, history: History, number: int, core: CoreHistory, clash: Clash) -> None:
    """Judge one overlap with HOST by the policy in force."""
    host, guest = _host_and_guest(clash)
    if host.mode != "HOST":
        return
    if host.suspect or guest.suspect:
        finding.suspects += not history.regime(host.start).exposes(host.via)
        return
    regime = history.regime(clash.start)
    seqs, hts = (clash.first.seq, clash.second.seq), (host.ht, guest.ht)
    if not regime.exposes(host.via):
        text = (
            f"{name_of(number, guest.ht)} was in GUEST(vm{guest.vm}) beside {name_of(number, host.ht)} in HOST"
            f" ({host.via or 'grant'}) for {clash.ns} ns"
        )
        allowed_by = "" if regime.keeps_apart(host.via) else regime.policy
        finding.violate(clash.start, number, hts, seqs, text, allowed_by=allowed_by)
    elif regime.guarded and (text := why_not_in_flight(history, number, core, clash)):
        finding.violate(clash.start, number, hts, seqs, text)


def why_not_in_flight(history: History, number: int, core: CoreHistory, clash: Clash) -> str:
    """Return why the guest beside a HOST that waited for nobody is not one that its pending bit stops, or "".

    That is one whose look at its siblings came before, and which left in WINDOW_NS, or was killed, or stopped.
    """
    host, guest = _host_and_guest(clash)
    if guest.start > host.start and before(core, guest).ts > host.start:
        return f"{name_of(number, guest.ht)} entered guest while {name_of(number, host.ht)} was in HOST by {host.via}"
    if clash.ns > WINDOW_NS and not _was_still(history, core, number, guest):
        return (
            f"{name_of(number, guest.ht)} stayed in GUEST beside {name_of(number, host.ht)} in HOST by {host.via}"
            f" for {clash.ns / 1e9:.1f} s, and nobody had stopped it"
        )
    return ""


def before(core: CoreHistory, stay: Interval) -> ModeRow:
    """Return the mode change before the one that began this stay, or that one when it is the first.

    A handler that hit between the look and the entry restores the mode, and the entry goes on without another look: its
    visit to HOST is passed over. What an IPI says meanwhile is found before the first instruction.
    """
    rows = core.modes[stay.ht]
    at = bisect_left(rows, stay.start, key=lambda row: row.ts)
    while rows[at].seq != stay.seq:
        at += 1
    while at > 2 and rows[at - 1].old == "HOST" and rows[at - 2].via in INVOLUNTARY:
        at -= 2
    return rows[max(0, at - 1)]


def _was_still(history: History, core: CoreHistory, number: int, guest: Interval) -> bool:
    """Tell whether a hyperthread was killed in guest, or stalled by a client: who does not run retires nothing."""
    if any(death.ts == guest.end for death in core.deaths.get(guest.ht, ())):
        return True
    return any(start < guest.end and end > guest.start for start, end in stalls_of(history, number, guest.ht))


def stalls_of(history: History, number: int, ht: int | None = None) -> list[tuple[int, int]]:
    """Return when a client stalled a hyperthread of a core, or anybody of it."""
    out = []
    for id_, rows in history.injects.items():
        row = rows[0]
        if row.what == "stall" and row.core == number and ht in (None, row.ht):
            done = history.dones.get(id_)
            out.append((row.ts, done[0].ts if done else history.end_ts))
    return out


def _sent(finding: Finding, history: History, number: int, core: CoreHistory, ht: int) -> None:
    """(d) Before HOST by nmi, mce, send or stun each living sibling was sent an IPI for it."""
    for row, other in unsent(history, core, ht):
        text = f"{name_of(number, ht)} went HOST by {row.via} without an IPI to {name_of(number, other)}"
        finding.violate(row.ts, number, (ht, other), (row.seq,), text)


def unsent(history: History, core: CoreHistory, ht: int) -> list[tuple[ModeRow, int]]:
    """Return each entry into HOST that is to set pending bits, with each living sibling whose bit it did not set."""
    if ht not in core.unsent:
        core.unsent[ht] = list(_unsent(history, core, ht))
    return core.unsent[ht]


def _unsent(history: History, core: CoreHistory, ht: int) -> Iterator[tuple[ModeRow, int]]:
    ipis = core.ipis.get(ht, [])
    siblings = [other for other in core.hts() if other != ht]
    changing = changes_of(history, core)
    sent: dict[str, set[int]] = {}
    at = 0
    for row in core.modes.get(ht, ()):
        while at < len(ipis) and ipis[at].seq < row.seq:
            sent.setdefault(ipis[at].why, set()).add(ipis[at].to)
            at += 1
        if row.new != "HOST" or row.via not in KICKING:
            continue
        to = sent.pop(row.via, set())
        missing = [other for other in siblings if other not in to]
        if not missing:
            continue
        regime = history.regime(row.ts)
        if not regime.guarded or not regime.exposes(row.via):
            continue
        if any(start <= row.ts <= end for start, end in changing):
            continue
        for other in missing:
            if is_alive(core, other, row.ts):
                yield row, other


def g3_one_vm(history: History, clashes: dict[int, list[Clash]]) -> Finding:
    """G3. Never GUEST(x) beside GUEST(y) or ISOLATED(y).

    Reads: the intervals. Broken by: such an overlap. Exercised by GUEST intervals of a core on which at least two VMs
    were seen.
    """
    finding = Finding("G3")
    for number, core in history.cores.items():
        vms = {row.vm for rows in core.modes.values() for row in rows if row.new in ("GUEST", "ISOLATED")}
        if len(vms) > 1 and len(core.hts()) > 1:
            finding.checked += sum(map(len, core.guests.values()))
        for clash in clashes[number]:
            a, b = clash.first, clash.second
            if "HOST" in (a.mode, b.mode):
                continue
            if a.suspect or b.suspect:
                finding.suspects += 1
                continue
            text = (
                f"{name_of(number, a.ht)} was in {a.mode}(vm{a.vm})"
                f" beside {name_of(number, b.ht)} in {b.mode}(vm{b.vm}) for {clash.ns} ns"
            )
            seqs = (a.seq, b.seq)
            regime = history.regime(clash.start)
            allowed_by = "" if regime.keeps_vms_apart else regime.policy
            finding.violate(clash.start, number, (a.ht, b.ht), seqs, text, allowed_by=allowed_by)
    if not finding.checked:
        finding.remark = "no core saw two VMs"
    return finding
