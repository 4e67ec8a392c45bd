"""What a sweep runs: every combination of its axes, in a fixed order, each checked before anything starts.

Rule 1. A policy that has one kick only, or kicks nobody, is the same run whatever kick is chosen: it is played once,
        under the kick in force (`bare`, `stun`), and the combinations that repeat it are left out and counted.
Rule 2. A combination that a configuration cannot be (a vCPU on a hyperthread that is not there, a kick that a policy
        has not) keeps its place: its rows say `refused`, and why.
Rule 3. A value that is refused wherever it stands is a mistake of the matrix, and nothing starts.

Axes vary in the order of the file, the last one fastest; then the costs; seeds fastest of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from asid.config import load, resolved
from asid.config_file import COMMAND_LINE
from asid.core.policy import POLICIES
from asid.errors import AsidError, ConfigError
from asid.policies import find, kick_in_force, require_known, require_tested, stamped
from asid.sim.costs import Level
from asid.simulating import check_simulated, load_for
from asid.sweep.matrix import Matrix, shown
from asid.sweep.play import Job, built

POLICY: Final = "policy.name"
KICK: Final = "policy.kick"


class Combination(NamedTuple):
    """One combination of the axes. values: by axis. kick: the one in force. config: plain, empty when refused, and
    then `words` say why. blamed: the axis key that is wrong by itself, or ""."""

    values: tuple[Any, ...]
    policy: str
    kick: str
    config: dict[str, Any]
    words: str = ""
    blamed: str = ""
    error: AsidError | None = None


class Place(NamedTuple):
    """What a row is of."""

    combination: Combination
    level: Level
    seed: int


@dataclass(frozen=True)
class Plan:
    """All of a sweep. left_out: runs that would repeat another one."""

    matrix: Matrix
    combinations: tuple[Combination, ...]
    left_out: int

    @property
    def runs(self) -> int:
        """How many rows there will be, those that are refused too."""
        return len(self.combinations) * self._each

    @property
    def refused(self) -> int:
        return sum(not combination.config for combination in self.combinations) * self._each

    @property
    def _each(self) -> int:
        return len(self.matrix.levels) * len(self.matrix.seeds)

    def place(self, number: int) -> Place:
        """Return what row `number` (from 0) is of."""
        at, rest = divmod(number, self._each)
        level, seed = divmod(rest, len(self.matrix.seeds))
        return Place(self.combinations[at], self.matrix.levels[level], self.matrix.seeds[seed])

    def jobs(self) -> Iterator[Job]:
        """Yield every run that is to be played, in order."""
        for number in range(self.runs):
            combination, level, seed = self.place(number)
            if combination.config:
                yield Job(number, combination.config, combination.kick, seed, level, self.matrix.duration_ns, built())

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of all that decides the rows: the matrix, its configuration, the files that this names, the
        policies of one's own, and asid itself."""
        files = sorted({name for each in self.combinations for name in _files_of(each.config)})
        own = sorted({each.policy for each in self.combinations if each.config and each.policy not in POLICIES})
        all_of_it = {
            "built": built(),
            "duration_ns": self.matrix.duration_ns,
            "levels": self.matrix.levels,
            "seeds": self.matrix.seeds,
            "axes": [axis.key for axis in self.matrix.axes],
            "combinations": [(each.values, each.kick, each.config, each.words) for each in self.combinations],
            "files": [(name, hashlib.sha256(Path(name).read_bytes()).hexdigest()) for name in files],
            "policies": [(name, stamped(name)) for name in own],
        }
        text = json.dumps(all_of_it, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def plan_of(matrix: Matrix, tell: Callable[[int, int], None]) -> Plan:
    """Check every combination. tell(done, total) is called before each. Raise ConfigError for a value that no
    combination allows, and where nothing is left to run; PolicyRefused or BadArgument for a policy not tested."""
    found: dict[tuple[Any, ...], Combination] = {}
    total = 1
    for axis in matrix.axes:
        total *= len(axis.values)
    keys = [axis.key for axis in matrix.axes]
    base_policy = load(matrix.config, matrix.fixed).config.policy.name
    _refuse_policies(matrix, base_policy)
    for done, values in enumerate(product(*(axis.values for axis in matrix.axes))):
        tell(done, total)
        chosen = dict(zip(keys, values, strict=True))
        own = _only_kick(chosen.get(POLICY, base_policy))
        if own and KICK in chosen:
            chosen[KICK] = own
            values = tuple(chosen[key] for key in keys)
        if values not in found:
            found[values] = _combination(matrix, chosen, own)
    combinations = tuple(found.values())
    _refuse_values(matrix, combinations)
    each = len(matrix.levels) * len(matrix.seeds)
    return Plan(matrix, combinations, (total - len(combinations)) * each)


def _refuse_policies(matrix: Matrix, base: str) -> None:
    """Raise for a policy that is none, or is not tested: before anything asks it, which imports it."""
    names = next((axis.values for axis in matrix.axes if axis.key == POLICY), (base,))
    for name in names:
        try:
            require_known(name)
        except ConfigError as error:
            raise _at(matrix, f"axes.{POLICY}", error) from None
        require_tested(name)


def _only_kick(policy: str) -> str:
    """Return the word for the kick of a policy that has no choice, else ""."""
    kicks = find(policy).kicks
    return kicks[0].name.lower() if len(kicks) == 1 else ""


def _combination(matrix: Matrix, chosen: dict[str, Any], own: str) -> Combination:
    """Check one combination as a run of it would be. own: the only kick of its policy."""
    values = tuple(chosen.values())
    given = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (*matrix.fixed.items(), *chosen.items())
    }
    if own:
        given.pop(KICK, None)
    try:
        loaded = load_for(matrix.config, given)
        check_simulated(loaded)
    except AsidError as error:
        blamed = next((key for key in chosen if error.what.startswith(f"{key} = ")), "")
        told = f"{error}. {error.hint}" if error.hint else str(error)
        policy, kick = str(chosen.get(POLICY, "")), str(chosen.get(KICK, ""))
        wrong = blamed if error.where == COMMAND_LINE else ""
        return Combination(values, policy, kick, {}, told.removeprefix(f"{COMMAND_LINE}: "), wrong, error)
    made = loaded.config.policy
    return Combination(values, made.name, kick_in_force(made.name, made.kick), resolved(loaded))


