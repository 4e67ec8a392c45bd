"""A policy on trial: what is asked of it, what is searched and walked, and what it is held to."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from asid import policies
from asid.commands import invoke
from asid.core import gate
from asid.core.events import Kick
from asid.core.policies.asi import Asi
from asid.core.policies.base import Policy
from asid.core.policies.kick_every_exit import KickEveryExit
from asid.core.policies.kick_except_idle import KickExceptIdle
from asid.core.policies.nosmt import NoSmt
from asid.core.policy import NAMES, POLICIES
from asid.errors import EXIT_FAIL, EXIT_REFUSED, EXIT_USAGE, BadArgument, ConfigError, InputError, PolicyRefused
from asid.explore.checks import Checks
from asid.explore.matrix import unpromised
from asid.explore.models import of_policy
from asid.explore.parts import Budget
from asid.explore.policy_test import decides, explored, trials, walked
from asid.explore.walk import walk
from asid.explore.world import World

ROOT = Path(__file__).parents[2]
OWN = """
from asid.core.events import Kick
from asid.core.policies.asi import Asi

class Mine(Asi):
    name = "mine"
    about = "asi with one kick"
    kicks = (Kick.ACK,)
    {more}

class NoPolicy:
    pass
"""


class Deaf(Asi):
    name, about = "deaf", "heeds nobody"
    guarded = False


class Careless(Asi):
    name, about = "careless", "never flushes"
    flush = False


class Shared(Asi):
    name, about = "shared", "tells its gate that HOST may be beside a guest"

    def gate_spec(self):
        return replace(super().gate_spec(), host_alone=False)


class Forgetful(Asi):
    name, about = "forgetful", "tells its hyperthreads to flush nothing"

    def hyperthread_spec(self, ht, siblings, **rest):
        return replace(super().hyperthread_spec(ht, siblings, **rest), flush=False)


class Uneven(Asi):
    """Tells hyperthread 3 to heed nobody."""

    def hyperthread_spec(self, ht, siblings, **rest):
        return replace(super().hyperthread_spec(ht, siblings, **rest), guarded=ht != 3)


class Short(Asi):
    """Tells hyperthreads of one sibling only."""

    def hyperthread_spec(self, ht, siblings, **rest):
        return super().hyperthread_spec(ht, siblings[:1], **rest)


class Fickle(Asi):
    """Tells every other gate that HOST may be beside a guest."""

    asked: ClassVar[list[int]] = []

    def gate_spec(self):
        self.asked.append(1)
        return replace(super().gate_spec(), host_alone=len(self.asked) % 2 == 1)


class Scattered(Asi):
    """Has gates that admit one by one although all are to meet."""

    def gate_spec(self):
        return replace(super().gate_spec(), together=False)


class Undecided(Asi):
    name = "undecided"
    kicks = (Kick.BARE, Kick.ACK)


class Lenient(Asi):
    """Promises nothing."""

    @classmethod
    def unpromised(cls):
        return frozenset({"G2", "G9"})


class Hidden(Asi):
    """Has the audit look for what another policy promises."""

    @classmethod
    def like(cls):
        return "none"


class Selective(KickEveryExit):
    """Handles isolated what can be."""

    def needs_full(self, full, reason=""):
        return full


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module with a policy of the user's own, and return how to change it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(more: str = "") -> str:
        (tmp_path / "own_policy.py").write_text(OWN.format(more=more))
        return "own_policy:Mine"

    yield write
    sys.modules.pop("own_policy", None)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_decides_alike_twice_and_is_like_itself_or_asi(name):
    assert decides(POLICIES[name]).passed
    assert POLICIES[name].like() == {"kick-every-exit": "asi", "asi-irqoff": "asi"}.get(name, name)


def test_an_exit_that_needs_the_host_must_not_be_handled_without():
    class Wrong(Asi):
        def needs_full(self, full: bool, reason: str = "") -> bool:
            return full and reason != "HLT"

    assert decides(Wrong).says == "HLT needs the full address space, and is handled without it"

    class Moody(Asi):
        answers = iter([True, False] * 500)

        def needs_full(self, full: bool, reason: str = "") -> bool:
            return next(self.answers)

    assert "then False" in decides(Moody).says


@pytest.mark.parametrize(("policy", "guarantee"), [(Deaf, "G2"), (Careless, "G9"), (Shared, "G5"), (Forgetful, "G9")])
def test_one_that_breaks_what_it_promises_is_told_how(policy, guarantee):
    made = policy(Kick.ACK)
    trial = explored(made, "an NMI", of_policy(made, budget=Budget(nmi=1)))
    assert not trial.passed
    assert trial.story.startswith(f"{guarantee} is broken after")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Uneven, "Uneven.hyperthread_spec(): what is tried of it would not be what runs (h3 of 4: guarded False): must "
         "be guarded True, as for every hyperthread. Say what differs by attributes"),
        (Short, "(h0 of 4: siblings (1,)): must be siblings (1, 2, 3)"),
        (Fickle, "must be a gate.Spec, the same at each asking"),
        (Scattered, "(together False with kick rendezvous)"),
        (Undecided, "Undecided.kicks: what is tried of it would not be what runs (bare, ack): must be bare alone"),
        (Lenient, "Lenient.unpromised(): "),
        (Hidden, "Hidden.like(): "),
    ],
)  # fmt: skip
def test_one_that_would_not_run_as_it_is_explored_is_no_policy(policy, says):
    trial = decides(policy)
    assert not trial.passed and says in trial.says


def test_what_is_explored_is_what_runs():
    """The model has the fast exits, the rooms and the patience that the policy's methods say, not its attributes."""

    class Patient(NoSmt):
        def gate_spec(self):
            return gate.Spec(gate.Rooms.VM, overtakes_max=3)

    assert not of_policy(KickEveryExit(Kick.ACK)).fast_exits and of_policy(Selective(Kick.ACK)).fast_exits
    world = World(of_policy(Patient(Kick.BARE)))
    assert world.gate_spec == Patient(Kick.BARE).gate_spec()


