"""`asid stat`: exits per reason, core, hyperthread or VM, in the shape of `perf kvm stat`.

`StatFold` turns records into rows and totals as they come; its JSON form is what `stats.get` answers and what
stats.json holds. `stat_lines` draws either, and knows nothing of where it came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asid.core.record import BUCKETS_PER_OCTAVE, Record, add_hist, bucket_of, hist_pairs, percentile
from asid.report.exposure import ExposureFold
from asid.units import format_ns

BYS = ("reason", "core", "ht", "vm")
_HEADINGS = {"reason": "VM-EXIT", "core": "CORE", "ht": "HYPERTHREAD", "vm": "VM"}


class _Row:
    """Exits of one kind. min_ns is -1 while there is none."""

    __slots__ = ("full", "hist", "max_ns", "min_ns", "n", "sum_ns")

    def __init__(self) -> None:
        self.n = self.full = self.sum_ns = self.max_ns = 0
        self.min_ns = -1
        self.hist: dict[int, int] = {}

    def add(self, n: int, full: int, sum_ns: int, min_ns: int, max_ns: int, hist: Iterable[Sequence[int]]) -> None:
        self.n += n
        self.full += full
        self.sum_ns += sum_ns
        self.min_ns = min_ns if self.min_ns < 0 else min(self.min_ns, min_ns)
        self.max_ns = max(self.max_ns, max_ns)
        add_hist(self.hist, hist)

    def as_map(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "full": self.full,
            "sum_ns": self.sum_ns,
            "min_ns": max(0, self.min_ns),
            "max_ns": self.max_ns,
            "hist": hist_pairs(self.hist),
        }


class StatFold:
    """Sums over the records of a run, in the order of the journal."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int, int, str, str], _Row] = {}
        self._vms: dict[tuple[int, int], int] = {}  # the VM that a hyperthread runs, as its modes tell
        self._counts: dict[str, int] = {}
        self._avoidable = 0
        self._gate_waits, self._leaves = _Row(), _Row()
        self._exposure = ExposureFold()

    def add(self, record: Record) -> None:
        """Take one record."""
        kind, data = record.type, record.data
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if kind == "exit":
            place = (record.core, record.ht)
            key = (*place, self._vms.get(place, 0), data["reason"], data["isa"])
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = _Row()
            n = data["n"]
            row.add(n, n if data["full"] else 0, data["sum_ns"], data["min_ns"], data["max_ns"], data["hist"])
        elif kind == "ht.mode":
            if data["vm"]:
                self._vms[record.core, record.ht] = data["vm"]
            self._exposure.add(record)
        elif kind == "gate.wait" or kind == "leave":
            wait_ns = data["wait_ns"]
            waits = self._leaves if kind == "leave" else self._gate_waits
            waits.add(1, 0, wait_ns, wait_ns, wait_ns, ((bucket_of(wait_ns), 1),))
        elif kind == "kick.seen":
            self._avoidable += data["avoidable"]
        elif kind == "intr":
            self._counts[data["what"]] = self._counts.get(data["what"], 0) + 1
        elif kind == "death":
            self._exposure.add(record)

    def rows(self) -> list[dict[str, Any]]:
        """Return a map per core, hyperthread, VM and reason: n, full, sum_ns, min_ns, max_ns, hist."""
        return [
            {"core": core, "ht": ht, "vm": vm, "reason": reason, "isa": isa, **row.as_map()}
            for (core, ht, vm, reason, isa), row in sorted(self._rows.items())
        ]

    def totals(self) -> dict[str, Any]:
        """Return what the last line of the screen says, and a little more."""
        counts = self._counts
        return {
            "exits": sum(row.n for row in self._rows.values()),
            "full": sum(row.full for row in self._rows.values()),
            "sum_ns": sum(row.sum_ns for row in self._rows.values()),
            "kicks": counts.get("gate.kick", 0),
            "kicks_seen": counts.get("kick.seen", 0),
            "avoidable": self._avoidable,
            "admits": counts.get("gate.admit", 0),
            "fences": counts.get("gate.fence", 0),
            "deaths": counts.get("death", 0),
            "nmis": counts.get("nmi", 0),
            "mces": counts.get("mce", 0),
            "gate_waits": _waits(self._gate_waits),
            "leaves": _waits(self._leaves),
            "exposure": self._exposure.as_map(),
        }

    def as_map(self) -> dict[str, Any]:
        """Return {"rows": [...], "totals": {...}}: stats.json, and the answer of stats.get."""
        return {"rows": self.rows(), "totals": self.totals()}

    def histogram(self, what: str, reason: str = "", places: frozenset[tuple[int, int]] | None = None) -> _Row:
        """Return one distribution, with n, min_ns, max_ns and hist: `exit` (of one reason, of some places), `leave`,
        `gate.wait` or `exposure` (of the whole machine)."""
        out = _Row()
        if what == "exit":
            for (core, ht, _, name, _), row in self._rows.items():
                if reason in ("", name) and (places is None or (core, ht) in places):
                    out.add(row.n, row.full, row.sum_ns, row.min_ns, row.max_ns, row.hist.items())
        elif what == "exposure":
            fold = self._exposure
            if fold.count:
                out.add(fold.count, 0, 0, 0, fold.max_ns, fold.hist.items())
        else:
            row = self._leaves if what == "leave" else self._gate_waits
            if row.n:
                out.add(row.n, 0, row.sum_ns, row.min_ns, row.max_ns, row.hist.items())
        return out


