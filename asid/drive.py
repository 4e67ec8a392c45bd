"""Start a machine, let it run, stop it, judge it: what `run`, `demo` and `replay` have in common."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_UNKNOWN, InputError
from asid.judging import judge_run
from asid.live.rundir import RunDir
from asid.running import Daemon, Run
from asid.script import PLAYED, Script, config_of

POLL_NS = 100_000_000
STOP_S = 60.0  # for the processes to end; the verdict comes after that
PLAY_NS = 600_000_000_000  # steps take milliseconds each, and the daemon ends a play whose turn does not go on
EXIT_OF = {"PASS": EXIT_OK, "FAIL": EXIT_FAIL, "UNKNOWN": EXIT_UNKNOWN}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that has ended. verdict: as in verdict.json."""

    run: Run
    verdict: dict[str, Any]

    @property
    def word(self) -> str:
        return str(self.verdict.get("verdict", "UNKNOWN"))

    @property
    def exit_code(self) -> int:
        return EXIT_OF.get(self.word, EXIT_UNKNOWN)


def configs_dir() -> Path:
    """Return the directory of the configurations that come with asid: of the checkout, or of the package."""
    for root in (Path(__file__).parent.parent, Path(__file__).parent):
        if (root / "configs" / "smt2.toml").is_file():
            return root / "configs"
    raise InputError(
        "the configurations that come with asid are not here", where=str(Path(__file__).parent),
        state="neither beside the package nor in it", allowed="configs/smt2.toml in one of them",
        hint="Install asid again, or run it from a clone of the project.",
    )  # fmt: skip


def shown_config(name: str) -> str:
    """Return how a user here names a configuration that comes with asid: `configs/NAME`, or its whole path."""
    short = Path("configs") / name
    return str(short if short.is_file() else configs_dir() / name)


def wait_for_end(daemon: Daemon, deadline_ns: int, on_wait: Callable[[], None]) -> bool:
    """Wait until the daemon has ended by itself; call `on_wait` ten times a second. Return False at the deadline."""
    while time.monotonic_ns() < deadline_ns:
        try:
            daemon.process.wait(POLL_NS / 1e9)
        except subprocess.TimeoutExpired:
            on_wait()
            continue
        return True
    return False


def judge(run: Run, on_wait: Callable[[float], None] | None = None) -> Outcome:
    """Return the verdict of a run, made now when there is none yet. on_wait: see `judge_run`."""
    return Outcome(run, judge_run(run.root, on_wait))


@contextlib.contextmanager
def running(config: str | Path | Mapping[str, Any], **options: Any) -> Iterator[Daemon]:
    """A daemon for the time of a block; stopped at its end, and killed if it must be."""
    with Daemon.start(config, **options) as daemon:
        yield daemon


def play(
    scripts: Sequence[Script], name: str, on_wait: Callable[[Daemon, int], None] | None = None
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Let a machine play scripts, one a core, and judge the run. Return with the verdict what each core came to.

    That is `played.json` of the run: steps taken, where every hyperthread stood at the end, and for a core that could
    not go on (`astray`) what its script says and what there was. Raise InputError when somebody ended it half way.
    """
    outcome = drive(
        config_of(scripts, name), duration_ns=0, patience_ns=PLAY_NS, on_wait=on_wait, scripts=tuple(scripts)
    )
    played = RunDir(outcome.run.root).read_json(PLAYED)
    cores = list(played["cores"]) if played is not None else []
    if len(cores) != len(scripts):
        raise InputError("the play was ended half way", where=str(outcome.run.root), hint="Play it again.")
    return outcome, cores


def drive(
    config: str | Path | Mapping[str, Any],
    *,
    duration_ns: int,
    on_wait: Callable[[Daemon, int], None] | None = None,
    patience_ns: int = 0,
    **options: Any,
) -> Outcome:
    """Run a configuration for `duration_ns` (0: until it ends by itself, at most `patience_ns`) and judge it.

    on_wait(daemon, elapsed_ns) is called about ten times a second. Interrupted by ^C, the run is stopped in order,
    judged, and the interruption goes on.
    """
    with running(config, duration_ns=duration_ns or None, **options) as daemon:
        begun_ns = time.monotonic_ns()
        limit_ns = begun_ns + (duration_ns or patience_ns) + int(STOP_S * 1e9)

        def waiting() -> None:
            if on_wait is not None:
                on_wait(daemon, time.monotonic_ns() - begun_ns)

        try:
            if not wait_for_end(daemon, limit_ns, waiting):
                daemon.stop(timeout_s=STOP_S)
        except KeyboardInterrupt:
            daemon.stop(timeout_s=STOP_S)
            raise
        return judge(Run(daemon.run_dir))
