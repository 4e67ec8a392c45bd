"""The exits of a source as arrays, many at a time: the same ones, in the same order, as `next` would return.

For engines that play virtual time. Needs numpy, which is imported here and nowhere else in this package.

A draw goes through a logarithm and is then rounded. The logarithm of an array may differ from that of a single number
in the last bit, so what comes to lie at an edge of rounding is drawn again as a single number: not one exit differs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from asid.guest.base import DURATION_NS_MAX, Exit, Paced, Source
from asid.guest.mix import MixSource
from asid.guest.spread import FLAT, Constant, Exponential, Spread, TruncatedExponential

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EDGE: Final = 1e-6  # nanoseconds from an edge of rounding, and
EDGE_SHARE: Final = 1e-12  # of the longest duration: some thousand times what two logarithms differ by
AT_ONCE: Final = 1 << 13  # exits that are drawn in one go: what they need stays in a cache
FEW: Final = 6  # edges that are compared one by one
CERTAIN_NS: Final = 1e11  # where one is above it all are drawn again


class Block(NamedTuple):
    """n exits, one after another. kind: which of the source's `kinds` each is; durations are nanoseconds, int64."""

    kind: NDArray[np.int16]
    after: Ints
    service: Ints
    wake: Ints

    def __len__(self) -> int:
        return len(self.kind)


class Arrays(Protocol):
    """A source that gives blocks. kinds: an exit of each kind, without its durations."""

    @property
    def kinds(self) -> list[Exit]: ...

    def block(self, n: int) -> Block:
        """Return the next n exits; fewer than n when no more will come."""
        ...


def arrays_of(source: Source) -> Arrays:
    """Return the exits of a source from here on as arrays. The source itself is not to be asked any more."""
    if isinstance(source, Paced):
        return _PacedArrays(source)
    return MixArrays(source) if isinstance(source, MixSource) else _Collected(source)


class MixArrays:
    """A mix, drawn with the numbers that its own random numbers would come to."""

    def __init__(self, source: MixSource) -> None:
        self._rows = source.rows
        self.kinds = [each for row in self._rows for each in (row.less, row.more)]
        self._cumulative = np.array(source.cumulative)
        self._mean_after_ns = source.mean_after_ns
        self._timeless = source.timeless
        version, state, _ = source.random.getstate()
        assert version == 3, "the Mersenne twister"
        twister = np.random.MT19937()
        twister.state = {
            "bit_generator": "MT19937", "state": {"key": np.array(state[:-1], np.uint32), "pos": int(state[-1])}
        }  # fmt: skip
        self._random = np.random.Generator(twister)
        self._draws = np.empty((AT_ONCE, 4))
        self._shares = np.array([row.share for row in self._rows])
        fixed = [each.entry.service.ns if isinstance(each.entry.service, Constant) else -1 for each in self._rows]
        self._fixed = np.array(fixed, np.int64)  # service times, -1 for those that are drawn

    def block(self, n: int) -> Block:
        whole = Block(np.empty(n, np.int16), np.empty(n, np.int64), np.empty(n, np.int64), np.zeros(n, np.int64))
        for begin in range(0, n, AT_ONCE):
            part = slice(begin, min(begin + AT_ONCE, n))
            self._draw(part.stop - begin, whole.kind[part], whole.after[part], whole.service[part], whole.wake[part])
        return whole

    def _draw(self, n: int, kind: NDArray[np.int16], after: Ints, service: Ints, wake: Ints) -> None:
        """Draw the next n exits into the columns of a block; wake is 0."""
        draws = self._random.random(out=self._draws[:n])
        row = self._row_of(draws[:, 0] * self._cumulative[-1])
        np.add(2 * row, draws[:, 3] < self._shares[row], out=kind, casting="unsafe")
        if self._timeless:
            after[:] = service[:] = 0
            return
        after_draw, time_draw, mean_ns = draws[:, 1], draws[:, 2], self._mean_after_ns
        after[:] = _settled(
            np.log1p(-after_draw) * -mean_ns, after_draw, lambda u: MixSource.after_ns(u, mean_ns), edge=0.0
        )
        np.take(self._fixed, row, out=service)
        for number, each in enumerate(self._rows):
            if self._fixed[number] >= 0 and each.entry.wake is None:
                continue
            at = np.flatnonzero(row == number)
            if self._fixed[number] < 0:
                service[at] = drawn(each.entry.service, time_draw[at])
            if each.entry.wake is not None:
                wake[at] = drawn(each.entry.wake, time_draw[at])

    def _row_of(self, weight: Floats) -> Ints:
        """Return the row that each weight, counted from the first on, comes to lie in."""
        edges = self._cumulative[:-1]  # rounding may reach the end: it is the last row's
        if len(edges) > FEW:
            return edges.searchsorted(weight, side="right")
        row = np.zeros(len(weight), np.int64)
        for edge in edges:
            row += weight >= edge
        return row


