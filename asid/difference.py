"""Where two runs that should be the same part: the first record that differs, and what came before it in both."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, Final, NamedTuple

CONTEXT: Final = 3  # records shown before the first that differs

Row = Mapping[str, Any]  # a record, see `asid.core.record.as_map`


class Difference(NamedTuple):
    """before: the last records that are the same, oldest first. one, other: what comes then; None at the end of one."""

    before: tuple[Row, ...]
    one: Row | None
    other: Row | None


def first_difference(one: Iterable[Row], other: Iterable[Row]) -> Difference | None:
    """Return where two streams of records part, None where they do not. Reads both only that far."""
    before: deque[Row] = deque(maxlen=CONTEXT)
    for a, b in zip_longest(one, other):
        if a != b:
            return Difference(tuple(before), a, b)
        before.append(a)
    return None
