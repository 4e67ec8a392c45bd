"""`perf kvm stat report` and `live` tables: exit reasons, how often, at what mean cost. No order of events.

A table is a head line with column names, rows, and a line of totals. Which columns it has is read from the head, since
they changed over the years: the 2012 layout has no minimum and maximum, the newest layout has `Sample%` and times in
nanoseconds. One file may hold several tables (by event, by vCPU, every refresh of `live`); `read_table` takes the first
one of VM exits unless told which.

Samples are summed and compared with the printed total. A table whose author cut rows out (`[..]`), or whose lines a
mail program wrapped, does not add up: `missing_samples` says by how much, and nothing is filled in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asid.core.exits import Canonical, find
from asid.errors import InputError
from asid.trace.sniff import foreign, read_lines, sniff

VM_EXIT: Final = "VM-EXIT"
NEWEST: Final = "Event name"
EVENTS: Final = (VM_EXIT, "TRAP-EVENT", "MMIO Access", "IO Port Access", NEWEST)
ROWS_MAX: Final = 10_000  # a table of VM exits has under 60 rows, one of MMIO addresses a few hundred

_WANTED: Final = "text of perf kvm stat report with a VM-EXIT table"

_HEAD = re.compile(rf"\s*(?P<event>{'|'.join(map(re.escape, EVENTS))})\s+(?P<columns>Samples\s.*\S)\s*$")
_COLUMN = re.compile(r"Samples?%|Samples|Time%|(?:Min|Max|Avg|Mean) ?[Tt]ime(?: ?\(ns\))?|Time ?\(ns\)")
_TITLE = re.compile(r"\s*Analyze events for (?P<title>.*?)\s*:\s*$")
_TOTAL = re.compile(
    r"\s*Total Samples:\s*(?P<samples>\d{1,18}),"
    r"\s*Total events handled time:\s*(?P<time>\d{1,18}(?:\.\d{1,9})?)\s*us\.?\s*$"
)
_ROW = re.compile(
    r"\s*(?P<name>\S.{0,79}?)\s+(?P<cells>\d[\d,]{0,23}(?:\s+\d[\d.,]{0,23}(?:us|ns|%)?)*)"
    r"(?:\s+\( ?\+-\s*(?P<error>\d[\d.]{0,11}|-?nan)\s*%\s*\))?\s*$"
)
_ELIDED = re.compile(r"\s*(?:\[\s*\.{2,}\s*\]|\.{3,}|…)\s*$")


@dataclass(frozen=True, slots=True)
class KvmStatRow:
    """One row. `reason` is None where the name is not one exit reason (`UNKNOWN`, an MMIO address).

    Times are nanoseconds, None where the layout has no such column. `error_fraction` is the relative standard error of
    the mean (0.0024 for `+- 0.24%`), None where none is printed.
    """

    name: str
    reason: Canonical | None
    samples: int
    mean_ns: float
    min_ns: int | None
    max_ns: int | None
    error_fraction: float | None
    line: int


@dataclass(frozen=True, slots=True)
class KvmStatTable:
    """One table of a file. Totals are None when the line of totals is missing."""

    path: str
    event: str
    title: str  # "all VMs, all VCPUs", or "" where no title is printed
    line: int
    rows: tuple[KvmStatRow, ...]
    total_samples: int | None
    total_ns: int | None
    elided: bool  # the author cut rows out and said so
    rejected: tuple[tuple[int, str], ...]  # lines inside the table that are no rows: number and text
    tables_in_file: int = 1

    @property
    def samples(self) -> int:
        return sum(row.samples for row in self.rows)

    @property
    def missing_samples(self) -> int | None:
        """Printed total minus the sum of the rows; None without a total. 0 for a complete table."""
        return None if self.total_samples is None else self.total_samples - self.samples

    @property
    def holds_exits(self) -> bool:
        """True for a table of x86 VM exits with rows. The newest layout names no event: its rows have to tell."""
        if self.event == NEWEST:
            return any(row.reason is not None for row in self.rows)
        return self.event == VM_EXIT and bool(self.rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on everything that is not as it should be."""
        notes = []
        if self.missing_samples is None:
            notes.append("The line of totals is missing: the table may be cut off.")
        elif self.missing_samples:
            notes.append(
                f"The rows add up to {self.samples} samples, the total says {self.total_samples}: "
                f"{abs(self.missing_samples)} {'missing' if self.missing_samples > 0 else 'too many'}."
            )
        if self.elided:
            notes.append("The author left rows out ([..]).")
        if self.rejected:
            number, text = self.rejected[0]
            notes.append(f"{len(self.rejected)} lines not used; the first is line {number}: {text[:60]!r}.")
        unknown = [row.name for row in self.rows if row.reason is None]
        if unknown and self.event == VM_EXIT:
            notes.append(f"{len(unknown)} rows name no exit reason we know: {', '.join(unknown[:3])}.")
        if self.tables_in_file > 1:
            notes.append(f"The file holds {self.tables_in_file} tables; this is the one at line {self.line}.")
        return tuple(notes)


