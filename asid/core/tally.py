"""What engines note down: where records go, and a tally of fast exits that becomes one record a reason."""

from __future__ import annotations

from typing import Any, Protocol

from asid.core.record import bucket_of


class Notes(Protocol):
    """Where the records of one process go. `last` is the key of the last one, to be given as a cause."""

    last: int

    def note(
        self, kind: str, data: dict[str, Any], round_: int = 0, cause: int = 0, *, ht: int | None = None, ts: int = 0
    ) -> int:
        """Note a record and return its key. ts: nanoseconds, 0 for now."""
        ...

    def show(self, data: dict[str, Any], round_: int) -> None:
        """Show a change of mode to readers of telemetry; it is no record."""
        ...


class Tally:
    """Counts of fast exits by reason, until they are noted."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], list[Any]] = {}

    def add(self, reason: str, isa: str, n: int, sum_ns: int, halt: str = "") -> None:
        """Add n exits that took sum_ns together; a batch is entered at its mean. halt: as in `exit_data`."""
        each = sum_ns // n
        row = self._rows.get((reason, isa, halt))
        if row is None:
            row = self._rows[reason, isa, halt] = [0, 0, each, each, {}]
        row[0] += n
        row[1] += sum_ns
        row[2] = min(row[2], each)
        row[3] = max(row[3], each)
        bucket = bucket_of(each)
        row[4][bucket] = row[4].get(bucket, 0) + n

    def add_all(
        self, reason: str, isa: str, sum_ns: int, min_ns: int, max_ns: int, hist: dict[int, int], halt: str = ""
    ) -> None:
        """Add exits of one reason that were counted elsewhere. hist: number by bucket."""
        row = self._rows.setdefault((reason, isa, halt), [0, 0, min_ns, max_ns, {}])
        row[0] += sum(hist.values())
        row[1] += sum_ns
        row[2] = min(row[2], min_ns)
        row[3] = max(row[3], max_ns)
        for bucket, n in hist.items():
            row[4][bucket] = row[4].get(bucket, 0) + n

    def note(self, notebook: Notes, round_: int) -> None:
        """Note a record a reason, by name, and begin anew."""
        if not self._rows:
            return
        for (reason, isa, halt), (n, total, low, high, hist) in sorted(self._rows.items()):
            data = exit_data(reason, isa, False, n, total, low, high, sorted(hist.items()), halt)
            notebook.note("exit", data, round_)
        self._rows.clear()


def exit_data(
    reason: str, isa: str, full: bool, n: int, sum_ns: int, min_ns: int, max_ns: int, hist: list[tuple[int, int]],
    halt: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return the data of an exit record. halt: slept or polled, empty for an exit that is no halt."""
    data = {
        "reason": reason,
        "isa": isa,
        "full": full,
        "n": n,
        "sum_ns": sum_ns,
        "min_ns": min_ns,
        "max_ns": max_ns,
        "hist": hist,
    }
    if halt:
        data["halt"] = halt
    return data
