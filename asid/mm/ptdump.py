"""Page-table dumps: the text of /sys/kernel/debug/page_tables, or of a boot log, to ranges, and back.

Rule 1. Nothing is lost: `format_dump` of what `parse_dump` read is the same text, less time stamps and line ends.
Rule 2. Ranges ascend and never overlap, begin and end where an entry of their level may, and their written size is
        theirs; else the line is refused with its number.
Rule 3. A range ends at 2^64 where the text says 0000000000000000: the kernel's counter wraps.

The text, as arch/x86/mm/dump_pagetables.c writes it
    A range is `0xSTART-0xEND`, a size in the largest unit that divides it, eight flags each in its own columns, and the
    level of its entries. Blank flags are entries that are not present; `ro` and `x` are flags of those that are.
    `---[ Modules ]---` begins an area; `... 12 entries skipped ...` says that ranges were left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, NamedTuple

from asid.errors import InputError

TOP: Final = 1 << 64
UNITS: Final = "BKMGTPE"
ITEMS_MAX: Final = 4_000_000  # a kernel's dump has some thousands of lines, one of a process some ten thousands
SHOWN_MAX: Final = 60

# Bytes that one entry of a level maps; also the step of a range's ends. A folded level counts as the one above it.
LEVELS: Final = {"pte": 1 << 12, "pmd": 1 << 21, "pud": 1 << 30, "p4d": 1 << 39, "pgd": 1 << 39, "cr3": 1 << 39}


class Flag(IntFlag):
    """Attributes of present entries, with the bits of the hardware; PAT has the one that it has in large entries."""

    PRESENT = 1 << 0
    WRITABLE = 1 << 1
    USER = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    PSE = 1 << 7
    GLOBAL = 1 << 8
    PAT = 1 << 12
    NX = 1 << 63


# (flag, its text, text without it), in the order of the columns.
_COLUMNS: Final = (
    (Flag.USER, "USR ", "    "),
    (Flag.WRITABLE, "RW ", "ro "),
    (Flag.PWT, "PWT ", "    "),
    (Flag.PCD, "PCD ", "    "),
    (Flag.PSE, "PSE ", "    "),
    (Flag.PAT, "PAT ", "    "),
    (Flag.GLOBAL, "GLB ", "    "),
    (Flag.NX, "NX ", "x  "),
)
_FLAGS_WIDTH: Final = sum(len(text) for _, text, _ in _COLUMNS)


class Range(NamedTuple):
    """Addresses `start` to `end`, the latter not in it, whose entries of `level` are alike. flags: 0 if not present."""

    start: int
    end: int
    level: str
    flags: Flag

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Mark(NamedTuple):
    """The beginning of a named area."""

    name: str


class Skipped(NamedTuple):
    """Ranges that the kernel left out of the text."""

    entries: int


Item = Range | Mark | Skipped


@dataclass(frozen=True, slots=True)
class Dump:
    """The lines of a dump, in their order."""

    items: tuple[Item, ...]

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Every range, those that are not present too."""
        return tuple(item for item in self.items if isinstance(item, Range))

    @property
    def present(self) -> tuple[Range, ...]:
        """The ranges that are mapped."""
        return tuple(item for item in self.ranges if item.flags)

    def marks(self) -> dict[str, int]:
        """Return the address of the first range after each mark; a mark without one is left out."""
        found: dict[str, int] = {}
        waiting: list[str] = []
        for item in self.items:
            if isinstance(item, Mark):
                waiting = [item.name]  # a mark right after another leaves the first without a range
            elif isinstance(item, Range):
                for name in waiting:
                    found.setdefault(name, item.start)
                waiting = []
        return found


_STAMP: Final = re.compile(r"(?:<[0-9]{1,3}>)?(?:\[ *[0-9]+\.[0-9]+\] ?)?")
_RANGE: Final = re.compile(
    r"0x([0-9a-fA-F]{1,16})-0x([0-9a-fA-F]{1,16}) +([0-9]{1,20})([BKMGTPE]) "
    rf"(.{{{_FLAGS_WIDTH}}})(cr3|pgd|p4d|pud|pmd|pte)[ \t]*"
)
_MARK: Final = re.compile(r"---\[ ([^\r\n]*?) \]---[ \t]*")
_SKIPPED: Final = re.compile(r"\.\.\. ([0-9]{1,20}) entr(?:y|ies) skipped \.\.\.[ \t]*")


