"""Run a daemon in the foreground: `serve` for `asid up`, `python -m asid.live.serve CONFIG` for `asid.Daemon`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asid.config import Loaded, load, mapping_given
from asid.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED
from asid.judging import judge_run
from asid.live import instance, leash
from asid.live.daemon import Daemon
from asid.live.room import check_file_size, start_failure
from asid.signals import ENDINGS

log = logging.getLogger("asid.daemon")

Ready = Callable[[Daemon], None]
Ended = Callable[[Daemon, dict[str, Any] | None], None]


def _ignore(*_: object) -> None:
    """For who only wants the machine to run."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m asid.live.serve", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--instance", default=instance.DEFAULT_INSTANCE)
    parser.add_argument("--policy", default="")
    parser.add_argument("--kick", default="")
    parser.add_argument("--space", default="")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--duration", type=int, default=0, help="ns; 0: until stopped")
    parser.add_argument("--until-exhausted", action="store_true", help="stop when every recording has ended")
    parser.add_argument("--leash", type=int, default=-1, metavar="FD", help="see asid.live.leash")
    parser.add_argument("--checked", action="store_true", help="whoever started it has looked at policy and guests")
    parser.add_argument("--script", type=Path, help="what its cores play, see asid.script")
    parser.add_argument("--no-verdict", action="store_true", help="whoever started it will judge the run")
    return parser.parse_args(arguments)


def load_for(arguments: argparse.Namespace) -> Loaded:
    overrides: dict[str, Any] = {}
    if arguments.policy:
        overrides["policy.name"] = arguments.policy
    if arguments.kick:
        overrides["policy.kick"] = arguments.kick
    if arguments.space:
        overrides["space.mapping"] = mapping_given(arguments.space)
    if arguments.seed is not None:
        overrides["seed"] = arguments.seed
    return load(arguments.config, overrides)


def main(arguments: list[str] | None = None) -> int:
    """Run a daemon as this process; return the exit code. Errors are told on stderr in their five parts."""
    try:
        return serve(parse_arguments(sys.argv[1:] if arguments is None else arguments))
    except Exception as fault:
        return report(fault)


def serve(options: argparse.Namespace, on_ready: Ready = _ignore, on_end: Ended = _ignore) -> int:
    """Run a daemon in the foreground until it has ended; return the exit code. Raise why it could not start or go on.

    on_ready(daemon): when it answers. on_end(daemon, verdict): when all of it is gone; the verdict is None when
    somebody else sees to it, or a signal cut it short. An OSError of on_ready stops the daemon,
    and is raised when that has ended.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="asid: %(message)s")
    assert __debug__, "the assertions are part of the protocol; never run with -O"
    loaded = load_for(options)
    if not options.checked:
        from asid.guest.check import check_guests, check_real_guests
        from asid.policies import require_kick, require_tested
        from asid.space_build import check_mapping

        check_guests(loaded)
        check_real_guests(loaded)
        check_mapping(loaded)
        require_tested(loaded.config.policy.name)
        require_kick(loaded.config.policy.name, options.kick)
    check_file_size()
    daemon = made_for(loaded, options)
    import setproctitle

    setproctitle.setproctitle(f"asid: daemon {options.instance}")
    for signum in ENDINGS:
        signal.signal(signum, daemon.on_signal)
    if options.leash >= 0:
        leash.hold(daemon.node, options.leash, lambda: daemon.on_signal(signal.SIGHUP, None))
    unheard: OSError | None = None
    try:
        daemon.start()
        try:
            if daemon.state == "ready":  # else a signal was faster
                on_ready(daemon)
        except OSError as error:  # whoever was to read it is gone, or there is no room: the run ends in order
            unheard = error
            daemon.begin_stop("nobody reads what it says")
        daemon.run_loop(options.duration)
        daemon.end()
        daemon.farewell()
    finally:
        daemon.close()
    code, verdict = judge(daemon) if daemon.verdict_wanted and not options.no_verdict else (EXIT_OK, None)
    if unheard is not None:
        raise unheard
    on_end(daemon, verdict)
    return code


def made_for(loaded: Loaded, options: argparse.Namespace) -> Daemon:
    """Return the daemon: one with a script ends when that has been played."""
    if options.script is None:
        return Daemon(loaded, options.instance, run_dir=options.run_dir, until_exhausted=options.until_exhausted)
    from asid.live.directed_daemon import DirectedDaemon
    from asid.script import read

    return DirectedDaemon(loaded, options.instance, read(options.script), run_dir=options.run_dir)


class GivenUp(BaseException):
    """A signal, while there is nothing left but the verdict."""


def judge(daemon: Daemon) -> tuple[int, dict[str, Any] | None]:
    """Make the verdict of a run that nobody asked to end: children, sockets and lock are gone by now, so however long
    it takes, it is in nobody's way. A signal ends it at once; the run stays as it is, for `asid audit`.

    Return the exit code, and the verdict when there is one.
    """
    run = daemon.run_dir

    def give_up(number: int, _frame: object) -> None:
        raise GivenUp(number)

    try:
        for signum in ENDINGS:
            signal.signal(signum, give_up)
        if daemon.signalled:  # after its loop had ended
            raise GivenUp(signal.Signals[daemon.signalled])
        document = judge_run(run.path)
    except GivenUp as signalled:
        log.info("no verdict: interrupted; asid audit %s makes it", run.name)
        return (EXIT_INTERRUPTED if signalled.args[0] == signal.SIGINT else EXIT_TERMINATED), None
    finally:
        for signum in ENDINGS:  # it has ended; what is left is to say so
            signal.signal(signum, signal.SIG_IGN)
    log.info("%s: run %s", document.get("verdict", "UNKNOWN"), run.path)
    return EXIT_OK, document


def report(fault: Exception) -> int:
    """Say in the log why a daemon ends; return its exit code."""
    error = start_failure(fault)
    if error is not fault and os.environ.get("ASID_DEBUG"):
        log.error("where it comes from", exc_info=fault)
    log.error("%s: %s", type(error).__name__, error)
    if error.hint:
        log.error("hint: %s", error.hint)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
