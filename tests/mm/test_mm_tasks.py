"""vCPU tasks in an isolated space: users counted, memory shared by threads, stacks that are given away."""

from __future__ import annotations

import pytest
from mm_refusal import refused

from asid.errors import MappingRefused
from asid.mm.entry import KERNEL, PAGE
from asid.mm.pagetable import PageTable
from asid.mm.space import Space
from asid.mm.tasks import Buffer, Tasks

DIRECT = 0xFFFF_8880_0000_0000
STACKS = 0xFFFF_C900_0000_0000
MM, PGD = DIRECT + 0x10_0000, DIRECT + 0x20_0000


@pytest.fixture
def host():
    table = PageTable("host")
    table.map(DIRECT, DIRECT + 1024 * PAGE, 0, KERNEL)
    table.map(STACKS, STACKS + 64 * PAGE, 1 << 30, KERNEL)
    return table


@pytest.fixture
def tasks(host):
    return Tasks(Space("vm0", host))


def buffers(number, stack=None, process=0):
    """What a task has: task_structs share pages, threads of a process have mm_struct and PGD in common."""
    return (
        Buffer(DIRECT + number * 0xC00, 0xC00, "task_struct"),
        Buffer(STACKS + 4 * PAGE * (number if stack is None else stack), 4 * PAGE, "stack"),
        Buffer(MM + process * PAGE, 0x800, "mm_struct", shared=True),
        Buffer(PGD + process * PAGE, PAGE, "pgd", shared=True),
    )


def is_mapped(tasks, some):
    return [tasks.space.is_mapped(buffer.start, buffer.size) for buffer in some]


def test_a_task_stays_while_it_has_a_user(tasks):
    """Two vCPUs, or two entries, of one task: version 1 has a flag, and the first to clean up takes it away."""
    tasks.map("a", buffers(0))
    tasks.map("a", buffers(0))
    tasks.unmap("a")
    assert all(is_mapped(tasks, buffers(0)))
    tasks.unmap("a")
    assert not any(is_mapped(tasks, buffers(0)))
    assert tasks.space.table.directories == 1


def test_more_unmaps_than_maps_are_refused(tasks):
    """Version 1 gives back a lock there that it has not taken."""
    tasks.map("a", buffers(0))
    tasks.unmap("a")
    assert "vm0, task a" in str(refused("EINVAL", lambda: tasks.unmap("a")))
    refused("EINVAL", lambda: tasks.unmap("b"))


def test_threads_share_their_process(tasks):
    tasks.map("a", buffers(0))
    tasks.map("b", buffers(1))
    tasks.unmap("a")
    assert is_mapped(tasks, buffers(0)[1:]) == [False, True, True]
    assert all(is_mapped(tasks, buffers(1)))
    tasks.unmap("b")
    assert not any(is_mapped(tasks, buffers(1)))


def test_task_structs_in_one_page_are_no_reuse(tasks):
    tasks.map("a", buffers(0))
    tasks.map("b", buffers(1, process=1))
    assert tasks.is_mapped("a")
    tasks.unmap("a")
    assert all(is_mapped(tasks, buffers(1, process=1)))


def test_a_freed_stack_at_whose_address_another_task_has_its_own(host, tasks):
    """The task was not unmapped when it ended. Its stack's address is another task's now, with other memory."""
    tasks.map("old", buffers(0))
    host.unmap(STACKS, STACKS + 4 * PAGE)
    host.map(STACKS, STACKS + 4 * PAGE, 2 << 30, KERNEL)
    tasks.map("new", buffers(7, stack=0, process=1))
    assert tasks.space.table.walk(STACKS).physical(STACKS) == 2 << 30, "not what the dead task had there"
    assert not tasks.is_mapped("old")
    assert not any(is_mapped(tasks, (buffers(0)[0], *buffers(0)[2:])))
    assert tasks.references("old") == 1
    tasks.unmap("old")
    assert tasks.references("old") == 0
    assert all(is_mapped(tasks, buffers(7, stack=0, process=1))), "the late clean-up of the dead takes nothing away"
    refused("EINVAL", lambda: tasks.unmap("old"))


def test_a_stack_that_is_found_again_in_part_or_within_another(tasks):
    tasks.map("old", buffers(0))
    shifted = Buffer(STACKS + 2 * PAGE, 4 * PAGE, "stack")
    tasks.map("new", (shifted,))
    assert not tasks.is_mapped("old")
    assert not tasks.space.is_mapped(STACKS, PAGE)
    assert tasks.space.is_mapped(shifted.start, shifted.size)


def test_memory_of_a_dead_process_that_is_a_stack_now(tasks):
    tasks.map("a", buffers(0))
    tasks.map("b", buffers(1))
    tasks.map("new", (Buffer(PGD, 4 * PAGE, "stack"),))
    assert not tasks.is_mapped("a")
    assert not tasks.is_mapped("b")
    assert [seen.what for seen in tasks.space.ranges()] == ["stack"]


def test_a_task_that_ends_is_gone_whoever_counts_on_it(tasks):
    tasks.map("a", buffers(0))
    tasks.map("a", buffers(0))
    tasks.end("a")
    assert not any(is_mapped(tasks, buffers(0)))
    tasks.unmap("a")
    tasks.unmap("a")
    refused("EINVAL", lambda: tasks.unmap("a"))
    tasks.end("a")
    assert tasks.references("a") == 0


def test_one_name_is_not_for_two_tasks(tasks):
    tasks.map("a", buffers(0))
    assert "these are not its buffers" in str(refused("EINVAL", lambda: tasks.map("a", buffers(1))))
    tasks.end("a")
    tasks.map("a", buffers(1))
    assert all(is_mapped(tasks, buffers(1)))


def test_a_task_of_which_one_buffer_cannot_be_mapped_is_not_mapped(tasks):
    tasks.map("old", buffers(0))
    image = tasks.space.table.image()
    unknown = Buffer(STACKS + 100 * PAGE, 4 * PAGE, "stack")
    with pytest.raises(MappingRefused):
        tasks.map("new", (buffers(5, stack=0)[1], unknown))
    assert tasks.space.table.image() == image
    assert tasks.is_mapped("old"), "it was not taken for dead either"
    assert tasks.references("new") == 0
    tasks.unmap("old")
    assert tasks.space.ranges() == ()
