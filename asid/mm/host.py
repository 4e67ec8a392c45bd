"""The host of a model machine: its page table, and where every object of its kernel and of its VMs lies.

Rule 1. There is no chance in it: the same arguments give the same addresses, and so does the same order of changes.
Rule 2. An object lies in its home area (`asid.mm.objects`), and all of it is mapped while it is placed.
Rule 3. What is given back is given out again first, as the kernel does: a new stack may lie where a dead task's was.

Where things lie
    Memory is at the same offset in the direct map, from 0: the image at 16 MiB, slabs at 128 MiB, what vmalloc maps at
    256 MiB, whole pages at 512 MiB, the page cache and everybody's else at 2 GiB, 1 GiB of each VM from 4 GiB on; at
    the top the first chunk of per-CPU variables, 256 KiB a CPU. The direct map is of entries of 2 MiB, as a kernel has
    it until something asks for less; modules, vmalloc and the cpu_entry_area are of pages.
    A process has its memory where each has, so VMs' lie apart here only because one table stands for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from asid.errors import ConfigError
from asid.mm.entry import KERNEL, KERNEL_READ_ONLY, KERNEL_TEXT, PAGE, USER, ceil_to, floor_to
from asid.mm.hostrooms import LinearMemory, Room, power_of_two
from asid.mm.hostsymbols import MODULE_NAMES, PerCpu, module_start, with_modules
from asid.mm.layout import GIB, IMAGE_START, STRUCT_PAGE, Area, Kaslr, Layout, Sensitivity, image_of, layout
from asid.mm.objects import OBJECT, OBJECTS, Object
from asid.mm.pagetable import PageTable
from asid.mm.symbols import SymbolTable
from asid.mm.symbols_bundled import bundled

MIB: Final = 1 << 20
HUGE: Final = 2 * MIB
CPUS_MAX: Final = 512
VMS_MAX: Final = 512
MEMORY_MIN: Final = 16 * GIB

_IMAGE: Final = 16 * MIB
_LINEAR: Final = {"slabs": (128 * MIB, 256 * MIB), "pages": (512 * MIB, 2 * GIB)}
_BEHIND_VMALLOC: Final = (256 * MIB, 512 * MIB)
_OTHERS: Final = 2 * GIB
_VMS: Final = 4 * GIB
_USER_START: Final = 0x7F00_0000_0000
# Of the threads of one process there is one.
_OF_PROCESS: Final = ("mm_struct", "mm pgd", "signals")


class VmShape(NamedTuple):
    """A VM: its name, and the CPU that each of its vCPUs runs on."""

    name: str
    cpus: tuple[int, ...]


class Placed(NamedTuple):
    """One object and where it lies. vm: from 1, 0 for the host's; number: of the CPU or vCPU."""

    object: Object
    vm: int
    number: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size