def _refuse_values(matrix: Matrix, combinations: tuple[Combination, ...]) -> None:
    """Raise ConfigError for a value that is wrong by itself wherever it stands, and where nothing can be run."""
    for at, axis in enumerate(matrix.axes):
        for value in axis.values:
            having = [each for each in combinations if each.values[at] == value]
            if having and all(each.blamed == axis.key for each in having) and having[0].error is not None:
                raise _at(matrix, f"axes.{axis.key}", having[0].error)
    if all(not each.config for each in combinations):
        first = combinations[0]
        raise ConfigError(
            "no combination can be run", where=matrix.where("axes"),
            state=f"of the first, {shown(first.values)}: {first.words}", allowed="one or more that can",
            hint="Change the axis that this names, or its configuration under [set].",
        )  # fmt: skip


def _at(matrix: Matrix, key: str, error: AsidError) -> ConfigError:
    return ConfigError(
        error.what, where=matrix.where(key), state=error.state, allowed=error.allowed,
        hint=error.hint or "asid schema config lists every key.",
    )  # fmt: skip


def _files_of(config: dict[str, Any]) -> Iterator[str]:
    """Yield the files that a configuration names, absolute as `resolved` writes them."""
    if config:
        named = [vm["guest"][key] for vm in config["vm"] for key in ("table", "file")]
        named += [config["space"]["kallsyms"], config["space"]["mapping"]]
        yield from (name for name in named if Path(name).is_absolute())
