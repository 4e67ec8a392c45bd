"""One run of a sweep, wherever it is played: here, or by a worker on another machine."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import asid
from asid.audit import audit
from asid.errors import ProtocolFault, WireVersion
from asid.report.repeats import Sample, rows_of
from asid.report.variants import Variant
from asid.seeds import digest_of
from asid.sim.costs import Level, costs_of
from asid.simulating import load_for, machine_of

DONE: Final = "done"
REFUSED: Final = "refused"  # no machine can be like that; it was not run
FAULT: Final = "fault"  # the machine's own checks ended the run


class Job(NamedTuple):
    """One run. number: of its row. config: plain, files absolute. built: digest of the asid that began the sweep."""

    number: int
    config: dict[str, Any]
    kick: str
    seed: int
    level: Level
    duration_ns: int
    built: str


@cache
def built() -> str:
    """Return a digest of the sources of this asid: another one may play another run."""
    root = Path(asid.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def play(job: Job) -> dict[str, Any]:
    """Play a run and return its figures; of the columns of a row, those that are not the matrix's.

    Raise WireVersion where the sources of asid are others than those of the sweep; as load_for and machine_of do.
    """
    if built() != job.built:
        raise WireVersion(
            "a worker has another asid than the sweep", where="asid sweep", state=f"{built()} there, {job.built} here",
            allowed="the same sources everywhere", hint="Install the same asid on every worker, and start them again.",
        )  # fmt: skip
    machine = machine_of(load_for(job.config, {"seed": job.seed}), costs_of(job.level))
    try:
        played = machine.play(job.duration_ns)
    except (AssertionError, ProtocolFault) as fault:
        return {"status": FAULT, "words": f"{type(fault).__name__}: {fault}"[:2000]}
    verdict = audit(played.records).as_map()
    policy = job.config["policy"]["name"]
    return {"status": DONE, "digest": digest_of(played.records), **figures_of(policy, job.kick, job.seed, verdict)}


def figures_of(policy: str, kick: str, seed: int, verdict: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one run as `asid compare` and `asid assess` have them. verdict: as in verdict.json."""
    (row,) = rows_of([Sample(Variant(policy, kick), 1, verdict)], seed)
    figures, exposure = verdict["figures"], row["exposure"]
    leaks = row["leaks"] or {}
    return {
        "verdict": row["verdict"],
        "kept": row["kept"],
        "broken": ",".join(row["broken"]),
        "records": figures["records"],
        "exits": figures["exits"],
        "exits_per_s": row["exits_per_s"],
        "guest_percent": row["guest_percent"],
        "forced_idle_percent": row["forced_idle_percent"],
        "leaves": figures["leaves"]["count"],
        "kicks_per_s": row["kicks_per_s"],
        "full_percent": row["full_percent"],
        "gate_waits": figures["gate_waits"]["count"],
        "gate_wait_p50_ns": figures["gate_waits"]["p50_ns"],
        "gate_wait_p99_ns": figures["gate_waits"]["p99_ns"],
        "exposure_count": exposure["count"],
        "exposure_sum_ns": exposure["sum_ns"],
        "exposure_p99_ns": exposure["p99_ns"],
        "exposure_max_ns": exposure["max_ns"],
        "leaks_concurrent": leaks.get("concurrent"),
        "leaks_residual": leaks.get("residual"),
    }
