"""What isolated address spaces mean to one hyperthread: is an exit handled there, and if not, what did it miss first?

Rule 1. It knows what is mapped of every VM, and has the space of the VM that it runs: that which the fork server built
        for all, with what has changed since; else its own, built while it is parked, for that takes longer than a kick
        may wait.
Rule 2. What an exit misses is decided as for every engine, see `asid.isolated_exits`.
Rule 3. A change is made when nothing is to be done, behind the fast exits of before, which are noted first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asid.config import Loaded, load
from asid.errors import AsidError, MappingRefused
from asid.isolated_exits import IsolatedExits
from asid.mm.entry import Level
from asid.mm.isolated import Entry, Isolated
from asid.mm.reach import Reach
from asid.space_build import host_of, isolated_of, mapping_at_start

if TYPE_CHECKING:
    from asid.guest.kvm import Key
    from asid.live.hyperthread import Hyperthread
    from asid.live.real_guest import FastKind

BUILD_NS: Final = 500_000_000  # that a start may take longer for what is built once for all
_built: dict[int, Isolated] = {}  # by VM; in a child it is a copy of the fork server's


def build(config: Path) -> None:
    """Build the spaces of a machine's VMs, for every child that is forked from this process later.

    config: of the machine. What takes too long, or cannot be built, is left to the children, who have somebody to tell.
    """
    until_ns = time.monotonic_ns() + BUILD_NS
    try:
        loaded = load(config)
        mapping = mapping_at_start(loaded)
        host = host_of(loaded) if mapping else None
        for vm, entries in mapping.items():
            if time.monotonic_ns() >= until_ns:
                return
            assert host is not None
            _built[vm] = isolated_of(host, vm, entries)
    except AsidError:
        return


class Isolation(IsolatedExits):
    """The isolated space of whoever runs on hyperthread `ht`, and what is mapped of the other VMs."""

    def __init__(self, ht: Hyperthread) -> None:
        birth = ht.birth
        super().__init__(ht, stack=birth.config.space.page_fault_stack)
        self.ht = ht
        self.changes: deque[dict[str, Any]] = deque()  # told, and not made yet
        self.fast_kinds: dict[Key, FastKind] = {}  # of a real guest's exits, until decided anew
        self._cpu = birth.core * birth.config.machine.smt + birth.ht
        self._mapped = [{entry.object: entry for entry in entries} for entries in birth.mapping]
        self._reach: Reach | None = None

    # --- whose --------------------------------------------------------------------------------------------

    def attach(self, vm: int) -> None:
        """Begin with another VM; 0 for none."""
        self.vm = vm
        self._reach = None
        self.begin()

    def begin(self) -> None:
        """Begin with another VM or policy, while no lease is held: a space that has to be built is built now."""
        self.forget()
        if self.vm and self.vm not in _built and not self.ht.policy.every_exit_full:
            self.reach()

    def forget(self) -> None:
        super().forget()
        self.fast_kinds.clear()

    def reach(self) -> Reach:
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

    # --- what is mapped -----------------------------------------------------------------------------------

    def change(self) -> None:
        """Make the changes that were told. Nothing may be to be done: no handler is on top."""
        ht = self.ht
        assert not ht.state.frames, "a change in the middle of a handler"
        while self.changes:
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
