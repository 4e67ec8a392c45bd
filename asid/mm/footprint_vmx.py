"""Footprints of VMX exits: for each exit number the call paths of its handler, and those that details add. Data only.

In the rows of `asid.mm.parts`; what each function touches, and where that is from, is in `asid.mm.functions`. Which
handler an exit has: kvm_vmx_exit_handlers[] of Linux 5.15 and 6.18. Exits that it has no handler for, and whose number
KVM never asks for, are taken for an injected #UD or for an unexpected exit, as `asid.core.exits` has them: inf.
"""

from __future__ import annotations

from typing import Final

from asid.mm.parts import (
    COUNTER,
    DIRTY,
    EMULATE,
    FLUSH_ALL,
    HYPERCALL,
    INJECT,
    INTERRUPT,
    LAPIC_IPI,
    LAPIC_WRITE,
    MMIO,
    PAGE_IN,
    PIO,
    RESET,
    SCHEDULE_OUT,
    SKIP,
    SPIN,
    TDP,
    TO_USER,
    WAKE,
    WRITE_GUEST,
    Part,
    Row,
    under,
)

HANDLER: Final = "vmx_handle_exit"
COMMON: Final = ("^vcpu_enter_guest > vmx_vcpu_run",)
UNEXPECTED: Final = ("handle_unexpected_vmexit", TO_USER)

_WRMSR = "kvm_emulate_wrmsr > kvm_set_msr_common"
_MSR_WRITE = {
    Part.APIC: (f"{_WRMSR} > {LAPIC_WRITE}",),
    Part.IPI: (f"^vcpu_enter_guest > handle_fastpath_set_msr_irqoff > {LAPIC_IPI}",),
    Part.TIMER: (f"{_WRMSR} > kvm_set_lapic_tscdeadline_msr > start_apic_timer > vmx_set_hv_timer",),
    Part.WAKES: (f"{_WRMSR} > {LAPIC_IPI} > {WAKE}",),
}
_NESTED = under("handle_vmx_instruction", "nested_vmx_run", "nested_get_vmcs12_pages")
_SHADOW = ("kvm_mmu_page_fault > tdp_page_fault > fast_page_fault",)

