"""Records on their way out of a process: keys, overflow, what is lost is said; the tally of fast exits."""

from __future__ import annotations

import itertools
import os

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.core.limits import CORES_MAX, SIBLINGS_MAX
from asid.core.record import Record, bucket_of, fault_of
from asid.core.tally import Tally
from asid.live import notebook as notebook_
from asid.live.notebook import Notebook, key_base
from asid.live.ring import RING_BYTES, Ring, make_ring


@pytest.fixture
def ring():
    fd = make_ring("notes")
    made = Ring(fd)
    yield made
    made.close()
    os.close(fd)


@pytest.fixture
def reader(ring):
    """The daemon's end: what has been published, decoded."""
    return lambda most=10**6: [msgpack.unpackb(item) for item in ring.take(most)]


@pytest.fixture
def notebook(ring):
    return Notebook(ring, 3, 1, 2)


def test_a_record_says_who_when_and_why(notebook, reader):
    key = notebook.note("ht.mode", {"a": 1}, 7, 99)
    [(got, ts, kind, core, ht, round_, cause, data)] = reader()
    assert (got, kind, core, ht, round_, cause, data) == (key, "ht.mode", 3, 1, 7, 99, {"a": 1})
    assert ts > 0
    assert notebook.last == key == key_base(3, 1, 2) + 1


def test_a_coordinator_speaks_of_a_sibling(ring, reader):
    Notebook(ring, 3, -1, 1).note("gate.done", {}, ht=5)
    [item] = reader()
    assert item[4] == 5


@given(
    st.lists(
        st.tuples(st.integers(0, CORES_MAX - 1), st.integers(-1, SIBLINGS_MAX - 1), st.integers(1, 4000)),
        min_size=2, unique=True,
    )
)  # fmt: skip
def test_keys_of_different_lives_are_apart(lives):
    bases = sorted(key_base(*life) for life in lives)
    assert all(after - before >= 1 << 40 for before, after in itertools.pairwise(bases))
    assert bases[0] > 0, "0 is no cause"
    assert bases[-1] + (1 << 40) < 2**64, "a key fits msgpack's and the wire's integers"


def test_what_the_ring_has_no_room_for_waits_in_order(notebook, reader):
    text = "x" * 60_000
    for number in range(40):
        notebook.note("mark", {"text": text, "n": number})
    assert notebook.full
    assert not notebook.flush(), "nobody has read"
    got = [item[7]["n"] for item in reader()]
    assert 0 < len(got) < 40
    while not notebook.flush():
        got += [item[7]["n"] for item in reader()]
    got += [item[7]["n"] for item in reader()]
    assert got == list(range(40))
    assert not notebook.full


def test_a_late_record_does_not_overtake_one_that_waits(notebook, reader):
    text = "x" * 60_000
    number = 0
    while not notebook._overflow:
        notebook.note("mark", {"text": text, "n": number})
        number += 1
    notebook.note("mark", {"text": "", "n": number})  # this one would have fitted
    got = []
    while not notebook.flush():
        got += [item[7]["n"] for item in reader(5)]
    got += [item[7]["n"] for item in reader()]
    assert got == list(range(number + 1))


def test_what_is_lost_is_said(notebook, reader, monkeypatch):
    monkeypatch.setattr(notebook_, "OVERFLOW_MAX", 2)
    size = RING_BYTES // 2 - 200
    for _ in range(7):
        notebook.note("mark", {"text": "x" * size})
    assert notebook.lost > 0
    lost = notebook.lost
    got = reader()
    while not notebook.flush():
        got += reader()
    got += reader()
    assert [item[7] for item in got if item[2] == "loss"] == [{"what": "records", "n": lost}]
    assert len([item for item in got if item[2] == "mark"]) == 7 - lost
    assert notebook.lost == 0


def test_a_guest_pauses_before_the_ring_is_full(notebook, ring):
    while not notebook.full:
        notebook.note("mark", {"text": "x" * 9_000})
    assert notebook_.PAUSE_PART < ring.used < 0.5, "what comes while it pauses still has room"
    ring.take(10**6)
    assert not notebook.full


# --- tally ------------------------------------------------------------------------------------------------


def test_a_tally_becomes_one_record_a_reason(notebook, reader):
    tally = Tally()
    tally.add("CPUID", "vmx", 1, 1_000)
    tally.add("HLT", "vmx", 1, 5)
    tally.add("CPUID", "vmx", 4, 400)  # a batch, entered at its mean
    tally.note(notebook, 12)
    tally.note(notebook, 12)  # nothing new
    rows = {item[7]["reason"]: item for item in reader()}
    assert set(rows) == {"CPUID", "HLT"}
    data = rows["CPUID"][7]
    assert (data["n"], data["sum_ns"], data["min_ns"], data["max_ns"], data["full"]) == (5, 1_400, 100, 1_000, False)
    assert data["hist"] == [[bucket_of(100), 4], [bucket_of(1_000), 1]]
    assert rows["CPUID"][5] == 12
    record = Record(1, 1, 1, "exit", 0, 0, 12, 0, data)
    assert fault_of(record) is None


def test_halts_that_were_polled_for_are_tallied_apart(notebook, reader):
    tally = Tally()
    tally.add("HLT", "vmx", 1, 1_000)
    tally.add("HLT", "vmx", 1, 9_000, "polled")
    tally.note(notebook, 12)
    rows = {data.get("halt", ""): data for *_, data in reader()}
    assert {halt: data["sum_ns"] for halt, data in rows.items()} == {"": 1_000, "polled": 9_000}
    assert all(fault_of(Record(1, 1, 1, "exit", 0, 0, 12, 0, data)) is None for data in rows.values())
