"""Mappings changed while the machine runs: what is refused, who has it when, and what the journal is told."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played_machine import PlayedMachine

from asid import optypes as t
from asid.config import vm_name
from asid.errors import BadArgument, Conflict, NoAnswer, NoSuchObject
from asid.live.procedures import PROCEDURE_NS
from asid.mm.entry import Level
from asid.mm.isolated import Entry
from asid.mm.objects import OBJECT
from asid.space_build import isolated_of

H0, H1 = (0, 0), (0, 1)
PLACES = [(core, ht) for core in range(2) for ht in range(2)]
BUSES = t.SpaceUnmapArgs(vm="vm1", objects=["buses"])


@pytest.fixture
def machine(monkeypatch):
    return PlayedMachine(monkeypatch)


def changed(machine, op, ticket=1, **given):
    """Do it, with everybody answering; return the answer."""
    args = {"space.map": t.SpaceMapArgs, "space.unmap": t.SpaceUnmapArgs}[op](vm="vm1", **given)
    machine.begin(op, args, ticket)
    machine.settle()
    return machine.answers[ticket]


def mapped_by(machine, name):
    """Which hyperthreads have an object, and whether the daemon has it for those to come."""
    having = {place for place in PLACES if place in machine.by_place and name in machine.by_place[place].mapped[0]}
    return having, any(entry.object == name for entry in machine.mapping[0])


def records(machine):
    return [data for kind, data in machine.notes if kind == "space.change"]


def looked(machine):
    return machine.operations.query("space.get", t.SpaceGetArgs())["spaces"][0]


def test_an_object_is_unmapped_and_mapped_again_everywhere(machine):
    assert mapped_by(machine, "buses") == (set(PLACES), True)
    gone = changed(machine, "space.unmap", objects=["buses"])
    assert mapped_by(machine, "buses") == (set(), False)
    assert (gone["generation"], gone["changed"], gone["name"], gone["vm"]) == (1, ["buses"], "vm1", 1)
    assert gone["mapped"][0] - gone["mapped"][1] == 24_576, "24,008 bytes, in pages"
    back = changed(machine, "space.map", 2, objects=["buses"])
    assert mapped_by(machine, "buses") == (set(PLACES), True)
    assert back["mapped"] == tuple(reversed(gone["mapped"])) and back["generation"] == 2
    assert {machine.by_place[place].generation for place in PLACES} == {machine.generation} == {2}
    assert records(machine) == [
        {"vm": 1, "object": "buses", "generation": 1, "mapped": False},
        {"vm": 1, "object": "buses", "generation": 2, "mapped": True, "level": "PTE", "split": True},
    ]


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        ({}, Entry("buses", Level.PTE, True, "live")),
        ({"level": "PMD"}, Entry("buses", Level.PMD, True, "live")),
        ({"split": "no"}, Entry("buses", Level.PTE, False, "live")),
        ({"level": "PMD", "split": "no"}, Entry("buses", Level.PMD, False, "live")),
    ],
    ids=str,
)
def test_each_hyperthread_is_told_level_and_split(machine, given, entry):
    changed(machine, "space.unmap", objects=["buses"])
    changed(machine, "space.map", 2, objects=["buses"], **given)
    assert {machine.by_place[place].mapped[0]["buses"] for place in PLACES} == {entry}
    assert machine.mapping[0][-1] == entry


def test_what_is_looked_at_is_what_was_changed(machine):
    before = looked(machine)
    assert (before["name"], before["vm"], before["totals"]["generation"], before["changing"]) == ("vm1", 1, 0, False)
    changed(machine, "space.unmap", objects=["buses", "memslots"])
    after = looked(machine)
    names = [{row["object"] for row in seen["objects"]} for seen in (before, after)]
    assert names[0] - names[1] == {"buses", "memslots"} and after["totals"]["generation"] == 1
    assert after["totals"]["mapped"] == machine.answers[1]["mapped"][1]


def test_a_secret_is_mapped_only_when_secrets_are_allowed(machine):
    error = changed(machine, "space.map", objects=["irqchip", "random pool"])
    assert isinstance(error, BadArgument) and "random pool (host secret)" in str(error) and error.hint and error.allowed
    assert mapped_by(machine, "random pool") == (set(), False) and records(machine) == []
    done = changed(machine, "space.map", 2, objects=["random pool"], allow_secrets=True)
    assert done["secret"][1] > done["secret"][0]
    assert mapped_by(machine, "random pool") == (set(PLACES), True)


@pytest.mark.parametrize(
    ("op", "objects", "kind", "says"),
    [
        ("space.map", ["buses"], Conflict, "space.map: vm1, 'buses': EBUSY: it is mapped"),
        ("space.map", ["bus"], BadArgument, "'bus' is no object of the kernel"),
        ("space.map", ["pml_pg", "pml_pg"], BadArgument, "'pml_pg' comes twice"),
        ("space.map", ["vcpu", "other vcpu"], BadArgument, "'vcpu' comes twice"),
        ("space.unmap", ["VMM's memory"], Conflict, "space.unmap: vm1: EINVAL: VMM's memory: not mapped"),
        ("space.unmap", ["buses", "VMM's memory"], Conflict, "EINVAL: VMM's memory: not mapped"),
        ("space.unmap", ["kvn"], BadArgument, "'kvn' is no object of the kernel"),
    ],
)
def test_what_is_refused_changes_nothing_and_says_why(machine, op, objects, kind, says):
    before = machine.mapping
    error = changed(machine, op, objects=objects)
    assert type(error) is kind and says in str(error) and error.hint and error.allowed and error.state
    assert machine.mapping is before and machine.generation == 0 and records(machine) == []
    assert not any(actor.mail for actor in machine.by_place.values())
    assert looked(machine)["totals"]["generation"] == 0 and not machine.operations.remapping


def test_another_vcpu_is_mapped_as_every_vcpu_is(machine):
    assert changed(machine, "space.unmap", objects=["other vcpu"])["changed"] == ["vcpu"]
    assert changed(machine, "space.map", 2, objects=["other vcpu"])["changed"] == ["vcpu"]


def test_a_name_that_is_near_is_in_the_hint(machine):
    assert changed(machine, "space.unmap", objects=["kvm modul"]).hint == "Did you mean 'kvm module'?"


def test_a_vm_that_there_is_not(machine):
    machine.begin("space.unmap", t.SpaceUnmapArgs(vm="vm2", objects=["buses"]), 1)
    assert isinstance(machine.answers[1], NoSuchObject) and "there is no VM 'vm2': must be one of vm1" in str(
        machine.answers[1]
    )
    with pytest.raises(NoSuchObject, match=r"space\.get: vm: there is no VM"):
        machine.operations.query("space.get", t.SpaceGetArgs(vm="x"))


def test_it_is_done_when_the_last_hyperthread_has_it(machine):
    machine.begin("space.unmap", BUSES, 1)
    machine.settle(H1)
    assert 1 not in machine.answers and mapped_by(machine, "buses") == ({H1}, False)
    assert looked(machine)["changing"] is True
    machine.settle()
    assert machine.answers[1]["changed"] == ["buses"] and looked(machine)["changing"] is False


def test_whoever_is_born_meanwhile_has_it_from_its_birth(machine):
    machine.begin("space.unmap", BUSES, 1)
    machine.settle(H1)
    machine.dies(H1)
    machine.pass_ns(100_000_000)
    assert machine.by_place[H1].birth.generation == 1 and "buses" not in machine.by_place[H1].mapped[0]
    machine.settle()
    assert machine.answers[1]["changed"] == ["buses"], "a death is an answer"


def test_who_is_stopped_is_not_killed_and_the_caller_is_told_that_it_goes_on(machine):
    machine.begin("space.unmap", BUSES, 1)
    machine.settle(H1)
    machine.pass_ns(2 * PROCEDURE_NS)
    error = machine.answers[1]
    assert isinstance(error, NoAnswer) and error.applied == "unknown" and "when they go on" in error.state
    assert machine.by_place[H1].signals == []
    machine.settle()
    assert mapped_by(machine, "buses") == (set(), False) and not machine.operations.busy


def test_two_changes_of_one_vm_come_one_after_the_other_and_the_second_sees_the_first(machine):
    machine.begin("space.unmap", BUSES, 1)
    machine.begin("space.map", t.SpaceMapArgs(vm="vm1", objects=["buses"]), 2)
    machine.settle()
    assert machine.answers[1]["generation"] == 1 and machine.answers[2]["generation"] == 2
    assert mapped_by(machine, "buses") == (set(PLACES), True)


def test_a_change_that_waits_for_another_too_long_is_undone(machine):
    machine.begin("space.unmap", BUSES, 1)
    machine.settle(H1)
    machine.begin("space.map", t.SpaceMapArgs(vm="vm1", objects=["buses"]), 2)
    machine.pass_ns(2 * PROCEDURE_NS)
    error = machine.answers[2]
    assert isinstance(error, NoAnswer) and error.applied == "no" and "undone" in error.state
    machine.settle()
    assert mapped_by(machine, "buses") == (set(), False)


def test_without_what_the_handler_of_a_fault_needs_the_answer_warns(machine):
    assert changed(machine, "space.unmap", objects=["buses"])["lacks"] == []
    assert changed(machine, "space.unmap", 2, objects=["cpu_tlbstate", "task stack"])["lacks"] == [
        "task stack", "cpu_tlbstate",
    ]  # fmt: skip
    assert vm_name(machine.config, 1) == "vm1"


CHANGES = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.sampled_from(sorted(OBJECT)), min_size=1, max_size=3),
        st.sampled_from(["auto", *Level.__members__]),
        st.sampled_from(["auto", "yes", "no"]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES)
def test_whatever_is_changed_or_refused_the_mapping_is_that_of_the_space_and_of_everybody(monkeypatch, changes):
    machine = PlayedMachine(monkeypatch)
    for ticket, (mapping, objects, level, split) in enumerate(changes):
        before = looked(machine)
        how = {"level": level, "split": split, "allow_secrets": True} if mapping else {}
        answer = changed(machine, "space.map" if mapping else "space.unmap", ticket, objects=objects, **how)
        assert isinstance(answer, dict | BadArgument | Conflict), answer
        assert isinstance(answer, dict) or looked(machine) == before
    isolated = machine.operations.spaces.isolated(1)
    assert isolated.entries == machine.mapping[0]
    anew = isolated_of(isolated.host, 1, machine.mapping[0])
    assert list(anew.space.table.runs(flags=0)) == list(isolated.space.table.runs(flags=0))
    for place in PLACES:
        assert machine.by_place[place].mapped[0] == {entry.object: entry for entry in machine.mapping[0]}
