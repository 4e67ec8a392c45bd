"""G2's side of the gate: who was granted HOST, and who still held a lease then."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import itemgetter

from asid.audit.finding import Finding, name_of
from asid.audit.history import CoreHistory, History
from asid.audit.intervals import is_alive
from asid.audit.regime import Regime
from asid.audit.rows import GateRow, ModeRow

IN_LEASE = frozenset({"ISOLATED", "GUEST"})
# What a hyperthread says without a lease, or what takes the lease from it. A leaver keeps its own until it is granted.
HANDED_BACK = frozenset({"gate.answer", "gate.grant", "gate.dead", "gate.ready", "gate.ask", "gate.done", "gate.idle",
                         "gate.bye"})  # fmt: skip
VOIDS = frozenset({"gate.admit", "gate.resync"}) | HANDED_BACK - {"gate.answer", "gate.grant"}  # a grant, if unused
OF_GRANTS = frozenset({"gate.grant", "gate.leave"}) | VOIDS
SPOKE_AGAIN = frozenset({"gate.ask", "gate.leave", "gate.done", "gate.idle", "gate.bye"})


def changes_of(history: History, core: CoreHistory) -> list[tuple[int, int]]:
    """Return when the policy changed: some have been told of the new one then and some not, and nobody is let in.

    From the hold behind the last admission before the change to the first admission after it.
    """
    out = []
    for change in history.regimes[1:]:
        at = bisect_left(core.gate, change.ts, key=lambda row: row.ts)
        start = end = at
        while start > 0 and core.gate[start - 1].kind != "gate.admit":
            start -= 1
        held = [row.ts for row in core.gate[start:at] if row.kind == "gate.hold"]
        while end < len(core.gate) and core.gate[end].kind != "gate.admit":
            end += 1
        until = core.gate[end].ts if end < len(core.gate) else history.end_ts
        out.append((held[0] if held else change.ts, until))
    return out


def _in_force(history: History, changing: list[tuple[int, int]], ts: int) -> Iterator[Regime]:
    """Yield the policies that a hyperthread may have been told of: at a change the old and the new one."""
    yield history.regime(ts)
    for start, end in changing:
        if start <= ts <= end:
            yield history.regime(start)
            yield from (regime for regime in history.regimes if start <= regime.ts <= end)


def granted(finding: Finding, history: History, number: int, core: CoreHistory, ht: int) -> None:
    """(b) Each voluntary HOST by what its policy has, and by a grant of its last request that it had not used."""
    events: list[tuple[int, int, int, GateRow | ModeRow]] = []
    horizon = history.horizon_ns(core)
    changing = changes_of(history, core)
    for row in core.hosts.get(ht, ()):
        if row.via in ("nmi", "mce"):
            continue
        regime = history.regime(row.ts)
        via = row.via or "grant"
        if regime.via and not any(via in each.vias for each in _in_force(history, changing, row.ts)):
            text = (
                f"{name_of(number, ht)} went HOST by {via}, but policy {regime.policy}, kick {regime.kick} was in force"
            )
            finding.violate(row.ts, number, (ht,), (regime.seq, row.seq), text)
        elif via == "grant" and row.ts <= horizon:
            events.append((row.ts, 1, row.seq, row))
    if not events:
        return
    # At equal stamps a grant comes before the HOST that uses it, and anything that would void it after.
    events += [
        (row.ts, 0 if row.kind == "gate.grant" else 2, row.seq, row)
        for row in core.gate_of.get(ht, ())
        if row.kind in OF_GRANTS
    ]
    events.sort(key=itemgetter(0, 1, 2))
    grant: GateRow | None = None
    asked: int | None = None  # the last request heard; 0 once a new coordinator was told its state, None for none
    inc = 0  # incarnation told of
    why = "nobody had granted what it asked"
    for _, _, _, event in events:
        if isinstance(event, ModeRow):
            if grant is None or asked is None:
                text = f"{name_of(number, ht)} went HOST by a grant, but {why}"
            elif asked and asked != grant.number:
                text = f"{name_of(number, ht)} went HOST in request {asked}, but was granted request {grant.number}"
            elif inc and inc != event.inc:
                text = f"{name_of(number, ht)} of incarnation {event.inc} went HOST by a grant to incarnation {inc}"
            else:
                text = ""
            if text:
                finding.violate(event.ts, number, (ht,), (*([grant.seq] if grant else []), event.seq), text)
            grant, asked, why = None, None, "it had used its last one before"
        elif event.kind == "gate.grant":
            grant = event
        elif event.kind == "gate.leave":
            asked = event.number
            if grant is not None and grant.number != asked:
                grant, why = None, "it had asked again"
        elif event.kind in VOIDS:
            inc = event.inc or inc
            if grant is not None:
                why = f"{event.kind} had made its last one void"
            grant, asked = None, 0 if event.kind == "gate.resync" else None


def grants(finding: Finding, history: History, number: int, core: CoreHistory) -> None:
    """(c) At each grant every other lease is back, and every kick answered; at a change of policy all leases are."""
    leased: dict[int, GateRow] = {}
    kicked: dict[int, GateRow] = {}
    restarts = [row.ts for row in core.deaths.get(-1, ())]
    changes = list(history.regimes[1:])
    for row in core.gate:
        kind, ht = row.kind, row.ht
        while restarts and restarts[0] < row.ts:
            restarts.pop(0)
            kicked.clear()  # the next one believes nobody, and kicks under its own numbers
        while changes and changes[0].ts < row.ts:
            _changed(finding, number, core, changes.pop(0), leased)
        if kind == "gate.admit":
            leased[ht] = row
        elif kind == "gate.kick":
            kicked[ht] = row
        elif kind == "gate.grant":
            leased.pop(ht, None)
            for other in {*leased, *kicked}:
                _c_grant(finding, number, core, row, other, leased.get(other), kicked.get(other))
        elif kind == "gate.resync":
            kicked.pop(ht, None)
            if _mode_at(core, ht, row.ts) not in IN_LEASE:
                leased.pop(ht, None)
        elif kind in HANDED_BACK or (kind == "gate.leave" and row.mode == "PARKED"):
            if kind != "gate.ask" or (ht in leased and leased[ht].number != row.number):
                leased.pop(ht, None)  # a repetition of the ask that the lease answers had only crossed it
            if kind in ("gate.answer", "gate.dead", "gate.ready"):
                kicked.pop(ht, None)
        if kind in SPOKE_AGAIN and ht in kicked and _has_seen(core, kicked[ht], row.ts):
            leased.pop(ht, None)
            kicked.pop(ht)  # it says so with every report; the answer itself was lost
    for change in changes if history.complete else ():
        _changed(finding, number, core, change, leased)


def _changed(finding: Finding, number: int, core: CoreHistory, change: Regime, leased: dict[int, GateRow]) -> None:
    for other, lease in leased.items():
        if is_alive(core, other, change.ts):
            text = f"the policy became {change.policy} while {name_of(number, other)} held a lease"
            finding.violate(change.ts, number, (other,), (lease.seq, change.seq), text)


def _c_grant(
    finding: Finding, number: int, core: CoreHistory, grant: GateRow, other: int, lease: GateRow | None,
    kick: GateRow | None,
) -> None:  # fmt: skip
    since = min(row.ts for row in (lease, kick) if row is not None)
    if any(since <= death.ts <= grant.ts for death in core.deaths.get(other, ())):
        return
    how = "held a lease and was never kicked" if kick is None else f"had not answered kick {kick.number}"
    text = f"{name_of(number, grant.ht)} was granted HOST while {name_of(number, other)} {how}"
    seqs = tuple(row.seq for row in (lease, kick, grant) if row is not None)
    finding.violate(grant.ts, number, (grant.ht, other), seqs, text)


def _has_seen(core: CoreHistory, kick: GateRow, until: int) -> bool:
    rows = core.seen.get(kick.ht, [])
    at = bisect_right(rows, until, key=lambda row: row.ts) - 1
    return at >= 0 and rows[at].number == kick.number


def _mode_at(core: CoreHistory, ht: int, ts: int) -> str:
    """Return the mode of a hyperthread at a moment, that under a handler's HOST."""
    rows = core.modes.get(ht, [])
    at = bisect_right(rows, ts, key=lambda row: row.ts) - 1
    if at < 0:
        return ""
    return rows[at].old if rows[at].via in ("nmi", "mce", "send", "stun") else rows[at].new
