"""asid stat: exits by reason, core, hyperthread or VM, in the shape of `perf kvm stat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from asid.commands.session import INSTANCE_DEFAULT, Session, instance_option
from asid.errors import NotRunning

if TYPE_CHECKING:
    from asid.live.rundir import RunDir

BYS = ("reason", "core", "ht", "vm")


@click.command(epilog="asid stat\nasid stat latest --by vm\nasid stat --json | jq .totals.exposure")
@click.argument("run", required=False)
@click.option("--by", type=click.Choice(BYS), default="reason", show_default=True, help="What a line is.")
@instance_option
@click.pass_obj
def command(session: Session, run: str | None, by: str) -> None:
    """Show the exits of RUN; without RUN, of the daemon that runs, or else of the latest run.

    Samples are exits; Full% those that needed the full address space; times are of the handler. p50 and p99 come from
    a histogram with four buckets an octave and are up to 9 % off.
    """
    from asid.report.stat import group_rows, stat_lines

    source, stats, vm_names = _read(session, run)
    document = {
        "source": source,
        "by": by,
        "groups": group_rows(stats["rows"], by, vm_names),
        "rows": stats["rows"],
        "totals": stats["totals"],
    }
    session.show(document, lambda: "\n".join(stat_lines(stats, by=by, vm_names=vm_names)))


def _read(session: Session, run: str | None) -> tuple[str, dict[str, Any], list[str]]:
    """Return where the numbers come from, rows and totals, and the names of the VMs."""
    from asid.live.rundir import open_run

    if run is None:
        try:
            return _read_live(session)
        except NotRunning:
            if session.instance != INSTANCE_DEFAULT:
                raise  # that instance was asked for by name; another run's numbers are no answer
    found = open_run(run if run is not None else "latest")
    return str(found.path), _stats_of(found), _vm_names(found)


def _read_live(session: Session) -> tuple[str, dict[str, Any], list[str]]:
    with session.client() as client:
        stats = client.stats()
        vms = client.call("vm.list")
        names = {int(vm["vm"]): str(vm["name"]) for vm in vms["vms"]}
        return (
            f"instance {session.instance}",
            stats,
            [names.get(number, "") for number in range(1, max(names, default=0) + 1)],
        )


def _stats_of(run: RunDir) -> dict[str, Any]:
    """Return stats.json of a run that ended; the sums over the journal of any other."""
    from asid.live.journal import JournalReader
    from asid.report.stat import fold

    if run.manifest().get("status") == "ended":
        stored = run.read_json("stats.json")
        if stored is not None and "rows" in stored and "totals" in stored:
            return stored
    with JournalReader(run.journal) as reader:
        return fold(reader).as_map()


def _vm_names(run: RunDir) -> list[str]:
    config = run.read_json("config.resolved.json") or {}
    vms = config.get("vm", [])
    return [str(vm.get("name", "")) for vm in vms if isinstance(vm, dict)] if isinstance(vms, list) else []
