"""Page tables: what they map, whose directories they write into, and what they refuse."""

from __future__ import annotations

from itertools import pairwise

import pytest
from mm_refusal import refused

from asid.mm.entry import ADDRESS_END, FLAGS, KERNEL, KERNEL_READ_ONLY, KERNEL_TEXT, PAGE, USER, Level
from asid.mm.pagetable import PageTable, Walk
from asid.mm.runs import Run

MIB, GIB = 1 << 20, 1 << 30
DIRECT = 0xFFFF_8880_0000_0000
VMALLOC = 0xFFFF_C900_0000_0000
CPU_ENTRY_AREA = 0xFFFF_FE00_0000_0000
TEXT = 0xFFFF_FFFF_8100_0000
MODULES = 0xFFFF_FFFF_A000_0000


@pytest.fixture
def host():
    """A small host: 4 GiB of direct map, the kernel's text and data, a module, stacks, and its image at the end."""
    table = PageTable("host")
    table.map(DIRECT, DIRECT + 4 * GIB, 0, KERNEL, 2 * MIB)
    table.map(TEXT, TEXT + 16 * MIB, 16 * MIB, KERNEL_TEXT, 2 * MIB)
    table.map(MODULES, MODULES + 64 * PAGE, 64 * MIB, KERNEL_TEXT)
    table.map(VMALLOC, VMALLOC + 4 * PAGE, 128 * MIB, KERNEL)
    table.map(CPU_ENTRY_AREA, CPU_ENTRY_AREA + 8 * PAGE, 160 * MIB, KERNEL_READ_ONLY)
    return table


@pytest.fixture
def vm(host):
    return PageTable("vm0", over=host)


# --- one table ------------------------------------------------------------------------------------------------


def test_an_address_is_translated_by_an_entry_of_its_size(host):
    assert host.walk(DIRECT + 5 * MIB + 17).physical(DIRECT + 5 * MIB + 17) == 5 * MIB + 17
    assert host.walk(DIRECT).level is Level.PMD
    assert host.walk(VMALLOC + PAGE + 1).physical(VMALLOC + PAGE + 1) == 128 * MIB + PAGE + 1
    assert host.walk(VMALLOC).level is Level.PTE
    assert host.lookup(VMALLOC) & FLAGS == KERNEL
    host.map(DIRECT + 8 * GIB, DIRECT + 9 * GIB, 8 * GIB, KERNEL, GIB)
    assert host.walk(DIRECT + 9 * GIB - 1).physical(DIRECT + 9 * GIB - 1) == 9 * GIB - 1
    assert host.walk(DIRECT + 9 * GIB - 1).level is Level.PUD


def test_a_walk_ends_at_the_first_empty_entry(host):
    assert host.walk(VMALLOC + 4 * PAGE) == Walk(Level.PTE, 0)
    assert host.walk(VMALLOC + 2 * MIB) == Walk(Level.PMD, 0)
    assert host.walk(VMALLOC + GIB) == Walk(Level.PUD, 0)
    assert host.walk(0) == Walk(Level.PGD, 0)


def test_five_levels():
    table = PageTable("host", levels=5)
    direct = 0xFF11_0000_0000_0000
    table.map(direct, direct + 2 * MIB, 0, KERNEL, 2 * MIB)
    assert table.lookup(direct + MIB)
    assert table.walk(direct + (1 << 39)) == Walk(Level.P4D, 0)
    assert table.walk(0) == Walk(Level.PGD, 0)
    assert table.directories == 4, "PGD, P4D, PUD and PMD"
    other = PageTable("vm0", over=table)
    other.copy(table, direct, direct + PAGE, Level.P4D)
    assert other.directories == 2, "PGD and P4D"


@pytest.mark.parametrize("address", [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_F000, ADDRESS_END])
def test_an_address_that_is_not_canonical_is_no_address(host, address):
    refused("EINVAL", lambda: host.walk(address))
    refused("EINVAL", lambda: host.map(address, address + PAGE, 0, KERNEL))
    assert host.lookup(address) == 0


