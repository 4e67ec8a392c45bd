"""asid gate: look at gates, and hold them closed."""

from __future__ import annotations

import click

from asid.commands.session import Session, columns, instance_option
from asid.units import parse_duration_ns


@click.group(epilog="asid gate show\nasid gate hold c0 --ttl 30s\nasid gate release c0")
def command() -> None:
    """Show, hold and release the gates of cores."""


@command.command()
@click.argument("core", default="c*")
@instance_option
@click.pass_obj
def show(session: Session, core: str) -> None:
    """Show the gates: round, open or closed, for which VM, who holds them."""
    with session.client() as client:
        gates = client.call("gate.get", {"target": core}).ret["gates"]
    rows = [
        (f"c{gate['core']}", "open" if gate.get("open") else "closed", gate.get("round", 0),
         f"vm{gate['vm']}" if gate.get("vm") else "-", gate.get("phase") or "-", gate.get("holder") or "-",
         f"{gate.get('held_ns', 0) / 1e9:.1f}" if gate.get("holder") else "-")
        for gate in gates
    ]  # fmt: skip
    head = ("CORE", "GATE", "ROUND", "VM", "PHASE", "HELD BY", "SINCE(s)")
    session.show({"gates": gates}, columns(head, rows, right=(2, 6)))


@command.command(epilog="asid gate hold c0 --ttl 30s")
@click.argument("core")
@click.option("--ttl", default="10s", show_default=True, metavar="D", help="It ends by itself after this.")
@instance_option
@click.pass_obj
def hold(session: Session, core: str, ttl: str) -> None:
    """Keep the gate of CORE closed; nobody else can change that core meanwhile."""
    with session.client() as client:
        ttl_ms = max(1, parse_duration_ns(ttl) // 1_000_000)
        reply = client.gate_hold(core, ttl_ms=ttl_ms)
        by = client.name
    cores = ",".join(f"c{number}" for number in reply["cores"])
    session.show({**reply.ret, "by": by, "seq": reply.seq}, f"{cores} held by {by} for {ttl} (seq {reply.seq})")


@command.command()
@click.argument("core")
@click.option("--force", is_flag=True, help="Also when somebody else holds it.")
@instance_option
@click.pass_obj
def release(session: Session, core: str, force: bool) -> None:
    """Let the gate of CORE open again."""
    with session.client() as client:
        reply = client.gate_release(core, force=force)
    cores = ",".join(f"c{number}" for number in reply["cores"])
    session.show({**reply.ret, "seq": reply.seq}, f"{cores} released (seq {reply.seq})")
