"""The journal: what is written is read, what is damaged is said."""

from __future__ import annotations

import errno
import logging
import os
import zlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asid.core.record import Record
from asid.errors import InputError
from asid.live.journal import HEAD, HEADER, INDEX_STRIDE, RECORD_BYTES_MAX, JournalReader, JournalWriter


def marks(count: int, start: int = 1, text: str = "hello") -> list[Record]:
    return [Record(seq, seq, 1000 + seq, "mark", -1, -1, 0, 0, {"text": text}) for seq in range(start, start + count)]


def write(path: Path, records: list[Record]) -> Path:
    writer = JournalWriter(path)
    assert writer.append(records)
    writer.close()
    return path


def read(path: Path):
    with JournalReader(path) as reader:
        return list(reader), reader.damage


integers = st.integers(min_value=0, max_value=2**63 - 1)
plain = st.one_of(st.booleans(), integers, st.text(max_size=20), st.lists(st.lists(integers, max_size=3), max_size=3))
records = st.builds(
    Record,
    seq=st.just(1),
    tseq=integers,
    ts=integers,
    type=st.text(min_size=1, max_size=20),
    core=st.integers(-1, 2**31),
    ht=st.integers(-1, 7),
    round=integers,
    cause=integers,
    data=st.dictionaries(st.text(max_size=10), plain, max_size=8),
)


@given(st.lists(records, max_size=20))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_round_trip(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("journal") / "journal.asid"
    told = [record._replace(seq=at + 1) for at, record in enumerate(drawn)]
    write(path, told)
    assert read(path) == (told, None)


def test_the_format_is_what_the_manual_says(tmp_path):
    path = write(tmp_path / "j", marks(1))
    whole = path.read_bytes()
    length, crc = HEAD.unpack_from(whole, len(HEADER))
    payload = whole[len(HEADER) + 8 :]
    assert whole.startswith(b"ASIDJ1\n")
    assert (length, crc) == (len(payload), zlib.crc32(payload))
    assert msgpack.unpackb(payload) == [1, 1, 1001, "mark", -1, -1, 0, 0, {"text": "hello"}]


def test_a_journal_is_never_overwritten(tmp_path):
    path = write(tmp_path / "j", marks(3))
    with pytest.raises(FileExistsError):
        JournalWriter(path)
    assert len(read(path)[0]) == 3


def test_a_hole_in_seq_is_our_own_mistake(tmp_path):
    writer = JournalWriter(tmp_path / "j")
    writer.append(marks(2))
    with pytest.raises(AssertionError, match="hole"):
        writer.append(marks(1, start=4))
    writer.append(marks(1, start=3))
    writer.close()
    assert [r.seq for r in read(tmp_path / "j")[0]] == [1, 2, 3]


def test_a_record_too_large_writes_nothing(tmp_path):
    writer = JournalWriter(tmp_path / "j")
    with pytest.raises(AssertionError, match="bytes"):
        writer.append([*marks(1), *marks(1, start=2, text="x" * RECORD_BYTES_MAX)])
    writer.close()
    assert read(tmp_path / "j") == ([], None)


# --- damage -----------------------------------------------------------------------------------------------------


def test_every_cut_of_the_last_record_is_a_torn_tail(tmp_path, caplog):
    path = write(tmp_path / "j", marks(5))
    whole = path.read_bytes()
    start = len(write(tmp_path / "four", marks(4)).read_bytes())
    for size in range(start, len(whole)):
        path.write_bytes(whole[:size])
        with caplog.at_level(logging.WARNING):
            found, damage = read(path)
        assert found == marks(4)
        if size == start:
            assert damage is None
        else:
            assert damage is not None and damage.tail and damage.offset == start
            assert "torn tail cut" in caplog.text
        caplog.clear()


def test_every_cut_of_the_header(tmp_path):
    path = tmp_path / "j"
    for size in range(len(HEADER)):
        path.write_bytes(HEADER[:size])
        found, damage = read(path)
        assert found == [] and damage is not None and damage.tail


def test_every_bit_flip_in_the_last_two_records(tmp_path):
    """A flip in the last record is a torn tail; one in the record before it is damage in the middle."""
    path = write(tmp_path / "j", marks(5))
    whole = path.read_bytes()
    size = (len(whole) - len(HEADER)) // 5
    fourth, fifth = len(whole) - 2 * size, len(whole) - size
    for bit in range(fourth * 8, len(whole) * 8):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        found, damage = read(path)
        assert damage is not None, f"bit {bit} went unseen"
        in_last = bit // 8 >= fifth
        assert found == marks(4 if in_last else 3)
        assert damage.tail is in_last, f"bit {bit}: {damage}"
        assert damage.offset == (fifth if in_last else fourth)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1" * 12,  # not msgpack
        msgpack.packb([1] * 8) + b"\x00" * 4,  # more than one object
        msgpack.packb([1] * 12),
        msgpack.packb({"seq": 1, "text": "a map"}),
        msgpack.packb([True, 1, 1, "mark", 0, 0, 0, 0, {}]),
        msgpack.packb([1.0, 1, 1, "mark", 0, 0, 0, 0, {}]),
        msgpack.packb([1, 1, 1, b"mark", 0, 0, 0, 0, {}]),
        msgpack.packb([1, 1, 1, "mark", 0, 0, 0, 0, []]),
        msgpack.packb([1, 1, -1, "mark", 0, 0, 0, 0, {}]),
        msgpack.packb([0, 1, 1, "mark", 0, 0, 0, 0, {}]),
        msgpack.packb([1, 1, 1, "mark", -2, 0, 0, 0, {}]),
        msgpack.packb([1, 1, 1, "mark", 0, 0, 0, 0, {1: 2}]),
        msgpack.packb([1, 1, 1, "mark", 0, 0, 0, 0, {"x": msgpack.ExtType(5, b"12")}]),
        msgpack.packb([1, 1, 1, "mark", 0, 0, 0, 0, {"x": msgpack.Timestamp(1)}]),
        b"\x91" * 2000 + b"\x01",  # nesting
    ],
    ids=range(15),
)
def test_a_good_checksum_does_not_make_a_record(tmp_path, payload):
    path = write(tmp_path / "j", marks(2))
    with path.open("ab") as file:
        file.write(HEAD.pack(len(payload), zlib.crc32(payload)) + payload)
    found, damage = read(path)
    assert found == marks(2)
    assert damage is not None and damage.tail


