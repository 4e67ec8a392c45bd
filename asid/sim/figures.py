"""What a simulated machine came to in numbers alone: for runs of which nobody wants each record.

A record is told as sums and samples. Both of a leave that was played before are known without its records, see
`asid.sim.seen`, so the figures of a billion exits take no more room than those of a thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from asid.core.events import Mode
from asid.core.record import bucket_of

if TYPE_CHECKING:
    from asid.sim.notes import Noted

Key = tuple[str, ...]

GUEST = Mode.GUEST.name
OFFLINE = Mode.OFFLINE.name


class Told(NamedTuple):
    """What some records say. sums: numbers that add up; samples: (what of, nanoseconds), in order."""

    sums: Counter[Key]
    samples: list[tuple[Key, int]]


class Teller:
    """Tells records of one core, one after another. Time in guest is not told: it is what the other modes leave.

    begins: the mode that everybody is in before the first of them.
    """

    def __init__(self, core: int, begins: Mode = Mode.OFFLINE) -> None:
        self._core = core
        self._begins = begins.name
        self._modes: dict[int, tuple[str, int]] = {}  # by hyperthread: the mode that it is in, and since when

    def tell(self, notes: Iterable[Noted]) -> Told:
        sums: Counter[Key] = Counter()
        samples: list[tuple[Key, int]] = []
        for note in notes:
            kind, data = note.kind, note.data
            if kind == "ht.mode":
                self._mode(note, data["new"], sums)
            elif kind == "death":
                self._mode(note, OFFLINE, sums)
            elif kind == "exit":
                self._exit(data, sums, samples)
                continue
            elif kind in ("leave", "gate.wait", "held"):
                ns = data["held_ns" if kind == "held" else "wait_ns"]
                samples.append(((kind, data["kind"], data["reason"]) if kind == "leave" else (kind,), ns))
            elif kind == "flush":
                sums["flush_ns",] += data["cost_ns"]
            sums["records", kind] += 1
        return Told(sums, samples)

    def end(self, end_ns: int) -> Told:
        """Tell for how long everybody has been in its last mode, at the end of the run."""
        sums: Counter[Key] = Counter()
        for ht, (mode, since_ns) in self._modes.items():
            if mode != GUEST:
                sums["mode_ns", f"c{self._core}h{ht}", mode] += end_ns - since_ns
        return Told(sums, [])

    def _mode(self, note: Noted, new: str, sums: Counter[Key]) -> None:
        old, since_ns = self._modes.get(note.ht, (self._begins, 0))
        if old != GUEST:
            sums["mode_ns", f"c{self._core}h{note.ht}", old] += note.ts - since_ns
        self._modes[note.ht] = new, note.ts

    def _exit(self, data: Mapping[str, Any], sums: Counter[Key], samples: list[tuple[Key, int]]) -> None:
        key = "exit", data["reason"], data["isa"], "full" if data["full"] else "fast", data.get("halt", "")
        if data["full"]:
            samples.append((key, data["sum_ns"]))
            return
        sums[key] += data["n"]
        sums["ns", *key] += data["sum_ns"]


@dataclass(slots=True)
class Figures:
    """Sums; and of what has samples, how many by bucket (`asid.core.record.bucket_of`) and their sum in ns."""

    sums: Counter[Key] = field(default_factory=Counter)
    hists: dict[Key, Counter[int]] = field(default_factory=dict)

    def add(self, told: Told) -> None:
        self.sums.update(told.sums)
        for key, ns in told.samples:
            self.sample(key, Counter((bucket_of(ns),)), ns)

    def sample(self, key: Key, hist: Mapping[int, int], sum_ns: int) -> None:
        """Add samples that were counted elsewhere."""
        self.sums["ns", *key] += sum_ns
        self.hists.setdefault(key, Counter()).update(hist)

    def merge(self, other: Figures) -> None:
        self.sums.update(other.sums)
        for key, hist in other.hists.items():
            self.hists.setdefault(key, Counter()).update(hist)

    def number(self, *of: str) -> int:
        """Return how many there are of what begins with these words: of exits, leaves or waits."""
        wide = len(of)
        fast = sum(n for key, n in self.sums.items() if key[:wide] == of)
        return fast + sum(hist.total() for key, hist in self.hists.items() if key[:wide] == of)

    @property
    def exits(self) -> int:
        return self.number("exit")

    @property
    def leaves(self) -> int:
        return self.number("leave")

    @property
    def full_exits(self) -> int:
        return sum(hist.total() for key, hist in self.hists.items() if key[0] == "exit")