class _Builder:
    """Collects one table."""

    def __init__(self, event: str, title: str, line: int, columns: tuple[str, ...]) -> None:
        self.event, self.title, self.line, self.columns = event, title, line, columns
        self.rows: list[KvmStatRow] = []
        self.rejected: list[tuple[int, str]] = []
        self.elided = False
        self.total: tuple[int, int] | None = None

    def take(self, number: int, text: str) -> None:
        found = _TOTAL.match(text)
        if found:
            self.total = (int(found["samples"]), round(float(found["time"]) * 1000))
        elif _ELIDED.match(text):
            self.elided = True
        elif text.strip():
            row = _read_row(number, text, self.columns)
            if row is None or len(self.rows) == ROWS_MAX:
                self.rejected.append((number, text.strip()))
            else:
                self.rows.append(row)

    def build(self, path: Path, tables_in_file: int) -> KvmStatTable:
        return KvmStatTable(
            path=str(path),
            event=self.event,
            title=self.title,
            line=self.line,
            rows=tuple(self.rows),
            total_samples=self.total[0] if self.total else None,
            total_ns=self.total[1] if self.total else None,
            elided=self.elided,
            rejected=tuple(self.rejected),
            tables_in_file=tables_in_file,
        )


def read_tables(path: Path | str) -> tuple[KvmStatTable, ...]:
    """Read every table of a file, in file order. Raise InputError when the file holds none."""
    path = Path(path)
    kind = sniff(path)
    if kind not in ("perf-kvm-stat", "unknown"):
        raise foreign(path, kind, _WANTED)
    builders: list[_Builder] = []
    current: _Builder | None = None
    title = ""
    for number, text, _ in read_lines(path):
        head, heading = _HEAD.match(text), _TITLE.match(text)
        if heading:
            title, current = heading["title"], None
        elif head:
            current = _Builder(head["event"], title, number, tuple(_COLUMN.findall(head["columns"])))
            builders.append(current)
            title = ""
        elif current is not None:
            current.take(number, text)
            if current.total is not None:
                current = None
    if not builders:
        raise foreign(path, "unknown", _WANTED)
    return tuple(builder.build(path, len(builders)) for builder in builders)


def read_table(path: Path | str, *, index: int | None = None) -> KvmStatTable:
    """Return one table of VM exits: the first of the file that has rows, or table number `index` (from 0) of the file.

    Raise InputError when there is none, when `index` names another kind of table, or when the table is empty.
    """
    tables = read_tables(path)
    listed = ", ".join(f"{n}: {t.event} ({t.title or 'no title'}, line {t.line})" for n, t in enumerate(tables[:8]))
    if index is None:
        chosen = next((t for t in tables if t.holds_exits), None)
    elif 0 <= index < len(tables):
        chosen = tables[index]
    else:
        chosen = None
    if chosen is None or not chosen.holds_exits:
        arm = any(t.event == "TRAP-EVENT" for t in tables)
        raise InputError(
            "a table of an ARM64 machine" if arm else "no table of VM exits with rows",
            where=str(path),
            state=f"the file has {listed}" + (f"; asked for table {index}" if index is not None else ""),
            allowed=_WANTED,
            hint="asid reads x86: Intel VMX and AMD SVM." if arm else "Make one: perf kvm stat report --event=vmexit.",
        )
    return chosen


def _read_row(number: int, text: str, columns: tuple[str, ...]) -> KvmStatRow | None:
    """Return the row in `text`, None when its cells do not fit the columns."""
    found = _ROW.match(text)
    if found is None:
        return None
    cells = found["cells"].split()
    if len(cells) != len(columns):
        return None
    samples, total_ns = 0, None
    times: dict[str, float] = {}
    for column, cell in zip(columns, cells, strict=True):
        value = _read_cell(column, cell)
        if value is None:
            return None
        kind = column.split()[0].lower()
        if column == "Samples":
            samples = int(value)
        elif kind in ("min", "max", "avg", "mean"):
            times["mean" if kind == "avg" else kind] = value
        elif kind.startswith("time") and "%" not in column:
            total_ns = value
    mean_ns = times.get("mean", total_ns / samples if total_ns is not None and samples else None)
    if mean_ns is None:
        return None
    name = found["name"]
    return KvmStatRow(
        name=name,
        reason=find(name),
        samples=samples,
        mean_ns=mean_ns,
        min_ns=round(times["min"]) if "min" in times else None,
        max_ns=round(times["max"]) if "max" in times else None,
        error_fraction=None if found["error"] in (None, "nan", "-nan") else _read_number(found["error"], 0.01),
        line=number,
    )


def _read_cell(column: str, cell: str) -> float | None:
    """Return a cell's number (times in nanoseconds), None when its unit is not the column's."""
    if "%" in column:
        return _read_number(cell[:-1]) if cell.endswith("%") else None
    if column == "Samples":
        return _read_number(cell) if cell.replace(",", "").isdigit() else None
    if cell.endswith("us"):
        return _read_number(cell[:-2], 1000.0)
    return _read_number(cell.removesuffix("ns")) if "ns" in column or cell.endswith("ns") else None


def _read_number(text: str, unit: float = 1.0) -> float | None:
    try:
        return float(text.replace(",", "")) * unit
    except ValueError:
        return None
