"""asid doctor: whether this host can carry asid, and what each finding means for the numbers."""

from __future__ import annotations

import click

from asid.commands.session import Session, columns
from asid.errors import EXIT_HOST_UNSUITABLE


@click.command(epilog="asid doctor --json | jq '.findings[] | select(.level != \"good\")'")
@click.pass_obj
def command(session: Session) -> None:
    """Check this host: cores, clocks, limits, permissions, libraries. Ends with 6 when asid cannot run here."""
    from asid.host import findings

    found = findings()
    unsuitable = [finding for finding in found if finding.level == "bad"]
    colours = {"good": "green", "note": "yellow", "bad": "red"}
    verdict = f"unsuitable: {', '.join(finding.what for finding in unsuitable)}" if unsuitable else "asid can run here"
    rows = [(finding.level, finding.what, finding.value, finding.meaning) for finding in found]

    def text() -> str:
        head, *lines = columns(("LEVEL", "WHAT", "FOUND", "MEANING"), rows).splitlines()
        painted = [session.style(line, fg=colours[row[0]]) for line, row in zip(lines, rows, strict=True)]
        return "\n".join([head, *painted, "", verdict])

    document = {
        "ok": not unsuitable,
        "findings": [dict(zip(("level", "what", "found", "meaning"), row, strict=True)) for row in rows],
        "verdict": verdict,
    }
    session.show(document, text)
    if unsuitable:
        session.finish(EXIT_HOST_UNSUITABLE)
