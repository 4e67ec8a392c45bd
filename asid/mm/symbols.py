"""Symbols of a kernel: from the text of /proc/kallsyms or a System.map to a table, and from an address to a place.

Rule 1. The text is read strictly: a line that is no symbol is refused with its number. CR line ends and empty lines are
        read over. Who has a gzip file undoes that first.
Rule 2. Symbols below the kernel's half of the addresses are offsets into per-CPU memory or plain numbers: they are
        found by name, and never explain an address.
Rule 3. The text has no sizes. A symbol ends where the next one begins, as the kernel itself has it.

Several symbols at one address
    The kernel shows the first of them in its own table, which scripts/kallsyms.c has put in order: weak ones go last,
    then those that only linker scripts make (__start_x, __x_end), then those with more leading underscores, then as nm
    listed them. The same order is applied here, so that a System.map, in nm's order, gives the same answer. In a module
    the first of its symbol table is shown, which is the order of /proc/kallsyms.

Several addresses of one name
    `named` gives the lowest of the kernel's own, else the first of the modules', as kallsyms_lookup_name does;
    `all_named` gives every one.

Where the last symbol ends
    Before a hole, or before another module, a symbol ends with its page at the latest: memory is given out in pages.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Final, NamedTuple

from asid.errors import InputError

KERNEL_HALF: Final = 0xFF00_0000_0000_0000  # lowest kernel address with 5 levels; with 4 it is higher
SYMBOLS_MAX: Final = 4_000_000  # a distribution's kernel with all its modules has some 250,000
PAGE: Final = 1 << 12
SHOWN_MAX: Final = 60  # characters of a refused line that an error shows

# Address, type letter, name, and the module in brackets. [ \t\r] and not \s: a name may hold any other character.
_LINE: Final = re.compile(
    r"^([0-9a-fA-F]{1,16})[ \t]+([A-Za-z?-])[ \t]+([^ \t\r\n]+)(?:[ \t]+\[([^\] \t\r\n]+)\])?[ \t\r]*$", re.MULTILINE
)


class Symbol(NamedTuple):
    """One line of the text. kind: the type letter of nm, upper case for a global one. module: "" for the kernel."""

    address: int
    kind: str
    name: str
    module: str


class Place(NamedTuple):
    """Where in which symbol an address is. size: of the symbol, bytes. str() is the kernel's %pS."""

    name: str
    offset: int
    size: int
    module: str = ""

    def __str__(self) -> str:
        text = f"{self.name}+{self.offset:#x}/{self.size:#x}"
        return f"{text} [{self.module}]" if self.module else text


_Row = tuple[int, str, str, str]  # a Symbol that is not made one yet: that would double the time of reading


