"""One configuration in both engines: what has to be the same, what may differ, and by how much.

Rule 1. A vCPU draws the same exits in both, for a seed decides them: of two lists of its leaves, one begins the other.
Rule 2. How far each gets in a time is up to the host live, and to the costs simulated. It is bounded, not equal.
Rule 3. Rates are so low that a live machine keeps up on a busy host. Beyond that it is the host that is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asid.config import load, resolved

if TYPE_CHECKING:
    from asid.core.record import Record

DURATION_NS: Final = 5_000_000_000
COUNTS: Final = ("exits", "leaves", "kicks", "turns")


class Tally(NamedTuple):
    """What happened in a run. leaves_of: by (core, hyperthread), each as (reason, object missed first)."""

    exits: int
    leaves: int
    kicks: int
    turns: int
    leaves_of: dict[tuple[int, int], tuple[tuple[str, str], ...]]


class Agreement(NamedTuple):
    """A configuration that is run in both engines. bounds: of live counts over simulated ones; kicks: over leaves."""

    name: str
    file: str
    overrides: Mapping[str, Any]
    bounds: Mapping[str, tuple[float, float]]


# Live, every exit, leave and kick costs its messages and switches in time that the guest loses: fewer in the same time,
# down to three fifths on a host with other work. Never more, but for what a run's edges cut off.
SIBLINGS: Final = {"exits": (0.6, 1.05), "leaves": (0.6, 1.08), "kicks": (0.8, 1.2), "turns": (1.0, 1.0)}
# Parked for the other VM's turn, a live guest's clock goes on and a simulated one's stands still: up to twice as many.
# Kicks that end a turn are counted too, and come with the clock: of more leaves they are fewer each.
TAKING_TURNS: Final = {"exits": (0.6, 2.1), "leaves": (0.6, 2.2), "kicks": (0.5, 1.6), "turns": (0.6, 1.6)}
_TURNS: Final = {"vm.0.guest.rate": "80/s", "vm.1.guest.rate": "80/s", "policy.turn": "50ms"}
_CALM: Final = {"inject": [], "policy.kick_deadline": "400ms", "vm.0.guest.rate": "40/s"}
AGREEMENTS: Final = (
    Agreement("smt2", "smt2.toml", _CALM, SIBLINGS),
    Agreement("smt4", "smt4.toml", _CALM, SIBLINGS),
    Agreement("two-vms", "two-vms.toml", _CALM | _TURNS, TAKING_TURNS),
)


def config_of(agreement: Agreement, configs: Path) -> dict[str, Any]:
    """Return the configuration as plain values, files absolute. configs: where its file is."""
    return resolved(load(configs / agreement.file, agreement.overrides))


def tally_of(records: Iterable[Record]) -> Tally:
    """Return what happened in a run."""
    exits = kicks = turns = 0
    leaves_of: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for record in records:
        if record.type == "exit":
            exits += record.data["n"]
        elif record.type == "gate.kick":
            kicks += 1
        elif record.type == "gate.turn":
            turns += 1
        elif record.type == "leave":
            place = (record.core, record.ht)
            leaves_of.setdefault(place, []).append((record.data["reason"], record.data.get("object", "")))
    leaves = sum(map(len, leaves_of.values()))
    return Tally(exits, leaves, kicks, turns, {place: tuple(found) for place, found in sorted(leaves_of.items())})


def ratios(live: Tally, simulated: Tally) -> dict[str, float]:
    """Return live over simulated: counts, and for kicks those of a leave."""
    found = {name: getattr(live, name) / max(1, getattr(simulated, name)) for name in COUNTS}
    found["kicks"] = live.kicks / max(1, live.leaves) / max(1e-9, simulated.kicks / max(1, simulated.leaves))
    return found


def differences(agreement: Agreement, live: Tally, simulated: Tally) -> list[str]:
    """Return in words what is not as it has to be; nothing when the engines agree."""
    found = []
    for place in sorted(live.leaves_of.keys() | simulated.leaves_of.keys()):
        pairs = zip(live.leaves_of.get(place, ()), simulated.leaves_of.get(place, ()), strict=False)
        for number, (one, other) in enumerate(pairs, start=1):
            if one != other:
                found.append(f"c{place[0]}h{place[1]}: leave {number} is for {one} live, and for {other} simulated")
                break
    for name, ratio in ratios(live, simulated).items():
        low, high = agreement.bounds[name]
        if not low <= ratio <= high:
            found.append(f"{name}: {ratio:.2f} times the simulated, where {low:g} to {high:g} is allowed")
    return found
