"""What a footprint is written in: the parts that an exit's details add, and call paths that many handlers share.

A path is a chain of functions, caller first, below the exit handler of the isa. One that begins with `^` hangs from the
function named there, which is further up: `^vcpu_enter_guest > vmx_vcpu_run`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

When = Literal["", "userspace", "schedule", "host"]


class Part(Enum):
    """What a handler does besides, when the exit's details ask for it. The value is the word that people write.

    `when` is the word of `asid.core.exits` for it; "" is a part that needs nothing of the host.
    """

    APIC = "apic"  # an MSR of the virtual APIC
    IPI = "ipi"  # sends one to another vCPU of this VM
    TIMER = "timer"  # sets the vCPU's timer
    KERNEL_DEVICE = "kernel-device"  # a device that the kernel has for this VM
    EVENTFD = "eventfd"  # a doorbell of a device
    VMM_DEVICE = "vmm-device"  # a device of the VMM
    TO_VMM = "to-vmm"  # the VMM wants to be told
    DEBUGGER = "debugger"  # a debugger of the VMM asked for it
    RING_FULL = "ring-full"  # the dirty ring has no room
    BLOCKS = "blocks"  # nothing to run: the thread is scheduled out
    YIELDS = "yields"  # gives the rest of its time to another vCPU
    WAKES = "wakes"  # wakes a thread
    NEEDS_PAGE = "needs-page"  # a page is to be found and mapped
    EMULATION = "emulation"  # the instruction has to be read and emulated
    MMU_RESET = "mmu-reset"  # the MMU's tables are built anew
    GUEST_TABLES = "guest-tables"  # reads entries of the guest's page tables
    SHADOW_FAULT = "shadow-fault"  # a guest page fault, with shadow paging
    NMI = "nmi"  # an NMI of the host
    MACHINE_CHECK = "machine-check"  # a machine check of the host
    HOST_COUNTER = "host-counter"  # reads a performance counter of the host
    ALL_CPUS = "all-cpus"  # asks other CPUs to do it too
    PAGE_STATE = "page-state"  # converts pages of an encrypted guest

    @property
    def when(self) -> When:
        """What makes the exit full: see the class."""
        return _WHEN.get(self, "")


_WHEN: Final[dict[Part, When]] = {
    **dict.fromkeys((Part.VMM_DEVICE, Part.TO_VMM, Part.DEBUGGER, Part.RING_FULL), "userspace"),
    **dict.fromkeys((Part.BLOCKS, Part.YIELDS, Part.WAKES), "schedule"),
    **dict.fromkeys((Part.NEEDS_PAGE, Part.EMULATION, Part.MMU_RESET, Part.GUEST_TABLES, Part.SHADOW_FAULT), "host"),
    **dict.fromkeys((Part.NMI, Part.MACHINE_CHECK, Part.HOST_COUNTER, Part.ALL_CPUS, Part.PAGE_STATE), "host"),
}

# Parts that an exit has when nothing is known of its details.
USUAL: Final = frozenset({Part.BLOCKS, Part.NEEDS_PAGE})

Paths = tuple[str, ...]
# (exit numbers, paths always taken, further paths by part)
Row = tuple[tuple[int, ...], Paths, dict[Part, Paths]]

SYSCALL: Final = (
    "entry_SYSCALL_64_after_hwframe",
    "do_syscall_64",
    "SyS_ioctl",
    "do_vfs_ioctl",
    "kvm_vcpu_ioctl",
    "kvm_arch_vcpu_ioctl_run",
    "vcpu_enter_guest",
)

SKIP: Final = "kvm_skip_emulated_instruction"
INJECT: Final = "kvm_queue_exception"
TO_USER: Final = "^do_syscall_64 > prepare_exit_to_usermode"
SCHEDULE_OUT: Final = "^kvm_arch_vcpu_ioctl_run > kvm_vcpu_block > schedule > kvm_arch_vcpu_put"
EMULATE: Final = "x86_emulate_instruction > kvm_fetch_guest_virt > kvm_vcpu_read_guest_page"
WRITE_GUEST: Final = "x86_emulate_instruction > kvm_write_guest_virt_system"
INTERRUPT: Final = "do_IRQ > handle_edge_irq"
WAKE: Final = "kvm_vcpu_wake_up > wake_up_process > try_to_wake_up"
SPIN: Final = "kvm_vcpu_on_spin"
RESET: Final = "kvm_mmu_reset_context"
FLUSH_ALL: Final = "kvm_emulate_wbinvd > smp_call_function_many"
DIRTY: Final = "kvm_vcpu_mark_page_dirty"
HYPERCALL: Final = "kvm_emulate_hypercall"
COUNTER: Final = "kvm_emulate_rdpmc > kvm_pmu_rdpmc > perf_event_read_value"

LAPIC_WRITE: Final = "kvm_x2apic_msr_write > kvm_lapic_reg_write"
LAPIC_IPI: Final = f"{LAPIC_WRITE} > kvm_apic_send_ipi > kvm_irq_delivery_to_apic"
PIO: Final = ("kvm_fast_pio > kernel_pio > kvm_io_bus_write", "kvm_fast_pio > kernel_pio > kvm_io_bus_read")
MMIO: Final = "kvm_mmu_page_fault > handle_mmio_page_fault"

# A page of the guest that is not yet mapped: found in the VMM's memory, and put into the tables.
TDP: Final = "kvm_mmu_page_fault > tdp_page_fault"
PAGE_IN: Final = (
    f"{TDP} > mmu_topup_memory_caches > __alloc_pages_nodemask",
    f"{TDP} > try_async_pf > get_user_pages_unlocked",
    f"{TDP} > __direct_map",
)


def under(caller: str, *paths: str) -> Paths:
    """Return paths hung below `caller`; those that hang from further up stay as they are."""
    return tuple(path if path.startswith("^") else f"{caller} > {path}" for path in paths)
