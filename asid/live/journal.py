"""The journal: the evidence of a run, one append-only file that can be read while it is written.

Format
    The header `ASIDJ1\\n`, then records: u32 LE length, u32 LE CRC32 of the payload, payload = msgpack array of the
    nine values of a Record.

Rules
    1. One writer. It appends, it never seeks; a file that exists is never opened for writing.
    2. After a failed write or fsync the journal is broken and stays broken: the kernel may have marked the lost pages
       clean, so a second fsync that succeeds proves nothing. What could not be written is counted.
    3. A reader never skips. A bad record at the end is a torn tail, cut with a warning; a bad record with a good one
       after it is damage, and reading stops there.
    4. Each payload is decoded on its own, with limits; msgpack's streaming Unpacker is not used, because one that has
       raised must not be used again and nothing here can promise that.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgpack

from asid.core.record import Record
from asid.errors import InputError

HEADER = b"ASIDJ1\n"
HEAD = struct.Struct("<II")  # length, CRC32

RECORD_BYTES_MAX = 64 * 1024
RECORD_BYTES_MIN = 10  # an array of nine one-byte values
CHUNK_BYTES = 1 << 20
INDEX_STRIDE = 1024  # records between two entries of the sparse index
SCAN_BYTES_MAX = 4 << 20  # how far behind a bad record a good one is looked for
SCAN_TRIES_MAX = 4096
assert SCAN_BYTES_MAX >= 2 * RECORD_BYTES_MAX, "a whole record must fit behind a bad one"

_TYPES = (int, int, int, str, int, int, int, int, dict)  # exact: True is no integer here
_made = tuple.__new__
_NINE = 0x99  # msgpack: array of nine
_unpack: Callable[[bytes], Any] = partial(
    msgpack.unpackb,
    raw=False,
    strict_map_key=True,
    max_array_len=1024,
    max_map_len=64,
    max_str_len=16 * 1024,
    max_bin_len=0,
    max_ext_len=0,
)

log = logging.getLogger(__name__)


class Damage(NamedTuple):
    """Where a journal stops being good. tail: nothing good follows, so cutting it loses only the torn record."""

    offset: int  # of the first byte that is not part of a good record
    reason: str
    tail: bool


class JournalWriter:
    """Appends records. `broken` says why the journal lost records, or is None; `lost` counts them."""

    def __init__(
        self,
        path: Path,
        *,
        open_file: Callable[[Path], IO[bytes]] | None = None,
        fsync: Callable[[int], None] = os.fsync,
    ) -> None:
        """Create the file. Raises FileExistsError when it exists, OSError when the disk is full or read-only."""
        self.path = path
        self.broken: str | None = None
        self.lost = 0
        self.last_seq = 0
        self.bytes_written = 0
        self._fsync = fsync
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
        self._file: IO[bytes] | None = (open_file or _create)(path)
        try:
            self._write(HEADER)
            self._fsync(self._file.fileno())
            _sync_directory(path.parent)
        except OSError:
            self._file.close()
            self._file = None
            raise

    def append(self, records: list[Record], *, sync: bool = False) -> bool:
        """Write records in one go, so that a reader sees them at once; with sync, wait until they are on the disk.

        Return False when the journal is broken; then nothing is written any more, and `lost` counts what was not.
        """
        assert self._file is not None, "append to a closed journal"
        if self.broken is not None:
            self.lost += len(records)
            return False
        parts: list[bytes] = []
        seq = self.last_seq
        for record in records:
            assert record.seq == seq + 1 or seq == 0, f"hole in seq: {record.seq} after {seq}"
            payload: bytes = self._pack(record)
            assert RECORD_BYTES_MIN <= len(payload) <= RECORD_BYTES_MAX, f"record of {len(payload)} bytes"
            parts += (HEAD.pack(len(payload), zlib.crc32(payload)), payload)
            seq = record.seq
        try:
            if parts:
                self._write(b"".join(parts))
                self.last_seq = seq
        except OSError as error:
            self._break("write", error)
            self.lost += len(records)
            return False
        return self.sync() if sync else True

    def sync(self) -> bool:
        """Wait until everything is on the disk: at a violation, a death and the end. False when broken."""
        assert self._file is not None, "sync of a closed journal"
        if self.broken is None:
            try:
                self._fsync(self._file.fileno())
            except OSError as error:
                self._break("fsync", error)
        return self.broken is None

    def close(self) -> None:
        """Sync and close. Safe to call twice."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            if not written:  # a raw file that takes nothing would turn this into an endless loop
                raise OSError("write took no bytes")
            view = view[written:]
        self.bytes_written += len(data)

    def _break(self, what: str, error: OSError) -> None:
        self.broken = f"{what} of {self.path}: {error.strerror or error}"
        log.warning("journal broken: %s; this run cannot pass its audit", self.broken)


