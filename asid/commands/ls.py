"""asid ls: the instances of this user."""

from __future__ import annotations

import click

from asid.commands.session import Session, columns


@click.command(epilog="asid ls\nasid ls --json")
@click.pass_obj
def command(session: Session) -> None:
    """List instances and their last runs: running, ended, or stale (killed; the next `asid up` clears what is left)."""
    from asid.live.instance import find_instances, last_run

    found = [
        {
            "instance": one.name,
            "state": one.state,
            "pid": one.endpoints.pid if one.endpoints and one.running else 0,
            "run_dir": str(last_run(one.paths) or ""),
            "dir": str(one.paths.root),
        }
        for one in find_instances()
    ]
    rows = [(row["instance"], row["state"], row["pid"] or "-", row["run_dir"] or "-") for row in found]
    text = columns(("INSTANCE", "STATE", "PID", "RUN DIRECTORY"), rows, right=(2,)) if rows else "no instances"
    session.show({"instances": found}, text)
