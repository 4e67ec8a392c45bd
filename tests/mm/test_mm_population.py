"""Populating a VM's space: the RFC's steps, buffers that move, tasks that end, and the way back.

Several tests are of defects of the RFC's version 1; they say so.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.errors import ConfigError, MappingRefused
from asid.mm.entry import Level
from asid.mm.host import Host, VmShape
from asid.mm.isolated import TASK_OBJECTS, Isolated
from asid.mm.objects import OBJECTS
from asid.mm.population import MINIMAL, RFC, buses, entries_of, memslots, populate, tear_down, vcpu_data, why


@pytest.fixture
def host():
    return Host((VmShape("a", (0, 1)), VmShape("b", (2,))), 4)


@pytest.fixture
def isolated(host):
    made = Isolated(host, 1)
    yield made
    made.free()
    assert set(host.table.frames.directories) == set(host.table.image()), "no directory is left"


@pytest.mark.parametrize("isa", ["vmx", "svm"])
@pytest.mark.parametrize("levels", [4, 5])
def test_every_step_maps_what_it_names_and_tear_down_leaves_nothing(isa, levels):
    host = Host((VmShape("a", (0, 1)), VmShape("b", (2,))), 4, levels=levels)
    image = host.table.image()
    for vm in (1, 2):
        isolated = Isolated(host, vm)
        for step in (*RFC, *MINIMAL):
            tear_down(isolated)
            populate(isolated, (step,), isa)
            assert [entry.object for entry in isolated.entries] == [entry.object for entry in step(isa)]
            assert why(step)
            for entry in step(isa):
                for place in host.all_of(entry.object, vm):
                    if entry.object != "kernel image":
                        assert isolated.space.is_mapped(place.start, place.size), entry
        tear_down(isolated)
        assert not list(isolated.space.table.runs()) and not isolated.space.ranges()
        isolated.free()
    assert host.table.image() == image


def test_a_vm_maps_none_of_another_vms(host, isolated):
    populate(isolated, (vcpu_data, memslots, buses), "vmx")
    assert isolated.space.is_mapped(host.at("memslots", 1).start, 8)
    assert not isolated.space.is_mapped(host.at("memslots", 2).start, 8)


def test_per_cpu_data_is_mapped_for_every_possible_cpu_and_taken_away_so(host, isolated):
    """Version 1 takes away one CPU's after an error."""
    isolated.map("srcu data")
    places = host.all_of("srcu data", 1)
    assert len(places) == 4 and all(isolated.space.is_mapped(place.start, place.size) for place in places)
    isolated.unmap("srcu data")
    assert not isolated.space.ranges()


def test_memslots_that_were_allocated_again_are_mapped_where_they_are(host, isolated):
    populate(isolated, (memslots, buses), "vmx")
    old, new = host.reallocate("memslots", 1, 50_000)
    assert not isolated.space.is_mapped(new.start, new.size)
    assert isolated.check() == ("memslots",)
    assert isolated.space.is_mapped(new.start, new.size) and not isolated.space.is_mapped(old.start, 8)
    assert isolated.check() == ()
    isolated.unmap("memslots")
    assert not isolated.space.is_mapped(new.start, 8)


def test_buses_are_mapped_whole_at_once(host, isolated):
    """Version 1 maps the header alone until the buses change."""
    populate(isolated, (buses,), "vmx")
    place = host.at("buses", 1)
    assert place.size == 8 + 1000 * 24 and isolated.space.is_mapped(place.start, place.size)


def test_a_task_that_takes_a_dead_ones_address_is_mapped_as_it_is_now(host, isolated):
    """In version 1 a stack that was freed and given away stays mapped as it was."""
    isolated.map("task stack", split=True)
    isolated.map("task_struct", split=True)
    host.new_task(1, 0)
    assert isolated.space.stale(), "the stack is of other memory"
    isolated.enter(0)
    assert not isolated.space.stale()
    assert isolated.space.is_mapped(host.at("task stack", 1, 1).start, 8), "the other thread's is still there"


def test_threads_share_their_mm_until_the_last_has_gone(host, isolated):
    for name in ("task_struct", "mm_struct", "mm pgd"):
        isolated.map(name, split=True)
    isolated.unmap("task_struct")
    mm = host.at("mm_struct", 1)
    assert isolated.space.is_mapped(mm.start, mm.size)
    assert not isolated.space.is_mapped(host.at("task_struct", 1, 1).start, 9792)
    isolated.unmap("mm_struct")
    isolated.unmap("mm pgd")
    assert not isolated.space.ranges()


def test_a_refused_step_has_changed_nothing(host, isolated):
    isolated.map("pio_data", split=True)
    before, ranges = isolated.space.table.image(), isolated.space.ranges()
    with pytest.raises(MappingRefused, match="EBUSY"):
        populate(isolated, (vcpu_data,), "vmx")
    assert (isolated.space.table.image(), isolated.space.ranges()) == (before, ranges)
    assert [entry.object for entry in isolated.entries] == ["pio_data"]


def test_an_undone_unmap_leaves_the_entries_in_their_order(isolated):
    populate(isolated, MINIMAL, "vmx")
    before, image = isolated.entries, isolated.space.table.image()

    def unmap_three():
        with isolated.space.table.all_or_nothing():
            for name in (before[0].object, before[3].object, "vcpu"):
                isolated.unmap(name)

    with pytest.raises(MappingRefused, match="it is not mapped"):
        unmap_three()
    assert isolated.entries == before and isolated.space.table.image() == image


def test_what_is_no_object_or_not_mapped_is_refused_in_five_parts(isolated):
    for refused in (lambda: isolated.map("vcpus"), lambda: isolated.unmap("vcpu")):
        with pytest.raises(MappingRefused) as caught:
            refused()
        error = caught.value
        assert error.errno == "EINVAL" and all((error.where, error.what, error.state, error.allowed, error.hint))
    with pytest.raises(ConfigError, match="'rfd' is no mapping"):
        entries_of("rfd", "vmx")


def test_levels_are_those_of_the_patch():
    levels = {entry.object: entry.level for entry in entries_of("rfc", "vmx")}
    assert levels["kernel image"] is levels["percpu first chunk"] is Level.PMD
    assert levels["cpu_entry_area"] is levels["espfix64"] is Level.P4D
    assert levels["IRQ stack"] is levels["kvm module"] is levels["vcpu"] is Level.PTE
    assert "VMCB" in {entry.object for entry in entries_of("rfc", "svm")} and "VMCS" in levels


NAMES = [row.name for row in OBJECTS if row.name not in ("other vcpu", "direct map", "VMM's memory")]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=25), st.sampled_from([4, 5]))
def test_whatever_was_mapped_and_unmapped_before_a_space_maps_its_entries(operations, levels):
    host = Host((VmShape("a", (0, 1)), VmShape("b", (2,))), 3, levels=levels)
    image = host.table.image()
    isolated = Isolated(host, 1)
    for name, split in operations:
        if isolated.has(name):
            isolated.unmap(name)
        else:
            isolated.map(name, split=split and name not in TASK_OBJECTS)
    again = Isolated(host, 1)
    again.apply(isolated.entries)
    assert list(isolated.space.table.runs()) == list(again.space.table.runs())
    assert isolated.space.ranges() == again.space.ranges()
    for each in (isolated, again):
        tear_down(each)
        each.free()
    assert host.table.image() == image
