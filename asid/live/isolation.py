"""What isolated address spaces mean to one hyperthread: is an exit handled there, and if not, what did it miss first?

Rule 1. It knows what is mapped of every VM, and has the space of the VM that it runs: that which the fork server built
        for all, with what has changed since; else its own, built when it is first asked. Under a policy whose every
        exit is full there is none to ask.
Rule 2. Kinds of exits are decided once a mapping: by reason, parts, and whether they are full whatever is mapped.
Rule 3. A miss is reported when its kind is decided, which is when the first exit of that kind is there: once a place
        and life of the hyperthread. Handlers of NMI and #MC ask nothing here.
Rule 4. A change is made between two actions, when the fast exits before it are noted and no handler is on top.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asid.config import Loaded, load
from asid.core.exits import Isa, canonical
from asid.errors import AsidError, MappingRefused
from asid.guest.base import Exit
from asid.mm import faulting
from asid.mm.entry import Level
from asid.mm.fault import FaultLog
from asid.mm.footprint import footprint
from asid.mm.isolated import Entry, Isolated
from asid.mm.parts import Part
from asid.mm.reach import Miss, Reach
from asid.space_build import host_of, isolated_of, mapping_at_start

if TYPE_CHECKING:
    from asid.live.hyperthread import Hyperthread

Kind = tuple[Isa, str, frozenset[Part], bool]  # of exits that are decided alike: full, whatever is mapped

BLOCKS: Final = frozenset({Part.BLOCKS})
WHATEVER_IS_MAPPED: Final = ""  # missed by an exit that is full and would be with any mapping, or by its policy
_UNDECIDED: Final = "?"
BUILD_NS: Final = 500_000_000  # that a start may take longer for what is built once for all
_built: dict[int, Isolated] = {}  # by VM; in a child it is a copy of the fork server's


class ShutDown(Exception):
    """Nothing more can be run here: a #MC while the last one is in progress, or a triple fault."""


def build(config: Path) -> None:
    """Build the spaces that exits will ask for, for every child that is forked from this process later.

    config: of the machine. What cannot be built is left to the children, who have somebody to tell.
    """
    until_ns = time.monotonic_ns() + BUILD_NS
    try:
        loaded = load(config)
        busy = [vm for vm, spec in enumerate(loaded.config.vm, start=1) if spec.guest.source != "idle"]
        if not busy:
            return
        host, entries = host_of(loaded), mapping_at_start(loaded)
        for vm in busy:
            if time.monotonic_ns() >= until_ns:
                return
            _built[vm] = isolated_of(host, vm, entries[vm])
    except AsidError:
        return


