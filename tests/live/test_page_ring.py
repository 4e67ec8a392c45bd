"""Shared memory: the core page's words are apart and whole; the ring keeps order, loses nothing and never waits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.live import ring as ring_
from asid.live.page import (
    ARRIVED,
    BROADCAST,
    CALLIN,
    CLEAN,
    CORE_LINES,
    COUNT_BITS,
    DEPTH,
    FAILED,
    FLAG,
    HT_LINES,
    ICR,
    ICR2,
    INSNS,
    KICK_INSNS,
    KICK_NUMBER,
    KICKS,
    LINE_WORDS,
    MCE,
    MODE,
    NMI,
    PENDING,
    REQUEST,
    ROUND,
    SEVERITY,
    TAINT,
    TURN,
    WATCHED,
    CorePage,
    base_of,
    interrupt_parts,
    interrupt_word,
    make_page,
    page_bytes,
)
from asid.live.ring import RING_BYTES, Ring, make_ring

FIELDS = (
    MODE, FLAG, DEPTH, INSNS, REQUEST, PENDING, NMI, MCE, KICK_NUMBER, KICK_INSNS, ARRIVED, TAINT, CLEAN, ICR2, ICR,
    BROADCAST, SEVERITY, CALLIN,
)  # fmt: skip


# --- page -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("siblings", [1, 2, 4, 8])
def test_every_word_has_a_cache_line_of_its_own(siblings):
    words = [ROUND, KICKS, WATCHED, TURN, FAILED]
    words += [base_of(ht) + field for ht in range(siblings) for field in FIELDS]
    lines = [word // LINE_WORDS for word in words]
    assert len(set(lines)) == len(lines) == CORE_LINES + siblings * HT_LINES
    assert all(word % LINE_WORDS == 0 for word in words), "8-byte words at the start of 64-byte lines are never torn"
    assert page_bytes(siblings) == len(lines) * 64


def test_a_flush_covers_the_visits_before_it_and_none_after():
    fd = make_page(0, 2)
    page = CorePage(fd, 2)
    try:
        assert not page.tainted(), "nobody has been in HOST"
        page.words[base_of(1) + TAINT] += 1
        assert page.tainted()
        seen = page.visits()
        page.words[base_of(0) + TAINT] += 1  # while the flush goes on
        page.words[base_of(0) + CLEAN] = seen
        assert page.tainted(), "it began before that visit"
        page.words[base_of(1) + CLEAN] = page.visits()
        assert not page.tainted(), "a flush is for the whole core, whoever makes it"
    finally:
        page.close()
        os.close(fd)


def test_two_mappings_of_a_page_show_the_same_words():
    fd = make_page(0, 2)
    one, two = CorePage(fd, 2), CorePage(fd, 2)
    try:
        one.words[base_of(1) + PENDING] = 2**64 - 1
        one.fence()
        assert two.words[base_of(1) + PENDING] == 2**64 - 1
        assert two.words[base_of(0) + PENDING] == 0
    finally:
        one.close()
        two.close()
        os.close(fd)


@pytest.mark.parametrize("field", [FLAG, DEPTH])
def test_holders_are_siblings_with_a_flag_or_a_depth(field):
    fd = make_page(0, 4)
    page = CorePage(fd, 4)
    try:
        assert not page.holders((1, 2, 3))
        page.words[base_of(2) + field] = 1
        assert page.holders((1, 2, 3))
        assert not page.holders((1, 3)), "one's own flag is not a sibling's"
    finally:
        page.close()
        os.close(fd)


def test_a_page_is_not_inherited_by_accident():
    fd = make_page(3, 2)
    try:
        assert not os.get_inheritable(fd)
        assert "asid-core-3" in os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@given(st.integers(0, 2**43 - 1), st.integers(0, 2**40))
def test_an_interrupt_line_holds_a_number_and_a_count(number, count):
    word = interrupt_word(number, count)
    assert 0 <= word < 2**64
    assert interrupt_parts(word) == (number, count % (1 << COUNT_BITS))


# --- ring -------------------------------------------------------------------------------------------------


@pytest.fixture
def ends():
    """A ring's writer and reader."""
    fd = make_ring("test")
    writer, reader = Ring(fd), Ring(fd)
    yield writer, reader
    writer.close()
    reader.close()
    os.close(fd)


