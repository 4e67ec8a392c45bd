"""asid audit: check every guarantee of a run again, from its journal alone."""

from __future__ import annotations

import click

from asid.commands.session import Session
from asid.errors import EXIT_OK


@click.command(epilog="asid audit latest\nasid audit 20261104T101530Z-smt2-9f3a --json | jq .guarantees.G2")
@click.argument("run", default="latest")
@click.pass_obj
def command(session: Session, run: str) -> None:
    """Check every guarantee of RUN: a run's name or part of it, a directory, a journal, or `latest`.

    Exits with 0 for PASS, 1 for FAIL, 3 for UNKNOWN: the journal is cut, damaged or still being written.
    """
    from asid.audit import audit
    from asid.judging import telling
    from asid.live.rundir import open_run
    from asid.report.verdict import verdict_lines

    found = open_run(run)
    if found.manifest().get("status") == "running":
        session.note(f"asid: {found.name} is still going; its end is missing, so this is no PASS")
    with session.waiting(f"audit of {found.name}") as on_wait, telling(on_wait):
        verdict = audit(found.journal)
    document = {"run_dir": str(found.path), **verdict.as_map()}
    session.show(document, lambda: "\n".join(verdict_lines(document, name=found.name)))
    if verdict.exit_code != EXIT_OK:
        session.finish(verdict.exit_code)
