"""A run in virtual time that leaves a run directory behind, as one of the live machine does.

Only the journal, the statistics and the verdict are made here; what happens is `asid.sim`. The run is in one process
and needs no instance: nothing of it can be asked while it goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asid.config_costs import written
from asid.errors import ConfigError, HostUnsuitable, InputError
from asid.judging import judge_run
from asid.live.journal import JournalWriter
from asid.live.rundir import RunDir, create_run
from asid.report.stat import StatFold
from asid.running import Run
from asid.script import PLAYED, Script, config_of
from asid.signals import ENDINGS
from asid.sim.costs import Costs, Level, costs_of, replaced
from asid.sim.machine import INTERRUPTED, Machine, OnProgress, nobody

if TYPE_CHECKING:
    from asid.config import Loaded
    from asid.core.policies.base import Policy
    from asid.core.record import Record
    from asid.drive import Outcome
    from asid.mm.isolated import Isolated
    from asid.sim.traced import TracedMachine

APPEND: Final = 4_096  # records written in one go
NEVER_NS: Final = 1 << 62  # a script ends by itself


def given(
    *, policy: str = "", kick: str = "", space: str = "", seed: int | None = None, costs_file: str = ""
) -> dict[str, Any]:
    """Return what was given on a command line as dotted keys of a configuration.

    costs_file: instead of the whole [costs] of the configuration, named from here.
    """
    from asid.config import mapping_given

    found = {
        "policy.name": policy, "policy.kick": kick, "seed": seed,
        "space.mapping": mapping_given(space) if space else "",
        "costs": {"file": str(Path(costs_file).absolute())} if costs_file else "",
    }  # fmt: skip
    return {key: value for key, value in found.items() if value not in ("", None)}


def load_for(config: str | Path | Mapping[str, Any], chosen: Mapping[str, Any], *, tested: bool = True) -> Loaded:
    """Read and check a configuration, its guests, mapping and policy, as a start of the live machine does.

    chosen: dotted keys, of `given`. tested: ask for a policy that has passed its test. Raise ConfigError, InputError or
    PolicyRefused.
    """
    from asid.config import load
    from asid.guest.check import check_guests
    from asid.policies import require_kick, require_tested
    from asid.space_build import check_mapping

    loaded = load(config, chosen)
    check_guests(loaded)
    check_mapping(loaded)
    if tested:
        require_tested(loaded.config.policy.name)
    require_kick(loaded.config.policy.name, chosen.get("policy.kick", ""))
    return loaded


def check_simulated(loaded: Loaded) -> None:
    """Raise ConfigError for a guest that the simulator cannot have."""
    for vm in loaded.config.real_vms:
        key = f"vm.{vm - 1}.guest.source"
        raise ConfigError(
            f'{key} = "kvm"',
            where=loaded.origin.get(key, "the simulator"),
            state="virtual time runs as fast as it is computed, and a real guest does not",
            allowed="idle, mix or trace in a simulation",
            hint='asid run CONFIG --engine live; or guest = { source = "mix", table = ... } with its exits.',
        )


def machine_of(loaded: Loaded, costs: Costs, *, runs: bool = True) -> Machine:
    """Return the simulated machine of a configuration. Raise ConfigError for what is not simulated.

    costs: those that [costs] of the configuration does not replace. runs: as `Machine` has it.
    """
    return Machine(loaded, costs_for(loaded, costs), *_parts_of(loaded), runs=runs)


def traced_machine(loaded: Loaded, costs: Costs) -> TracedMachine:
    """Return one that tells its steps. Raise as `machine_of` does."""
    from asid.sim.traced import TracedMachine

    return TracedMachine(loaded, costs_for(loaded, costs), *_parts_of(loaded))


def costs_for(loaded: Loaded, costs: Costs) -> Costs:
    """Return costs with those in their place that a configuration has of its own."""
    return replaced(costs, written(loaded.config.costs))


def _parts_of(loaded: Loaded) -> tuple[Policy, Mapping[str, str], Mapping[int, Isolated]]:
    """Return the policy of a machine, what is said of it, and the isolated space of each VM."""
    from asid import policies
    from asid.space_build import host_of, isolated_of, mapping_at_start

    check_simulated(loaded)
    policy, host = loaded.config.policy, host_of(loaded)
    isolated = {vm: isolated_of(host, vm, entries) for vm, entries in mapping_at_start(loaded).items()}
    return policies.make(policy.name, policy.kick), policies.said_of(policy.name, policy.kick), isolated


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
    Ended by ^C or another signal, the machine is stopped in order, judged, and the ending goes on.
    Raise ConfigError for what is not simulated, HostUnsuitable for a disk without room, and as create_run does.
    """
    config = loaded.config
    machine = machine_of(loaded, costs_of(level))  # refuses before anything is made
    repro = [
        "asid", "run", "CONFIG", "--engine", "sim", "--costs", level, "--seed", str(config.seed),
        "--duration", f"{duration_ns}ns", "--space", "SPACE",
    ]  # fmt: skip
    stream = machine.stream(duration_ns, on_progress, until_exhausted=until_exhausted)
    return _kept(loaded, machine, stream, repro, run_dir)


