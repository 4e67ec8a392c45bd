"""Policy `asi-irqoff`: short exits in ISOLATED with interrupts off, all others in HOST (RFC comment 15)."""

from __future__ import annotations

from typing import Final

from asid.core.policies.base import Policy

# Exits short enough for that, by their kernel's names: "CPUID, most RDMSR and WRMSR, any event-related exit" (RFC
# comment 15), and those that later kernels finish in the fast path of the run loop (vmx_exit_handlers_fastpath of
# kvm/vmx/vmx.c, svm_exit_handlers_fastpath of kvm/svm/svm.c).
SHORT: Final = frozenset(
    {
        "CPUID", "MSR_READ", "MSR_WRITE", "MSR_READ_IMM", "MSR_WRITE_IMM", "INTERRUPT_WINDOW", "NMI_WINDOW",
        "TPR_BELOW_THRESHOLD", "APIC_WRITE", "EOI_INDUCED", "PREEMPTION_TIMER", "INVD", "XSETBV", "DR_ACCESS",
        "MONITOR_TRAP_FLAG", "cpuid", "msr", "vintr", "iret", "invd", "xsetbv",
    }
)  # fmt: skip


class AsiIrqOff(Policy):
    """An exit that is not short is handled in HOST even where the mapping would suffice; an interrupt waits for the end
    of a short one, so it never finds the isolated address space."""

    name = "asi-irqoff"
    about = "short exits in the isolated address space, interrupts off; all others in HOST"
    irqs_off = True

    def needs_full(self, full: bool, reason: str = "") -> bool:
        return full or reason not in SHORT
