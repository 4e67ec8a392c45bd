"""asid sweep: every combination of a matrix in virtual time, one row of a Parquet file a run."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asid.commands.session import Drawn, Session, Usage, columns
from asid.errors import EXIT_OK, Conflict, InputError

if TYPE_CHECKING:
    from asid.sweep.ledger import Ledger
    from asid.sweep.parquet import Row
    from asid.sweep.plan import Plan
    from asid.sweep.pools import Pool

DEADLINE = "10m"


@click.command(
    epilog="asid sweep configs/matrices/kicks.toml -o kicks.parquet\n"
    "asid sweep configs/matrices/kicks.toml --dry-run\n"
    "asid sweep configs/matrices/kicks.toml -o kicks.parquet --resume    # after ^C, a kill or a power cut\n"
    "asid sweep configs/matrices/kicks.toml -o kicks.parquet --scheduler tcp://10.0.0.1:8786"
)
@click.argument("matrix", type=click.Path(path_type=Path, dir_okay=False), metavar="MATRIX.toml")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.parquet",
              help="Where the rows go.  [default: the matrix's name, here]")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 256), metavar="N", help="Processes.  [default: one a CPU]")
@click.option("--scheduler", default="", metavar="ADDRESS", help="A Dask cluster's, as in tcp://10.0.0.1:8786.")
@click.option("--resume", is_flag=True, help="Go on with what is kept of an unfinished sweep.")
@click.option("--deadline", default=DEADLINE, show_default=True, metavar="T", help="Longest wait for a run to end.")
@click.option("--dry-run", is_flag=True, help="Check the matrix, say what would be run, and run nothing.")
@click.pass_obj
def command(
    session: Session, /, matrix: Path, output: Path | None, jobs: int | None, scheduler: str, resume: bool,
    deadline: str, dry_run: bool,
) -> None:  # fmt: skip
    """Play every combination of MATRIX.toml in virtual time and write one row a run into a Parquet file.

    Each run is kept as it ends: whatever kills the sweep, --resume goes on with it, and the file is the same, byte for
    byte, as that of a sweep that nothing has disturbed. The matrix and the columns: docs/sweep.md. Exit code: 1 when a
    run broke what its policy promises, 3 when one is UNKNOWN, else 0.
    """
    from asid.extras import needed
    from asid.sweep.ledger import Ledger
    from asid.sweep.matrix import read
    from asid.sweep.parquet import WHERE, rows_of_plan, write
    from asid.sweep.plan import plan_of
    from asid.units import parse_duration_ns

    if jobs and scheduler:
        raise Usage(
            "--jobs with --scheduler", where="asid sweep", state="the cluster has its own workers",
            allowed="one of them", hint="Leave --jobs out.",
        )  # fmt: skip
    deadline_s = parse_duration_ns(deadline, "--deadline") / 1e9
    if not deadline_s:
        raise Usage(f"--deadline {deadline}", where="asid sweep", allowed="longer than 0", hint=f"Try {DEADLINE}.")
    line = _Line(session)
    plan = plan_of(read(matrix), line.checked)
    line.clear()
    if dry_run:
        session.show(_counts(plan), lambda: _dry_text(plan), schema="sweep/1")
        return
    needed("pyarrow.parquet", "sweep", WHERE)
    output = output or Path(matrix.stem).with_suffix(".parquet")
    if output.suffix != ".parquet":
        raise Usage(
            f"--output {output}", where="asid sweep", state="another kind of file",
            allowed="a name that ends with .parquet", hint="Try kicks.parquet.",
        )  # fmt: skip
    if (before := _finished(output, plan, resume)) is not None:
        session.note(f"{output}: this sweep was finished before")
        _show(session, plan, output, before)
        return
    ledger = Ledger(output, plan.fingerprint, plan.runs, resume=resume)
    try:
        _say(session, plan, ledger)
        pool = _pool(jobs, scheduler)
        try:
            _go(plan, ledger, pool, line, deadline_s)
        finally:
            line.clear()
            pool.close()
        rows = rows_of_plan(plan, ledger.rows)
        write(output, plan, rows)
        ledger.remove()
    except BaseException:
        if not ledger.rows:
            ledger.remove()
            raise
        ledger.close()
        session.note(f"asid: {len(ledger.rows):,} of {plan.runs - plan.refused:,} runs are kept in {ledger.path}")
        session.note(f"hint: go on with: {_again(matrix, output, jobs, scheduler, deadline)}")
        raise
    _show(session, plan, output, rows)


def _finished(output: Path, plan: Plan, resume: bool) -> list[Row] | None:
    """Return the rows of a file that this very sweep has written. Raise Conflict or InputError for any other one."""
    from asid.sweep.ledger import ledger_of
    from asid.sweep.parquet import read

    if not output.exists():
        return None
    if resume:
        fingerprint, rows = read(output)
        if fingerprint == plan.fingerprint:
            return None if ledger_of(output).exists() else rows  # killed after the one, before the other was removed
        raise InputError(
            "is of another sweep", where=str(output), state="its matrix, its configuration or asid was another",
            allowed="one of the same, or a new name", hint="Choose another file for --output.",
        )  # fmt: skip
    raise Conflict(
        "there is a file already", where=str(output), state="nothing was changed", allowed="a new name",
        hint="Choose another file for --output, or remove it.",
    )  # fmt: skip


def _say(session: Session, plan: Plan, ledger: Ledger) -> None:
    parts = [f"{plan.runs - plan.refused:,} runs"]
    if ledger.rows:
        parts.append(f"{len(ledger.rows):,} of them kept from before")
    if plan.refused:
        parts.append(f"{plan.refused:,} more are refused")
    if plan.left_out:
        parts.append(f"{plan.left_out:,} left out that would repeat another")
    if ledger.cut:
        parts.append(f"{ledger.cut:,} bytes at the end of {ledger.path.name} could not be read, and are played again")
    session.note(f"{plan.matrix.path}: {', '.join(parts)}")


def _pool(jobs: int | None, scheduler: str) -> Pool:
    from asid.sweep.pools import Cluster, Local

    return Cluster(scheduler) if scheduler else Local(jobs or len(os.sched_getaffinity(0)))


def _go(plan: Plan, ledger: Ledger, pool: Pool, line: _Line, deadline_s: float) -> None:
    from asid.sweep.going import go

    line.begin(len(ledger.rows), plan.runs - plan.refused)
    missing = (job for job in plan.jobs() if job.number not in ledger.rows)
    go(pool, missing, keep=ledger.keep, tell=lambda: line.run(len(ledger.rows)), deadline_s=deadline_s)


def _again(matrix: Path, output: Path, jobs: int | None, scheduler: str, deadline: str) -> str:
    words = ["asid", "sweep", str(matrix), "-o", str(output), "--resume"]
    words += ["--jobs", str(jobs)] if jobs else []
    words += ["--scheduler", scheduler] if scheduler else []
    words += ["--deadline", deadline] if deadline != DEADLINE else []
    return shlex.join(words)


def _counts(plan: Plan) -> dict[str, Any]:
    return {
        "matrix": str(plan.matrix.path),
        "rows": plan.runs,
        "runs": plan.runs - plan.refused,
        "refused": plan.refused,
        "left_out": plan.left_out,
        "axes": {axis.key: list(axis.values) for axis in plan.matrix.axes},
        "costs": list(plan.matrix.levels),
        "seeds": len(plan.matrix.seeds),
        "fingerprint": plan.fingerprint,
    }


def _dry_text(plan: Plan) -> str:
    from asid.sweep.matrix import shown

    matrix = plan.matrix
    lines = [f"{axis.key}: {shown(axis.values)}" for axis in matrix.axes]
    lines += [f"costs: {' '.join(matrix.levels)}", f"seeds: {len(matrix.seeds):,}", ""]
    lines.append(f"{plan.runs - plan.refused:,} runs would be played, {matrix.duration_ns:,} ns of virtual time each.")
    if plan.left_out:
        lines.append(f"{plan.left_out:,} are left out: their policy has no other kick, and they would repeat a run.")
    if plan.refused:
        lines.append(f"{plan.refused:,} are refused:")
        lines += [f"  {shown(each.values)}: {each.words}" for each in plan.combinations if not each.config]
    return "\n".join(lines)


def _show(session: Session, plan: Plan, output: Path, rows: list[Row]) -> None:
    from asid.report.swept import HEADINGS, RIGHT, exit_code_of, medians_of, notes_of, table_of
    from asid.sweep.parquet import digest_of_file

    medians, code = medians_of(rows), exit_code_of(rows)
    faults = sum(row["status"] == "fault" for row in rows)
    document = {"ok": code == EXIT_OK, **_counts(plan), "faults": faults, "output": str(output),
                "sha256": digest_of_file(output), "medians": medians}  # fmt: skip

    def text() -> str:
        table = columns(HEADINGS, table_of(medians), RIGHT)
        return "\n".join([table, "", *notes_of(medians), f"{output}: {len(rows):,} rows"])

    session.show(document, text, schema="sweep/1")
    if code != EXIT_OK:
        session.finish(code)


class _Line(Drawn):
    """What is drawn while the runs go on."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.begin(0, 0)

    def begin(self, before: int, total: int) -> None:
        self._before, self._total, self._begun = before, total, time.monotonic()

    def checked(self, done: int, total: int) -> None:
        self.draw(f"checking combination {done + 1:,} of {total:,}")

    def run(self, done: int) -> None:
        rate = (done - self._before) / max(time.monotonic() - self._begun, 1e-3)
        left = f", {rate:,.1f} runs/s, {(self._total - done) / rate:,.0f} s left" if rate else ""
        self.draw(f"{done:,} of {self._total:,} runs{left}")
