"""asid space on a machine that runs: what its VMs' isolated spaces map now, and changes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from asid.commands.session import Session, columns, instance_option


@click.command(
    epilog="asid space map vm1 'random pool' --allow-secrets\nasid space map tenant buses memslots --level PMD"
)
@click.argument("vm", metavar="VM")
@click.argument("objects", nargs=-1, required=True, metavar="OBJECT...")
@click.option("--level", type=click.Choice(["PTE", "PMD", "PUD", "P4D", "PGD"]), help="In whole entries of this level.")
@click.option("--split/--no-split", default=None, help="Of a larger entry only the pages asked for.")
@click.option("--allow-secrets", is_flag=True, help="Also what is the host's and not for VMs.")
@instance_option
@click.pass_obj
def map_(
    session: Session, vm: str, objects: tuple[str, ...], level: str | None, split: bool | None, allow_secrets: bool
) -> None:
    """Map objects into the isolated space of VM while it runs; all of them, or none.

    Without --level and --split each is mapped in pages of its own. Done when every hyperthread has it.
    """
    args = {
        "vm": vm, "objects": list(objects), "level": level or "auto",
        "split": "auto" if split is None else "yes" if split else "no", "allow_secrets": allow_secrets,
    }  # fmt: skip
    _change(session, "space.map", args, "mapped")


@click.command(epilog="asid space unmap vm1 buses\nasid space unmap tenant 'guest FPU' lapic")
@click.argument("vm", metavar="VM")
@click.argument("objects", nargs=-1, required=True, metavar="OBJECT...")
@instance_option
@click.pass_obj
def unmap(session: Session, vm: str, objects: tuple[str, ...]) -> None:
    """Unmap objects from the isolated space of VM while it runs; all of them, or none.

    Exits that touch them leave for the full address space from then on.
    """
    _change(session, "space.unmap", {"vm": vm, "objects": list(objects)}, "unmapped")


def _change(session: Session, op: str, args: dict[str, Any], done: str) -> None:
    with session.client() as client:
        reply = client.call(op, args)
    ret = reply.ret
    (before, after), (secret_before, secret_after) = ret["mapped"], ret["secret"]
    more = f"{abs(after - before):,} bytes {'more' if after >= before else 'less'} within reach"
    text = (
        f"{ret['name']}: {done} {', '.join(ret['changed'])}: {more}; of the host's or of other VMs"
        f" {secret_after:,} now, {secret_before:,} before (seq {reply.seq})"
    )
    if ret["lacks"]:
        session.note(
            f"asid: the handler of an isolation fault misses {', '.join(ret['lacks'])} now: faults of {ret['name']} are"
            " forced into the full address space, or stop the hyperthread"
        )
    session.show({**ret, "seq": reply.seq}, text)


def show_live(session: Session, vm: str | None) -> None:
    """Show what the VMs of the machine that runs map now."""
    with session.client() as client:
        # One at a time: an answer has a limit.
        names = [vm] if vm else [found["name"] for found in client.call("vm.list").ret["vms"]]
        spaces = [space for name in names for space in client.call("space.get", {"vm": name}).ret["spaces"]]
    if not spaces:
        session.show({"vms": []}, f"{session.instance} has no VM")
        return
    texts = []
    for space in spaces:
        generation = space["totals"]["generation"]
        heading = f"{space['name']}: as mapped now, " + (f"change {generation}" if generation else "as at the start")
        if space["changing"]:
            heading += "; some hyperthreads do not have it yet"
        texts.append("\n".join([heading, space_table(space["objects"]), sums_line(space["totals"])]))
    session.show({"instance": session.instance, "vms": spaces}, "\n\n".join(texts))


def space_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of what a space maps. rows: as maps of asid.report.spaces.Mapped."""
    from asid.report.spaces import size_words

    cells = [
        (
            row["object"],
            row["whose"],
            row["step"] or "-",
            f"{row['level']}{' split' if row['split'] else ''}",
            row["ranges"],
            size_words(row["asked"]),
            size_words(row["slack"]),
        )
        for row in rows
    ]
    return columns(("OBJECT", "WHOSE", "STEP", "LEVEL", "RANGES", "ASKED", "BESIDE"), cells, right=(4, 5, 6))


def sums_line(sums: Mapping[str, int]) -> str:
    """Return the sums of a space as a sentence."""
    return (
        f"{sums['mapped']:,} bytes mapped, {sums['slack']:,} of them beside what was asked for, {sums['secret']:,}"
        f" of the host's or of other VMs; {sums['ranges']} ranges, {sums['directories']} directories"
    )
