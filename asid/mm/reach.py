"""What one vCPU reaches from its VM's isolated space: each access of a footprint translated, and what misses.

Rule 1. An access misses when the table has no entry for its address. What may be done with an entry is the host's own
        matter: the isolated one is the same, or the access would fault with the full address space too.
Rule 2. Whether an exit is fast is decided once for each (isa, number, parts) and generation of the mapping.
Rule 3. Nothing here leaves or prints: `misses` tells what would fault, in the order of the code.

Where an access goes
    Code is fetched where its function is. Of data, an instruction touches the part of the object that it has its place
    in the function for: one half-way through touches the middle. So two functions need not touch the same page, and an
    object that is mapped in part is missed in part.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from asid.core.exits import Isa
from asid.mm.fault import ERRORS, Fault, fault_of
from asid.mm.footprint import FUNCTIONS, Access, footprint, usual_parts
from asid.mm.isolated import Isolated
from asid.mm.parts import Part

_ALIGNED: Final = ~7


class Miss(NamedTuple):
    """An access that the isolated space does not translate."""

    access: Access
    address: int


class Reach:
    """What the thread of one vCPU reaches on one CPU. cpu: None for the one that its VM's shape gives it."""

    def __init__(self, isolated: Isolated, vcpu: int, cpu: int | None = None) -> None:
        self.isolated: Final = isolated
        self.vcpu: Final = vcpu
        self.cpu: Final = isolated.host.vms[isolated.vm - 1].cpus[vcpu] if cpu is None else cpu
        self._decided: dict[tuple[str, int, frozenset[Part] | None], bool] = {}
        self._generation = -1

    def address(self, access: Access) -> int:
        """Return the address of an access."""
        host = self.isolated.host
        if access.mode == "x":
            symbol = host.symbols.named(access.function, access.module)
            if symbol is not None:
                return symbol.address
        place = host.at(access.object, self.isolated.vm, self.vcpu, self.cpu)
        part = place.size * access.offset // FUNCTIONS[access.function].size
        return place.start + (part & _ALIGNED)

    def is_mapped(self, access: Access) -> bool:
        """Say whether an access is translated."""
        return bool(self.isolated.space.table.lookup(self.address(access)))

    def misses(self, accesses: tuple[Access, ...]) -> tuple[Miss, ...]:
        """Return the accesses that are not translated, in their order."""
        lookup = self.isolated.space.table.lookup
        found = []
        for access in accesses:
            address = self.address(access)
            if not lookup(address):
                found.append(Miss(access, address))
        return tuple(found)

    def first_miss(self, accesses: tuple[Access, ...]) -> Miss | None:
        """Return the access that faults first; None when all are translated."""
        lookup = self.isolated.space.table.lookup
        for access in accesses:
            address = self.address(access)
            if not lookup(address):
                return Miss(access, address)
        return None

    def is_fast(self, isa: Isa, number: int, parts: frozenset[Part] | None = None) -> bool:
        """Say whether an exit is handled without a fault. parts: None for the usual ones.

        Raise InputError for a part that this exit does not have.
        """
        generation = self.isolated.space.generation
        if generation != self._generation:
            self._decided.clear()
            self._generation = generation
        key = isa, number, parts
        decided = self._decided.get(key)
        if decided is None:
            accesses = footprint(isa, number, usual_parts(isa, number) if parts is None else parts)
            decided = self._decided[key] = self.first_miss(accesses) is None
        return decided

    def fault(self, miss: Miss) -> Fault:
        """Return what is reported of a miss. Where the symbols have none of its functions, of a kernel of another time
        say, the instruction is given as the beginning of the text."""
        host = self.isolated.host
        if any(host.symbols.named(name) for name in (miss.access.function, *miss.access.callers)):
            return fault_of(miss.access, miss.address, host.symbols)
        return Fault(host.image.text, miss.address, ERRORS[miss.access.mode])
