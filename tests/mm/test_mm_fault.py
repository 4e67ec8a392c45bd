"""Reports of isolation faults: the RFC's two samples, each place once, and a log that fills up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.errors import InputError
from asid.mm.fault import ErrorCode, Fault, FaultLog, fault_line, fault_of, full_line, stamped, trace_lines
from asid.mm.footprint import Access, footprint
from asid.mm.layout import layout
from asid.mm.symbols import Place, parse_symbols
from asid.mm.symbols_bundled import bundled

SYMBOLS = bundled()
# Where one VM's objects might be on a kernel before 4.20; the addresses are those of the samples.
OBJECTS_AT = {"vmemmap": 0xFFFFEA00005331F0, "shadow page tables": 0xFFFF88003C718000}

# In the form of the samples of the RFC's cover letter.
FIRST = "KVM isolation: page fault #0 (0) at fast_page_fault+0x13e/0x3e0 [kvm] on ffffea00005331f0 (0xffffea00005331f0)"
SECOND = (
    "KVM isolation: page fault #0 (0) at fast_page_fault+0x100/0x3e0 [kvm] on ffff88003c718000 (0xffff88003c718000)"
)
TRACE = (
    "Call Trace:",
    " tdp_page_fault+0xec/0x260 [kvm]",
    " kvm_mmu_page_fault+0x74/0x5f0 [kvm]",
    " handle_ept_violation+0xc3/0x1a0 [kvm_intel]",
    " vmx_handle_exit+0xb9/0x600 [kvm_intel]",
    " vcpu_enter_guest+0xb88/0x1580 [kvm]",
    " kvm_arch_vcpu_ioctl_run+0x403/0x610 [kvm]",
    " kvm_vcpu_ioctl+0x3d5/0x650 [kvm]",
    " do_vfs_ioctl+0xaa/0x602",
    " SyS_ioctl+0x79/0x84",
    " do_syscall_64+0x79/0x1ae",
)


def misses(*missing: str) -> list[Fault]:
    """The faults of an EPT violation in a space that lacks some areas."""
    space = layout(before_4_20=True).without(*missing)
    return [
        fault_of(access, address, SYMBOLS)
        for access in footprint("vmx", 48, ())
        if (address := OBJECTS_AT.get(access.object)) is not None and space.find(address) is None
    ]


def test_the_first_sample_comes_from_a_space_without_vmemmap():
    (fault,) = misses("vmemmap")
    log, lines = FaultLog(stack=False).record(fault, SYMBOLS)
    assert lines == (FIRST,)
    assert stamped(lines[0], 4_840_727_476_999) == f"[ 4840.727476] {FIRST}"
    assert log.faults == 1


def test_the_second_sample_and_its_trace_come_from_a_space_without_the_old_direct_map():
    (fault,) = misses("direct map")
    log, lines = FaultLog().record(fault, SYMBOLS)
    assert lines[0] == SECOND
    assert lines[1:12] == TRACE
    assert lines[12:] == (" entry_SYSCALL_64_after_hwframe+0x151/0x160",), "the sample's symbol has no size"
    assert len(log.places) == 1


def test_in_a_space_that_lacks_both_each_has_its_number():
    log, printed = FaultLog(stack=False), []
    for fault in misses("vmemmap", "direct map") * 3:
        log, lines = log.record(fault, SYMBOLS)
        printed += lines
    assert printed == [SECOND, FIRST.replace("#0", "#1")]
    assert log.counts == (3, 3)
    assert misses("KASAN shadow") == []


def test_a_trace_may_be_of_places():
    frames = [Place("entry_SYSCALL_64_after_hwframe", 0x151, 0), 0x1234]
    assert trace_lines(frames, SYMBOLS) == ("Call Trace:", " entry_SYSCALL_64_after_hwframe+0x151/0x0", " 0x1234")


def test_an_address_with_a_symbol_shows_it():
    address = SYMBOLS.address("tk_core")
    fault = Fault(SYMBOLS.address("ktime_get") + 5, address + 8, ErrorCode.WRITE)
    assert fault_line(7, fault, SYMBOLS) == (
        f"KVM isolation: page fault #7 (2) at ktime_get+0x5/0xa0 on {address + 8:016x} (tk_core+0x8/0x140)"
    )


def test_an_address_below_the_kernel_has_all_its_digits():
    assert fault_line(0, Fault(0x10, 0x7F0000), SYMBOLS).endswith("at 0x10 on 00000000007f0000 (0x7f0000)")


def test_the_log_says_once_that_it_is_full():
    log = FaultLog(stack=False, places_max=3)
    printed: list[str] = []
    for ip in [1, 2, 3, 2, 4, 5, 4, 1]:
        log, lines = log.record(Fault(ip, 0x1000), SYMBOLS)
        printed += lines
    assert [line.split(" at ")[0] for line in printed[:3]] == [f"KVM isolation: page fault #{i} (0)" for i in range(3)]
    assert printed[3:] == [full_line(3)] == ["KVM isolation: fault tracking buffer is full [3]"]
    assert (log.counts, log.unlogged, log.faults, log.full) == ((2, 2, 1), 3, 8, True)
    assert log.cleared() == FaultLog(stack=False, places_max=3)


def test_a_place_is_an_instruction_and_its_address_or_the_instruction_alone():
    faults = [Fault(1, 0x1000), Fault(1, 0x2000)]
    for per_instruction, kept in ((False, 2), (True, 1)):
        log = FaultLog(per_instruction=per_instruction)
        for fault in faults:
            log, _ = log.record(fault, SYMBOLS)
        assert len(log.places) == kept and log.faults == 2


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=60), st.integers(1, 8), st.booleans())
def test_the_log_agrees_with_a_plain_count(pairs, places_max, per_instruction):
    log = FaultLog(stack=False, places_max=places_max, per_instruction=per_instruction)
    counted: dict[tuple[int, int], int] = {}
    reported = lost = 0
    for ip, address in pairs:
        log, lines = log.record(Fault(ip, address), SYMBOLS)
        reported += sum("page fault" in line for line in lines)
        place = (ip, 0 if per_instruction else address)
        if place in counted or len(counted) < places_max:
            counted[place] = counted.get(place, 0) + 1
        else:
            lost += 1
    assert dict(zip(log.places, log.counts, strict=True)) == counted
    assert (log.unlogged, reported, log.faults) == (lost, len(counted), len(pairs))


def test_a_function_that_the_symbols_lack_is_part_of_its_caller():
    table = parse_symbols("ffffffffa0000000 t tdp_page_fault\t[kvm]\nffffffffa0000040 t vcpu_enter_guest\t[kvm]\n")
    access = next(a for a in footprint("vmx", 48) if a.function == "fast_page_fault" and a.object == "vmemmap")
    fault = fault_of(access, 0xFFFFEA00005331F0, table)
    assert table.show(fault.ip) == "tdp_page_fault+0x3f/0x40 [kvm]", "within the symbol, however short"
    assert [table.show(frame) for frame in fault.trace] == ["vcpu_enter_guest+0xb88/0xfc0 [kvm]"]
    with pytest.raises(InputError, match="no symbol fast_page_fault, nor one of its callers"):
        fault_of(access, 0, parse_symbols("ffffffff81000000 T _text\n"))


@pytest.mark.parametrize(("mode", "error"), [("r", 0), ("w", 2), ("x", 16)])
def test_the_error_code_says_what_was_tried(mode, error):
    access = Access("vcpu", mode, "kvm_set_cr3", "kvm", 4, ("handle_cr",), "inf")
    assert fault_of(access, 0x1000, SYMBOLS).error == error
