"""Isolated spaces: ranges that share entries, per-CPU variables, modules, buffers that move, and what is exposed.

Several tests are of what the postings of the RFC did wrong; they say so.
"""

from __future__ import annotations

import pytest
from mm_refusal import refused

from asid.mm.entry import ADDRESS_END, KERNEL, KERNEL_TEXT, PAGE, Level
from asid.mm.pagetable import PageTable
from asid.mm.space import Space

MIB, GIB = 1 << 20, 1 << 30
DIRECT = 0xFFFF_8880_0000_0000
VMALLOC = 0xFFFF_C900_0000_0000
TEXT = 0xFFFF_FFFF_8100_0000
MODULES = 0xFFFF_FFFF_A000_0000
CPUS = 4
PERCPU = [DIRECT + GIB + cpu * 64 * PAGE for cpu in range(CPUS)]


@pytest.fixture
def host():
    """A host whose direct map is of 2 MiB entries, but for the GiB with the per-CPU variables, and 1 GiB ones."""
    table = PageTable("host")
    table.map(DIRECT, DIRECT + GIB, 0, KERNEL, 2 * MIB)
    table.map(DIRECT + GIB, DIRECT + GIB + 16 * MIB, GIB, KERNEL)
    table.map(DIRECT + 2 * GIB, DIRECT + 4 * GIB, 2 * GIB, KERNEL, GIB)
    table.map(TEXT, TEXT + 16 * MIB, 16 * MIB, KERNEL_TEXT, 2 * MIB)
    table.map(MODULES, MODULES + 4 * MIB, 64 * MIB, KERNEL_TEXT)
    table.map(VMALLOC, VMALLOC + 64 * PAGE, 128 * MIB, KERNEL)
    return table


@pytest.fixture
def space(host):
    """A space; freed after the test, it leaves the host's table as it was, and no directory behind."""
    made = Space("vm0", host, percpu_offsets=PERCPU)
    yield made
    image = host.image()
    made.free()
    assert host.image() == image
    assert set(host.frames.directories) == set(image)


def mapped(space):
    return [(run.start, run.end) for run in space.table.runs(flags=0)]


# --- overlaps -------------------------------------------------------------------------------------------------


def test_what_another_range_covers_stays(space):
    """Two buffers share a page: version 1 counts nothing and clears it with the first that goes."""
    space.map(VMALLOC + 100, PAGE, what="kvm_vmx")
    space.map(VMALLOC + PAGE + 200, PAGE, what="kvm_lapic")
    assert mapped(space) == [(VMALLOC, VMALLOC + 3 * PAGE)]
    assert space.overlaps(VMALLOC + 100) == 1
    space.unmap(VMALLOC + 100)
    assert mapped(space) == [(VMALLOC + PAGE, VMALLOC + 3 * PAGE)]
    assert space.overlaps(VMALLOC + PAGE + 200) == 0
    space.unmap(VMALLOC + PAGE + 200)
    assert mapped(space) == []
    assert space.table.directories == 1


def test_a_range_that_begins_before_another_is_seen(space):
    """Version 1 looks for the range in which a new one begins, and not for those that it reaches."""
    space.map(VMALLOC + 2 * PAGE, PAGE)
    space.map(VMALLOC, 4 * PAGE)
    space.unmap(VMALLOC + 2 * PAGE)
    assert space.is_mapped(VMALLOC, 4 * PAGE)
    space.unmap(VMALLOC)
    assert mapped(space) == []


def test_neighbours_do_not_overlap(space):
    """The unmap of version 2 takes the end of a range for a part of it, its map does not."""
    space.map(VMALLOC, 3 * PAGE)
    space.map(VMALLOC + 3 * PAGE, 3 * PAGE)
    assert space.overlaps(VMALLOC) == space.overlaps(VMALLOC + 3 * PAGE) == 0
    space.unmap(VMALLOC)
    assert mapped(space) == [(VMALLOC + 3 * PAGE, VMALLOC + 6 * PAGE)]


def test_a_range_inside_a_larger_one_is_kept_when_that_goes(space):
    """Version 1 forgets it: it was mapped already, and is gone with the larger one."""
    space.map(MODULES, 4 * MIB, Level.PMD, what="modules")
    assert space.table.directories == 3
    space.map(MODULES + PAGE, 2 * PAGE, what="kvm")
    assert space.table.directories == 3, "it is in the table already"
    space.unmap(MODULES)
    assert mapped(space) == [(MODULES + PAGE, MODULES + 3 * PAGE)]


