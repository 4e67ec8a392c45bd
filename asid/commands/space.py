"""asid space: isolated address spaces, what they map and expose, and how a mapping is learned and changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from asid import saving
from asid.commands.session import Session, Usage, columns, instance_option
from asid.commands.space_live import map_, show_live, space_table, sums_line, unmap
from asid.errors import EXIT_FAIL, EXIT_UNKNOWN

if TYPE_CHECKING:
    from asid.config import Loaded
    from asid.mm.isolated import Isolated
    from asid.mm.ptdump import Dump

FILE = click.Path(path_type=Path, dir_okay=False)
mapping_option = click.option(
    "--mapping",
    default="rfc",
    show_default=True,
    metavar="NAME",
    help="rfc (patches 19 to 27 as posted), minimal, allowed (what runs have), or a file that learn wrote.",
)
vm_option = click.option("--vm", metavar="VM", help="Of this VM, by its name or as vm1. [every one]")
EXITS = 20_000
ROUNDS = 50
SAVED = ("the mapping", "--output")


@click.group()
def command() -> None:
    """Show, compare, learn and change what the isolated address space of each VM maps."""


command.add_command(map_, "map")
command.add_command(unmap)


@command.command(
    epilog="asid space show configs/smt2.toml\nasid space show configs/smt2.toml --mapping learned.toml\n"
    "asid space show --vm vm1"
)
@click.argument("config", type=FILE, required=False)
@mapping_option
@vm_option
@click.option("--ranges", is_flag=True, help="Each range with its address.")
@instance_option
@click.pass_obj
def show(session: Session, config: Path | None, mapping: str, vm: str | None, ranges: bool) -> None:
    """Show what the space of each VM of CONFIG maps, at which level, and how much lies beside what was asked for.

    Without CONFIG: of the VMs of the daemon that runs, as they are mapped now.
    """
    from asid.report.spaces import mapped_rows, size_words, totals

    _require_fitting(live=config is None)
    if config is None:
        show_live(session, vm)
        return
    texts, documents = [], []
    for isolated in _spaces(config, mapping, vm):
        rows, sums = [row._asdict() for row in mapped_rows(isolated)], totals(isolated)
        listed = [
            {"start": f"{seen.start:#x}", "size": seen.size, "level": seen.level.name, "what": seen.what}
            for seen in isolated.space.ranges()
        ]
        documents.append({"name": isolated.name, "objects": rows, "totals": sums, "ranges": listed})
        lines = [f"{isolated.name}: mapping {mapping}", space_table(rows)]
        if ranges:
            cells = [(item["start"], size_words(seen.size), item["level"], item["what"])
                     for item, seen in zip(listed, isolated.space.ranges(), strict=True)]  # fmt: skip
            lines += ["", columns(("START", "SIZE", "LEVEL", "WHAT"), cells, right=(1,))]
        texts.append("\n".join([*lines, sums_line(sums)]))
    session.show({"config": str(config), "mapping": mapping, "vms": documents}, "\n\n".join(texts))


@command.command(epilog="asid space audit configs/smt2.toml\nasid space audit configs/two-vms.toml --mapping minimal")
@click.argument("config", type=FILE)
@mapping_option
@vm_option
@click.pass_obj
def audit(session: Session, config: Path, mapping: str, vm: str | None) -> None:
    """List what each VM's table lets it reach that is the host's or another VM's, and the mapping that does it.

    Ends with 1 when there is anything.
    """
    from asid.report.spaces import secret_rows, size_words

    texts, documents = [], []
    for isolated in _spaces(config, mapping, vm):
        rows = secret_rows(isolated)
        documents.append(
            {"name": isolated.name, "secrets": [{**row, "at": f"{row['at']:#x}"} for row in rows],
             "bytes": sum(row["size"] for row in rows), "slack": sum(row["slack"] for row in rows)}
        )  # fmt: skip
        cells = [
            (row["name"], row["whose"], size_words(row["size"]), size_words(row["slack"]), row["by"], f"{row['at']:#x}")
            for row in rows
        ]
        table = columns(("SECRET", "WHOSE", "BYTES", "BESIDE", "MAPPED FOR", "FIRST AT"), cells, right=(2, 3))
        total = f"{documents[-1]['bytes']:,} bytes, {documents[-1]['slack']:,} of them beside what was asked for"
        texts.append(f"{isolated.name}: mapping {mapping}\n" + (f"{table}\n{total}" if rows else "no secret"))
    clean = not any(document["secrets"] for document in documents)
    document = {"ok": clean, "config": str(config), "mapping": mapping, "vms": documents}
    session.show(document, "\n\n".join(texts))
    if not clean:
        session.finish(EXIT_FAIL)


@command.command(
    epilog="asid space dump configs/smt2.toml > tenant.txt\nasid space dump configs/smt2.toml --host\n"
    "asid space dump page_tables.txt.gz --json"
)
@click.argument("file", type=FILE)
@mapping_option
@vm_option
@click.option("--host", is_flag=True, help="The host's table.")
@click.pass_obj
def dump(session: Session, file: Path, mapping: str, vm: str | None, host: bool) -> None:
    """Print a page table as /sys/kernel/debug/page_tables does: of the first VM of a configuration, or of a dump read.

    A dump is read plain or gzip, from debugfs or a boot log, and checked.
    """
    from asid.mm.ptdump import Mark, Range, format_dump

    found = _dump(file, mapping, vm, host)
    items: list[dict[str, Any]] = []
    for item in found.items:
        if isinstance(item, Range):
            items.append({"start": f"{item.start:#x}", "end": f"{item.end:#x}", "level": item.level,
                          "flags": int(item.flags), "size": item.size})  # fmt: skip
        else:
            items.append({"mark": item.name} if isinstance(item, Mark) else {"skipped": item.entries})
    mapped = sum(seen.size for seen in found.present)
    session.show({"file": str(file), "mapped": mapped, "items": items}, lambda: format_dump(found.items))


@command.command(
    epilog="asid space diff configs/smt2.toml tenant.txt\nasid space diff old.txt.gz new.txt.gz\n"
    "asid space diff configs/two-vms.toml configs/two-vms.toml --vm vm1 --with-vm vm2"
)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@mapping_option
@click.option("--with-mapping", metavar="NAME", help="The mapping of SECOND. [that of FIRST]")
@click.option("--vm", metavar="VM", help="The VM of a configuration. [the first]")
@click.option("--with-vm", metavar="VM", help="The VM of SECOND. [that of FIRST]")
@click.option("--host", is_flag=True, help="The host's tables.")
@click.pass_obj
def diff(
    session: Session, first: Path, second: Path, mapping: str, with_mapping: str | None, vm: str | None,
    with_vm: str | None, host: bool
) -> None:  # fmt: skip
    """Show where two page tables differ: dumps, or tables of configurations. Ends with 1 when they do."""
    from asid.report.spaces import differences, size_words
    from asid.space_files import is_configuration

    one = _dump(first, mapping, *((vm, host) if is_configuration(first) else (None, False)))
    other = _dump(
        second, with_mapping or mapping, *((with_vm or vm, host) if is_configuration(second) else (None, False))
    )
    found = differences(one.ranges, other.ranges)
    rows = [
        (f"{seen.start:#018x}", size_words(seen.end - seen.start), seen.first or "-", seen.second or "-")
        for seen in found
    ]
    document = {
        "first": str(first),
        "second": str(second),
        "differences": [
            {"start": f"{seen.start:#x}", "end": f"{seen.end:#x}", "first": seen.first, "second": seen.second}
            for seen in found
        ],
    }
    text = columns(("START", "SIZE", "FIRST", "SECOND"), rows, right=(1,)) if rows else "no difference"
    session.show(document, text)
    if found:
        session.finish(EXIT_FAIL)


@command.command(
    epilog="asid space learn configs/smt2.toml -o learned.toml\n"
    "asid space learn configs/smt2.toml --allow-secrets\nasid space learn configs/smt2.toml --pareto"
)
@click.argument("config", type=FILE)
@click.option("--rounds", type=click.IntRange(1, 1000), default=ROUNDS, show_default=True, help="At most so many.")
@click.option("--exits", type=click.IntRange(1, 10_000_000), default=EXITS, show_default=True, help="Of each vCPU.")
@click.option("--allow-secrets", is_flag=True, help="Map what is the host's and not for VMs, too.")
@click.option("--mapping", default="minimal", show_default=True, metavar="NAME", help="Where to begin; see show.")
@click.option("--pareto", is_flag=True, help="Show full exits a second against bytes exposed, object by object.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the learned mapping there.")
@click.pass_obj
def learn(
    session: Session, config: Path, rounds: int, exits: int, allow_secrets: bool, mapping: str, pareto: bool,
    output: Path | None
) -> None:  # fmt: skip
    """Play the exits of CONFIG's VMs, map what they miss, and repeat until nothing more may be mapped.

    Each fault is printed as the RFC does; with --pareto, instead, what each object buys and costs, the best first, and
    what mapping secrets would buy. Ends with 0 when no fault is left, or only those that need secrets; with 3
    when the rounds ran out before.
    """
    from asid.judging import telling
    from asid.report.learned import curves_text, learned_document, learned_text
    from asid.space_files import mapping_text
    from asid.space_learn import learn as learn_mapping

    if output is not None:
        saving.try_to_write(output, *SAVED)  # before exits are played, of which there may be millions
    loaded = _loaded(config)
    with session.waiting(f"learning from {config.name}") as on_wait, telling(on_wait):
        found = learn_mapping(loaded, mapping, rounds=rounds, exits=exits, secrets=allow_secrets, pareto=pareto)
    if output is not None:
        saving.write(output, mapping_text(found.mapping, f"Learned by asid space learn {config}"), *SAVED)
        session.note(f"Saved. See it: asid space show {config} --mapping {output}")
    session.show(
        {"config": str(config), "output": str(output) if output else None, **learned_document(found)},
        lambda: (curves_text if pareto else learned_text)(found, columns),
    )
    if not found.complete:
        session.finish(EXIT_UNKNOWN)


# --- what the verbs share -----------------------------------------------------------------------------------


def _require_fitting(*, live: bool) -> None:
    """Raise Usage for an option that says nothing of what is to be shown: the machine that runs, or a configuration."""
    context = click.get_current_context()
    for option in ("mapping", "ranges") if live else ("instance",):
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            raise Usage(
                f"--{option} {'without' if live else 'with'} CONFIG",
                where=context.command_path,
                state="the daemon that runs is asked" if live else "no daemon is asked",
                allowed=f"{'with' if live else 'without'} one",
                hint=f"{context.command_path} --help",
            )


def _loaded(path: Path) -> Loaded:
    from asid.config import load
    from asid.guest.check import check_guests

    loaded = load(path)
    check_guests(loaded)
    return loaded


def _spaces(path: Path, mapping: str, vm: str | None) -> list[Isolated]:
    from asid.space_build import host_of, isolated_of, mapping_of, vm_numbers

    loaded = _loaded(path)
    numbers = vm_numbers(loaded, vm)
    host, entries = host_of(loaded), mapping_of(loaded, mapping)
    return [isolated_of(host, number, entries[number]) for number in numbers]


def _dump(path: Path, mapping: str, vm: str | None, host: bool) -> Dump:
    from asid.report.spaces import dump_of
    from asid.space_build import host_of
    from asid.space_files import is_configuration, read_dump

    if not is_configuration(path):
        if vm or host:
            raise Usage(
                f"{path} is a dump, of one table", where="--vm, --host", allowed="used with a configuration (.toml)",
                hint="asid space dump CONFIG --host",
            )  # fmt: skip
        return read_dump(path)
    if host:
        made = host_of(_loaded(path))
        return dump_of(made.table, made.layout)
    isolated = _spaces(path, mapping, vm)[0]
    return dump_of(isolated.space.table, isolated.host.layout)