class Isolation:
    """The isolated space of whoever runs on hyperthread `ht`, and what is mapped of the other VMs."""

    def __init__(self, ht: Hyperthread) -> None:
        birth = ht.birth
        self.ht = ht
        self.vm = 0
        self.changes: deque[dict[str, Any]] = deque()  # told, and not made yet
        self._cpu = birth.core * birth.config.machine.smt + birth.ht
        self._mapped = [{entry.object: entry for entry in entries} for entries in birth.mapping]
        self._log = FaultLog(stack=birth.config.space.page_fault_stack)
        self._reach: Reach | None = None
        self._missed: dict[Kind, str | None] = {}
        self._due: dict[Kind, Callable[[], None]] = {}  # reports of kinds that are decided and were not there yet

    # --- whose --------------------------------------------------------------------------------------------

    def attach(self, vm: int) -> None:
        """Begin with another VM; 0 for none."""
        self.vm = vm
        self._reach = None
        self.forget()

    def forget(self) -> None:
        """Decide anew from here on: the policy, the VM or what is mapped is another."""
        self._missed.clear()
        self._due.clear()

    def _reach_of_vm(self) -> Reach:
        if self._reach is None:
            isolated = self._prepared() or self._own()
            self._reach = Reach(isolated, self.ht.vcpu.number, self._cpu)
        return self._reach

    def _prepared(self) -> Isolated | None:
        """Return the space that the fork server built, with what is mapped now; None when there is none."""
        isolated, mapped = _built.get(self.vm), self._mapped[self.vm - 1]
        if isolated is None:
            return None
        built = {entry.object: entry for entry in isolated.entries}
        gone = [name for name, entry in built.items() if mapped.get(name) != entry]
        added = tuple(entry for name, entry in mapped.items() if built.get(name) != entry)
        try:
            change(isolated, gone, added)
        except MappingRefused:  # in this order; in another it was not
            del _built[self.vm]
            return None
        return isolated

    def _own(self) -> Isolated:
        birth = self.ht.birth
        host = host_of(Loaded(birth.config, None, "", Path(birth.base_dir), {}))
        return isolated_of(host, self.vm, tuple(self._mapped[self.vm - 1].values()))

    # --- exits --------------------------------------------------------------------------------------------

    def missed(self, event: Exit, *, polled: bool = False) -> str | None:
        """Return None when an exit is fast; else the object that its handler misses first, if it is for that.

        polled: it is a halt, and nobody is scheduled out for it. Raise ShutDown where not even a fault can be handled.
        """
        parts, full = event.parts, event.full
        if polled:
            parts, full = parts - BLOCKS, False
        key = event.isa, event.reason, parts, full
        found = self._found(key)
        if self._due and (report := self._due.pop(key, None)) is not None:
            report()
        if found is None and event.wake_ns and not polled:
            return WHATEVER_IS_MAPPED  # whoever sleeps is scheduled out
        return found

    def misses(self, event: Exit) -> bool:
        """Say whether an exit that is yet to come will be full; if it faults, that is reported when it is there."""
        return self._found((event.isa, event.reason, event.parts, event.full)) is not None

    def _found(self, key: Kind) -> str | None:
        found = self._missed.get(key, _UNDECIDED)
        if found is _UNDECIDED:
            found = self._missed[key] = self._decide(key)
        return found

    def _decide(self, key: Kind) -> str | None:
        isa, reason, parts, full = key
        policy = self.ht.policy
        if policy.every_exit_full:
            return WHATEVER_IS_MAPPED
        if not self.vm:  # no space of a VM is loaded
            return WHATEVER_IS_MAPPED if policy.needs_full(True, reason) else None
        if full or policy.needs_full(False, reason):
            if not policy.needs_full(True, reason):
                return None
            self._due[key] = partial(self._switch, reason)
            return WHATEVER_IS_MAPPED
        reach = self._reach_of_vm()
        miss = reach.first_miss(footprint(isa, canonical(reason, isa).number, parts))
        if miss is None or not policy.needs_full(True, reason):
            return None
        self._due[key] = partial(self._fault, miss, reason)
        return miss.access.object

    def _fault(self, miss: Miss, reason: str) -> None:
        """The handler of an exit misses something."""
        self._report(faulting.handle(self._reach_of_vm(), miss, self._log), miss.access.object, reason)

    def _switch(self, reason: str) -> None:
        """An exit leaves, whatever is mapped; what the switch itself touches may be missing."""
        handled = faulting.switch(self._reach_of_vm(), self._log)
        if handled is not None:
            self._report(handled, handled.missing[0].access.object, reason)

    def _report(self, handled: faulting.Handled, object_: str, reason: str) -> None:
        """Note a fault, if its place is new; and that there is no room for more of them, once."""
        ht, before, self._log = self.ht, self._log, handled.log
        fault, ending = handled.fault, handled.ending
        if len(self._log.places) > len(before.places):
            show = self._reach_of_vm().isolated.host.symbols.show
            ht.chronicle.fault(
                {
                    "vm": self.vm,
                    "ip": fault.ip,
                    "address": fault.address,
                    "error": int(fault.error),
                    "at": show(fault.ip),
                    "on": show(fault.address),
                    "object": object_,
                    "reason": reason,
                    "ending": ending.value,
                    "trace": ";".join(map(show, fault.trace)) if self._log.stack else "",
                },
                ht.state.round,
            )
        elif self._log.unlogged == 1 > before.unlogged:
            ht.chronicle.faults_full(len(self._log.places), ht.state.round)
        if ending is faulting.Ending.STOPPED:
            ht.chronicle.flush(ht.state.round)
            raise ShutDown

    # --- what is mapped -----------------------------------------------------------------------------------

    def change(self) -> None:
        """Make the changes that were told, unless a handler is on top."""
        ht = self.ht
        while self.changes and not ht.state.frames:
            message = self.changes.popleft()
            added = tuple(Entry(name, Level(level), split, step) for name, level, split, step in message["map"])
            self._change(message["vm"], message["unmap"], added, message["generation"])
            ht.link.tell({"op": "done", "id": message["id"]})

    def _change(self, vm: int, gone: Iterable[str], added: tuple[Entry, ...], generation: int) -> None:
        ht, mapped = self.ht, self._mapped[vm - 1]
        gone = [name for name in gone if mapped.pop(name, None)]
        added = tuple(entry for entry in added if mapped.get(entry.object) != entry)
        mapped.update((entry.object, entry) for entry in added)
        if vm != self.vm:
            return
        ht.vcpu.count()  # what was decided by the mapping of before is noted under it
        ht.chronicle.flush(ht.state.round)
        self.forget()
        if self._reach is not None:
            try:
                change(self._reach.isolated, gone, added)
            except MappingRefused:
                _built.pop(vm, None)
                self._reach = None  # it is built anew from all that is mapped
        for name in gone:
            ht.chronicle.unmapped(vm, name, generation, ht.state.round)
        for entry in added:
            ht.chronicle.mapped(vm, entry, generation, ht.state.round)


def change(isolated: Isolated, gone: Iterable[str], added: tuple[Entry, ...]) -> None:
    """Unmap and map objects of a space, all of them or none. Raise MappingRefused."""
    with isolated.space.table.all_or_nothing():
        for name in gone:
            isolated.unmap(name)
        isolated.apply(added)
