"""The records of a run and KVM's own events of it, in one order by time.

Both are stamped by CLOCK_MONOTONIC: a record by the process that saw it, in nanoseconds; an event by the kernel, in
microseconds, so it comes up to one too early. Neither file is quite in order, for each is merged from several writers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from asid.core.record import Record
from asid.trace.lines import EventLine, LossLine, split_line
from asid.trace.sniff import read_lines

SLACK_NS: Final = 1_000_000_000  # no line is later in its file than this


class Stamped(Protocol):
    @property
    def ts(self) -> int: ...


S = TypeVar("S", bound=Stamped)


class KernelEvent(NamedTuple):
    """One event of KVM's, or a loss: then `event` is "lost" and `said` how many. core, ht: -1 for no hyperthread."""

    ts: int
    core: int
    ht: int
    pid: int
    cpu: int
    event: str
    said: str


def in_order(items: Iterable[S], slack_ns: int = SLACK_NS) -> Iterator[S]:
    """Yield items by their stamps; those of equal stamps as they came. Each may be late by `slack_ns`."""
    waiting: list[tuple[int, int, S]] = []
    newest = 0
    for number, item in enumerate(items):
        heapq.heappush(waiting, (item.ts, number, item))
        newest = max(newest, item.ts)
        while waiting[0][0] < newest - slack_ns:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def read_events(path: Path) -> Iterator[KernelEvent]:
    """Yield the events of a recording as they come, of no hyperthread yet.

    Raise InputError or PermissionRefused when it cannot be read.
    """
    ts = 0
    for _, text, _ in read_lines(path):
        line = split_line(text)
        if isinstance(line, EventLine) and not line.tsc:
            ts = line.time
            yield KernelEvent(ts, -1, -1, line.pid, line.cpu, line.event, (line.payload or "").strip())
        elif isinstance(line, LossLine):
            yield KernelEvent(ts, -1, -1, -1, line.cpu, "lost", str(line.n))


def by_time(records: Iterable[Record], recording: Path | None) -> Iterator[Record | KernelEvent]:
    """Yield the records of a journal and the events of its run by time. recording: None for none."""
    places: dict[int, tuple[int, int]] = {}

    def known() -> Iterator[Record]:
        for record in records:
            if record.type == "spawn" and record.data["what"] == "ht":
                places[record.data["pid"]] = (record.core, record.ht)
            yield record

    events = in_order(read_events(recording)) if recording is not None else iter(())
    streams: tuple[Iterator[Record | KernelEvent], ...] = (in_order(known()), events)
    for item in heapq.merge(*streams, key=attrgetter("ts")):
        if isinstance(item, KernelEvent) and item.pid in places:  # by now: it may have been fetched long ago
            core, ht = places[item.pid]
            yield item._replace(core=core, ht=ht)
        else:
            yield item
