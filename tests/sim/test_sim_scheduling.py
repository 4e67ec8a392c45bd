"""Runs of the simulator as schedules: the explorer has every step, and a bug that a seed finds is shown again."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import pytest
from simulated import CONFIGS, IDLE_PAIR, MS, TYPICAL

from asid import scheduling
from asid.audit.finding import Violation
from asid.commands import invoke
from asid.core.gate import Ev
from asid.errors import EXIT_FAIL, HostUnsuitable, InputError
from asid.explore.parts import Model
from asid.failing import UNEXPLORED
from asid.scheduling import model_of, schedule_for, schedule_of
from asid.seeds import Job, plan_for
from asid.sim.traced import Happened, TracedMachine
from asid.simulating import traced_machine

NEVER = Violation(1 << 60, 0, (), (), "")
RUNS = (
    ("smt2.toml", {}),
    ("two-vms.toml", {"policy.kick": "send"}),
    ("smt4.toml", {"policy.kick": "rendezvous"}),
    ("smt4.toml", {"policy.name": "asi-stun"}),
    ("two-vms.toml", {"policy.name": "core-sched"}),
    ("smt4.toml", {"policy.name": "kick-except-idle"}),
    ("smt2.toml", {"policy.name": "asi", "policy.kick": "send", "apic.mode": "xapic"}),
    ("smt2.toml", {"policy.name": "asi-irqoff", "policy.nmi": "isolated"}),
)
MINE = """
from asid.core.events import Kick
from asid.core.policies.base import Policy


class QuietIrq(Policy):
    name = "quiet-irq"
    about = "an interrupt that hits a parked hyperthread goes to HOST and kicks nobody"
    irq_kick = Kick.BARE


