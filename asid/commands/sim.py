"""asid sim: many seeds of one configuration in virtual time, with faults; what fails is made small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from asid import saving
from asid.commands.session import Drawn, Session, costs_option
from asid.errors import EXIT_FAIL, EXIT_NOT_DETERMINISTIC, ConfigError, InputError

if TYPE_CHECKING:
    from asid.seeds import Failed, Job, Outcome
    from asid.sim.faults import Plan

SEEDS_MAX = 1_000_000
OTHER_HASHES = "271828"  # PYTHONHASHSEED of the second runs
SAVED = ("the failing configuration", "--save")


@click.command(
    epilog="asid sim configs/smt4.toml --seeds 1..200\n"
    "asid sim configs/two-vms.toml --seeds 1..50 --check-determinism\n"
    "asid sim configs/smt4.toml --seeds 17 --save failing.json    # the least that still fails"
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
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The least that fails.")
@click.option("--digests", is_flag=True, hidden=True, help="Print seed and digest of each run, and judge nothing.")
@click.pass_obj
def command(session: Session, /, config: str, seeds: str, save: Path | None, digests: bool, **options: Any) -> None:
    """Run CONFIG under many seeds in virtual time, with NMIs, machine checks, interrupts, stalls and kills at random.

    In the first half of each run things break, in the second nothing does: whoever is alive has to get on. A seed that
    breaks a promise is run again with fewer faults until each one left is needed. Exit code: 0 when every seed passed,
    1 when one did not, 5 when a run was not the same twice.
    """
    from asid.seeds import Job
    from asid.sim.costs import costs_of
    from asid.simulating import given, load_for, machine_of
    from asid.units import parse_duration_ns, parse_range

    first, last = parse_range(seeds, "--seeds", SEEDS_MAX)
    duration_ns = parse_duration_ns(options["duration"], "--duration")
    if duration_ns <= 0:
        raise ConfigError(f"--duration {options['duration']}", allowed="longer than 0", hint="Try 40ms.")
    if save is not None:
        if save.suffix != ".json":
            raise ConfigError(f"--save {save}", allowed="a name that ends with .json", hint="Try failing.json.")
        saving.try_to_write(save, *SAVED)
    chosen = given(policy=options["policy"], kick=options["kick"], space=options["space"])
    job = Job(config, chosen, costs_of(options["costs"]), duration_ns, not options["no_faults"])
    machine_of(load_for(config, {**chosen, "seed": first}), job.costs)  # refuses before anything is run
    if digests:
        _print_digests(session, job, first, last)
        return
    session.note(f"{config}: seeds {first} to {last}, {options['duration']} of virtual time each")
    second = _Second(config, first, last, options) if options["check_determinism"] else None
    found = _run_all(session, job, first, last, second)
    _show(session, job, found, save)
    if found.differs:
        session.finish(EXIT_NOT_DETERMINISTIC)
    if found.failed is not None:
        session.finish(EXIT_FAIL)


class Found(NamedTuple):
    """What came of the seeds. failed: the first that did, shrunk to `plan`. differs: a seed whose two runs do."""

    runs: int
    exits: int
    seconds: float
    failed: Outcome | None
    plan: Plan
    twice: int
    differs: str


def _print_digests(session: Session, job: Job, first: int, last: int) -> None:
    from asid.seeds import digest_of, records_of

    for seed in range(first, last + 1):
        digest = digest_of(records_of(job, seed))
        session.line({"seed": seed, "digest": digest}, f"{seed} {digest}")


class _Second:
    """The same seeds in another process, with another order of sets and dicts."""

    def __init__(self, config: str, first: int, last: int, options: dict[str, Any]) -> None:
        words = [sys.executable, "-m", "asid", "sim", config, "--seeds", f"{first}..{last}", "--digests", "--json"]
        for key in ("duration", "policy", "kick", "space", "costs"):
            if options[key]:
                words += [f"--{key}", options[key]]
        words += ["--no-faults"] if options["no_faults"] else []
        env = {**os.environ, "PYTHONHASHSEED": OTHER_HASHES}
        self._process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)

    def digest(self, seed: int) -> str:
        """Return the digest of the next seed. Raise InputError when the other process has ended before."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError(
                "the second runs have ended", where=f"seed {seed}", state=f"status {self._process.wait()}",
                hint="Its own words are above.",
            )  # fmt: skip
        row = json.loads(line)
        assert row["seed"] == seed, row
        return str(row["digest"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _run_all(session: Session, job: Job, first: int, last: int, second: _Second | None) -> Found:
    """Run the seeds until one fails or differs."""
    from asid.seeds import run, shrink

    begun = time.monotonic()
    line = _Line(session, last - first + 1)
    exits = done = twice = 0
    failed: Outcome | None = None
    differs = ""
    plan: Plan = ()
    try:
        for seed in range(first, last + 1):
            line.seed(seed, done)
            outcome = run(job, seed)
            done += 1
            exits += outcome.exits
            if second is not None:
                other = second.digest(seed)
                twice += 1
                if other != outcome.digest:
                    differs = f"seed {seed}: {outcome.digest} here, {other} in another process"
                    break
            if outcome.failed is not None:
                failed, plan = outcome, shrink(job, seed, outcome.failed, line.shrinking)
                break
    finally:
        line.clear()
        if second is not None:
            second.close()
    return Found(done, exits, time.monotonic() - begun, failed, plan, twice, differs)


def _show(session: Session, job: Job, found: Found, save: Path | None) -> None:
    failed: Failed | None = found.failed.failed if found.failed else None
    rate = found.runs / found.seconds if found.seconds else 0.0
    word = "FAIL" if failed else "NOT DETERMINISTIC" if found.differs else "PASS"
    lines = [f"{word}: {found.runs:,} seeds, {found.exits:,} exits, {rate:,.1f} seeds/s"]
    if found.twice:
        lines.append(
            f"run twice, in two processes: {found.twice:,} seeds" + ("" if found.differs else ", no difference")
        )
    if found.differs:
        lines.append(found.differs)
    if failed and found.failed:
        what = failed.guarantee or "a fault of the machine's own"
        lines += [f"seed {found.failed.seed}: {what}: {failed.text}", "", "The least that still fails:"]
        lines += [f"  {_fault_words(table)}" for table in found.plan] or ["  no fault at all: the guests alone"]
        if save is not None:
            saving.write(save, failing_text(job, found.failed.seed, found.plan), *SAVED)
            lines += ["", f"asid run {save} --engine sim --duration {job.duration_ns}ns", f"asid run {save}    # live"]
        else:
            lines += ["", f"asid sim CONFIG --seeds {found.failed.seed} --save FILE.json writes it, for asid run."]
    document = {
        "ok": word == "PASS",
        "seeds": found.runs,
        "exits": found.exits,
        "twice": found.twice,
        "differs": found.differs,
        "failed": None
        if found.failed is None or failed is None
        else {"seed": found.failed.seed, **failed._asdict(), "plan": list(found.plan)},
    }
    session.show(document, "\n".join(lines), schema="sim/1")


def _fault_words(table: dict[str, Any]) -> str:
    rest = (f"{key} {table[key]}" for key in ("count", "reason", "duration") if key in table)
    return " ".join([table["what"], table["target"], "at", table["at"], *rest])


def failing_text(job: Job, seed: int, plan: Plan) -> str:
    """Return a configuration with a plan in it, as JSON that load reads: files absolute, every key said."""
    from asid.config import resolved
    from asid.simulating import load_for

    plain = resolved(load_for(job.source, {**job.chosen, "seed": seed}))
    plain["inject"] = [*plain["inject"], *plan]
    return json.dumps(plain, indent=2) + "\n"


class _Line(Drawn):
    """What is drawn while the seeds run."""

    def __init__(self, session: Session, total: int) -> None:
        super().__init__(session)
        self._total = total
        self._begun = time.monotonic()

    def seed(self, seed: int, done: int) -> None:
        spent = time.monotonic() - self._begun
        left = f", {spent / done * (self._total - done):.0f} s left" if done else ""
        self.draw(f"seed {seed}: {done:,} of {self._total:,} done{left}")

    def shrinking(self, faults: int) -> None:
        self.draw(f"making it smaller: {faults} faults left to try")
