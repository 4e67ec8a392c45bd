"""One VM's isolated space, filled object by object: what is mapped, at which level, and which step did it.

Rule 1. What is mapped is named by objects of `asid.mm.objects`. One name stands for every copy that this VM may need:
        of a CPU's for every possible CPU, of a vCPU's for every vCPU, of a task's for the tasks that are there.
Rule 2. A task's structures go through `asid.mm.tasks`: counted, shared by threads, and gone when it ends.
Rule 3. A buffer that KVM may allocate again (memslots, buses) is looked at by `check`, and mapped where it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from asid.errors import MappingRefused
from asid.mm.entry import Level
from asid.mm.host import Host, Placed
from asid.mm.objects import OBJECT
from asid.mm.ranges import Range
from asid.mm.space import Space
from asid.mm.tasks import Buffer, Tasks

TASK_OBJECTS: Final = ("task_struct", "task stack", "mm_struct", "mm pgd")
_SHARED: Final = ("mm_struct", "mm pgd")
REALLOCATED: Final = ("memslots", "buses")


class Entry(NamedTuple):
    """An object that is mapped. split: of a larger entry only the pages that are asked for. step: who mapped it."""

    object: str
    level: Level = Level.PTE
    split: bool = False
    step: str = ""


class Isolated:
    """The isolated space of VM `vm` (from 1) of a host. Empty at first."""

    def __init__(self, host: Host, vm: int) -> None:
        self.host: Final = host
        self.vm: Final = vm
        self.name: Final = host.vms[vm - 1].name
        self.space: Final = Space(self.name, host.table, percpu_offsets=host.percpu_offsets)
        self.tasks: Final = Tasks(self.space)
        self._entries: dict[str, Entry] = {}
        self._where: dict[str, Placed] = {}  # of what may be allocated again: where it was mapped
        self._births = [0] * len(host.vms[vm - 1].cpus)  # tasks that each vCPU has had before the one of now

    # --- looking ------------------------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is mapped, in the order in which it was."""
        return tuple(self._entries.values())

    def has(self, name: str) -> bool:
        """Say whether an object was mapped by its name."""
        return name in self._entries

    # --- objects ------------------------------------------------------------------------------------------

    def map(self, name: str, level: Level = Level.PTE, *, split: bool = False, step: str = "") -> None:
        """Map every copy of an object. Raise MappingRefused: EBUSY if it is, EINVAL for no object, as Space.map."""
        self.apply((Entry(name, level, split, step),))

    def _map(self, entry: Entry) -> None:
        """Map an object, but for one of a task: those are mapped together."""
        name, level, split, _ = entry
        if name not in OBJECT:
            raise self._refused("EINVAL", name, "it is no object", "a name of asid.mm.objects", "See asid space show.")
        if name in self._entries:
            raise self._refused("EBUSY", name, "it is mapped", "each object once", "Unmap it first.")
        self._set(entry)
        if name in TASK_OBJECTS:
            return
        if (variable := self.host.variable(name, self.vm)) is not None:
            size = self.host.at(name, self.vm).size
            self.space.map_percpu(variable, size, level, what=name, split=split)
        elif OBJECT[name].area == "modules":
            place = self.host.at(name, self.vm)
            self.space.map_module(name.removesuffix(" module"), place.start, place.size)
        else:
            for place in self.host.all_of(name, self.vm):
                if not self._is_range(place.start, name):
                    self.space.map(place.start, place.size, level, what=name, split=split)
                if name in REALLOCATED:
                    self._note(name, place)

    def unmap(self, name: str) -> Entry:
        """Take away every copy of an object, and return what it was mapped as. Raise MappingRefused, EINVAL."""
        if name not in self._entries:
            known = ", ".join(self._entries) or "none, for nothing is mapped"
            raise self._refused("EINVAL", name, "it is not mapped", known, "See asid space show.")
        with self.space.table.all_or_nothing():
            gone = self._entries[name]
            self._forget(gone)
            if name in TASK_OBJECTS:
                self._map_tasks()
            elif (variable := self.host.variable(name, self.vm)) is not None:
                self.space.unmap_percpu(variable)
            elif OBJECT[name].area == "modules":
                self.space.unmap_module(name.removesuffix(" module"))
            elif name in self._where:
                self.space.unmap(self._where[name].start)
                self._note(name, None)
            else:
                for place in self.host.all_of(name, self.vm):
                    if self._is_range(place.start, name):
                        self.space.unmap(place.start)
        return gone

    def apply(self, entries: Iterable[Entry]) -> None:
        """Map all of these, or none. Raise as map does."""
        with self.space.table.all_or_nothing():
            tasks = False
            for entry in entries:
                self._map(entry)
                tasks = tasks or entry.object in TASK_OBJECTS
            if tasks:
                self._map_tasks()

    def free(self) -> None:
        """Take everything away and give the table back; the host's is as it was."""
        self.space.free()
        self._entries.clear()
        self._where.clear()

    # --- what changes -------------------------------------------------------------------------------------

    def check(self) -> tuple[str, ...]:
        """Map again what was allocated anew since it was mapped; kvm_isolation_check_memslots and its twin for buses.

        Return the names of what had moved. Raise as Space.remap does.
        """
        moved = []
        for name, old in list(self._where.items()):
            new = self.host.at(name, self.vm)
            if new != old:
                with self.space.table.all_or_nothing():
                    self.space.remap(old.start, new.start, new.size)
                    self._note(name, new)
                moved.append(name)
        return tuple(moved)

    def enter(self, vcpu: int) -> None:
        """Map the task that runs a vCPU now, if tasks are mapped at all; kvm_add_task_mapping. Its predecessor has
        ended: what lay at an address of both is the new one's."""
        buffers = self._buffers(vcpu)
        while self.tasks.references(self._task(vcpu)):
            self.tasks.unmap(self._task(vcpu))
        self._births[vcpu] += 1
        if buffers:
            self.tasks.map(self._task(vcpu), buffers)

    def _map_tasks(self) -> None:
        """Map of every vCPU's task what is in the entries now, and no more."""
        vcpus = range(len(self._births))
        for vcpu in vcpus:
            if self.tasks.references(self._task(vcpu)):
                self.tasks.unmap(self._task(vcpu))
        for vcpu in vcpus:
            if buffers := self._buffers(vcpu):
                self.tasks.map(self._task(vcpu), buffers)

    def _buffers(self, vcpu: int) -> tuple[Buffer, ...]:
        wanted = [self._entries[name] for name in TASK_OBJECTS if name in self._entries]
        self.tasks.split = any(entry.split for entry in wanted)
        places = [self.host.at(entry.object, self.vm, vcpu) for entry in wanted]
        return tuple(Buffer(p.start, p.size, p.object.name, p.object.name in _SHARED) for p in places)

    def _task(self, vcpu: int) -> tuple[int, int]:
        return vcpu, self._births[vcpu]

    # --- what is undone with the rest -----------------------------------------------------------------------

    def _is_range(self, start: int, name: str) -> bool:
        return any(seen.start == start and seen.what == name for seen in self.space.at(start))

    def _set(self, entry: Entry) -> None:
        self._entries[entry.object] = entry
        self.space.table.on_undo(partial(self._entries.pop, entry.object, None))

    def _forget(self, entry: Entry) -> None:
        before = dict(self._entries)
        del self._entries[entry.object]
        self.space.table.on_undo(partial(self._restore, before))

    def _restore(self, entries: dict[str, Entry]) -> None:
        """Have these again, in their order."""
        self._entries.clear()
        self._entries.update(entries)

    def _note(self, name: str, place: Placed | None) -> None:
        old = self._where.get(name)
        for at, doing in ((old, self.space.table.on_undo), (place, _do)):
            if at is None:
                doing(partial(self._where.pop, name, None))
            else:
                doing(partial(self._where.__setitem__, name, at))

    def _refused(self, errno: str, name: str, what: str, allowed: str, hint: str) -> MappingRefused:
        return MappingRefused(
            errno,
            what,
            where=f"{self.name}, {name!r}",
            state=f"{len(self._entries)} objects are mapped",
            allowed=allowed,
            hint=hint,
        )


def object_of(mapped: Range) -> str:
    """Return the object that a range of a space was mapped for, whichever CPU's it is."""
    if mapped.what.startswith("module "):
        return f"{mapped.what.removeprefix('module ')} module"
    return mapped.what.partition(" of cpu ")[0]


def _do(action: Callable[[], object]) -> None:
    action()
