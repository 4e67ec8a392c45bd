"""Entries of x86-64 page tables, the levels they stand at, and the addresses that they translate.

Rule 1. An address is 64 bits without a sign. The end of a range is exclusive and may be 1 << 64.
Rule 2. An entry is the number that the hardware reads: flags around the address of a page frame. 0 is no entry; every
        other one is present.
Rule 3. Flags are plain ints: an IntFlag costs a microsecond where a walk costs half of one.

Sources: Intel SDM volume 3A, 4.5 (4-level and 5-level paging); linux arch/x86/include/asm/pgtable_types.h.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
WRITE_THROUGH: Final = 1 << 3
CACHE_DISABLED: Final = 1 << 4
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
PSE: Final = 1 << 7  # of a PMD or PUD entry: it maps memory itself; a PTE has its PAT bit there
GLOBAL: Final = 1 << 8
NX: Final = 1 << 63

FRAME: Final = (1 << 52) - (1 << 12)
FLAGS: Final = (1 << 64) - 1 & ~FRAME

# What Linux gives its own mappings (PAGE_KERNEL, _RO, _EXEC and _ROX), and an entry that points at a directory.
KERNEL: Final = PRESENT | WRITABLE | ACCESSED | DIRTY | GLOBAL | NX
KERNEL_READ_ONLY: Final = PRESENT | ACCESSED | DIRTY | GLOBAL | NX
KERNEL_TEXT: Final = PRESENT | ACCESSED | DIRTY | GLOBAL
KERNEL_WRITABLE_TEXT: Final = KERNEL_TEXT | WRITABLE
TABLE: Final = PRESENT | WRITABLE | ACCESSED | DIRTY

ENTRIES: Final = 512
PAGE: Final = 1 << 12
ADDRESS_END: Final = 1 << 64

FLAG_NAMES: Final = (
    (PRESENT, "present"),
    (WRITABLE, "writable"),
    (USER, "user"),
    (WRITE_THROUGH, "write-through"),
    (CACHE_DISABLED, "uncached"),
    (ACCESSED, "accessed"),
    (DIRTY, "dirty"),
    (PSE, "PSE"),
    (GLOBAL, "global"),
    (NX, "NX"),
)


class Level(IntEnum):
    """The level of an entry, lowest first, with Linux's names. Four levels have no P4D: there it is the PGD."""

    PTE = 0
    PMD = 1
    PUD = 2
    P4D = 3
    PGD = 4


class Paging(NamedTuple):
    """How an address is cut up. levels: top first. address_bits: translated; the rest repeat the highest one."""

    levels: tuple[Level, ...]
    address_bits: int

    def shift(self, level: Level) -> int:
        """Return how many bits of an address an entry of `level` leaves to those below."""
        if level is Level.PGD:
            return self.address_bits - 9
        return 12 + 9 * level

    def span(self, level: Level) -> int:
        """Return the bytes that one entry of `level` stands for."""
        return 1 << self.shift(level)

    def level(self, level: Level) -> Level:
        """Return the level that `level` is here."""
        return level if level in self.levels else Level.PGD

    def is_canonical(self, address: int) -> bool:
        """Say whether the processor takes this address at all."""
        sign = address >> self.address_bits - 1
        return sign == 0 or sign == ADDRESS_END - 1 >> self.address_bits - 1

    def low(self, address: int) -> int:
        """Return the bits of an address that are translated."""
        return address & (1 << self.address_bits) - 1

    def canonical(self, low: int) -> int:
        """Return the address whose translated bits these are."""
        return low | ADDRESS_END - (1 << self.address_bits) if low >> self.address_bits - 1 else low

    def indices(self, address: int) -> tuple[int, ...]:
        """Return the places of an address in the directories on its way, top first."""
        return tuple(address >> self.shift(level) & ENTRIES - 1 for level in self.levels)

    def address(self, indices: tuple[int, ...]) -> int:
        """Return the first address that lies behind these places; fewer than all levels are allowed, top first."""
        low = sum(index << self.shift(level) for level, index in zip(self.levels, indices, strict=False))
        return self.canonical(low)


FOUR_LEVELS: Final = Paging((Level.PGD, Level.PUD, Level.PMD, Level.PTE), 48)
FIVE_LEVELS: Final = Paging((Level.PGD, Level.P4D, Level.PUD, Level.PMD, Level.PTE), 57)
PAGING: Final = {4: FOUR_LEVELS, 5: FIVE_LEVELS}

# The level of an entry that maps so many bytes.
LEAVES: Final = {1 << 12: Level.PTE, 1 << 21: Level.PMD, 1 << 30: Level.PUD}


def is_leaf(entry: int, level: Level) -> bool:
    """Say whether an entry maps memory, and does not point at a directory. entry: not 0."""
    return level is Level.PTE or bool(entry & PSE)


def pieces(entry: int, level: Level) -> range:
    """Return the 512 entries of the level below that map what this leaf maps, with its flags. level: PMD or PUD."""
    step = FOUR_LEVELS.span(Level(level - 1))
    first = entry & ~PSE if level is Level.PMD else entry
    return range(first, first + ENTRIES * step, step)


def flag_words(entry: int) -> str:
    """Return the names of an entry's flags, or `none`."""
    return " ".join(name for flag, name in FLAG_NAMES if entry & flag) or "none"


def floor_to(address: int, span: int) -> int:
    """Return the last multiple of `span`, a power of two, that is not above `address`."""
    return address & -span


def ceil_to(address: int, span: int) -> int:
    """Return the first multiple of `span`, a power of two, that is not below `address`."""
    return address + span - 1 & -span


def bytes_text(size: int) -> str:
    """Return a size in the largest unit that divides it: `4 KiB`, `2 MiB`, `1 GiB`, `512 GiB`."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size and not size & (1 << shift) - 1:
            return f"{size >> shift} {unit}"
    return f"{size} B"
