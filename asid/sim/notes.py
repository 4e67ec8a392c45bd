"""The records of a simulated core, by the process that would have written each."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple


class Noted(NamedTuple):
    """A record that has no number yet. key: unique in the run; cause: the key of another, or 0."""

    ts: int
    key: int
    kind: str
    core: int
    ht: int
    round: int
    cause: int
    data: dict[str, Any]


CORE_SHIFT = 44  # keys of one core
_KEY_MASK = (1 << CORE_SHIFT) - 1


class Notebook:
    """Where one process of a core notes down; all of a core write into one list."""

    def __init__(self, into: list[Noted], keys: count[int], core: int, ht: int, now_ns: Callable[[], int]) -> None:
        self._into = into
        self._keys = keys
        self._core = core
        self._ht = ht
        self._now_ns = now_ns
        self.last = 0

    def note(
        self, kind: str, data: dict[str, Any], round_: int = 0, cause: int = 0, *, ht: int | None = None, ts: int = 0
    ) -> int:
        self.last = next(self._keys)
        whose = self._ht if ht is None else ht
        self._into.append(Noted(ts or self._now_ns(), self.last, kind, self._core, whose, round_, cause, data))
        return self.last

    def show(self, data: dict[str, Any], round_: int) -> None:
        """Nobody watches."""


class Numbers:
    """The number that the record of each key has got; 0 for none. Eight bytes a record."""

    def __init__(self, cores: int) -> None:
        self._of_core = [array("Q") for _ in range(cores)]

    def __setitem__(self, key: int, seq: int) -> None:
        row, at = self._of_core[(key >> CORE_SHIFT) - 1], key & _KEY_MASK
        if at >= len(row):
            row.extend([0] * (at + 1 - len(row)))
        row[at] = seq

    def __getitem__(self, key: int) -> int:
        if not key:
            return 0
        row, at = self._of_core[(key >> CORE_SHIFT) - 1], key & _KEY_MASK
        return row[at] if at < len(row) else 0
