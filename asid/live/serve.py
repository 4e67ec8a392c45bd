"""Run a daemon in the foreground: `python -m asid.live.serve CONFIG`. `asid up` and `asid.Daemon` start this."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from asid.config import Loaded, load
from asid.errors import EXIT_OK, AsidError
from asid.live import instance
from asid.live.daemon import Daemon

log = logging.getLogger("asid.daemon")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m asid.live.serve", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--instance", default=instance.DEFAULT_INSTANCE)
    parser.add_argument("--policy", default="")
    parser.add_argument("--kick", default="")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--duration", type=int, default=0, help="ns; 0: until stopped")
    parser.add_argument("--until-exhausted", action="store_true", help="stop when every recording has ended")
    return parser.parse_args(arguments)


def load_for(arguments: argparse.Namespace) -> Loaded:
    overrides: dict[str, Any] = {}
    if arguments.policy:
        overrides["policy.name"] = arguments.policy
    if arguments.kick:
        overrides["policy.kick"] = arguments.kick
    if arguments.seed is not None:
        overrides["seed"] = arguments.seed
    return load(arguments.config, overrides)


def main(arguments: list[str] | None = None) -> int:
    """Run a daemon in the foreground; return the exit code. Errors are told on stderr in their five parts."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="asid: %(message)s")
    assert __debug__, "the assertions are part of the protocol; never run with -O"
    try:
        daemon = Daemon(
            load_for(options), options.instance, run_dir=options.run_dir, until_exhausted=options.until_exhausted
        )
    except AsidError as error:
        return report(error)
    import setproctitle

    setproctitle.setproctitle(f"asid: daemon {options.instance}")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, daemon.on_signal)
    try:
        daemon.start()
        daemon.run_loop(options.duration)
        daemon.end()
        daemon.farewell()
    except AsidError as error:
        return report(error)
    finally:
        daemon.close()
    return EXIT_OK


def report(error: AsidError) -> int:
    log.error("%s: %s", type(error).__name__, error)
    if error.hint:
        log.error("hint: %s", error.hint)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
