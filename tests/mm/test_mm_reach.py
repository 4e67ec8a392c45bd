"""What a vCPU reaches: exits that are fast under a mapping, the reports of misses, and faults of the fault path."""

from __future__ import annotations

import pytest
from full_exits import is_full

from asid.config import MAPPINGS
from asid.core.exits import SVM, VMX
from asid.errors import InputError
from asid.mm.entry import Level
from asid.mm.fault import FaultLog
from asid.mm.faulting import Ending, handle, survives, switch
from asid.mm.footprint import footprint, parts_for, parts_of
from asid.mm.host import Host, VmShape
from asid.mm.isolated import Isolated
from asid.mm.layout import Sensitivity
from asid.mm.objects import OBJECTS
from asid.mm.parts import Part
from asid.mm.population import ALLOWED, MINIMAL, NAMED, RFC, populate
from asid.mm.reach import Reach

OPEN = (Sensitivity.NON_SENSITIVE, Sensitivity.THIS_VM)


def make(steps=MINIMAL, isa="vmx", **given) -> tuple[Isolated, Reach]:
    host = Host((VmShape("a", (0, 1)), VmShape("b", (2,))), 4, **given)
    isolated = Isolated(host, 1)
    populate(isolated, steps, isa)
    return isolated, Reach(isolated, 0)


@pytest.fixture
def everything_open():
    """A space with all that is nobody's secret or this VM's, in pages of its own."""
    isolated, reach = make()
    for row in OBJECTS:
        if row.sensitivity in OPEN and row.name != "other vcpu" and not isolated.has(row.name):
            isolated.map(row.name, split=True)
    return isolated, reach


def test_with_all_that_is_no_secret_an_exit_is_as_fast_as_the_table_of_exits_has_it(everything_open):
    _, reach = everything_open
    neighbours = set()  # of what is mapped, in one page: such an access does not fault
    for reason in VMX + SVM:
        assert reach.is_fast(reason.isa, reason.number) == (not is_full(reason.isa, reason.name)), reason.name
        for part in parts_of(reason.isa, reason.number):
            if part.when and reach.is_fast(reason.isa, reason.number, frozenset({part})):
                neighbours |= {
                    seen.object
                    for seen in footprint(reason.isa, reason.number, {part})
                    if seen.touched.sensitivity not in OPEN
                }
    assert neighbours == {"perf events"}, "cpu_hw_events lies beside current_task, in a real kernel too"


@pytest.mark.parametrize("layout", [{}, {"levels": 5}])
def test_under_the_allowed_mapping_an_exit_is_full_as_the_table_of_exits_has_it(layout):
    """Always, never, or with the part that its condition stands for: for every reason of both kinds of processor.

    But for a read of a host's counter: cpu_hw_events lies beside current_task, in a real kernel too.
    """
    beside = set()
    _, reach = make(ALLOWED, **layout)
    assert survives(reach) == () and switch(reach, FaultLog()) is None
    for reason in VMX + SVM:
        isa, number, full = reason.isa, reason.number, is_full(reason.isa, reason.name)
        assert reach.is_fast(isa, number) == (not full), reason.name
        assert reach.is_fast(isa, number, parts_for(isa, number, reason.when, False)) == (not full)
        if reason.when and reach.is_fast(isa, number, parts_for(isa, number, reason.when, True)):
            beside.add(reason.name)
    assert beside == {"RDPMC", "rdpmc"}


def test_a_mapping_has_the_name_that_a_configuration_knows_it_by():
    assert tuple(NAMED) == MAPPINGS


def test_the_minimal_mapping_makes_every_exit_fault_and_each_fault_is_survived():
    _, reach = make()
    assert survives(reach) == ()
    for reason in VMX:
        assert not reach.is_fast("vmx", reason.number)


def test_an_answer_holds_until_the_mapping_changes(everything_open):
    isolated, reach = everything_open
    assert reach.is_fast("vmx", 10), "CPUID"
    asked = reach._decided
    assert asked and reach.is_fast("vmx", 10) and reach._decided is asked
    isolated.unmap("vcpu")
    assert not reach.is_fast("vmx", 10)
    isolated.map("vcpu", split=True)
    assert reach.is_fast("vmx", 10)
    with pytest.raises(InputError):
        reach.is_fast("vmx", 10, frozenset({Part.WAKES}))


