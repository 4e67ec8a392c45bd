"""The telemetry socket: records, state, counters and system messages to whoever subscribes; lossy, and numbered.

Classes: `e` every record, `s` the mode of each hyperthread (on change, and at once to a late joiner), `m` counters at
10 Hz, `r` every change of mode as it is performed, `y` welcome, sync, clock (1 Hz) and bye. A subscription under `y.`
is answered on its own topic with the number of the last record, so a reader knows from where on it misses nothing.
Nobody looks at `r` as a rule, and it costs every fast exit its short way: it is there while somebody subscribes to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgpack
import zmq

from asid.core.record import Record, as_map, place_topic, topic_of

CLOCK: Final = b"y.clock."
CLOCK_NS: Final = 1_000_000_000

_pack: Callable[[Any], bytes] = msgpack.Packer().pack


class Telemetry:
    """Publishes; never waits, and never tells anybody how things stand but readers."""

    def __init__(self, socket: zmq.Socket[bytes], seq: Callable[[], int], watched: Callable[[bool], None]) -> None:
        """seq: number of the last record; watched: called when class `r` gets its first reader or loses its last."""
        self._socket = socket
        self._seq = seq
        self._subscribers = 0
        self._state: dict[bytes, bytes] = {}
        self._watched = watched
        self._watching: set[bytes] = set()  # subscriptions to class `r`
        self._clock_ns = 0  # when the clock was told last

    def on_subscription(self, frames: list[bytes]) -> None:
        """A subscription (1) or its end (0), with the topic."""
        if len(frames) != 1 or not frames[0]:
            return
        topic = frames[0][1:]
        if topic.startswith(b"r"):
            self._watch(topic, frames[0][:1] == b"\x01")
        if frames[0][:1] != b"\x01":
            self._subscribers = max(0, self._subscribers - 1)
            return
        self._subscribers += 1
        if topic == CLOCK:
            self._tell_clock()
        elif topic.startswith(b"y."):
            self._send(topic, _pack({"seq": self._seq(), "t": time.monotonic_ns()}))
        elif topic.startswith(b"s") or not topic:
            for place, state in self._state.items():
                if place.startswith(topic):
                    self._send(place, state)

    def _watch(self, topic: bytes, begins: bool) -> None:
        """The end of a subscription is told once, when its last reader has left."""
        before = bool(self._watching)
        if begins:
            self._watching.add(topic)
        else:
            self._watching.discard(topic)
        if bool(self._watching) is not before:
            self._watched(not before)

    def publish(self, records: list[Record]) -> None:
        for record in records:
            if record.type == "ht.mode":
                self._set_mode(record, record.data["new"], record.data["vm"])
            elif record.type == "death" and record.data["what"] == "ht":  # the dead write no record of it
                self._set_mode(record, "OFFLINE", 0)
            if self._subscribers:
                self._send(topic_of(record).encode(), _pack(as_map(record)))

    def _set_mode(self, record: Record, mode: str, vm: int) -> None:
        place = place_topic("s", record.core, record.ht).encode()
        state = {"t": record.ts, "seq": record.seq, "mode": mode, "vm": vm, "inc": record.data["inc"]}
        self._state[place] = _pack(state)
        if self._subscribers:
            self._send(place, self._state[place])

    def show(self, items: list[Any]) -> None:
        """Publish changes of mode that are no records, as their hyperthreads packed them (see `Notebook.show`)."""
        for _, ts, _, core, ht, round_, _, data in items:
            body = {"t": ts, "round": round_, **data}
            self._send(f"{place_topic('r', core, ht)}mode.".encode(), _pack(body))

    def counters(self, core: int, ht: int, counts: dict[str, int]) -> None:
        if self._subscribers:
            self._send(place_topic("m", core, ht).encode(), _pack({"t": time.monotonic_ns(), **counts}))

    def clock(self) -> None:
        """Tell readers, once a second, which moment of the wall a stamp is. Nothing of asid goes by it."""
        if self._subscribers and time.monotonic_ns() - self._clock_ns >= CLOCK_NS:
            self._tell_clock()

    def _tell_clock(self) -> None:
        self._clock_ns = time.monotonic_ns()
        self._send(CLOCK, _pack({"t": self._clock_ns, "wall_ns": time.time_ns()}))

    def bye(self, reason: str) -> None:
        self._send(b"y.bye.", _pack({"seq": self._seq(), "reason": reason}))

    def _send(self, topic: bytes, body: bytes) -> None:
        try:
            self._socket.send_multipart([topic, body], zmq.NOBLOCK)
        except zmq.Again:
            return  # a slow reader loses it, and its numbers show that