@pytest.mark.parametrize("length", [0, 1, 9, RECORD_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_that_cannot_be(tmp_path, length):
    path = write(tmp_path / "j", marks(2))
    good = path.read_bytes()
    rest = good[len(HEADER) :]
    path.write_bytes(good + HEAD.pack(length, 0))
    assert read(path)[1].tail
    path.write_bytes(good + HEAD.pack(length, 0) + rest)
    found, damage = read(path)
    assert found == marks(2) and not damage.tail, "good records follow: this is no torn tail"


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"ASIDJ2\n", b"\x00" * 50])
def test_a_foreign_file(tmp_path, content):
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a journal") as error:
        JournalReader(path)
    assert error.value.allowed and error.value.hint and str(path) in str(error.value)


# --- growing ----------------------------------------------------------------------------------------------------


def test_reading_while_it_is_written(tmp_path):
    writer = JournalWriter(tmp_path / "j")
    with JournalReader(tmp_path / "j") as reader:
        assert reader.poll() == []
        for start in range(1, 50, 7):
            writer.append(marks(7, start=start))
            assert reader.poll(limit=3) == marks(3, start=start)
            assert reader.poll() == marks(4, start=start + 3)
            assert reader.poll() == []
        assert reader.damage is None
    writer.close()


def test_a_record_that_comes_in_two_halves_waits(tmp_path):
    whole = write(tmp_path / "whole", marks(3)).read_bytes()
    path = tmp_path / "j"
    path.write_bytes(b"")
    with JournalReader(path) as reader:
        found = []
        for at in range(len(whole)):
            with path.open("ab") as file:
                file.write(whole[at : at + 1])
            found += reader.poll()
        assert found == marks(3)
        assert reader.damage is None


def test_poll_says_damage(tmp_path):
    path = write(tmp_path / "j", marks(3))
    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    path.write_bytes(broken)
    with JournalReader(path) as reader:
        assert reader.poll() == marks(2)
        assert reader.damage is not None


