"""asid compare: the same load under several policies and kicks, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from asid.commands.run import require_costs_of_sim
from asid.commands.session import ChosenCosts, Session, costs_option, engine_option
from asid.errors import AsidError, ConfigError

if TYPE_CHECKING:
    from asid.drive import Outcome
    from asid.report.repeats import Sample
    from asid.report.variants import Variant

Play = Callable[["Comparison", "Variant", int], "Outcome"]  # one variant, in one repeat

AROUND_NS = 1_500_000_000  # start, stop and verdict of a live run


@click.command(
    epilog="asid compare configs/noisy-neighbour.toml\n"
    "asid compare configs/smt2.toml --policies none,asi --kicks ack --repeats 10\n"
    "asid compare configs/smt2.toml --engine sim      # what each costs on real hardware\n"
    "asid compare configs/noisy-neighbour.toml --duration 10s --json > comparison.json"
)
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--policies", default="", metavar="LIST", help="As in none,nosmt,asi.  [default: all]")
@click.option("--kicks", default="", metavar="LIST", help="As in ack,send, for policies with a choice.  [default: all]")
@click.option("--space", default="", metavar="M", help="Instead of the configuration's: a mapping's name, or its file.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N")
@click.option("--duration", default="2s", show_default=True, metavar="T", help="Of each run.")
@engine_option
@costs_option
@click.option("--seed", type=int, metavar="N", help="Of the first repeat; instead of the configuration's.")
@click.pass_obj
def command(
    session: Session, config: str, policies: str, kicks: str, space: str, repeats: int, duration: str, engine: str,
    costs: ChosenCosts, seed: int | None
) -> None:  # fmt: skip
    """Run CONFIG under every policy and kick, repeat by repeat, and show what each costs and what it leaves open.

    Within a repeat every variant plays the same load, the next repeat has the next seed. Rates and shares are means,
    counts are sums over the repeats, a p99 is the median of the runs' p99s. Exit code: 0 when every policy kept what
    it promises (none promises nothing, and is to FAIL), 1 when one did not, 3 when a run is UNKNOWN.
    """
    from asid.commands import Terminated
    from asid.config import SEED_MAX, load_config
    from asid.policies import require_tested
    from asid.report.repeats import exit_code_of
    from asid.report.variants import turns, variants
    from asid.running import check_config
    from asid.units import parse_duration_ns

    duration_ns = parse_duration_ns(duration, "--duration")
    if duration_ns <= 0:
        raise ConfigError(f"--duration {duration}", allowed="longer than 0", hint="Try 2s.")
    for name in _names(policies):  # before it is imported
        require_tested(name)
    chosen = variants(_names(policies), _names(kicks))
    for variant in chosen:  # what cannot run is refused before anything does
        check_config(config, variant.policy, variant.kick, seed, space)
    first_seed = load_config(config).seed if seed is None else seed
    if first_seed + repeats - 1 > SEED_MAX:
        raise ConfigError(
            f"seed {first_seed} with {repeats} repeats", where="--seed", state="each repeat has the next seed",
            allowed=f"at most {SEED_MAX - repeats + 1}", hint="Take a smaller seed, or fewer repeats.",
        )  # fmt: skip
    require_costs_of_sim(engine)
    live = engine == "live"
    comparison = Comparison(
        session, config, space, duration_ns, first_seed, turns(chosen, repeats, first_seed),
        _live if live else _simulated(costs), duration_ns + AROUND_NS if live else duration_ns / 2,
    )  # fmt: skip
    session.note(
        f"{config}: {len(chosen)} variants, {repeats} repeats of {duration} each,"
        f" about {_minutes(comparison.left_ns())}"
    )
    try:
        comparison.run()
    except AsidError as error:
        if not comparison.samples:
            raise
        _show(session, comparison, chosen, stopped=f"{type(error).__name__}: {error}")
        session.note(f"asid: {type(error).__name__}: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
        session.finish(error.exit_code)
    except (KeyboardInterrupt, Terminated):  # what is complete is shown, and the ending goes on
        if comparison.samples:
            _show(session, comparison, chosen, stopped="interrupted")
        raise
    _show(session, comparison, chosen)
    code = exit_code_of(comparison.samples)
    if code:
        session.finish(code)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _minutes(ns: float) -> str:
    seconds = max(0, round(ns / 1e9))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def _live(comparison: Comparison, variant: Variant, repeat: int) -> Outcome:
    """Run one variant on the live machine."""
    from asid.drive import drive

    return drive(
        comparison.config,
        duration_ns=comparison.duration_ns,
        policy=variant.policy,
        kick=variant.kick,
        space=comparison.space,
        seed=comparison.seed + repeat - 1,
        on_wait=lambda _, elapsed_ns: comparison.draw(variant, repeat, elapsed_ns),
    )


def _simulated(costs: ChosenCosts) -> Play:
    """Return what runs one variant in virtual time."""

    def play(comparison: Comparison, variant: Variant, repeat: int) -> Outcome:
        from asid.simulating import given, load_for, simulate

        chosen = given(
            policy=variant.policy, kick=variant.kick, space=comparison.space, seed=comparison.seed + repeat - 1,
            costs_file=costs.file,
        )  # fmt: skip
        begun_ns = time.monotonic_ns()
        return simulate(
            load_for(comparison.config, chosen), duration_ns=comparison.duration_ns, level=costs.level,
            on_progress=lambda *_: comparison.draw(variant, repeat, time.monotonic_ns() - begun_ns),
        )  # fmt: skip

    return play


class Comparison:
    """The runs of a comparison, one after another. samples: those that were completed."""

    def __init__(
        self, session: Session, config: str, space: str, duration_ns: int, seed: int, order: list[list[Variant]],
        play: Play, first_guess_ns: float
    ) -> None:  # fmt: skip
        self.session = session
        self.config = config
        self.space = space
        self.duration_ns = duration_ns
        self.seed = seed
        self.order = order
        self.play = play
        self.first_guess_ns = first_guess_ns  # of one run, until one has told
        self.samples: list[Sample] = []
        self.runs: list[dict[str, Any]] = []
        self._begun_ns = time.monotonic_ns()
        self._drawn = False

    @property
    def total(self) -> int:
        return sum(len(turn) for turn in self.order)

    def left_ns(self) -> float:
        """Return how much longer it takes, by what the runs took so far."""
        done = len(self.samples)
        each_ns = (time.monotonic_ns() - self._begun_ns) / done if done else self.first_guess_ns
        return each_ns * (self.total - done)

    def run(self) -> None:
        """Run all, in turns. Raise what the first run that fails raises."""
        from asid.report.repeats import Sample

        for repeat, turn in enumerate(self.order, start=1):
            for variant in turn:
                outcome = self.play(self, variant, repeat)
                sample = Sample(variant, repeat, outcome.verdict)
                self.samples.append(sample)
                self.runs.append(self._run_map(sample, outcome))
                self._say(sample)

    def _run_map(self, sample: Sample, outcome: Outcome) -> dict[str, Any]:
        return {
            "label": sample.variant.label,
            "policy": sample.variant.policy,
            "kick": sample.variant.kick,
            "repeat": sample.repeat,
            "seed": self.seed + sample.repeat - 1,
            "run_dir": str(outcome.run.root),
            "verdict": sample.word,
            "broken": sorted(sample.broken),
            "exits_per_s": round(sample.per_second("exits"), 1),
            "kicks_per_s": round(sample.per_second("kicks", "kicks_sent"), 1),
        }

    def draw(self, variant: Variant, repeat: int, elapsed_ns: int) -> None:
        """A line that is drawn anew, where a person watches. It asks the machine nothing: that would be part of it."""
        if not self.session.is_tty:
            return
        self._drawn = True
        at = len(self.samples) + 1
        text = (
            f"run {at} of {self.total}: repeat {repeat}, {variant.label}: {elapsed_ns / 1e9:.1f} s,"
            f" {_minutes(self.left_ns() - elapsed_ns)} left"
        )
        click.echo(f"\r{text[:78]:<78}", nl=False, err=True)

    def _say(self, sample: Sample) -> None:
        if self._drawn:
            click.echo("\r" + " " * 78 + "\r", nl=False, err=True)
            self._drawn = False
        left = self.total - len(self.samples)
        self.session.note(
            f"repeat {sample.repeat} of {len(self.order)}: {sample.variant.label}: {sample.word},"
            f" {sample.per_second('exits'):,.0f} exits/s"
            + (f"; {left} run{'s' * (left > 1)} left, about {_minutes(self.left_ns())}" if left else "")
        )


def _show(session: Session, comparison: Comparison, chosen: list[Variant], stopped: str = "") -> None:
    from asid.report.repeats import exit_code_of, rows_of, table_lines

    rank = {variant: at for at, variant in enumerate(chosen)}
    samples = sorted(comparison.samples, key=lambda sample: (rank[sample.variant], sample.repeat))
    rows = rows_of(samples, comparison.seed)
    done = len(samples)
    head = []
    if stopped:
        head = [f"Not complete ({stopped}): {done} of {comparison.total} runs are, and the table is of those.", ""]
    document = {
        "ok": not stopped and exit_code_of(samples) == 0,
        "config": comparison.config,
        "seed": comparison.seed,
        "repeats": len(comparison.order),
        "duration_ns": comparison.duration_ns,
        "complete": not stopped,
        "stopped": stopped,
        "rows": rows,
        "runs": comparison.runs,
    }
    session.show(
        document,
        lambda: "\n".join([*head, *(table_lines(rows) if rows else ["no run is complete"]),
                           f"{done} runs; asid runs ls, asid audit RUN and asid stat RUN say more."]),
        schema="compare/1",
    )  # fmt: skip
