"""Scripts played in virtual time: the simulator goes where the explorer went, step by step, also into a violation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from walks import walk_script

from asid import simulating
from asid.commands import invoke
from asid.core.policy import make_policy
from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_USAGE
from asid.explore import schedule
from asid.explore import script as scripts
from asid.explore.models import build, of_policy
from asid.explore.parts import Arrivals
from asid.explore.script import script_of
from asid.explore.search import search
from asid.script import Script

STEPS = 80
WALKS = (
    "n2v1", "n2v2-halts", "n2v1-nmi-mce", "n2v1-nmi-torn", "n3v1", "n2v1-hotplug", "n2v1-hold", "n2v2-timers",
    "n2v1-loss", "n2v1-irq", "n2v2-flush", "n2v1-nmi-mce-send", "n2v1-halts-send", "n3v2-send", "n2v1-irq-nmi-send",
    "n2v1-rendezvous", "n3v1-rendezvous", "n2v1-torn-nmi-full-rendezvous", "n2v1-stun", "n2v1-nmi-stun",
    "n2v1-nmi-send-xapic", "n3v1-nmi-send-xapic", "n2v1-kill", "n2v1-unplug", "n2v1-coordinator-kill",
    "n2v1-nmi-coordinator-kill", "n2v1-coordinator-hotplug", "n2v1-coordinator-loss-birth",
)  # fmt: skip
BARE = of_policy(make_policy("none", "ack"), taints=False, halts=False, fast_exits=True)


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def hit(tmp_path, policy: str):
    """The shortest counterexample of a policy, as a file."""
    found = search(of_policy(make_policy(policy, "ack"), taints=False))
    file = tmp_path / "hit.json"
    file.write_text(json.dumps(schedule.as_document(schedule.scheduled(found.world, found.violation))))
    return file


def changed(script: Script, text: str, **changes) -> Script:
    at = next(at for at, step in enumerate(script.steps) if step.text == text)
    step = msgspec.structs.replace(script.steps[at], **changes)
    return msgspec.structs.replace(script, steps=(*script.steps[:at], step, *script.steps[at + 1 :]))


@pytest.mark.parametrize("name", WALKS)
def test_the_simulator_follows_the_explorer(name):
    """Random walks: after each step the words are the explorer's, and the audit finds the protocol kept."""
    for seed in range(1, 6):
        script = walk_script(build(name), seed, STEPS)
        outcome, (core,) = simulating.play([script], "walk")
        assert "astray" not in core, (seed, core)
        assert core["steps"] == core["of"] == script.length
        broken = {word: found for word, found in outcome.verdict["guarantees"].items() if found["state"] == "broken"}
        assert broken == {}, seed


def test_who_tells_its_state_to_a_new_coordinator_by_another_report_has_told_it():
    """Its own report of it was lost, and it asks for HOST: that tells its whole state as well. It was none for G11."""
    script = walk_script(build("n2v1-coordinator-loss-birth"), 10, 70)
    assert "gate never gets report h1 is ready" in [step.text for step in script.steps]
    outcome, _ = simulating.play([script], "walk")
    assert outcome.verdict["guarantees"]["G11"]["state"] == "held"
    resyncs = [record for record in outcome.run.records() if record.type == "gate.resync"]
    assert sorted({record.ht for record in resyncs}) == [0, 1]


@pytest.mark.parametrize(("policy", "steps"), [("none", 16), ("core-sched", 18), ("kick-except-idle", 18)])
def test_a_counterexample_is_replayed_in_virtual_time(tmp_path, capsys, policy, steps):
    assert invoke(["replay", str(hit(tmp_path, policy)), "--engine", "sim"]) == EXIT_FAIL
    said = capsys.readouterr()
    assert f"a schedule of {steps} steps: G2, h1 may run guest instructions beside h0 in HOST" in said.err
    assert f"{steps} of {steps} steps" in said.out
    assert "c0: h1 is in GUEST of vm1, its pending bit clear, beside h0 in HOST" in said.out
    assert "G2 is broken in virtual time, as the schedule says" in said.out


def test_costs_decide_the_stamps_and_nothing_else(tmp_path, capsys):
    ends, kinds = [], []
    for costs in ("low", "high"):
        assert (
            invoke(["replay", str(hit(tmp_path, "none")), "--engine", "sim", "--costs", costs, "--json"]) == EXIT_FAIL
        )
        document = json.loads(capsys.readouterr().out)
        records = list(simulating.Run(Path(document["run_dir"])).records())
        mark = next(at for at, record in enumerate(records) if record.type == "mark")
        ends.append(records[mark].ts)
        kinds.append([(record.type, record.ht) for record in records[:mark]])
    assert ends[0] < ends[1]
    assert kinds[0] == kinds[1]


def test_a_circle_is_gone_round_until_the_wait_is_too_long(tmp_path):
    found = search(replace(build("n2v1"), arrivals=Arrivals.ANY))
    outcome, (core,) = simulating.play([script_of(found.world, found.violation)], "circle")
    assert "astray" not in core
    assert outcome.verdict["guarantees"]["L2"]["state"] == "broken"


def test_a_schedule_in_which_nothing_is_broken_passes(tmp_path, capsys):
    file = hit(tmp_path, "none")
    document = json.loads(file.read_text())
    document |= {"steps": document["steps"][:7], "expect": {"guarantee": "", "sentence": ""}}
    file.write_text(json.dumps(document))
    assert invoke(["replay", str(file), "--engine", "sim", "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "PASS"
    assert [ht["mode"] for ht in told["schedule"]["hts"]] == ["GUEST", "PARKED"]


WRONG = (
    ("h0 publishes ENTER", {"actions": ("LOOK 0",)}, "the action LOOK 0", "the action SET_MODE ENTER"),
    ("h0 takes order: the vCPU of vm 1", {"word": "ADMIT"}, "the order ADMIT", "the order ATTACH"),
    ("gate hears that h0 is ready", {"word": "ASK"}, "the report ASK of h0", "the report READY"),
    ("gate hears that h0 is ready", {"left": ("PEND 1",)}, "to do: PEND 1", "to do: nothing"),
    ("h0 has done its work", {"event": "INTERRUPTED"}, "a step that the protocol allows", "ProtocolFault"),
    ("h0 has done its work", {"event": "RETIRED"}, "a guest instruction", "another mode"),
    ("h0 has done its work", {"event": "BURNS"}, "h0 has done its work", "no such event"),
)


@pytest.mark.parametrize(("text", "changes", "expected", "found"), WRONG)
def test_a_machine_that_goes_another_way_says_where(text, changes, expected, found):
    script = changed(walk_script(build("n2v1"), 4, 70), text, **changes)
    step = next(step for step in script.steps if step.text == text)
    _, (core,) = simulating.play([script], "astray")
    astray = core["astray"]
    assert (astray["step"], astray["text"], astray["expected"]) == (step.at, text, expected)
    assert astray["found"].startswith(found)
    assert core["steps"] == step.at - 1


def test_a_step_that_cannot_be_taken_is_an_error_of_the_verb(tmp_path, capsys, monkeypatch):
    real = scripts.script_of
    monkeypatch.setattr(scripts, "script_of", lambda *run: changed(real(*run), "h1 goes GUEST", actions=()))
    assert invoke(["replay", str(hit(tmp_path, "none")), "--engine", "sim"]) == EXIT_USAGE
    told = capsys.readouterr().err
    assert "hit.json, step 16: h1 goes GUEST: the simulated machine cannot follow it: expected h1 GUEST" in told