class Deaf(Policy):
    name = "deaf"
    about = "handlers of NMI and #MC kick nobody, and nobody heeds them"
    guarded = False
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Policies of one's own, in a module beside the user, and a directory for what is kept."""
    (tmp_path / "of_my_own.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def asid(capsys):
    def once(*args: str) -> SimpleNamespace:
        code = invoke(list(args))
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return once


def traced(config: str, chosen: dict[str, str], seed: int) -> tuple[Model, list[Happened]]:
    """What happened on the first core of a seed's run before it was stopped, and a model of it."""
    job = Job(str(CONFIGS / config), chosen, TYPICAL, 16 * MS)
    loaded = job.loaded(seed, plan_for(job, seed))
    machine = traced_machine(loaded, job.costs)
    machine.play(job.duration_ns)
    trace = machine.trace(0)
    end = next(at for at, each in enumerate(trace) if each.decided is not None and each.decided.ev is Ev.STOP)
    return model_of(loaded.config, machine.policy, 0, trace[:end]), [*trace[:end]]


def test_a_run_that_the_explorer_has_not_is_refused_at_its_step():
    """The slice of a room was over before anybody waited for it: the explorer ends one only when somebody does."""
    model, trace = traced("smt2.toml", {"policy.name": "nosmt"}, 7)
    with pytest.raises(InputError, match="step 152 of the run: the run is no schedule: h0 takes order"):
        schedule_of(model, trace, "G8", NEVER)


def test_a_run_that_a_check_ends_when_ipis_arrive_at_once_is_refused(monkeypatch):
    """The run that is a schedule is another one than that of the seed, and may come to another end."""

    def play(self, duration_ns):
        raise AssertionError("c0h0: a promise of its own")

    monkeypatch.setattr(TracedMachine, "play", play)
    job = Job(str(CONFIGS / "smt2.toml"), {}, TYPICAL, 4 * MS)
    with pytest.raises(InputError, match="a check of the machine's own ends the run"):
        schedule_for(job, 1, (), "G2")


def test_a_run_that_is_broken_behind_more_steps_than_a_schedule_may_have_is_refused(monkeypatch):
    """Its first steps alone would show nothing, in no engine."""
    monkeypatch.setattr(scheduling, "STEPS_MAX", 50)
    model, trace = traced("smt2.toml", {}, 7)
    with pytest.raises(InputError, match="more than 50 steps until G8 is broken: no schedule"):
        schedule_of(model, trace, "G8", NEVER)


def replays(out: str) -> list[list[str]]:
    return [shlex.split(line, comments=True)[1:] for line in out.splitlines() if line.startswith("asid replay")]


@pytest.mark.parametrize(("config", "chosen"), RUNS)
def test_the_explorer_has_every_step_of_the_simulator(config, chosen):
    for seed in (4, 7):
        model, trace = traced(config, chosen, seed)
        made, explored = schedule_of(model, trace, "G8", NEVER)
        assert not explored
        assert len(made.steps) > len(trace) // 2


@pytest.mark.parametrize("policy", ["QuietIrq", "Deaf"])
def test_what_a_seed_finds_is_shown_again_by_the_commands_that_are_printed(mine, asid, policy):
    found = asid(
        "sim", str(CONFIGS / "two-vms.toml"), "--policy", f"of_my_own:{policy}", "--seeds", "1..6", "--jobs", "1"
    )
    assert found.code == EXIT_FAIL, found.out + found.err
    assert "G2" in found.out
    assert ("in HOST (bare)" in found.out) is (policy == "QuietIrq")  # told as it is: nobody granted it
    live, sim, *explore = replays(found.out)
    assert sim == [*live, "--engine", "sim"]
    again = asid(*sim)
    assert again.code == EXIT_FAIL, again.err
    assert "G2 is broken in virtual time, as the schedule says" in again.out
    again = asid(*live, "--engine", "explore")
    if UNEXPLORED in found.out:  # an IPI that must be sent was not, to somebody who was not in guest
        assert policy == "Deaf"
        assert (again.code, again.out.endswith("steps, and every guarantee holds.\n"), explore) == (0, True, [])
    else:
        assert (again.code, again.out.startswith("G2 is broken after ")) == (EXIT_FAIL, True)
        assert explore == [[*live, "--engine", "explore"]]


def test_the_file_may_be_named_and_the_document_tells_it(mine, asid):
    args = ("--policy", "of_my_own:QuietIrq", "--seeds", "6", "--schedule", "hit.json", "--save", "failing.json")
    found = asid("sim", str(CONFIGS / "two-vms.toml"), *args, "--json")
    failed = json.loads(found.out)["failed"]
    assert (failed["guarantee"], failed["schedule"], failed["no_schedule"]) == ("G2", "hit.json", "")
    assert len(json.loads((mine / "hit.json").read_text())["steps"]) == failed["steps"]
    assert [table["what"] for table in json.loads((mine / "failing.json").read_text())["inject"]] == ["irq"]
    said = asid("sim", str(CONFIGS / "two-vms.toml"), *args).out
    line = next(line for line in said.splitlines() if line.startswith("asid sim failing.json"))
    again = asid(*shlex.split(line)[1:])
    assert again.code == EXIT_FAIL
    assert "no fault at all" in again.out  # they are the configuration's own now


def test_only_a_broken_guarantee_is_a_schedule():
    with pytest.raises(InputError, match="no guarantee is broken"):
        schedule_for(Job(IDLE_PAIR, {}, TYPICAL, 5 * MS), 1, (), "")
    with pytest.raises(InputError, match="G2 is not broken when IPIs arrive at once"):
        schedule_for(Job(IDLE_PAIR, {}, TYPICAL, 5 * MS), 1, (), "G2")


def test_a_file_for_it_that_cannot_be_written_is_refused_before_the_seeds(mine, asid):
    refused = asid("sim", str(CONFIGS / "smt2.toml"), "--seeds", "1", "--schedule", "nowhere/hit.json")
    assert refused.code in (2, 4)
    assert "--schedule" in refused.err
    assert asid("sim", str(CONFIGS / "smt2.toml"), "--schedule", "hit.toml").code == 2


def test_a_finding_is_told_although_its_files_cannot_be_written(mine, asid, monkeypatch):
    def full(*_: object) -> None:
        raise HostUnsuitable("no room", where="/full")

    monkeypatch.setattr("asid.failing.saving.write", full)
    args = ("--policy", "of_my_own:QuietIrq", "--seeds", "6", "--schedule", "hit.json", "--save", "failing.json")
    found = asid("sim", str(CONFIGS / "two-vms.toml"), *args, "--json")
    assert found.code == EXIT_FAIL
    failed = json.loads(found.out)["failed"]
    assert (failed["guarantee"], failed["schedule"]) == ("G2", None)
    assert "no room" in failed["no_schedule"]
    assert "no room" in failed["unsaved"]
