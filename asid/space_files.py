"""Files of the address spaces: symbols and page-table dumps, plain or gzip, and mappings as TOML.

A mapping says for each VM which objects are mapped, at which level, and whether larger entries are split:

    [[vm]]
    name = "tenant"
    map = [
      { object = "kernel text", level = "PMD" },
      { object = "guest FPU", split = true, step = "learned" },
    ]
"""

from __future__ import annotations

import gzip
import tomllib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from asid.errors import InputError, PermissionRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asid.mm.isolated import Entry
    from asid.mm.ptdump import Dump
    from asid.mm.symbols import SymbolTable

BYTES_MAX: Final = 256 << 20  # a distribution's kallsyms has 12 MiB, a dump of a large process some more
_GZIP: Final = b"\x1f\x8b"
_CONFIGURATIONS: Final = (".toml", ".json")


def is_configuration(path: Path) -> bool:
    """Say whether a file is taken for a configuration, and not for a page-table dump: by its name."""
    return path.suffix in _CONFIGURATIONS


def read_bytes(path: Path) -> bytes:
    """Return what is in a file, gzip undone. Raise InputError or PermissionRefused."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, perhaps for ever
            raise InputError("it is no regular file", where=str(path), allowed="a regular file, plain or gzip")
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        if data[:2] == _GZIP:
            with gzip.open(path) as packed:
                data = packed.read(BYTES_MAX + 1)
    except PermissionError as fault:
        raise PermissionRefused("it may not be read", where=str(path), hint="Copy it as root first.") from fault
    except (OSError, EOFError, ValueError, zlib.error) as fault:
        raise InputError(
            f"cannot be read: {fault}",
            where=str(path),
            allowed="a regular file, plain or gzip",
            hint="Is the path right, and the file whole?",
        ) from fault
    if len(data) > BYTES_MAX:
        raise InputError(f"more than {BYTES_MAX >> 20} MiB", where=str(path), hint="Give the text of one kernel.")
    return data


def read_symbols(path: Path) -> SymbolTable:
    """Return the symbols of a kallsyms or System.map file. Raise InputError with the line that is none."""
    from asid.mm.symbols import parse_symbols

    return parse_symbols(read_bytes(path), where=str(path))


def read_dump(path: Path) -> Dump:
    """Return a page-table dump. Raise InputError with the line that is none."""
    from asid.mm.ptdump import parse_dump

    return parse_dump(read_bytes(path), where=str(path))


# --- mappings ---------------------------------------------------------------------------------------------


class _Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    object: str
    level: Literal["PTE", "PMD", "PUD", "P4D", "PGD"] = "PTE"
    split: bool = False
    step: str = ""


class _Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    map: tuple[_Item, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vm: Annotated[tuple[_Vm, ...], msgspec.Meta(min_length=1)]


def read_mapping(path: Path) -> dict[str, tuple[Entry, ...]]:
    """Return the mapping of each VM that a file names. Raise InputError with what is wrong in it."""
    from asid.mm.entry import Level
    from asid.mm.isolated import Entry
    from asid.mm.objects import OBJECT

    try:
        given = msgspec.convert(tomllib.loads(read_bytes(path).decode()), _File)
    except (ValueError, RecursionError) as fault:  # no UTF-8, no TOML, or another shape
        raise InputError(
            f"is no mapping: {fault}",
            where=str(path),
            allowed='[[vm]] tables with name and map = [{ object = "...", level = "PTE" }]',
            hint="asid space learn CONFIG -o FILE writes one.",
        ) from None
    found: dict[str, tuple[Entry, ...]] = {}
    for vm in given.vm:
        unknown = next((item.object for item in vm.map if item.object not in OBJECT), None)
        twice = vm.name in found or len({item.object for item in vm.map}) < len(vm.map)
        if unknown is not None or twice:
            raise InputError(
                f"{unknown!r} is no object" if unknown is not None else "a VM or an object is there twice",
                where=f"{path}: vm {vm.name!r}",
                allowed="each VM once, and in it each object that asid space show --mapping rfc knows, once",
                hint="asid space learn CONFIG -o FILE writes one.",
            )
        found[vm.name] = tuple(Entry(item.object, Level[item.level], item.split, item.step) for item in vm.map)
    return found


def mapping_text(mapping: Mapping[str, tuple[Entry, ...]], heading: str) -> str:
    """Return the text of a mapping file; read_mapping returns the same mapping of it. heading: a line of comment."""
    lines = [f"# {heading}", ""]
    for name, entries in mapping.items():
        lines += ["[[vm]]", f'name = "{name}"', "map = ["]
        for entry in entries:
            split = ", split = true" if entry.split else ""
            step = f', step = "{entry.step}"' if entry.step else ""
            lines.append(f'  {{ object = "{entry.object}", level = "{entry.level.name}"{split}{step} }},')
        lines += ["]", ""]
    return "\n".join(lines)
