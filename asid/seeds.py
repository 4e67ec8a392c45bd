"""Many seeds of one configuration in virtual time: which of them break a promise, and the least that still does.

Rule 1. A seed decides the guests' draws and a plan of faults; nothing else differs between two seeds.
Rule 2. A run fails when a guarantee that its policy promises is broken, when the machine's own checks fail, or when
        somebody who lives makes no progress once nothing is injected any more.
Rule 3. A failing plan is made smaller one fault at a time for as long as it still fails the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import msgspec

from asid.audit import audit
from asid.audit.finding import BROKEN
from asid.core.hyperthread import Phase
from asid.errors import ProtocolFault
from asid.sim.costs import Costs
from asid.sim.faults import Plan, plan_of, tables_of
from asid.sim.machine import Played
from asid.simulating import load_for, machine_of

if TYPE_CHECKING:
    from asid.config import Loaded
    from asid.core.record import Record

WAITING: Final = (Phase.ASKING, Phase.ENTERING, Phase.HELD, Phase.LEAVING)
HEALED: Final = 0.75  # of the time: from here on whoever lives and has a vCPU has to get on


class Job(NamedTuple):
    """What is run. chosen: dotted keys of the configuration, but for the seed. faults: inject those of the seed too.
    tested: its policy must have passed `asid policy test`."""

    source: str | Path | Mapping[str, Any]
    chosen: dict[str, Any]
    costs: Costs
    duration_ns: int
    faults: bool = True
    tested: bool = True

    def loaded(self, seed: int | None = None, plan: Plan = ()) -> Loaded:
        """Return the configuration of a seed, with the faults of a plan. Raise as load_for does."""
        chosen = self.chosen if seed is None else {**self.chosen, "seed": seed}
        configured = load_for(self.source, chosen, tested=self.tested)
        if not plan:
            return configured
        inject, slow = tables_of(plan)
        own = msgspec.to_builtins(configured.config)
        faults = {"inject": [*own["inject"], *inject], "faults.slow": [*own["faults"]["slow"], *slow]}
        return load_for(self.source, {**chosen, **faults}, tested=self.tested)


class Failed(NamedTuple):
    """What a run broke. guarantee: "" for a fault of the machine's own, or for want of progress."""

    guarantee: str
    text: str


class Outcome(NamedTuple):
    """One run. digest: of its records."""

    seed: int
    digest: str
    exits: int
    failed: Failed | None


def plan_for(job: Job, seed: int) -> Plan:
    """Return the faults of a seed; none where none are asked for."""
    machine = job.loaded().config.machine
    return plan_of(seed, machine.cores, machine.smt, job.duration_ns) if job.faults else ()


def run(job: Job, seed: int, plan: Plan | None = None, *, judge: bool = True) -> Outcome:
    """Run one seed. plan: instead of its own. judge: look for what it broke; else only its own checks do. Raise as
    load_for and machine_of do."""
    played, failed = _played(job, seed, plan_for(job, seed) if plan is None else plan)
    exits = sum(record.data["n"] for record in played.records if record.type == "exit")
    return Outcome(seed, digest_of(played.records), exits, failed or (_judged(job, played) if judge else None))


def records_of(job: Job, seed: int) -> list[Record]:
    """Return the records of one seed."""
    return _played(job, seed, plan_for(job, seed))[0].records


def digest_of(records: Sequence[Record]) -> str:
    found = hashlib.sha256()
    for record in records:
        found.update(msgpack.packb(record))
    return found.hexdigest()[:16]


def shrink(job: Job, seed: int, failed: Failed, on_try: Callable[[int], None]) -> Plan:
    """Return the least of a seed's plan that still fails the same way. on_try(faults left): before each run."""
    plan = plan_for(job, seed)
    smaller = True
    while smaller:
        smaller = False
        for at in range(len(plan)):
            less = (*plan[:at], *plan[at + 1 :])
            on_try(len(less))
            again = run(job, seed, less).failed
            if again is not None and again.guarantee == failed.guarantee:
                plan, smaller = less, True
                break
    return plan


def _played(job: Job, seed: int, plan: Plan) -> tuple[Played, Failed | None]:
    machine = machine_of(job.loaded(seed, plan), job.costs)
    try:
        return machine.play(job.duration_ns), None
    except (AssertionError, ProtocolFault) as fault:
        return Played([], 0), Failed("", f"{type(fault).__name__}: {fault}")


def _judged(job: Job, played: Played) -> Failed | None:
    verdict = audit(played.records)
    for finding in verdict.findings:
        if finding.state == BROKEN and finding.broken > finding.allowed and finding.first is not None:
            return Failed(finding.guarantee, finding.first.text)
    healed_ns = int(job.duration_ns * HEALED)
    stuck = [
        f"c{each.core}h{each.ht} is {each.phase.name} since {each.since_ns:,} ns"
        for each in played.standing
        if each.phase in WAITING and each.since_ns < healed_ns
    ]
    return Failed("", "; ".join(stuck)) if stuck else None
