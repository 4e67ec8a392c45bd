"""`asid stat`: exits per reason, core, hyperthread or VM, in the shape of `perf kvm stat`.

`StatFold` turns records into rows and totals as they come; its JSON form is what `stats.get` answers and what
stats.json holds. `stat_lines` draws either, and knows nothing of where it came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from asid.core.record import BUCKETS_PER_OCTAVE, Record, percentile
from asid.report.exposure import ExposureFold
from asid.report.sums import Place, Sums
from asid.units import format_ns

BYS = ("reason", "core", "ht", "vm")
_HEADINGS = {"reason": "VM-EXIT", "core": "CORE", "ht": "HYPERTHREAD", "vm": "VM"}


RowKey = tuple[int, int, int, str, str]  # core, ht, vm, reason, isa
_ROW_NAME = re.compile(r"c(\d{1,3})h(\d)\.vm(\d{1,2})\.(.+)\.(vmx|svm)", re.ASCII)


def row_name(row: Mapping[str, Any]) -> str:
    """Return what a row is called: `c0h1.vm2.EPT_VIOLATION.vmx`. It stays so while other rows come."""
    return f"c{row['core']}h{row['ht']}.vm{row['vm']}.{row['reason']}.{row['isa']}"


def row_key(name: str) -> RowKey:
    """Return where the row of that name has its place. Raise ValueError for no such name."""
    found = _ROW_NAME.fullmatch(name)
    if found is None:
        raise ValueError(name)
    core, ht, vm, reason, isa = found.groups()
    return int(core), int(ht), int(vm), reason, isa


class _Own:
    """What the records of one hyperthread come to, but for its exits; of a coordinator, its deaths."""

    __slots__ = ("avoidable", "counts", "gate_waits", "leaves")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.avoidable = 0
        self.gate_waits, self.leaves = Sums(), Sums()


class StatFold:
    """Sums over the records of a run, in the order of the journal. places: (core, ht) pairs, None for all there are."""

    def __init__(self) -> None:
        self._rows: dict[RowKey, Sums] = {}
        self._vms: dict[Place, int] = {}  # the VM that a hyperthread runs, as its modes tell
        self._own: dict[Place, _Own] = {}
        self._exposure = ExposureFold()

    def add(self, record: Record) -> None:
        """Take one record."""
        kind, data = record.type, record.data
        place = (record.core, record.ht)
        own = self._own.get(place)
        if own is None:
            own = self._own[place] = _Own()
        own.counts[kind] = own.counts.get(kind, 0) + 1
        if kind == "exit":
            key = (*place, self._vms.get(place, 0), data["reason"], data["isa"])
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = Sums()
            n = data["n"]
            row.add(n, n if data["full"] else 0, data["sum_ns"], data["min_ns"], data["max_ns"], data["hist"])
        elif kind == "ht.mode":
            if data["vm"]:
                self._vms[place] = data["vm"]
            self._exposure.add(record)
        elif kind == "gate.wait":
            own.gate_waits.add_one(data["wait_ns"])
        elif kind == "leave":
            own.leaves.add_one(data["wait_ns"])
        elif kind == "kick.seen":
            own.avoidable += data["avoidable"]
        elif kind == "intr":
            own.counts[data["what"]] = own.counts.get(data["what"], 0) + 1
        elif kind == "death":
            self._exposure.add(record)

    def rows(self) -> list[dict[str, Any]]:
        """Return a map per core, hyperthread, VM and reason: n, full, sum_ns, min_ns, max_ns, hist."""
        return [self._row(key) for key in sorted(self._rows)]

    def _row(self, key: RowKey) -> dict[str, Any]:
        core, ht, vm, reason, isa = key
        return {"core": core, "ht": ht, "vm": vm, "reason": reason, "isa": isa, **self._rows[key].as_map()}

    def totals(self, places: Container[Place] | None = None) -> dict[str, Any]:
        """Return what the last line of the screen says, and a little more."""
        exits = self.distribution("exit", places=places)
        owns = self._owns(places)

        def count(kind: str) -> int:
            return sum(own.counts.get(kind, 0) for own in owns)

        return {
            "exits": exits.n,
            "full": exits.full,
            "sum_ns": exits.sum_ns,
            "kicks": count("gate.kick"),
            "kicks_seen": count("kick.seen"),
            "avoidable": sum(own.avoidable for own in owns),
            "admits": count("gate.admit"),
            "fences": count("gate.fence"),
            "deaths": count("death"),
            "nmis": count("nmi"),
            "mces": count("mce"),
            "gate_waits": self.distribution("gate.wait", places=places).as_waits(),
            "leaves": self.distribution("leave", places=places).as_waits(),
            "exposure": self.distribution("exposure", places=places).as_waits(),
        }

    def as_map(self) -> dict[str, Any]:
        """Return {"rows": [...], "totals": {...}}, as in stats.json."""
        return {"rows": self.rows(), "totals": self.totals()}

    def page(self, places: Container[Place], after: str, limit: int) -> dict[str, Any]:
        """Return `limit` rows after the one of that name, all the totals, and the name to go on after: the answer of
        stats.get. Raise ValueError for what is no name of a row."""
        begin = row_key(after) if after else ()
        keys = sorted(key for key in self._rows if key > begin and key[:2] in places)
        rows = [self._row(key) for key in keys[:limit]]
        return {"rows": rows, "totals": self.totals(places), "next": row_name(rows[-1]) if len(keys) > limit else ""}

    def distribution(self, what: str, reason: str = "", places: Container[Place] | None = None) -> Sums:
        """Return one distribution: `exit` (of one reason, or of all), `leave`, `gate.wait`, or `exposure` (of those
        that were in guest)."""
        if what == "exposure":
            return self._exposure.sums(places)
        if what == "exit":
            return Sums().add_all(
                row
                for (core, ht, _, name, _), row in self._rows.items()
                if reason in ("", name) and (places is None or (core, ht) in places)
            )
        return Sums().add_all(own.leaves if what == "leave" else own.gate_waits for own in self._owns(places))

    def _owns(self, places: Container[Place] | None) -> list[_Own]:
        return [own for place, own in self._own.items() if places is None or place in places]


def fold(records: Iterable[Record]) -> StatFold:
    """Return the sums over all records."""
    out = StatFold()
    for record in records:
        out.add(record)
    return out


def group_rows(rows: Iterable[Mapping[str, Any]], by: str, vm_names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return one row a reason, core, hyperthread or VM, with its `key`, largest first."""
    assert by in BYS
    groups: dict[str, Sums] = {}
    for row in rows:
        group = groups.setdefault(_key(row, by, vm_names), Sums())
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
