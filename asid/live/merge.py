"""From the children's rings to one numbered stream: the journal, the statistics and the telemetry.

Each drain takes what the rings hold, orders it by stamp, gives it numbers and writes it in one go. A record's cause
comes as the key its writer gave; here it becomes the number of that record, 0 when that is long past.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgpack

from asid.core.record import NO_CORE, NO_HT, Record, topic_of
from asid.live.journal import JournalWriter
from asid.report.exposure import ExposureFold
from asid.report.stat import StatFold

TAKE_MAX: Final = 4_000  # records of one ring in one drain, so that no ring starves the others
KEYS_MAX: Final = 200_000  # records that can still be named as a cause
URGENT: Final = frozenset({"death", "run.end", "gate.fence", "warn", "loss"})


class Merge:
    """The run's one stream of records."""

    def __init__(self, journal: JournalWriter, publish: Callable[[list[Record]], None]) -> None:
        self.journal = journal
        self.publish = publish
        self.seq = 0
        self.stats = StatFold()
        self.exposure = ExposureFold()
        self.listeners: list[Callable[[Record], None]] = []
        self._tseq: dict[str, int] = {}
        self._seqs: dict[int, int] = {}
        self._own: list[tuple[Any, ...]] = []

    def note(self, kind: str, data: dict[str, Any], core: int = NO_CORE, ht: int = NO_HT) -> None:
        """Add a record of the daemon's own; it is numbered at the next drain."""
        self._own.append((0, time.monotonic_ns(), kind, core, ht, 0, 0, data))

    def drain(self, rings: list[Any]) -> int:
        """Take, order, number, write and publish. Return how many records there were."""
        raw = self._own
        self._own = []
        for ring in rings:
            raw.extend(msgpack.unpackb(item) for item in ring.take(TAKE_MAX))
        if not raw:
            return 0
        raw.sort(key=lambda item: item[1])
        records = [self._numbered(item) for item in raw]
        urgent = any(record.type in URGENT for record in records)
        self.journal.append(records, sync=urgent)
        for record in records:
            self.stats.add(record)
            self.exposure.add(record)
            for listener in self.listeners:
                listener(record)
        self.publish(records)
        return len(records)

    def _numbered(self, item: Any) -> Record:
        key, ts, kind, core, ht, round_, cause, data = item
        self.seq += 1
        if key:
            self._seqs[key] = self.seq
            if len(self._seqs) > KEYS_MAX:
                for old in list(self._seqs)[: KEYS_MAX // 2]:
                    del self._seqs[old]
        record = Record(self.seq, 0, ts, kind, core, ht, round_, self._seqs.get(cause, 0), data)
        topic = topic_of(record)
        tseq = self._tseq[topic] = self._tseq.get(topic, 0) + 1
        return record._replace(tseq=tseq)
