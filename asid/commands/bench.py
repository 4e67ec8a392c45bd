"""asid bench: the speed of this build beside the bare limit of this machine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from asid.bench import BENCHMARKS, NAMES
from asid.commands.session import Session


@click.command(epilog="asid bench\nasid bench kick exits --json\nasid bench startup --quick")
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAME]...")
@click.option("--quick", is_flag=True, help="Few samples: to see that it works, not to quote.")
@click.pass_obj
def command(session: Session, names: tuple[str, ...], quick: bool) -> None:
    """Measure kick, exits, kvm, control, sim, startup; without NAME, all of them.

    Each is measured in turns with the least that could do the same job on this machine, and shown as a ratio. Nothing
    is judged: quote medians and ratios, and look at the load first.
    """
    from asid.bench.figures import host, lines

    found: list[dict[str, Any]] = []
    text: list[str] = []
    facts = host()
    for name, _ in BENCHMARKS:
        if names and name not in names:
            continue
        result = import_module(f"asid.bench.{name}").measure(quick, session.note)
        found.append(result.as_map())
        text += [*lines(result), ""]
    text.append(
        f"host: {facts['cpus']} CPUs, load {facts['load'][0]} before, {facts['machine']}, kernel {facts['kernel']},"
        f" Python {facts['python']}, libzmq {facts['libzmq']}"
    )
    session.show({"quick": quick, "host": facts, "benchmarks": found}, "\n".join(text), schema="bench/1")
