"""A small symbol table of our own, for when no kallsyms is given: the functions and objects that footprints name.

Addresses are made up, in the order of a real image: each symbol follows the one before, the image begins at
ffffffff81000000, the modules are where they are loaded without KASLR. Per-CPU variables are offsets. Sizes are those of
`asid.mm.functions` and `asid.mm.objects`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from asid.mm.functions import MODULES
from asid.mm.layout import TEXT_START
from asid.mm.objects import OBJECTS
from asid.mm.symbols import Symbol, SymbolTable, table_of

_MODULE_STARTS: Final = {
    "kvm": 0xFFFF_FFFF_A020_0000,
    "kvm_intel": 0xFFFF_FFFF_A030_0000,
    "kvm_amd": 0xFFFF_FFFF_A038_0000,
}
_TEXT_SIZE: Final = 14 << 20  # what the rest of a kernel would take
_DATA_SIZE: Final = 30 << 20
# Offsets of per-CPU variables: those of a 4.x kernel where one is at hand, so that what shares a page there does here.
_PER_CPU: Final = {
    "current_task": 0xB5C0,
    "cpu_hw_events": 0xB640,
    "this_cpu_off": 0xCAF8,
    "hrtimer_bases": 0xD180,
    "batched_entropy_u64": 0xE1C0,
    "mce_banks_array": 0xF000,
    "cpu_tlbstate": 0x10A40,
    "runqueues": 0x10B00,
    "call_single_queue": 0x11740,
    "current_vmcs": 0x12000,  # of a module: behind the kernel's own
    "svm_data": 0x12040,
}


@lru_cache(maxsize=1)
def bundled() -> SymbolTable:
    """Return the table; the same one each time."""
    return table_of(_symbols(), where="bundled symbols")


def _symbols() -> Iterator[Symbol]:
    for row in OBJECTS:
        if row.symbol and row.per == "cpu":
            yield Symbol(_PER_CPU[row.symbol], "D", row.symbol, "")
    yield Symbol(TEXT_START, "T", "_text", "")
    yield Symbol(TEXT_START, "T", "_stext", "")
    for module, functions in MODULES:
        address = _MODULE_STARTS[module] if module else TEXT_START + 0x1000
        for name, size, _, _ in functions:
            yield Symbol(address, "t" if module else "T", name, module)
            address += size
        if module:
            yield Symbol(address, "t", "cleanup_module", module)
    end = TEXT_START + _TEXT_SIZE
    yield Symbol(end, "T", "_etext", "")
    address = end + 0x1000
    for row in OBJECTS:
        if row.symbol and row.per == "host" and row.symbol != "_text":
            yield Symbol(address, "D", row.symbol, "")
            address += -(-row.size // 64) * 64
    yield Symbol(address, "D", "_edata", "")
    yield Symbol(end + _DATA_SIZE, "B", "_end", "")
