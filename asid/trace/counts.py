"""Counts of exits by tools that keep no times, or sums alone: bcc's kvmexit, kvm_stat, SystemTap's kvm_service_time.

kvmexit     `[PID] [TID] KVM_EXIT_REASON COUNT` and a row a reason; the line above says for how long it slept. Where
            rows are of threads, there are as many vCPUs. One text may hold several tables.
kvm_stat    `kvm statistics` and a row a trace point: its count in all, and how many there were a second of late.
            `kvm_exit(REASON)` has the exits of a reason. Without such rows the other events tell of them: one of
            EVENTS comes with each exit of its reason, and interrupts of the host have none, so what is left of kvm_exit
            counts as theirs.
SystemTap   `number: count sum(us) min(us) avg(us) max(us)`; the numbers are those of the processor, and taken for those
            of the vendor that has more of them.

Nothing is filled in: what is not used is in the notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from asid.core.exits import Canonical, Isa, canonical_number, find, find_number
from asid.errors import InputError
from asid.trace.sniff import Kind, foreign, read_lines, sniff

KINDS: Final[frozenset[Kind]] = frozenset({"bcc-kvmexit", "kvm-stat", "systemtap"})
ROWS_MAX: Final = 10_000
COUNT_MAX: Final = 10**15
REST: Final = "EXTERNAL_INTERRUPT"

# Events of KVM of which there is one with each exit of a reason, by Intel's names.
EVENTS: Final = {
    "kvm_msr": "MSR_WRITE", "kvm_vcpu_wakeup": "HLT", "kvm_page_fault": "EPT_VIOLATION", "kvm_fast_mmio":
    "EPT_MISCONFIG", "kvm_mmio": "EPT_MISCONFIG", "kvm_pio": "IO_INSTRUCTION", "kvm_cpuid": "CPUID",
    "kvm_hypercall": "VMCALL", "kvm_cr": "CR_ACCESS",
}  # fmt: skip

_BCC_HEAD = re.compile(r"\s*(?P<places>(?:PID\s+)?(?:TIDS?\s+)?)KVM_EXIT_REASON\s+COUNT\s*$")
_BCC_ROW = re.compile(r"\s*(?:\^C)?(?P<places>(?:\d{1,10}\s+)*)(?P<name>[A-Za-z]\w{0,79})\s+(?P<n>\d{1,20})\s*$")
_SLEPT = re.compile(r"\bafter sleeping (?P<s>\d{1,9}) secs?\b")
_ONE_VCPU = re.compile(r"\bVCPU \d|\bfor TID \d")
_KVM_STAT_ROW = re.compile(r"\s*(?P<name>[a-z]\w{0,79})(?:\((?P<reason>[^)]{1,80})\))?\s+(?P<rest>\d[\d.\s]*?)\s*$")
_TAP_ROW = re.compile(r"\s*(?P<number>\d{1,10}):\s+(?P<cells>\d{1,18}(?:\s+\d{1,18}){4})\s*$")
_TAP_HEAD = re.compile(r"# reason: count sum\(us\) min\(us\) avg\(us\) max\(us\)")


class CountRow(NamedTuple):
    """One reason; its times are None where the tool has none. reason: None where the name is no exit reason."""

    name: str
    reason: Canonical | None
    n: int
    line: int
    mean_ns: float | None = None
    min_ns: int | None = None
    max_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """One table. over_ns: how long it was counted, 0 when it does not say; vcpus: likewise. tool: what made it."""

    path: str
    tool: str
    line: int
    rows: tuple[CountRow, ...]
    over_ns: int = 0
    vcpus: int = 0
    notes: tuple[str, ...] = ()

    @property
    def exits(self) -> int:
        """Exits of a known reason."""
        return sum(row.n for row in self.rows if row.reason is not None)


def read_counts(path: Path | str) -> Counts:
    """Return the counts of a text; of several tables the first that says how long it was counted, else the first.

    Raise InputError when there is none, or no exit in it.
    """
    path = Path(path)
    kind = sniff(path)
    wanted = "a table of counts by kvmexit of bcc, kvm_stat or SystemTap"
    if kind not in KINDS:
        raise foreign(path, kind, wanted)
    lines = [(number, text) for number, text, _ in read_lines(path)]
    if kind == "bcc-kvmexit":
        tables = _read_bcc(path, lines)
    else:
        tables = [_read_kvm_stat(path, lines) if kind == "kvm-stat" else _read_tap(path, lines)]
    tables = [table for table in tables if table.exits]
    if not tables:
        raise InputError(
            "no exit in it", where=str(path), state=f"recognised as {kind}, {len(lines)} lines",
            allowed="a row with the reason of an exit and a count above 0",
            hint="Let it count for longer while the guest runs, or record: trace-cmd record -e kvm.",
        )  # fmt: skip
    chosen = next((table for table in tables if table.over_ns), tables[0])
    unknown = [row.name for row in chosen.rows if row.reason is None]
    notes = list(chosen.notes)
    if unknown:
        notes.append(f"{len(unknown)} rows name no exit reason we know, and are left out: {', '.join(unknown[:3])}.")
    if len(tables) > 1:
        notes.append(f"The file holds {len(tables)} tables; this is the one at line {chosen.line}.")
    return replace(chosen, notes=tuple(notes))


def _read_bcc(path: Path, lines: Sequence[tuple[int, str]]) -> list[Counts]:
    found: list[Counts] = []
    rows: list[CountRow] | None = None
    places: set[str] = set()
    above = ""

    def close() -> None:
        if rows:
            last = found.pop()
            threads = len(places) if "TID" in last.tool else 0
            found.append(replace(last, tool="kvmexit of bcc", rows=_summed(rows), vcpus=last.vcpus or threads))

    for number, text in lines:
        head, row = _BCC_HEAD.match(text), _BCC_ROW.match(text)
        if head:
            close()
            rows, places = [], set()
            slept = _SLEPT.search(above)
            over_ns = int(slept["s"]) * 1_000_000_000 if slept else 0
            one = 1 if _ONE_VCPU.search(above) else 0
            found.append(Counts(str(path), head["places"], number, (), over_ns, one))
        elif rows is not None and row and len(row["places"].split()) == len(found[-1].tool.split()):
            places.add(row["places"])
            if len(rows) < ROWS_MAX:
                rows.append(CountRow(row["name"], find(row["name"]), min(int(row["n"]), COUNT_MAX), number))
        elif rows is not None:
            close()
            rows = None
        above = text
    close()
    return [table for table in found if table.rows]


def _summed(rows: Iterable[CountRow]) -> tuple[CountRow, ...]:
    """Return one row a reason: threads are told apart in the text, and their exits drawn from one table."""
    by_name: dict[object, CountRow] = {}
    for row in rows:
        before = by_name.get(row.reason or row.name)
        by_name[row.reason or row.name] = row if before is None else before._replace(n=before.n + row.n)
    return tuple(by_name.values())


def _read_kvm_stat(path: Path, lines: Sequence[tuple[int, str]]) -> Counts:
    events: dict[str, tuple[int, int, float]] = {}  # by name: line, count, a second of late
    reasons: list[CountRow] = []
    for number, text in lines:
        row = _KVM_STAT_ROW.match(text)
        if row is None:
            continue
        cells = row["rest"].split()
        if not cells[0].isdigit():
            continue
        n = min(int(cells[0]), COUNT_MAX)
        if row["reason"] and row["name"] == "kvm_exit":
            if len(reasons) < ROWS_MAX:
                reasons.append(CountRow(row["reason"], find(row["reason"]), n, number))
        elif not row["reason"]:
            late = float(cells[-1]) if len(cells) == 3 and cells[-1].count(".") < 2 else 0.0
            events.setdefault(row["name"], (number, n, late))
    line, exits, late_hz = events.get("kvm_exit", (1, sum(row.n for row in reasons), 0.0))
    notes = []
    if not reasons:
        told = {name: CountRow(name, find(reason, "vmx"), events[name][1], events[name][0])
                for name, reason in EVENTS.items() if name in events}  # fmt: skip
        if "kvm_fast_mmio" in told:
            told.pop("kvm_mmio", None)  # both would count one exit twice
        reasons = [row for row in _summed(told.values()) if row.n]
        rest = exits - sum(row.n for row in reasons)
        if rest > 0:
            reasons.append(CountRow(REST, find(REST, "vmx"), rest, line))
        if reasons:
            notes.append(
                "assumed: an Intel host, and a reason of exit for each event (kvm_msr: MSR_WRITE, kvm_vcpu_wakeup: HLT"
                f" and so on); the other {max(rest, 0)} of {exits} exits taken for {REST}."
            )
    over_ns = round(exits / late_hz * 1e9) if late_hz else 0
    if over_ns:
        notes.append(f"assumed: {exits} exits at {late_hz:g}/s, its CurAvg/s, so counted for {over_ns / 1e9:.1f} s.")
    return Counts(str(path), "kvm_stat", line, tuple(reasons), over_ns, 0, tuple(notes))


def _read_tap(path: Path, lines: Sequence[tuple[int, str]]) -> Counts:
    found: list[tuple[int, int, list[int]]] = []
    line = 0
    for number, text in lines:
        row = _TAP_ROW.match(text)
        if _TAP_HEAD.match(text):
            if found:
                break  # the next print; each begins anew
            line = number
        elif row and line and len(found) < ROWS_MAX:
            found.append((number, int(row["number"]), [int(cell) for cell in row["cells"].split()]))
    isas: tuple[Isa, ...] = ("vmx", "svm")
    isa = max(isas, key=lambda one: sum(find_number(one, reason) is not None for _, reason, _ in found))
    rows = []
    for number, reason, (n, sum_us, min_us, _, max_us) in found:
        known = canonical_number(isa, reason) if find_number(isa, reason) else None
        if n:
            # Whole microseconds: the sum is right in the mean, the ends may be off by one.
            ends = (min_us * 1_000, (max_us + 1) * 1_000)
            mean_ns = min(max(sum_us * 1_000 / n, ends[0]), ends[1])
            rows.append(CountRow(str(reason), known, min(n, COUNT_MAX), number, mean_ns, *ends))
    vendor = "Intel" if isa == "vmx" else "AMD"
    notes = (f"The reasons are numbers, taken for those of {vendor}.",) if rows else ()
    return Counts(str(path), "SystemTap", line, tuple(rows), 0, 0, notes)
