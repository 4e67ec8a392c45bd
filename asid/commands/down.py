"""asid down: stop a daemon in order."""

from __future__ import annotations

import os
import signal

import click

from asid.commands.session import Session, instance_option
from asid.errors import EXIT_FAIL, EXIT_UNKNOWN, AsidError, InputError, NotRunning


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
    """Stop the instance; return its run directory."""
    try:
        with session.client() as client:
            client.timeout_s = timeout_s  # it answers when every process has left and the journal is closed
            client.stop(force=force, reason="asid down")
            client.wait_ended(timeout_s)
            return client.endpoints.run_dir
    except NotRunning:
        raise
    except AsidError:
        if not force:
            raise
    return _kill(session.instance, timeout_s)


def _kill(instance: str, timeout_s: float) -> str:
    """SIGKILL a daemon that does not answer; its children end with it."""
    from asid.live.instance import instance_paths, is_locked, read_endpoints, wait_unlocked

    paths = instance_paths(instance)
    found = read_endpoints(paths)
    if found is None:
        raise NotRunning(f"instance {instance!r} has no endpoints file", hint="asid ls")
    # A descriptor of the process, taken while the lock is held, cannot mean another process that got the same number.
    process_fd = os.pidfd_open(found.pid)
    try:
        if is_locked(paths):
            signal.pidfd_send_signal(process_fd, signal.SIGKILL)
    finally:
        os.close(process_fd)
    wait_unlocked(paths, timeout_s)
    return found.run_dir
