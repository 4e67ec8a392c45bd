"""Reading a configuration: TOML in, a checked Config out, and for every mistake the file, the line and the way out.

tomllib keeps no line numbers, so `key_lines` finds them with a scan of its own. The scan is used for messages and
`asid config show --origin` only: nothing that it could get wrong changes a value.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from asid.config import Config, Loaded
from asid.config_costs import with_file, written
from asid.config_rules import RuleBroken, check, kind_of, printable
from asid.core.limits import VMS_MAX
from asid.errors import ConfigError, InputError
from asid.units import format_size

FILE_MAX_BYTES = 1 << 20
COMMAND_LINE = "command line"
DEFAULT = "default"

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\-\s\"']+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_\-.\"']+)\s*=(.*)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_AT = re.compile(r"(.*?)(?: - at `\$(.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_\-]+)|\[(\d+)\]")

TYPE_WORDS = {int: "a whole number", str: 'text in "quotes"', bool: "true or false", float: "a number"}
MSGSPEC_WORDS = {"int": TYPE_WORDS[int], "str": TYPE_WORDS[str], "bool": TYPE_WORDS[bool], "float": TYPE_WORDS[float],
                 "array": "a list in [brackets]", "object": "a table"}  # fmt: skip


def load_checked(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any]) -> Loaded:
    """The whole of `asid.config.load`."""
    try:
        return _load(source, overrides)
    except RecursionError:  # of tomllib, of json or of the checks below: no configuration is as deep as that
        raise InputError(
            "nested too deeply",
            where="a mapping" if isinstance(source, Mapping) else str(source),
            state="tables or lists in one another, beyond what Python reads",
            allowed="at most four levels, as in [[vm]] guest = { ... }",
            hint="asid schema config lists every key.",
        ) from None


def _load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any]) -> Loaded:
    path = None if isinstance(source, Mapping) else Path(source)
    text = "" if path is None else read_text(path)
    plain, lines = (_copy(source), dict[str, int]()) if path is None else parse(path, text)
    _refuse_many(plain, "a mapping")
    origin = {key: _file_line(path, lines, key) for key in _leaf_keys(plain)}
    for key, value in overrides.items():
        _override(plain, key, value)
        origin = {old: where for old, where in origin.items() if not f"{old}.".startswith(f"{key}.")}
        origin[key] = COMMAND_LINE
    base_dir = path.parent if path is not None else Path()
    try:
        _refuse_unknown(plain, Config, "")
        config = _convert(plain)
        check(config, base_dir)
        config = _with_costs(config, base_dir, origin)
    except RuleBroken as broken:
        where = _where(path, lines, broken.key, origin)
        raise ConfigError(
            broken.what, where=where, state=broken.state, allowed=broken.allowed, hint=broken.hint
        ) from None
    for key in _leaf_keys(msgspec.to_builtins(config)):
        origin.setdefault(key, origin.get(key.rpartition(".")[0], DEFAULT))
    return Loaded(config, path, text, base_dir, origin)


def check_kinds(config: Mapping[str, Any], key: str, value: Any) -> None:
    """Raise RuleBroken for a dotted key that no configuration has, or a value of another type than it has.

    config: plain, and right; what its rules say of the value is not asked.
    """
    plain = _copy(config)
    try:
        _override(plain, key, value)
    except ConfigError as error:
        raise RuleBroken(key, value, state="no such key", allowed="a key of a configuration", hint=error.hint) from None
    _refuse_unknown(plain, Config, "")
    _convert(plain)


def key_lines(text: str) -> dict[str, int]:
    """Dotted key (`machine.smt`, `vm.0.guest`) -> line, from 1. Keys inside an inline table have the table's line."""
    lines: dict[str, int] = {}
    seen: dict[str, int] = {}
    prefix, depth, quote = "", 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if quote:
            quote = "" if quote in line else quote
            continue
        if depth > 0:
            depth += _bracket_depth(line)
            continue
        if header := _HEADER.fullmatch(line):
            prefix = _table_prefix(header[2], header[1] == "[[", seen)
            lines.setdefault(prefix.rstrip("."), number)
        elif key := _KEY.match(line):
            lines[prefix + _bare(key[1])] = number
            for mark in ('"""', "'''"):
                if key[2].strip().startswith(mark) and key[2].count(mark) == 1:
                    quote = mark
            depth = 0 if quote else max(0, _bracket_depth(key[2]))
    return lines


