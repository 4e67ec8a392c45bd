"""Operations whose processes fall silent or die on the way: each is finished or undone, never left in between."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played_machine import MS, PlayedMachine, S

from asid import optypes as t
from asid.errors import BadArgument, Busy, Conflict, NoAnswer
from asid.live.operations import exit_details
from asid.live.procedures import PROCEDURE_NS, SILENT_NS

GATE, H0, H1 = (0, -1), (0, 0), (0, 1)
NONE = t.PolicySetArgs(name="none")
PLACES = [(core, ht) for core in range(2) for ht in (-1, 0, 1)]


@pytest.fixture
def machine(monkeypatch):
    return PlayedMachine(monkeypatch)


def policies(machine):
    return [data["new"] for kind, data in machine.notes if kind == "policy"]


def undone(machine, ticket=1):
    error = machine.answers[ticket]
    return isinstance(error, NoAnswer) and error.applied == "no" and "undone" in error.state


# --- policy.set -------------------------------------------------------------------------------------------


def test_a_policy_changes_with_one_record_before_any_gate_opens(machine):
    machine.begin("policy.set", NONE, 1)
    machine.settle()
    assert machine.answers == {1: {"old": "asi", "new": "none", "kick": "bare"}}
    assert policies(machine) == ["none"]
    assert {actor.policy for actor in machine.by_place.values()} == {("none", "ack")}
    assert not any(actor.held for actor in machine.by_place.values())


def test_a_kick_is_kept_for_a_policy_that_has_it(machine):
    """`none` kicks nobody; what was chosen before is chosen again with the next policy."""
    for ticket, (name, kick) in enumerate([("asi", "send"), ("none", ""), ("none", "bare"), ("asi", "")], 1):
        machine.begin("policy.set", t.PolicySetArgs(name=name, kick=kick), ticket)
        machine.settle()
    assert [answer["kick"] for answer in machine.answers.values()] == ["send", "bare", "bare", "send"]


@pytest.mark.parametrize(("name", "kick"), [("none", "send"), ("asi", "bare"), ("asi-stun", "ack")])
def test_a_kick_that_the_policy_has_not_changes_nothing(machine, name, kick):
    machine.begin("policy.set", t.PolicySetArgs(name=name, kick=kick), 1)
    machine.settle()
    error = machine.answers[1]
    assert isinstance(error, BadArgument) and f"policy.set: kick: policy '{name}' has no kick {kick}" in str(error)
    assert (machine.policy, machine.kick) == ("asi", "ack")


def test_a_change_that_cannot_begin_is_undone_and_the_old_policy_goes_on(machine):
    machine.begin("policy.set", NONE, 1)
    machine.settle(GATE)
    machine.pass_ns(PROCEDURE_NS)
    assert undone(machine)
    machine.settle()
    assert (machine.policy, machine.coming, policies(machine)) == ("asi", None, [])
    assert {actor.policy for actor in machine.by_place.values()} == {("asi", "ack")}
    assert not any(actor.held for actor in machine.by_place.values()) and not any(machine.holders.values())
    machine.begin("policy.set", NONE, 2)
    machine.settle()
    assert machine.answers[2]["new"] == "none"


def test_a_policy_that_does_not_exist_is_a_bad_argument(machine):
    machine.begin("policy.set", t.PolicySetArgs(name="assi", kick=""), 1)
    machine.settle()
    error = machine.answers[1]
    assert isinstance(error, BadArgument) and "no policy 'assi'" in str(error) and error.hint == "Did you mean asi?"
    assert machine.policy == "asi"


@pytest.mark.parametrize("silent", [H1, GATE])
def test_past_the_point_of_no_return_a_silent_process_is_killed_and_the_gates_wait(machine, silent):
    machine.changes_until_bound(NONE)
    before = machine.by_place[silent]
    machine.settle(silent)
    assert machine.policy == "asi" and policies(machine) == [], "not in force before everybody has it"
    assert all(machine.by_place[core, -1].held == {"policy"} for core in (0, 1))
    until = machine.node.now + SILENT_NS
    while machine.node.now < until and machine.by_place[silent] is before:
        machine.settle(silent)
    assert machine.by_place[silent] is not before, "killed, and born again"
    machine.settle()
    assert machine.by_place[silent].policy == ("none", "ack")
    assert policies(machine) == ["none"]
    assert machine.answers[1]["new"] == "none"
    assert any("did not answer" in data.get("text", "") for kind, data in machine.notes if kind == "warn")


def test_a_daemon_that_was_stopped_holds_its_pause_against_nobody(machine):
    machine.begin("policy.set", NONE, 1)
    machine.pass_ns(60 * S, 60 * S)
    assert machine.answers == {}
    machine.settle()
    assert machine.answers[1]["new"] == "none"
    assert not any(actor.signals for actor in machine.by_place.values())


def test_who_waits_too_long_is_told_that_it_goes_on(machine):
    machine.changes_until_bound(NONE)
    for actor in machine.by_place.values():
        actor.kill = lambda signum=9: None  # a death that takes its time
    machine.pass_ns(2 * PROCEDURE_NS)
    error = machine.answers[1]
    assert isinstance(error, NoAnswer) and error.applied == "unknown" and "goes on" in error.state
    assert machine.policy == "asi", "the status tells what is in force"
    machine.settle()
    assert (machine.policy, policies(machine)) == ("none", ["none"])


def test_two_changes_at_once_come_one_after_the_other(machine):
    machine.begin("policy.set", NONE, 1)
    machine.begin("policy.set", t.PolicySetArgs(name="nosmt"), 2)
    machine.settle()
    assert sorted(policies(machine)) == ["none", "nosmt"]
    assert machine.policy == policies(machine)[-1]
    assert {actor.policy for actor in machine.by_place.values()} == {(machine.policy, "ack")}


EVENTS = st.lists(
    st.tuples(st.sampled_from(["read", "read", "read", "die", "pass", "long", "set"]), st.sampled_from(PLACES)),
    max_size=80,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(EVENTS)
def test_whatever_happens_no_gate_opens_with_mixed_policies(monkeypatch, events):
    machine = PlayedMachine(monkeypatch)
    machine.begin("policy.set", NONE, 1)
    last = 1
    for event, place in events:
        if event == "read":
            machine.reads(place)
        elif event == "die":
            machine.dies(place)
        elif event == "set" and last < 4:
            last += 1
            machine.begin("policy.set", t.PolicySetArgs(name=("asi", "nosmt")[last % 2]), last)
        else:
            machine.pass_ns(2 * MS if event == "pass" else 700 * MS)
        machine.check_policies()
    for _ in range(20):
        machine.settle()
        machine.pass_ns(100 * MS)
        machine.check_policies()
    assert not machine.operations.busy
    assert not any(actor.held for actor in machine.by_place.values())
    assert sorted(machine.answers) == list(range(1, last + 1))
    finished = [ret["new"] for ret in machine.answers.values() if isinstance(ret, dict)]
    assert len(policies(machine)) >= len(finished), "one record for each change that was finished"
    assert machine.policy == (policies(machine) or ["asi"])[-1]
    assert {actor.policy for actor in machine.by_place.values()} <= {(machine.policy, "ack")}


# --- gates ------------------------------------------------------------------------------------------------


def test_a_hold_that_one_core_does_not_answer_holds_none(machine):
    machine.begin("gate.hold", t.GateHoldArgs(target="c*"), 1)
    machine.settle(GATE)
    assert machine.by_place[1, -1].held == {"client"}
    machine.pass_ns(PROCEDURE_NS)
    assert undone(machine)
    machine.settle()
    assert not any(actor.held for actor in machine.by_place.values()) and not any(machine.holders.values())


def test_a_release_is_finished_when_its_coordinator_wakes(machine):
    machine.begin("gate.hold", t.GateHoldArgs(target="c*"), 1)
    machine.settle()
    machine.begin("gate.release", t.GateReleaseArgs(target="c*"), 2)
    machine.settle(GATE)
    assert machine.by_place[1, -1].held == set(), "one core does not wait for another"
    machine.pass_ns(2 * PROCEDURE_NS)
    assert 2 not in machine.answers
    machine.settle()
    assert machine.answers[2] == {"cores": [0, 1]}
    assert not any(actor.held for actor in machine.by_place.values())


def test_a_second_hold_while_one_is_under_way_is_refused(machine):
    machine.begin("gate.hold", t.GateHoldArgs(target="c0"), 1)
    machine.begin("gate.hold", t.GateHoldArgs(target="c*"), 2)
    machine.settle()
    assert isinstance(machine.answers[2], Conflict)
    assert machine.by_place[GATE].held == {"client"} and machine.by_place[1, -1].held == set()


# --- vCPUs ------------------------------------------------------------------------------------------------


def detached(machine, target="c0h1"):
    machine.begin("vcpu.detach", t.VcpuDetachArgs(target=target), 90)
    machine.settle()
    assert "changed" in machine.answers.pop(90)


ATTACH = t.VcpuAttachArgs(target="vm1/1", to="c0h1")


def test_an_attach_that_nobody_answers_has_no_effect_and_can_be_repeated(machine):
    detached(machine)
    machine.begin("vcpu.attach", ATTACH, 1)
    machine.settle(H1)
    machine.pass_ns(PROCEDURE_NS)
    assert undone(machine)
    assert machine.vcpus[H1] == (0, 0)
    assert machine.by_place[GATE].vms[1] == 0
    machine.begin("vcpu.attach", ATTACH, 2)
    machine.settle()
    assert machine.answers[2] == {"changed": [(1, 1, "c0h1")]}
    assert (machine.vcpus[H1], machine.by_place[GATE].vms[1], machine.by_place[H1].number) == ((1, 1), 1, 1)


def test_an_attach_is_finished_by_whichever_coordinator_comes(machine):
    detached(machine)
    machine.begin("vcpu.attach", ATTACH, 1)
    machine.settle(GATE)
    machine.pass_ns(2 * PROCEDURE_NS)
    assert "as soon as" in machine.answers[1].state and machine.answers[1].applied == "unknown"
    machine.dies(GATE)
    machine.pass_ns(100 * MS)
    assert (machine.vcpus[H1], machine.by_place[GATE].vms[1]) == ((1, 1), 1)
    assert not machine.operations.busy


def test_the_same_vcpu_does_not_go_to_two_places(machine):
    detached(machine, "c0")
    machine.begin("vcpu.attach", ATTACH, 1)
    machine.begin("vcpu.attach", t.VcpuAttachArgs(target="vm1/1", to="c0h0"), 2)
    machine.settle()
    assert "changed" in machine.answers[1] and isinstance(machine.answers[2], Conflict)


def test_a_detach_that_one_hyperthread_does_not_answer_takes_no_vcpu_away(machine):
    before = dict(machine.vcpus)
    machine.begin("vcpu.detach", t.VcpuDetachArgs(target="c0"), 1)
    machine.settle(H1)
    machine.pass_ns(PROCEDURE_NS)
    assert undone(machine)
    machine.settle()
    assert machine.vcpus == before and machine.refused == []
    assert machine.by_place[GATE].vms == {0: 1, 1: 1}
    assert machine.detaching == set()


def test_a_coordinator_that_comes_back_gives_no_vcpu_to_who_is_losing_it(machine):
    machine.begin("vcpu.detach", t.VcpuDetachArgs(target="c0"), 1)
    machine.settle(H1)
    machine.dies(GATE)
    machine.pass_ns(100 * MS)
    assert machine.by_place[GATE].vms == {0: 0, 1: 0}
    machine.settle()
    assert machine.answers[1] == {"changed": [(1, 0, "c0h0"), (1, 1, "c0h1")]}
    assert machine.refused == [H0, H1]


# --- hotplug ----------------------------------------------------------------------------------------------


def test_an_unplug_that_one_hyperthread_does_not_answer_unplugs_none(machine):
    machine.begin("ht.unplug", t.HtUnplugArgs(target="c0"), 1)
    machine.settle(H1)
    assert H0 not in machine.by_place
    machine.pass_ns(PROCEDURE_NS)
    assert undone(machine)
    machine.settle()
    machine.pass_ns(S)
    assert machine.unplugged == set()
    assert {H0, H1} <= set(machine.by_place)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("buried", [False, True])
def test_an_unplug_of_one_that_is_about_to_be_born_again_keeps_it_away(machine, force, buried):
    """1. A hyperthread dies young. 2. Before its successor is born, its burial done or not, it is unplugged."""
    dead = machine.by_place.pop(H1)
    dead.born_ns = machine.now_ns()
    machine.on_death(dead, -9)
    if buried:
        machine._buried(H1, dead.birth.inc)
    machine.begin("ht.unplug", t.HtUnplugArgs(target="c0h1", force=force), 1)
    assert machine.answers == {1: {"changed": ["c0h1"]}}
    machine.settle()
    machine.pass_ns(S)
    assert H1 not in machine.by_place and machine.unplugged == {H1}
    machine.begin("ht.unplug", t.HtUnplugArgs(target="c0h1", force=force), 2)
    assert machine.answers[2] == {"changed": []}
    machine.begin("ht.plug", t.HtPlugArgs(target="c0h1"), 3)
    machine.settle()
    assert machine.answers[3] == {"changed": ["c0h1"]} and H1 in machine.by_place


def test_an_unplug_that_is_undone_brings_back_one_that_was_about_to_be_born_again(machine):
    dead = machine.by_place.pop(H1)
    machine.on_death(dead, -9)
    machine.begin("ht.unplug", t.HtUnplugArgs(target="c0"), 1)
    machine.settle(H0)
    machine.pass_ns(PROCEDURE_NS)
    assert undone(machine)
    machine.settle()
    machine.pass_ns(S)
    assert machine.unplugged == set() and {H0, H1} <= set(machine.by_place)


def test_a_plug_goes_on_until_the_hyperthread_is_there(machine):
    machine.begin("ht.unplug", t.HtUnplugArgs(target="c0h1"), 1)
    machine.settle()
    machine.waiting_burial.add(H1)  # its coordinator has not done with its death
    gate = machine.by_place.pop(GATE)
    machine.begin("ht.plug", t.HtPlugArgs(target="c0h1"), 2)
    machine.pass_ns(2 * PROCEDURE_NS)
    assert "come back" in machine.answers[2].state
    machine.by_place[GATE] = gate
    machine.pass_ns(S)
    assert H1 in machine.by_place and not machine.operations.busy


def test_when_the_machine_stops_a_change_under_way_opens_no_gate(machine):
    machine.changes_until_bound(NONE)
    machine.operations.close()
    assert isinstance(machine.answers[1], NoAnswer)
    machine.settle()
    assert all(machine.by_place[core, -1].held == {"policy"} for core in (0, 1))
    assert policies(machine) == []


def test_a_vcpu_waits_for_no_hyperthread_that_is_dead_and_conflicts_with_one_that_stays_away(machine):
    detach, attach = t.TargetArgs(target="c0h1"), t.VcpuAttachArgs(target="vm1/1", to="c0h1")
    machine.begin("vcpu.detach", detach, 1)
    machine.settle()
    machine.on_death(machine.by_place.pop(H1), -9)  # not buried yet
    machine.begin("vcpu.attach", attach, 2)
    assert isinstance(machine.answers[2], Busy) and machine.answers[2].retry == "later"
    machine.settle()
    machine.unplugged.add(H1)
    machine.dies(H1)
    machine.begin("vcpu.attach", attach, 3)
    assert isinstance(machine.answers[3], Conflict)
    assert not machine.stays_away(GATE)


# --- injections -------------------------------------------------------------------------------------------


def test_random_gaps_begin_with_one_and_need_a_rate(machine):
    batches = []
    machine.injector.accept = batches.append
    machine.hasten = lambda: None
    given = {"target": "c0h1", "count": 5, "rate_hz": 1000, "gaps": "random", "seed": 3}
    now = machine.now_ns()
    machine.operations.begin("inject.nmi", t.InjectNmiArgs(**given), 1, "me")
    machine.node.fire()
    [batch] = batches
    assert batch.gaps is not None and batch.next_ns > now and batch.interval_ns == 1_000_000
    for missing in ({"rate_hz": 0}, {"count": 1}):
        with pytest.raises(BadArgument, match="gaps = random"):
            machine.operations.begin("inject.nmi", t.InjectNmiArgs(**{**given, **missing}), 2, "me")


@pytest.mark.parametrize(
    ("given", "vector", "full", "mapped"),
    [({}, 236, False, False), ({"vector": 77, "full": "yes"}, 77, True, False), ({"full": "no"}, 236, False, True)],
)
def test_an_interrupt_of_a_device_has_its_vector_and_what_its_handler_touches(machine, given, vector, full, mapped):
    batches = []
    machine.injector.accept = batches.append
    machine.operations.begin("inject.irq", t.InjectIrqArgs(target="c0h1", **given), 1, "me")
    details = {"reason": "EXTERNAL_INTERRUPT", "isa": "vmx", "service_ns": 0, "full": full, "parts": []}
    details |= {"mapped": mapped, "vector": vector}
    assert [(batch.what, batch.details) for batch in batches] == [("irq", details)]


@pytest.mark.parametrize(
    ("reason", "full", "parts"),
    [
        ("EPT_VIOLATION", "auto", ["needs-page"]),
        ("EPT_VIOLATION", "no", []),
        ("EPT_VIOLATION", "yes", []),
        ("HLT", "auto", ["blocks"]),
        ("IO_INSTRUCTION", "auto", []),  # half of them go to the VMM: not most
    ],
)
def test_an_injected_exit_asks_for_what_its_reason_usually_does(reason, full, parts):
    assert exit_details(reason, full) == {
        "reason": reason, "isa": "vmx", "service_ns": 0, "full": full == "yes", "parts": parts
    }  # fmt: skip
