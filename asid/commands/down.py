"""asid down: stop a daemon in order."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import click

from asid.commands.session import Session, instance_option
from asid.errors import EXIT_FAIL, EXIT_UNKNOWN, AsidError, InputError, NoAnswer, NotRunning, ShuttingDown

if TYPE_CHECKING:
    from asid.live.instance import InstancePaths

UNSEEN_S = 5.0  # with --force: until a daemon without sockets is killed
CLEARED_S = 2.0  # of a dead daemon's lock, which its coordinators hold while they clear away its sockets


@click.command(epilog="asid down\nasid down --instance lab --timeout 5\nasid down --force")
@click.option("--force", is_flag=True, help="Kill the children at once, and the daemon too if it does not answer.")
@click.option("--timeout", default=30.0, show_default=True, metavar="S", help="For its processes to end.")
@instance_option
@click.pass_obj
def command(session: Session, force: bool, timeout: float) -> None:
    """Drain, stop, audit. The exit code is the verdict: 0 PASS, 1 FAIL, 3 UNKNOWN.

    The audit runs here, when the daemon has ended, and takes as long as the journal is long. Interrupted, it leaves the
    run for `asid audit`.
    """
    from pathlib import Path

    from asid.judging import judge_run

    run_dir = _stop(session, force, timeout)
    document: dict[str, object] = {"instance": session.instance, "run_dir": run_dir}
    if not run_dir:
        session.show(document, f"{session.instance} has stopped; it kept no run directory")
        return
    name = Path(run_dir).name
    try:
        with session.waiting(f"audit of {name}") as on_wait:
            found = judge_run(Path(run_dir), on_wait)
    except InputError as error:
        session.show({**document, "verdict": "UNKNOWN"}, f"{session.instance} has stopped without a verdict: {error}")
        session.finish(EXIT_UNKNOWN)
    except BaseException:
        session.note(f"{session.instance} has stopped; asid audit {name} makes the verdict")
        raise
    verdict = str(found.get("verdict", "UNKNOWN"))
    text = f"{session.instance} has stopped: {verdict}\nrun directory {run_dir}"
    session.show({**document, "verdict": verdict, "guarantees": found.get("guarantees", {})}, text)
    if verdict != "PASS":
        session.finish(EXIT_FAIL if verdict == "FAIL" else EXIT_UNKNOWN)


def _stop(session: Session, force: bool, timeout_s: float) -> str:
    """Stop the instance, or see it end because somebody else stops it; return its run directory."""
    from asid.live.instance import instance_paths, is_locked, last_run
    from asid.live.killing import kill_daemon

    paths = instance_paths(session.instance)
    run_dir = str(last_run(paths) or "")  # while it is there to be read
    lived = is_locked(paths)
    try:
        if lived and _ends_unseen(session, paths, min(timeout_s, UNSEEN_S) if force else timeout_s):
            return run_dir
        return _ask(session, force, timeout_s)
    except NotRunning as error:
        if run_dir and lived and _is_let_go(paths):
            return run_dir  # it ended while we came
        if run_dir:
            error.state = f"{error.state}; its last run is {run_dir}".removeprefix("; ")
        raise
    except AsidError:
        if not force or not is_locked(paths):
            raise
    kill_daemon(paths, timeout_s)
    return run_dir


def _is_let_go(paths: InstancePaths) -> bool:
    """Return whether nobody holds an instance's lock now, or soon: who clears up after a dead daemon has it shortly."""
    from asid.live.instance import wait_unlocked

    with contextlib.suppress(NoAnswer):
        wait_unlocked(paths, CLEARED_S)
        return True
    return False


def _ends_unseen(session: Session, paths: InstancePaths, timeout_s: float) -> bool:
    """Wait while a daemon takes no clients: it has just begun, or is about to end. Return whether it has ended."""
    from asid.live import silence
    from asid.live.instance import is_locked, read_endpoints

    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    if read_endpoints(paths) is None:
        session.note(f"asid: {paths.name} has just begun, or is about to end; waiting")
    while read_endpoints(paths) is None:
        if not is_locked(paths):
            return True
        if time.monotonic() > deadline:
            raise silence.of_one_between(paths)
        pause.wait(0.02)
    return False


def _ask(session: Session, force: bool, timeout_s: float) -> str:
    """Ask a daemon to stop, and wait. One that ends without an answer was stopped by somebody else before."""
    with session.client() as client:
        client.timeout_s = timeout_s  # it answers when every process has left and the journal is closed
        try:
            client.stop(force=force, reason="asid down")
        except (NotRunning, NoAnswer, ShuttingDown):
            if not client.has_ended:
                raise
        client.wait_ended(timeout_s)
        return client.endpoints.run_dir