def read_text(path: Path) -> str:
    """Return a file of at most FILE_MAX_BYTES as text. Raise InputError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # waits for no writer of a fifo
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(
                    f"is {kind_of(found.st_mode)}", where=str(path), allowed="a regular file",
                    hint="Write the configuration to a file first.",
                )  # fmt: skip
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(FILE_MAX_BYTES + 1)
        finally:
            os.close(descriptor)
        if len(content) > FILE_MAX_BYTES:
            raise InputError(
                f"{format_size(max(found.st_size, len(content)))} is no configuration",
                where=str(path),
                allowed=f"at most {format_size(FILE_MAX_BYTES)}",
                hint="A recording is replayed with: asid replay FILE",
            )
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as bad:
        raise InputError(f"byte {bad.start} is not UTF-8", where=str(path), hint="TOML is UTF-8 text.") from None
    except OSError as failed:
        reason = (failed.strerror or str(failed)).lower()
        raise InputError(f"cannot be read: {reason}", where=str(path), hint=_like(path)) from None


def _like(path: Path) -> str:
    """What there is beside a file that is not there."""
    parent = path.parent
    names = sorted(entry.name for entry in parent.glob("*.toml")) if parent.is_dir() else []
    near = get_close_matches(path.name, names, 1)
    return f"Did you mean {parent / near[0]}?" if near else "Ready-made ones are in configs/."


def parse(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what a file of TOML (or, by its name, JSON) says, and the line of each dotted key. Raise ConfigError."""
    try:
        if path.suffix == ".json":
            plain = json.loads(text)
            if not isinstance(plain, dict):
                raise InputError("is a list or a value", where=str(path), allowed="a table of keys")
            _refuse_many(plain, str(path))
            return plain, {}
        plain = tomllib.loads(text)
        _refuse_many(plain, str(path))
        return plain, key_lines(text)
    except ValueError as bad:  # TOMLDecodeError and JSONDecodeError are both
        message = str(bad)
        found = re.search(r"\s*\(at line (\d+), column (\d+)\)", message)
        where = f"{path}:{found[1]}" if found else str(path)
        what = message[: found.start()] if found else message
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(
            f"not {kind}: {printable(what)}", where=where, hint='Values are 1, true, "text", [list].'
        ) from None


def _refuse_many(plain: Mapping[str, Any], where: str) -> None:
    """Refuse what no machine has before anything is done for each of them."""
    vms = plain.get("vm")
    if isinstance(vms, list | tuple) and len(vms) > VMS_MAX:
        raise ConfigError(
            f"vm: {len(vms):,} tables", where=where, allowed=f"at most {VMS_MAX}", hint="One [[vm]] may run on many."
        )


def _convert(plain: dict[str, Any]) -> Config:
    try:
        return msgspec.convert(plain, Config, strict=True)
    except msgspec.ValidationError as bad:
        found = _AT.fullmatch(str(bad))
        assert found is not None, "the pattern takes any text"
        key = ".".join(name or index for name, index in _STEP.findall(found[2] or ""))
        value, field = _look_up(plain, key), _field_of(key)
        missing = re.search(r"missing required field `(\w+)`", found[1])
        if missing:
            raise RuleBroken(f"{key}.{missing[1]}", "", state="missing", hint=f"Add {missing[1]} = ...") from None
        raise RuleBroken(key, value, allowed=_allowed(field, found[1]), hint=_hint(field, value)) from None


def _with_costs(config: Config, base_dir: Path, origin: dict[str, str]) -> Config:
    """The configuration with the rows of its file of costs, which was checked."""
    costs = with_file(config.costs, base_dir)
    for name in written(costs).keys() - written(config.costs).keys():
        origin[f"costs.{name}"] = str(base_dir / costs.file)
    return msgspec.structs.replace(config, costs=costs)


def _allowed(field: Any, message: str) -> str:
    """What the type of a field allows, in words; msgspec's own words when the type has none."""
    limits = ""
    while get_origin(field) is not None and hasattr(field, "__metadata__"):
        meta = field.__metadata__[0]
        if meta.ge is not None and meta.le is not None:
            limits = f" from {meta.ge} to {meta.le}"
        elif meta.gt is not None and meta.le is not None:
            limits = f" above {meta.gt}, up to {meta.le}"
        field = field.__origin__
    if get_origin(field) is Literal:
        choices = [str(choice) for choice in get_args(field)]
        return ", ".join(choices[:-1]) + " or " + choices[-1]
    if field in TYPE_WORDS:
        return TYPE_WORDS[field] + limits
    expected = re.match(r"Expected `(\w+)", message)
    return MSGSPEC_WORDS.get(expected[1], message) if expected else message