def test_a_larger_range_takes_the_place_of_smaller_ones_and_gives_it_back(space):
    """Version 2 refuses it (EBUSY), since the smaller ones' directory is in the way."""
    space.map(MODULES + PAGE, 2 * PAGE, what="kvm")
    space.map(MODULES, 4 * MIB, Level.PUD, what="modules")
    assert space.table.directories == 2
    space.unmap(MODULES)
    assert mapped(space) == [(MODULES + PAGE, MODULES + 3 * PAGE)]
    assert space.table.directories == 4


def test_the_same_start_again_is_refused_and_changes_nothing(space):
    """Version 1 clears what was mapped there, and maps the new size."""
    space.map(VMALLOC, 2 * PAGE, what="memslots")
    error = refused("EBUSY", lambda: space.map(VMALLOC, PAGE))
    assert "memslots at 0xffffc90000000000, 8 KiB at PTE level starts here" in str(error)
    assert space.is_mapped(VMALLOC, 2 * PAGE)


def test_an_unknown_range_is_not_unmapped_in_silence(space):
    space.map(VMALLOC, 2 * PAGE, what="kvm")
    error = refused("EINVAL", lambda: space.unmap(VMALLOC + PAGE))
    assert "must be the start of a range, e.g. kvm at 0xffffc90000000000" in str(error)
    assert space.is_mapped(VMALLOC, 2 * PAGE)


def test_a_range_is_cleared_at_the_level_at_which_it_was_mapped(host, space):
    """Cleared at a lower one, the entries of the host's own directory would go."""
    image = host.image()
    for level in (Level.PMD, Level.PUD, Level.P4D, Level.PGD):
        space.map(VMALLOC, 8 * PAGE, level)
        space.unmap(VMALLOC)
        assert mapped(space) == []
        assert host.image() == image


def test_what_the_host_does_not_map_is_refused(space):
    refused("EFAULT", lambda: space.map(VMALLOC + GIB, PAGE))
    refused("EINVAL", lambda: space.map(0x8000_0000_0000, PAGE))
    refused("EINVAL", lambda: space.map(VMALLOC, 0))
    assert space.ranges() == ()
    assert space.table.directories == 1


def test_vms_share_nothing_but_the_host(host, space):
    other = Space("vm1", host)
    space.map(VMALLOC, PAGE, what="kvm_vmx of vm0")
    other.map(VMALLOC + PAGE, PAGE, what="kvm_vmx of vm1")
    assert not space.table.lookup(VMALLOC + PAGE)
    assert not other.table.lookup(VMALLOC)
    other.free()
    assert other.ranges() == ()
    assert space.is_mapped(VMALLOC, PAGE)


# --- what is exposed ------------------------------------------------------------------------------------------


def test_bytes_beside_a_buffer_that_does_not_fill_its_pages_are_told(space):
    space.map(VMALLOC + 100, 200, what="kvm_vmx")
    slack = space.slack()
    assert [(part.start, part.end, part.exposed) for part in slack] == [
        (VMALLOC, VMALLOC + 100, 100),
        (VMALLOC + 300, VMALLOC + PAGE, PAGE - 300),
    ]
    assert space.exposed_bytes() == PAGE - 200
    space.map(VMALLOC, 100, what="its neighbour")
    assert space.exposed_bytes() == PAGE - 300
    assert [part.range.what for part in space.slack()] == ["its neighbour", "kvm_vmx"], "both expose the rest"


def test_a_buffer_in_a_large_entry_exposes_the_entry_unless_it_is_split(host, space):
    space.map(DIRECT + 3 * GIB + 5 * PAGE, PAGE)
    assert space.exposed_bytes() == GIB - PAGE
    space.map(DIRECT + 5 * PAGE, PAGE)
    assert space.exposed_bytes() == GIB + 2 * MIB - 2 * PAGE
    other = Space("vm1", host)
    other.map(DIRECT + 5 * PAGE + 10, 100, split=True)
    assert other.exposed_bytes() == PAGE - 100
    other.map(DIRECT + 3 * GIB + 5 * PAGE, PAGE, split=True)
    assert other.exposed_bytes() == PAGE - 100
    assert other.is_mapped(DIRECT + 3 * GIB + 5 * PAGE, PAGE)
    other.free()