@pytest.mark.parametrize(
    ("start", "end", "physical", "flags", "size"),
    [
        (DIRECT + 8 * GIB + PAGE, DIRECT + 8 * GIB + PAGE + 2 * MIB, 0, KERNEL, 2 * MIB),
        (DIRECT + 8 * GIB, DIRECT + 8 * GIB + PAGE, 0, KERNEL, 2 * MIB),
        (DIRECT + 8 * GIB, DIRECT + 8 * GIB + 2 * MIB, PAGE, KERNEL, 2 * MIB),
        (DIRECT + 8 * GIB, DIRECT + 8 * GIB + 2 * MIB, 0, KERNEL, MIB),
        (DIRECT + 8 * GIB, DIRECT + 8 * GIB + PAGE, 1 << 52, KERNEL, PAGE),
        (DIRECT + 8 * GIB, DIRECT + 8 * GIB + PAGE, 0, KERNEL | PAGE, PAGE),
        (DIRECT + 8 * GIB, DIRECT + 8 * GIB, 0, KERNEL, PAGE),
    ],
)
def test_what_fits_no_entry_is_refused(host, start, end, physical, flags, size):
    image = host.image()
    refused("EINVAL", lambda: host.map(start, end, physical, flags, size))
    assert host.image() == image


def test_another_entry_is_not_overwritten(host):
    image = host.image()
    refused("EBUSY", lambda: host.map(VMALLOC - PAGE, VMALLOC + PAGE, 0, KERNEL))
    refused("EBUSY", lambda: host.map(DIRECT, DIRECT + PAGE, 0, KERNEL))
    refused("EBUSY", lambda: host.map(VMALLOC, VMALLOC + 2 * MIB, 0, KERNEL, 2 * MIB))
    assert host.image() == image, "what was refused has changed nothing, before the entry in the way either"
    generation = host.generation
    host.map(VMALLOC, VMALLOC + PAGE, 128 * MIB, KERNEL)
    assert host.generation == generation, "the same again is no change"


def test_unmap_keeps_directories_and_a_larger_entry_takes_their_place(host):
    directories = host.directories
    host.unmap(VMALLOC, VMALLOC + 4 * PAGE)
    assert host.walk(VMALLOC) == Walk(Level.PTE, 0)
    assert host.directories == directories
    host.map(VMALLOC, VMALLOC + 2 * MIB, 2 * GIB, KERNEL, 2 * MIB)
    assert host.directories == directories - 1


def test_a_part_of_a_larger_entry_cannot_be_unmapped(host):
    image = host.image()
    error = refused("EINVAL", lambda: host.unmap(DIRECT, DIRECT + 3 * MIB))
    assert "PMD entry of 0xffff888000200000" in error.where
    refused("EINVAL", lambda: host.unmap(VMALLOC, VMALLOC + 1))
    assert host.image() == image


def test_a_user_mapping_lets_the_user_through_all_levels(host):
    host.map(VMALLOC + 8 * PAGE, VMALLOC + 9 * PAGE, 0, KERNEL | USER)
    top = host.image()[min(host.image())][host.paging.indices(VMALLOC)[0]]
    assert top & USER


def test_stretches_of_equal_entries(host):
    assert list(host.runs()) == [
        Run(DIRECT, DIRECT + 4 * GIB, Level.PMD, KERNEL | 1 << 7),
        Run(VMALLOC, VMALLOC + 4 * PAGE, Level.PTE, KERNEL),
        Run(CPU_ENTRY_AREA, CPU_ENTRY_AREA + 8 * PAGE, Level.PTE, KERNEL_READ_ONLY),
        Run(TEXT, TEXT + 16 * MIB, Level.PMD, KERNEL_TEXT | 1 << 7),
        Run(MODULES, MODULES + 64 * PAGE, Level.PTE, KERNEL_TEXT),
    ]
    assert list(host.runs(DIRECT + MIB, DIRECT + 3 * MIB)) == [
        Run(DIRECT + MIB, DIRECT + 3 * MIB, Level.PMD, KERNEL | 1 << 7)
    ]
    assert host.mapped_bytes(0, ADDRESS_END) == 4 * GIB + 16 * MIB + 76 * PAGE