def _hint(field: Any, value: Any) -> str:
    if hasattr(field, "__metadata__"):
        field = field.__origin__
    if get_origin(field) is Literal and isinstance(value, str):
        near = get_close_matches(value, get_args(field), 1)
        return f"Did you mean {near[0]}?" if near else f"Try {get_args(field)[0]}."
    return "asid schema config lists every key."


def _refuse_unknown(value: Any, kind: Any, key: str) -> None:
    """Raise RuleBroken at the first key that the table does not have, with the one it resembles."""
    kind = _plain_type(kind)
    if isinstance(value, list | tuple) and get_origin(kind) is tuple:
        for index, item in enumerate(value):
            _refuse_unknown(item, get_args(kind)[0], f"{key}.{index}")
    if not isinstance(value, Mapping) or not _is_struct(kind):
        return
    fields = _fields(kind)
    for name, inner in value.items():
        inside = f"{key}.{name}" if key else name
        if name not in fields:
            near = get_close_matches(name, fields, 1, 0.5)
            raise RuleBroken(
                inside,
                inner if isinstance(inner, str | int | float) else "...",
                state="unknown key",
                allowed="one of " + ", ".join(fields),
                hint=f"Did you mean {near[0]}?" if near else "asid schema config lists every key.",
            )
        _refuse_unknown(inner, fields[name], inside)


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _plain_type(kind: Any) -> Any:
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind


def _field_of(key: str) -> Any:
    """The declared type of a dotted key, with its Meta."""
    kind: Any = Config
    for step in key.split("."):
        plain = _plain_type(kind)
        if get_origin(plain) is tuple:
            kind = get_args(plain)[0]
        elif _is_struct(plain):
            kind = _fields(plain).get(step)
    return kind


def _look_up(plain: Any, key: str) -> Any:
    for step in key.split(".") if key else ():
        plain = plain[int(step)] if isinstance(plain, list | tuple) else plain[step]
    return plain


def _item(step: str) -> int:
    """Return which item of a list is named. Raise ValueError for another word: `-1` is none."""
    if not (step.isascii() and step.isdigit()):
        raise ValueError(step)
    return int(step)


def _override(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the tables on the way; a list must be long enough."""
    *path, last = key.split(".")
    node: Any = plain
    try:
        for step in path:
            if step.isdigit() and not isinstance(node, list):
                raise TypeError("a number names an item of a list")
            node = node[_item(step)] if isinstance(node, list) else node.setdefault(step, {})
        node[_item(last) if isinstance(node, list) else last] = value
    except (IndexError, ValueError, TypeError, AttributeError):
        raise ConfigError(
            f"{key}: there is no such key to set", where=COMMAND_LINE, hint="asid config show lists every key."
        ) from None


def _copy(value: Any) -> Any:
    """Plain dicts and lists of the caller's mapping, so that an override changes ours alone."""
    if isinstance(value, Mapping):
        return {name: _copy(inner) for name, inner in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _leaf_keys(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaf_keys(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from _leaf_keys(inner, f"{key}.{index}")
    else:
        yield key


def _file_line(path: Path | None, lines: dict[str, int], key: str) -> str:
    """`FILE:LINE` of a key, or of the nearest table around it."""
    if path is None:
        return "mapping"
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{path}:{lines[key]}" if key in lines else str(path)


def _where(path: Path | None, lines: dict[str, int], key: str, origin: Mapping[str, str]) -> str:
    for given, where in origin.items():
        if where == COMMAND_LINE and f"{key}.".startswith(f"{given}."):
            return COMMAND_LINE
    return _file_line(path, lines, key) if path is not None else ""


def _table_prefix(header: str, is_list: bool, seen: dict[str, int]) -> str:
    """`vm` -> `vm.1.` for the second [[vm]]; a table under a list belongs to the list's last item."""
    prefix, steps = "", _bare(header).split(".")
    for number, step in enumerate(steps, start=1):
        prefix += step
        if is_list and number == len(steps):
            seen[prefix] = seen.get(prefix, -1) + 1
        if prefix in seen:
            prefix += f".{seen[prefix]}"
        prefix += "."
    return prefix


def _bare(key: str) -> str:
    return re.sub(r"[\s\"']", "", key)


def _bracket_depth(text: str) -> int:
    """Brackets opened and not closed on a line, strings and comments left out."""
    plain = _STRING.sub("", text).partition("#")[0]
    return sum((char in "[{") - (char in "]}") for char in plain)
