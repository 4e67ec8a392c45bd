"""Footprints of SVM exits: for each exit code the call paths of its handler, and those that details add. Data only.

In the rows of `asid.mm.parts`; what each function touches, and where that is from, is in `asid.mm.functions`. Which
handler an exit has: svm_exit_handlers[] of Linux 5.15, and of later patches. Codes that it has no handler for are taken
as `asid.core.exits` has them: inf.
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

HANDLER: Final = "handle_exit"
COMMON: Final = ("^vcpu_enter_guest > svm_vcpu_run",)
UNEXPECTED: Final = ("svm_handle_invalid_exit", TO_USER)

_WRMSR = "msr_interception > kvm_emulate_wrmsr > kvm_set_msr_common"
_VMGEXIT = "sev_handle_vmgexit"
_CR_RESET = {Part.MMU_RESET: under("cr_interception", f"kvm_set_cr0 > {RESET}", f"kvm_set_cr3 > {RESET}")}
_TRAP_RESET = {Part.MMU_RESET: under("cr_trap", f"kvm_set_cr0 > {RESET}")}
_TIMER = "kvm_set_lapic_tscdeadline_msr > start_apic_timer"

# fmt: off
ROWS: Final[tuple[Row, ...]] = (
    # control registers: reads, writes, the selective write of CR0, traps behind a write (of EFER too)
    ((0x002, 0x008), ("cr_interception", SKIP), {}),
    ((0x000, 0x003, 0x004), ("cr_interception", SKIP), {
        **_CR_RESET,
        Part.GUEST_TABLES: under("cr_interception", "load_pdptrs"),
    }),
    ((0x012,), ("cr_interception", SKIP), {}),
    ((0x010, 0x013, 0x014, 0x065), (*under("cr_interception", "kvm_set_cr0", "kvm_set_cr4"), SKIP), {
        **_CR_RESET,
        Part.GUEST_TABLES: under("cr_interception", "kvm_set_cr3 > load_pdptrs"),
    }),
    ((0x018,), ("cr8_write_interception > kvm_set_cr8", SKIP), {Part.TO_VMM: (TO_USER,)}),
    ((0x08F,), ("efer_trap", SKIP), {Part.MMU_RESET: (f"efer_trap > {RESET}",)}),
    ((0x090, 0x094), ("cr_trap > kvm_set_cr4", SKIP), _TRAP_RESET),
    ((0x098,), ("cr_trap > kvm_set_cr8", SKIP), {Part.TO_VMM: (TO_USER,)}),
    # debug registers
    ((*range(0x020, 0x028), *range(0x030, 0x038)), ("dr_interception > kvm_set_dr", SKIP), {
        Part.DEBUGGER: (TO_USER,),
    }),
    # exceptions: those reflected, #DB and #BP, #UD, #GP, #AC, #PF, #MC
    ((0x040, 0x044, 0x045, 0x047, 0x048, 0x04A, 0x04B, 0x04C, 0x050, 0x053, 0x075, 0x07E, 0x088), (INJECT,), {}),
    ((0x041,), (f"db_interception > {INJECT}",), {Part.DEBUGGER: (TO_USER,)}),
    ((0x043,), (INJECT,), {Part.DEBUGGER: ("bp_interception", TO_USER)}),
    ((0x046,), (f"ud_interception > {INJECT}",), {Part.EMULATION: under("ud_interception", EMULATE)}),
    ((0x04D,), (f"gp_interception > {INJECT}",), {Part.EMULATION: under("gp_interception", EMULATE)}),
    ((0x04E,), under("pf_interception", f"{TDP} > fast_page_fault"), {
        Part.NEEDS_PAGE: under("pf_interception", *PAGE_IN),
    }),
    ((0x051,), (f"ac_interception > {INJECT}",), {}),
    ((0x052,), ("mc_interception", "^vcpu_enter_guest > svm_vcpu_run > do_machine_check"), {}),
    # interrupt, nmi, smi, init, vintr
    ((0x060,), ("intr_interception", f"^vcpu_enter_guest > svm_handle_external_intr > {INTERRUPT}"), {}),
    ((0x061,), ("nmi_interception", "^vcpu_enter_guest > svm_vcpu_run > do_nmi"), {}),
    ((0x062,), ("smi_interception", f"^vcpu_enter_guest > svm_handle_external_intr > {INTERRUPT}"), {}),
    ((0x063,), ("kvm_emulate_as_nop",), {}),
    ((0x064,), ("interrupt_window_interception",), {}),
    # descriptor tables, PUSHF and POPF, RSM, task switch: emulation
    ((0x066, 0x067, 0x068, 0x069, 0x06A, 0x06B, 0x06C, 0x06D, 0x071), under("emulate_on_interception", EMULATE), {}),
    ((0x070,), under("emulate_on_interception", EMULATE, WRITE_GUEST), {}),
    ((0x073,), under("rsm_interception", EMULATE), {}),
    ((0x07D,), under("task_switch_interception > kvm_task_switch", EMULATE, WRITE_GUEST), {}),
    # rdtsc, rdpmc, cpuid, iret, invd, pause, hlt
    ((0x06E,), ("kvm_read_l1_tsc", SKIP), {}),
    ((0x06F,), ("kvm_emulate_rdpmc > kvm_pmu_rdpmc", SKIP), {Part.HOST_COUNTER: (COUNTER,)}),
    ((0x072,), ("kvm_emulate_cpuid", SKIP), {}),
    ((0x074,), ("iret_interception",), {}),
    ((0x076,), ("kvm_emulate_invd", SKIP), {}),
    ((0x077,), (f"pause_interception > {SPIN}", SKIP), {Part.YIELDS: (f"pause_interception > {SPIN} > yield_to",)}),
    ((0x078, 0x0A6), ("kvm_emulate_halt", SKIP), {Part.BLOCKS: (SCHEDULE_OUT,)}),
    # invlpg, invlpga, invpcid
    ((0x079, 0x07A), ("invlpg_interception > kvm_mmu_invlpg", SKIP), {}),
    ((0x0A2,), ("invpcid_interception > kvm_mmu_invlpg", SKIP), {}),
    # io, msr, shutdown
    ((0x07B,), (*under("io_interception", *PIO), SKIP), {
        Part.KERNEL_DEVICE: (),
        Part.EVENTFD: under("io_interception", f"{PIO[0]} > ioeventfd_write > eventfd_signal"),
        Part.WAKES: under("io_interception", f"{PIO[0]} > ioeventfd_write > eventfd_signal > try_to_wake_up"),
        Part.VMM_DEVICE: (TO_USER,),
        Part.EMULATION: under("io_interception", EMULATE),
    }),
    ((0x07C,), ("msr_interception > kvm_emulate_rdmsr > kvm_get_msr_common", _WRMSR, SKIP), {
        Part.APIC: (f"{_WRMSR} > {LAPIC_WRITE}",),
        Part.IPI: (f"^vcpu_enter_guest > handle_fastpath_set_msr_irqoff > {LAPIC_IPI}",),
        Part.TIMER: (f"{_WRMSR} > {_TIMER} > hrtimer_start_range_ns", f"{_WRMSR} > {_TIMER} > ktime_get"),
        Part.WAKES: (f"{_WRMSR} > {LAPIC_IPI} > {WAKE}",),
        Part.TO_VMM: (TO_USER,),
    }),
    ((0x07F,), ("shutdown_interception", TO_USER), {}),
    # nested SVM, hypercall, skinit
    ((0x080,), ("vmrun_interception > nested_svm_vmrun", SKIP), {}),
    ((0x082, 0x083), ("vmload_vmsave_interception", SKIP), {}),
    ((0x084,), ("stgi_interception", SKIP), {}),
    ((0x085,), ("clgi_interception", SKIP), {}),
    ((0x081,), (HYPERCALL, SKIP), {
        Part.IPI: (f"{HYPERCALL} > kvm_pv_send_ipi",),
        Part.WAKES: (f"{HYPERCALL} > {WAKE}",),
        Part.YIELDS: (f"{HYPERCALL} > yield_to",),
        Part.TO_VMM: (TO_USER,),
    }),
    # skinit, rdtscp, rdpru, invlpgb, mcommit, tlbsync: an injected #UD
    ((0x086, 0x087, 0x08E, 0x0A0, 0x0A1, 0x0A3, 0x0A4), (f"kvm_handle_invalid_op > {INJECT}",), {}),
    # wbinvd, monitor, mwait, xsetbv, buslock
    ((0x089,), ("kvm_emulate_wbinvd", SKIP), {Part.ALL_CPUS: (FLUSH_ALL,)}),
    ((0x08A,), ("kvm_emulate_monitor", SKIP), {}),
    ((0x08B, 0x08C), ("kvm_emulate_mwait", SKIP), {}),
    ((0x08D,), ("kvm_emulate_xsetbv", SKIP), {}),
    ((0x0A5,), ("bus_lock_exit", TO_USER), {}),
    # npf, avic, pml_full
    ((0x400,), under("npf_interception", f"{TDP} > fast_page_fault"), {
        Part.NEEDS_PAGE: under("npf_interception", *PAGE_IN),
        Part.KERNEL_DEVICE: under("npf_interception", MMIO, EMULATE, "kvm_io_bus_write"),
        Part.VMM_DEVICE: (*under("npf_interception", MMIO, EMULATE), TO_USER),
    }),
    ((0x401,), ("avic_incomplete_ipi_interception > kvm_irq_delivery_to_apic",), {
        Part.WAKES: (f"avic_incomplete_ipi_interception > {WAKE}",),
    }),
    ((0x402,), ("avic_unaccelerated_access_interception > kvm_lapic_reg_write",), {
        Part.EMULATION: under("avic_unaccelerated_access_interception", EMULATE),
    }),
    ((0x407,), (f"pml_full_interception > {DIRTY}",), {Part.RING_FULL: (TO_USER,)}),
    # encrypted guests
    ((0x403,), (_VMGEXIT,), {
        Part.PAGE_STATE: (f"{_VMGEXIT} > snp_begin_psc",),
        Part.TO_VMM: (TO_USER,),
    }),
    ((0x8000_0001,), (f"{_VMGEXIT} > kvm_io_bus_read",), {Part.VMM_DEVICE: (TO_USER,)}),
    ((0x8000_0002,), (f"{_VMGEXIT} > kvm_io_bus_write",), {
        Part.EVENTFD: (f"{_VMGEXIT} > kvm_io_bus_write > ioeventfd_write > eventfd_signal",),
        Part.VMM_DEVICE: (TO_USER,),
    }),
    ((0x8000_0003,), (f"{_VMGEXIT} > iret_interception",), {}),
    ((0x8000_0004,), (f"{_VMGEXIT} > kvm_emulate_ap_reset_hold",), {Part.BLOCKS: (SCHEDULE_OUT,)}),
    ((0x8000_0005, 0x8000_FFFD), (_VMGEXIT,), {}),
    ((0x8000_0010,), (f"{_VMGEXIT} > snp_begin_psc", TO_USER), {}),
    ((0x8000_0011, 0x8000_0012), (f"{_VMGEXIT} > snp_handle_guest_req > psp_do_cmd",), {}),
    ((0x8000_0013,), (f"{_VMGEXIT} > sev_snp_ap_creation > {WAKE}",), {}),
    ((0x8000_FFFF,), (_VMGEXIT, TO_USER), {}),
    # a failed entry
    ((-1,), UNEXPECTED, {}),
)
# fmt: on
