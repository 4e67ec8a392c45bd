"""asid sim: many seeds of one configuration in virtual time, with faults; what fails is made small."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from asid import saving
from asid.commands.session import ChosenCosts, Drawn, Session, costs_option
from asid.errors import EXIT_FAIL, EXIT_NOT_DETERMINISTIC, ConfigError
from asid.failing import SAVED, SCHEDULED, Kept, told_of

if TYPE_CHECKING:
    from asid.difference import Difference
    from asid.seeds import Failed, Job, Outcome
    from asid.sim.faults import Plan

SEEDS_MAX = 1_000_000
ALONE_MAX = 8  # so few seeds are run before another process has begun


@click.command(
    epilog="asid sim configs/smt4.toml --seeds 1..200\n"
    "asid sim configs/two-vms.toml --seeds 1..50 --check-determinism\n"
    "asid sim configs/smt4.toml --seeds 17 --save failing.json    # the least that still fails\n"
    "asid sim configs/two-vms.toml --policy mine:QuietIrq; asid replay FILE    # as it prints: its steps, live"
)
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--seeds", default="1..20", show_default=True, metavar="A..B", help="One, or the first and the last.")
@click.option("--duration", default="40ms", show_default=True, metavar="T", help="Virtual time of each.")
@click.option("--policy", default="", metavar="P", help="Instead of the configuration's.")
@click.option("--kick", default="", metavar="K", help="Instead of the configuration's.")
@click.option("--space", default="", metavar="M", help="Instead of the configuration's: a mapping's name, or its file.")
@costs_option
@click.option("--no-faults", is_flag=True, help="Only what the configuration itself injects.")
@click.option("--check-determinism", is_flag=True, help="Run each seed again in another process, and compare.")
@click.option("--jobs", type=click.IntRange(1, 256), metavar="N", help="Processes. [one a CPU; 1 for few seeds]")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The least that fails.")
@click.option(
    "--schedule",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Its steps, for asid replay. [a file among those of asid's state]",
)
@click.option("--part", hidden=True, default="", help="Run these of the seeds, and write a line for each.")
@click.option("--records", is_flag=True, hidden=True, help="Write the records of one seed, and judge nothing.")
@click.pass_obj
def command(
    session: Session, /, config: str, seeds: str, save: Path | None, schedule: Path | None, part: str, records: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Run CONFIG under many seeds in virtual time, with NMIs, machine checks, interrupts, stalls and kills at random.

    In the first half of each run things break, in the second nothing does: whoever is alive has to get on. A seed that
    breaks a promise is run again with fewer faults until each one left is needed, and its steps are written as a
    schedule: `asid replay` takes them again by real processes, in virtual time, or in the explorer. A policy of one's
    own that --policy names need not have passed `asid policy test`: this is a test, too. Exit code: 0 when every seed
    passed, 1 when one did not, 5 when a run was not the same twice.
    """
    from asid.seeds import Job
    from asid.sim.costs import costs_of
    from asid.simulating import given, machine_of
    from asid.units import parse_duration_ns, parse_range

    first, last = parse_range(seeds, "--seeds", SEEDS_MAX)
    duration_ns = parse_duration_ns(options["duration"], "--duration")
    if duration_ns <= 0:
        raise ConfigError(f"--duration {options['duration']}", allowed="longer than 0", hint="Try 40ms.")
    if save is not None:
        if save.suffix != ".json":
            raise ConfigError(f"--save {save}", allowed="a name that ends with .json", hint="Try failing.json.")
        saving.try_to_write(save, *SAVED)
    if schedule is not None:
        if schedule.suffix != ".json":
            raise ConfigError(f"--schedule {schedule}", allowed="a name that ends with .json", hint="Try hit.json.")
        saving.try_to_write(schedule, *SCHEDULED)
    if save is not None and schedule is not None and save.resolve() == schedule.resolve():
        raise ConfigError(f"--save and --schedule {schedule}", allowed="two files", hint="Try --schedule steps.json.")
    policy = options["policy"]
    costs: ChosenCosts = options["costs"]
    options["costs"] = costs.word
    chosen = given(policy=policy, kick=options["kick"], space=options["space"], costs_file=costs.file)
    job = Job(config, chosen, costs_of(costs.level), duration_ns, not options["no_faults"], tested=not policy)
    machine_of(job.loaded(first), job.costs)  # refuses before anything is run
    if part or records:
        _write_lines(session, job, first, last, part)
        return
    session.note(f"{config}: seeds {first} to {last}, {options['duration']} of virtual time each")
    found = _run_all(session, job, first, last, options)
    _show(session, job, found, Kept(save, schedule, options))
    if found.differs:
        session.finish(EXIT_NOT_DETERMINISTIC)
    if found.failed is not None:
        session.finish(EXIT_FAIL)


class Found(NamedTuple):
    """What came of the seeds. failed: the first that did, shrunk to `plan`. differs: a seed whose two runs do, and
    `difference` where they part, None when they did not when they were run once more."""

    runs: int
    exits: int
    seconds: float
    failed: Outcome | None
    plan: Plan
    twice: int
    differs: str
    difference: Difference | None


