"""asid ht: take hyperthreads and vCPUs away while everything runs, and give them back."""

from __future__ import annotations

import click

from asid.commands.session import Session, columns, instance_option


@click.group(epilog="asid ht ls\nasid ht unplug c0h1\nasid ht plug c0h1\nasid ht attach vm1/0 --to c0h1")
def command() -> None:
    """List, plug and unplug hyperthreads; attach and detach vCPUs."""


@command.command()
@click.argument("target", default="c*")
@instance_option
@click.pass_obj
def ls(session: Session, target: str) -> None:
    """List hyperthreads."""
    with session.client() as client:
        hts = client.call("ht.list", {"target": target}).ret["hts"]
    rows = [
        (ht.get("name") or f"c{ht['core']}h{ht['ht']}", ht.get("mode", "-"),
         f"vm{ht['vm']}/{ht.get('vcpu', 0)}" if ht.get("vm") else "-", ht.get("pid", "-"), ht.get("inc", "-"))
        for ht in hts
    ]  # fmt: skip
    session.show({"hts": hts}, columns(("HT", "MODE", "VCPU", "PID", "INC"), rows, right=(3, 4)))


@command.command()
@click.argument("target")
@instance_option
@click.pass_obj
def plug(session: Session, target: str) -> None:
    """Give hyperthreads back."""
    with session.client() as client:
        reply = client.plug(target)
    session.show({**reply.ret, "seq": reply.seq}, _changed("plugged", reply.ret["changed"], reply.seq))


@command.command()
@click.argument("target")
@click.option("--force", is_flag=True, help="Kill it instead of letting it leave the gate in order.")
@instance_option
@click.pass_obj
def unplug(session: Session, target: str, force: bool) -> None:
    """Take hyperthreads away."""
    with session.client() as client:
        reply = client.unplug(target, force=force)
    session.show({**reply.ret, "seq": reply.seq}, _changed("unplugged", reply.ret["changed"], reply.seq))


@command.command(epilog="asid ht attach vm1/0 --to c0h1")
@click.argument("target")
@click.option("--to", required=True, metavar="HT", help="A free hyperthread.")
@instance_option
@click.pass_obj
def attach(session: Session, target: str, to: str) -> None:
    """Pin the vCPU TARGET (vm1/0) to a hyperthread."""
    with session.client() as client:
        reply = client.attach(target, to)
    session.show({**reply.ret, "seq": reply.seq}, _changed("attached", _vcpus(reply.ret["changed"]), reply.seq))


@command.command(epilog="asid ht detach vm1/0\nasid ht detach c0h1")
@click.argument("target")
@instance_option
@click.pass_obj
def detach(session: Session, target: str) -> None:
    """Take the vCPUs of TARGET off their hyperthreads."""
    with session.client() as client:
        reply = client.detach(target)
    session.show({**reply.ret, "seq": reply.seq}, _changed("detached", _vcpus(reply.ret["changed"]), reply.seq))


def _vcpus(changed: list[list[object]]) -> list[str]:
    return [f"vm{vm}/{vcpu} ({ht})" for vm, vcpu, ht in changed]


def _changed(what: str, names: list[str], seq: int) -> str:
    return f"{what} {', '.join(names)} (seq {seq})" if names else f"nothing to do: all {what} already"
