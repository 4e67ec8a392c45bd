"""A reader of the daemon's telemetry that knows what it lost.

Topics are `CLASS.cNNN.hN.TYPE.` (`e.c000.h1.exit.`), so ZeroMQ filters by class and place, and the type is filtered
here. A subscription takes effect some time after it was made. Instead of waiting a while, the reader subscribes to a
topic of its own, `y.sync.<token>.`: the daemon answers each subscription to `y.welcome.` or under `y.sync.` on that
very topic with the number of its last record, `{"seq": N}`. Subscriptions of one reader arrive in order, so from there
on nothing is missed for want of one. `y.bye.` with a reason is the daemon's last word. An answer is lossy, too: it is
dropped while the queue of a reader that was away is full, so the reader asks anew until there is room for one.

Telemetry may be dropped. Each event has a number in its topic (`tseq`): a jump is a gap, and what is missing is fetched
from the journal, in order. What cannot be fetched becomes one event of type `gap`.

A daemon that is killed says no bye. Its death is seen by a descriptor of its process: what it had sent is read first,
then whoever waits is told with NotRunning.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import zmq

from asid import ops
from asid.errors import AsidError, NoAnswer, NotRunning
from asid.live import sockets

SYNC_AGAIN_NS = 200_000_000  # an answer that has not come by then was dropped, or the host is slow: no harm in two
BEHIND = 1_000  # messages in a row, a tenth of what a queue holds: from there on some may have been dropped
POLL_SLICE_MS = 20  # a poll starts anew at every signal, so no single poll is trusted with a deadline
WELCOME = b"y.welcome."
BYE = b"y.bye."
CLOCK = b"y.clock."
RAW_PREFIX = re.compile(r"[serym]\.[A-Za-z0-9.-]*")
TOPIC_PLACE = re.compile(r"[serm]\.c(\d{3})\.(?:h(\d)\.)?")
PLACE = re.compile(r"c(\d{1,3})(?:h(\d))?")

KINDS = {"s": "state", "m": "counters"}  # types of what has none in its topic

Fetch = Callable[[int, int, list[str]], Iterator[dict[str, Any]]]
"""(since, until, prefixes) -> records, both ends included; raises AsidError."""


@dataclass(frozen=True, slots=True)
class Event:
    """One telemetry message. seq and tseq are 0 for what is no record (counters, state, gaps)."""

    topic: str
    seq: int
    tseq: int
    ts: int
    type: str
    core: int
    ht: int
    round: int
    cause: int
    data: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        names = ("seq", "tseq", "ts", "type", "core", "ht", "round", "cause", "data")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader wants: prefixes for ZeroMQ, and types (`gate` means gate and gate.*); no types: all."""

    prefixes: tuple[str, ...]
    types: tuple[str, ...]

    @classmethod
    def of(cls, topics: tuple[str, ...]) -> Filter:
        """Topics are types (`gate`, `ht.mode`), places (`c0`, `c0h1`) or raw prefixes (`s.`, `e.c000.`)."""
        prefixes, types = [], []
        for topic in topics:
            place = PLACE.fullmatch(topic)
            if place is not None:
                ht = f"h{place[2]}." if place[2] is not None else ""
                prefixes.append(f"e.c{int(place[1]):03}.{ht}")
            elif RAW_PREFIX.fullmatch(topic):
                prefixes.append(topic)
            else:
                types.append(topic)
        return cls(tuple(prefixes) or ("e.",), tuple(types))

    def wants(self, topic: str, kind: str) -> bool:
        """Return whether an event is for this reader; a fetched one was not filtered by ZeroMQ."""
        if not topic.startswith(self.prefixes):
            return False
        return not self.types or any(kind == name or kind.startswith(f"{name}.") for name in self.types)