def test_fetch_from_anywhere(tmp_path):
    count = 3 * INDEX_STRIDE + 17
    path = write(tmp_path / "j", marks(count))
    with JournalReader(path) as reader:
        for since in (1, 2, count - 3, INDEX_STRIDE, INDEX_STRIDE + 1, 2 * INDEX_STRIDE + 5, count, 7):
            found = reader.fetch(since, 4)
            assert [r.seq for r in found] == list(range(since, min(since + 4, count + 1)))
        assert reader.fetch(count + 1, 4) == []
        assert reader.fetch(1, 0) == []
        assert reader.fetch(0, 2) == marks(2)


def test_fetch_does_not_read_what_it_can_skip(tmp_path, monkeypatch):
    path = write(tmp_path / "j", marks(4 * INDEX_STRIDE, text="x" * 400))
    with JournalReader(path) as reader:
        assert len(list(reader)) == 4 * INDEX_STRIDE
        read_at: list[int] = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, n, at: read_at.append(at) or pread(fd, n, at))
        assert reader.fetch(3 * INDEX_STRIDE + 10, 1)[0].seq == 3 * INDEX_STRIDE + 10
        assert min(read_at) > path.stat().st_size // 2


def test_fetch_sees_what_was_appended_later(tmp_path):
    writer = JournalWriter(tmp_path / "j")
    writer.append(marks(10))
    with JournalReader(tmp_path / "j") as reader:
        assert reader.fetch(11, 5) == []
        writer.append(marks(10, start=11))
        assert reader.fetch(11, 5) == marks(5, start=11)
    writer.close()


# --- a disk that fails ------------------------------------------------------------------------------------------


class Disk:
    """A file on a disk that takes `room` bytes and then fails; `step` bounds how much one write takes."""

    def __init__(self, path: Path, room: int, error: int = errno.ENOSPC, step: int = 1 << 20) -> None:
        self.file = open(path, "xb", buffering=0)  # noqa: SIM115
        self.room, self.error, self.step = room, error, step

    def write(self, data) -> int:
        if self.room == 0:
            raise OSError(self.error, os.strerror(self.error))
        written = self.file.write(bytes(data[: min(self.room, self.step)]))
        self.room -= written
        return written

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_breaks_the_journal_for_good(tmp_path, error):
    disk = Disk(tmp_path / "j", room=300, error=error)
    writer = JournalWriter(tmp_path / "j", open_file=lambda path: disk)
    assert writer.append(marks(4))
    assert writer.broken is None
    assert not writer.append(marks(20, start=5))
    assert writer.broken is not None and os.strerror(error) in writer.broken
    disk.room = 1 << 20  # room again: what is lost stays lost, and nothing is written behind a torn record
    assert not writer.append(marks(1, start=25))
    assert not writer.sync()
    assert writer.lost == 21
    writer.close()
    found, damage = read(tmp_path / "j")
    assert found[:4] == marks(4) and len(found) < 24
    assert damage is None or damage.tail


def test_short_writes_are_finished(tmp_path):
    disk = Disk(tmp_path / "j", room=1 << 20, step=5)
    writer = JournalWriter(tmp_path / "j", open_file=lambda path: disk)
    assert writer.append(marks(3))
    writer.close()
    assert read(tmp_path / "j") == (marks(3), None)


def test_no_room_for_the_header_is_told_at_once(tmp_path):
    with pytest.raises(OSError, match="No space"):
        JournalWriter(tmp_path / "j", open_file=lambda path: Disk(path, room=3))


def test_a_failed_fsync_is_never_believed_later(tmp_path):
    fail = []

    def fsync(fd: int) -> None:
        if fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = JournalWriter(tmp_path / "j", fsync=fsync)
    assert writer.append(marks(1), sync=True)
    fail.append(True)
    assert not writer.append(marks(1, start=2), sync=True)
    fail.clear()
    assert not writer.sync(), "the kernel may have marked the lost pages clean"
    assert "fsync" in writer.broken
    writer.close()


def test_sync_only_when_asked(tmp_path):
    calls = []
    writer = JournalWriter(tmp_path / "j", fsync=calls.append)
    calls.clear()
    writer.append(marks(10))
    assert calls == []
    writer.append(marks(1, start=11), sync=True)
    assert len(calls) == 1
    writer.close()
    writer.close()
    assert len(calls) == 2