def test_records_come_out_as_they_went_in(ends):
    writer, reader = ends
    sent = [b"x" * size for size in (1, 3, 4, 5, 7, 8, 9, 4000)]
    assert all(writer.put(record) for record in sent)
    assert not reader.empty
    assert reader.take(100) == sent
    assert reader.empty
    assert reader.take(100) == []


def test_no_more_is_taken_than_was_asked_for(ends):
    writer, reader = ends
    for number in range(10):
        assert writer.put(b"%d" % number)
    assert reader.take(4) == [b"0", b"1", b"2", b"3"]
    assert not reader.empty
    assert reader.take(100) == [b"%d" % number for number in range(4, 10)]


def test_a_full_ring_takes_nothing_and_changes_nothing(ends):
    writer, reader = ends
    record = b"r" * 1000
    put = 0
    while writer.put(record):
        put += 1
    assert put == RING_BYTES // 1008
    assert writer.used > 0.99
    assert not writer.put(record)
    assert reader.take(1) == [record]
    assert writer.put(b"n" * 1000), "what was taken gives its room back"
    assert reader.take(10**6) == [record] * (put - 1) + [b"n" * 1000]
    assert writer.used == 0


def test_a_record_that_does_not_fit_before_the_end_goes_to_the_start(ends):
    writer, reader = ends
    big = b"b" * (RING_BYTES // 3)
    for number in range(20):
        record = bytes([number]) + big
        assert writer.put(record)
        assert reader.take(10) == [record]


def test_a_record_as_large_as_the_ring_fits_only_at_its_start(ends):
    writer, reader = ends
    assert writer.put(b"w" * (RING_BYTES - 8))
    assert reader.take(1) == [b"w" * (RING_BYTES - 8)]
    assert not writer.put(b"w" * RING_BYTES), "never: it is longer than the ring with its length"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300), st.integers(1, 9)), max_size=80))
def test_a_ring_is_a_bounded_queue(steps):
    """Against a deque, on a ring small enough to wrap often."""
    small = 1024
    old = ring_.RING_BYTES
    ring_.RING_BYTES = small  # type: ignore[misc]
    fd = make_ring("small")
    writer, reader = Ring(fd), Ring(fd)
    model: deque[bytes] = deque()
    try:
        for number, (kind, size, most) in enumerate(steps):
            if kind:
                record = bytes([number % 251]) * size
                if writer.put(record):
                    model.append(record)
                else:
                    assert sum((4 + len(r) + 7) & ~7 for r in model) + 2 * (size + 12) > small - 300
            else:
                expected = [model.popleft() for _ in range(min(most, len(model)))]
                assert reader.take(most) == expected
            assert reader.empty == (not model)
        assert reader.take(10**6) == list(model)
    finally:
        writer.close()
        reader.close()
        os.close(fd)
        ring_.RING_BYTES = old  # type: ignore[misc]


WRITER = """
import sys
from asid.live.ring import Ring
ring, n = Ring(int(sys.argv[1])), int(sys.argv[2])
for number in range(n):
    while not ring.put(b"%d:" % number + b"p" * (number % 97)):
        pass
sys.stdout.write("done")
sys.stdout.flush()
while True:
    pass
"""


@pytest.mark.live
@pytest.mark.slow
def test_a_ring_between_two_processes_survives_the_death_of_its_writer():
    fd = make_ring("shared")
    reader = Ring(fd)
    n = 60_000
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(fd), str(n)], pass_fds=[fd], stdout=subprocess.PIPE, close_fds=True
    )
    got = 0
    try:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        said = b""
        while said != b"done":
            said += child.stdout.read() or b""
            for record in reader.take(1000):
                number, _, tail = record.partition(b":")
                assert int(number) == got and tail == b"p" * (got % 97)
                got += 1
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()
    got += len(reader.take(10**6))
    assert got == n, "what was published outlives its writer"
    assert reader.empty
    reader.close()
    os.close(fd)
