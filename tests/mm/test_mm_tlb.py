"""The TLB: what is found under which PCID, what a switch flushes, and what an unmap leaves behind."""

from __future__ import annotations

import pytest

from asid.errors import MappingRefused
from asid.mm.entry import KERNEL, PAGE
from asid.mm.pagetable import PageTable
from asid.mm.space import Space
from asid.mm.tlb import ASIDS, Tlb, pcid_of

BASE = 0xFFFF_8880_0000_0000
HOST, ISOLATED = pcid_of(0), pcid_of(0, 0)


@pytest.fixture
def tables():
    host = PageTable("host")
    host.map(BASE, BASE + (4 << 20), 0, KERNEL, 2 << 20)
    host.map(BASE + (4 << 20), BASE + (4 << 20) + 16 * PAGE, 4 << 20, KERNEL)
    space = Space("vm", host)
    space.map(BASE + (4 << 20), PAGE)
    return host, space


def test_each_address_space_has_its_own_pcid():
    numbers = [pcid_of(asid, space) for asid in range(ASIDS) for space in (None, 0, 1, 2)]
    assert len(set(numbers)) == 24 and min(numbers) > 0 and max(numbers) < 1 << 11, "PTI's bit is free"
    with pytest.raises(MappingRefused, match="no PCID of ASID 6"):
        pcid_of(6)


def test_a_large_entry_is_one_entry_of_the_tlb(tables):
    host, _ = tables
    tlb = Tlb()
    tlb.write_cr3(HOST)
    assert tlb.translate(host, BASE + 8) == tlb.translate(host, BASE + (2 << 20) - 8) == host.lookup(BASE)
    assert (tlb.fills, tlb.hits, len(tlb)) == (1, 1, 1)


def test_writing_cr3_flushes_the_new_pcid_alone_and_noflush_keeps_it(tables):
    host, space = tables
    tlb = Tlb()
    for pcid, table in ((HOST, host), (ISOLATED, space.table)):
        tlb.write_cr3(pcid)
        tlb.translate(table, BASE + (4 << 20))
    assert tlb.write_cr3(HOST, noflush=True) == 0 and len(tlb) == 2
    assert tlb.write_cr3(HOST) == 1 and len(tlb) == 1


def test_what_was_unmapped_is_reachable_until_it_is_flushed(tables):
    _, space = tables
    tlb = Tlb()
    tlb.enter(ISOLATED, space.table)
    address = BASE + (4 << 20)
    entry = tlb.translate(space.table, address)
    space.unmap(address)
    assert tlb.translate(space.table, address) == entry != 0 == space.table.lookup(address)
    assert tlb.stale(space.table, ISOLATED) == (address,)
    tlb.flush_page(address)
    assert tlb.translate(space.table, address) == 0 and tlb.stale(space.table, ISOLATED) == ()


def test_entry_flushes_when_the_table_has_changed_and_only_then(tables):
    host, space = tables
    tlb = Tlb()
    assert not tlb.enter(ISOLATED, space.table), "nothing is known of it yet"
    tlb.translate(space.table, BASE + (4 << 20))
    assert not tlb.enter(HOST, host)
    assert tlb.enter(ISOLATED, space.table) and len(tlb) == 1
    space.unmap(BASE + (4 << 20))
    assert not tlb.enter(ISOLATED, space.table) and len(tlb) == 0


def test_global_entries_would_undo_the_isolation(tables):
    host, space = tables
    for pge, reached in ((False, 0), (True, host.lookup(BASE))):
        tlb = Tlb(pge=pge)
        tlb.enter(HOST, host)
        tlb.translate(host, BASE)
        tlb.enter(ISOLATED, space.table)
        assert tlb.translate(space.table, BASE) == reached, "the direct map is not in the space"
        tlb.flush(ISOLATED)
        assert len(tlb) == 1, "the host's entry, global or not, is still there"
        tlb.flush_all()
        assert len(tlb) == 0 and tlb.translate(space.table, BASE) == 0


def test_the_entry_used_longest_ago_makes_room(tables):
    host, _ = tables
    tlb = Tlb(entries_max=2)
    first = BASE + (4 << 20)
    for page in (0, 1, 0, 2):
        tlb.translate(host, first + page * PAGE)
    fills = tlb.fills
    tlb.translate(host, first)
    assert tlb.fills == fills and len(tlb) == 2
    tlb.translate(host, first + PAGE)
    assert tlb.fills == fills + 1


def test_a_miss_is_not_kept(tables):
    _, space = tables
    tlb = Tlb()
    assert tlb.translate(space.table, BASE) == 0 and len(tlb) == 0
    space.map(BASE, PAGE)
    assert tlb.translate(space.table, BASE) != 0
