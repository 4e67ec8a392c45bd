"""How long the handler of an exit works, where a table has counts alone: nanoseconds by reason, each with its source.

Rule 1. A figure is the mean from exit to entry on the host, as published for one machine: an order of magnitude.
Rule 2. Reasons that nobody has published a figure for take OTHER_NS.
Rule 3. For how long a halted vCPU sleeps is no handler's time: that is up to its guest.
"""

from __future__ import annotations

from typing import Final

from asid.core.exits import Canonical, canonical

_TAP: Final = "SystemTap kvm_service_time (sourceware.org)"
_SYSBENCH: Final = "perf kvm stat, sysbench (0xba1a)"
_WINDOWS: Final = "perf kvm stat, Windows 10 (huataihuang)"
_OLD: Final = "perf kvm stat of 2012 (linux-kvm.org)"
_AMD: Final = "perf kvm stat, AMD (haiwei-li)"
_CVM: Final = "CVM_eval, AMD"
_AS_INTEL: Final = "assumed as the Intel one"

TABLE: Final = (
    ("EXCEPTION_NMI", 2_200, _TAP),
    ("EXTERNAL_INTERRUPT", 1_400, _TAP),
    ("INTERRUPT_WINDOW", 2_000, _TAP),
    ("IO_INSTRUCTION", 3_300, _TAP),
    ("MSR_WRITE", 720, _TAP),
    ("PAUSE_INSTRUCTION", 260, _TAP),
    ("EPT_MISCONFIG", 1_900, _TAP),
    ("PREEMPTION_TIMER", 620, _SYSBENCH),
    ("CPUID", 650, _SYSBENCH),
    ("EOI_INDUCED", 1_240, _SYSBENCH),
    ("MSR_READ", 1_870, _WINDOWS),
    ("TPR_BELOW_THRESHOLD", 2_930, _WINDOWS),
    ("EPT_VIOLATION", 7_780, "perf kvm stat, kvm list 2021-10-12 (Senozhatsky)"),
    ("CR_ACCESS", 6_100, _OLD),
    ("APIC_ACCESS", 37_720, _OLD),
    ("VMCALL", 1_255, "assumed as AMD's"),
    ("interrupt", 570, _AMD),
    ("msr", 780, _AMD),
    ("vintr", 820, _AMD),
    ("pause", 1_580, "perf kvm stat, AMD with SEV (cai-fuqiang)"),
    ("cpuid", 1_226, _CVM),
    ("hypercall", 1_255, _CVM),
    ("io", 1_635, _CVM),
    ("npf", 7_780, _AS_INTEL),
)
OTHER_NS: Final = 2_000  # assumed: between those above

_NS: Final = {canonical(name)[:2]: ns for name, ns, _ in TABLE}
assert len(_NS) == len(TABLE), "a reason twice"


def handler_ns(reason: Canonical) -> int:
    """Return how long the handler of an exit works."""
    return _NS.get(reason[:2], OTHER_NS)
