"""The verdict: every guarantee held, broken or not exercised; what was exposed; what it all means.

PASS     nothing broken, and the journal is whole: begun, ended, no gap, no malformed record
FAIL     something broken. A cut journal can fail: what it holds happened
UNKNOWN  nothing broken that can be trusted, and the journal is not whole; or nothing was exercised; or no guest ran
         although there were vCPUs to run. Never a pass
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

from asid.audit import standstill
from asid.audit.checks import g1_admission, g4_kick, g5_rounds
from asid.audit.exclusion import KICKING, g2_exclusion, g3_one_vm
from asid.audit.excuses import Excuses
from asid.audit.finding import BROKEN, NOT_EXERCISED, Finding, Violation, name_of
from asid.audit.forced_idle import forced_idle
from asid.audit.guest_time import guest_time, served_of
from asid.audit.handlers import g10_interrupts
from asid.audit.history import CoreHistory, History, gather
from asid.audit.injections import g8_injections
from asid.audit.intervals import Clash, Lease, clashes, leases, mode_intervals
from asid.audit.isolation import g6_isolation
from asid.audit.leaks import Leak, g9_flush
from asid.audit.liveness import PENDING_NS, l1_leaves, l2_asks, l3_progress, waits_of
from asid.audit.origins import holes
from asid.audit.recovery import g11_fail_closed, l4_recovery
from asid.audit.spaces import Spaces
from asid.core.record import Record, as_map, percentile
from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_UNKNOWN

PASS = "PASS"
FAIL = "FAIL"
UNKNOWN = "UNKNOWN"
EXITS = {PASS: EXIT_OK, FAIL: EXIT_FAIL, UNKNOWN: EXIT_UNKNOWN}

STORY_RECORDS = 14
DEATHS_IN_A_ROW = 6  # and no birth after the last one: it was given up
AWAY_NS = 1_000_000_000
WINDOWS_SHOWN = 1000  # in JSON; the counts are always of all


class Window(NamedTuple):
    """One exposure: `sibling` was in GUEST while `ht` was in HOST by `cause` (nmi, mce, send or stun)."""

    ts: int
    ns: int
    core: int
    ht: int
    sibling: int
    cause: str


@dataclass
class Verdict:
    """What the audit of one run says."""

    verdict: str
    reasons: list[str]  # why it is UNKNOWN, or what is not to be trusted
    run: dict[str, Any]  # run.begin's data
    findings: list[Finding]
    windows: list[Window]  # by time
    figures: dict[str, Any]
    policies: list[dict[str, Any]] = field(default_factory=list)  # each change of policy: seq, ts, old, new, kick
    story: list[Record] = field(default_factory=list)  # what led to the first violation
    leaks: list[Leak] = field(default_factory=list)  # the first of them; the figures count all

    @property
    def passed(self) -> bool:
        return self.verdict == PASS

    @property
    def exit_code(self) -> int:
        return EXITS[self.verdict]

    @property
    def first(self) -> tuple[str, Violation] | None:
        """The violation that happened first, with its guarantee."""
        firsts = [(f.first.ts, f.guarantee, f.first) for f in self.findings if f.first is not None]
        if not firsts:
            return None
        _, guarantee, violation = min(firsts, key=lambda item: item[0])
        return guarantee, violation

    def finding(self, guarantee: str) -> Finding:
        return next(f for f in self.findings if f.guarantee == guarantee)

    def exposure(self) -> dict[str, Any]:
        """Return count, percentiles and maximum of the exposure windows in ns, in all and by cause."""
        causes = sorted({window.cause for window in self.windows})
        by_cause = {cause: summary([w.ns for w in self.windows if w.cause == cause]) for cause in causes}
        return {**summary([w.ns for w in self.windows]), "by_cause": by_cause}

    def as_map(self) -> dict[str, Any]:
        """Return the JSON form, as in verdict.json."""
        first = self.first
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "reasons": self.reasons,
            "run": self.run,
            "policies": self.policies,
            "guarantees": {f.guarantee: f.as_map() for f in self.findings},
            "not_exercised": [f.guarantee for f in self.findings if f.state == NOT_EXERCISED],
            "first_violation": None
            if first is None
            else {"guarantee": first[0], "text": first[1].text, "ts": first[1].ts, "seqs": list(first[1].seqs)},
            "story": [as_map(record) for record in self.story],
            "exposure": {**self.exposure(), "windows": [w._asdict() for w in self.windows[:WINDOWS_SHOWN]]},
            "figures": self.figures,
            "leaks": [leak.as_map() for leak in self.leaks],
        }


def summary(values_ns: list[int]) -> dict[str, int]:
    """Return count, exact p50 and p99, maximum and sum of durations; zeros for none."""
    if not values_ns:
        return {"count": 0, "p50_ns": 0, "p99_ns": 0, "max_ns": 0, "sum_ns": 0}
    ordered = sorted(values_ns)
    last = len(ordered) - 1
    return {
        "count": len(ordered),
        "p50_ns": ordered[last // 2],
        "p99_ns": ordered[-(-last * 99 // 100)],
        "max_ns": ordered[-1],
        "sum_ns": sum(ordered),
    }


def judge(history: History, damage: str | None = None, spaces: Spaces | None = None) -> Verdict:
    """Run every check over the history of a run. damage: what is wrong with the journal's file, or None. spaces: what
    was mapped, when the journal lies in a run directory."""
    intervals = {
        number: [row for ht in core.hts() for row in mode_intervals(history, core, ht)]
        for number, core in history.cores.items()
    }
    overlaps = {number: list(clashes(rows)) for number, rows in intervals.items()}
    held = {number: leases(core, history.end_ts) for number, core in history.cores.items()}
    waits = {number: waits_of(history, core) for number, core in history.cores.items()}
    excuses = {number: Excuses(history, number, rows) for number, rows in intervals.items()}
    g9, leaks = g9_flush(history, intervals, overlaps)
    findings = [
        g1_admission(history, held),
        g2_exclusion(history, overlaps),
        g3_one_vm(history, overlaps),
        g4_kick(history),
        g5_rounds(history),
        g6_isolation(history, spaces),
        g8_injections(history),
        g9,
        g10_interrupts(history),
        g11_fail_closed(history),
        l1_leaves(history, waits, excuses),
        l2_asks(history, waits, excuses),
        l3_progress(history, waits, excuses),
        l4_recovery(history),
    ]
    reasons, certain = _doubts(history, damage)
    if all(finding.state == NOT_EXERCISED for finding in findings):
        reasons.append("nothing was exercised: no guarantee had anything to check")
    if idle := _no_guest_ran(history):
        reasons.append(idle)
    reasons += _stayed_away(history)
    broken = any(finding.state == BROKEN for finding in findings)
    verdict = FAIL if broken and certain else UNKNOWN if reasons else PASS
    served = served_of(history, intervals)
    figures = _figures(history, findings, held) | guest_time(history, intervals, served)
    figures |= forced_idle(history, waits, served) | {"leaks": leaks.figures()}
    figures |= standstill.figures(history.stood) | history.kernel.figures(history)
    windows, changes = _windows(overlaps), _changes(history)
    return Verdict(verdict, reasons, dict(history.begin), findings, windows, figures, changes, leaks=leaks.first)


def _changes(history: History) -> list[dict[str, Any]]:
    return [
        {"seq": new.seq, "ts": new.ts, "old": old.policy, "new": new.policy, "kick": new.kick}
        for old, new in pairwise(history.regimes)
    ]


def _doubts(history: History, damage: str | None) -> tuple[list[str], bool]:
    """Return why the journal is not whole, and whether what it does hold can be trusted."""
    reasons = []
    certain = True
    if damage is not None:
        reasons.append(f"the journal is damaged: {damage}")
    if not history.begin:
        certain = False
        reasons.append("the journal has no run.begin")
    if not history.complete:
        reasons.append("the journal has no run.end: the daemon did not end in order, or still runs")
    if history.loss:
        certain = False
        reasons.append(f"{history.loss} records were lost before they were written")
    if history.fault_count:
        certain = False
        more = history.fault_count - len(history.faults)
        reasons += [*history.faults, *([f"and {more} more faults of this kind"] if more else [])]
    if missing := holes(history):
        certain = False
        reasons += missing
    if not certain:
        reasons.append("with records missing, what looks broken may be an artefact")
    return reasons, certain


def _stayed_away(history: History) -> Iterator[str]:
    """Yield who died again and again until nobody bore it any more: what it would have done was never seen."""
    for number, core in sorted(history.cores.items()):
        for ht, deaths in sorted(core.deaths.items()):
            in_a_row = len(list(takewhile(lambda death: death.status != 0, reversed(deaths))))
            last = deaths[-1]
            back = any(spawn.inc > last.inc for spawn in core.spawns.get(ht, ()))
            if ht >= 0 and in_a_row >= DEATHS_IN_A_ROW and not back and history.end_ts - last.ts > AWAY_NS:
                yield f"{name_of(number, ht)} died {in_a_row} times in a row (status {last.status}) and stayed away"


def _no_guest_ran(history: History) -> str:
    """Return why the run says nothing of guests although there were vCPUs to run, or "".

    Nobody is admitted in a run that was stopped at once; so a second counts, or a hyperthread that came back to try
    again. That second begins when the first hyperthread is ready: a crowded host takes long to start them all.
    """
    vcpus = history.begin.get("vcpus", 0)
    if not vcpus or history.counts.admits:
        return ""
    ready = (row.ts for core in history.cores.values() for row in core.gate if row.kind == "gate.ready")
    reborn = [
        name_of(number, ht)
        for number, core in sorted(history.cores.items())
        for ht, rows in sorted(core.spawns.items())
        if ht >= 0 and len(rows) > 1
    ]
    if not reborn and history.end_ts - min(ready, default=history.begin_ts) < PENDING_NS:
        return ""
    text = f"no guest ran: {vcpus} vCPU{' was' if vcpus == 1 else 's were'} to run, none was ever admitted"
    return f"{text}; born again meanwhile: {', '.join(reborn)}" if reborn else text


def _windows(overlaps: dict[int, list[Clash]]) -> list[Window]:
    out = []
    for number, found in overlaps.items():
        for clash in found:
            host, guest = (clash.first, clash.second) if clash.first.mode == "HOST" else (clash.second, clash.first)
            if host.mode == "HOST" and host.via in KICKING and not (host.suspect or guest.suspect):
                out.append(Window(clash.start, clash.ns, number, host.ht, guest.ht, host.via))
    return sorted(out)


def _figures(history: History, findings: list[Finding], held: dict[int, dict[int, list[Lease]]]) -> dict[str, Any]:
    counts = history.counts
    duration_ns = max(0, history.end_ts - history.begin_ts) if history.begin else 0
    seconds = duration_ns / 1e9 or 1.0
    return {
        "records": history.records,
        "duration_ns": duration_ns,
        "exits": counts.exits,
        "full": counts.full,
        "exits_per_s": round(counts.exits / seconds, 1),
        "full_percent": round(100.0 * counts.full / counts.exits, 2) if counts.exits else 0.0,
        "halts": counts.halts,
        "halts_polled": counts.polled,
        "admits": counts.admits,
        "grants_void": sum(_unused(history, core, held[number]) for number, core in history.cores.items()),
        "kicks": counts.kicks,
        "kicks_per_s": round(counts.kicks / seconds, 1),
        "kicks_sent": counts.kicks_sent,
        "kicks_seen": counts.kicks_seen,
        "kicks_avoidable": counts.avoidable,
        "fences": counts.fences,
        "ipis": counts.ipis,
        "nmis": counts.nmis,
        "mces": counts.mces,
        "interrupts_merged": counts.merged,
        "deaths": counts.deaths,
        "suspects": sum(finding.suspects for finding in findings),
        "leaves": _wait_figures(counts.leave_wait, counts.leave_wait_max_ns),
        "gate_waits": _wait_figures(counts.gate_wait, counts.gate_wait_max_ns),
    }


def _wait_figures(hist: dict[int, int], max_ns: int) -> dict[str, int]:
    pairs = list(hist.items())
    return {
        "count": sum(hist.values()),
        "p50_ns": min(max_ns, percentile(pairs, 50)),
        "p99_ns": min(max_ns, percentile(pairs, 99)),
        "max_ns": max_ns,
    }


def _unused(history: History, core: CoreHistory, held: dict[int, list[Lease]]) -> int:
    """Count the leases that ended before their hyperthread left PARKED: grants that crossed a kick."""
    unused = 0
    for ht, rows in held.items():
        begins = [row.ts for row in core.modes.get(ht, ()) if row.new in ("ISOLATED", "GUEST")]
        at = 0
        for lease in rows:
            while at < len(begins) and begins[at] < lease.start:
                at += 1
            if lease.end < history.end_ts and (at == len(begins) or begins[at] > lease.end):
                unused += 1
    return unused


def story_of(records: Iterable[Record], violation: Violation) -> list[Record]:
    """Return the last records of the hyperthreads involved up to the violation, by time. One pass, little memory."""
    last_seq = max(violation.seqs, default=0)
    kept: list[Record] = []
    for record in records:
        involved = record.core == violation.core and (record.ht in violation.hts or record.ht < 0)
        if record.seq in violation.seqs or (involved and record.ts <= violation.ts):
            kept.append(record)
        if len(kept) > 64 * STORY_RECORDS:
            kept = _last_of(kept, violation)
        # Streams of several processes are merged: an older stamp may come a little later in the file.
        if record.seq > last_seq + 10_000:
            break
    return _last_of(kept, violation)


def _last_of(records: list[Record], violation: Violation) -> list[Record]:
    shown = [r for r in records if r.seq in violation.seqs]
    others = sorted((r for r in records if r.seq not in violation.seqs), key=lambda r: (r.ts, r.seq))
    shown += others[-max(1, STORY_RECORDS - len(shown)) :]
    return sorted(shown, key=lambda r: (r.ts, r.seq))


def judge_records(records: Iterable[Record], damage: str | None = None) -> Verdict:
    """Audit records that are at hand."""
    rows = records if isinstance(records, list) else list(records)
    verdict = judge(gather(rows), damage)
    if verdict.first is not None:
        verdict.story = story_of(rows, verdict.first[1])
    return verdict