def _write_lines(session: Session, job: Job, first: int, last: int, part: str) -> None:
    """What another `asid sim` reads: of `asid.seed_processes`."""
    from asid.core.record import as_map
    from asid.seed_processes import Part, as_line
    from asid.seeds import records_of, run

    if not part:
        for record in records_of(job, first):
            session.line(as_map(record), "")
        return
    for seed, judge in Part.of_word(part).seeds(first, last):
        session.line(as_line(run(job, seed, judge=judge)), "")


def _outcomes(
    job: Job, first: int, last: int, config: str, options: dict[str, Any]
) -> Generator[tuple[Outcome, Outcome]]:  # fmt: skip
    """Yield what came of each seed, twice: here when there are few and each is run once, else in processes."""
    from asid.seed_processes import Seeds
    from asid.seeds import run

    twice = options["check_determinism"]
    few = last - first < ALONE_MAX
    jobs = options["jobs"] or (1 if few else len(os.sched_getaffinity(0)))
    if jobs == 1 and not twice:
        for seed in range(first, last + 1):
            outcome = run(job, seed)
            yield outcome, outcome
        return
    yield from Seeds(config, options).outcomes(first, last, min(jobs, last - first + 1), twice=twice)


def _run_all(session: Session, job: Job, first: int, last: int, options: dict[str, Any]) -> Found:
    """Run the seeds until one fails or differs."""
    from asid.seeds import shrink

    config = str(job.source)
    begun = time.monotonic()
    line = _Line(session, last - first + 1)
    exits = done = twice = 0
    failed: Outcome | None = None
    differs, difference = "", None
    plan: Plan = ()
    line.done(first, 0)
    try:
        with closing(_outcomes(job, first, last, config, options)) as outcomes:
            for outcome, other in outcomes:
                done += 1
                exits += outcome.exits
                twice += options["check_determinism"]
                line.done(outcome.seed + 1, done)
                if other.digest != outcome.digest:
                    differs = f"seed {outcome.seed}: {outcome.digest} in one process, {other.digest} in another"
                    failed = outcome
                    break
                if outcome.failed is not None:
                    failed = outcome
                    break
        if differs and failed is not None:
            difference, failed = _difference(config, options, failed.seed), None
        elif failed is not None and failed.failed is not None:
            plan = shrink(job, failed.seed, failed.failed, line.shrinking)
    finally:
        line.clear()
    return Found(done, exits, time.monotonic() - begun, failed, plan, twice, differs, difference)


def _difference(config: str, options: dict[str, Any], seed: int) -> Difference | None:
    """Run a seed twice more, and return where the two part."""
    from asid.difference import first_difference
    from asid.seed_processes import Seeds

    for one, other in Seeds(config, options).records(seed):
        return first_difference(one, other)
    raise AssertionError("a seed has two runs")


def _difference_lines(difference: Difference | None) -> list[str]:
    """Say where two runs part: what came before, then the record of either."""
    from asid.report.verdict import record_line

    if difference is None:
        return [
            "Run once more, by itself, it was the same twice: look at what a run before it leaves behind, or a clock."
        ]

    def line(mark: str, row: Any) -> str:
        return f"{mark} {row['seq']:>8,} {record_line(row)}" if row else f"{mark}    (its journal ends here)"

    number = (difference.one or difference.other or {"seq": 0})["seq"]
    return [
        "",
        f"The first record that differs is number {number:,}:",
        *(line(" ", row) for row in difference.before),
        line("1", difference.one),
        line("2", difference.other),
    ]


def _show(session: Session, job: Job, found: Found, kept: Kept) -> None:
    failed: Failed | None = found.failed.failed if found.failed else None
    rate = found.runs / found.seconds if found.seconds else 0.0
    word = "FAIL" if failed else "NOT DETERMINISTIC" if found.differs else "PASS"
    lines = [f"{word}: {found.runs:,} seeds, {found.exits:,} exits, {rate:,.1f} seeds/s"]
    if found.twice:
        lines.append(
            f"run twice, in two processes: {found.twice:,} seeds" + ("" if found.differs else ", no difference")
        )
    if found.differs:
        lines += [found.differs, *_difference_lines(found.difference)]
    document = {
        "ok": word == "PASS",
        "seeds": found.runs,
        "exits": found.exits,
        "twice": found.twice,
        "differs": found.differs,
        "difference": None if found.difference is None else found.difference._asdict(),
        "failed": None,
    }
    if failed and found.failed:
        told = told_of(job, found.failed.seed, failed, found.plan, kept)
        lines += told.lines
        document["failed"] = told.document
    session.show(document, "\n".join(lines), schema="sim/1")


class _Line(Drawn):
    """What is drawn while the seeds run."""

    def __init__(self, session: Session, total: int) -> None:
        super().__init__(session)
        self._total = total
        self._begun = time.monotonic()

    def done(self, seed: int, done: int) -> None:
        """So many are done, and this one is next."""
        spent = time.monotonic() - self._begun
        left = f", {spent / done * (self._total - done):.0f} s left" if done else ""
        self.draw(f"seed {seed}: {done:,} of {self._total:,} done{left}")

    def shrinking(self, faults: int) -> None:
        self.draw(f"making it smaller: {faults} faults left to try")