def test_stretches_with_holes_leave_nothing_out(host):
    runs = list(host.runs(holes=True))
    assert runs[0] == Run(0, 0x8000_0000_0000, Level.PGD, 0)
    assert runs[1].start == 0xFFFF_8000_0000_0000
    assert runs[-1].end == ADDRESS_END
    assert all(one.end == other.start for one, other in pairwise(runs[1:]))
    assert Run(VMALLOC + 4 * PAGE, VMALLOC + 2 * MIB, Level.PTE, 0) in runs


# --- a table over another -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", Level)
def test_a_copy_maps_what_the_source_maps_rounded_to_its_level(host, vm, level):
    vm.copy(host, MODULES + PAGE + 5, MODULES + PAGE + 6, level)
    span = vm.paging.span(vm.paging.level(level))
    low = MODULES // span * span
    expected = host.mapped_bytes(low, low + span) if level else PAGE
    assert vm.mapped_bytes(0, ADDRESS_END) == expected
    assert vm.lookup(MODULES + PAGE) == host.lookup(MODULES + PAGE)


def test_what_is_below_a_copied_entry_is_the_hosts(host, vm):
    vm.copy(host, CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE, Level.P4D)
    assert vm.directories == 1
    generation = vm.generation
    host.map(CPU_ENTRY_AREA + GIB, CPU_ENTRY_AREA + GIB + PAGE, 0, KERNEL)
    assert vm.lookup(CPU_ENTRY_AREA + GIB), "a copy of a PGD entry follows the host below it"
    refused("EBUSY", host.free)
    assert vm.generation > generation, "and what was found before may be stale"


def test_a_copy_of_pages_does_not_follow_the_host(host, vm):
    vm.copy(host, VMALLOC, VMALLOC + 4 * PAGE)
    host.unmap(VMALLOC, VMALLOC + 4 * PAGE)
    host.map(VMALLOC, VMALLOC + 4 * PAGE, GIB, KERNEL)
    assert not vm.same_as(host, VMALLOC, VMALLOC + 4 * PAGE)
    vm.copy(host, VMALLOC, VMALLOC + 4 * PAGE)
    assert vm.same_as(host, VMALLOC, VMALLOC + 4 * PAGE), "PTEs may be written over"


def test_pages_that_the_host_maps_no_more_are_not_left_by_a_copy(host, vm):
    vm.copy(host, VMALLOC, VMALLOC + 4 * PAGE)
    host.unmap(VMALLOC + PAGE, VMALLOC + 2 * PAGE)
    assert vm.copy(host, VMALLOC, VMALLOC + 4 * PAGE) == 3
    assert not vm.lookup(VMALLOC + PAGE)


def test_a_large_entry_is_copied_as_it_is_or_in_parts(host, vm):
    other = PageTable("vm1", over=host)
    vm.copy(host, DIRECT + 5 * PAGE, DIRECT + 6 * PAGE)
    other.copy(host, DIRECT + 5 * PAGE, DIRECT + 6 * PAGE, split=True)
    assert vm.mapped_bytes(0, ADDRESS_END) == 2 * MIB == vm.paging.span(Level.PMD)
    assert list(other.runs()) == [Run(DIRECT + 5 * PAGE, DIRECT + 6 * PAGE, Level.PTE, KERNEL)]
    assert other.walk(DIRECT + 5 * PAGE).physical(DIRECT + 5 * PAGE) == 5 * PAGE
    assert other.same_as(host, DIRECT + 5 * PAGE, DIRECT + 6 * PAGE)
    assert not other.same_as(host, DIRECT + 5 * PAGE, DIRECT + 7 * PAGE)


def test_of_a_higher_entry_only_the_same_value_is_set_again(host, vm):
    vm.copy(host, MODULES, MODULES + PAGE, Level.PMD)
    vm.copy(host, MODULES, MODULES + PAGE, Level.PMD)
    vm.copy(host, VMALLOC, VMALLOC + PAGE)
    image = vm.image()
    error = refused("EBUSY", lambda: vm.copy(host, VMALLOC, VMALLOC + PAGE, Level.PUD))
    assert str(error).startswith("vm0, PUD entry of 0xffffc90000000000: EBUSY: something is mapped below it")
    assert vm.image() == image
    vm.copy(host, VMALLOC, VMALLOC + PAGE, Level.PUD, replace=True)
    assert vm.directories == len(image) - 2, "the host's PMD directory is in the place of two of its own"


