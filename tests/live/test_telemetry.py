"""What the telemetry socket tells of modes, of time, and to whom it shows every change of mode."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest

from asid.core.record import Record
from asid.live import telemetry as telemetry_
from asid.live.telemetry import Telemetry

S = 1_000_000_000
CLOCK = b"y.clock."
LATE = [b"\x01s."]  # a subscription to every mode


class Wire:
    """A socket that keeps what it is given."""

    def __init__(self) -> None:
        self.watched: list[bool] = []
        self.sent: list[tuple[bytes, dict[str, Any]]] = []

    def send_multipart(self, frames: list[bytes], flags: int) -> None:
        self.sent.append((frames[0], msgpack.unpackb(frames[1])))

    def modes(self) -> list[tuple[bytes, str, int, int]]:
        """Take the modes that were sent: topic, mode, VM, incarnation."""
        found = [(topic, s["mode"], s["vm"], s["inc"]) for topic, s in self.sent if topic.startswith(b"s.")]
        self.sent.clear()
        return found


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def telemetry(wire):
    return Telemetry(wire, lambda: 41, wire.watched.append)  # type: ignore[arg-type]


def test_the_clock_is_told_once_a_second_and_to_nobody_when_nobody_listens(wire, telemetry, monkeypatch):
    now = [1_000 * S]
    monkeypatch.setattr(telemetry_.time, "monotonic_ns", lambda: now[0])
    telemetry.clock()
    assert wire.sent == []
    telemetry.on_subscription([b"\x01y.clo"])
    wire.sent.clear()
    for _ in range(25):
        telemetry.clock()
        now[0] += S // 10
    assert [(topic, body["t"] // S) for topic, body in wire.sent] == [(CLOCK, 1_000), (CLOCK, 1_001), (CLOCK, 1_002)]


def test_the_clock_is_both_clocks_of_one_moment(wire, telemetry):
    before = time.time_ns() - time.monotonic_ns()
    telemetry.on_subscription([b"\x01" + CLOCK])
    [(topic, body)] = wire.sent
    assert topic == CLOCK and set(body) == {"t", "wall_ns"}, "a late joiner does not wait for it"
    assert abs(body["wall_ns"] - body["t"] - before) < S


def test_changes_of_mode_are_wanted_from_the_first_reader_to_the_last(wire, telemetry):
    telemetry.on_subscription([b"\x01e.c000."])
    assert wire.watched == []
    for topic in (b"r.", b"r.", b"r.c000.h1."):  # the second reader of one topic is told of, its end is not
        telemetry.on_subscription([b"\x01" + topic])
    assert wire.watched == [True]
    telemetry.on_subscription([b"\x00r."])
    assert wire.watched == [True]
    telemetry.on_subscription([b"\x00r.c000.h1."])
    assert wire.watched == [True, False]


def test_a_change_of_mode_that_is_shown_has_its_place_and_no_number(wire, telemetry):
    telemetry.show([[0, 77, "raw", 3, 1, 9, 0, {"inc": 1, "old": "ISOLATED", "new": "ENTER", "vm": 1}]])
    assert wire.sent == [
        (b"r.c003.h1.mode.", {"t": 77, "round": 9, "inc": 1, "old": "ISOLATED", "new": "ENTER", "vm": 1})
    ]


def record(seq: int, kind: str, ht: int, **data: Any) -> Record:
    return Record(seq=seq, ts=seq, type=kind, core=0, ht=ht, tseq=0, round=0, cause=0, data=data)


def mode(seq: int, ht: int, new: str, vm: int = 0, inc: int = 1) -> Record:
    return record(seq, "ht.mode", ht, inc=inc, old="PARKED", new=new, vm=vm)


def death(seq: int, ht: int, what: str = "ht", inc: int = 1) -> Record:
    return record(seq, "death", ht, what=what, pid=7, inc=inc, status=-9)


def test_a_hyperthread_that_died_in_guest_is_offline_to_whoever_comes_later(wire, telemetry):
    telemetry.publish([mode(1, 0, "GUEST", 1), mode(2, 1, "GUEST", 1), death(3, 1)])
    assert wire.modes() == [], "nobody listens yet"
    telemetry.on_subscription(LATE)
    assert wire.modes() == [(b"s.c000.h0.", "GUEST", 1, 1), (b"s.c000.h1.", "OFFLINE", 0, 1)]
    telemetry.publish([mode(4, 1, "PARKED", inc=2)])
    telemetry.on_subscription(LATE)
    assert (b"s.c000.h1.", "PARKED", 0, 2) in wire.modes()


def test_a_death_is_a_change_of_mode_to_whoever_listens_and_a_coordinators_is_none(wire, telemetry):
    telemetry.on_subscription(LATE)
    telemetry.publish([death(1, -1, "coordinator"), mode(2, 0, "HOST"), death(3, 0)])
    assert [topic for topic, _ in wire.sent if topic.startswith(b"e.")] != []
    assert wire.modes() == [(b"s.c000.h0.", "HOST", 0, 1), (b"s.c000.h0.", "OFFLINE", 0, 1)]
