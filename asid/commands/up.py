"""asid up: start a daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from asid.commands.session import Session, instance_option
from asid.errors import Crash

if TYPE_CHECKING:
    from asid.live.daemon import Daemon


@click.command(
    epilog="asid up configs/smt2.toml --detach\nasid up configs/two-vms.toml --policy none --seed 7 --instance lab"
)
@click.argument("config", type=click.Path(dir_okay=False), default="")
@click.option("--detach", is_flag=True, help="Return when the daemon is ready; it goes on in the background.")
@click.option("--policy", default="", metavar="P", help="Instead of the configuration's.")
@click.option("--kick", default="", metavar="K", help="Instead of the configuration's.")
@click.option("--space", default="", metavar="M", help="Instead of the configuration's: a mapping's name, or its file.")
@click.option("--seed", type=int, metavar="N", help="Instead of the configuration's.")
@click.option("--timeout", default=30.0, show_default=True, metavar="S", help="How long --detach waits.")
@instance_option
@click.pass_obj
def command(
    session: Session, config: str, detach: bool, policy: str, kick: str, space: str, seed: int | None, timeout: float
) -> None:
    """Start the daemon for CONFIG: in the foreground until `asid down` or Ctrl-C, or with --detach.

    Without CONFIG: smt2.toml of those that come with asid. In the foreground, --json writes two lines: when the machine
    is ready, as --detach does, and when it has ended, as `asid down` does. The verdict is null when whoever stopped it
    makes it.
    """
    if not config:
        from asid.drive import shown_config

        config = shown_config("smt2.toml")
    if detach:
        _start_detached(session, config, timeout, policy=policy, kick=kick, space=space, seed=seed)
        return
    # The daemon takes the arguments of `python -m asid.live.serve`.
    arguments = [config, "--instance", session.instance]
    for option, value in (
        ("--policy", policy), ("--kick", kick), ("--space", space), ("--seed", "" if seed is None else str(seed))
    ):  # fmt: skip
        arguments += [option, value] if value else []
    code = _serve(session, arguments)
    if code:
        session.finish(code)


def _serve(session: Session, arguments: list[str]) -> int:
    """Be the daemon. A person reads its log on stderr; a script gets what happened as lines on stdout too."""
    from asid import optypes
    from asid.live import serve
    from asid.live.room import start_failure

    def on_ready(daemon: Daemon) -> None:
        if session.json:
            status = daemon.operations.query("status.get", optypes.Args())
            session.line(_started(daemon.paths.name, os.getpid(), status), "")

    def on_end(daemon: Daemon, verdict: dict[str, Any] | None) -> None:
        if session.json:
            found = {"verdict": None} if verdict is None else {key: verdict[key] for key in ("verdict", "guarantees")}
            document = {"instance": daemon.paths.name, "run_dir": str(daemon.run_dir.path), **found}
            session.line(document, "", schema="down/1")

    try:
        return serve.serve(serve.parse_arguments(arguments), on_ready, on_end)
    except Exception as fault:
        failure = start_failure(fault)
        if isinstance(failure, Crash):  # or of stdout; the command tree tells them apart
            raise
        raise failure from fault


def _started(name: str, pid: int, status: dict[str, Any]) -> dict[str, Any]:
    return {"instance": name, "pid": pid, "run_dir": status["run_dir"], "status": status}


def _start_detached(session: Session, config: str, timeout_s: float, **options: Any) -> None:
    from asid import running

    daemon = running.Daemon.start(config, instance=session.instance, timeout_s=timeout_s, **options)
    try:
        found = daemon.endpoints
        status = daemon.client().status()
    finally:
        daemon.detach()
    text = (
        f"{found.instance} is {status['state']}: pid {found.pid}, policy {status['policy']}, kick {status['kick']}, "
        f"seed {status['seed']}\nrun directory {found.run_dir}"
    )
    session.show(_started(found.instance, found.pid, status), text)
    session.note(f"hint: asid status, asid watch, asid down --instance {found.instance}")
