"""asid config: what a configuration means once defaults and overrides are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from asid.commands.session import Session, columns
from asid.config import load, resolved


@click.group()
def command() -> None:
    """Show and check configurations."""


@command.command(epilog="asid config show configs/smt2.toml --origin --set policy.name=none")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key (TOML or plain text).")
@click.pass_obj
def show(session: Session, file: Path | None, origin: bool, settings: tuple[str, ...]) -> None:
    """Print every key of FILE with its value; without FILE, the defaults."""
    from asid.guest.check import check_guests

    loaded = load(file if file is not None else {}, parse_settings(settings))
    check_guests(loaded)
    plain = resolved(loaded)
    rows = [(key, _as_toml(value), loaded.origin.get(key, "default")) for key, value in _flat(plain)]
    document: dict[str, Any] = {"file": str(file) if file else None, "config": plain}
    if origin:
        document["origin"] = {key: where for key, _, where in rows}
        session.show(document, lambda: columns(("KEY", "VALUE", "FROM"), rows))
    else:
        session.show(document, lambda: "\n".join(f"{key} = {value}" for key, value, _ in rows))


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """`policy.kick=send`, `machine.smt=4` -> overrides for asid.config.load; what is not TOML is text."""
    import tomllib

    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        overrides[key.strip()] = value
    return overrides


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and leaf values, in the order of the definition."""
    if isinstance(value, dict):
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{key}.{name}" if key else name)]
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return [pair for index, inner in enumerate(value) for pair in _flat(inner, f"{key}.{index}")]
    return [(key, value)]


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_as_toml(item) for item in value) + "]"
    return str(value)