class _PacedArrays:
    """Another source, every duration of it scaled."""

    def __init__(self, source: Paced) -> None:
        self._inner = arrays_of(source.inner)
        self.kinds = self._inner.kinds
        self._mode, self._scale = source.mode, source.scale

    def block(self, n: int) -> Block:
        kind, *times = self._inner.block(n)
        if self._mode == "scaled":
            times = [np.minimum(np.rint(ns * self._scale), DURATION_NS_MAX).astype(np.int64) for ns in times]
        elif self._mode == "max":
            times = [np.zeros_like(ns) for ns in times]
        return Block(kind, *times)


class _Collected:
    """Any other source, asked one exit after another."""

    def __init__(self, source: Source) -> None:
        self.kinds: list[Exit] = []
        self._exits = iter(source.next, None)
        self._numbers: dict[Exit, int] = {}

    def block(self, n: int) -> Block:
        found = [(self._kind(each), each.after_ns, each.service_ns, each.wake_ns) for each in islice(self._exits, n)]
        columns = np.array(found, np.int64).reshape(len(found), 4).T
        return Block(columns[0].astype(np.int16), *(np.ascontiguousarray(column) for column in columns[1:]))

    def _kind(self, event: Exit) -> int:
        plain = event._replace(after_ns=0, service_ns=0, wake_ns=0)
        number = self._numbers.get(plain)
        if number is None:
            number = self._numbers[plain] = len(self.kinds)
            self.kinds.append(plain)
        return number


def drawn(spread: Spread, uniform: Floats) -> Ints:
    """Return `spread.draw` of each number."""
    if isinstance(spread, Constant):
        return np.full(len(uniform), spread.ns, np.int64)
    if isinstance(spread, Exponential):
        ns = spread.min_ns - np.log1p(-uniform) * (spread.mean_ns - spread.min_ns)
        return _settled(ns, uniform, spread.draw, edge=0.5)
    assert isinstance(spread, TruncatedExponential), spread
    share = _inverse(uniform, spread.rate) if spread.rate >= 0 else 1.0 - _inverse(1.0 - uniform, -spread.rate)
    return _settled(spread.min_ns + share * (spread.max_ns - spread.min_ns), uniform, spread.draw, edge=0.5)


def _inverse(uniform: Floats, rate: float) -> Floats:
    """As in `asid.guest.spread`."""
    if rate < FLAT:
        return uniform
    inside = uniform * -np.expm1(-rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(inside >= 1.0, 1.0, np.minimum(1.0, -np.log1p(-inside) / rate))
    return found


def _settled(ns: Floats, uniform: Floats, draw: Callable[[float], int], edge: float) -> Ints:
    """Round ns, to the nearest (edge 0.5) or down (edge 0); what lies at an edge, or is large, is drawn again."""
    if edge:
        ns = ns + edge
    most = float(ns.max(initial=0.0))
    if most < CERTAIN_NS:
        slack = max(EDGE, most * EDGE_SHARE)
        settled: Any = ns.astype(np.int64)
        beyond = ns - settled
        again = np.flatnonzero((beyond < slack) | (beyond > 1.0 - slack))
    else:
        again = np.arange(len(ns))
        settled = np.zeros(len(ns), np.int64)
    for at in again.tolist():
        settled[at] = draw(float(uniform[at]))
    return np.asarray(settled, np.int64)