@pytest.mark.parametrize("name", NAMES)
def test_the_worlds_of_every_policy_have_the_specs_of_the_live_machine(name):
    for kick in POLICIES[name].kicks:
        policy = POLICIES[name](kick)
        world = World(of_policy(policy, (1, 1, 2, 2)))
        assert world.gate_spec == policy.gate_spec()
        assert world.specs == tuple(policy.hyperthread_spec(spec.ht, spec.siblings) for spec in world.specs)


def test_what_a_policy_of_asid_does_not_promise_is_not_asked_of_it():
    assert unpromised(POLICIES["core-sched"]) == {"G2", "G9"}
    assert unpromised(POLICIES["nosmt"]) == frozenset()
    assert "G11" in unpromised(POLICIES["none"])
    made = POLICIES["core-sched"](Kick.BARE)
    assert explored(made, "one VM", of_policy(made)).passed


def test_nosmt_kicks_the_guest_beside_a_parked_sibling_that_takes_an_interrupt():
    made = POLICIES["nosmt"](Kick.BARE)
    assert explored(made, "an interrupt", of_policy(made, budget=Budget(irq=1))).passed


def test_walks_are_the_same_for_a_seed_and_find_what_is_broken():
    world = World(of_policy(POLICIES["core-sched"](Kick.BARE)))
    checks = Checks(world)
    seed = next(seed for seed in range(1, 100) if walk(world, seed, steps=300, checks=checks) is not None)
    found = walk(World(world.model), seed, steps=300)
    assert found is not None and found.guarantee in ("G2", "G9")
    again = walk(world, seed, steps=300, checks=checks)
    assert again is not None and (again.sentence, len(again.moves)) == (found.sentence, len(found.moves))


def test_walks_of_four_siblings_hold():
    assert walked(POLICIES["asi"](Kick.RENDEZVOUS), "four", range(1, 4)).passed


