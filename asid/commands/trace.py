"""asid trace: record VM exits of this host, and show what KVM did during a run."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from asid.commands.session import Session, Usage


@click.group(
    epilog="asid trace record -o exits.txt --duration 10s\nasid assess exits.txt\nasid trace show latest --for 5ms"
)
def command() -> None:
    """Record VM exits of this host, for `asid assess` and `asid replay`; show a run with KVM's own events."""


@command.command(epilog="asid trace record -o exits.txt --duration 10s\nasid trace record -o one.txt --pid 4711")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("exits.txt"),
    show_default=True,
    metavar="FILE",
    help="Where it goes; a file that is there is not overwritten.",
)
@click.option("--duration", default="10s", show_default=True, metavar="T", help="How long.")
@click.option("--pid", type=click.IntRange(min=1), default=None, help="Of the VM of this process alone.")
@click.option(
    "--tracefs",
    envvar="ASID_TRACEFS",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    metavar="DIR",
    help="Where tracefs is mounted, if not where it usually is; also the environment's ASID_TRACEFS.",
)
@click.pass_obj
def record(session: Session, output: Path, duration: str, pid: int | None, tracefs: Path | None) -> None:
    """Record kvm_exit, kvm_entry and kvm_userspace_exit of all VMs, or of one. Needs root, as a rule.

    Exit code 6 when no exit was told, with what was seen; the file is kept.
    """
    from asid.saving import try_to_write, unwritable
    from asid.trace.record import PLACES, check_counts, find_tracefs, instance, threads_of
    from asid.trace.record import record as copy
    from asid.units import parse_duration_ns

    ns = parse_duration_ns(duration, "--duration")
    if ns <= 0:
        raise Usage(f"--duration {duration}", allowed="longer than 0", hint="Try 10s.")
    if os.path.lexists(output):
        raise Usage(f"--output {output}", state="it exists", allowed="a new file", hint="Name another.")
    try_to_write(output, "a recording", "-o")
    place = find_tracefs(PLACES if tracefs is None else (tracefs,))
    pids = threads_of(pid) if pid is not None else ()
    shown_ns = 0

    def progress(counts: Counter[str], left_ns: int) -> None:
        nonlocal shown_ns
        now = time.monotonic_ns()
        if now - shown_ns > 1_000_000_000:
            shown_ns = now
            session.note(f"trace record: {counts['kvm_exit']:,} exits, {left_ns / 1e9:.0f} s left")

    try:
        with instance(place, pids) as own, output.open("xb") as out:
            counts = copy(own, out, ns, progress)
    except OSError as error:  # whatever tracefs refuses has its own words
        raise unwritable(error, output, "a recording", "-o") from None
    check_counts(counts, str(output), ns / 1e9)
    told = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    session.show(
        {"file": str(output), "events": dict(counts), "duration_ns": ns},
        f"{output}: {told}\nnext: asid assess {output}",
    )


@command.command(
    epilog="asid trace show latest --for 10ms\nasid trace show latest --from 1s --for 2ms --at c0h0\n"
    "asid trace show latest --json | jq -c 'select(.event)'"
)
@click.argument("run", default="latest")
@click.option("--from", "begin", default="0s", show_default=True, metavar="T", help="From this time of the run on.")
@click.option("--for", "duration", default="", metavar="T", help="For so long; otherwise to its end.")
@click.option("--at", default="", metavar="TARGET", help="Of these hyperthreads alone, and of their cores.")
@click.pass_obj
def show(session: Session, run: str, begin: str, duration: str, at: str) -> None:
    """Show the records of RUN, and KVM's own events where they were recorded, by time.

    Times are seconds since the run began. Lines of the kernel have `kvm` for a number, and microseconds.
    """
    from asid.config import load_config
    from asid.live.journal import JournalReader
    from asid.live.kernel_events import FILE
    from asid.live.rundir import open_run
    from asid.targets import resolve
    from asid.trace.together import by_time
    from asid.units import parse_duration_ns

    found = open_run(run)
    begin_ns = parse_duration_ns(begin, "--from")
    for_ns = parse_duration_ns(duration, "--for") if duration else None
    if for_ns == 0:
        raise Usage(f"--for {duration}", allowed="longer than 0", hint="Try 10ms.")
    places = resolve(at, load_config(found.resolved).topology) if at else ()
    text = found.path / FILE
    recording = text if text.is_file() else None
    if recording is None:
        session.note(f"asid: {found.name} has no events of KVM; of a run with real guests asid audit says why")
    with JournalReader(found.journal) as reader:
        for document, line in _lines(by_time(reader, recording), begin_ns, for_ns, places):
            session.line(document, line, schema="trace.show/1")


def _lines(
    items: Iterable[Any], begin_ns: int, for_ns: int | None, places: tuple[tuple[int, int], ...]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield what is shown of items: as a map, and as a line."""
    from asid.report.verdict import record_line
    from asid.trace.together import KernelEvent

    start_ns = -1
    cores = {core for core, _ in places}
    for item in items:
        if start_ns < 0:
            if isinstance(item, KernelEvent):
                continue  # older than the run: no event of it
            start_ns = item.ts
        since_ns = item.ts - start_ns
        if for_ns is not None and since_ns >= begin_ns + for_ns:
            return
        lost = isinstance(item, KernelEvent) and item.event == "lost"  # of whom, nobody knows
        of_these = lost or (item.core, item.ht) in places or (item.ht < 0 and item.core in cores)
        if since_ns < begin_ns or (places and not of_these):
            continue
        if isinstance(item, KernelEvent):
            place = f"c{item.core}h{item.ht}" if item.ht >= 0 else "-" if lost else f"{item.pid}"
            said = f"{item.said} events of CPU {item.cpu}" if lost else item.said
            line = f"{since_ns / 1e9:14.6f}     {place:<7} {'kvm':<8} {item.event:<18} {said}"
        else:
            line = record_line(item._asdict(), start_ns)
        yield item._asdict(), line.rstrip()
