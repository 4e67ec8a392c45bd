"""The isolated space of whoever runs on a simulated hyperthread; nothing is mapped or unmapped while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asid.isolated_exits import IsolatedExits
from asid.mm.reach import Reach

if TYPE_CHECKING:
    from asid.sim.hyperthread import Hyperthread


class Isolation(IsolatedExits):
    """What the exits on hyperthread `ht` miss of the space of their VM."""

    def __init__(self, ht: Hyperthread) -> None:
        super().__init__(ht, stack=ht.core.config.space.page_fault_stack)
        self.ht = ht
        self._reach: Reach | None = None

    def attach(self, vm: int) -> None:
        """Begin with another VM; 0 for none."""
        self.vm = vm
        self._reach = None
        self.forget()

    def reach(self) -> Reach:
        if self._reach is None:
            core, ht = self.ht.core, self.ht.ht
            cpu = core.number * core.siblings + ht
            self._reach = Reach(core.isolated[self.vm], core.vcpus[ht][1], cpu)
        return self._reach
