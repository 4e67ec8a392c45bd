"""From the children's rings to one numbered stream: the journal, the statistics and the telemetry.

Each drain takes some of what the rings hold, orders it by stamp, gives it numbers and writes it in one go. What is
stamped later than something that may still be in a ring waits for the next drain, so causes come before effects. A
record's cause comes as the key its writer gave; here it becomes the number of that record, 0 when that is long past.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

import msgpack

from asid.core.record import NO_CORE, NO_HT, Record, topic_of
from asid.live.journal import JournalWriter
from asid.live.notebook import RAW
from asid.report.stat import StatFold

TAKE_MAX: Final = 256  # records of one ring in one drain: neither the other rings nor the daemon's clients wait long
NEVER_NS: Final = 1 << 63
KEYS_MAX: Final = 200_000  # records that can still be named as a cause
URGENT: Final = frozenset({"death", "run.end", "gate.fence", "warn", "loss"})

_stamp = itemgetter(1)


class Merge:
    """The run's one stream of records."""

    def __init__(
        self, journal: JournalWriter, publish: Callable[[list[Record]], None], show: Callable[[list[Any]], None]
    ) -> None:
        """publish: what became a record; show: what is for readers of telemetry only, as its writer packed it."""
        self.journal = journal
        self.publish = publish
        self.show = show
        self.seq = 0
        self.stats = StatFold()
        self.listeners: list[Callable[[Record], None]] = []
        self._tseq: dict[str, int] = {}
        self._seqs: dict[int, int] = {}
        self._own: list[Any] = []  # not numbered yet: the daemon's own, and what was taken too early
        self.horizon_ns = 0  # everything that was in the rings and stamped before this has its number

    def note(self, kind: str, data: dict[str, Any], core: int = NO_CORE, ht: int = NO_HT) -> None:
        """Add a record of the daemon's own; it is numbered at the next drain."""
        self._own.append((0, time.monotonic_ns(), kind, core, ht, 0, 0, data))

    def drain(self, rings: list[Any]) -> int:
        """Take, order, number, write and publish. Return how many records there were."""
        self.horizon_ns = time.monotonic_ns()
        cut_ns = NEVER_NS
        raw = self._own
        self._own = []
        for ring in rings:
            taken = ring.take(TAKE_MAX)
            raw.extend(map(msgpack.unpackb, taken))
            if len(taken) == TAKE_MAX:
                cut_ns = min(cut_ns, raw[-1][1])
        raw.sort(key=_stamp)
        if cut_ns < NEVER_NS:
            self.horizon_ns = min(self.horizon_ns, cut_ns)
            at = bisect_right(raw, cut_ns, key=_stamp)
            self._own = raw[at:]
            del raw[at:]
        shown = [item for item in raw if item[2] == RAW]
        if shown:
            self.show(shown)
            raw = [item for item in raw if item[2] != RAW]
        if not raw:
            return 0
        records = [self._numbered(item) for item in raw]
        urgent = any(record.type in URGENT for record in records)
        self.journal.append(records, sync=urgent)
        for record in records:
            self.stats.add(record)
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
