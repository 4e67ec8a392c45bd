"""The file that a daemon starts from, when its configuration was given as a map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


def config_file(config: str | Path | Mapping[str, Any], root: Path) -> Path:
    """Return the file to start from. A map is written into `root` as TOML, with absolute names of files: it is going to
    lie elsewhere than where they were counted from."""
    if not isinstance(config, Mapping):
        return Path(config).absolute()
    path = root / "config.toml"
    rooted = {**config, "vm": [_rooted(vm) for vm in config.get("vm", [])]}
    if "space" in config:
        rooted["space"] = _rooted_space(config["space"])
    if config.get("costs", {}).get("file"):
        rooted["costs"] = {**config["costs"], "file": str(Path(config["costs"]["file"]).absolute())}
    path.write_text(_toml(rooted))
    return path


def _rooted(vm: Mapping[str, Any]) -> dict[str, Any]:
    """Return a VM whose guest's files have absolute names."""
    guest = dict(vm.get("guest", {}))
    guest |= {name: str(Path(guest[name]).absolute()) for name in ("table", "file") if guest.get(name)}
    return {**vm, "guest": guest}


def _rooted_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the address spaces' table with absolute names of its files."""
    from asid.config import mapping_given

    rooted = {**space, "mapping": mapping_given(space.get("mapping", ""))}
    rooted["kallsyms"] = str(Path(space["kallsyms"]).absolute()) if space.get("kallsyms") else ""
    return {name: value for name, value in rooted.items() if value != ""}


def _toml(table: Mapping[str, Any]) -> str:
    """Return a map as TOML, on one level: nested tables and lists of tables inline."""
    return "".join(f"{name} = {_toml_value(value)}\n" for name, value in table.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(inner) for inner in value) + "]"
    return msgspec.json.encode(value).decode()  # text, integers, floats and booleans are written alike in both
