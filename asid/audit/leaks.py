"""G9 and the leaks: which guest ran beside or after data of others, from the intervals and the flushes alone.

One leak
    One guest interval (a recorded GUEST up to the next change of mode) and one visit of another domain (`visits`)
    whose data it could read. *Concurrent*: the two overlap, and the guest's pending bit is no excuse. *Residual*: the
    visit was over when the guest interval began, and nobody on the core had flushed in between.

    A pair counts once. What a hyperthread's guest could read in one interval is not counted again for its next ones.
    Of several visits of one hyperthread with the same domains the last one alone is left behind: it lies over the
    others. So no guest interval has more residual leaks than the core has hyperthreads times domains, and there are no
    more concurrent ones than overlaps.

No leak
    A guest beside HOST by nmi, mce, send or stun under a policy that heeds siblings: with its pending bit set it
    retires nothing. G2's own judgement decides (`exclusion.why_not_in_flight`), and without an IPI there is no excuse.
    A guest interval whose look may have come before such a visit, recorded when that was over: its bit is set too, and
    what the visit left behind is there for the next interval to be judged by. Data of the guest's own VM. What two
    hyperthreads did at one stamp. Stays that are only perhaps (`suspect`).

A `flush` of data is for the whole core, whoever makes it; a visit goes on loading behind it until its end. Predictors
(a flush of `control`) are in the model, `asid.core.taint`, and not counted from a journal, for no policy of the live
engine clears them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from asid.audit.exclusion import before, unsent, why_not_in_flight
from asid.audit.finding import VIOLATIONS_KEPT, Finding, Violation, name_of
from asid.audit.history import CoreHistory, History
from asid.audit.intervals import Clash, Interval
from asid.audit.visits import Visit, visits_of

LEAKS_SHOWN = 20


class Leak(NamedTuple):
    """One guest interval that could read what one visit brought. promised: the policy in force says that none can."""

    ts: int
    concurrent: bool
    promised: bool
    core: int
    policy: str
    visit: Visit
    reader: Interval

    @property
    def seqs(self) -> tuple[int, ...]:
        """The records of the chain: the visit, what it was for, the reader."""
        return tuple(seq for seq in (self.visit.seq, self.visit.cause, self.reader.seq) if seq)

    @property
    def text(self) -> str:
        """The chain in a sentence: who loaded what and why, and which guest could read it."""
        visit, reader = self.visit, self.reader
        guest = f"the guest of vm{reader.vm} on {name_of(self.core, reader.ht)}"
        if visit.vm:
            loader = f"{name_of(self.core, visit.ht)} running vm{visit.vm}"
        else:
            why = f" for {visit.why}" if visit.cause else ""
            loader = f"{name_of(self.core, visit.ht)} in HOST by {visit.via or 'grant'}{why}"
        what = " and ".join(visit.domains)
        if self.concurrent:
            return f"{loader} loaded {what} data beside {guest}"
        after_ns = reader.start - visit.end
        return f"{loader} left {what} data to {guest}, which ran {after_ns} ns later with nothing flushed"

    def as_map(self) -> dict[str, Any]:
        """Return the JSON form, as in verdict.json. Times are ns."""
        visit, reader = self.visit, self.reader
        return {
            "kind": "concurrent" if self.concurrent else "residual",
            "ts": self.ts,
            "core": self.core,
            "policy": self.policy,
            "promised": self.promised,
            "loader": {
                "name": name_of(self.core, visit.ht), "mode": f"vm{visit.vm}" if visit.vm else "HOST",
                "via": visit.via, "why": visit.why, "domains": list(visit.domains),
                "seq": visit.seq, "start": visit.start, "end": visit.end,
            },
            "reader": {
                "name": name_of(self.core, reader.ht), "vm": reader.vm,
                "seq": reader.seq, "start": reader.start, "end": reader.end,
            },
            "seqs": list(self.seqs),
            "text": self.text,
        }  # fmt: skip


class Leaks(NamedTuple):
    """The leaks of a run. promised: how many break a promise of their policy; first: those before the others."""

    concurrent: int
    residual: int
    promised: int
    first: list[Leak]

    def figures(self) -> dict[str, int]:
        """Return the counts, as in the figures of a verdict."""
        return {"concurrent": self.concurrent, "residual": self.residual, "promised": self.promised}


def g9_flush(
    history: History, stays: Mapping[int, list[Interval]], clashes: Mapping[int, list[Clash]]
) -> tuple[Finding, Leaks]:
    """G9. No guest runs beside or after data that its policy protects from it. See the head of this file.

    Reads: the intervals and their overlaps; flush; leave, for the reasons; ipi. Broken by: a leak. One that its policy
    does not promise against counts, and is labelled: under `none` each; under `core-sched` that of a sibling in HOST;
    under `kick-except-idle` that of a sibling on its way into idle. Exercised by guest intervals; not in a run whose
    machine was told to leave its buffers alone (`flushes` of run.begin), where leaks are only counted.
    """
    finding = Finding("G9")
    broken, allowed = _Some(), _Some()
    concurrent = 0
    judged = history.begin.get("flushes", True)
    for number, core in history.cores.items():
        found = _Core(history, number, core, stays[number])
        for leak in found.leaks(clashes[number]):
            concurrent += leak.concurrent
            if judged:
                (broken if leak.promised else allowed).add(leak)
            else:
                allowed.add(leak._replace(promised=False))
        if judged:
            finding.checked += len(found.guests)
            finding.suspects += found.suspects
    shown = [*broken.first(), *allowed.first()][:LEAKS_SHOWN]
    leaks = Leaks(concurrent, broken.count + allowed.count - concurrent, broken.count, shown)
    if not judged:
        finding.remark = "the machine was told to leave its buffers alone"
        return finding, leaks
    for leak in (*broken.first(), *allowed.first()):
        violation = Violation(leak.ts, leak.core, (leak.visit.ht, leak.reader.ht), leak.seqs, leak.text)
        finding.keep(violation, "" if leak.promised else leak.policy)
    told = broken.readers.keys()
    finding.broken = len(told | allowed.readers.keys())
    for reader in allowed.readers.keys() - told:
        finding.allow(allowed.readers[reader])
    return finding, leaks


class _Some:
    """Leaks of one sort: how many, who read, and the first of them. Each core's come by time."""

    def __init__(self) -> None:
        self.count = 0
        self.readers: dict[int, str] = {}  # the guest intervals, by number of their records, and the policy in force
        self._kept: dict[int, list[Leak]] = {}

    def add(self, leak: Leak) -> None:
        self.count += 1
        kept = self._kept.setdefault(leak.core, [])
        if len(kept) < VIOLATIONS_KEPT:
            kept.append(leak)
        self.readers[leak.reader.seq] = leak.policy

    def first(self) -> list[Leak]:
        """Return those that came first on all cores together, by time."""
        return sorted((leak for kept in self._kept.values() for leak in kept), key=itemgetter(0))[:VIOLATIONS_KEPT]


