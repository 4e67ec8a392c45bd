"""What a VM's table exposes: named, with the range that does it, and how much nobody asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from asid.mm.entry import PAGE, Level
from asid.mm.host import Host, VmShape
from asid.mm.isolated import Isolated
from asid.mm.population import MINIMAL, RFC, populate
from asid.mm.secrets import ANOTHER, Ownership, exposures, together


@pytest.fixture
def host():
    return Host((VmShape("a", (0, 1)), VmShape("b", (2,))), 4)


def exposed(isolated):
    return {(seen.name, seen.by): seen for seen in together(exposures(isolated))}


def test_every_address_is_somebodys_and_the_smallest_object_counts(host):
    ownership = Ownership(host, 1)
    chunk = host.at("percpu first chunk")
    pieces = list(ownership.of(chunk.start, chunk.end))
    assert (pieces[0].start, pieces[-1].end) == (chunk.start, chunk.end)
    assert all(one.end == two.start for one, two in pairwise(pieces))
    whose = {piece.name: piece.whose for piece in pieces}
    assert whose["random pool"] == "host secret" and whose["current_task"] == "globally non-sensitive"
    assert whose["direct map"] == "host secret", "what no object has"
    own = [piece for piece in pieces if piece.name == "srcu data"]
    assert {piece.whose for piece in own} == {"this VM's", ANOTHER}
    (memory,) = ownership.of(*host.user_memory(2))
    assert (memory.name, memory.whose) == ("memory of b", ANOTHER)
    assert not next(ownership.of(*host.user_memory(1))).secret


def test_version_1_of_the_rfc_exposes_the_random_pool_of_every_cpu(host):
    isolated = Isolated(host, 1)
    populate(isolated, RFC, "vmx")
    pool = exposed(isolated)["random pool", "percpu first chunk"]
    assert (pool.size, pool.slack, pool.whose) == (4 * 72, 0, "host secret"), "asked for, with the chunk"
    others = {seen.name: seen for seen in exposed(isolated).values() if seen.whose == ANOTHER}
    assert others["vcpu"].size == others["vcpu"].slack == 19_456, "in the same 2 MiB as this VM's"
    assert "other task" in {name for name, _ in exposed(isolated)}


def test_a_page_exposes_the_neighbour_that_shares_it(host):
    isolated = Isolated(host, 1)
    isolated.map("io devices", split=True)
    found = together(exposures(isolated))
    assert {seen.by for seen in found} == {"io devices"}
    other = next(seen for seen in found if seen.name == "io devices")
    assert (other.whose, other.size, other.slack, other.at) == (ANOTHER, 256, 256, host.at("io devices", 2).start)
    assert sum(seen.size for seen in found) + sum(
        place.size for place in (host.at("io devices", 1), host.at("lapic", 1, 0), host.at("lapic", 1, 1))
    ) == PAGE, "the rest of the page is this VM's own"  # fmt: skip


def test_a_mapping_of_whole_pages_exposes_nothing(host):
    isolated = Isolated(host, 1)
    for name in ("VMCS", "msr_bitmap", "mm pgd", "kvm module"):
        isolated.map(name, split=True)
    assert exposures(isolated) == ()
    isolated.map("L1D flush pages")
    assert exposures(isolated), "the host's entry of 2 MiB as it is"


def test_pieces_are_cut_where_another_range_exposes_them(host):
    isolated = Isolated(host, 1)
    place = host.at("IOMMU tables")
    isolated.space.map(place.start, PAGE, what="one", split=True)
    isolated.space.map(place.start + PAGE, PAGE, what="two", split=True)
    found = exposures(isolated)
    assert [(seen.start, seen.size, seen.by.what, seen.slack) for seen in found] == [
        (place.start, PAGE, "one", 0),
        (place.start + PAGE, PAGE, "two", 0),
    ]
    isolated.space.map(place.start + 2 * PAGE, 8, Level.PMD, what="all")
    assert {seen.by.what for seen in exposures(isolated) if seen.name == "IOMMU tables"} == {"all"}


def test_the_minimal_mapping_exposes_only_what_shares_its_pages(host):
    isolated = Isolated(host, 1)
    populate(isolated, MINIMAL, "vmx")
    found = exposures(isolated)
    assert found and all(seen.slack == seen.size for seen in found)
    assert {"runqueues", "perf events"} <= {seen.name for seen in found}, "beside cpu_tlbstate and current_task"
    assert "random pool" not in {seen.name for seen in found}
