"""Footprints: every exit has one, what details add, and that they agree with what is assumed of the exits."""

from __future__ import annotations

import pytest
from full_exits import is_full
from hypothesis import given
from hypothesis import strategies as st

from asid.core.exits import SVM, VMX, ExitReason
from asid.errors import InputError
from asid.mm.footprint import FUNCTIONS, footprint, has_handler, parts_for, parts_of, usual_parts
from asid.mm.layout import Sensitivity
from asid.mm.objects import OBJECT
from asid.mm.parts import Part
from asid.mm.symbols_bundled import bundled

REASONS = VMX + SVM
HOST = (Sensitivity.SECRET, Sensitivity.MIXED)


def touched(isa, number, parts=None) -> set[str]:
    return {access.object for access in footprint(isa, number, parts)}


def of_the_host(isa, number, parts=None) -> set[str]:
    return {name for name in touched(isa, number, parts) if OBJECT[name].sensitivity in HOST}


def named(reason: ExitReason) -> str:
    return f"{reason.isa}-{reason.name}"


@pytest.mark.parametrize("reason", REASONS, ids=named)
def test_every_exit_has_a_footprint_with_its_sources(reason):
    assert has_handler(reason.isa, reason.number)
    for parts in [(), None, *((part,) for part in parts_of(reason.isa, reason.number))]:
        for access in footprint(reason.isa, reason.number, parts):
            function = FUNCTIONS[access.function]
            assert access.touched.name == access.object and access.source == function.source != ""
            assert 0 <= access.offset < function.size and access.module == function.module
            assert bundled().named(access.function, access.module), access.function
            assert access.callers == () or access.callers[-1] == "entry_SYSCALL_64_after_hwframe"


@pytest.mark.parametrize("reason", REASONS, ids=named)
def test_footprints_agree_with_the_table_of_exits(reason):
    """Mapped: what is nobody's secret, and what is this VM's. Then an exit that is always full touches more, another
    one does not, but with the part that its details stand for, where the exits of a reason differ."""
    usual = of_the_host(reason.isa, reason.number)
    assert bool(usual) == is_full(reason.isa, reason.name)
    if reason.when:
        parts = parts_for(reason.isa, reason.number, reason.when, full=True)
        assert any(part.when == reason.when for part in parts)
        assert of_the_host(reason.isa, reason.number, parts)
        assert parts_for(reason.isa, reason.number, reason.when, full=False) == usual_parts(reason.isa, reason.number)


@pytest.mark.parametrize("reason", REASONS, ids=named)
def test_a_part_needs_the_host_when_it_says_so(reason):
    base = footprint(reason.isa, reason.number, ())
    for part in parts_of(reason.isa, reason.number):
        full = footprint(reason.isa, reason.number, (part,))
        assert full[: len(base)] == base, "a part only adds"
        if part.when:
            assert of_the_host(reason.isa, reason.number, (part,)), part


@pytest.mark.parametrize("isa", ["vmx", "svm"])
def test_every_exit_touches_its_vcpu_and_runs_its_module(isa):
    common = {"vcpu", "task stack", "current_task", "kvm", "kvm module", "cpu_tlbstate"}
    common |= {"VMCS", "kvm_intel module"} if isa == "vmx" else {"VMCB", "kvm_amd module"}
    for reason in REASONS:
        if reason.isa == isa:
            assert common <= touched(isa, reason.number), reason
            assert not touched(isa, reason.number) & ({"VMCB", "kvm_amd module"} if isa == "vmx" else {"VMCS"})


def test_an_ept_violation_that_needs_a_page():
    assert touched("vmx", 48, ()) >= {"shadow page tables", "vmemmap", "memslots"}
    assert "page allocator" not in touched("vmx", 48, ())
    assert touched("vmx", 48) >= {"page allocator", "VMM's memory", "mm_struct"}, "by default it needs one"


def test_an_msr_write_to_the_apic():
    plain, apic = touched("vmx", 32, ()), touched("vmx", 32, (Part.APIC,))
    assert apic - plain == {"APIC page"} and "lapic" in plain, "the entry path looks at the APIC each time"
    assert touched("vmx", 32, (Part.IPI,)) - plain == {"APIC page", "apic map", "other vcpu"}
    assert of_the_host("vmx", 32, (Part.IPI,)) == set()
    assert of_the_host("vmx", 32, (Part.WAKES,)) == {"runqueues", "other task"}


@pytest.mark.parametrize(("isa", "number"), [("vmx", 30), ("svm", 0x7B)])
def test_an_io_instruction_for_a_device(isa, number):
    assert touched(isa, number, ()) >= {"buses", "io devices", "pio_data"}
    assert of_the_host(isa, number, (Part.KERNEL_DEVICE,)) == set()
    assert "VMM's memory" in of_the_host(isa, number, (Part.VMM_DEVICE,))


@pytest.mark.parametrize(("isa", "number"), [("vmx", 12), ("svm", 0x78), ("svm", 0xA6), ("svm", 0x80000004)])
def test_a_halt_that_blocks(isa, number):
    assert of_the_host(isa, number, ()) == set()
    assert "runqueues" in of_the_host(isa, number) and usual_parts(isa, number) == {Part.BLOCKS}


def test_the_functions_of_the_rfcs_trace_are_there_in_its_order():
    fault = next(access for access in footprint("vmx", 48) if access.object == "vmemmap")
    assert (fault.function, fault.module, fault.offset) == ("fast_page_fault", "kvm", 0x13E)
    assert fault.callers[:6] == (
        "tdp_page_fault",
        "kvm_mmu_page_fault",
        "handle_ept_violation",
        "vmx_handle_exit",
        "vcpu_enter_guest",
        "kvm_arch_vcpu_ioctl_run",
    )


def test_a_part_of_another_exit_is_refused():
    with pytest.raises(InputError, match="footprint of CPUID: no part blocks: must be given no part"):
        footprint("vmx", 10, (Part.BLOCKS,))
    with pytest.raises(InputError, match="footprint of HLT: no part ipi, timer: must be of blocks"):
        footprint("vmx", 12, (Part.TIMER, Part.IPI))


@given(st.sampled_from(["vmx", "svm"]), st.integers(-1, 1 << 64))
def test_any_number_has_a_footprint(isa, number):
    accesses = footprint(isa, number)
    assert accesses and accesses == footprint(isa, number) and len(set(accesses)) == len(accesses)


def test_a_failed_entry_and_an_unknown_exit_go_to_the_vmm():
    assert "VMM's memory" in of_the_host("vmx", 1 << 31 | 33)
    assert footprint("vmx", 1 << 31 | 10) == footprint("vmx", 9999)
    assert footprint("svm", (1 << 64) - 1) == footprint("svm", -1)