def test_misses_are_in_the_order_of_the_code_and_each_names_its_address():
    _, reach = make()
    accesses = footprint("vmx", 48, ())
    misses = reach.misses(accesses)
    assert [miss.access for miss in misses] == [access for access in accesses if not reach.is_mapped(access)]
    assert reach.first_miss(accesses) == misses[0]
    assert all(reach.isolated.space.table.lookup(miss.address) == 0 for miss in misses)
    host = reach.isolated.host
    for miss in misses:
        place = host.at(miss.access.object, 1, 0, 0)
        assert place.start <= miss.address < place.end, miss


def test_a_vcpu_on_another_cpu_touches_that_cpus_data():
    isolated, _ = make()
    one, two = Reach(isolated, 0), Reach(isolated, 0, cpu=3)
    access = next(access for access in footprint("vmx", 10, ()) if access.object == "this_cpu_off")
    assert two.address(access) - one.address(access) == 3 * (1 << 18)


def test_the_sample_report_comes_from_a_kernel_before_4_20_without_vmemmap():
    isolated, reach = make(RFC, before_4_20=True)
    assert isolated.host.at("current_task").start >> 40 == 0xFFFF88
    miss = next(miss for miss in reach.misses(footprint("vmx", 48, ())) if miss.access.object == "vmemmap")
    done = handle(reach, miss, FaultLog())
    assert done.ending is Ending.LEFT and not done.missing
    address = miss.address
    assert done.lines[0] == (
        f"KVM isolation: page fault #0 (0) at fast_page_fault+0x13e/0x3e0 [kvm] on {address:016x} ({address:#x})"
    )
    assert f"{address:x}".startswith("ffffea00")
    assert done.lines[1:4] == (
        "Call Trace:",
        " tdp_page_fault+0xec/0x260 [kvm]",
        " kvm_mmu_page_fault+0x74/0x5f0 [kvm]",
    )
    assert handle(reach, miss, done.log).lines == (), "each place once"


@pytest.mark.parametrize("name", ["current_task", "cpu_tlbstate", "task_struct", "task stack"])
def test_a_fault_whose_handler_faults_is_survived(name):
    """In version 1 that is a loop of page faults, or a double fault that nobody expects."""
    isolated, reach = make()
    isolated.unmap(name)
    miss = reach.first_miss(footprint("vmx", 48, ()))
    done = handle(reach, miss, FaultLog(stack=False))
    assert done.ending is Ending.FORCED
    assert {seen.access.object for seen in done.missing} == {name}
    assert done.lines[1] == (
        f"KVM isolation: double fault: the handler of that misses {name}; forced into the full address space"
    )


def test_a_fault_without_the_entry_area_cannot_be_survived():
    isolated, reach = make()
    isolated.unmap("cpu_entry_area")
    done = handle(reach, reach.first_miss(footprint("vmx", 48, ())), FaultLog())
    assert done.ending is Ending.STOPPED and done.lines[-1].endswith("triple fault")


def test_a_fault_while_switching_is_forced_and_tells_both_tables():
    isolated, reach = make()
    assert switch(reach, FaultLog()) is None
    isolated.unmap("cpu_tlbstate")
    done = switch(reach, FaultLog(stack=False))
    assert done.ending is Ending.SWITCH_FORCED
    address = done.fault.address
    assert "switch_mm_irqs_off+" in done.lines[0]
    assert done.lines[1] == "KVM isolation: fault while switching: CR3 is written, in whatever state"
    assert done.lines[2].startswith(" a: ") and done.lines[2].endswith(f"entry of {address:016x} is 0x0")
    assert done.lines[3].startswith(f" host: PMD entry of {address:016x} is 0x") and not done.lines[3].endswith("0x0")
    assert switch(reach, done.log).lines == ()


def test_an_object_that_is_mapped_in_part_is_missed_in_part():
    """Version 1 maps the header of the buses alone until they change."""
    isolated, reach = make()
    place = isolated.host.at("buses", 1)
    accesses = [access for access in footprint("vmx", 30, ()) if access.object == "buses"]
    assert reach.misses(tuple(accesses))
    isolated.space.map(place.start, 8, Level.PTE, split=True)
    assert reach.misses(tuple(accesses)), "devices lie behind the header"
    isolated.map("vmemmap")
    isolated.space.unmap(place.start)
    isolated.map("buses", split=True)
    assert not reach.misses(tuple(accesses))