class _Core:
    """One core, gone through once by time."""

    def __init__(self, history: History, number: int, core: CoreHistory, stays: list[Interval]) -> None:
        self.history = history
        self.number = number
        self.core = core
        self.visits, self.visit_of = visits_of(core, stays)
        self.guests = [stay for stay in stays if stay.mode == "GUEST" and not stay.suspect]
        self.suspects = 0
        self.silent = {(row.seq, other) for ht in core.modes for row, other in unsent(history, core, ht)}
        # By hyperthread and domains: the visit that is left behind in the buffers; and of each hyperthread, which of
        # these its guest (of this VM) could read already.
        self.left: dict[tuple[int, tuple[str, ...]], Visit] = {}
        self.met: dict[int, tuple[int, dict[tuple[int, tuple[str, ...]], int]]] = {}

    def leaks(self, clashes: list[Clash]) -> Iterator[Leak]:
        """Yield the leaks, by time. clashes: of this core, each overlap of two stays that may not be side by side."""
        # At one stamp what is over is flushed, and what is flushed is not read.
        happened: list[tuple[int, int, Any]] = [
            *((visit.end, 0, visit) for visit in self.visits),
            *((ts, 1, None) for ts in self.core.flushes),
            *((clash.start, 2, clash) for clash in clashes),
            *((guest.start, 3, guest) for guest in self.guests),
        ]
        happened.sort(key=itemgetter(0, 1))
        paired: set[tuple[int, int]] = set()
        for _, kind, what in happened:
            if kind == 0:
                self.left[what.ht, what.domains] = what
            elif kind == 1:
                self.left.clear()
            elif kind == 2:
                yield from self._beside(what, paired)
            else:
                yield from self._after(what)

    def _met(self, reader: Interval) -> dict[tuple[int, tuple[str, ...]], int]:
        vm, met = self.met.get(reader.ht, (0, {}))
        if vm != reader.vm:
            met = {}
            self.met[reader.ht] = (reader.vm, met)
        return met

    def _beside(self, clash: Clash, paired: set[tuple[int, int]]) -> Iterator[Leak]:
        """Concurrent: each guest of the two reads the other."""
        for reader, loader in ((clash.first, clash.second), (clash.second, clash.first)):
            if reader.mode != "GUEST":
                continue
            if reader.suspect or loader.suspect:
                self.suspects += 1
                continue
            if loader.mode == "HOST" and not self._retires(clash, reader, loader):
                continue
            visit = self.visits[self.visit_of[loader.seq]]
            if (reader.seq, visit.seq) in paired:
                continue
            paired.add((reader.seq, visit.seq))
            self._met(reader)[visit.ht, visit.domains] = visit.seq
            regime = self.history.regime(clash.start)
            promised = regime.flushes if visit.vm else regime.keeps_apart(visit.via)
            yield Leak(clash.start, True, promised, self.number, regime.policy, visit, reader)

    def _retires(self, clash: Clash, guest: Interval, host: Interval) -> bool:
        """Say whether a guest beside HOST may run instructions: nobody stops it, or the one who does came too late."""
        regime = self.history.regime(clash.start)
        if not regime.guarded or not regime.exposes(host.via) or (host.seq, guest.ht) in self.silent:
            return True
        return bool(why_not_in_flight(self.history, self.number, self.core, clash))

    def _after(self, reader: Interval) -> Iterator[Leak]:
        """Residual: what is left behind when a guest interval begins."""
        met = self._met(reader)
        for key, visit in self.left.items():
            other = visit.ht != reader.ht
            if met.get(key) == visit.seq or visit.vm == reader.vm or (other and visit.end == reader.start):
                continue
            regime = self.history.regime(reader.start)
            promised = regime.flushes
            if other and not visit.vm:
                if self._stopped(visit, reader):
                    continue
                promised = promised and regime.keeps_apart(visit.via)
            met[key] = visit.seq
            yield Leak(reader.start, False, promised, self.number, regime.policy, visit, reader)

    def _stopped(self, visit: Visit, reader: Interval) -> bool:
        """Say whether a guest's look may have come before a visit that set its pending bit: then it retires nothing."""
        regime = self.history.regime(visit.start)
        if not regime.guarded or not regime.exposes(visit.via) or (visit.seq, reader.ht) in self.silent:
            return False
        return before(self.core, reader).ts <= visit.start
