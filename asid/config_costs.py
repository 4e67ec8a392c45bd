"""`[costs]` of a configuration: rows of the simulator's cost table that are replaced, here or in a file of their own.

The names and figures of the table are those of `asid.sim.costs`, which asserts that the two agree: a configuration is
read by the live engine too, and the engines do not know of each other.
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from asid.errors import ConfigError
from asid.units import format_ns, parse_duration_ns

Level = Literal["low", "typical", "high"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
# Twice the shortest kick deadline: what takes longer is a fault of the machine, which [faults] and stalls are for.
COST_MAX_NS: Final = 10_000_000
FILE_MAX_BYTES: Final = 1 << 16


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the steps of the simulator take, instead of the figures of its cost table (costs.md). Each is a duration
    from 1ns to 10ms, or low, typical or high for that figure of its row; empty = the column that `--costs` chooses.
    Every run in virtual time goes by it: run, compare, replay, assess and sim. The live engine has the costs of its
    host: it checks this table and uses nothing of it."""

    file: Annotated[
        str,
        Meta(
            description="A file with such a [costs] table, as `asid doctor --calibrate -o FILE` writes one. Rows beside"
            " it come first. Runs keep its rows, not its name."
        ),
    ] = ""
    vm_exit: Annotated[str, Meta(description="From the guest's last instruction to the first of its handler.")] = ""
    vm_entry: Annotated[str, Meta(description="From the end of a handler to the guest's next instruction.")] = ""
    cr3_write: Annotated[str, Meta(description="A switch between the isolated and the full address space.")] = ""
    l1d_flush: Annotated[str, Meta(description="Clearing the buffers before an entry.")] = ""
    ipi_send: Annotated[str, Meta(description="Writing the ICR.")] = ""
    ipi_delivery: Annotated[str, Meta(description="From that write until the target takes the interrupt.")] = ""
    message: Annotated[str, Meta(description="A word that one sibling writes and another reads.")] = ""
    schedule: Annotated[str, Meta(description="Scheduling out a vCPU that goes to sleep.")] = ""
    nmi: Annotated[str, Meta(description="The handler of an NMI.")] = ""
    mce: Annotated[str, Meta(description="The handler of a machine check.")] = ""


NAMES: Final = tuple(field.name for field in msgspec.structs.fields(Costs) if field.name != "file")


def written(costs: Costs) -> dict[str, str]:
    """Return the rows that are replaced, name -> value as written, in the order of the table."""
    return {name: text for name in NAMES if (text := getattr(costs, name))}


def parse_cost(text: str, where: str = "") -> int | Level:
    """`250ns` -> 250, `high` -> "high". Raise ConfigError for zero, for more than COST_MAX_NS, for what is neither."""
    for level in LEVELS:
        if text == level:
            return level
    allowed = f"a duration from 1ns to {format_ns(COST_MAX_NS)}, or {', '.join(LEVELS[:-1])} or {LEVELS[-1]}"
    near = get_close_matches(text, LEVELS, 1)
    try:
        found_ns = parse_duration_ns(text, where)
    except ConfigError as refused:
        hint = f"Did you mean {near[0]}?" if near else "Try 250ns or high."
        raise ConfigError(refused.what, allowed=allowed, hint=hint) from None
    if not 1 <= found_ns <= COST_MAX_NS:
        state = "no step takes no time" if found_ns < 1 else "that is no cost but a fault"
        hint = "Try 1ns." if found_ns < 1 else "A [[faults.slow]] answers late, an [[inject]] stalls."
        raise ConfigError(f"{where} = {text!r}", state=state, allowed=allowed, hint=hint)
    return found_ns


def with_file(costs: Costs, base_dir: Path) -> Costs:
    """Return the table with the rows of its file, where it names one, below its own. Raise ConfigError."""
    if not costs.file:
        return costs
    found = read_costs(base_dir / costs.file)
    return msgspec.structs.replace(costs, **{name: text for name, text in found.items() if not getattr(costs, name)})


def read_costs(path: Path) -> dict[str, str]:
    """Return the rows of a file, name -> value as written, each one checked. Raise ConfigError with what is wrong."""
    hint = "asid doctor --calibrate -o FILE writes one."
    allowed = '[costs] with rows as vm_exit = "250ns", and nothing else'
    try:
        if not path.is_file():
            raise ConfigError("no such file", where=str(path), allowed="a regular file", hint=hint)
        with path.open("rb") as file:
            text = file.read(FILE_MAX_BYTES + 1)
        if len(text) > FILE_MAX_BYTES:
            raise ConfigError("is too long", where=str(path), allowed=allowed, hint=hint)
        plain: dict[str, Any] = tomllib.loads(text.decode())
    except OSError as failed:
        raise ConfigError(f"cannot be read: {failed.strerror}", where=str(path), hint=hint) from None
    except (ValueError, RecursionError) as bad:
        raise ConfigError(f"is no TOML: {bad}", where=str(path), allowed=allowed, hint=hint) from None
    rows = plain.get("costs")
    if set(plain) != {"costs"} or not isinstance(rows, dict):
        state = "it has " + (", ".join(sorted(plain)) or "nothing")
        raise ConfigError("is no table of costs", where=str(path), state=state, allowed=allowed, hint=hint)
    for name, value in rows.items():
        if name not in NAMES:
            near = get_close_matches(name, NAMES, 1, 0.5)
            raise ConfigError(
                f"{name}: unknown cost", where=str(path), allowed="one of " + ", ".join(NAMES),
                hint=f"Did you mean {near[0]}?" if near else "docs/costs.md says what each is.",
            )  # fmt: skip
        if not isinstance(value, str):
            raise ConfigError(f"{name} = {value}", where=str(path), allowed='text in "quotes"', hint="Try 250ns.")
        parse_cost(value, f"{path}: costs.{name}")
    return rows