def test_a_policy_of_ones_own_is_loaded_tested_and_then_let_in(mine, capsys):
    name = mine()
    found = policies.find(name)
    assert issubclass(found, Policy) and policies.make(name, "send").kick is Kick.ACK, "it has a kick of its own"
    assert policies.said_of(name, "send") == {"kick": "ack", "like": "asi", "ways": "grant"}
    with pytest.raises(PolicyRefused, match="has not been tested") as refused:
        policies.require_tested(name)
    assert refused.value.hint == f"asid policy test {name}"
    policies.mark_tested(name)
    policies.require_tested(name)
    mine("flush = False")
    with pytest.raises(PolicyRefused, match="has not been tested"):
        policies.require_tested(name)


def test_what_it_decides_is_tested_wherever_that_comes_from(mine, monkeypatch):
    monkeypatch.setenv("OF_MINE", "yes")
    name = mine("flush = __import__('os').environ['OF_MINE'] == 'yes'")
    policies.mark_tested(name)
    policies.require_tested(name)
    monkeypatch.setenv("OF_MINE", "no")
    sys.modules.pop("own_policy")
    with pytest.raises(PolicyRefused, match="has not been tested"):
        policies.require_tested(name)


def test_the_kick_that_is_said_is_the_one_in_force():
    said = {name: policies.said_of(name, "send")["kick"] for name in ("none", "nosmt", "core-sched", "asi", "asi-stun")}
    assert said == {"none": "bare", "nosmt": "bare", "core-sched": "bare", "asi": "send", "asi-stun": "stun"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["explore", "--policy", "core-sched", "--kick", "send"], "--kick: policy 'core-sched' has no kick send"),
        (["explore", "--policy", "asi", "--kick", "bare"], "must be one of ack, send, rendezvous, stun"),
        (["run", "--policy", "asi-stun", "--kick", "ack"], "policy 'asi-stun' has no kick ack: must be one of stun"),
        (["up", "--policy", "none", "--kick", "ack", "--detach"], "(nobody is kicked under it): must be one of bare"),
        (["up", "--policy", "none", "--kick", "ack"], "policy.kick: policy 'none' has no kick ack"),
        (["replay", "PERF", "--duration", "1s", "--policy", "nosmt", "--kick", "ack"], "--kick: policy 'nosmt'"),
    ],
)
def test_a_kick_that_the_policy_has_not_is_refused(args, says, capsys, tmp_path):
    (tmp_path / "table.txt").write_text("")
    args = [str(tmp_path / "table.txt") if arg == "PERF" else arg for arg in args]
    config = [str(ROOT / "configs/smt2.toml")] if args[0] == "run" else []
    assert invoke([*args[:1], *config, *args[1:]]) == EXIT_USAGE
    assert says in capsys.readouterr().err


def test_a_model_of_ones_own_is_not_of_such_a_policy(mine, capsys):
    name = mine("def gate_spec(self): return None")
    assert invoke(["explore", "--policy", name]) == EXIT_REFUSED
    assert "Mine.gate_spec(): what is tried of it would not be what runs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_verb_passes_one_and_marks_it(mine, capsys):
    name = mine()
    assert invoke(["policy", "test", name, "--seeds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and document["like"] == "asi" and len(document["trials"]) == 7
    policies.require_tested(name)


def test_the_verb_fails_one_with_a_story(mine, capsys):
    name = mine("flush = False")
    assert invoke(["policy", "test", name]) == 1
    out = capsys.readouterr().out
    assert "G9 is broken after" in out
    with pytest.raises(PolicyRefused):
        policies.require_tested(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [("asj", "one of"), ("no_such_module:X", "cannot be loaded"), ("own_policy:NoPolicy", "is no policy"),
     ("own_policy:Nobody", "cannot be loaded")],
)  # fmt: skip
def test_what_is_no_policy_is_refused(mine, name, says):
    mine()
    with pytest.raises(ConfigError, match=says):
        policies.find(name)


def test_no_machine_starts_in_the_foreground_with_one_that_nobody_tested(mine, capsys):
    assert invoke(["up", "--policy", mine(), "--instance", "untested"]) == EXIT_REFUSED
    assert "has not been tested" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["run"], ["compare", "--policies"], ["replay", "--kick", "ack", "--policy"]])