class Host:
    """One machine. vms: see VmShape. cpus: all possible ones. memory: bytes, None for enough.

    table: the host's page table. symbols: with the kvm modules, ours where the kernel's table has none.
    Raise ConfigError for what does not fit, InputError for symbols that do not say where the image is.
    """

    def __init__(
        self,
        vms: Sequence[VmShape],
        cpus: int,
        *,
        levels: int = 4,
        before_4_20: bool = False,
        symbols: SymbolTable | None = None,
        memory: int | None = None,
    ) -> None:
        self.vms: Final = tuple(vms)
        self.cpus: Final = cpus
        self.memory: Final = memory or _enough(len(self.vms), cpus)
        if not (1 <= cpus <= CPUS_MAX and len(self.vms) <= VMS_MAX and self.memory >= _least(len(self.vms), cpus)):
            raise ConfigError(
                f"{len(self.vms)} VMs and {cpus} CPUs in {self.memory >> 20} MiB",
                where="host",
                allowed=f"up to {VMS_MAX} VMs, 1 to {CPUS_MAX} CPUs, {_least(len(self.vms), cpus) >> 20} MiB for these",
                hint="Make the machine smaller, or give it more memory.",
            )
        for vm in self.vms:
            if not vm.cpus or not all(0 <= cpu < cpus for cpu in vm.cpus):
                raise ConfigError(
                    f"{vm.name} on CPUs {vm.cpus}", where="host", allowed=f"one CPU or more, of 0 to {cpus - 1}"
                )
        given = symbols or bundled()
        image = image_of(given)
        kaslr = None if image.end <= IMAGE_START + 512 * MIB and image.text == IMAGE_START + 16 * MIB else Kaslr()
        self.symbols: Final = with_modules(given)
        self.layout: Final[Layout] = layout(
            levels, before_4_20=before_4_20, kaslr=kaslr, image=image, memory=self.memory
        )
        self.image: Final = image
        self.table: Final = PageTable("host", levels=levels)
        self._direct: Final = self._area("direct map").start
        slabs, pages = (Room(self._direct + a, self._direct + b, what) for what, (a, b) in _LINEAR.items())
        self._linear = LinearMemory(slabs, pages)
        self._behind = Room(*_BEHIND_VMALLOC, "memory behind vmalloc")
        vmalloc = self._area("vmalloc")
        self._vmalloc = Room(vmalloc.start + PAGE, vmalloc.end, "vmalloc")
        self._percpu = PerCpu(self.symbols, len(self.vms) * OBJECT["srcu data"].size)
        top = floor_to(self.memory, HUGE) - ceil_to(cpus * self._percpu.unit, HUGE)
        self.percpu_offsets: Final = tuple(self._direct + top + cpu * self._percpu.unit for cpu in range(cpus))
        self._placed: dict[tuple[str, int, int], Placed] = {}
        self._left: list[tuple[int, int]] = []  # (physical, bytes) that were unmapped in the change that is under way
        self._map_areas()
        self._place_all()

    # --- looking ------------------------------------------------------------------------------------------

    def at(self, name: str, vm: int = 0, vcpu: int = 0, cpu: int = 0) -> Placed:
        """Return the object that a vCPU of a VM means on a CPU. Raise ConfigError if there is none."""
        found = self._placed.get(self._key(OBJECT[name], vm, vcpu, cpu)) if name in OBJECT else None
        if found is None:
            raise ConfigError(
                f"there is no {name!r} of VM {vm}, vCPU {vcpu}, CPU {cpu}",
                where="host",
                state=f"{len(self.vms)} VMs, {self.cpus} CPUs",
                allowed="an object of asid.mm.objects, of a VM, a vCPU and a CPU that there are",
                hint="VMs count from 1, vCPUs and CPUs from 0.",
            )
        return found

    def all_of(self, name: str, vm: int) -> tuple[Placed, ...]:
        """Return every object of that name that is the host's, a CPU's or this VM's; each place once."""
        row = OBJECT[name]
        cpus = range(self.cpus) if row.per == "cpu" else (0,)
        if name == "other task":
            found = [self._placed["other task", 0, cpu] for cpu in range(self.cpus)]
        elif row.per in ("vcpu", "task"):
            found = [self.at(name, vm, vcpu) for vcpu in range(len(self.vms[vm - 1].cpus))]
        else:
            found = [self.at(name, vm, 0, cpu) for cpu in cpus]
        return tuple(dict.fromkeys(found))

    def placed(self) -> tuple[Placed, ...]:
        """Return every object, in the order in which they were placed."""
        return tuple(self._placed.values())

    def variable(self, name: str, vm: int = 0) -> int | None:
        """Return the address in the image of a per-CPU variable; None for what is none."""
        row = OBJECT[name]
        if row.per != "cpu" or row.area != "direct map":
            return None
        return self.at(name, vm).start - self.percpu_offsets[0]

    def user_memory(self, vm: int) -> tuple[int, int]:
        """Return where the direct map has the memory that a VMM gives its guest: [start, end)."""
        start = self._direct + _VMS + (vm - 1) * GIB
        return start, start + GIB

    # --- what changes while a machine runs ------------------------------------------------------------------

    def reallocate(self, name: str, vm: int, size: int, vcpu: int = 0) -> tuple[Placed, Placed]:
        """Allocate an object anew and give its old memory back, as KVM does with memslots and buses that have grown.

        Return the old place and the new one.
        """
        old = self.at(name, vm, vcpu)
        new = self._allocate(old.object, old.vm, old.number, size)
        self._release(old)
        self._settle()
        return old, new

    def new_task(self, vm: int, vcpu: int) -> None:
        """End a vCPU's task and begin another: its structure and stack lie where those of the old one did, and the
        stack is of other memory."""
        old = [self.at(name, vm, vcpu) for name in ("task_struct", "task stack")]
        for place in old:
            self._release(place)
        for place in old:
            self._allocate(place.object, vm, vcpu, place.size)
        self._settle()

    # --- how it is built ------------------------------------------------------------------------------------

    def _area(self, name: str) -> Area:
        return self.layout.area(name)

    def _map_areas(self) -> None:
        direct, vmemmap = self._area("direct map"), self._area("vmemmap")
        self.table.map(direct.start, direct.start + floor_to(self.memory, HUGE), 0, KERNEL, HUGE)
        struct_pages = ceil_to(self.memory // PAGE * STRUCT_PAGE, HUGE)
        self.table.map(vmemmap.start, vmemmap.start + struct_pages, self.memory, KERNEL, HUGE)
        text, etext, end = self.image
        text, etext, end = floor_to(text, HUGE), ceil_to(etext, HUGE), ceil_to(end, HUGE)
        self.table.map(text, etext, _IMAGE, KERNEL_TEXT, HUGE)
        if etext < end:
            self.table.map(etext, end, _IMAGE + etext - text, KERNEL, HUGE)
        for name in MODULE_NAMES:
            start = floor_to(module_start(self.symbols, name), PAGE)
            size = OBJECT[f"{name} module"].size
            self.table.map(start, start + size, self._behind.take(size), KERNEL_TEXT)
        entry_area = self._area("cpu_entry_area").start
        size = PAGE + self.cpus * OBJECT["cpu_entry_area"].size
        self.table.map(entry_area, entry_area + size, self._linear.pages.take(size) - direct.start, KERNEL)
        espfix = self._area("espfix64").start
        self.table.map(espfix, espfix + PAGE, self._linear.pages.take(PAGE) - direct.start, KERNEL_READ_ONLY)
        for vm in range(1, len(self.vms) + 1):
            start = self._user_start(vm)
            memory = self.user_memory(vm)[0] - direct.start
            self.table.map(start, start + GIB, memory, KERNEL | USER, HUGE)

    def _user_start(self, vm: int) -> int:
        return _USER_START + (vm - 1) * 2 * GIB

    def _place_all(self) -> None:
        runs = {(cpu, vm, vcpu) for vm, shape in enumerate(self.vms, 1) for vcpu, cpu in enumerate(shape.cpus)}
        for row in OBJECTS:
            if row.per == "host":
                self._allocate(row, 0, 0, row.size)
            elif row.per == "cpu" and row.sensitivity is not Sensitivity.THIS_VM:
                for cpu in range(self.cpus):
                    self._allocate(row, 0, cpu, row.size)
        # In the order of CPUs, a vCPU's task is beside another one of its CPU, as where tasks are born everywhere.
        for cpu in range(self.cpus):
            self._allocate(OBJECT["other task"], 0, cpu, OBJECT["other task"].size)
            for _, vm, vcpu in sorted(run for run in runs if run[0] == cpu):
                self._place_vcpu(vm, vcpu)
        for vm in range(1, len(self.vms) + 1):
            for row in OBJECTS:
                if row.per == "vm":
                    self._allocate(row, vm, 0, row.size)
                elif row.per == "cpu" and row.sensitivity is Sensitivity.THIS_VM:
                    for cpu in range(self.cpus):
                        self._allocate(row, vm, cpu, row.size)

    def _place_vcpu(self, vm: int, vcpu: int) -> None:
        for row in OBJECTS:
            if row.per not in ("vcpu", "task") or row.name in ("other vcpu", "other task"):
                continue
            if self._key(row, vm, vcpu, 0) not in self._placed:
                self._allocate(row, *self._key(row, vm, vcpu, 0)[1:], row.size)

    def _key(self, row: Object, vm: int, vcpu: int, cpu: int) -> tuple[str, int, int]:
        """Return the name by which an object is kept."""
        if row.name == "other vcpu":
            others = len(self.vms[vm - 1].cpus) if 0 < vm <= len(self.vms) else 1
            return "vcpu", vm, (vcpu + 1) % others
        if row.name == "other task":
            return row.name, 0, cpu
        if row.per == "cpu":
            return row.name, vm if row.sensitivity is Sensitivity.THIS_VM else 0, cpu
        if row.per == "host":
            return row.name, 0, 0
        return row.name, vm, 0 if row.per == "vm" or row.name in _OF_PROCESS else vcpu

    def _allocate(self, row: Object, vm: int, index: int, size: int) -> Placed:
        start, size = self._find(row, vm, index, size)
        placed = Placed(row, vm, index, start, size)
        self._placed[row.name, vm, index] = placed
        return placed

    def _find(self, row: Object, vm: int, index: int, size: int) -> tuple[int, int]:
        """Return (start, size) of a new object. Of what there is one, the size is that of this host."""
        if row.name == "kernel text":
            return self.image.text, self.image.etext - self.image.text
        if row.name == "kernel image":
            return IMAGE_START, self._area("modules").start - IMAGE_START
        if row.name == "direct map":
            return self._direct + _OTHERS, size
        if row.name == "VMM's memory":
            return self._user_start(vm), size
        if row.name == "vmemmap":
            return self._area("vmemmap").start + _VMS // PAGE * STRUCT_PAGE, size
        if row.area == "kernel image":
            return self._static(row), size
        if row.area == "modules":
            return floor_to(module_start(self.symbols, row.name.removesuffix(" module")), PAGE), size
        if row.area == "cpu_entry_area":
            return self._area(row.area).start + PAGE + index * size, size
        if row.area == "espfix64":
            return self._area(row.area).start, size
        if row.per == "cpu" and row.area == "direct map":
            if row.name == "percpu first chunk":
                return self.percpu_offsets[index], self._percpu.unit
            return self.percpu_offsets[index] + self._percpu.variable(row, vm), size
        if row.area == "vmalloc":
            return self._new_vmalloc(size), size
        return self._linear.take(row.name, size), size

    def _static(self, row: Object) -> int:
        symbol = self.symbols.named(row.symbol, "")
        return symbol.address if symbol else self.image.etext + PAGE

    def _new_vmalloc(self, size: int) -> int:
        whole = ceil_to(size, PAGE)
        start = self._vmalloc.take(whole + PAGE, whole)  # and a page that is never mapped, against overruns
        self.table.map(start, start + whole, self._behind.take(whole, whole), KERNEL)
        return start

    def _settle(self) -> None:
        """Give back the memory of a change that is over: within it nothing is given out twice."""
        for physical, size in self._left:
            self._behind.give(physical, size)
        self._left.clear()

    def _release(self, place: Placed) -> None:
        whole = ceil_to(place.size, PAGE)
        if place.object.area == "vmalloc":
            physical = self.table.walk(place.start).physical(place.start)
            self.table.unmap(place.start, place.start + whole)
            self._vmalloc.give(place.start, whole)
            self._left.append((physical, whole))
        else:
            self._linear.give(place.start, place.object.name, place.size)


def _least(vms: int, cpus: int) -> int:
    return _VMS + vms * GIB + ceil_to(cpus * MIB, HUGE) + 64 * MIB


def _enough(vms: int, cpus: int) -> int:
    return max(MEMORY_MIN, power_of_two(_least(vms, cpus)))
