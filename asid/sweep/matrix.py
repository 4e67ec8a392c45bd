"""The matrix of a sweep, as its file says it: a configuration, what is set in all runs, and the axes.

Types and keys are checked here, by the definitions that a configuration is checked by. Whether a value goes with the
others is for `asid.sweep.plan`, which tries every combination.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from asid.config import SEED_MAX, load, resolved
from asid.config_file import COMMAND_LINE, check_kinds, parse, read_text
from asid.config_rules import RuleBroken
from asid.errors import AsidError, ConfigError, InputError
from asid.sim.costs import LEVELS, Level
from asid.units import parse_duration_ns, parse_range

RUNS_MAX: Final = 250_000
KEYS: Final = ("config", "duration", "costs", "set", "axes")
KINDS: Final = {bool: "true or false", int: "whole numbers", float: "numbers", str: "text", list: "lists of text"}
EXAMPLE: Final = "See configs/matrices/kicks.toml."


@dataclass(frozen=True, slots=True)
class Axis:
    """A dotted key of the configuration and what it is to be. kind: of every value, one of KINDS."""

    key: str
    values: tuple[Any, ...]
    kind: type


@dataclass(frozen=True, slots=True)
class Matrix:
    """A sweep as its file says it. fixed: dotted keys of [set]. lines: dotted key of the file -> its line."""

    path: Path
    config: Path
    duration_ns: int
    levels: tuple[Level, ...]
    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    lines: Mapping[str, int]

    def where(self, key: str) -> str:
        """Return `FILE:LINE` of a key of the file."""
        return _where(self.path, self.lines, key)


def read(path: Path) -> Matrix:
    """Read and check a matrix and its configuration. Raise ConfigError, or InputError for a file that is none."""
    try:
        plain, lines = parse(path, read_text(path))
    except RecursionError:
        raise InputError(
            "nested too deeply", where=str(path), state="beyond what Python reads", allowed="two levels", hint=EXAMPLE
        ) from None
    return _Reader(path, plain, lines).matrix()


def _where(path: Path, lines: Mapping[str, int], key: str) -> str:
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{path}:{lines[key]}" if key else str(path)


class _Reader:
    """One file on its way to a Matrix."""

    def __init__(self, path: Path, plain: Mapping[str, Any], lines: Mapping[str, int]) -> None:
        self.path = path
        self.plain = plain
        self.lines = lines

    def refuse(self, key: str, what: str, *, state: str = "", allowed: str, hint: str = EXAMPLE) -> ConfigError:
        return ConfigError(what, where=_where(self.path, self.lines, key), state=state, allowed=allowed, hint=hint)

    def matrix(self) -> Matrix:
        for key in self.plain:
            if key not in KEYS:
                near = get_close_matches(key, KEYS, 1)
                hint = (
                    f"Did you mean {near[0]}?" if near else "A key of the configuration belongs under [set] or [axes]."
                )
                raise self.refuse(key, key, state="unknown key", allowed=f"one of {', '.join(KEYS)}", hint=hint)
        duration_ns = self._duration_ns()
        levels = self._levels()
        fixed, listed = self._table("set"), self._table("axes")
        if not listed:
            raise self.refuse("axes", "[axes]", state="empty", allowed="one axis or more", hint=EXAMPLE)
        if both := sorted(set(fixed) & set(listed)):
            raise self.refuse(
                f"set.{both[0]}", f"{both[0]} is under [set] and under [axes]", allowed="under one of them",
                hint="Remove it from [set].",
            )  # fmt: skip
        config = self.path.parent / self._text("config")
        base = self._base(config, fixed)
        seeds = self._seeds(listed.pop("seed")) if "seed" in listed else (int(base["seed"]),)
        axes = tuple(self._axis(key, values, base) for key, values in listed.items())
        matrix = Matrix(self.path, config, duration_ns, levels, fixed, axes, seeds, self.lines)
        runs = len(levels) * len(seeds)
        for axis in axes:
            runs *= len(axis.values)
        if runs > RUNS_MAX:
            raise self.refuse(
                "axes", f"{runs:,} runs", state="seeds and costs counted", allowed=f"at most {RUNS_MAX:,}",
                hint="Make two matrices of it, or take fewer seeds.",
            )  # fmt: skip
        return matrix

    def _text(self, key: str) -> str:
        found = self.plain.get(key)
        if not isinstance(found, str) or not found:
            state = "missing" if found is None else f"it is {found!r}"[:60]
            raise self.refuse(key, key, state=state, allowed='text in "quotes"')
        return found

    def _duration_ns(self) -> int:
        found = self._text("duration")
        try:
            duration_ns = parse_duration_ns(found, "duration")
        except ConfigError as error:
            raise self.refuse("duration", error.what, allowed=error.allowed, hint=error.hint) from None
        if not duration_ns:
            raise self.refuse("duration", f"duration = {found!r}", allowed="longer than 0", hint="Try 10ms.")
        return duration_ns

    def _levels(self) -> tuple[Level, ...]:
        found = self.plain.get("costs", "typical")
        chosen = found if isinstance(found, list) else [found]
        levels = tuple(level for each in chosen for level in LEVELS if level == each)
        if not chosen or len(levels) != len(chosen) or len(set(levels)) != len(levels):
            words = ", ".join(LEVELS)
            raise self.refuse(
                "costs", f"costs = {found!r}"[:80], allowed=f"one of {words}, or a list of some, each once",
                hint='Try "typical".',
            )  # fmt: skip
        return levels

    def _table(self, key: str) -> dict[str, Any]:
        found = self.plain.get(key, {})
        if not isinstance(found, Mapping):
            raise self.refuse(key, key, state=f"it is {found!r}"[:60], allowed="a table of dotted keys")
        flat: dict[str, Any] = {}
        for inner, value in _leaves(found):
            if inner in flat:
                raise self.refuse(f"{key}.{inner}", f"{inner} under [{key}]", state="twice", allowed="there once")
            flat[inner] = value
        return flat

    def _base(self, config: Path, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with what is set, as plain values."""
        plain = resolved(load(config))
        for key, value in fixed.items():
            self._check_kind(f"set.{key}", plain, key, value)
        try:
            return resolved(load(config, fixed))
        except AsidError as error:
            if error.where == COMMAND_LINE:  # it is what was set
                wrong = next((key for key in fixed if error.what.startswith(f"{key} = ")), "")
                raise self.refuse(
                    f"set.{wrong}", error.what, state=error.state, allowed=error.allowed, hint=error.hint or EXAMPLE
                ) from None
            raise

    def _check_kind(self, place: str, base: Mapping[str, Any], key: str, value: Any) -> None:
        try:
            check_kinds(base, key, value)
        except RuleBroken as broken:
            raise self.refuse(
                place, broken.what, state=broken.state, allowed=broken.allowed, hint=broken.hint or EXAMPLE
            ) from None

    def _axis(self, key: str, values: Any, base: Mapping[str, Any]) -> Axis:
        place = f"axes.{key}"
        if not isinstance(values, list) or not values:
            state = "it is empty" if values == [] else f"it is {values!r}"[:60]
            raise self.refuse(
                place, f"axis {key}", state=state, allowed="a list of one value or more", hint="Try [1, 2]."
            )
        kinds = {_kind_of(value) for value in values}
        if kinds == {int, float}:
            kinds, values = {float}, [float(value) for value in values]
        kind = next(iter(kinds))
        if kind is None or len(kinds) > 1:
            raise self.refuse(
                place, f"axis {key}", state=f"it is {values!r}"[:80], allowed=f"all {', or all '.join(KINDS.values())}",
                hint="A table is set key by key, as in \"vm.0.guest.rate\".",
            )  # fmt: skip
        for at, value in enumerate(values):
            if value in values[:at]:
                raise self.refuse(
                    place,
                    f"axis {key}",
                    state=f"{value!r} is there twice",
                    allowed="each value once",
                    hint="Remove one.",
                )
            self._check_kind(place, base, key, value)
        return Axis(key, tuple(tuple(value) if kind is list else value for value in values), kind)

    def _seeds(self, given: Any) -> tuple[int, ...]:
        if isinstance(given, str):
            try:
                low, high = parse_range(given, "seed", RUNS_MAX)
            except ConfigError as error:
                raise self.refuse("axes.seed", error.what, allowed=error.allowed, hint=error.hint) from None
            given = list(range(low, high + 1))
        seeds = tuple(given) if isinstance(given, list) else (given,)
        right = all(_kind_of(seed) is int and 0 <= seed <= SEED_MAX for seed in seeds)
        if not seeds or not right or len(set(seeds)) != len(seeds):
            raise self.refuse(
                "axes.seed", "axis seed", state=f"it is {given!r}"[:60],
                allowed=f'a range as in "1..20", or a list of whole numbers from 0 to {SEED_MAX}, each once',
                hint='Try "1..20".',
            )  # fmt: skip
        return seeds


def _kind_of(value: Any) -> type | None:
    """Return which of KINDS a value is, None for none of them."""
    if isinstance(value, list):
        return list if all(isinstance(item, str) for item in value) else None
    return type(value) if type(value) in KINDS and value == value else None


def _leaves(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value), whether the table was written with quoted keys or with bare ones."""
    for key, value in table.items():
        inside = f"{above}.{key}" if above else key
        if isinstance(value, Mapping):
            yield from _leaves(value, inside)
        else:
            yield inside, value


def shown(values: Sequence[Any]) -> str:
    """Return values of one combination as a reader sees them."""
    return " ".join(",".join(value) if isinstance(value, tuple) else str(value) for value in values)
