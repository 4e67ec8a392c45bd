"""asid watch: events as lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from asid.commands.session import Session, instance_option
from asid.report.faults import FaultLines
from asid.units import parse_duration_ns

if TYPE_CHECKING:
    from asid.live.subscriber import Event, Events

SLICE_S = 0.5


@click.command(
    epilog="asid watch\nasid watch gate ht.mode c0\nasid watch --since 0 --json | jq .type\nasid watch intr --count 10"
)
@click.argument("topics", nargs=-1)
@click.option("--since", type=click.IntRange(min=0), metavar="SEQ", help="Begin with this record, from the journal.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@click.option("--for", "duration", metavar="D", help="End after this time.")
@instance_option
@click.pass_obj
def command(
    session: Session, topics: tuple[str, ...], since: int | None, count: int | None, duration: str | None
) -> None:
    """Print events until interrupted, or until the daemon ends.

    TOPICS are types (gate, ht.mode, intr), places (c0, c0h1) or raw prefixes (s., m.c000.); none means every event.
    What telemetry dropped is fetched from the journal; what cannot be is said in its place.
    """
    until_ns = time.monotonic_ns() + parse_duration_ns(duration) if duration else None
    with session.client() as client, client.events(*topics, since=since) as events:
        started_ns = client.endpoints.started_ns
        faults = FaultLines(whole=since is not None and since <= 1)
        try:
            left = follow(events, until_ns, count, lambda event: _print(session, event, started_ns, faults))
        finally:
            if events.lost:
                session.note(f"asid: {events.lost:,} records were lost on the way and not in the journal")
    if events.ended and left != 0:
        session.note("asid: the daemon has ended")


def follow(events: Events, until_ns: int | None, count: int | None, show: Callable[[Event], Any]) -> int | None:
    """Show events until the time is over, `count` are shown, or the daemon ends. Return how many are still wanted."""
    while not events.ended or events.waiting:
        wait_s = SLICE_S if until_ns is None else min(SLICE_S, (until_ns - time.monotonic_ns()) / 1e9)
        if wait_s <= 0:
            return count
        event = events.next(wait_s)
        if event is None:
            continue
        show(event)
        if count is not None:
            count -= 1
            if count == 0:
                return 0
    return count


def _print(session: Session, event: Event, started_ns: int, faults: FaultLines) -> None:
    session.line({"topic": event.topic, **event.as_dict()}, lambda: render(event, started_ns, faults), schema="event/1")


def render(event: Event, started_ns: int, faults: FaultLines | None = None) -> str:
    """Return one line: time since start, number, place, type, round, cause, data. Of an isolation fault it is the
    kernel's own line, with its call trace in lines below. faults: of all that was shown so far."""
    place = f"c{event.core}" if event.core >= 0 else "-"
    place += f"h{event.ht}" if event.ht >= 0 else ""
    seconds = (event.ts - started_ns) / 1e9 if event.ts else 0.0
    if event.type == "fault":
        data, *below = (faults or FaultLines(whole=False)).of(event.data)
        head = f"{seconds:12.6f} {event.seq:>8} {place:<6} {event.type:<12}"
        return "\n".join((f"{head} {data}", *(f"{'':{len(head)}} {line}" for line in below)))
    data = " ".join(f"{name}={_short(value)}" for name, value in event.data.items())
    story = (f" round={event.round}" if event.round else "") + (f" cause={event.cause}" if event.cause else "")
    return f"{seconds:12.6f} {event.seq:>8} {place:<6} {event.type:<12} {data}{story}".rstrip()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
