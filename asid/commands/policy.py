"""asid policy: which policies there are, and which is in force."""

from __future__ import annotations

import click

from asid.commands.session import Session, columns, instance_option


@click.group(epilog="asid policy list\nasid policy set kick-every-exit\nasid policy set asi --kick send")
def command() -> None:
    """List, show and set the policy."""


@command.command(name="list")
@instance_option
@click.pass_obj
def list_(session: Session) -> None:
    """List the policies; a star marks the one in force."""
    with session.client() as client:
        ret = client.call("policy.list").ret
    rows = [
        ("*" if row.get("name") == ret["current"] else "", row.get("name", "-"), row.get("about") or "-")
        for row in ret["policies"]
    ]
    session.show(ret, columns(("", "POLICY", "WHAT IT DOES"), rows))


@command.command()
@instance_option
@click.pass_obj
def show(session: Session) -> None:
    """Show the policy in force."""
    with session.client() as client:
        ret = client.call("policy.list").ret
    session.show({"policy": ret["current"], "kick": ret["kick"]}, f"{ret['current']}, kick {ret['kick']}")


@command.command(name="set", epilog="asid policy set none")
@click.argument("name")
@click.option("--kick", type=click.Choice(["ack", "send", "rendezvous", "stun"]), default=None)
@instance_option
@click.pass_obj
def set_(session: Session, name: str, kick: str | None) -> None:
    """Set the policy: all gates are held, everybody changes, then they open."""
    with session.client() as client:
        reply = client.policy_set(name, kick=kick or "")
    text = f"policy {reply['old']} -> {reply['new']}, kick {reply['kick']} (seq {reply.seq})"
    session.show({**reply.ret, "seq": reply.seq}, text)