def play(
    scripts: Sequence[Script], name: str, level: Level = "typical", run_dir: Path | None = None
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Let a simulated machine play scripts, one a core, and judge the run. Return with the verdict what each core came
    to, as `drive.play` does of the live machine. Raise InputError when somebody ended it half way.
    """
    from asid.sim.directed import DirectedMachine

    loaded = load_for(config_of(scripts, name), {})
    machine = DirectedMachine(scripts, loaded, costs_of(level), *_parts_of(loaded))
    repro = ["asid", "replay", "SCHEDULE", "--engine", "sim", "--costs", level]
    outcome = _kept(loaded, machine, machine.stream(NEVER_NS), repro, run_dir)
    cores = machine.found
    if len(cores) != len(scripts):
        raise InputError("the play was ended half way", where=str(outcome.run.root), hint="Play it again.")
    RunDir(outcome.run.root).write_json(PLAYED, {"schema": "played/1", "cores": cores})
    return outcome, cores


def _kept(
    loaded: Loaded, machine: Machine, stream: Iterator[Record], repro: list[str], run_dir: Path | None
) -> Outcome:  # fmt: skip
    """Play to the end, keep the run, and judge it. repro: the command that makes the run again."""
    from asid.config import resolved
    from asid.drive import Outcome
    from asid.space_build import file_text, mapping_at_start

    config = loaded.config
    run = create_run(
        config.name, config_text=loaded.text or "", resolved=resolved(loaded), seed=config.seed, path=run_dir,
        mapping_text=file_text(loaded, mapping_at_start(loaded).values()), repro=repro,
    )  # fmt: skip
    with Ending(machine) as ending:
        _keep(run, stream)
        run.end(INTERRUPTED if machine.ended else "duration")
    outcome = Outcome(Run(run.path), judge_run(run.path))
    ending.go_on()
    return outcome


def measure(
    loaded: Loaded, *, duration_ns: int, level: Level = "typical", on_progress: OnProgress = nobody
) -> dict[str, Any]:
    """Play a configuration for `duration_ns` of virtual time, keep no run, and return its figures.

    on_progress, endings and errors: as `simulate` has them.
    """
    from asid.report.figured import as_map

    machine = machine_of(loaded, costs_of(level))
    with Ending(machine) as ending:
        measured = machine.measure(duration_ns, on_progress)
    ending.go_on()
    shape = loaded.config.machine
    return as_map(measured, [f"c{core}h{ht}" for core in range(shape.cores) for ht in range(shape.smt)])


class Ending:
    """While it is entered, the signals that end a process end the machine's play, in order: what was played is kept.

    The second one does what it does elsewhere. Not in a thread, which no signal comes to.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._before: dict[int, Any] = {}
        self._came = 0

    def __enter__(self) -> Ending:
        if threading.current_thread() is threading.main_thread():
            for number in ENDINGS:
                before = signal.getsignal(number)
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def go_on(self) -> None:
        """Let the signal that came, if any, do now what it would have done."""
        if self._came:
            signal.raise_signal(self._came)

    def _on_signal(self, number: int, _: object) -> None:
        self._came = number
        self._restore()
        self._machine.end()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def _keep(run: RunDir, records: Iterator[Record]) -> None:
    """Write journal and statistics as the records come. Raise HostUnsuitable when there is no room for them."""
    journal = JournalWriter(run.journal)
    stats = StatFold()
    counters = {"deaths": 0, "fences": 0, "respawns": 0}
    try:
        while batch := list(islice(records, APPEND)):
            if not journal.append(batch):
                raise HostUnsuitable(
                    "no room for the journal", where=str(run.path), state=str(journal.broken),
                    allowed="a file system with room for the whole run",
                    hint="remove old runs with asid runs rm, or pass --run-dir; asid audit says what is known",
                )  # fmt: skip
            for record in batch:
                stats.add(record)
                _count(counters, record)
    finally:
        journal.close()
    summed = stats.as_map()
    run.write_json(
        "stats.json",
        {"schema": "stats/1", **summed, "exposure": summed["totals"]["exposure"], "counters": counters},
    )


def _count(counters: dict[str, int], record: Record) -> None:
    if record.type == "death" and record.data["status"]:
        counters["deaths"] += 1
    elif record.type == "gate.fence":
        counters["fences"] += 1
    elif record.type == "spawn" and record.data["inc"] > 1:
        counters["respawns"] += 1
