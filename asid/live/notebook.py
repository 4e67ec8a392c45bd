"""What a child notes down: records, into its ring.

A record gets a key that is unique in the run; the daemon gives it its `seq` at the merge and turns keys of causes into
seqs. Keys travel with gate messages, so that a grant can name the exit that asked for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgpack

from asid.live.ring import Ring

RAW: Final = "raw"  # kind of what is shown to readers of telemetry and is no record
OVERFLOW_MAX: Final = 100_000  # records kept in memory while the ring is full; then they are counted as lost
# Part of a ring that may wait for the daemon before the guest pauses. All rings together are what a stop has to write
# down before it can end, so it is some thousand records a ring and not all that there is room for.
PAUSE_PART: Final = 1 / 16
INC_BITS, PLACE_BITS, NUMBER_BITS = 12, 11, 40
PLACES_A_CORE: Final = 16
COORDINATOR_PLACE: Final = 15

_pack: Callable[[Any], bytes] = msgpack.Packer().pack


def key_base(core: int, ht: int, inc: int) -> int:
    """Return the key of the record before the first; ht -1 is the coordinator."""
    place = core * PLACES_A_CORE + (COORDINATOR_PLACE if ht < 0 else ht) + 1
    return ((inc & ((1 << INC_BITS) - 1)) << (PLACE_BITS + NUMBER_BITS)) | (place << NUMBER_BITS)


class Notebook:
    """The records of one process. `last` is the key of the last one, to be given as a cause."""

    __slots__ = ("_core", "_ht", "_overflow", "_ring", "last", "lost")

    def __init__(self, ring: Ring, core: int, ht: int, inc: int) -> None:
        self._ring = ring
        self._core = core
        self._ht = ht
        self._overflow: deque[bytes] = deque()
        self.last = key_base(core, ht, inc)
        self.lost = 0

    def note(
        self, kind: str, data: dict[str, Any], round_: int = 0, cause: int = 0, *, ht: int | None = None, ts: int = 0
    ) -> int:
        """Note a record and return its key. Never waits."""
        self.last += 1
        whose = self._ht if ht is None else ht
        self._put(_pack((self.last, ts or time.monotonic_ns(), kind, self._core, whose, round_, cause, data)))
        return self.last

    def show(self, data: dict[str, Any], round_: int) -> None:
        """Hand something to the daemon that is for its readers only: no record, and not kept when there is no room."""
        if not self.full:
            self._ring.put(_pack((0, time.monotonic_ns(), RAW, self._core, self._ht, round_, 0, data)))

    def _put(self, record: bytes) -> None:
        if self._overflow:
            self.flush()
        if self._overflow or not self._ring.put(record):
            if len(self._overflow) < OVERFLOW_MAX:
                self._overflow.append(record)
            else:
                self.lost += 1

    def flush(self) -> bool:
        """Move what waits in memory into the ring; return whether all of it went."""
        while self._overflow:
            if not self._ring.put(self._overflow[0]):
                return False
            self._overflow.popleft()
        if self.lost:
            lost, self.lost = self.lost, 0
            self.note("loss", {"what": "records", "n": lost})
        return not self._overflow

    @property
    def full(self) -> bool:
        """Whether the guest should pause: the daemon is behind. The rest of the ring is for what cannot wait."""
        return bool(self._overflow) or self._ring.used > PAUSE_PART
