"""asid trace: record VM exits of this host."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import click

from asid.commands.session import Session, Usage


@click.group(epilog="asid trace record -o exits.txt --duration 10s\nasid assess exits.txt")
def command() -> None:
    """Record VM exits of this host, for `asid assess` and `asid replay`."""


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
