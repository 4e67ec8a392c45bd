"""What becomes of a fault in the isolated space: reported and left, or its own handler faults, or it hit a switch.

Rule 1. Whatever faults, the thread survives: it ends in the full address space, and the access is tried again there.
Rule 2. A fault's handler runs in the isolated space until it has switched. It comes in by the cpu_entry_area, stands on
        the task's stack, looks at current_task and its task_struct, and needs cpu_tlbstate to switch. Without one of
        these it faults.
Rule 3. A handler that faults is a double fault: its own stack is in the cpu_entry_area, and its handler switches first
        and looks at nothing. If that area is not mapped either, or the entry code, it is a triple fault.
Rule 4. A fault while switching is not one to leave for: the switch is forced by writing CR3, and both tables are told.

The RFC faults for ever where Rule 3 switches ("double fault/page fault loop", missing per-CPU data); forcing CR3 and
dumping both tables is its answer to Rule 4.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from asid.mm.fault import Fault, FaultLog
from asid.mm.footprint import accesses_of
from asid.mm.reach import Miss, Reach


class Ending(Enum):
    """How a fault ended. The value is the word that people read."""

    LEFT = "left"  # reported, the isolated space left, the access tried again
    FORCED = "forced"  # its handler faulted: the double fault's handler switched
    SWITCH_FORCED = "switch forced"  # it came while switching: CR3 was written
    STOPPED = "stopped"  # nothing could be run: a triple fault, and the hyperthread is lost


class Handled(NamedTuple):
    """One fault and what came of it. missing: what its handler, or the switch, missed. lines: what was printed."""

    ending: Ending
    fault: Fault
    missing: tuple[Miss, ...]
    log: FaultLog
    lines: tuple[str, ...]


_TO_SWITCH: Final = ("async_page_fault", "do_page_fault", "kvm_isolation_exit")
# What the processor itself needs to run a handler, and what a page fault's touches before it has switched, in order.
ENTRY: Final = tuple(seen for seen in accesses_of("async_page_fault") if seen.object != "task stack")
HANDLER: Final = (
    *accesses_of("async_page_fault"),
    *accesses_of(*_TO_SWITCH[:2]),
    *accesses_of(*_TO_SWITCH),
    *accesses_of(*_TO_SWITCH, "switch_mm_irqs_off"),
)
# What a switch of address spaces touches while the isolated table is still the loaded one.
_LEAVING: Final = ("kvm_arch_vcpu_ioctl_run", "kvm_isolation_exit")
SWITCH: Final = (*accesses_of(*_LEAVING), *accesses_of(*_LEAVING, "switch_mm_irqs_off"))


def survives(reach: Reach) -> tuple[Miss, ...]:
    """Return what a fault's handler would miss: nothing when each fault can be reported and left for."""
    return reach.misses(HANDLER)


def handle(reach: Reach, miss: Miss, log: FaultLog) -> Handled:
    """Return what becomes of a miss in the isolated space."""
    fault = reach.fault(miss)
    missing = survives(reach)
    if not missing:
        after, lines = log.record(fault, reach.isolated.host.symbols)
        return Handled(Ending.LEFT, fault, (), after, lines)
    ending = Ending.STOPPED if any(seen.access in ENTRY for seen in missing) else Ending.FORCED
    after, lines = log.record(fault, reach.isolated.host.symbols)
    says = f"KVM isolation: double fault: the handler of that misses {_names(missing)}; {_SAYS[ending]}"
    return Handled(ending, fault, missing, after, (*lines, says) if lines else ())


def switch(reach: Reach, log: FaultLog) -> Handled | None:
    """Return what becomes of a switch out of the isolated space: None when nothing is missed."""
    missing = reach.misses(SWITCH)
    if not missing:
        return None
    fault = reach.fault(missing[0])
    after, lines = log.record(fault, reach.isolated.host.symbols)
    if lines:
        lines = (*lines, f"KVM isolation: fault while switching: {_SAYS[Ending.SWITCH_FORCED]}", *_tables(reach, fault))
    return Handled(Ending.SWITCH_FORCED, fault, missing, after, lines)


_SAYS: Final = {
    Ending.FORCED: "forced into the full address space",
    Ending.SWITCH_FORCED: "CR3 is written, in whatever state",
    Ending.STOPPED: "and so does the double fault's: triple fault",
}


def _names(missing: tuple[Miss, ...]) -> str:
    return ", ".join(dict.fromkeys(miss.access.object for miss in missing))


def _tables(reach: Reach, fault: Fault) -> tuple[str, ...]:
    """Return where the address leads in the isolated table and in the host's."""
    space = reach.isolated.space
    walks = ((space.name, space.table.walk(fault.address)), (space.host.name, space.host.walk(fault.address)))
    return tuple(f" {name}: {walk.level.name} entry of {fault.address:016x} is {walk.entry:#x}" for name, walk in walks)
