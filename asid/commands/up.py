"""asid up: start a daemon."""

from __future__ import annotations

import click

from asid.commands.session import Session, instance_option


@click.command(
    epilog="asid up configs/smt2.toml --detach\nasid up configs/two-vms.toml --policy none --seed 7 --instance lab"
)
@click.argument("config", type=click.Path(dir_okay=False), default="")
@click.option("--detach", is_flag=True, help="Return when the daemon is ready; it goes on in the background.")
@click.option("--policy", default="", metavar="P", help="Instead of the configuration's.")
@click.option("--kick", default="", metavar="K", help="Instead of the configuration's.")
@click.option("--seed", type=int, metavar="N", help="Instead of the configuration's.")
@click.option("--timeout", default=30.0, show_default=True, metavar="S", help="How long --detach waits.")
@instance_option
@click.pass_obj
def command(
    session: Session, config: str, detach: bool, policy: str, kick: str, seed: int | None, timeout: float
) -> None:
    """Start the daemon for CONFIG: in the foreground until `asid down` or Ctrl-C, or with --detach.

    Without CONFIG: smt2.toml of those that come with asid.
    """
    if not config:
        from asid.drive import shown_config

        config = shown_config("smt2.toml")
    if detach:
        _start_detached(session, config, policy, kick, seed, timeout)
        return
    from asid.live.serve import main

    # The daemon's main takes the arguments of `python -m asid.live.serve` and gives an exit code.
    arguments = [config, "--instance", session.instance]
    for option, value in (("--policy", policy), ("--kick", kick), ("--seed", "" if seed is None else str(seed))):
        arguments += [option, value] if value else []
    code = main(arguments)
    if code:
        session.finish(code)


def _start_detached(session: Session, config: str, policy: str, kick: str, seed: int | None, timeout_s: float) -> None:
    from asid.running import Daemon

    daemon = Daemon.start(config, instance=session.instance, policy=policy, kick=kick, seed=seed, timeout_s=timeout_s)
    try:
        found = daemon.endpoints
        status = daemon.client().status()
    finally:
        daemon.detach()
    text = (
        f"{found.instance} is {status['state']}: pid {found.pid}, policy {status['policy']}, kick {status['kick']}, "
        f"seed {status['seed']}\nrun directory {found.run_dir}"
    )
    document = {"instance": found.instance, "pid": found.pid, "run_dir": found.run_dir, "status": status}
    session.show(document, text)
    session.note(f"hint: asid status, asid watch, asid down --instance {found.instance}")