def fold(records: Iterable[Record]) -> StatFold:
    """Return the sums over all records."""
    out = StatFold()
    for record in records:
        out.add(record)
    return out


def group_rows(rows: Iterable[Mapping[str, Any]], by: str, vm_names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return one row a reason, core, hyperthread or VM, with its `key`, largest first."""
    assert by in BYS
    groups: dict[str, _Row] = {}
    for row in rows:
        group = groups.setdefault(_key(row, by, vm_names), _Row())
        group.add(row["n"], row["full"], row["sum_ns"], row["min_ns"], row["max_ns"], row["hist"])
    named = [{"key": key, **group.as_map()} for key, group in groups.items()]
    return sorted(named, key=lambda row: (-row["n"], row["key"]))


def stat_lines(document: Mapping[str, Any], *, by: str = "reason", vm_names: Sequence[str] = ()) -> list[str]:
    """Return the screen: a heading, a line a row, the totals. document: rows and totals, as in stats.json."""
    rows = group_rows(document["rows"], by, vm_names)
    all_n = sum(row["n"] for row in rows)
    all_ns = sum(row["sum_ns"] for row in rows)
    heading = (
        _HEADINGS[by],
        "Samples",
        "Samples%",
        "Time%",
        "Full%",
        "Min us",
        "p50 us",
        "p99 us",
        "Max us",
        "Mean us",
    )
    widths = [21, 9, 10, 8, 8, 10, 10, 10, 10, 10]
    table = [heading, *(_cells(row, all_n, all_ns) for row in rows)]
    for column in range(1, len(widths)):
        widths[column] = max(widths[column], *(len(line[column]) + 2 for line in table))
    widths[0] = max(widths[0], *(len(line[0]) for line in table))
    out = []
    for at, line in enumerate(table):
        text = "".join(cell.rjust(width) for cell, width in zip(line, widths, strict=False))
        out.append(f"{text} {line[-1]}" if at and len(line) > len(widths) else text)
    if not rows:
        out.append("no exits yet")
    out.append(_total_line(document["totals"]))
    return out


def _cells(row: Mapping[str, Any], all_n: int, all_ns: int) -> tuple[str, ...]:
    n = row["n"]
    low, high = row["min_ns"], row["max_ns"]
    p50, p99 = (min(high, max(low, percentile(row["hist"], q))) for q in (50, 99))
    cells = (
        row["key"],
        f"{n:,}",
        f"{100 * n / all_n:.2f}%" if all_n else "-",
        f"{100 * row['sum_ns'] / all_ns:.1f}%" if all_ns else "-",
        f"{100 * row['full'] / n:.2f}%" if n else "-",
        *(f"{ns / 1000:,.2f}" for ns in (low, p50, p99, high)),
        f"{row['sum_ns'] / n / 1000:,.2f}" if n else "-",
    )
    error = relative_error(row["hist"])
    return cells if error is None else (*cells, f"(+- {100 * error:.1f}%)")


def relative_error(hist: Iterable[Sequence[int]]) -> float | None:
    """Return the standard error of the mean over the mean, from the middles of the buckets; None below two samples."""
    pairs = [(2.0 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE), count) for bucket, count in hist]
    n = sum(count for _, count in pairs)
    if n < 2:
        return None
    mean = sum(middle * count for middle, count in pairs) / n
    variance = sum((middle - mean) ** 2 * count for middle, count in pairs) / (n - 1)
    return float(math.sqrt(variance / n) / mean)


def _total_line(totals: Mapping[str, Any]) -> str:
    exits, full = totals.get("exits", 0), totals.get("full", 0)
    share = f"{100 * full / exits:.2f}%" if exits else "-"
    exposure = totals.get("exposure", {})
    most = f", max {format_ns(exposure['max_ns'])}" if exposure.get("count") else ""
    return (
        f"Total {exits:,} exits, full {full:,} ({share}),"
        f" kicks {totals.get('kicks', 0):,} (avoidable {totals.get('avoidable', 0):,}),"
        f" gate waits {totals.get('gate_waits', {}).get('count', 0):,},"
        f" exposure {exposure.get('count', 0):,} x{most}"
    )


def _key(row: Mapping[str, Any], by: str, vm_names: Sequence[str]) -> str:
    if by == "reason":
        return str(row["reason"])
    if by == "core":
        return f"c{row['core']}"
    if by == "ht":
        return f"c{row['core']}h{row['ht']}"
    vm = int(row["vm"])
    if 1 <= vm <= len(vm_names) and vm_names[vm - 1]:
        return vm_names[vm - 1]
    return f"vm{vm}" if vm else "(none)"


def _waits(row: _Row) -> dict[str, int]:
    pairs = list(row.hist.items())
    return {
        "count": row.n,
        "p50_ns": min(row.max_ns, percentile(pairs, 50)),
        "p99_ns": min(row.max_ns, percentile(pairs, 99)),
        "max_ns": row.max_ns,
    }
