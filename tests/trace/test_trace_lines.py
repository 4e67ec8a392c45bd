"""Prefixes and payloads: each tool's line, each kernel's wording."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.trace.kvm_events import (
    EntryEvent,
    ExitEvent,
    PayloadError,
    UserspaceExit,
    parse_entry,
    parse_exit,
    parse_userspace_exit,
)
from asid.trace.lines import EventLine, HeaderLine, LossLine, split_line

# Two cores shared with others: an example may take long, and every test stays below a quarter of a second.
FEW = settings(max_examples=40, deadline=None)


def event(line: str) -> EventLine:
    found = split_line(line)
    assert isinstance(found, EventLine), found
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "vm-5664  [000] 11906.220181: kvm_exit: reason x",
            EventLine("vm", 5664, 0, 11906220181000, False, "kvm_exit", " reason x"),
        ),
        (
            "     CPU 0/KVM-7289  [012] d..1  1.000002: kvm_entry: vcpu 0",
            EventLine("CPU 0/KVM", 7289, 12, 1000002000, False, "kvm_entry", " vcpu 0"),
        ),
        (
            " fc_vcpu 0-552219  [040] d.... 7.000000123: kvm_entry:            vcpu 0",
            EventLine("fc_vcpu 0", 552219, 40, 7000000123, False, "kvm_entry", "            vcpu 0"),
        ),
        (
            "a-b-12-34 [001] 1.000000: x: y",
            EventLine("a-b-12", 34, 1, 1000000000, False, "x", " y"),
        ),
        (
            "  <...>-43752 (-----) [001] ....  3615.602298: kvm_cr: z",
            EventLine("<...>", 43752, 1, 3615602298000, False, "kvm_cr", " z"),
        ),
        (
            "  q-7 (  41) [001] ....  3.602298: <hack>: z",
            EventLine("q", 7, 1, 3602298000, False, "<hack>", " z"),
        ),
        (
            "CPU 1/KV-8397    0d....  1404.389366: kvm_exit: vcpu 1",
            EventLine("CPU 1/KV", 8397, 0, 1404389366000, False, "kvm_exit", " vcpu 1"),
        ),
        (
            "      CPU 0/KVM  699876 [020] 18136.763707:      kvm:kvm_exit: reason A",
            EventLine("CPU 0/KVM", 699876, 20, 18136763707000, False, "kvm_exit", " reason A"),
        ),
        (
            "  fc_vcpu 1  599500 [039] 2.550600: kvm:kvm_entry:  vcpu 1",
            EventLine("fc_vcpu 1", 599500, 39, 2550600000, False, "kvm_entry", "  vcpu 1"),
        ),
        (
            "    [001]   770.850307:    kvm:kvm_exit: vcpu 0",
            EventLine("", -1, 1, 770850307000, False, "kvm_exit", " vcpu 0"),
        ),
        (
            "2022-04-22 17:39:26.535148  <...> 126953 d... [074] 9.266643: kvm:kvm_entry: vcpu 0",
            EventLine("<...>", 126953, 74, 9266643000, False, "kvm_entry", " vcpu 0"),
        ),
        (
            "q 600/601 [003] 9.000000001: kvm:kvm_entry: vcpu 0",
            EventLine("q", 601, 3, 9000000001, False, "kvm_entry", " vcpu 0"),
        ),
        (
            "preempt_test  20677.199579:      kvm:kvm_exit: reason A",
            EventLine("preempt_test", -1, -1, 20677199579000, False, "kvm_exit", " reason A"),
        ),
        (
            "CPU 0/KVM  699876  1.000002:  kvm:kvm_exit: reason A",
            EventLine("CPU 0/KVM", 699876, -1, 1000002000, False, "kvm_exit", " reason A"),
        ),
        (
            "x-1 [0] 0.999999: kvm:kvm_emulate_insn: 0:fff: 8b",
            EventLine("x", 1, 0, 999999000, False, "kvm_emulate_insn", " 0:fff: 8b"),
        ),
        (
            "x-1 [0] 0.999999: kvm_emulate_insn: 0:fff:8b (prot64)",
            EventLine("x", 1, 0, 999999000, False, "kvm_emulate_insn", " 0:fff:8b (prot64)"),
        ),
    ],
)
def test_prefix_of_every_tool(line: str, expected: EventLine) -> None:
    assert event(line) == expected


def test_a_bare_integer_is_a_tsc_stamp() -> None:
    found = event("  qemu-20667 [010] 15813659115036: kvm_exit:   reason EXIT_IOIO rip 0x1 info 1 2")
    assert found.tsc and found.time == 15813659115036


def test_a_line_cut_behind_the_event_name_has_no_payload() -> None:
    assert event("challenge-24797 [003] .... 83184.290416: kvm_exit").payload is None
    assert event("challenge-24797 [003] .... 83184.290416: kvm_exit:").payload == ""


@pytest.mark.parametrize(
    ("line", "cpu", "n"),
    [
        ("CPU:0 [57 EVENTS DROPPED]", 0, 57),
        ("CPU:12 [EVENTS DROPPED]", 12, 0),
        ("CPU:2 [LOST 1234 EVENTS]", 2, 1234),
        ("Processed 1000 events and lost 3 chunks!", -1, 0),
        (" qemu 7 [003] 12.000001: PERF_RECORD_LOST lost 17", 3, 17),
    ],
)
def test_losses(line: str, cpu: int, n: int) -> None:
    assert split_line(line) == LossLine(cpu, n)


@pytest.mark.parametrize("line", ["", "   ", "# tracer: nop", "version = 6", "cpus=48", "CPU 3 is empty"])
def test_headers_carry_no_event(line: str) -> None:
    assert split_line(line) == HeaderLine(0)


def test_the_header_tells_how_many_were_overwritten() -> None:
    assert split_line("# entries-in-buffer/entries-written: 100/150   #P:2") == HeaderLine(50)
    assert split_line("# entries-in-buffer/entries-written: 20336/20336   #P:24") == HeaderLine(0)


@pytest.mark.parametrize(
    "line",
    [
        "...",
        "> x-1 [0] 1.0: kvm_exit: y",
        "kvm_exit: reason HLT rip 0x1",
        "x-1 [0] 1.5: kvm_exit: y",
        "x-1 [0]",
        "x-1 [0] 1.000001:",
        "```txt",
        "  36.22%  reason MSR_WRITE rip 0xffffffff8110ac58 info 0 0",
        "x-1 [0] kvm_exit:",
        "CPU 0/KVM  699876 [02 18136.763707:  kvm:kvm_exit: reason A",
    ],
)
def test_what_fits_no_form_is_said_not_guessed(line: str) -> None:
    assert isinstance(split_line(line), str)


@pytest.mark.parametrize(
    "line", [" " * 16000, "a-1 " * 4000, "[" * 16000, "1 " * 8000 + "[", "-1" * 8000, "1 [1] " * 3000]
)
def test_hostile_lines_are_answered_quickly(line: str) -> None:
    start = time.monotonic()
    split_line(line)
    assert time.monotonic() - start < 1.0  # backtracking would take minutes


@FEW
@given(st.text(max_size=300))
def test_any_line_gets_an_answer(line: str) -> None:
    assert split_line(line) is not None


V2 = "info1 0x0000000000000104 info2 0x0000000080000301 intr_info 0x800000fb error_code 0x00000006"


@pytest.mark.parametrize(
    ("payload", "reason", "layout", "vcpu", "info1"),
    [
        (" reason apic_access rip 0xc011518c", "APIC_ACCESS", "V0", -1, None),
        (" reason EPT_VIOLATION rip 0x40359f info 582 0", "EPT_VIOLATION", "V1", -1, 0x582),
        ("             reason EXIT_NPF rip 0x0 info 1680000007 1729a1000", "npf", "V1", -1, 0x1680000007),
        (" reason CR_ACCESS rip 0xffffffff81000000 native_write_cr4+0x1c info 4 0", "CR_ACCESS", "V1", -1, 4),
        (" reason PREEMPTION_TIMER rip 0x40274d info 0 0 intr 0", "PREEMPTION_TIMER", "V1", -1, 0),
        (" vcpu 0 reason EPT_VIOLATION rip 0x5a1b20 info 384 0", "EPT_VIOLATION", "V1b", 0, 0x384),
        (f" vcpu 1 reason CR_ACCESS rip 0x1 {V2}", "CR_ACCESS", "V2", 1, 0x104),
        (f" vcpu 1 reason PF excp rip 0x1 {V2}", "PF excp", "V2", 1, 0x104),
        (f" vcpu 1 reason INVALID_STATE FAILED_VMENTRY rip 0x1 {V2}", "INVALID_STATE FAILED_VMENTRY", "V2", 1, 0x104),
        (f" vcpu 1 reason HLT rip 0x1 {V2} requests 0x0000000000000004", "HLT", "V3", 1, 0x104),
        ("  exit_reason=1024 guest_rip=0x400433 isa=2 info1=0x6 info2=0x641000 vcpu_id=3", "npf", "raw", 3, 6),
        (" exit_reason=0xffffffff guest_rip=0x4 isa=2", "invalid_guest_state", "raw", -1, None),
    ],
)
def test_exit_layouts(payload: str, reason: str, layout: str, vcpu: int, info1: int | None) -> None:
    found = parse_exit(payload)
    assert (found.reason.name, found.layout, found.vcpu, found.info1) == (reason, layout, vcpu, info1)


def test_every_number_of_v3_is_kept() -> None:
    found = parse_exit(f" vcpu 1 reason HLT rip 0xabc {V2} requests 0x0000000000000004")
    assert found == ExitEvent(found.reason, 0xABC, "V3", 1, 0x104, 0x80000301, 0x800000FB, 6, 4)
    assert parse_exit(" reason HLT rip 0x1 info 0 800000f6").info2 == 0x800000F6


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "   ",
        " reason",
        " reason HLT",
        " reason HLT rip",
        " reason HLT rip 201 info 0 0",
        " reason HLT rip 0x1 info 0",
        " reason HLT rip 0x1 info 0 0 0",
        " reason HLT rip 0x1 info 0 0   <---- [1]",
        " reason NO_SUCH rip 0x1 info 0 0",
        f" vcpu 1 reason HLT rip 0x1 {V2[:-12]}",
        " vcpu x reason HLT rip 0x1 info 0 0",
        " reason UNKNOWN rip 0x1",
        " exit_reason=12",
        " exit_reason=12 guest_rip=0x1 isa=3",
        " exit_reason=12 exit_reason=12 guest_rip=0 isa=1",
        " exit_reason=-7 guest_rip=0x1 isa=1",
        " exit_reason=12 guest_rip=banana isa=1",
        " IRQ: HSR_EC: 0x0000 (UNKNOWN), PC: 0xffff87259e30",
        " vcpu 0 [0x0] PC: 0x00000000",
    ],
)
def test_exits_that_are_cut_or_foreign_are_refused(payload: str) -> None:
    with pytest.raises(PayloadError):
        parse_exit(payload)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (" vcpu 0", EntryEvent(0)),
        (" vcpu 1, rip 0xffffffff810000a3", EntryEvent(1, 0xFFFFFFFF810000A3)),
        ("  vcpu 1 rip 0xffffffff81036706", EntryEvent(1, 0xFFFFFFFF81036706)),
        (" vcpu 1, rip 0x10[immediate exit]", EntryEvent(1, 0x10, True)),
        (" vcpu 1, rip 0x10 intr_info 0x800000ec error_code 0x00000000", EntryEvent(1, 0x10)),
        (" vcpu 1, rip 0x10 intr_info 0x800000ec error_code 0x00000000[immediate exit]", EntryEvent(1, 0x10, True)),
        (" vcpu_id=2 rip=0x10 immediate_exit=1", EntryEvent(2, 0x10, True)),
    ],
)
def test_entry_layouts(payload: str, expected: EntryEvent) -> None:
    assert parse_entry(payload) == expected


@pytest.mark.parametrize(
    "payload", ["", " vcpu", " vcpu -1", " vcpu 1, rip", " vcpu 1, rip 10", " PC: 0x1", " vcpu_id=-1"]
)
def test_entries_that_are_cut_are_refused(payload: str) -> None:
    with pytest.raises(PayloadError):
        parse_entry(payload)


def test_userspace_exits() -> None:
    assert parse_userspace_exit(" reason KVM_EXIT_IO (2)") == UserspaceExit("KVM_EXIT_IO", 2)
    assert parse_userspace_exit("   reason restart (4)") == UserspaceExit("restart", 4)
    assert parse_userspace_exit(" reason 0x1d (29)") == UserspaceExit("0x1d", 29)
    assert parse_userspace_exit(" reason=5 errno=0") == UserspaceExit("0x5", 5)
    with pytest.raises(PayloadError):
        parse_userspace_exit(" reason KVM_EXIT_")


@FEW
@given(st.text(max_size=200))
def test_any_payload_is_read_or_refused(payload: str) -> None:
    for parse in (parse_exit, parse_entry, parse_userspace_exit):
        try:
            assert parse(payload) is not None
        except PayloadError as error:
            told = str(error)
            assert told
