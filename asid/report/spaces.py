"""Address spaces as people see them: tables of what is mapped, and dumps of page tables, and where two differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from asid.mm.entry import bytes_text
from asid.mm.isolated import Isolated, object_of
from asid.mm.layout import Layout
from asid.mm.objects import OBJECT
from asid.mm.pagetable import PageTable
from asid.mm.ptdump import LEVELS, Dump, Flag, Item, Mark, Range, flags_text
from asid.mm.runs import Run
from asid.mm.secrets import Ownership, exposures, secret_bytes, together

_SHOWN: Final = int(Flag.PRESENT | Flag.WRITABLE | Flag.USER | Flag.PWT | Flag.PCD | Flag.PSE | Flag.GLOBAL | Flag.NX)


class Mapped(NamedTuple):
    """One object of a space: how many ranges it is, bytes asked for, and bytes exposed beside them."""

    object: str
    whose: str
    step: str
    level: str
    split: bool
    ranges: int
    asked: int
    slack: int


def mapped_rows(isolated: Isolated) -> tuple[Mapped, ...]:
    """Return what a space maps, an object each, in the order in which it was mapped."""
    space = isolated.space
    slack: dict[str, int] = {}
    for seen in space.slack():
        name = object_of(seen.range)
        slack[name] = slack.get(name, 0) + seen.exposed
    counts: dict[str, tuple[int, int]] = {}
    for wanted in space.ranges():
        name = object_of(wanted)
        number, size = counts.get(name, (0, 0))
        counts[name] = number + 1, size + wanted.size
    return tuple(
        Mapped(
            entry.object,
            OBJECT[entry.object].sensitivity.value,
            entry.step,
            entry.level.name,
            entry.split,
            *counts.get(entry.object, (0, 0)),
            slack.get(entry.object, 0),
        )
        for entry in isolated.entries
    )


def totals(isolated: Isolated) -> dict[str, int]:
    """Return the sums of a space: bytes mapped, asked for and beside them, ranges, directories, and secret bytes."""
    space = isolated.space
    mapped = sum(run.end - run.start for run in space.table.runs(flags=0))
    exposed = space.exposed_bytes()
    secret = secret_bytes(isolated, Ownership(isolated.host, isolated.vm))
    return {
        "mapped": mapped,
        "asked": mapped - exposed,
        "slack": exposed,
        "secret": secret,
        "ranges": len(space.ranges()),
        "directories": space.table.directories,
        "generation": space.generation,
    }


def secret_rows(isolated: Isolated) -> list[dict[str, Any]]:
    """Return what a space exposes, by thing and mapping, the gravest first."""
    return [seen._asdict() for seen in together(exposures(isolated))]


# --- dumps ------------------------------------------------------------------------------------------------


def dump_of(table: PageTable, layout: Layout) -> Dump:
    """Return a table as the kernel would dump it, with a mark where each area of the kernel begins."""
    items: list[Item] = []
    marks = [(area.start, area.name) for area in layout.areas]
    for run in table.runs(holes=True, flags=_SHOWN):
        for part in _cut(run, [start for start, _ in marks]):
            while marks and marks[0][0] <= part.start:
                items.append(Mark(marks.pop(0)[1]))
            items.append(part)
    return Dump(tuple(items))


def _cut(run: Run, at: Iterable[int]) -> Iterator[Range]:
    """Yield a stretch as ranges that end where an area begins, if an entry of their level may."""
    level = run.level.name.lower()
    start = run.start
    for cut in at:
        if start < cut < run.end and cut % LEVELS[level] == 0:
            yield Range(start, cut, level, Flag(run.flags))
            start = cut
    yield Range(start, run.end, level, Flag(run.flags))


class Difference(NamedTuple):
    """A stretch that two tables map differently. first, second: level and flags there, "" where nothing is mapped."""

    start: int
    end: int
    first: str
    second: str


def differences(first: Sequence[Range], second: Sequence[Range]) -> tuple[Difference, ...]:
    """Return where two dumps differ in what is mapped, at which level and with which flags, in order of address."""
    sides = [[seen for seen in side if seen.flags] for side in (first, second)]
    edges = sorted({edge for side in sides for seen in side for edge in (seen.start, seen.end)})
    places = [0, 0]
    found: list[Difference] = []
    for low, high in pairwise(edges):
        words = []
        for number, side in enumerate(sides):
            while places[number] < len(side) and side[places[number]].end <= low:
                places[number] += 1
            at = side[places[number]] if places[number] < len(side) else None
            words.append(_words(at) if at and at.start <= low else "")
        if words[0] == words[1]:
            continue
        if found and found[-1].end == low and [found[-1].first, found[-1].second] == words:
            found[-1] = found[-1]._replace(end=high)
        else:
            found.append(Difference(low, high, *words))
    return tuple(found)


def _words(seen: Range) -> str:
    return " ".join(f"{flags_text(seen.flags)}{seen.level}".split())


def size_words(size: int) -> str:
    """Return a size for a table: whole units where they fit, else bytes with commas."""
    text = bytes_text(size)
    return text if not text.endswith(" B") else f"{size:,} B"
