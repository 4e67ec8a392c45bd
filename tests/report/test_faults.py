"""The lines of isolation faults, made from their records."""

from __future__ import annotations

from asid.report.faults import FaultLines

FAULT = {
    "vm": 1, "ip": 0xFFFFFFFFA0001234, "address": 0xFFFF888000001000, "error": 2, "at": "vmx_vcpu_run+0x1c/0x800",
    "on": "0xffff888000001000", "object": "kvm", "reason": "CPUID", "ending": "left",
    "trace": "vcpu_enter_guest+0x10/0x900;SyS_ioctl+0x79/0x84",
}  # fmt: skip


def test_a_fault_is_told_as_the_kernel_tells_it():
    assert FaultLines().of(FAULT) == [
        "KVM isolation: page fault #0 (2) at vmx_vcpu_run+0x1c/0x800 on ffff888000001000 (0xffff888000001000)",
        "Call Trace:",
        " vcpu_enter_guest+0x10/0x900",
        " SyS_ioctl+0x79/0x84",
    ]


def test_faults_are_numbered_by_vm_in_the_order_of_the_journal():
    lines = FaultLines()
    told = [lines.of({**FAULT, "vm": vm, "trace": ""})[0].split(" (")[0] for vm in (1, 2, 1, 1, 2)]
    assert [text.rpartition("#")[2] for text in told] == ["0", "0", "1", "2", "1"]


def test_without_the_beginning_of_the_journal_no_number_is_made_up():
    [line] = FaultLines(whole=False).of({**FAULT, "trace": ""})
    assert line.startswith("KVM isolation: page fault #? (2) at ")


def test_an_ending_that_is_no_leave_is_said_below():
    assert FaultLines().of({**FAULT, "trace": "", "ending": "stopped"})[1:] == [
        "KVM isolation: triple fault: no handler can be run"
    ]