def test_two_buffers_in_one_large_entry(space):
    space.map(DIRECT, PAGE)
    space.map(DIRECT + MIB, PAGE)
    space.unmap(DIRECT)
    assert space.is_mapped(DIRECT + MIB, PAGE), "the entry that both needed was of 2 MiB"
    space.map(DIRECT + MIB + 2 * PAGE, PAGE, split=True)
    space.unmap(DIRECT + MIB)
    assert mapped(space) == [(DIRECT + MIB + 2 * PAGE, DIRECT + MIB + 3 * PAGE)]


def test_at_an_address_are_the_ranges_that_expose_it(space):
    space.map(VMALLOC + 100, 200, what="kvm_vmx")
    space.map(VMALLOC + 5 * PAGE, PAGE, Level.PMD, what="stacks")
    assert [seen.what for seen in space.at(VMALLOC + 3000)] == ["stacks", "kvm_vmx"]
    assert [seen.what for seen in space.at(VMALLOC + 60 * PAGE)] == ["stacks"]
    assert space.at(VMALLOC + 2 * MIB) == []


# --- per-CPU variables ----------------------------------------------------------------------------------------


def test_a_percpu_variable_is_mapped_for_every_possible_cpu(space):
    made = space.map_percpu(0x1000, 256, what="cpu_tlbstate")
    assert [seen.start for seen in made] == [offset + 0x1000 for offset in PERCPU]
    assert made[3].what == "cpu_tlbstate of cpu 3"
    assert all(space.is_mapped(offset + 0x1000, 256) for offset in PERCPU)
    space.unmap_percpu(0x1000)
    assert mapped(space) == []
    refused("EINVAL", lambda: space.unmap_percpu(0x1000))


def test_offsets_of_cpus_wrap(host):
    space = Space("vm0", host, percpu_offsets=[(VMALLOC - 0xFFFF_FFFF_8200_0000) % ADDRESS_END])
    space.map_percpu(0xFFFF_FFFF_8200_0000 + PAGE, 8)
    assert mapped(space) == [(VMALLOC + PAGE, VMALLOC + 2 * PAGE)]


def test_a_percpu_variable_that_fails_for_one_cpu_is_mapped_for_none(host):
    """Version 1 clears a range at the variable's own address then, at which nothing was mapped, and leaves the rest."""
    space = Space("vm0", host, percpu_offsets=[*PERCPU, VMALLOC + GIB])
    before = space.table.image()
    error = refused("EFAULT", lambda: space.map_percpu(0x1000, 256, what="cpu_tlbstate"))
    assert "cpu_tlbstate of cpu 4" in str(error)
    assert space.ranges() == ()
    assert space.table.image() == before
    refused("EINVAL", lambda: space.unmap_percpu(0x1000))


def test_a_percpu_variable_for_which_there_is_no_room_is_mapped_for_none(host):
    offsets = [DIRECT + GIB + cpu * 2 * MIB for cpu in range(8)]
    space = Space("vm0", host, percpu_offsets=offsets, directories_max=6)
    refused("ENOMEM", lambda: space.map_percpu(0, 8))
    assert (space.ranges(), space.table.directories) == ((), 1)


def test_percpu_variables_in_one_page(space):
    space.map_percpu(0x1000, 8, what="this_cpu_off")
    space.map_percpu(0x1008, 8, what="current_task")
    space.unmap_percpu(0x1000)
    assert all(space.is_mapped(offset + 0x1008, 8) for offset in PERCPU)
    assert space.exposed_bytes() == CPUS * (PAGE - 8)


# --- modules, and buffers that move ---------------------------------------------------------------------------


def test_modules_go_by_name(space):
    space.map_module("kvm", MODULES, 600_000)
    space.map_module("kvm_intel", MODULES + MIB, 200_000)
    refused("EBUSY", lambda: space.map_module("kvm", MODULES + 2 * MIB, PAGE))
    assert space.unmap_module("kvm").size == 600_000
    error = refused("EINVAL", lambda: space.unmap_module("kvm"))
    assert "must be kvm_intel" in str(error)
    space.map_module("kvm", MODULES + 2 * MIB, 600_000)
    assert space.is_mapped(MODULES + 2 * MIB, 600_000)


def test_a_module_that_cannot_be_mapped_is_not_known(space):
    refused("EFAULT", lambda: space.map_module("kvm", MODULES + GIB, PAGE))
    space.map_module("kvm", MODULES, PAGE)
    assert space.is_mapped(MODULES, PAGE)


