"""The host of a model machine: every object in its area and mapped, the same each time, given out again when freed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from asid.errors import ConfigError
from asid.mm.entry import PAGE
from asid.mm.host import Host, VmShape
from asid.mm.hostsymbols import with_modules
from asid.mm.layout import Sensitivity
from asid.mm.objects import OBJECTS
from asid.mm.symbols import parse_symbols
from asid.mm.symbols_bundled import bundled

VMS = (VmShape("a", (0, 1)), VmShape("b", (2,)))
WHOLE = ("direct map", "kernel image", "percpu first chunk")  # others lie in these


def make(**given) -> Host:
    return Host(VMS, 4, **given)


@pytest.mark.parametrize("given", [{}, {"levels": 5}, {"before_4_20": True}], ids=str)
def test_every_object_lies_mapped_in_its_home_area(given):
    host = make(**given)
    names = {place.object.name for place in host.placed()} | {"other vcpu"}
    assert names == {row.name for row in OBJECTS}
    for place in host.placed():
        area = host.layout.find(place.start)
        assert (area is not None and place.end <= area.end) or place.object.name == "kernel image"
        home = place.object.area
        assert area is None or area.name == home or home == "kernel image"
        if place.object.name != "kernel image":
            assert host.table.mapped_bytes(place.start, place.end) == place.size, place


def test_no_two_objects_share_a_byte_but_those_that_are_made_of_others():
    spans = sorted((place.start, place.end) for place in make().placed() if place.object.name not in WHOLE)
    for (_, end), (start, _) in pairwise(spans):
        assert end <= start


def test_the_same_machine_twice_is_the_same_to_the_bit():
    one, two = make(), make()
    assert one.placed() == two.placed() and one.table.image() == two.table.image()


def test_neighbours_of_another_vm_share_a_page_of_a_slab():
    host = make()
    one, two = host.at("io devices", 1), host.at("io devices", 2)
    assert one.start // PAGE == two.start // PAGE
    assert host.at("vcpu", 1, 0).start // PAGE != host.at("vcpu", 2, 0).start // PAGE, "larger than a page"


def test_threads_of_a_process_have_one_mm_and_a_vcpu_knows_its_other():
    host = make()
    assert host.at("mm_struct", 1, 0) == host.at("mm_struct", 1, 1) != host.at("mm_struct", 2, 0)
    assert host.at("other vcpu", 1, 0) == host.at("vcpu", 1, 1)
    assert host.at("other vcpu", 2, 0) == host.at("vcpu", 2, 0), "a VM of one vCPU has no other"
    assert len(host.all_of("vcpu", 1)) == 2 and len(host.all_of("mm_struct", 1)) == 1
    assert len(host.all_of("current_task", 1)) == 4, "of every possible CPU"


def test_per_cpu_variables_are_at_their_offset_in_each_unit():
    host = make()
    offset = bundled().address("current_task")
    assert [host.at("current_task", cpu=cpu).start - host.percpu_offsets[cpu] for cpu in range(4)] == [offset] * 4
    assert host.variable("current_task") == offset and host.variable("vcpu", 1) is None
    assert host.variable("srcu data", 1) != host.variable("srcu data", 2), "each VM's own"


def test_many_vms_have_room_in_the_units():
    host = Host([VmShape(f"v{number}", (number % 8,)) for number in range(200)], 8)
    last = host.at("srcu data", 200, cpu=3)
    assert last.end <= host.percpu_offsets[4]


def test_what_is_allocated_again_lies_elsewhere_and_what_was_freed_is_given_out_first():
    host = make()
    old, new = host.reallocate("memslots", 1, 40_000)
    assert old.start != new.start and host.at("memslots", 1) == new and new.size == 40_000
    assert host.table.mapped_bytes(old.start, old.end) == 0
    assert host.table.mapped_bytes(new.start, new.end) == 40_000
    smaller, back = host.reallocate("memslots", 1, old.size)
    assert smaller == new and back.start == old.start


def test_a_new_task_has_the_old_ones_addresses_and_other_memory():
    host = make()
    before = [host.at(name, 1, 0) for name in ("task_struct", "task stack")]
    stack = before[1].start
    was = host.table.walk(stack).physical(stack)
    host.new_task(1, 0)
    assert [host.at(name, 1, 0) for name in ("task_struct", "task stack")] == before
    assert host.table.walk(stack).physical(stack) != was


def test_symbols_without_kvm_get_ours_behind_their_own_modules():
    text = (
        "ffffffff81000000 T _text\nffffffff81001000 T do_syscall_64\nffffffff81400000 T _etext\n"
        "ffffffff81a00000 B _end\nffffffffa0300000 t ext4_sync\t[ext4]\nffffffffa0100000 t e1000_open\t[e1000]\n"
    )
    symbols = with_modules(parse_symbols(text))
    ours = symbols.named("fast_page_fault", "kvm")
    assert ours is not None and ours.address > 0xFFFFFFFFA0300000
    assert with_modules(bundled()) is bundled()
    host = Host(VMS, 4, symbols=parse_symbols(text))
    assert host.at("kernel text").end == 0xFFFFFFFF81400000
    assert host.symbols.show(ours.address) == str(bundled().lookup(bundled().address("fast_page_fault")))


@pytest.mark.parametrize(
    ("vms", "cpus", "memory"), [(VMS, 0, None), (VMS, 2, None), ((VmShape("a", ()),), 2, None), (VMS, 4, 1 << 30)]
)
def test_a_machine_that_cannot_be_is_refused(vms, cpus, memory):
    with pytest.raises(ConfigError) as caught:
        Host(vms, cpus, memory=memory)
    assert caught.value.allowed


def test_what_a_vm_needs_is_no_secret_by_name():
    host = make()
    assert all(place.object.sensitivity is not Sensitivity.THIS_VM for place in host.placed() if not place.vm)
    with pytest.raises(ConfigError, match="no 'vcpu' of VM 3"):
        host.at("vcpu", 3)