def test_a_module_that_nobody_tested_is_not_imported(mine, capsys, tmp_path, verb):
    name = mine("open('imported', 'x')")
    table = str(ROOT / "tests/data/tables/perf_2012_two_tables.txt")
    file = table if verb[0] == "replay" else str(ROOT / "configs/smt2.toml")
    options = verb[1:] or ["--policy"]
    assert invoke([verb[0], file, *options, name]) == EXIT_REFUSED
    assert f"policy '{name}' has not been tested" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists() and "own_policy" not in sys.modules


ENDS = "raise SystemExit(0)"
TWO_ARGUMENTS = "def needs_full(self): return True"


@pytest.mark.parametrize("command", [["policy", "test"], ["explore", "--policy"]])
def test_a_module_that_ends_the_process_is_no_policy_and_no_pass(mine, capsys, command):
    assert invoke([*command, mine(ENDS), "--json"]) == EXIT_USAGE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["what"] == "policy 'own_policy:Mine' cannot be loaded: SystemExit: 0"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("def needs_full(self, full, reason=''): raise SystemExit(0)", "SystemExit: 0, own_policy.py:9 in needs_full"),
        ("def needs_full(self, full, reason=''): raise RuntimeError('boom')", "RuntimeError: boom, own_policy.py:9"),
        (TWO_ARGUMENTS, "takes 1 positional argument but 3 were given"),
        ("def __init__(self, kick): raise ValueError('no')", "ValueError: no, own_policy.py:9 in __init__"),
        ("kicks = 7", "Mine: kicks: policy 'own_policy:Mine' has not the form of one (7): must be a tuple of one or"),
        ("rooms = 'VM'", "Mine: rooms: policy 'own_policy:Mine' has not the form of one ('VM'): must be an asid.core"),
        ("flush = 0", "Mine: flush: policy 'own_policy:Mine' has not the form of one (0): must be True or False"),
        ("idle_kick = 'ack'", "must be an asid.core.events.Kick, or None"),
    ],
)  # fmt: skip
def test_one_that_cannot_be_asked_fails_its_test_and_is_refused_elsewhere(mine, capsys, more, says):
    name = mine(more)
    assert invoke(["policy", "test", name, "--json"]) == EXIT_FAIL
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"] and len(document["trials"]) == 1 and says in document["trials"][0]["says"]
    assert invoke(["explore", "--siblings", "2", "--policy", name]) == EXIT_REFUSED
    err = capsys.readouterr().err
    assert f"policy '{name}'" in err and says in err


def test_what_is_not_there_to_be_tested_is_no_argument():
    with pytest.raises(BadArgument, match="no policy 'assi': must be one of none") as refused:
        policies.require_tested("assi")
    assert refused.value.hint == "Did you mean asi?"


def test_a_pass_that_cannot_be_written_down_is_said(mine, monkeypatch, tmp_path):
    name = mine()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="has passed cannot be written down"):
        policies.mark_tested(name)


def test_what_excuses_an_exit_for_idling_excuses_no_other():
    class Unflushed(KickExceptIdle):
        flush = False

    first = next(trial for trial in trials(Unflushed, range(1, 2)) if not trial.passed)
    assert first.what == "ack, one VM, nobody idles" and first.story.startswith("G9 is broken after")


def test_trials_end_with_the_walks_of_each_kick():
    names = [trial.what for trial in trials(POLICIES["asi-stun"], range(1, 2))]
    assert names[0] == "decisions" and names[-1] == "stun, four siblings" and len(names) == 7