class Events:
    """A subscription. Use as a context manager, in one thread; iterate it, or call `next`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        topics: tuple[str, ...],
        fetch: Fetch,
        *,
        since: int | None = None,
        timeout_s: float = 5.0,
        pidfd: int = -1,
    ) -> None:
        """pidfd: of the daemon's process, which its owner closes after this; -1: its death cannot be seen."""
        self._filter = Filter.of(topics)
        self._fetch = fetch
        self._since = since
        self._timeout_s = timeout_s
        self._pidfd = pidfd
        self._ready: deque[Event] = deque()
        self._tseqs: dict[str, int] = {}
        self._syncs: dict[bytes, int] = {}
        self._asked: set[bytes] = set()  # topics of the sync that is under way
        self._in_a_row = 0  # messages taken without finding the queue empty
        self._behind = False  # so many that the queue may have been full, and what came then dropped
        self._seq = 0
        self.gaps = 0  # jumps seen
        self.filled = 0  # records fetched to close them
        self.lost = 0  # records that could not be fetched
        self.ended = False  # the daemon said bye
        wanted = [prefix.encode() for prefix in self._filter.prefixes]
        self._socket = sockets.tel_sub(context, endpoint, [*wanted, WELCOME, BYE])

    def __enter__(self) -> Events:
        try:
            self._join()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def _join(self) -> None:
        deadline_ns = time.monotonic_ns() + int(self._timeout_s * 1e9)
        while WELCOME not in self._syncs:
            if not self._take() and not self._poll(deadline_ns):
                raise self._no_answer("no welcome from the telemetry socket")
        head = self._sync(deadline_ns)
        # Records from before all subscriptions were in place have holes; what is none (state, clock) has none.
        self._ready = deque(event for event in self._ready if not event.seq)
        first = head + 1 if self._since is None else self._since
        self._seq = max(0, first - 1)
        if first <= head:
            self._backfill(first, head)

    def _sync(self, deadline_ns: int) -> int:
        """Return a record number up to which everything wanted has arrived or was dropped.

        Any answer to this call will do: one that comes late is behind a long queue, and the next would be as well.
        """
        asked: list[bytes] = []
        try:
            while True:
                topic = b"y.sync.%s." % secrets.token_hex(8).encode()
                asked.append(topic)
                self._asked.add(topic)
                self._socket.setsockopt(zmq.SUBSCRIBE, topic)
                again_ns = min(deadline_ns, time.monotonic_ns() + SYNC_AGAIN_NS)
                while time.monotonic_ns() < again_ns and (self._take() or self._poll(again_ns)):
                    found = next((topic for topic in asked if topic in self._syncs), None)
                    if found is not None:
                        return self._syncs[found]
                if again_ns == deadline_ns or self.ended:
                    raise self._no_answer("no answer from the telemetry socket")
                self._behind = True
        finally:
            for topic in asked:
                self._socket.setsockopt(zmq.UNSUBSCRIBE, topic)
                self._asked.discard(topic)
                self._syncs.pop(topic, None)

    # ---------------------------------------------------------------- reading

    @property
    def waiting(self) -> int:
        """How many events have arrived and were not read."""
        return len(self._ready)

    def next(self, timeout_s: float) -> Event | None:
        """Return the next event, None when none came in time or the daemon has said bye.

        Raise NotRunning when the daemon was killed and all that it had sent is read.
        """
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while not self._ready and not self.ended:
            if not self._take() and not self._poll(deadline_ns):
                return None
        return self._ready.popleft() if self._ready else None

    def __iter__(self) -> Iterator[Event]:
        """Yield events until the daemon says bye. Raise NotRunning when it ends without."""
        while self._ready or not self.ended:
            event = self.next(1.0)
            if event is not None:
                yield event

    def drain(self) -> list[Event]:
        """Return everything that has arrived, without waiting."""
        while self._take():
            pass
        events, self._ready = list(self._ready), deque()
        return events

    def wait_seq(self, seq: int, timeout_s: float = 5.0) -> None:
        """Wait until every event up to `seq` is here to be read (see `drain`). Raise NoAnswer, NotRunning.

        What was dropped behind the last event that arrived shows as no jump. A reader whose queue may have been full
        fetches it here; NoAnswer also when that takes too long, or cannot be had.
        """
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while self._seq < seq and not self.ended:
            head = self._sync(deadline_ns)
            if head < seq:
                continue
            if self._behind and any(prefix.startswith("e") or not prefix for prefix in self._filter.prefixes):
                self._fetch_tail(head, deadline_ns)
            self._behind = False
            self._seq = max(self._seq, head)

    def _fetch_tail(self, head: int, deadline_ns: int) -> None:
        """Get what may be missing between the last event that arrived and record `head`."""
        for record in self._fetch(self._seq + 1, head, list(self._filter.prefixes)):
            self.filled += 1
            self._deliver(as_event(str(record.get("topic", "e.")), record))
            if time.monotonic_ns() > deadline_ns:
                raise self._no_answer(f"the records up to {head} have not all been fetched")

    def _no_answer(self, what: str) -> NoAnswer:
        return NoAnswer(what, state="the daemon has ended" if self.ended else "", hint="asid status")

    def _poll(self, deadline_ns: int) -> bool:
        """Wait for a message a little; return False when the deadline has passed."""
        left_ms = (deadline_ns - time.monotonic_ns()) // 1_000_000
        if left_ms <= 0 or self.ended:
            return False
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        if self._pidfd >= 0:
            poller.register(self._pidfd, zmq.POLLIN)
        ready = dict(poller.poll(min(left_ms, POLL_SLICE_MS)))
        # Its last words may still be on the way: its death counts only when nothing else comes.
        if self._pidfd in ready and self._socket not in ready and not self._socket.poll(POLL_SLICE_MS):
            raise NotRunning(
                "the daemon has ended without goodbye",
                where="events",
                state=f"the last record seen is {self._seq}",
                allowed="a bye before its end",
                hint="It was killed, or crashed: asid ls has its run, asid audit RUN what can be said of it.",
            )
        return True

    def _take(self) -> bool:
        """Take one message off the socket; return False when there is none."""
        frames = sockets.receive_nonblocking(self._socket)
        if frames is None:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        self._behind = self._behind or self._in_a_row > BEHIND
        if len(frames) != 2 or len(frames[1]) > ops.FRAME_BYTES_MAX:
            return True
        topic, body = frames
        try:
            value = msgpack.unpackb(body, raw=False)
        except Exception:  # whatever it is, it is not from a daemon of ours
            return True
        if not isinstance(value, dict):
            return True
        if topic.startswith(b"y."):
            self._on_system(topic, value)
        else:
            self._on_event(topic.decode("ascii", "replace"), value)
        return True

    def _on_system(self, topic: bytes, value: dict[str, Any]) -> None:
        if topic == BYE:
            self.ended = self.ended or "reason" in value  # without one it is an answer to the subscription
        elif topic == WELCOME or topic in self._asked:
            self._syncs[topic] = int(value.get("seq", 0))
        elif topic == CLOCK:
            self._on_event(topic.decode(), value)

    def _on_event(self, topic: str, value: dict[str, Any]) -> None:
        event = as_event(topic, value)
        if not event.seq:
            if self._filter.wants(topic, event.type):
                self._ready.append(event)
            return
        if event.seq <= self._seq:
            return
        last = self._tseqs.get(topic)
        if last is not None and event.tseq > last + 1:
            self.gaps += 1
            self._backfill(self._seq + 1, event.seq - 1)
        self._deliver(event)

    def _deliver(self, event: Event) -> None:
        self._seq = max(self._seq, event.seq)
        self._tseqs[event.topic] = max(event.tseq, self._tseqs.get(event.topic, 0))
        if self._filter.wants(event.topic, event.type):
            self._ready.append(event)

    def _backfill(self, since: int, until: int) -> None:
        try:
            for record in self._fetch(since, until, list(self._filter.prefixes)):
                self.filled += 1
                self._deliver(as_event(str(record.get("topic", "e.")), record))
        except AsidError as error:
            missed = until - self._seq
            self.lost += missed
            data = {"since": self._seq + 1, "until": until, "why": str(error)}
            self._ready.append(Event("y.gap.", 0, 0, 0, "gap", -1, -1, 0, 0, data))
        self._seq = max(self._seq, until)


def as_event(topic: str, value: dict[str, Any]) -> Event:
    """Return the event in a telemetry message; what is no record keeps the rest of its map as data."""
    if "seq" not in value or "type" not in value:
        place = TOPIC_PLACE.match(topic)
        core, ht = (int(place[1]), int(place[2] or -1)) if place is not None else (-1, -1)
        kind = KINDS.get(topic[:1]) or (topic.split(".")[-2] if "." in topic else topic)
        data = {name: found for name, found in value.items() if name not in ("t", "round")}
        return Event(topic, 0, 0, int(value.get("t", 0)), kind, core, ht, int(value.get("round", 0)), 0, data)
    return Event(
        topic,
        value["seq"],
        value.get("tseq", 0),
        value.get("ts", 0),
        value["type"],
        value.get("core", -1),
        value.get("ht", -1),
        value.get("round", 0),
        value.get("cause", 0),
        value.get("data", {}),
    )
