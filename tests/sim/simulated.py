"""Machines for the tests of the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asid.audit import Verdict, audit
from asid.config import load
from asid.core.policy import KICKS, POLICIES
from asid.core.record import Record
from asid.sim.costs import costs_of
from asid.simulating import machine_of

CONFIGS = Path(__file__).parent.parent.parent / "configs"
MS = 1_000_000
TYPICAL = costs_of("typical")
VARIANTS = sorted(
    (name, kick)
    for name, policy in POLICIES.items()
    for kick in ({"", *KICKS} & {"", *(kick.name.lower() for kick in policy.kicks)} if len(policy.kicks) > 1 else {""})
)  # (policy, kick), "" for the only one it has
IDLE_PAIR = {
    "name": "pair",
    "machine": {"cores": 1, "smt": 2},
    "vm": [{"name": "a", "on": ["c0h0", "c0h1"], "guest": {"source": "idle"}}],
}


def played(source: Any, duration_ns: int = 20 * MS, **overrides: Any) -> list[Record]:
    """Return the records of a configuration (a file of configs/, or a mapping). overrides: policy="none", and keys
    with a dot as `mce__mode`."""
    given = {}
    for key, value in overrides.items():
        named = {"policy": "policy.name", "kick": "policy.kick"}.get(key, key.replace("__", "."))
        given[named] = value
    loaded = load(CONFIGS / source if isinstance(source, str) else source, given)
    return machine_of(loaded, TYPICAL).play(duration_ns).records


def judged(records: list[Record]) -> Verdict:
    return audit(records)


def of(records: list[Record], kind: str, ht: int | None = None) -> list[Record]:
    return [record for record in records if record.type == kind and ht in (None, record.ht)]


def exit_at(us: int, target: str = "c0h0", **more: Any) -> dict[str, Any]:
    """Return an injection of one full exit."""
    return {"what": "exit", "target": target, "at": f"{us}us", "reason": "EPT_VIOLATION", **more}