def test_writing_through_a_directory_of_the_hosts_is_refused(host, vm):
    """A range that was copied at PGD level and is cleared, mapped or unmapped below it would change the host."""
    vm.copy(host, CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE, Level.PGD)
    image, own = host.image(), vm.image()
    error = refused("EINVAL", lambda: vm.clear(CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE, Level.PTE))
    assert str(error).startswith("vm0, PGD entry of 0xfffffe0000000000: EINVAL: the PUD directory at 0x")
    assert "belongs to host" in str(error)
    assert "must be a directory that vm0 allocated" in str(error)
    refused("EINVAL", lambda: vm.map(CPU_ENTRY_AREA + GIB, CPU_ENTRY_AREA + GIB + PAGE, 0, KERNEL))
    refused("EINVAL", lambda: vm.unmap(CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE))
    refused("EINVAL", lambda: vm.reserve(CPU_ENTRY_AREA + GIB, CPU_ENTRY_AREA + GIB + PAGE, Level.PTE))
    assert host.image() == image
    assert vm.image() == own
    vm.clear(CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE, Level.PTE, skip_borrowed=True)
    assert vm.lookup(CPU_ENTRY_AREA)
    vm.clear(CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE, Level.PGD)
    assert not vm.lookup(CPU_ENTRY_AREA)
    assert host.image() == image


def test_one_vm_does_not_write_into_the_directories_of_another(host, vm):
    other = PageTable("vm1", over=host)
    vm.copy(host, VMALLOC, VMALLOC + 4 * PAGE)
    other.copy(vm, VMALLOC, VMALLOC + PAGE, Level.PMD)
    assert other.lookup(VMALLOC + 3 * PAGE)
    image = vm.image()
    assert "belongs to vm0" in str(refused("EINVAL", lambda: other.clear(VMALLOC, VMALLOC + PAGE, Level.PTE)))
    assert vm.image() == image


def test_what_another_table_points_at_is_not_released(host, vm):
    other = PageTable("vm1", over=host)
    vm.copy(host, VMALLOC, VMALLOC + 4 * PAGE)
    other.copy(vm, VMALLOC, VMALLOC + PAGE, Level.PMD)
    image = vm.image()
    refused("EBUSY", vm.free)
    refused("EBUSY", lambda: vm.clear(VMALLOC, VMALLOC + PAGE, Level.PMD))
    assert vm.image() == image
    vm.clear(VMALLOC, VMALLOC + 4 * PAGE, Level.PTE)
    assert not other.lookup(VMALLOC), "it points at an empty directory, not at none"
    other.free()
    vm.free()
    host.free()
    assert not host.frames.directories


def test_tables_do_not_point_at_each_other(host, vm):
    vm.copy(host, VMALLOC, VMALLOC + PAGE, Level.PMD)
    vm.map(DIRECT - GIB, DIRECT - GIB + PAGE, 0, KERNEL)
    refused("EINVAL", lambda: host.copy(vm, DIRECT - GIB, DIRECT - GIB + PAGE, Level.PMD))
    host.copy(vm, DIRECT - GIB, DIRECT - GIB + PAGE)
    assert host.lookup(DIRECT - GIB), "an entry that maps memory is nobody's"


def test_a_table_of_another_host_is_no_source(host):
    vm, image = PageTable("vm0"), host.image()
    refused("EINVAL", lambda: vm.copy(host, VMALLOC, VMALLOC + PAGE))
    refused("EINVAL", lambda: host.copy(host, VMALLOC, VMALLOC + PAGE))
    assert not list(vm.runs()) and host.image() == image


