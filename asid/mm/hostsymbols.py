"""What a host needs of its symbols: its kvm modules, and where in a CPU's unit each per-CPU variable is.

A kernel's table has no module that was not loaded when it was written. Footprints name functions of kvm's: where the
table has none of a module's, those of `asid.mm.symbols_bundled` stand in for them, behind the modules that it has.
"""

from __future__ import annotations

from typing import Final

from asid.mm.entry import PAGE, ceil_to
from asid.mm.objects import Object
from asid.mm.symbols import KERNEL_HALF, SymbolTable, table_of
from asid.mm.symbols_bundled import bundled

MODULE_NAMES: Final = ("kvm", "kvm_intel", "kvm_amd")
UNIT_MIN: Final = 1 << 18
_RESERVED: Final = 8 << 10  # PERCPU_MODULE_RESERVE
_DYNAMIC: Final = 28 << 10  # PERCPU_DYNAMIC_RESERVE
_STEP: Final = 1 << 20


def with_modules(symbols: SymbolTable) -> SymbolTable:
    """Return the table with the symbols of every kvm module, ours for those that it lacks."""
    lacking = {name for name in MODULE_NAMES if not any(row[3] == name for row in symbols.rows)}
    if not lacking:
        return symbols
    ours = [row for row in bundled().rows if row[3] in lacking]
    first = min(row[0] for row in ours)
    taken = max((row[0] for row in symbols.rows if row[3]), default=0)
    offset = ceil_to(taken + PAGE, _STEP) - first if taken >= first else 0
    return table_of((*symbols.rows, *((row[0] + offset, *row[1:]) for row in ours)))


def module_start(symbols: SymbolTable, name: str) -> int:
    """Return the lowest address of a module."""
    return min(row[0] for row in symbols.rows if row[3] == name and row[0] >= KERNEL_HALF)


class PerCpu:
    """Where per-CPU variables are in the unit of a CPU. unit: bytes of it. allocated: bytes of those to come."""

    def __init__(self, symbols: SymbolTable, allocated: int) -> None:
        self._symbols = symbols
        end = symbols.named("__per_cpu_end", "")
        own = [row[0] for row in bundled().rows if row[0] < KERNEL_HALF]
        last = end.address if end else max(own) + 64
        self._next = ceil_to(last, PAGE) + _RESERVED  # what is allocated, not declared, comes behind the modules'
        self.unit = max(UNIT_MIN, 1 << (self._next + max(_DYNAMIC, allocated) - 1).bit_length())
        self._known: dict[tuple[str, int], int] = {}

    def variable(self, row: Object, vm: int) -> int:
        """Return the offset of a variable in each unit, of one that the symbols lack a place behind all others."""
        symbol = self._symbols.named(row.symbol, "") if row.symbol else None
        if symbol is not None and symbol.address < KERNEL_HALF:
            return symbol.address
        key = row.name, vm
        if key not in self._known:
            self._known[key] = self._next
            self._next = ceil_to(self._next + row.size, 64)
        return self._known[key]