@dataclass(frozen=True, eq=False)
class SymbolTable:
    """Symbols in the order of their text. `starts` are the kernel addresses that have one, sorted.

    rows: the symbols; shown: for each of `starts` the symbol that explains it. Both are made Symbols when asked for.
    """

    rows: tuple[_Row, ...]
    starts: tuple[int, ...]
    shown: tuple[_Row, ...]

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Every symbol, in the order of the text."""
        return tuple(map(Symbol._make, self.rows))

    @cached_property
    def _by_name(self) -> dict[str, list[_Row]]:
        found: dict[str, list[_Row]] = {}
        for row in self.rows:
            found.setdefault(row[2], []).append(row)
        return found

    def at(self, address: int) -> Symbol | None:
        """Return the symbol that is shown for its own first address; None when none begins there."""
        index = bisect_right(self.starts, address) - 1
        if index < 0 or self.starts[index] != address:
            return None
        return Symbol._make(self.shown[index])

    def lookup(self, address: int) -> Place | None:
        """Return the place of an address; None when no symbol reaches it. O(log n)."""
        index = bisect_right(self.starts, address) - 1
        if index < 0:
            return None
        start, _, name, module = self.shown[index]
        end = self._end(index)
        return None if address >= end else Place(name, address - start, end - start, module)

    def _end(self, index: int) -> int:
        start, _, _, module = self.shown[index]
        page_end = (start // PAGE + 1) * PAGE
        if index + 1 == len(self.shown):
            return page_end
        following, _, _, module_following = self.shown[index + 1]
        return following if module_following == module else min(page_end, following)

    def show(self, address: int) -> str:
        """Return symbol+offset/size [module], or the bare number when no symbol reaches the address (%pS)."""
        place = self.lookup(address)
        return f"{address:#x}" if place is None else str(place)

    def named(self, name: str, module: str | None = None) -> Symbol | None:
        """Return the symbol of a name, of any module or of one ("" for the kernel); of several see the head."""
        found = self.all_named(name, module)
        own = [symbol for symbol in found if not symbol.module]
        if own:
            return min(own, key=lambda symbol: symbol.address)
        return found[0] if found else None

    def all_named(self, name: str, module: str | None = None) -> tuple[Symbol, ...]:
        """Return every symbol of a name, in the order of the text."""
        return tuple(Symbol._make(row) for row in self._by_name.get(name, ()) if module in (None, row[3]))

    def address(self, name: str, module: str | None = None) -> int:
        """Return the address of a name, as `named`. Raise InputError when there is none."""
        symbol = self.named(name, module)
        if symbol is None:
            raise InputError(
                f"no symbol {name!r}" + (f" in {module}" if module else ""),
                where="symbols",
                state=f"{len(self.rows)} symbols",
                hint="Take the symbols of the kernel, and of the time, that the address is from.",
            )
        return symbol.address

    def moved(self, offset: int) -> SymbolTable:
        """Return the table with every kernel address moved by `offset` bytes, as KASLR moves the image and modules.

        Raise InputError when an address would leave the kernel's half.
        """
        lowest, highest = self.starts[0] + offset, self.starts[-1] + offset
        if not KERNEL_HALF <= lowest <= highest < 1 << 64:
            raise InputError(
                f"moved by {offset:#x}, symbols lie from {lowest:#x} to {highest:#x}",
                where="symbols",
                allowed=f"addresses from {KERNEL_HALF:#x} up, below 2^64",
            )
        return table_of((row[0] + offset, *row[1:]) if row[0] >= KERNEL_HALF else row for row in self.rows)


def parse_symbols(text: str | bytes, *, where: str = "symbols") -> SymbolTable:
    """Return the table that a kallsyms or System.map text is. Raise InputError with the line when it is none.

    where: what errors call the text, such as its path.
    """
    decoded = _decoded(text, where)
    texts = _LINE.findall(decoded)  # one pass over the whole text: three times as fast as line by line
    lines = decoded.split("\n")
    if len(texts) != sum(1 for line in lines if line and not line.isspace()):
        raise _no_symbol(lines, where)
    if len(texts) > SYMBOLS_MAX:
        raise InputError(f"{len(texts)} symbols", where=where, allowed=f"at most {SYMBOLS_MAX}")
    rows = [(int(address, 16), kind, name, module) for address, kind, name, module in texts]
    if rows and not any(row[0] for row in rows):
        raise InputError(
            "every address is zero",
            where=where,
            state=f"{len(rows)} symbols",
            hint="The kernel hides them (kptr_restrict). Read /proc/kallsyms as root, with kernel.kptr_restrict 0.",
        )
    return table_of(rows, where=where)


def _decoded(text: str | bytes, where: str) -> str:
    if isinstance(text, str):
        return text
    if text[:2] == b"\x1f\x8b":
        raise InputError("this is gzip", where=where, allowed="text", hint="Decompress it first.")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InputError("no text", where=f"{where}:{line}", allowed="UTF-8", state=f"byte {error.start}") from None


def _no_symbol(lines: list[str], where: str) -> InputError:
    number, line = next(
        (number, line)
        for number, line in enumerate(lines, start=1)
        if not _LINE.fullmatch(line) and line and not line.isspace()
    )
    shown = line if len(line) <= SHOWN_MAX else line[:SHOWN_MAX] + "..."
    return InputError(
        f"{shown!r} is no symbol",
        where=f"{where}:{number}",
        allowed="address, type letter and name, as in 'ffffffff81000000 T _text', and a module in brackets",
        hint="Give the text of /proc/kallsyms or of a System.map, and nothing else.",
    )


def table_of(symbols: Iterable[Symbol | _Row], *, where: str = "symbols") -> SymbolTable:
    """Return the table of these symbols; each stays once. Raise InputError when none has a kernel address."""
    once = tuple(dict.fromkeys(symbols))
    starts: list[int] = []
    shown: list[_Row] = []
    for row in sorted([row for row in once if row[0] >= KERNEL_HALF], key=itemgetter(0)):
        if starts and starts[-1] == row[0]:
            if _later(shown[-1]) > _later(row):
                shown[-1] = row
            continue
        starts.append(row[0])
        shown.append(row)
    if not starts:
        raise InputError(
            "no symbol has a kernel address",
            where=where,
            state=f"{len(once)} symbols",
            allowed=f"addresses from {KERNEL_HALF:#x} up, of an x86-64 kernel",
        )
    return SymbolTable(once, tuple(starts), tuple(shown))


def _later(row: _Row) -> tuple[bool, bool, int]:
    """What puts a symbol behind others at its address; nothing does in a module."""
    _, kind, name, module = row
    if module:
        return False, False, 0
    return kind in "wW", _of_linker_script(name), len(name) - len(name.lstrip("_"))


def _of_linker_script(name: str) -> bool:
    """Say whether a name looks like one that a linker script provides, by the rule of scripts/kallsyms.c."""
    if len(name) < 8 or not name.startswith("__"):
        return False
    return name[2:].startswith(("start_", "stop_", "end_")) or name.endswith(("_start", "_end"))
