"""The two reports that the RFC's cover letter shows, made by a VM's space, a fault in it and the bundled symbols.

The kernel is one before 4.20, with the old direct map. What its first report missed is the struct page of a page of the
guest, what its second did is a page of the guest's page tables: both lie where they do there.
"""

from __future__ import annotations

import pytest

from asid.mm.fault import FaultLog, stamped
from asid.mm.faulting import Ending, handle
from asid.mm.footprint import FUNCTIONS, Access, footprint
from asid.mm.host import Host, VmShape
from asid.mm.isolated import Isolated
from asid.mm.population import MINIMAL, populate
from asid.mm.reach import Reach

# As posted, with the times of the lines in nanoseconds. Below them came the user's registers: we have none.
FIRST = (
    "[ 4840.727476] KVM isolation: page fault #0 (0) at fast_page_fault+0x13e/0x3e0 [kvm]"
    " on ffffea00005331f0 (0xffffea00005331f0)"
)
FIRST_NS = 4840_727476_000
SECOND = """\
[ 5025.630374] KVM isolation: page fault #0 (0) at fast_page_fault+0x100/0x3e0 [kvm] on ffff88003c718000 (0xffff88003c718000)
[ 5025.631918] Call Trace:
[ 5025.632782]  tdp_page_fault+0xec/0x260 [kvm]
[ 5025.633395]  kvm_mmu_page_fault+0x74/0x5f0 [kvm]
[ 5025.644467]  handle_ept_violation+0xc3/0x1a0 [kvm_intel]
[ 5025.645218]  vmx_handle_exit+0xb9/0x600 [kvm_intel]
[ 5025.645917]  vcpu_enter_guest+0xb88/0x1580 [kvm]
[ 5025.646577]  kvm_arch_vcpu_ioctl_run+0x403/0x610 [kvm]
[ 5025.647313]  kvm_vcpu_ioctl+0x3d5/0x650 [kvm]
[ 5025.648538]  do_vfs_ioctl+0xaa/0x602
[ 5025.650502]  SyS_ioctl+0x79/0x84
[ 5025.650966]  do_syscall_64+0x79/0x1ae
[ 5025.651487]  entry_SYSCALL_64_after_hwframe+0x151/0x0
""".splitlines()  # noqa: E501
SECOND_US = (
    630_374, 631_918, 632_782, 633_395, 644_467, 645_218, 645_917, 646_577, 647_313, 648_538, 650_502, 650_966, 651_487
)  # fmt: skip

ON = {"vmemmap": 0xFFFFEA00005331F0, "shadow page tables": 0xFFFF88003C718000}
EPT_VIOLATION = footprint("vmx", 48, ())


def touching(name: str) -> Access:
    return next(access for access in EPT_VIOLATION if access.object == name)


class SampleHost(Host):
    """A kernel before 4.20 whose fast_page_fault touches the addresses of the samples."""

    def __init__(self) -> None:
        super().__init__([VmShape("sample", (0,))], 1, before_4_20=True)

    def _find(self, row, vm, index, size):
        start, size = super()._find(row, vm, index, size)
        if row.name in ON:
            access = touching(row.name)
            start = ON[row.name] - (size * access.offset // FUNCTIONS[access.function].size & ~7)
        return start, size


def space_without(*missing: str) -> Reach:
    """The VM's vCPU in a space that has what an EPT violation and its own faults touch, but for these."""
    isolated = Isolated(SampleHost(), 1)
    populate(isolated, MINIMAL, "vmx")
    for name in dict.fromkeys(access.object for access in EPT_VIOLATION):
        if name not in missing and not isolated.has(name):
            isolated.map(name, split=True)
    return Reach(isolated, 0)


@pytest.mark.parametrize("name", ON)
def test_the_host_translates_what_the_space_does_not(name):
    reach = space_without(name)
    host, space = reach.isolated.host, reach.isolated.space
    assert reach.misses(EPT_VIOLATION) == ((touching(name), ON[name]),)
    assert host.table.lookup(ON[name]) and not space.table.lookup(ON[name])
    area = host.layout.find(ON[name])
    assert area is not None and area.name == host.at(name, 1).object.area, "in its home area, on that kernel"


def test_the_first_sample():
    """Its module was loaded with page_fault_stack = 0."""
    reach = space_without("vmemmap")
    done = handle(reach, reach.first_miss(EPT_VIOLATION), FaultLog(stack=False))
    assert done.ending is Ending.LEFT
    assert [stamped(line, FIRST_NS) for line in done.lines] == [FIRST]


def test_the_second_sample_with_its_call_trace():
    """Byte for byte but for the last size: the sample's entry_SYSCALL_64_after_hwframe has none, ours has 0x160."""
    reach = space_without("shadow page tables")
    done = handle(reach, reach.first_miss(EPT_VIOLATION), FaultLog())
    assert done.ending is Ending.LEFT
    lines = [stamped(line, 5025 * 10**9 + us * 1000) for line, us in zip(done.lines, SECOND_US, strict=True)]
    assert lines[:-1] == SECOND[:-1]
    assert lines[-1] == SECOND[-1].replace("+0x151/0x0", "+0x151/0x160")


def test_a_space_without_both_reports_one_after_the_other_and_each_once():
    """1. The tables are read first and missed. 2. They are mapped. 3. The struct page is missed. 4. And again."""
    reach = space_without("vmemmap", "shadow page tables")
    one = handle(reach, reach.first_miss(EPT_VIOLATION), FaultLog(stack=False))
    reach.isolated.map("shadow page tables", split=True)
    other = handle(reach, reach.first_miss(EPT_VIOLATION), one.log)
    assert one.lines == (SECOND[0].partition("] ")[2],)
    assert other.lines == (FIRST.partition("] ")[2].replace("#0", "#1"),)
    again = handle(reach, reach.first_miss(EPT_VIOLATION), other.log)
    assert again.lines == () and again.log.counts == (1, 2)
    reach.isolated.map("vmemmap", split=True)
    assert reach.is_fast("vmx", 48, frozenset())
