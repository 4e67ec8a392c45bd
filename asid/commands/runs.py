"""asid runs: the runs that were made, what came of them, and how two of them differ."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from asid.commands.session import Session, columns
from asid.errors import EXIT_FAIL, ConfigError, InputError
from asid.live.rundir import LATEST, MANIFEST, RunDir, list_runs, open_run, runs_root
from asid.units import format_size

FILES = (MANIFEST, "config.resolved.json", "stats.json", "verdict.json")


@click.group()
def command() -> None:
    """List, show, compare and remove runs. RUN is a directory, a name, a part that only one name has, or `latest`."""


@command.command()
@click.option("-n", "--last", type=click.IntRange(min=1), metavar="N", help="Only the last N.")
@click.pass_obj
def ls(session: Session, last: int | None) -> None:
    """List runs, the oldest first."""
    runs = list_runs()[::-1]
    rows = [_summary(run) for run in (runs[-last:] if last else runs)]
    text = columns(("RUN", "VERDICT", "POLICY", "STATUS", "SIZE"), [tuple(row.values()) for row in rows], right=(4,))
    session.show(
        {"root": str(runs_root()), "runs": rows}, text if rows else f"no run in {runs_root()} yet; asid demo makes two"
    )


@command.command()
@click.argument("run", default="latest")
@click.pass_obj
def show(session: Session, run: str) -> None:
    """Show what RUN was and what came of it."""
    found = open_run(run)
    documents = {name: found.manifest() if name == MANIFEST else found.read_json(name) for name in FILES}
    verdict = documents["verdict.json"] or {}

    def text() -> str:
        facts = [("run", found.name), ("directory", str(found.path)), *_flat(documents[MANIFEST])]
        wide = max(len(key) for key, _ in facts)
        lines = [f"{key.ljust(wide)}  {value}" for key, value in facts]
        lines += ["", f"verdict  {verdict.get('verdict', 'none: not audited; asid audit ' + found.name)}"]
        lines += [f"  {number:<4} {state}" for number, state in _guarantees(verdict)]
        files = "  ".join(f"{entry.name} {format_size(entry.stat().st_size)}" for entry in _files(found))
        return "\n".join([*lines, "", f"files    {files}"])

    answer = {name.removesuffix(".json"): document for name, document in documents.items()}
    session.show({"run": found.name, "path": str(found.path), **answer}, text)


@command.command()
@click.argument("first")
@click.argument("second", default="latest")
@click.pass_obj
def diff(session: Session, first: str, second: str) -> None:
    """Show where SECOND differs from FIRST in configuration, verdict and figures. Ends with 1 when they differ."""
    one, two = open_run(first), open_run(second)
    rows = []
    for name in ("config.resolved.json", "verdict.json", "stats.json"):
        left, right = dict(_flat(one.read_json(name))), dict(_flat(two.read_json(name)))
        rows += [
            (f"{name.partition('.')[0]}: {key}", left.get(key, "-"), right.get(key, "-"))
            for key in sorted({*left, *right})
            if left.get(key) != right.get(key)
        ]
    document = {
        "first": str(one.path),
        "second": str(two.path),
        "differences": [dict(zip(("key", "first", "second"), row, strict=True)) for row in rows],
    }
    session.show(document, columns(("KEY", one.name, two.name), rows) if rows else "no difference")
    if rows:
        session.finish(EXIT_FAIL)


@command.command(epilog="asid runs rm 2026 --dry-run\nasid runs rm --keep 10")
@click.argument("runs", nargs=-1)
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Remove all but the last N.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and keep it.")
@click.pass_obj
def rm(session: Session, runs: tuple[str, ...], keep: int | None, dry_run: bool) -> None:
    """Remove runs. A run whose daemon is still alive stays."""
    if bool(runs) == (keep is not None):
        raise click.UsageError("name the runs, or say how many to --keep")
    chosen = [open_run(run) for run in runs] if keep is None else list_runs()[keep:][::-1]
    root = runs_root().resolve()
    gone = []
    for run in dict.fromkeys(chosen):
        path = run.path.resolve()
        if path.parent != root:
            raise ConfigError(f"{path} is not a run of yours", allowed=f"a directory in {root}", hint="Try rm -r.")
        if _status(run) == "running":
            session.note(f"asid: {run.name} stays: its daemon is alive (asid down)")
            continue
        if not dry_run:
            shutil.rmtree(path)
        gone.append(run.name)
    latest = runs_root() / LATEST
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    word = "would remove" if dry_run else "removed"
    session.show(
        {"removed": gone, "dry_run": dry_run}, "\n".join(f"{word} {name}" for name in gone) or "nothing to remove"
    )


def _status(run: RunDir) -> str:
    """running, ended or crashed; damaged when the manifest cannot be read."""
    try:
        return str(run.manifest().get("status", "unknown"))
    except InputError:
        return "damaged"


def _summary(run: RunDir) -> dict[str, str]:
    """One row of `ls`. A run that cannot be read is listed all the same, and says so."""
    status = _status(run)
    try:
        verdict, config = (run.read_json(name) or {} for name in ("verdict.json", "config.resolved.json"))
    except InputError:
        verdict, config, status = {}, {}, "damaged"
    return {
        "run": run.name,
        "verdict": str(verdict.get("verdict", "-")),
        "policy": str((config.get("policy") or {}).get("name", "-")),
        "status": status,
        "size": format_size(sum(entry.stat().st_size for entry in _files(run))),
    }


def _files(run: RunDir) -> list[Path]:
    return sorted(entry for entry in run.path.iterdir() if entry.is_file())


def _guarantees(verdict: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(number, state) of each guarantee, whether the state is a word or a table with one."""
    guarantees = verdict.get("guarantees", {})
    if isinstance(guarantees, list):
        guarantees = {str(entry.get("id") or entry.get("guarantee")): entry for entry in guarantees}
    for number, found in guarantees.items():
        if isinstance(found, dict):
            state = str(found.get("state") or found.get("result") or found.get("status"))
            more = found.get("sentence") or found.get("why") or ""
            yield number, f"{state}{': ' + str(more) if more and state == 'broken' else ''}"
        else:
            yield number, str(found)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaf values; nothing for a document that was never written."""
    if value is None and not key:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{index}")
    else:
        yield key, value