def test_no_directory_beyond_the_limit(host):
    vm = PageTable("vm0", over=host, directories_max=5)
    vm.copy(host, VMALLOC, VMALLOC + PAGE)
    image = vm.image()
    error = refused("ENOMEM", lambda: vm.copy(host, MODULES, MODULES + PAGE))
    assert "must be at most 5" in str(error)
    assert vm.image() == image, "the one directory for which there was room is given back"
    vm.clear(VMALLOC, VMALLOC + PAGE, Level.PTE)
    assert vm.directories == 1
    vm.copy(host, MODULES, MODULES + PAGE)
    assert vm.directories == 4


def test_every_directory_is_recorded_once_however_many_there_are(host, vm):
    """Version 1 keeps them in groups of 64 and, once the first is full, begins a new group for each."""
    host.map(VMALLOC + GIB, VMALLOC + GIB + 300 * 2 * MIB, 4 * GIB, KERNEL)
    vm.copy(host, VMALLOC + GIB, VMALLOC + GIB + 300 * 2 * MIB)
    assert vm.directories == 1 + 1 + 1 + 300
    assert vm.directories == len(vm.image())
    vm.clear(VMALLOC + GIB, VMALLOC + GIB + 300 * 2 * MIB, Level.PTE)
    assert vm.directories == 1


def test_a_clear_at_a_higher_level_takes_its_directories_along(host, vm):
    vm.copy(host, VMALLOC, VMALLOC + PAGE)
    vm.copy(host, VMALLOC + 2 * PAGE, VMALLOC + 3 * PAGE)
    vm.clear(VMALLOC, VMALLOC + PAGE, Level.PUD)
    assert vm.directories == 1
    assert not list(vm.runs())


def test_freed_is_freed(host, vm):
    image = host.image()
    vm.copy(host, DIRECT, DIRECT + GIB, Level.PUD)
    vm.copy(host, VMALLOC, VMALLOC + PAGE)
    vm.free()
    assert host.image() == image
    assert set(host.frames.directories) == set(image)
    assert vm.lookup(VMALLOC) == 0
    refused("EINVAL", vm.free)
    refused("EINVAL", lambda: vm.map(VMALLOC, VMALLOC + PAGE, 0, KERNEL))
    refused("EINVAL", lambda: host.copy(vm, VMALLOC, VMALLOC + PAGE))


def test_reserved_directories_are_shared_by_every_copy_above_them():
    host = PageTable("host")
    host.reserve(VMALLOC, VMALLOC + (32 << 40), Level.PUD)
    assert host.directories == 1 + 64
    vm = PageTable("vm0", over=host)
    vm.copy(host, VMALLOC, VMALLOC + (32 << 40), Level.PGD)
    host.map(VMALLOC + (5 << 40), VMALLOC + (5 << 40) + PAGE, 0, KERNEL)
    assert vm.lookup(VMALLOC + (5 << 40))
    host.unmap(VMALLOC + (5 << 40), VMALLOC + (5 << 40) + PAGE)
    assert not vm.lookup(VMALLOC + (5 << 40)), "and so is what is taken away"


def test_the_generation_grows_with_each_change_and_never_shrinks(host, vm):
    seen = [vm.generation]
    for change in (
        lambda: vm.copy(host, VMALLOC, VMALLOC + PAGE),
        lambda: vm.copy(host, MODULES, MODULES + PAGE, Level.PMD),
        lambda: host.unmap(MODULES, MODULES + PAGE),
        lambda: vm.clear(MODULES, MODULES + PAGE, Level.PMD),
        vm.free,
    ):
        change()
        seen.append(vm.generation)
    assert all(before < after for before, after in pairwise(seen))


def test_several_operations_as_one(host, vm):
    def whole():
        with vm.all_or_nothing():
            vm.copy(host, VMALLOC, VMALLOC + PAGE)
            vm.clear(MODULES, MODULES + PAGE, Level.PMD)
            vm.copy(host, CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE, Level.PGD)
            vm.map(CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE, 0, KERNEL)

    vm.copy(host, MODULES, MODULES + PAGE, Level.PMD)
    image, generation = vm.image(), vm.generation
    lent = {at: directory.borrowed for at, directory in host.frames.directories.items()}
    refused("EINVAL", whole)
    assert vm.image() == image
    assert {at: directory.borrowed for at, directory in host.frames.directories.items()} == lent
    assert vm.generation == generation
