"""What the checks read: the records of a run, sorted out by core, hyperthread and kind, in one pass.

Rule 1. Everything comes from the journal; nothing here knows how the gate decides.
Rule 2. A record is kept as a small row, so that a million of them fit; what is only counted is counted at once.
Rule 3. A gap, an unknown type or a malformed record makes the history incomplete. It is never skipped in silence.

Order
    Records of one process keep their order. Records of two processes are ordered by ts alone, and equal stamps say
    nothing: every check gives the run the benefit of that doubt.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from sys import intern
from typing import Any

from asid.audit.counts import Counts
from asid.audit.decided import Decided, mapped_row
from asid.audit.frame import Frame
from asid.audit.kernel_events import KernelEvents
from asid.audit.regime import INVOLUNTARY, UNSAID, Regime, regime_of
from asid.audit.rows import (
    DoneRow,
    GateRow,
    InjectRow,
    IntrRow,
    IpiRow,
    LongWait,
    MappedRow,
    ModeRow,
    ProcessRow,
    SeenRow,
)
from asid.audit.standstill import StoodRow, stood_row
from asid.core.record import RECORD_TYPES, Record, bucket_of, fault_of

FAULTS_KEPT = 5
LONG_NS = 1_000_000_000  # a wait that may be too long; the others are only counted
LATE_NS = 2_000_000_000  # how much later than its stamp a record may come in the file
GATE_KINDS_OF_CORE = frozenset({"gate.close", "gate.open", "gate.turn", "gate.hold", "gate.release"})


def _since(regime: Regime) -> int:
    return regime.ts


class CoreHistory:
    """The records of one core. The maps are keyed by hyperthread; -1 in `spawns` and `deaths` is the coordinator."""

    def __init__(self) -> None:
        self.modes: dict[int, list[ModeRow]] = {}
        self.guests: dict[int, list[ModeRow]] = {}  # of these, the ones to GUEST
        self.hosts: dict[int, list[ModeRow]] = {}  # and to HOST
        self.guests_until_ns = 0  # the last of them
        self.gate: list[GateRow] = []
        self.gate_of: dict[int, list[GateRow]] = {}  # the same, by the hyperthread spoken of
        self.spawns: dict[int, list[ProcessRow]] = {}
        self.deaths: dict[int, list[ProcessRow]] = {}
        self.intrs: dict[int, list[IntrRow]] = {}
        self.seen: dict[int, list[SeenRow]] = {}
        self.ipis: dict[int, list[IpiRow]] = {}  # by sender
        self.flushes: list[int] = []  # when buffers were cleared of data, as the records came
        self.reasons: dict[int, tuple[str, int]] = {}  # by seq of a HOST's mode: exit reason, seq of the leave
        self.waited: dict[int, list[tuple[int, str]]] = {}  # (seq, type) of records that tell of a wait
        self.long_waits: list[LongWait] = []  # in their hyperthreads' own words
        self.last_ts: dict[int, int] = {}  # by writer: a hyperthread's own records, -1 the coordinator's
        self.stamps = array("q")
        self.unsent: dict[int, list[tuple[ModeRow, int]]] = {}  # kept by asid.audit.exclusion, which finds them
        self.decided = Decided()

    def hts(self) -> list[int]:
        """Return every hyperthread that was ever heard of, in order."""
        known = {*self.modes, *self.spawns, *self.deaths, *self.gate_of}
        return sorted(ht for ht in known if ht >= 0)


class History:
    """All of a run. Feed it with `add`, then call `finish` once."""

    def __init__(self) -> None:
        self.cores: dict[int, CoreHistory] = {}
        self.counts = Counts()
        self.frame = Frame()
        self.begin: dict[str, Any] = {}
        self.begin_ts = 0
        self.end_ts = 0  # of the last record by time
        self.ended: str | None = None  # reason of run.end; None when there is none
        self.injects: dict[int, list[InjectRow]] = {}
        self.dones: dict[int, list[DoneRow]] = {}
        self.exits_of: dict[int, int] = {}  # exits of an injection's reason that its target had while it was open
        self.regimes: list[Regime] = []  # the policies, in the order in which they were in force
        self.stood: list[StoodRow] = []  # what real guests themselves say
        self.kernel = KernelEvents()  # and KVM
        self.remapped: list[MappedRow] = []  # what was mapped and unmapped, in the daemon's words
        self.records = 0
        self.loss = 0
        self.faults: list[str] = []
        self.fault_count = 0
        self._last_seq = 0
        self._tseqs: dict[tuple[int, int, str], int] = {}
        self._exits_open: dict[tuple[int, int], list[int]] = {}  # (core, ht) -> injections of exits to be counted

    def regime(self, ts: int) -> Regime:
        """Return the policy in force at a moment."""
        regimes = self.regimes
        if len(regimes) == 1:
            return regimes[0]
        at = bisect_right(regimes, ts, key=_since) - 1
        return regimes[max(0, at)] if regimes else UNSAID

    @property
    def gateless(self) -> bool:
        """Whether no policy of the run has a gate."""
        return all(regime.rules == "none" for regime in self.regimes) if self.regimes else False

    @property
    def complete(self) -> bool:
        """Whether the run was written to its end. Only then a missing answer means that there was none."""
        return self.ended is not None

    def horizon_ns(self, core: CoreHistory) -> int:
        """Return until when every record of this core's coordinator is known.

        A journal that was cut may hold a hyperthread's record and lack the older one of its coordinator.
        """
        return self.end_ts if self.complete else core.last_ts.get(-1, -1)

    def core(self, number: int) -> CoreHistory:
        found = self.cores.get(number)
        if found is None:
            found = self.cores[number] = CoreHistory()
        return found

    def add(self, record: Record) -> None:
        """Take one record, in the order of the journal."""
        self.records += 1
        seq, tseq, ts, kind, number, ht, _, _, _ = record
        if seq != self._last_seq + 1:
            self._fault(f"records {self._last_seq + 1} to {seq - 1} are missing" if seq > self._last_seq else
                        f"record {seq} comes after {self._last_seq}")  # fmt: skip
        self._last_seq = seq
        fault = fault_of(record) or self.frame.fault_of(record)
        if fault is not None:
            self._fault(f"record {seq}: {fault}")
            return
        if tseq:
            place = (number, ht, kind)
            last = self._tseqs.get(place, 0)
            if tseq != last + 1:
                self._fault(f"record {seq}: {kind} has tseq {tseq} after {last}")
            self._tseqs[place] = tseq
        if ts > self.end_ts:
            self.end_ts = ts
        if number >= 0:
            core = self.cores.get(number) or self.core(number)
            core.stamps.append(ts)
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, record)

    def _fault(self, text: str) -> None:
        self.fault_count += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(text)

    def _own(self, record: Record) -> CoreHistory:
        """Note that a hyperthread wrote this."""
        core, ht, ts = self.cores[record.core], record.ht, record.ts
        if ts > core.last_ts.get(ht, -1):
            core.last_ts[ht] = ts
        return core

    def _on_gate(self, record: Record) -> None:
        seq, _, ts, kind, place, ht, round_, _, data = record
        core = self.cores[place]
        if ts < core.last_ts.get(-1, 0):
            self._fault(f"record {seq}: the clock of the coordinator of c{place} went back")
        core.last_ts[-1] = ts
        kind = intern(kind)  # one object for all, where every record that was read has its own
        if kind in GATE_KINDS_OF_CORE:
            ht = -1
        if data:
            get = data.get
            number = get("number", 0) or get("req", 0) or get("room", 0)
            row = GateRow(ts, seq, kind, ht, round_, get("inc", 0), get("vm", 0), intern(get("mode", "")), number)
        else:
            row = GateRow(ts, seq, kind, ht, round_, 0, 0, "", 0)
        core.gate.append(row)
        rows = core.gate_of.get(ht)
        if rows is None:
            rows = core.gate_of[ht] = []
        rows.append(row)
        if kind == "gate.kick":
            self.counts.kicks += 1
        elif kind == "gate.admit":
            self.counts.admits += 1
        elif kind == "gate.fence":
            self.counts.fences += 1

    def _on_begin(self, record: Record) -> None:
        if self.begin:
            self._fault(f"record {record.seq}: a second run.begin")
        elif record.seq > 1:
            self._fault(f"record {record.seq}: run.begin is not the first record")
        if fault := self.frame.begin(record):
            self._fault(f"record {record.seq}: {fault}")
        self.begin, self.begin_ts = record.data, record.ts
        self.regimes.insert(0, regime_of(record, "policy"))

    def _on_policy(self, record: Record) -> None:
        self.regimes.append(regime_of(record, "new"))

    def _on_end(self, record: Record) -> None:
        self.ended = str(record.data["reason"])

    def _on_process(self, record: Record) -> None:
        core, data = self.core(record.core), record.data
        ht = record.ht if data["what"] == "ht" else -1
        rows = core.spawns if record.type == "spawn" else core.deaths
        rows.setdefault(ht, []).append(ProcessRow(record.ts, record.seq, data["inc"], data.get("status", 0)))
        self.counts.deaths += record.type == "death"

    def _on_inject(self, record: Record) -> None:
        data, id_ = record.data, record.data["id"]
        row = InjectRow(
            record.ts, record.seq, data["what"], data["target"], record.core, record.ht,
            data.get("n", 1), data.get("reason", ""),
        )  # fmt: skip
        self.injects.setdefault(id_, []).append(row)
        if row.reason:
            self.exits_of.setdefault(id_, 0)
            self._exits_open.setdefault((row.core, row.ht), []).append(id_)

    def _on_inject_done(self, record: Record) -> None:
        data = record.data
        row = DoneRow(record.ts, record.seq, data["result"], data.get("why", ""))
        self.dones.setdefault(data["id"], []).append(row)

    def _on_loss(self, record: Record) -> None:
        if record.data["what"] != "telemetry":
            self.loss += record.data["n"]

    def _on_mode(self, record: Record) -> None:
        data = record.data
        row = ModeRow(
            record.ts, record.seq, data["inc"], record.round, intern(data["old"]), intern(data["new"]), data["vm"],
            intern(data.get("via", "")),
        )  # fmt: skip
        core = self._own(record)
        modes = core.modes.setdefault(record.ht, [])
        if modes and row.ts < modes[-1].ts:
            self._fault(f"record {record.seq}: the clock of c{record.core}h{record.ht} went back")
        modes.append(row)
        if row.new == "GUEST":
            core.guests.setdefault(record.ht, []).append(row)
            core.guests_until_ns = max(core.guests_until_ns, row.ts)
            core.decided.ran(record.ht, row.vm)
        elif row.new == "HOST":
            core.hosts.setdefault(record.ht, []).append(row)

    def _on_exit(self, record: Record) -> None:
        core = self._own(record)
        n = record.data["n"]
        self.counts.exits += n
        if halt := record.data.get("halt"):
            self.counts.halts += n
            self.counts.polled += n if halt == "polled" else 0
        if record.data["full"]:
            self.counts.full += n
        else:
            self.counts.fast_ns += record.data["sum_ns"]
            core.decided.was_fast(record, len(self.regimes))
        if self.kernel.recorded:
            self.kernel.on_exit(record)
        if self._exits_open:
            self._count_injected(record, n)

    def _count_injected(self, record: Record, n: int) -> None:
        """Count exits for the injections that may have caused them. Records of two processes may change places."""
        ids = self._exits_open.get((record.core, record.ht))
        if not ids:
            return
        for id_ in list(ids):
            row, done = self.injects[id_][0], self.dones.get(id_)
            if done and record.ts > done[0].ts + LATE_NS:
                ids.remove(id_)
            elif row.reason == record.data["reason"] and row.ts <= record.ts <= (done[0].ts if done else record.ts):
                self.exits_of[id_] += n

    def _on_irq(self, record: Record) -> None:
        """An injected interrupt that did not hit the guest: as good as the exit it would have been."""
        id_ = record.data["id"]
        if id_ in self.exits_of:
            self.exits_of[id_] += 1

    def _on_wait(self, record: Record) -> None:
        core, counts, wait_ns = self._own(record), self.counts, record.data.get("wait_ns", 0)
        core.waited.setdefault(record.ht, []).append((record.seq, intern(record.type)))
        if wait_ns >= LONG_NS and record.type != "held":
            kind = "ask" if record.type == "gate.wait" else "leave"
            core.long_waits.append(LongWait(record.ts, wait_ns, kind, record.ht))
        bucket = bucket_of(wait_ns)
        if record.type == "gate.wait":
            counts.gate_wait[bucket] = counts.gate_wait.get(bucket, 0) + 1
            counts.gate_wait_max_ns = max(counts.gate_wait_max_ns, wait_ns)
        elif record.type == "leave":
            modes = core.modes.get(record.ht)
            if modes and modes[-1].new == "HOST":
                core.reasons[modes[-1].seq] = (intern(record.data["reason"]), record.seq)
            if record.data.get("object"):
                core.decided.missed_one(record)
            counts.leaves += 1
            counts.leave_wait[bucket] = counts.leave_wait.get(bucket, 0) + 1
            counts.leave_wait_max_ns = max(counts.leave_wait_max_ns, wait_ns)

    def _on_intr(self, record: Record) -> None:
        data, counts = record.data, self.counts
        row = IntrRow(
            record.ts, record.seq, data["what"], data["id"], data["depth"], data["from"], data.get("severity", ""),
            data.get("broadcast", 0), data.get("role", ""), data.get("order", 0), data.get("wait_ns", 0),
        )  # fmt: skip
        self._own(record).intrs.setdefault(record.ht, []).append(row)
        counts.nmis += row.what == "nmi"
        counts.mces += row.what == "mce"
        counts.merged += data["merged"]

    def _on_seen(self, record: Record) -> None:
        data, counts = record.data, self.counts
        row = SeenRow(record.ts, record.seq, data["number"], intern(data["was"]), data.get("insns"))
        self._own(record).seen.setdefault(record.ht, []).append(row)
        counts.kicks_seen += 1
        counts.avoidable += data["avoidable"]

    def _on_ipi(self, record: Record) -> None:
        row = IpiRow(record.ts, record.seq, record.data["to"], intern(record.data["why"]))
        self._own(record).ipis.setdefault(record.ht, []).append(row)
        self.counts.ipis += 1
        self.counts.kicks_sent += row.why not in INVOLUNTARY

    def _on_standstill(self, record: Record) -> None:
        self._own(record)
        self.stood.append(stood_row(record))

    def _on_fault(self, record: Record) -> None:
        self._own(record).decided.faulted(record)

    def _on_mapped(self, record: Record) -> None:
        self._own(record).decided.changed(record)

    def _on_remapped(self, record: Record) -> None:
        self.remapped.append(mapped_row(record, record.data["mapped"]))

    def _on_flush(self, record: Record) -> None:
        core = self._own(record)
        if record.data["what"] != "control":
            core.flushes.append(record.ts)


_HANDLERS: dict[str, Callable[[History, Record], None]] = {
    **{name: History._on_gate for name, kind in RECORD_TYPES.items() if kind.writer == "coordinator"},
    "run.begin": History._on_begin,
    "run.end": History._on_end,
    "policy": History._on_policy,
    "spawn": History._on_process,
    "death": History._on_process,
    "inject": History._on_inject,
    "inject.done": History._on_inject_done,
    "loss": History._on_loss,
    "ht.mode": History._on_mode,
    "exit": History._on_exit,
    "leave": History._on_wait,
    "gate.wait": History._on_wait,
    "held": History._on_wait,
    "intr": History._on_intr,
    "irq": History._on_irq,
    "kick.seen": History._on_seen,
    "ipi": History._on_ipi,
    "flush": History._on_flush,
    "fault": History._on_fault,
    "standstill": History._on_standstill,
    "kvm.recording": lambda history, record: history.kernel.on_recording(record),
    "kvm.events": lambda history, record: history.kernel.on_events(record),
    "space.change": History._on_remapped,
    "space.map": History._on_mapped,
    "space.unmap": History._on_mapped,
}


def gather(records: Iterable[Record]) -> History:
    """Return the history of all records."""
    history = History()
    add = history.add
    for record in records:
        add(record)
    return history
