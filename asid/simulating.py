"""A run in virtual time that leaves a run directory behind, as one of the live machine does.

Only the journal, the statistics and the verdict are made here; what happens is `asid.sim`. The run is in one process
and needs no instance: nothing of it can be asked while it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asid.judging import judge_run
from asid.live.journal import JournalWriter
from asid.live.rundir import RunDir, create_run
from asid.report.stat import StatFold
from asid.running import Run
from asid.sim.costs import Costs, Level, costs_of
from asid.sim.machine import Machine, OnProgress, nobody

if TYPE_CHECKING:
    from asid.config import Loaded
    from asid.core.record import Record
    from asid.drive import Outcome

APPEND: Final = 4_096  # records written in one go


def given(*, policy: str = "", kick: str = "", space: str = "", seed: int | None = None) -> dict[str, Any]:
    """Return what was given on a command line as dotted keys of a configuration."""
    from asid.config import mapping_given

    found = {
        "policy.name": policy, "policy.kick": kick, "space.mapping": mapping_given(space) if space else "", "seed": seed
    }  # fmt: skip
    return {key: value for key, value in found.items() if value not in ("", None)}


def load_for(config: str | Path | Mapping[str, Any], chosen: Mapping[str, Any]) -> Loaded:
    """Read and check a configuration, its guests, mapping and policy, as a start of the live machine does.

    chosen: dotted keys, of `given`. Raise ConfigError, InputError or PolicyRefused.
    """
    from asid.config import load
    from asid.guest.check import check_guests
    from asid.policies import require_kick, require_tested
    from asid.space_build import check_mapping

    loaded = load(config, chosen)
    check_guests(loaded)
    check_mapping(loaded)
    require_tested(loaded.config.policy.name)
    require_kick(loaded.config.policy.name, chosen.get("policy.kick", ""))
    return loaded


def machine_of(loaded: Loaded, costs: Costs) -> Machine:
    """Return the simulated machine of a configuration. Raise ConfigError for what is not simulated."""
    from asid import policies
    from asid.space_build import host_of, isolated_of, mapping_at_start

    policy, host = loaded.config.policy, host_of(loaded)
    isolated = {vm: isolated_of(host, vm, entries) for vm, entries in mapping_at_start(loaded).items()}
    said = policies.said_of(policy.name, policy.kick)
    return Machine(loaded, costs, policies.make(policy.name, policy.kick), said, isolated)


def simulate(
    loaded: Loaded,
    *,
    duration_ns: int,
    level: Level = "typical",
    run_dir: Path | None = None,
    on_progress: OnProgress = nobody,
    until_exhausted: bool = False,
) -> Outcome:
    """Play a configuration for `duration_ns` of virtual time, keep the run, and judge it.

    until_exhausted: end before, when every recording has. on_progress(done_ns, total_ns): a few times a second of
    virtual time, over all cores.
    Raise ConfigError for what is not simulated, and as create_run does.
    """
    from asid.config import resolved
    from asid.drive import Outcome
    from asid.space_build import file_text, mapping_at_start

    config = loaded.config
    machine = machine_of(loaded, costs_of(level))  # refuses before anything is made
    run = create_run(
        config.name, config_text=loaded.text or "", resolved=resolved(loaded), seed=config.seed, path=run_dir,
        mapping_text=file_text(loaded, mapping_at_start(loaded).values()),
        repro=["asid", "run", "CONFIG", "--engine", "sim", "--costs", level, "--seed", str(config.seed),
               "--duration", f"{duration_ns}ns", "--space", "SPACE"],
    )  # fmt: skip
    played = machine.play(duration_ns, on_progress, until_exhausted=until_exhausted)
    _keep(run, played.records)
    return Outcome(Run(run.path), judge_run(run.path))


def _keep(run: RunDir, records: list[Record]) -> None:
    """Write journal and statistics, and say that the run has ended."""
    journal = JournalWriter(run.journal)
    stats = StatFold()
    for at in range(0, len(records), APPEND):
        batch = records[at : at + APPEND]
        journal.append(batch)
        for record in batch:
            stats.add(record)
    journal.close()
    summed = stats.as_map()
    counters = {"deaths": 0, "fences": 0, "respawns": 0}
    for record in records:
        if record.type == "death" and record.data["status"]:
            counters["deaths"] += 1
        elif record.type == "gate.fence":
            counters["fences"] += 1
        elif record.type == "spawn" and record.data["inc"] > 1:
            counters["respawns"] += 1
    run.write_json(
        "stats.json",
        {"schema": "stats/1", **summed, "exposure": summed["totals"]["exposure"], "counters": counters},
    )
    run.end("duration")
