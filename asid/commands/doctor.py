"""asid doctor: whether this host can carry asid, and what each finding means for the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from asid import saving
from asid.commands.session import Drawn, Session, Usage, columns
from asid.errors import EXIT_HOST_UNSUITABLE

if TYPE_CHECKING:
    from asid.calibrate.calibration import Measured, Pair

SAVED = ("the table of costs", "-o")


@click.command(
    epilog="asid doctor --json | jq '.findings[] | select(.level != \"good\")'\n"
    "asid doctor --calibrate -o here.toml; asid run configs/smt2.toml --engine sim --costs here.toml"
)
@click.option("--calibrate", is_flag=True, help="Measure what steps take here, beside the cost table of the simulator.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="For the [costs] that come of it.",
)
@click.pass_obj
def command(session: Session, calibrate: bool, output: Path | None) -> None:
    """Check this host: cores, clocks, limits, permissions, libraries. Ends with 6 when asid cannot run here.

    With --calibrate, measure instead: exits and entries of a guest where /dev/kvm gives one, an IPI, a word between two
    CPUs, a switch of threads. It takes some seconds, best on a quiet host: a measurement may take 20 s at most.
    """
    if calibrate:
        _calibrate(session, output)
        return
    if output is not None:
        raise Usage("-o", state="nothing is measured", allowed="with --calibrate")
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


def _calibrate(session: Session, output: Path | None) -> None:
    """Show what steps take here, and write it as [costs]."""
    from asid.calibrate.calibration import calibrate, costs_text, host_pair

    if output is not None:
        saving.try_to_write(output, *SAVED)
    pair = host_pair()
    line = Drawn(session)
    session.note(f"measuring, on {pair.words}")
    found = calibrate(lambda name, done, total: line.draw(f"{done + 1} of {total}: {name}"), pair)
    line.clear()
    costs = costs_text(found, f"Measured by asid doctor --calibrate on {pair.words}.")
    if output is not None:
        saving.write(output, costs, *SAVED)
    document = {"cpus": pair.words, "measured": [each.as_map() for each in found], "costs": costs}
    session.show(document, lambda: "\n".join(_lines(found, pair, costs, output)), schema="calibrate/1")


def _lines(found: list[Measured], pair: Pair, costs: str, output: Path | None) -> list[str]:
    rows = [
        (each.name, _ns(each.ns), _ns(each.median_ns),
         *(_ns(getattr(each.row, level, None)) for level in ("low", "typical", "high")), each.word or "-", each.how)
        for each in found
    ]  # fmt: skip
    headings = ("STEP", "NS", "MEDIAN", "LOW", "TYPICAL", "HIGH", "IS", "HOW, OR WHY NOT")
    lines = [columns(headings, rows, right=(1, 2, 3, 4, 5)), ""]
    lines += [f"NS is the lower quartile of what was measured, on {pair.words}.", ""]
    if output is None:
        return [*lines, *costs.splitlines()]
    return [*lines, f"{output} has it as [costs]: asid run CONFIG --engine sim --costs {output}"]


def _ns(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
