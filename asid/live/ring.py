"""A ring of journal records in shared memory: one writer (a child), one reader (the daemon).

Writing a record is a copy, so a hyperthread that notes what it did pays a microsecond and wakes nobody. Records
survive the writer's SIGKILL: the daemon reads what was published and drops nothing. A full ring is told (`put`
returns False), never waited for: back-pressure belongs to the guest source, not to the gate.

Layout: word 0 is the writer's count of bytes, word 8 the reader's, then the data. Both counts only grow; each has one
writer and a line of its own. A record is a 4-byte length and its bytes, padded to 8; length 0xFFFFFFFF fills the rest
of the ring when a record does not fit before its end.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

HEAD_BYTES: Final = 128
RING_BYTES: Final = 1 << 20
_LENGTH = struct.Struct("<I")
_FILL: Final = 0xFFFFFFFF
_WRITTEN, _READ = 0, 8


def make_ring(name: str) -> int:
    """Return the descriptor of a new, empty ring."""
    fd = os.memfd_create(f"asid-ring-{name}", os.MFD_CLOEXEC)
    os.ftruncate(fd, HEAD_BYTES + RING_BYTES)
    return fd


class Ring:
    """A mapping of a ring, for its writer or for its reader."""

    __slots__ = ("_data", "_map", "_read", "_words", "_written")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, HEAD_BYTES + RING_BYTES)
        self._words = memoryview(self._map)[:HEAD_BYTES].cast("Q")
        self._data = memoryview(self._map)[HEAD_BYTES:]
        self._written = self._words[_WRITTEN]
        self._read = self._words[_READ]

    @property
    def used(self) -> float:
        """Part of the ring that is not read yet, 0 to 1. For the writer."""
        return (self._written - self._words[_READ]) / RING_BYTES

    @property
    def empty(self) -> bool:
        """Whether everything published was taken. For the reader."""
        return self._read == self._words[_WRITTEN]

    def put(self, record: bytes) -> bool:
        """Publish a record. Return False, and change nothing, when there is no room."""
        size = (4 + len(record) + 7) & ~7
        at = self._written % RING_BYTES
        skip = RING_BYTES - at if RING_BYTES - at < size else 0
        if self._written + skip + size - self._words[_READ] > RING_BYTES:
            return False
        if skip:
            _LENGTH.pack_into(self._data, at, _FILL)
            at = 0
        self._data[at + 4 : at + 4 + len(record)] = record
        _LENGTH.pack_into(self._data, at, len(record))
        self._written += skip + size
        self._words[_WRITTEN] = self._written  # published last: the reader never sees half a record
        return True

    def take(self, most: int) -> list[bytes]:
        """Return up to `most` records, oldest first, and give their room back. For the reader."""
        taken: list[bytes] = []
        written = self._words[_WRITTEN]
        read = self._read
        while read < written and len(taken) < most:
            at = read % RING_BYTES
            length = _LENGTH.unpack_from(self._data, at)[0]
            if length == _FILL:
                read += RING_BYTES - at
                continue
            taken.append(bytes(self._data[at + 4 : at + 4 + length]))
            read += (4 + length + 7) & ~7
        if read != self._read:
            self._read = read
            self._words[_READ] = read
        return taken

    def close(self) -> None:
        self._words.release()
        self._data.release()
        self._map.close()
