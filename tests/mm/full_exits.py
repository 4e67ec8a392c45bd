"""Exits whose handling needs more than a VM may reach, with what they usually ask for: by what their handlers do.

Taken down from the handlers of Linux 5.15 before there were footprints, so it can be wrong in its own ways only. HLT
and its kin are among them, for a vCPU that halts is scheduled out.
"""

from __future__ import annotations

VMX = frozenset(
    {
        "EXTERNAL_INTERRUPT", "TRIPLE_FAULT", "INIT_SIGNAL", "SIPI_SIGNAL", "IO_SMI", "OTHER_SMI", "TASK_SWITCH",
        "HLT", "INVLPG", "RSM", "VMCLEAR", "VMLAUNCH", "VMPTRLD", "VMPTRST", "VMREAD", "VMRESUME", "VMWRITE", "VMOFF",
        "VMON", "INVALID_STATE", "MSR_LOAD_FAIL", "MCE_DURING_VMENTRY", "GDTR_IDTR", "LDTR_TR", "EPT_VIOLATION",
        "INVEPT", "INVVPID", "INVPCID", "VMFUNC", "ENCLS", "SPP_EVENT", "ENCLV", "ENQCMD_PASID", "ENQCMDS_PASID",
        "BUS_LOCK",
    }
)  # fmt: skip

SVM = frozenset(
    {
        "PF excp", "MC excp", "interrupt", "nmi", "smi", "read_idtr", "read_gdtr", "read_ldtr", "read_rt",
        "write_idtr", "write_gdtr", "write_ldtr", "write_rt", "pushf", "popf", "rsm", "hlt", "invlpg", "invlpga",
        "task_switch", "shutdown", "vmrun", "vmload", "vmsave", "invpcid", "buslock", "idle-halt", "npf",
        "vmgexit_ap_hlt_loop", "vmgexit_page_state_change", "vmgexit_guest_request", "vmgexit_ext_guest_request",
        "vmgexit_ap_creation", "vmgexit_unsupported_event", "invalid_guest_state",
    }
)  # fmt: skip


def is_full(isa: str, name: str) -> bool:
    """Say whether an exit is full with all mapped that is no secret, whatever its details ask for."""
    return name in (VMX if isa == "vmx" else SVM)
