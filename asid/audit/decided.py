"""What one core's records tell of exits that mapping and footprint decided: faults, leaves, fast exits, changes.

Fast exits are told by the hundred, so a hyperthread may have run several VMs since it last told of them: they may have
been of any of these.
"""

from __future__ import annotations

from asid.audit.rows import FastKind, FaultRow, MappedRow, MissedRow
from asid.core.record import Record


class Decided:
    """The maps are keyed by hyperthread."""

    def __init__(self) -> None:
        self.faults: dict[int, list[FaultRow]] = {}
        self.missed: dict[int, list[MissedRow]] = {}
        self.changes: dict[int, list[MappedRow]] = {}  # of what is mapped
        self.fast: dict[FastKind, tuple[int, int, int]] = {}  # ts and seq of the first record, exits in all
        self._vms: dict[int, list[int]] = {}  # that a hyperthread has run since its fast exits were told, in order
        self._told: set[int] = set()  # whose fast exits were told, and who has entered no guest since

    def ran(self, ht: int, vm: int) -> None:
        """Note that a hyperthread enters a guest of this VM."""
        vms = self._vms.setdefault(ht, [])
        if ht in self._told:
            self._told.discard(ht)
            del vms[:-1]
        if vm not in vms[-1:]:
            vms.append(vm)

    def was_fast(self, record: Record, policies: int) -> None:
        """Note fast exits. policies: how many there had been in the run."""
        ht, data = record.ht, record.data
        self._told.add(ht)
        changes = len(self.changes.get(ht, ()))
        kind = FastKind(ht, changes, tuple(self._vms.get(ht, ())), data["isa"], data["reason"], policies)
        ts, seq, n = self.fast.get(kind, (record.ts, record.seq, 0))
        self.fast[kind] = ts, seq, n + data["n"]

    def missed_one(self, record: Record) -> None:
        """Note a leave for an object."""
        data = record.data
        vm = self._vms.get(record.ht, [0])[-1]
        row = MissedRow(record.ts, record.seq, vm, data["object"], data["reason"], record.ts - data["wait_ns"])
        self.missed.setdefault(record.ht, []).append(row)

    def faulted(self, record: Record) -> None:
        """Note an isolation fault."""
        data = record.data
        row = FaultRow(record.ts, record.seq, data["vm"], data["object"], data["reason"], data["ending"])
        self.faults.setdefault(record.ht, []).append(row)

    def changed(self, record: Record) -> None:
        """Note that something was mapped or unmapped."""
        self.changes.setdefault(record.ht, []).append(mapped_row(record, record.type == "space.map"))


def mapped_row(record: Record, mapped: bool) -> MappedRow:
    """Return the row of an object that was mapped or unmapped."""
    data = record.data
    return MappedRow(
        record.ts, record.seq, data["vm"], data["object"], data["generation"], mapped,
        data.get("level", "PTE"), data.get("split", True),
    )  # fmt: skip
