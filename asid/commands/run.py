"""asid run: a whole run in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from asid.commands.session import Session
from asid.errors import ConfigError

if TYPE_CHECKING:
    from asid.drive import Outcome
    from asid.running import Daemon


@click.command(
    epilog="asid run configs/smt2.toml --duration 5s\n"
    "asid run configs/two-vms.toml --policy kick-every-exit --seed 7 --json\n"
    "asid run configs/smt2.toml --space minimal       # all but the least of what handlers touch is missed\n"
    "asid run configs/smt2.toml --policy none        # the negative control: FAIL is what it shows"
)
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--duration", default="5s", show_default=True, metavar="T", help="How long the machine runs.")
@click.option("--policy", default="", metavar="P", help="Instead of the configuration's.")
@click.option("--kick", default="", metavar="K", help="Instead of the configuration's: ack or send.")
@click.option("--space", default="", metavar="M", help="Instead of the configuration's: a mapping's name, or its file.")
@click.option("--seed", type=int, metavar="N", help="Instead of the configuration's.")
@click.option("--engine", type=click.Choice(["live", "sim"]), default="live", show_default=True)
@click.option("--run-dir", default="", metavar="DIR", help="Instead of a new one among the runs.")
@click.pass_obj
def command(
    session: Session, config: str, duration: str, policy: str, kick: str, space: str, seed: int | None, engine: str,
    run_dir: str
) -> None:  # fmt: skip
    """Start the machine of CONFIG, let it run, stop it, and say whether every guarantee held.

    Exit code: 0 PASS, 1 FAIL, 3 UNKNOWN.
    """
    from asid.drive import drive
    from asid.units import format_ns, parse_duration_ns

    if engine == "sim":
        raise ConfigError("--engine sim", state="not in this version", allowed="live", hint="Leave it out.")
    duration_ns = parse_duration_ns(duration, "--duration")
    if duration_ns <= 0:
        raise ConfigError(f"--duration {duration}", allowed="longer than 0", hint="Try 5s.")
    session.note(f"{config}: {duration} of wall time")
    progress = Progress(session, duration_ns)
    outcome = drive(
        config, duration_ns=duration_ns, policy=policy, kick=kick, space=space, seed=seed, run_dir=run_dir,
        on_wait=progress.show,
    )  # fmt: skip
    progress.clear()
    show_outcome(session, outcome)
    session.note(
        f"ran {format_ns(duration_ns)}; asid stat {outcome.run.name} and asid audit {outcome.run.name} say more"
    )
    if outcome.exit_code:
        session.finish(outcome.exit_code)


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
