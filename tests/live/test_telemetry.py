"""What the telemetry socket says of time: `y.clock.` tells which moment of the wall a stamp is."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest

from asid.live import telemetry as telemetry_
from asid.live.telemetry import Telemetry

S = 1_000_000_000
CLOCK = b"y.clock."


class Wire:
    """A socket that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, dict[str, Any]]] = []

    def send_multipart(self, frames: list[bytes], flags: int) -> None:
        self.sent.append((frames[0], msgpack.unpackb(frames[1])))


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def telemetry(wire):
    return Telemetry(wire, lambda: 41)  # type: ignore[arg-type]


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