def _create(path: Path) -> IO[bytes]:
    return open(path, "xb", buffering=0)  # the writer owns and closes it


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class JournalReader:
    """Reads a journal from the start, in pieces while it grows, or from a sequence number.

    `damage` is set when reading met a bad record. A record that is not complete *yet* is damage only to `__iter__`,
    which reads a journal as it stands; `poll` and `fetch` wait for the rest of it.
    """

    def __init__(self, path: Path) -> None:
        """Open for reading. Raises InputError for a file that is not a journal."""
        self.path = path
        self.damage: Damage | None = None
        self._offset = len(HEADER)  # poll: where the next record begins
        self._index_seqs: list[int] = []
        self._index_offsets: list[int] = []
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", where=str(path), hint="asid runs ls shows the runs there are"
            ) from error
        head = self._file.read(len(HEADER))
        self._has_header = head == HEADER
        if not HEADER.startswith(head):
            self._file.close()
            raise InputError(
                "not a journal of asid",
                where=str(path),
                state=f"it begins with {head!r}",
                allowed=f"a file that begins with {HEADER!r}",
                hint="asid runs ls shows the runs there are",
            )

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        """Yield every good record from the start; `damage` tells afterwards whether that was all."""
        self.damage = None
        if not self._header_seen():
            self.damage = Damage(0, "the header is cut", tail=True)
        else:
            for _, record in self._scan(len(HEADER), growing=False):
                yield record
        if self.damage is not None and self.damage.tail:
            log.warning("%s: torn tail cut at byte %d: %s", self.path, self.damage.offset, self.damage.reason)

    def poll(self, limit: int = 10_000) -> list[Record]:
        """Return at most `limit` records that were appended since the last poll; an unfinished one waits."""
        out: list[Record] = []
        if not self._header_seen():
            return out
        for offset, record in self._scan(self._offset, growing=True):
            out.append(record)
            self._offset = offset
            if len(out) >= limit:
                break
        return out

    def fetch(self, since: int, limit: int) -> list[Record]:
        """Return at most `limit` records with seq >= since. Uses and extends a sparse index of what was read."""
        out: list[Record] = []
        if limit <= 0 or not self._header_seen():
            return out
        at = bisect_right(self._index_seqs, since) - 1
        start = self._index_offsets[at] if at >= 0 else len(HEADER)
        for _, record in self._scan(start, growing=True):
            if record.seq >= since:
                out.append(record)
                if len(out) >= limit:
                    break
        return out

    def _header_seen(self) -> bool:
        if not self._has_header:
            self._has_header = os.pread(self._file.fileno(), len(HEADER), 0) == HEADER
        return self._has_header

    def _scan(self, offset: int, *, growing: bool) -> Iterator[tuple[int, Record]]:
        """Yield (offset behind the record, record); set `damage` and stop at the first bad one."""
        fd = self._file.fileno()
        next_index = self._index_seqs[-1] + INDEX_STRIDE if self._index_seqs else 0
        buffer = b""
        head_of, head_bytes, crc_of = HEAD.unpack_from, HEAD.size, zlib.crc32
        while True:
            more = os.pread(fd, CHUNK_BYTES, offset + len(buffer))
            buffer += more
            pos, end = 0, len(buffer)
            while end - pos >= head_bytes:
                length, crc = head_of(buffer, pos)
                if not RECORD_BYTES_MIN <= length <= RECORD_BYTES_MAX:
                    self._damaged(offset + pos, f"a record of {length} bytes")
                    return
                begin = pos + head_bytes
                stop = begin + length
                if stop > end:
                    break
                payload = buffer[begin:stop]
                if crc_of(payload) != crc:
                    self._damaged(offset + pos, "the checksum does not match")
                    return
                record = _decode(payload)
                if type(record) is str:
                    self._damaged(offset + pos, record)
                    return
                assert type(record) is Record
                seq = record[0]
                if seq >= next_index:
                    self._index_seqs.append(seq)
                    self._index_offsets.append(offset + pos)
                    next_index = seq + INDEX_STRIDE
                pos = stop
                yield offset + pos, record
            offset += pos
            buffer = buffer[pos:]
            if not more:
                if buffer and not growing:
                    self._damaged(offset, f"the last record is cut after {len(buffer)} bytes")
                return

    def _damaged(self, offset: int, reason: str) -> None:
        tail = not _good_record_after(self._file.fileno(), offset + 1)
        self.damage = Damage(offset, reason, tail)


def _decode(payload: bytes) -> Record | str:
    """Return the record, or what is wrong with it. Types are exact; the data's fields are the catalogue's business."""
    try:
        raw = _unpack(payload)
    except Exception as error:  # msgpack raises seven kinds, from ValueError to OverflowError
        return f"not msgpack: {type(error).__name__}"
    if type(raw) is not list or len(raw) != 9:
        return "not an array of nine values"
    if tuple(map(type, raw)) != _TYPES:
        return "a value of the record is of the wrong type"
    seq, tseq, ts, _, core, ht, round_, cause, _ = raw
    if seq < 1 or tseq < 0 or ts < 0 or core < -1 or ht < -1 or round_ < 0 or cause < 0:
        return "a number of the record is out of range"
    return _made(Record, raw)  # Record._make, but for its call and its look at the length


def _good_record_after(fd: int, offset: int) -> bool:
    """Tell whether a whole good record begins anywhere behind a bad one (bounded: a hint, not a recovery)."""
    rest = os.pread(fd, SCAN_BYTES_MAX, offset)
    at = rest.find(_NINE, HEAD.size)
    for _ in range(SCAN_TRIES_MAX):
        if at < 0:
            return False
        length, crc = HEAD.unpack_from(rest, at - HEAD.size)
        if RECORD_BYTES_MIN <= length <= min(RECORD_BYTES_MAX, len(rest) - at):
            payload = rest[at : at + length]
            if zlib.crc32(payload) == crc and isinstance(_decode(payload), Record):
                return True
        at = rest.find(_NINE, at + 1)
    return False
