"""Whether an exit is fast, for the simulator: by what the isolated space of its VM maps, and the footprint of the exit.

A kind of exit is decided once for each vCPU: nothing is mapped or unmapped while a simulation goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from asid.core.exits import canonical
from asid.guest.base import Exit
from asid.mm.footprint import footprint
from asid.mm.parts import Part
from asid.mm.reach import Reach

if TYPE_CHECKING:
    from asid.config import Config
    from asid.core.exits import Isa
    from asid.mm.isolated import Isolated

_BLOCKS: Final = frozenset({Part.BLOCKS})


class Spaces:
    """The isolated spaces of a configuration's VMs, by number."""

    def __init__(self, config: Config, isolated: Mapping[int, Isolated]) -> None:
        self._config = config
        self._isolated = dict(isolated)
        self._reaches: dict[tuple[int, int, int], Reach] = {}
        self._missed: dict[tuple[int, int, int, Isa, str, frozenset[Part]], str | None] = {}

    def missed(self, core: int, ht: int, vm: int, event: Exit, *, polled: bool) -> str | None:
        """Return the object that the handler of an exit misses first, "" if it is full whatever is mapped, None if it
        is fast. polled: it is a halt, and nobody is scheduled out for it."""
        if event.full and not polled:
            return ""
        parts = event.parts - _BLOCKS if polled else event.parts
        key = core, ht, vm, event.isa, event.reason, parts
        if key not in self._missed:
            self._missed[key] = self._decide(core, ht, vm, event.isa, event.reason, parts)
        found = self._missed[key]
        return "" if found is None and event.wake_ns and not polled else found  # whoever sleeps is scheduled out

    def _decide(self, core: int, ht: int, vm: int, isa: Isa, reason: str, parts: frozenset[Part]) -> str | None:
        if not vm:
            return None  # no space of a VM is loaded
        miss = self._reach(core, ht, vm).first_miss(footprint(isa, canonical(reason, isa).number, parts))
        return None if miss is None else miss.access.object

    def _reach(self, core: int, ht: int, vm: int) -> Reach:
        reach = self._reaches.get((core, ht, vm))
        if reach is None:
            place = self._config.vcpu_at(core, ht)
            assert place is not None
            assert place[0] == vm
            cpu = core * self._config.machine.smt + ht
            reach = self._reaches[core, ht, vm] = Reach(self._isolated[vm], place[1], cpu)
        return reach
