"""What handlers touch: the kernel's objects, in which area each lies, how big it is and whose data is in it. Data only.

An object lies in an area of `asid.mm.layout` and has a sensitivity of its own: a struct kvm is this VM's although the
direct map around it is full of secrets. An area that is touched as a whole is an object too (`vmemmap`).

size is in bytes. Where the RFC or a header gives it, the source says so; "inf" is a plausible size of ours. per says
how many there are: one of the host, one a CPU, a VM, a vCPU or a vCPU's task. symbol: the kernel's name of it, if any.

Sources: [v1 pNN] is patch NN of RFC v1, `seed cNN` a comment on it, `G22` the posting of 2022; "inf" is inference.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from asid.mm.layout import FREE, MIXED, OWN, SECRET, Sensitivity

Per = Literal["host", "cpu", "vm", "vcpu", "task"]


class Object(NamedTuple):
    """One row; see the head of this file."""

    name: str
    area: str
    size: int
    per: Per
    sensitivity: Sensitivity
    symbol: str
    source: str


_PAGE: Final = 4096

# fmt: off
OBJECTS: Final[tuple[Object, ...]] = (
    # The host's, and nobody's secret.
    Object("kernel text", "kernel image", 14 << 20, "host", FREE, "_text", "[v1 p19]; reviewers want less, seed c15"),
    Object("kvm module", "modules", 0xA0000, "host", FREE, "", "[v1 p19] kvm_copy_module_mapping: text and statics"),
    Object("kvm_intel module", "modules", 0x40000, "host", FREE, "", "[v1 p19] kvm_copy_module_mapping"),
    Object("kvm_amd module", "modules", 0x20000, "host", FREE, "", "[v1 p19] kvm_copy_module_mapping"),
    Object("cpu_entry_area", "cpu_entry_area", 0x3B000, "cpu", FREE, "", "[v1 p19]; size: inf"),
    Object("espfix64", "espfix64", _PAGE, "host", FREE, "", "[v1 p19]; one page for 64 CPUs: inf"),
    Object("L1D flush pages", "direct map", 16 * _PAGE, "host", FREE, "", "[v1 p20]: PAGE_SIZE << L1D_CACHE_ORDER"),
    Object("current_task", "direct map", 8, "cpu", FREE, "current_task", "[v2 cover]; percpu first chunk of [v1 p19]"),
    Object("cpu_tlbstate", "direct map", 160, "cpu", FREE, "cpu_tlbstate", "seed c15: to switch back; size: inf"),
    Object("this_cpu_off", "direct map", 8, "cpu", FREE, "this_cpu_off", "[v2 cover]"),
    Object("current_vmcs", "direct map", 8, "cpu", FREE, "current_vmcs", "kernel arch/x86/kvm/vmx: a pointer"),
    Object("svm_data", "direct map", 64, "cpu", FREE, "svm_data", "kernel arch/x86/kvm/svm: ASIDs; size: inf"),
    Object("hrtimer_bases", "direct map", 576, "cpu", FREE, "hrtimer_bases", "times and pointers: inf"),
    Object("tk_core", "kernel image", 288, "host", FREE, "tk_core", "the time of day: inf"),
    Object("vmemmap", "vmemmap", 1 << 20, "host", FREE, "", "seed: the sample fault; the pages of one VM: inf"),
    # The host's, with data of others in it.
    Object("kernel image", "kernel image", 512 << 20, "host", MIXED, "", "[v1 p19]: KERNEL_IMAGE_SIZE, text and data"),
    Object("percpu first chunk", "direct map", 1 << 18, "cpu", MIXED, "", "[v1 p19]: pcpu_unit_size; has secrets"),
    Object("direct map", "direct map", 1 << 30, "host", SECRET, "", "seed cover: host and other guests"),
    Object("random pool", "direct map", 72, "cpu", SECRET, "batched_entropy_u64", "seed c15: the per-CPU random pool"),
    Object("other task", "direct map", 9792, "task", SECRET, "", "its task_struct and stack: inf"),
    Object("runqueues", "direct map", 3136, "cpu", MIXED, "runqueues", "state of every task of the CPU: inf"),
    Object("call queues", "direct map", 64, "cpu", MIXED, "call_single_queue", "work that other CPUs ask for: inf"),
    Object("IRQ stack", "vmalloc", 4 * _PAGE, "cpu", MIXED, "", "[v1 p19]: IRQ_STACK_SIZE; what handlers left: inf"),
    Object("irq_desc", "direct map", 448, "host", MIXED, "irq_desc_tree", "devices of all users: inf"),
    Object("perf events", "direct map", 4688, "cpu", MIXED, "cpu_hw_events", "counts of other tasks: inf"),
    Object("machine-check banks", "direct map", 1024, "cpu", MIXED, "mce_banks_array", "addresses of all users: inf"),
    Object("page allocator", "direct map", 1 << 14, "host", MIXED, "", "zones and free lists: inf"),
    Object("shadow page tables", "direct map", 1 << 20, "vm", MIXED, "", "[v1 p07]: hold host page frame numbers"),
    Object("VMM's memory", "user space", 1 << 30, "vm", MIXED, "", "seed c2, c13: guest memory, the VMM's secrets"),
    Object("signals", "direct map", 2240, "task", MIXED, "", "the VMM's signals and pending work: inf"),
    Object("IOMMU tables", "direct map", 1 << 16, "host", MIXED, "", "devices of all users: inf"),
    Object("security processor", "direct map", _PAGE, "host", MIXED, "psp_master", "its command buffer: inf"),
    # This VM's.
    Object("kvm", "vmalloc", 45_056, "vm", OWN, "", "[v1 p21] struct kvm_vmx; size: inf"),
    Object("srcu data", "direct map", 384, "cpu", OWN, "", "[v1 p21]: srcu_struct's sda of this VM; size: inf"),
    Object("memslots", "vmalloc", 16_448, "vm", OWN, "", "[v1 p26] struct kvm_memslots; size: inf"),
    Object("buses", "direct map", 24_008, "vm", OWN, "", "[v1 p27]: 8 bytes and 24 a device, at most 1000"),
    Object("io devices", "direct map", 256, "vm", OWN, "", "struct kvm_io_device of the kernel's devices: inf"),
    Object("eventfd", "direct map", 96, "vm", OWN, "", "struct eventfd_ctx of an ioeventfd: inf"),
    Object("irqchip", "direct map", 1024, "vm", OWN, "", "struct kvm_ioapic, kvm_pic, routing: inf"),
    Object("apic map", "direct map", 2112, "vm", OWN, "", "struct kvm_apic_map: inf"),
    Object("dirty bitmap", "vmalloc", 1 << 16, "vm", OWN, "", "of a memslot: inf"),
    Object("encrypted guest", "direct map", 1024, "vm", OWN, "", "struct kvm_sev_info or kvm_tdx: inf"),
    Object("vcpu", "direct map", 19_456, "vcpu", OWN, "", "[v1 p22] struct vcpu_vmx; size: inf"),
    Object("VMCS", "direct map", _PAGE, "vcpu", OWN, "", "[v1 p22]: 4 KiB << order"),
    Object("VMCB", "direct map", _PAGE, "vcpu", OWN, "", "what the VMCS is on AMD: inf"),
    Object("msr_bitmap", "direct map", _PAGE, "vcpu", OWN, "", "[v1 p22]"),
    Object("guest_msrs", "direct map", _PAGE, "vcpu", OWN, "", "[v1 p22]"),
    Object("pml_pg", "direct map", _PAGE, "vcpu", OWN, "", "[v1 p22]"),
    Object("pio_data", "direct map", _PAGE, "vcpu", OWN, "", "[v1 p22]"),
    Object("lapic", "direct map", 232, "vcpu", OWN, "", "[v1 p22] struct kvm_lapic; size: inf"),
    Object("APIC page", "direct map", _PAGE, "vcpu", OWN, "", "registers of the virtual APIC: inf"),
    Object("kvm_run", "direct map", _PAGE, "vcpu", OWN, "", "shared with the VMM: inf"),
    Object("guest FPU", "direct map", _PAGE, "vcpu", OWN, "", "G22: allocated apart; size: inf"),
    Object("cpuid entries", "direct map", 3200, "vcpu", OWN, "", "kernel arch/x86/kvm/cpuid.c; size: inf"),
    Object("nested state", "direct map", 2 * _PAGE, "vcpu", OWN, "", "vmcs12 or vmcb12 as kept: inf"),
    Object("other vcpu", "direct map", 19_456, "vcpu", OWN, "", "another vCPU of this VM: inf"),
    Object("task_struct", "direct map", 9792, "task", OWN, "", "[v1 p23]; holds host data besides"),
    Object("task stack", "vmalloc", 4 * _PAGE, "task", OWN, "", "[v1 p23]: THREAD_SIZE; holds host data besides"),
    Object("mm_struct", "direct map", 2048, "task", OWN, "", "[v1 p23]; size: inf"),
    Object("mm pgd", "direct map", 2 * _PAGE, "task", OWN, "", "[v1 p23]: 4 KiB << PGD_ALLOCATION_ORDER"),
)
# fmt: on

OBJECT: Final[dict[str, Object]] = {row.name: row for row in OBJECTS}
# What handlers touch under another name than that by which it is mapped: for another vCPU it is one more of this VM's.
ALIASES: Final = {"other vcpu": "vcpu"}
assert len(OBJECT) == len(OBJECTS), "an object twice"