def parse_dump(text: str | bytes, *, where: str = "page tables") -> Dump:
    """Return what a dump says. Raise InputError with the line when it is none. where: what errors call the text."""
    items: list[Item] = []
    end = 0
    for number, line in enumerate(_decoded(text, where).split("\n"), start=1):
        if not line.strip(" \t\r"):
            continue
        place = f"{where}:{number}"
        item = _item(line.rstrip("\r"), place)
        if isinstance(item, Range):
            if item.start < end:
                raise InputError(
                    f"a range begins at {item.start:#x}",
                    where=place,
                    state=f"the one before ends at {end:#x}",
                    allowed="ascending, without overlap",
                    hint="Give one dump at a time.",
                )
            end = item.end
        items.append(item)
    if not items:
        raise InputError("an empty text", where=where, allowed="lines 0xSTART-0xEND SIZE FLAGS LEVEL")
    if len(items) > ITEMS_MAX:
        raise InputError(f"{len(items)} lines", where=where, allowed=f"at most {ITEMS_MAX}")
    return Dump(tuple(items))


def _decoded(text: str | bytes, where: str) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InputError("no text", where=f"{where}:{line}", allowed="UTF-8", state=f"byte {error.start}") from None


def _item(line: str, where: str) -> Item:
    stamp = _STAMP.match(line)
    assert stamp is not None, "the pattern matches nothing too"
    body = line[stamp.end() :]
    found = _RANGE.fullmatch(body)
    if found is not None:
        return _range(found, where)
    found = _MARK.fullmatch(body)
    if found is not None:
        return Mark(found[1])
    found = _SKIPPED.fullmatch(body)
    if found is not None:
        return Skipped(int(found[1]))
    shown = body if len(body) <= SHOWN_MAX else body[:SHOWN_MAX] + "..."
    raise InputError(
        f"{shown!r} is no line of a page-table dump",
        where=where,
        allowed="0xSTART-0xEND SIZE FLAGS LEVEL, ---[ area ]--- or ... N entries skipped ...",
        hint="The flags stand in fixed columns: a text whose blanks were joined cannot be read.",
    )


def _range(found: re.Match[str], where: str) -> Range:
    start, end, level = int(found[1], 16), int(found[2], 16) or TOP, found[6]
    if end <= start:
        raise InputError(f"a range from {start:#x} to {end:#x}", where=where, allowed="a start below its end")
    size = int(found[3]) << 10 * UNITS.index(found[4])
    if size != end - start:
        raise InputError(
            f"the size is {found[3]}{found[4]}",
            where=where,
            state=f"{start:#x} to {end:#x}",
            allowed=size_text(end - start),
        )
    if (start | end) % LEVELS[level]:
        raise InputError(
            f"a range of level {level} from {start:#x} to {end:#x}",
            where=where,
            allowed=f"begun and ended at a multiple of {LEVELS[level]:#x}",
        )
    return Range(start, end, level, _flags(found[5], where))


def _flags(text: str, where: str) -> Flag:
    if text.isspace():
        return Flag(0)
    flags = Flag.PRESENT
    column = 0
    for flag, with_it, without in _COLUMNS:
        shown = text[column : column + len(with_it)]
        column += len(with_it)
        if shown == with_it:
            flags |= flag
        elif shown != without:
            raise InputError(
                f"flags {shown!r}",
                where=where,
                allowed=f"{with_it!r} or {without!r} in columns {column - len(with_it)} to {column} of the flags",
            )
    return flags


def size_text(size: int) -> str:
    """Return a size in bytes as the kernel writes it, in the largest unit that divides it: 1036K, 2M."""
    unit = 0
    while size and not size & 1023 and unit + 1 < len(UNITS):
        size >>= 10
        unit += 1
    return f"{size}{UNITS[unit]}"


def format_dump(items: Sequence[Item]) -> str:
    """Return the text of a dump, each line ended; `parse_dump` reads the same items from it.

    Ranges must hold what `parse_dump` asks of them, and the name of a mark be one line without blanks at its ends.
    """
    return "".join(f"{line}\n" for line in _lines(items))


def _lines(items: Sequence[Item]) -> Iterator[str]:
    for item in items:
        if isinstance(item, Mark):
            yield f"---[ {item.name} ]---"
        elif isinstance(item, Skipped):
            yield f"... {item.entries} entr{'y' if item.entries == 1 else 'ies'} skipped ... "
        else:
            yield f"{_addresses(item)}   {size_text(item.size):>10} {flags_text(item.flags)}{item.level}"


def _addresses(item: Range) -> str:
    assert 0 <= item.start < item.end <= TOP, item
    assert not (item.start | item.end) % LEVELS[item.level], item
    return f"0x{item.start:016x}-0x{item.end % TOP:016x}"


def flags_text(flags: Flag) -> str:
    """Return flags in their columns, 30 characters; blanks when the entry is not present."""
    if not flags:
        return " " * _FLAGS_WIDTH
    return "".join(with_it if flags & flag else without for flag, with_it, without in _COLUMNS)
