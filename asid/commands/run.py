"""asid run: a whole run in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from asid.commands.session import ChosenCosts, Drawn, Session, Usage, columns, costs_option, engine_option
from asid.errors import ConfigError

if TYPE_CHECKING:
    from asid.config import Loaded
    from asid.drive import Outcome
    from asid.running import Daemon
    from asid.sim.costs import Level


@click.command(
    epilog="asid run configs/smt2.toml --duration 5s\n"
    "asid run configs/two-vms.toml --policy kick-every-exit --seed 7 --json\n"
    "asid run configs/smt2.toml --space minimal       # all but the least of what handlers touch is missed\n"
    "asid run configs/smt2.toml --policy none        # the negative control: FAIL is what it shows\n"
    "asid run configs/smt2.toml --engine sim         # in virtual time: numbers, the same ones each time\n"
    "asid run configs/smt2.toml --engine sim --figures --duration 10s   # no run is kept"
)
@click.argument("config", type=click.Path(dir_okay=False))
@click.option(
    "--duration", default="5s", show_default=True, metavar="T", help="How long the machine runs; of sim, virtual time."
)
@click.option("--policy", default="", metavar="P", help="Instead of the configuration's.")
@click.option("--kick", default="", metavar="K", help="Instead of the configuration's: ack or send.")
@click.option("--space", default="", metavar="M", help="Instead of the configuration's: a mapping's name, or its file.")
@click.option("--seed", type=int, metavar="N", help="Instead of the configuration's.")
@engine_option
@costs_option
@click.option("--run-dir", default="", metavar="DIR", help="Instead of a new one among the runs.")
@click.option("--figures", is_flag=True, help="Of sim: keep no run and judge nothing: much virtual time.")
@click.pass_obj
def command(
    session: Session, config: str, duration: str, policy: str, kick: str, space: str, seed: int | None, engine: str,
    costs: ChosenCosts, run_dir: str, figures: bool
) -> None:  # fmt: skip
    """Start the machine of CONFIG, let it run, stop it, and say whether every guarantee held.

    Exit code: 0 PASS, 1 FAIL, 3 UNKNOWN.
    """
    from asid.units import format_ns, parse_duration_ns

    duration_ns = parse_duration_ns(duration, "--duration")
    if duration_ns <= 0:
        raise ConfigError(f"--duration {duration}", allowed="longer than 0", hint="Try 5s.")
    if engine == "sim":
        from asid.simulating import given, load_for

        loaded = load_for(config, given(policy=policy, kick=kick, space=space, seed=seed, costs_file=costs.file))
        session.note(f"{config}: {format_ns(duration_ns)} of virtual time, {costs_words(costs.level, loaded)}")
        if figures:
            if run_dir:
                raise Usage("--run-dir with --figures", state="no run is kept", allowed="--figures without it")
            show_figures(session, loaded, duration_ns, costs.level)
            return
        outcome = simulated(session, loaded, duration_ns, costs.level, run_dir=run_dir)
    else:
        require_costs_of_sim(engine)
        if figures:
            raise Usage("--figures", state=f"--engine {engine} keeps a journal", allowed="with --engine sim")
        outcome = _drive(session, config, duration_ns, space, policy=policy, kick=kick, seed=seed, run_dir=run_dir)
    show_outcome(session, outcome)
    session.note(
        f"ran {format_ns(duration_ns)}; asid stat {outcome.run.name} and asid audit {outcome.run.name} say more"
    )
    if outcome.exit_code:
        session.finish(outcome.exit_code)


def costs_words(level: str, loaded: Loaded) -> str:
    """Return which costs a run in virtual time goes by."""
    from asid.config_costs import written

    rows = written(loaded.config.costs)
    return f"{level} costs" + (f", but for {len(rows)} that are given: {', '.join(rows)}" if rows else "")


def require_costs_of_sim(engine: str) -> None:
    """Refuse --costs for an engine that has the costs of this host."""
    if engine != "sim" and click.get_current_context().get_parameter_source("costs") is ParameterSource.COMMANDLINE:
        raise Usage("--costs", state=f"--engine {engine} has the costs of this host", allowed="with --engine sim")


def _drive(session: Session, config: str, duration_ns: int, space: str, **options: Any) -> Outcome:
    """Run the live machine."""
    from asid.drive import drive
    from asid.units import format_ns

    session.note(f"{config}: {format_ns(duration_ns)} of wall time")
    progress = Progress(session, duration_ns)
    outcome = drive(config, duration_ns=duration_ns, space=space, on_wait=progress.show, **options)
    progress.clear()
    return outcome


def simulated(
    session: Session,
    loaded: Loaded,
    duration_ns: int,
    costs: Level,
    *,
    run_dir: str = "",
    until_exhausted: bool = False,
) -> Outcome:
    """Run a machine in virtual time, with a line of progress."""
    from asid.simulating import simulate

    progress = VirtualProgress(session)
    outcome = simulate(
        loaded, duration_ns=duration_ns, level=costs, run_dir=Path(run_dir) if run_dir else None,
        on_progress=progress.show, until_exhausted=until_exhausted,
    )  # fmt: skip
    progress.clear()
    return outcome


def show_figures(session: Session, loaded: Loaded, duration_ns: int, costs: Level) -> None:
    """Run a machine in virtual time for its figures alone."""
    from asid.report.figured import heading, tables
    from asid.simulating import measure

    progress = VirtualProgress(session)
    shown = measure(loaded, duration_ns=duration_ns, level=costs, on_progress=progress.show)
    progress.clear()
    parts = [columns(names, rows, range(1, len(names))) for names, rows in tables(shown) if rows]
    session.show(shown, "\n\n".join(["\n".join(heading(shown)), *parts]), schema="figures/1")


class VirtualProgress(Drawn):
    """The same line for a machine in virtual time."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._begun = time.monotonic()

    def show(self, done_ns: int, total_ns: int) -> None:
        left = (time.monotonic() - self._begun) * (total_ns - done_ns) / done_ns
        self.draw(f"{done_ns / total_ns:6.1%} simulated, {left:.1f} s left")


