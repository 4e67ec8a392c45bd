"""asid schema: what a program may rely on, as JSON Schema, or as the pages of the manual."""

from __future__ import annotations

import json
from typing import Any

import click

from asid.commands.session import Session

PARTS = ("ops", "events", "config", "run")


@click.command(epilog="asid schema config | jq '.\"$defs\".Policy'\nasid schema ops --markdown > docs/protocol.md")
@click.argument("part", type=click.Choice(PARTS), required=False)
@click.option("--markdown", is_flag=True, help="The page of the manual instead (ops and config).")
@click.pass_obj
def command(session: Session, part: str | None, markdown: bool) -> None:
    """Print the schema of PART, or of all: operations, events, configuration, files of a run."""
    if markdown:
        from asid.report import manual

        pages = {"ops": manual.protocol_page, "config": manual.config_page}
        if part not in pages:
            raise click.UsageError("--markdown is for: " + " and ".join(pages))
        page = pages[part]()
        session.show({"page": page}, page)
        return
    schemas = {name: read_schema(name) for name in ((part,) if part else PARTS)}
    document: dict[str, Any] = schemas[part] if part else {"schemas": schemas}
    session.show({"schemas": schemas}, lambda: json.dumps(document, indent=2, ensure_ascii=False))


def read_schema(part: str) -> dict[str, Any]:
    """The JSON Schema of one part, from the module that checks it."""
    if part == "ops":
        from asid.ops import ops_schema

        return ops_schema()
    if part == "events":
        from asid.core.record import events_schema

        return events_schema()
    if part == "config":
        from asid.config import json_schema

        return json_schema()
    from asid.live.rundir import run_schema

    return run_schema()
