"""What each step costs on real hardware: a table with low, typical and high figures, each with its source.

Rule 1. A figure without a published one says "assumed" in its source, and why it is of that size.
Rule 2. Cycles are turned into time at CLOCK_GHZ, as a server of the years of the postings runs.
Rule 3. A service time that a guest's own table or recording gives is used as it is: nothing here replaces it.

The spread from low to high is not a confidence interval: the sources measure different machines, and most measure none.
`asid run --engine sim --costs LEVEL` uses one column, and `[costs]` of a configuration replaces rows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from asid.config_costs import LEVELS, NAMES, Level, parse_cost

__all__ = ("BY_NAME", "CLOCK_GHZ", "LEVELS", "TABLE", "Cost", "Costs", "Level", "costs_of", "replaced")

CLOCK_GHZ: Final = 3.0


class Cost(NamedTuple):
    """One row. low, typical, high: nanoseconds."""

    name: str
    low: int
    typical: int
    high: int
    what: str
    source: str


TABLE: Final = (
    Cost(
        "vm_exit", 170, 250, 340, "from the guest's last instruction to the first of its handler",
        "half of exit and entry: 1,000 to 2,000 cycles together (VMCALL 1,600 to 1,700 on a Core i7-3960X; about 2,000 "
        "on a Xeon X5570, SplitX 2011; below 0.5 us by the 100 CPUID of kvm-unit-tests)",
    ),
    Cost("vm_entry", 170, 250, 340, "from the end of a handler to the guest's next instruction", "as vm_exit"),
    Cost(
        "cr3_write", 33, 100, 3_333, "a switch between the isolated and the full address space",
        "with PCID below 300 cycles (Lutomirski), about a hundred (linux pti.rst); high: without PCID, when the TLB "
        "is filled anew, potentially tens of thousands of cycles, mostly hidden (pti.rst): 10,000 taken",
    ),
    Cost(
        "l1d_flush", 170, 400, 3_333, "clearing the buffers before an entry",
        "low: 512 cycles, the theory for 32 KiB; typical: assumed, between 768 cycles and twice that; high: 10,000 "
        "cycles, secondary notes; nobody has published a measured figure",
    ),
    Cost(
        "ipi_send", 51, 100, 350, "writing the ICR",
        "an IPI to oneself takes 51 ns with IPI virtualization and 100 without (ipi_benchmark); high: 1,000 cycles, "
        "assumed for a write that leaves the guest of a nested host",
    ),
    Cost(
        "ipi_delivery", 1_000, 1_243, 1_791, "from the write of the ICR until the target takes the interrupt",
        "1,243 ns in the mean of 100,000 on another CPU, 1,791 with the wait for the end of the call (ipi_benchmark); "
        "low: assumed, siblings of one core being nearer than other CPUs",
    ),
    Cost(
        "message", 20, 60, 200, "a word that one sibling writes and another reads: reports to the gate, its orders",
        "assumed: a cache line shared within a core, between its levels, and (high) with a contended lock",
    ),
    Cost(
        "schedule", 500, 1_500, 3_000, "scheduling out a vCPU that goes to sleep",
        "no published figure; assumed: some system calls long, of 339 to 900 ns without and with PTI",
    ),
    Cost(
        "nmi", 500, 1_000, 2_000, "the handler of an NMI",
        "no published figure; assumed of the size of an exception that is handled in the kernel (2.2 us with tracing, "
        "SystemTap kvm_service_time)",
    ),
    Cost(
        "mce", 1_000, 2_000, 5_000, "the handler of a machine check",
        "no published figure; assumed above that of an NMI",
    ),
)  # fmt: skip
BY_NAME: Final = {row.name: row for row in TABLE}


class Costs(NamedTuple):
    """Nanoseconds by name; see the table."""

    vm_exit: int
    vm_entry: int
    cr3_write: int
    l1d_flush: int
    ipi_send: int
    ipi_delivery: int
    message: int
    schedule: int
    nmi: int
    mce: int


assert Costs._fields == tuple(BY_NAME) == NAMES, "the table, the tuple and the configuration name the same costs"
assert all(0 < row.low <= row.typical <= row.high for row in TABLE), "a row is out of order"


def costs_of(level: Level) -> Costs:
    """Return one column."""
    return Costs(*(getattr(row, level) for row in TABLE))


def replaced(costs: Costs, rows: Mapping[str, str]) -> Costs:
    """Return the costs with the rows that a configuration replaces. rows: name -> value as written, checked."""
    found = {name: parse_cost(text, name) for name, text in rows.items()}
    return costs._replace(
        **{name: cost if isinstance(cost, int) else getattr(BY_NAME[name], cost) for name, cost in found.items()}
    )
