"""asid ls: the instances of this user."""

from __future__ import annotations

import click

from asid.commands.session import Session, columns


@click.command(epilog="asid ls\nasid ls --json")
@click.pass_obj
def command(session: Session) -> None:
    """List instances, running and stale (killed: the next `asid up` of that name clears it)."""
    from asid.client import instances

    found = [
        {
            "instance": one.name,
            "state": "running" if one.running else "stale",
            "pid": one.endpoints.pid if one.endpoints and one.running else 0,
            "run_dir": one.endpoints.run_dir if one.endpoints else "",
            "dir": str(one.paths.root),
        }
        for one in instances()
    ]
    rows = [(row["instance"], row["state"], row["pid"] or "-", row["run_dir"] or "-") for row in found]
    text = columns(("INSTANCE", "STATE", "PID", "RUN DIRECTORY"), rows, right=(2,)) if rows else "no instances"
    session.show({"instances": found}, text)