# fmt: off
ROWS: Final[tuple[Row, ...]] = (
    # EXCEPTION_NMI, EXTERNAL_INTERRUPT, TRIPLE_FAULT, INIT_SIGNAL and SIPI_SIGNAL, IO_SMI and OTHER_SMI
    ((0,), under("handle_exception_nmi", INJECT), {
        Part.NMI: ("^vcpu_enter_guest > vmx_handle_exit_irqoff > do_nmi",),
        Part.MACHINE_CHECK: ("^vcpu_enter_guest > vmx_handle_exit_irqoff > do_machine_check",),
        Part.SHADOW_FAULT: under("handle_exception_nmi", *_SHADOW),
        Part.EMULATION: under("handle_exception_nmi", EMULATE),
        Part.DEBUGGER: (TO_USER,),
    }),
    ((1,), ("handle_external_interrupt", f"^vcpu_enter_guest > vmx_handle_exit_irqoff > {INTERRUPT}"), {}),
    ((2,), ("handle_triple_fault", TO_USER), {}),
    ((3, 4, 5, 6), UNEXPECTED, {}),
    # INTERRUPT_WINDOW, NMI_WINDOW, TASK_SWITCH, CPUID, GETSEC
    ((7,), ("handle_interrupt_window",), {}),
    ((8,), ("handle_nmi_window",), {}),
    ((9,), under("handle_task_switch > kvm_task_switch", EMULATE, WRITE_GUEST), {}),
    ((10,), ("kvm_emulate_cpuid", SKIP), {}),
    ((11,), (INJECT,), {}),
    # HLT, INVD, INVLPG, RDPMC, RDTSC and RDTSCP, RSM, VMCALL
    ((12,), ("kvm_emulate_halt", SKIP), {Part.BLOCKS: (SCHEDULE_OUT,)}),
    ((13,), ("kvm_emulate_invd", SKIP), {}),
    ((14,), ("handle_invlpg > kvm_mmu_invlpg", SKIP), {}),
    ((15,), ("kvm_emulate_rdpmc > kvm_pmu_rdpmc", SKIP), {Part.HOST_COUNTER: (COUNTER,)}),
    ((16, 51), ("kvm_read_l1_tsc", SKIP), {}),
    ((17,), (EMULATE,), {}),
    ((18,), (HYPERCALL, SKIP), {
        Part.IPI: (f"{HYPERCALL} > kvm_pv_send_ipi",),
        Part.WAKES: (f"{HYPERCALL} > {WAKE}",),
        Part.YIELDS: (f"{HYPERCALL} > yield_to",),
        Part.TO_VMM: (TO_USER,),
    }),
    # VMCLEAR to VMON, INVEPT, INVVPID, VMFUNC: nested VMX
    ((19, 20, 21, 22, 23, 24, 25, 26, 27, 50, 53, 59), (*_NESTED, SKIP), {}),
    # CR_ACCESS, DR_ACCESS, IO_INSTRUCTION
    ((28,), (*under("handle_cr", "kvm_set_cr4", "kvm_set_cr8"), SKIP), {
        Part.MMU_RESET: under("handle_cr", f"kvm_set_cr0 > {RESET}", f"kvm_set_cr3 > {RESET}"),
        Part.GUEST_TABLES: under("handle_cr", "kvm_set_cr3 > load_pdptrs"),
        Part.TO_VMM: (TO_USER,),
    }),
    ((29,), ("handle_dr > kvm_set_dr", SKIP), {Part.DEBUGGER: (TO_USER,)}),
    ((30,), (*under("handle_io", *PIO), SKIP), {
        Part.KERNEL_DEVICE: (),
        Part.EVENTFD: under("handle_io", f"{PIO[0]} > ioeventfd_write > eventfd_signal"),
        Part.WAKES: under("handle_io", f"{PIO[0]} > ioeventfd_write > eventfd_signal > try_to_wake_up"),
        Part.VMM_DEVICE: (TO_USER,),
        Part.EMULATION: under("handle_io", EMULATE),
    }),
    # MSR_READ, MSR_WRITE, and both with an immediate
    ((31, 84), ("kvm_emulate_rdmsr > kvm_get_msr_common", SKIP), {Part.TO_VMM: (TO_USER,)}),
    ((32, 85), (_WRMSR, SKIP), {**_MSR_WRITE, Part.TO_VMM: (TO_USER,)}),
    # INVALID_STATE, MSR_LOAD_FAIL: failed entries
    ((33, 34), UNEXPECTED, {}),
    # MWAIT, MONITOR_TRAP_FLAG, MONITOR, PAUSE, MCE_DURING_VMENTRY
    ((36,), ("kvm_emulate_mwait", SKIP), {}),
    ((37,), ("handle_monitor_trap",), {}),
    ((39,), ("kvm_emulate_monitor", SKIP), {}),
    ((40,), (f"handle_pause > {SPIN}", SKIP), {Part.YIELDS: (f"handle_pause > {SPIN} > yield_to",)}),
    ((41,), ("handle_machine_check", "^vcpu_enter_guest > vmx_vcpu_run > do_machine_check"), {}),
    # TPR_BELOW_THRESHOLD, APIC_ACCESS, EOI_INDUCED, GDTR_IDTR and LDTR_TR
    ((43,), ("handle_tpr_below_threshold",), {}),
    ((44,), ("handle_apic_access > kvm_lapic_reg_write", SKIP), {
        Part.EMULATION: under("handle_apic_access", EMULATE),
        Part.IPI: ("handle_apic_access > kvm_lapic_reg_write > kvm_apic_send_ipi > kvm_irq_delivery_to_apic",),
    }),
    ((45,), under("handle_apic_eoi_induced", "kvm_apic_set_eoi_accelerated > kvm_ioapic_update_eoi"), {
        Part.TO_VMM: (TO_USER,),
    }),
    ((46, 47), under("handle_desc", EMULATE), {}),
    # EPT_VIOLATION, EPT_MISCONFIG
    ((48,), under("handle_ept_violation", f"{TDP} > fast_page_fault"), {
        Part.NEEDS_PAGE: under("handle_ept_violation", *PAGE_IN),
        Part.KERNEL_DEVICE: under("handle_ept_violation", MMIO, EMULATE, "kvm_io_bus_write"),
        Part.VMM_DEVICE: (*under("handle_ept_violation", MMIO, EMULATE), TO_USER),
    }),
    ((49,), under("handle_ept_misconfig", "kvm_io_bus_write"), {
        Part.EVENTFD: under("handle_ept_misconfig", "kvm_io_bus_write > ioeventfd_write > eventfd_signal"),
        Part.WAKES: under("handle_ept_misconfig",
                          "kvm_io_bus_write > ioeventfd_write > eventfd_signal > try_to_wake_up"),
        Part.KERNEL_DEVICE: under("handle_ept_misconfig", MMIO, EMULATE),
        Part.VMM_DEVICE: (*under("handle_ept_misconfig", MMIO, EMULATE), TO_USER),
    }),
    # PREEMPTION_TIMER, WBINVD, XSETBV, APIC_WRITE
    ((52,), ("handle_preemption_timer > kvm_lapic_expired_hv_timer",), {}),
    ((54,), ("kvm_emulate_wbinvd", SKIP), {Part.ALL_CPUS: (FLUSH_ALL,)}),
    ((55,), ("kvm_emulate_xsetbv", SKIP), {}),
    ((56,), ("handle_apic_write > kvm_apic_write_nodecode > kvm_lapic_reg_write",), {
        Part.IPI: under("handle_apic_write > kvm_apic_write_nodecode > kvm_lapic_reg_write",
                        "kvm_apic_send_ipi > kvm_irq_delivery_to_apic"),
        Part.TIMER: under("handle_apic_write > kvm_apic_write_nodecode > kvm_lapic_reg_write",
                          "start_apic_timer > vmx_set_hv_timer"),
        Part.WAKES: under("handle_apic_write > kvm_apic_write_nodecode > kvm_lapic_reg_write",
                          f"kvm_apic_send_ipi > kvm_irq_delivery_to_apic > {WAKE}"),
    }),
    # RDRAND, RDSEED, UMWAIT, TPAUSE, LOADIWKEY, XSAVES, XRSTORS, SEAMCALL, RDMSRLIST, WRMSRLIST: an injected #UD
    ((57, 61, 63, 64, 67, 68, 69, 76, 78, 79), (f"kvm_handle_invalid_op > {INJECT}",), {}),
    # INVPCID, ENCLS and ENCLV, PML_FULL, SPP_EVENT
    ((58,), ("handle_invpcid > kvm_mmu_invlpg", SKIP), {}),
    ((60, 70), ("handle_encls", SKIP), {Part.TO_VMM: (TO_USER,)}),
    ((62,), (f"handle_pml_full > {DIRTY}",), {Part.RING_FULL: (TO_USER,)}),
    ((66,), UNEXPECTED, {}),
    # ENQCMD_PASID and ENQCMDS_PASID, BUS_LOCK, NOTIFY, TDCALL
    ((72, 73), ("iommu_sva_find", *UNEXPECTED), {}),
    ((74,), ("handle_bus_lock_vmexit", TO_USER), {}),
    ((75,), ("handle_notify",), {Part.TO_VMM: (TO_USER,)}),
    ((77,), ("tdx_handle_exit",), {Part.TO_VMM: (TO_USER,)}),
)
# fmt: on
