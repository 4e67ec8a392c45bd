"""Visits: the stays that load something into the buffers of a core, and what for.

A stay in HOST loads the host kernel's data, and the userspace VMM's when its exit may go on to the VMM; an NMI, a #MC
or an interrupt the kernel's alone. Stays in ISOLATED and GUEST of one VM that follow each other without a gap are one
visit, and load that VM's data. PARKED and OFFLINE load nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from asid.audit.history import CoreHistory
from asid.audit.intervals import Interval
from asid.audit.regime import INVOLUNTARY

TO_KERNEL = ("host kernel",)
TO_BOTH = ("host kernel", "userspace VMM")

# Exits that may go on to the userspace VMM, by the kernel's names: the audit's own list.
TO_VMM = frozenset(
    {
        "IO_INSTRUCTION", "EPT_MISCONFIG", "PML_FULL", "NOTIFY", "TDCALL",
        "DB excp", "BP excp", "io", "pml_full", "vmgexit_mmio_read", "vmgexit_mmio_write",
    }
)  # fmt: skip


class Visit(NamedTuple):
    """One stay that loads, [start, end) in ns. vm: 0 for HOST. why: the exit's reason, nmi or mce; "" when nothing says
    so, and for a VM. seq: of the ht.mode that began it; cause: of the record that has the reason, else 0."""

    start: int
    end: int
    ht: int
    vm: int
    via: str
    why: str
    seq: int
    cause: int
    domains: tuple[str, ...]


def visits_of(core: CoreHistory, stays: Iterable[Interval]) -> tuple[list[Visit], dict[int, int]]:
    """Return what loads on a core, and by the seq of its interval the number of the visit that it belongs to.

    stays: of each hyperthread in order. One of which it is not certain that it was is no visit.
    """
    visits: list[Visit] = []
    number_of: dict[int, int] = {}
    last: dict[int, int] = {}  # ht -> number of its last visit
    ends: dict[int, int] = {}  # by number of a visit that went on behind its first stay
    domains: dict[int, tuple[str, ...]] = {}
    for stay in stays:
        start, end, mode, vm, _, ht, seq, suspect = stay
        if suspect:
            continue
        at = last.get(ht, -1)
        if mode == "HOST":
            at = last[ht] = len(visits)
            visits.append(_host_visit(core, stay))
        elif at >= 0 and visits[at].vm == vm and (ends[at] if at in ends else visits[at].end) == start:
            ends[at] = end
        else:
            at = last[ht] = len(visits)
            own = domains.get(vm)
            if own is None:
                own = domains[vm] = (f"vm{vm}",)
            visits.append(Visit(start, end, ht, vm, "", "", seq, 0, own))
        number_of[seq] = at
    for at, end in ends.items():
        visits[at] = visits[at]._replace(end=end)
    return visits, number_of


def _host_visit(core: CoreHistory, stay: Interval) -> Visit:
    why, cause = (stay.via, 0) if stay.via in INVOLUNTARY else core.reasons.get(stay.seq, ("", 0))
    to_vmm = why in TO_VMM or why.partition(" ")[0] in TO_VMM  # a VMX name may have flags behind it
    return Visit(stay.start, stay.end, stay.ht, 0, stay.via, why, stay.seq, cause, TO_BOTH if to_vmm else TO_KERNEL)