class Progress:
    """A line on stderr while a machine runs; only where a person watches."""

    def __init__(self, session: Session, duration_ns: int) -> None:
        self._on = session.is_tty
        self._session = session
        self._duration_ns = duration_ns
        self._turn = 0

    def show(self, daemon: Daemon, elapsed_ns: int) -> None:
        self._turn += 1
        if not self._on or self._turn % 5:
            return
        left_ns = max(0, self._duration_ns - elapsed_ns)
        exits = sum(int(ht["exits"]) for core in _cores(daemon) for ht in core["hts"])
        click.echo(f"\r{elapsed_ns / 1e9:5.1f} s, {exits:,} exits, {left_ns / 1e9:.1f} s left ", nl=False, err=True)

    def clear(self) -> None:
        if self._on:
            click.echo("\r" + " " * 60 + "\r", nl=False, err=True)


def _cores(daemon: Daemon) -> list[dict[str, Any]]:
    from asid.client import Client
    from asid.errors import AsidError

    try:
        with Client(daemon.endpoints, name="run") as client:
            cores: list[dict[str, Any]] = client.status()["cores"]
    except AsidError:  # the machine is stopping already
        return []
    return cores


def show_outcome(session: Session, outcome: Outcome) -> None:
    """Show the verdict of a run and where the run is."""
    from asid.report.verdict import verdict_lines

    document = {**outcome.verdict, "run_dir": str(outcome.run.root)}
    lines = [*verdict_lines(outcome.verdict, name=outcome.run.name), f"run directory: {outcome.run.root}"]
    session.show(document, "\n".join(lines), schema="verdict/1")
