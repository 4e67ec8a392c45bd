"""From schedules to scripts: every step of the explorer in the words of the core, and what cannot be played."""

from __future__ import annotations

from dataclasses import replace

import pytest
from walks import walk, walk_script

from asid.config import load
from asid.core.policy import make_policy
from asid.errors import InputError
from asid.explore import schedule
from asid.explore.models import MODELS, build, of_policy
from asid.explore.parts import Arrivals, Label
from asid.explore.script import script_of, step_of, taken
from asid.explore.search import search
from asid.script import GETS, READS, RETIRES, beside, config_of, read, write

BARE = of_policy(make_policy("none", "ack"), taints=False, halts=False, fast_exits=True)


@pytest.fixture(scope="module")
def bare():
    """The counterexample of today's kernels, as a script."""
    found = search(BARE)
    return script_of(found.world, found.violation)


def test_a_step_names_its_event_its_actions_and_what_the_page_shows(bare):
    exit_ = next(step for step in bare.steps if step.text == "h0 full exit")
    assert (exit_.who, exit_.event, exit_.full, exit_.actions) == (0, "EXIT", True, ("SET_MODE HOST",))
    assert exit_.after[0].mode == "HOST" and exit_.after[1].mode == "PARKED"
    admitted = next(step for step in bare.steps if step.text.startswith("h1 takes order: the lease"))
    assert (admitted.event, admitted.word, admitted.actions) == ("ORDER", "ADMIT", ("SET_MODE ISOLATED",))


def test_a_guest_in_the_forbidden_state_runs_an_instruction_there(bare):
    assert [(step.who, step.event, step.at) for step in bare.steps[-1:]] == [(1, RETIRES, 0)]
    assert bare.guarantee == "G2" and bare.length == len(bare.steps) - 1


def test_a_decision_that_is_not_performed_at_once_stays_to_be_done():
    found = [s for seed in range(8) for s in walk_script(build("n2v1"), seed, 80).steps if "REQUEST 0" in s.left]
    assert found and found[0].left == ("REQUEST 0", "PEND 0")


def test_while_an_nmi_may_come_an_event_and_its_first_action_are_two_steps():
    steps = [s for seed in range(8) for s in walk_script(build("n2v1-nmi"), seed, 80).steps if s.text == "h0 full exit"]
    assert {step.actions for step in steps} == {(), ("SET_MODE ISOLATED", "SEND LEAVE")}  # before the NMI, and after it


def test_what_a_process_has_said_arrives_before_it_goes():
    steps = [s for seed in range(20) for s in walk_script(build("n2v1-coordinator-kill"), seed, 80).steps]
    assert {step.who for step in steps if step.event == GETS} == {-1, 0, 1}


def test_a_circle_is_repeated_from_where_it_begins():
    found = search(replace(build("n2v1"), arrivals=Arrivals.ANY))
    script = script_of(found.world, found.violation)
    assert script.guarantee == "L2" and script.cycle == found.violation.cycle
    assert script.keeps_ns > 3_000_000_000  # longer than the audit lets anybody wait
    assert script.steps[-1].event != RETIRES


def test_a_schedule_from_a_file_gives_the_same_script(bare):
    found = search(BARE)
    document = schedule.as_document(schedule.scheduled(found.world, found.violation))
    again = schedule.Schedule(schedule.model_of(document["model"]), *_steps_of(document))
    assert script_of(*taken(again)) == bare


def _steps_of(document):
    steps = tuple(schedule.Planned(**step) for step in document["steps"])
    return steps, document["expect"]["guarantee"], document["expect"]["sentence"], document["cycle"]


def test_a_schedule_of_another_protocol_is_refused():
    wrong = schedule.Schedule(BARE, (schedule.Planned("h0", "takes order", "the lease for #9"),))
    with pytest.raises(InputError, match="step 1: cannot be taken: h0 takes order"):
        taken(wrong)


def test_a_step_that_the_live_machine_has_not_is_refused():
    w, v = walk(BARE, 1, 3)
    with pytest.raises(InputError, match=r"step 3: h1 catches fire .*has no such step"):
        step_of(w, Label(1, "catches fire"), v.worlds[1], v.worlds[2], 3)


def played_live(model):
    return not (model.budget.broadcast or model.budget.fatal)


@pytest.mark.parametrize("name", [name for name, named in MODELS.items() if played_live(named.model)])
def test_every_model_can_be_played(name):
    """Kills, losses, restarts, time-outs, hotplug and torn looks too; not yet fatal machine checks, and those of all
    siblings."""
    for seed in range(3):
        script = walk_script(build(name), seed, 80)
        assert script.length == max(step.at for step in script.steps)
        assert all(len(step.after) == script.siblings for step in script.steps if step.event != RETIRES)


@pytest.mark.parametrize("vms", [(1, 1), (1, 1, 1)])
def test_a_torn_look_waits_for_whom_it_is_to_meet(vms):
    """With `rendezvous` a look ends held, too, where the last sibling that it reads has not come yet."""
    model = of_policy(make_policy("asi", "rendezvous"), vms, torn=True)
    scripts = [walk_script(model, seed, 120) for seed in range(40)]
    entries = [
        next((step.actions for step in script.steps[at + 1 :] if step.who == look.who and step.actions), ())
        for script in scripts
        for at, look in enumerate(script.steps)
        if look.event == READS and look.actions == ("LOOK 0",)
    ]
    assert {actions[:1] for actions in entries} >= {("SET_MODE GUEST",), ("SET_MODE ISOLATED",)}


def test_scripts_go_through_a_file(tmp_path, bare):
    file = tmp_path / "script.json"
    write(file, [bare, walk_script(BARE, 1, 20)])
    assert [script.steps for script in read(file)] == [bare.steps, walk_script(BARE, 1, 20).steps]


@pytest.mark.parametrize(
    "text", ["", "{}", '{"asid_script": 1, "cores": []}', '{"asid_script": 9, "cores": []}', "[1]"]
)
def test_what_is_no_script_is_refused(tmp_path, text):
    file = tmp_path / "script.json"
    file.write_text(text)
    with pytest.raises(InputError):
        read(file)


def test_a_machine_is_as_wide_as_its_widest_script(bare):
    three = replace(BARE, vms=(7, 7, 3))  # VMs are counted anew, from 1
    config = load(config_of([bare, walk_script(three, 1, 5)], "two")).config
    assert (config.machine.cores, config.machine.smt, config.policy.name) == (2, 4, "none")
    assert [config.vcpu_at(1, ht) for ht in range(4)] == [(2, 0), (2, 1), (1, 2), None]


def test_one_machine_has_one_policy(bare):
    with pytest.raises(InputError, match="several policies"):
        config_of([bare, walk_script(build("n2v1"), 1, 5)], "two")


def test_who_must_not_be_beside_whom():
    assert beside([("HOST", 1, False), ("GUEST", 1, False)]) == [
        "h1 is in GUEST of vm1, its pending bit clear, beside h0 in HOST"
    ]
    assert beside([("GUEST", 1, True), ("ISOLATED", 2, False)]) == [
        "h0 is in GUEST of vm1, its pending bit set, beside h1 in ISOLATED of vm2"
    ]
    assert len(beside([("GUEST", 1, False), ("GUEST", 2, False)])) == 1
    assert not beside([("GUEST", 1, False), ("GUEST", 1, False), ("ISOLATED", 1, False), ("PARKED", 0, False)])
