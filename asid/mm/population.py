"""What is mapped by name: what the RFC maps, step by step; the least that can be switched to; all that may be mapped.

Each step is a function of the processor's kind that returns what it maps, with the why in its first line. Steps know no
host; `Isolated.apply` maps what they return. `tear_down` is the way back, the last object first.

As posted and as meant
    `RFC` is version 1 as it was posted: the whole image, the whole first chunk of per-CPU variables, and every buffer
    in the host's own entries, which in the direct map are of 2 MiB. It exposes what lies around them.
    `MINIMAL` is what the processor and the fault path need and no more: where `asid space learn` begins.
    `ALLOWED` is what learning would come to with every exit that there is: all that handlers touch and that is neither
    the host's secret nor another VM's, each object in pages of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from asid.core.exits import Isa
from asid.errors import ConfigError
from asid.mm.entry import Level
from asid.mm.faulting import HANDLER, SWITCH
from asid.mm.footprint import objects_touched
from asid.mm.isolated import Entry, Isolated
from asid.mm.objects import ALIASES, OBJECTS
from asid.mm.secrets import is_secret

Step = Callable[[Isa], tuple[Entry, ...]]
_KINDS: Final[tuple[Isa, ...]] = ("vmx", "svm")


def core(isa: Isa) -> tuple[Entry, ...]:
    """Patch 19: text and data of the kernel, its per-CPU variables, and what entry and interrupts need at any time.

    In PMDs the image and the first chunk, for a PUD is shared with modules and the direct map; by their own P4D entries
    the cpu_entry_area and espfix64; in PTEs the IRQ stacks.
    """
    return (
        Entry("kernel image", Level.PMD, step="core"),
        Entry("percpu first chunk", Level.PMD, step="core"),
        Entry("cpu_entry_area", Level.P4D, step="core"),
        Entry("espfix64", Level.P4D, step="core"),
        Entry("IRQ stack", step="core"),
    )


def modules(isa: Isa) -> tuple[Entry, ...]:
    """Patch 19: the modules that handle exits, text and statics; in PTEs, for their area is no module's alone."""
    return (Entry("kvm module", step="modules"), Entry(f"{_module(isa)} module", step="modules"))


def l1d_flush_pages(isa: Isa) -> tuple[Entry, ...]:
    """Patch 20: the pages that are read to flush the L1D before a guest is entered (of VMX alone)."""
    return (Entry("L1D flush pages", step="L1D flush pages"),) if isa == "vmx" else ()


def vm_data(isa: Isa) -> tuple[Entry, ...]:
    """Patch 21: the VM's own structure, and the per-CPU part of its SRCU, which every exit enters and leaves."""
    return Entry("kvm", step="VM data"), Entry("srcu data", step="VM data")


def vcpu_data(isa: Isa) -> tuple[Entry, ...]:
    """Patch 22: each vCPU's structure and the pages that hang from it: those of the processor and of its APIC."""
    pages = ("pml_pg", "guest_msrs", "VMCS") if isa == "vmx" else ("VMCB",)
    return tuple(Entry(name, step="vCPU data") for name in ("vcpu", *pages, "msr_bitmap", "pio_data", "lapic"))


def task(isa: Isa) -> tuple[Entry, ...]:
    """Patch 23: the task that runs a vCPU: its structure, the stack it stands on, its mm_struct and PGD to go back."""
    return tuple(Entry(name, step="task") for name in ("task_struct", "task stack", "mm_struct", "mm pgd"))


def memslots(isa: Isa) -> tuple[Entry, ...]:
    """Patch 26: where the guest's memory is in the VMM's. Allocated anew at each change, and then mapped again."""
    return (Entry("memslots", step="memslots"),)


def buses(isa: Isa) -> tuple[Entry, ...]:
    """Patch 27: the devices in the kernel by address, whole. Version 1 maps the header alone until they change."""
    return (Entry("buses", step="buses"),)


def least(isa: Isa) -> tuple[Entry, ...]:
    """Text to run, entry stacks, and the per-CPU data without which a fault's own handler faults: to switch back."""
    return (
        Entry("kernel text", Level.PMD, step="least"),
        Entry("kvm module", step="least"),
        Entry(f"{_module(isa)} module", step="least"),
        Entry("cpu_entry_area", Level.P4D, step="least"),
        Entry("espfix64", Level.P4D, step="least"),
        Entry("current_task", split=True, step="least"),
        Entry("cpu_tlbstate", split=True, step="least"),
        Entry("task_struct", split=True, step="least"),
        Entry("task stack", split=True, step="least"),
    )


def allowed(isa: Isa) -> tuple[Entry, ...]:
    """Everything that some exit's handling, a fault or a switch touches and that a VM may reach, of either processor.

    Either: an exit of the other kind can be injected, and is then handled as on its own machine.
    """
    entries = {entry.object: entry for kind in _KINDS for entry in least(kind)}
    touched = objects_touched() | {access.object for access in (*HANDLER, *SWITCH)}
    for row in OBJECTS:
        if row.name in touched and not is_secret(row.sensitivity) and row.name not in ALIASES:
            entries.setdefault(row.name, Entry(row.name, split=True))
    return tuple(entry._replace(step="allowed") for entry in entries.values())


RFC: Final[tuple[Step, ...]] = (core, modules, l1d_flush_pages, vm_data, vcpu_data, task, memslots, buses)
MINIMAL: Final[tuple[Step, ...]] = (least,)
ALLOWED: Final[tuple[Step, ...]] = (allowed,)
NAMED: Final = {"allowed": ALLOWED, "rfc": RFC, "minimal": MINIMAL}


def entries_of(name: str, isa: Isa) -> tuple[Entry, ...]:
    """Return what a named mapping maps. Raise ConfigError for a name that there is not."""
    if name not in NAMED:
        raise ConfigError(f"{name!r} is no mapping", where="address space", allowed=" or ".join(NAMED))
    return tuple(entry for step in NAMED[name] for entry in step(isa))


def why(step: Step) -> str:
    """Return the first sentence of what a step is for."""
    return (step.__doc__ or "").partition("\n")[0].rstrip(".")


def populate(isolated: Isolated, steps: tuple[Step, ...], isa: Isa) -> None:
    """Take these steps, all or none. Raise MappingRefused as Isolated.map does."""
    isolated.apply(entry for step in steps for entry in step(isa))


def tear_down(isolated: Isolated) -> None:
    """Unmap everything, the last first, and leave the table empty; kvm_isolation_destroy_vm."""
    for entry in reversed(isolated.entries):
        isolated.unmap(entry.object)


def _module(isa: Isa) -> str:
    return "kvm_intel" if isa == "vmx" else "kvm_amd"
