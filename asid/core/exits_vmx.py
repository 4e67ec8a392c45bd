"""Intel VMX basic exit reasons: number, kernel name, other names, what its details may be, what its handler does.

Data only; `asid.core.exits` gives it a meaning. Numbers and names are those of Linux 5.15
(arch/x86/include/uapi/asm/vmx.h), with the reasons that later kernels print (75, 77, 84, 85) and those that the
processor manual defines but KVM never prints by name (5, 6, 11, 17, 66, 69, 70, 72, 73, 76, 78, 79). "Other names" are
the trace plugin's, those of older kernels and common spellings of the processor manual.

Of some reasons the exits differ: a share has a detail that takes its handling further, and a word says where to:
"userspace" (it goes on to the VMM process), "schedule" (the vCPU thread may be scheduled out), "host" (other host data
may be touched). The share is an *assumption*: nobody has published one. The other reasons have neither, for what their
handling touches does not depend on it; what that is, is in `asid.mm.footprint_vmx` and `footprint_svm`.
"""

from __future__ import annotations

Row = tuple[int, str, tuple[str, ...], str] | tuple[int, str, tuple[str, ...], float, str, str]

# fmt: off
VMX_ROWS: tuple[Row, ...] = (
    (0, "EXCEPTION_NMI", (), 0.10, "host",
     "#UD, #NM, #DB are short; an NMI or #MC runs host handlers, a guest #PF reads shadow tables"),
    (1, "EXTERNAL_INTERRUPT", (), "the host's interrupt handler runs: any kernel data"),
    (2, "TRIPLE_FAULT", (), "reported to the VMM as a shutdown"),
    (3, "INIT_SIGNAL", ("INIT",), "vCPU reset by the VMM"),
    (4, "SIPI_SIGNAL", ("SIPI",), "vCPU start-up by the VMM"),
    (5, "IO_SMI", (), "system management code of the host"),
    (6, "OTHER_SMI", (), "system management code of the host"),
    (7, "INTERRUPT_WINDOW", ("PENDING_INTERRUPT", "PENDING_VIRT_INTR", "INT_WINDOW"),
     "injects a waiting interrupt: vCPU data only"),
    (8, "NMI_WINDOW", (), "injects a waiting NMI: vCPU data only"),
    (9, "TASK_SWITCH", (), "emulates a hardware task switch: reads and writes guest memory"),
    (10, "CPUID", (), "a look into the vCPU's CPUID table"),
    (11, "GETSEC", (), "an injected #UD"),
    (12, "HLT", (), "the vCPU blocks and its thread is scheduled out"),
    (13, "INVD", (), "skipped: nothing is touched"),
    (14, "INVLPG", (), "only with shadow paging: walks shadow page tables, which hold host frame numbers"),
    (15, "RDPMC", (), 0.10, "host", "virtual counters are vCPU data, but a read may reach the host's perf events"),
    (16, "RDTSC", (), "arithmetic on the vCPU's TSC offset"),
    (17, "RSM", (), "restores a state from guest memory"),
    (18, "VMCALL", (), 0.10, "schedule", "most hypercalls touch this VM only; a few wake or yield to other threads"),
    (19, "VMCLEAR", (), "nested VMX: long emulation over guest memory"),
    (20, "VMLAUNCH", (), "nested VMX: long emulation over guest memory"),
    (21, "VMPTRLD", (), "nested VMX: long emulation over guest memory"),
    (22, "VMPTRST", (), "nested VMX: long emulation over guest memory"),
    (23, "VMREAD", (), "nested VMX: long emulation over guest memory"),
    (24, "VMRESUME", (), "nested VMX: long emulation over guest memory"),
    (25, "VMWRITE", (), "nested VMX: long emulation over guest memory"),
    (26, "VMOFF", ("VMXOFF",), "nested VMX: long emulation over guest memory"),
    (27, "VMON", ("VMXON",), "nested VMX: long emulation over guest memory"),
    (28, "CR_ACCESS", (), 0.25, "host", "CR4 and CR8 are short; a change of CR0 or CR3 may rebuild the MMU's tables"),
    (29, "DR_ACCESS", (), "vCPU data only"),
    (30, "IO_INSTRUCTION", (), 0.5, "userspace",
     "devices in the kernel are on the VM's own buses; the others are the VMM's"),
    (31, "MSR_READ", ("RDMSR",), "short: vCPU data only"),
    (32, "MSR_WRITE", ("WRMSR",), "short: vCPU data, virtual APIC, timers"),
    (33, "INVALID_STATE", (), "failed entry: reported to the VMM"),
    (34, "MSR_LOAD_FAIL", ("MSR_LOADING",), "failed entry: reported to the VMM"),
    (36, "MWAIT_INSTRUCTION", ("MWAIT",), "emulated as a no-op"),
    (37, "MONITOR_TRAP_FLAG", ("MTF",), "single step used by KVM itself"),
    (39, "MONITOR_INSTRUCTION", ("MONITOR",), "emulated as a no-op"),
    (40, "PAUSE_INSTRUCTION", ("PAUSE",), 0.05, "schedule",
     "mostly returns at once; a directed yield calls the scheduler"),
    (41, "MCE_DURING_VMENTRY", ("MACHINE_CHECK",), "the host's machine-check handler runs"),
    (43, "TPR_BELOW_THRESHOLD", (), "re-evaluates the vCPU's interrupts"),
    (44, "APIC_ACCESS", (), 0.10, "host", "an EOI takes a short path; other accesses need the instruction emulated"),
    (45, "EOI_INDUCED", ("VIRTUALIZED_EOI",), "virtual I/O APIC of this VM"),
    (46, "GDTR_IDTR", (), "instruction emulation: reads guest memory"),
    (47, "LDTR_TR", (), "instruction emulation: reads guest memory"),
    (48, "EPT_VIOLATION", (), "guest page fault: allocates and maps host memory"),
    (49, "EPT_MISCONFIG", (), 0.5, "userspace", "an eventfd or a kernel device is short; the VMM's devices are not"),
    (50, "INVEPT", (), "nested VMX: long emulation over guest memory"),
    (51, "RDTSCP", (), "arithmetic on the vCPU's TSC offset"),
    (52, "PREEMPTION_TIMER", (), "the vCPU's own timer has run out"),
    (53, "INVVPID", (), "nested VMX: long emulation over guest memory"),
    (54, "WBINVD", (), 0.05, "host", "short; with non-coherent DMA it flushes caches of other CPUs"),
    (55, "XSETBV", (), "vCPU data only"),
    (56, "APIC_WRITE", (), "virtual APIC page of the vCPU"),
    (57, "RDRAND", (), "an injected #UD: the host's random pool is never read"),
    (58, "INVPCID", (), "only with shadow paging: walks shadow page tables"),
    (59, "VMFUNC", (), "nested VMX: long emulation over guest memory"),
    (60, "ENCLS", (), "SGX emulation over guest memory"),
    (61, "RDSEED", (), "an injected #UD: the host's random pool is never read"),
    (62, "PML_FULL", (), 0.10, "userspace", "marks pages of this VM dirty; a full dirty ring goes to the VMM"),
    (63, "XSAVES", (), "unexpected; an injected #UD"),
    (64, "XRSTORS", (), "unexpected; an injected #UD"),
    (66, "SPP_EVENT", (), "sub-page permission: changes the VM's page tables"),
    (67, "UMWAIT", (), "an injected #UD"),
    (68, "TPAUSE", (), "an injected #UD"),
    (69, "LOADIWKEY", (), "an injected #UD"),
    (70, "ENCLV", (), "SGX emulation over guest memory"),
    (72, "ENQCMD_PASID", ("ENQCMD",), "PASID translation is host IOMMU data"),
    (73, "ENQCMDS_PASID", ("ENQCMDS",), "PASID translation is host IOMMU data"),
    (74, "BUS_LOCK", (), "reported to the VMM"),
    (75, "NOTIFY", (), 0.10, "userspace", "short unless the VMM asked to be told"),
    (76, "SEAMCALL", (), "an injected #UD"),
    (77, "TDCALL", (), 0.5, "userspace", "a TDX guest's call: many kinds, some for the VMM"),
    (78, "RDMSRLIST", (), "an injected #UD"),
    (79, "WRMSRLIST", (), "an injected #UD"),
    (84, "MSR_READ_IMM", (), "short: vCPU data only"),
    (85, "MSR_WRITE_IMM", (), "short: vCPU data, virtual APIC, timers"),
)
# fmt: on

# Bits above the 16 of the basic reason. Only bit 31 has a name in the kernel's text; others print as one hex number.
VMX_FLAGS: tuple[tuple[int, str], ...] = ((1 << 31, "FAILED_VMENTRY"),)