def test_a_bus_is_mapped_with_its_devices_and_followed_when_it_grows(space):
    """Version 1 maps the header at first, and the devices only when the bus has been allocated again."""
    header, device = 8, 24
    space.remap(None, VMALLOC + 64, header + 1000 * device, what="bus 0")
    assert space.is_mapped(VMALLOC + 64, 24_008)
    space.remap(VMALLOC + 64, VMALLOC + 16 * PAGE, header + 300 * device)
    assert [(seen.start, seen.size, seen.what) for seen in space.ranges()] == [(VMALLOC + 16 * PAGE, 7208, "bus 0")]
    assert mapped(space) == [(VMALLOC + 16 * PAGE, VMALLOC + 18 * PAGE)]
    space.remap(VMALLOC + 16 * PAGE, None)
    assert mapped(space) == []


def test_memslots_that_grow_where_they_are(space):
    space.remap(None, VMALLOC, PAGE, what="memslots")
    space.remap(VMALLOC, VMALLOC, 3 * PAGE)
    assert mapped(space) == [(VMALLOC, VMALLOC + 3 * PAGE)]


def test_a_remap_that_fails_leaves_the_old_one(space):
    space.map(VMALLOC, PAGE, what="memslots")
    refused("EFAULT", lambda: space.remap(VMALLOC, VMALLOC + GIB, PAGE))
    assert space.is_mapped(VMALLOC, PAGE)
    assert [seen.what for seen in space.ranges()] == ["memslots"]


def test_a_range_follows_the_host_when_it_is_told_to(host, space):
    """A page that the host gave away must not stay mapped (asked for by a reviewer of version 1, for vmalloc)."""
    space.map(VMALLOC, 4 * PAGE, what="stack")
    space.map(VMALLOC + 8 * PAGE, PAGE, what="other")
    host.unmap(VMALLOC, VMALLOC + 4 * PAGE)
    host.map(VMALLOC + PAGE, VMALLOC + 3 * PAGE, GIB, KERNEL)
    assert [seen.what for seen in space.stale()] == ["stack"]
    assert [seen.what for seen in space.refresh(VMALLOC, VMALLOC + PAGE)] == ["stack"]
    assert space.stale() == []
    assert mapped(space) == [(VMALLOC + PAGE, VMALLOC + 3 * PAGE), (VMALLOC + 8 * PAGE, VMALLOC + 9 * PAGE)]
    space.unmap(VMALLOC)
    assert mapped(space) == [(VMALLOC + 8 * PAGE, VMALLOC + 9 * PAGE)]


def test_a_large_entry_that_the_host_has_cut_up(host, space):
    space.map(DIRECT, PAGE, what="kvm_vmx")
    space.map(DIRECT + MIB, PAGE, what="kvm_lapic")
    host.unmap(DIRECT, DIRECT + 2 * MIB)
    host.map(DIRECT, DIRECT + MIB, 0, KERNEL)
    host.map(DIRECT + MIB, DIRECT + 2 * MIB, 0, KERNEL)
    error = refused("EBUSY", lambda: space.map(DIRECT + 8 * PAGE, PAGE))
    assert "it maps 2 MiB as a whole" in str(error)
    assert [seen.what for seen in space.refresh(DIRECT, DIRECT + 1)] == ["kvm_vmx", "kvm_lapic"]
    assert mapped(space) == [(DIRECT, DIRECT + PAGE), (DIRECT + MIB, DIRECT + MIB + PAGE)]
    assert space.exposed_bytes() == 0


def test_an_unmap_beside_what_the_host_has_joined_keeps_its_account(host, space):
    space.map(VMALLOC, 2 * PAGE)
    space.map(VMALLOC + PAGE, 2 * PAGE)
    host.unmap(VMALLOC, VMALLOC + 64 * PAGE)
    host.map(VMALLOC, VMALLOC + 2 * MIB, 2 * GIB, KERNEL, 2 * MIB)
    space.unmap(VMALLOC)
    assert space.exposed_bytes() == 2 * MIB - 2 * PAGE
    space.unmap(VMALLOC + PAGE)
    assert mapped(space) == []


def test_the_generation_of_a_space_grows_with_its_ranges_and_with_its_host(host, space):
    first = space.generation
    space.map(TEXT, 16 * MIB, Level.PMD)
    second = space.generation
    space.map(VMALLOC, PAGE, Level.PGD)
    host.map(VMALLOC + GIB, VMALLOC + GIB + PAGE, 0, KERNEL)
    assert first < second < space.generation
    assert space.table.lookup(VMALLOC + GIB)
