"""Scripts played by real processes: the live machine goes where the explorer went, step by step, also into a violation.

After every step the core page is compared with the explorer's world (`Turns.check`), so a walk that is played to its
end is one in which the two engines never differed.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import msgspec
import pytest
from walks import walk_script

from asid.commands import invoke
from asid.core.policy import make_policy
from asid.drive import play
from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_USAGE
from asid.explore import schedule
from asid.explore.models import build, of_policy
from asid.explore.parts import Arrivals, Model
from asid.explore.script import script_of
from asid.explore.search import search

pytestmark = [pytest.mark.live, pytest.mark.slow]

BARE = of_policy(make_policy("none", "ack"), taints=False, halts=False, fast_exits=True)
STEPS = 70
WALKS = {
    "ack": (
        "n2v1", "n2v2-halts", "n2v1-nmi-mce", "n2v1-nmi-torn", "n3v1", "n2v1-hotplug", "n2v1-hold", "n2v2-timers",
        "n2v1-loss", "n2v1-irq", "n2v1-halts-irq", "n2v2-flush",
    ),
    "send": (
        "n2v1-nmi-mce-send", "n2v1-halts-send", "n2v2-nmi-send", "n3v2-send", "n2v1-torn-send", "n2v1-irq-nmi-send",
    ),
    "rendezvous": ("n2v1-rendezvous", "n3v1-rendezvous", "n2v2-nmi-rendezvous", "n2v1-hotplug-rendezvous"),
    "torn": ("n2v1-torn-flush-send", "n2v1-torn-nmi-flush-send", "n3v1-torn-flush-send"),
    "torn meetings": (
        "n2v1-torn-full-rendezvous", "n2v1-torn-full-rendezvous", "n3v1-torn-full-rendezvous",
        "n2v1-torn-nmi-full-rendezvous", "n2v1-torn-full-rendezvous",
    ),
    "stun": ("n2v1-stun", "n2v2-flush-stun", "n2v1-nmi-stun"),
    "xapic": ("n2v1-nmi-send-xapic", "n3v1-nmi-send-xapic"),
    "deaths": (
        "n2v1-kill", "n2v2-kill", "n2v1-unplug", "n2v1-coordinator", "n2v2-coordinator-loss", "n2v1-coordinator-kill",
        "n2v1-nmi-coordinator-kill", "n2v1-coordinator-hotplug", "n2v1-coordinator-loss-birth",
    ),
}  # fmt: skip


def saved(tmp_path, model: Model):
    """A counterexample of the model in a file."""
    found = search(model)
    document = schedule.as_document(schedule.scheduled(found.world, found.violation))
    file = tmp_path / "hit.json"
    file.write_text(json.dumps(document))
    return file


@pytest.mark.parametrize("names", WALKS.values(), ids=WALKS)
def test_the_live_machine_follows_the_explorer(rig, names):
    """Random walks, one a core. ASID_WALKS_SEED draws others."""
    seed = int(os.environ.get("ASID_WALKS_SEED", "1"))
    scripts = [walk_script(build(name), seed + at, STEPS) for at, name in enumerate(names)]
    outcome, cores = play(scripts, "walks")
    for name, script, core in zip(names, scripts, cores, strict=True):
        assert "astray" not in core, (name, seed, core)
        assert core["steps"] == core["of"] == script.length
    assert {name: f for name, f in outcome.verdict["guarantees"].items() if f["state"] == "broken"} == {}


@pytest.mark.parametrize(("policy", "steps"), [("none", 16), ("core-sched", 18), ("kick-except-idle", 18)])
def test_a_counterexample_is_replayed_live(rig, tmp_path, capsys, policy, steps):
    file = saved(tmp_path, of_policy(make_policy(policy, "ack"), taints=False))
    assert invoke(["replay", str(file)]) == EXIT_FAIL
    said = capsys.readouterr()
    assert f"a schedule of {steps} steps: G2, h1 may run guest instructions beside h0 in HOST" in said.err
    kick = make_policy(policy, "ack").kick.name.lower()
    assert f"{steps} of {steps} steps" in said.out and f"policy {policy}, kick {kick}" in said.out
    assert "c0: h1 is in GUEST of vm1, its pending bit clear, beside h0 in HOST" in said.out
    assert "G2 is broken live, as the schedule says" in said.out
    assert "c0h1 was in GUEST(vm1) beside c0h0 in HOST (bare)" in said.out


def test_the_guest_runs_there_and_the_run_says_so(rig):
    found = search(BARE)
    script = script_of(found.world, found.violation)
    outcome, (core,) = play([script], "bare")
    assert [(ht["mode"], ht["pending"], ht["insns"]) for ht in core["hts"]] == [("HOST", False, 2), ("GUEST", False, 1)]
    marks = [record.data["text"] for record in outcome.run.records() if record.type == "mark"]
    assert marks == ["step 16 of 16: h1 is in GUEST of vm1, its pending bit clear, beside h0 in HOST"]


def test_a_circle_is_gone_round_until_the_wait_is_too_long(rig, tmp_path, capsys):
    file = saved(tmp_path, replace(build("n2v1"), arrivals=Arrivals.ANY))
    assert invoke(["replay", str(file), "--json"]) == EXIT_FAIL
    told = json.loads(capsys.readouterr().out)
    assert told["schedule"]["reproduced"] and told["guarantees"]["L2"]["state"] == "broken"


def test_a_schedule_in_which_nothing_is_broken_passes(rig, tmp_path, capsys):
    found = search(BARE)
    document = schedule.as_document(schedule.scheduled(found.world, found.violation))
    document |= {"steps": document["steps"][:7], "expect": {"guarantee": "", "sentence": ""}}
    file = tmp_path / "begin.json"
    file.write_text(json.dumps(document))
    assert invoke(["replay", str(file), "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "PASS" and not told["schedule"]["reproduced"]
    assert [ht["mode"] for ht in told["schedule"]["hts"]] == ["GUEST", "PARKED"]


def test_the_explorers_replay_is_still_there(tmp_path, capsys):
    assert invoke(["replay", str(saved(tmp_path, BARE)), "--engine", "explore"]) == EXIT_FAIL
    assert "G2 is broken after 16 steps" in capsys.readouterr().out


# --- what is not as the script says ------------------------------------------------------------------------


def changed(script, text, **changes):
    """The script with one step made otherwise."""
    at = next(at for at, step in enumerate(script.steps) if step.text == text)
    step = msgspec.structs.replace(script.steps[at], **changes)
    return msgspec.structs.replace(script, steps=(*script.steps[:at], step, *script.steps[at + 1 :])), step


WRONG = (
    ("h0 publishes ENTER", {"actions": ("LOOK 0",)}, "the action LOOK 0", "c{}h0 has the action SET_MODE ENTER"),
    ("h0 takes order: the vCPU of vm 1", {"word": "ADMIT"}, "the order ADMIT", "c{}h0 has the order ATTACH"),
    ("gate hears that h0 is ready", {"word": "ASK"}, "the report ASK of h0", "c{} has the report READY"),
    ("gate hears that h0 is ready", {"left": ("PEND 1",)}, "to do: PEND 1", "c{} has to do: nothing"),
    ("h0 has done its work", {"event": "INTERRUPTED"}, "a step that the protocol allows", "c{}h0 has ProtocolFault"),
    ("h0 has done its work", {"event": "RETIRED"}, "a guest instruction", "c{}h0 has another mode"),
    ("h0 has done its work", {"event": "BURNS"}, "h0 has done its work", "c{}h0 dead with status 1"),
)


def test_a_machine_that_goes_another_way_says_where(rig):
    made = [changed(walk_script(build("n2v1"), 4, STEPS), text, **changes) for text, changes, _, _ in WRONG]
    _, cores = play([script for script, _ in made], "astray")
    for number, ((text, _, expected, found), (_, step), core) in enumerate(zip(WRONG, made, cores, strict=True)):
        astray = core["astray"]
        assert (astray["step"], astray["text"]) == (step.at, text)
        assert astray["expected"] == expected and astray["found"].startswith(found.format(number))
        assert core["steps"] == step.at - 1


def test_a_page_that_is_not_as_in_the_script_is_noticed_at_its_step(rig):
    script = walk_script(build("n2v1"), 4, STEPS)
    at = next(at for at, step in enumerate(script.steps) if step.text == "h0 goes GUEST")
    lines = tuple(msgspec.structs.replace(line, pending=True) for line in script.steps[at].after)
    script, step = changed(script, "h0 goes GUEST", after=lines)
    outcome, (core,) = play([script], "astray")
    assert core["astray"]["step"] == step.at and core["steps"] == step.at - 1
    assert "its pending bit set" in core["astray"]["expected"] and "its pending bit clear" in core["astray"]["found"]
    assert outcome.word == "PASS"  # it was ended in order, and did nothing that is forbidden


def test_a_step_that_the_live_protocol_has_not_is_an_error_of_the_verb(rig, tmp_path, capsys, monkeypatch):
    """As with a schedule that was made while the protocol was another: here the explorer's, with a plan of its own."""
    from asid.explore import script as scripts

    real = scripts.script_of
    monkeypatch.setattr(scripts, "script_of", lambda *run: changed(real(*run), "h1 goes GUEST", actions=())[0])
    assert invoke(["replay", str(saved(tmp_path, BARE))]) == EXIT_USAGE
    told = capsys.readouterr().err
    assert "hit.json, step 16: h1 goes GUEST: the live machine cannot follow it: expected h1 GUEST" in told
    assert "found c0h1 has h1 ENTER" in told and "made with" in told
