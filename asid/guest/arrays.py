"""The exits of a source as arrays, many at a time: the same ones, in the same order, as `next` would return.

For engines that play virtual time. Needs numpy, which is imported here and nowhere else in this package.

A draw goes through a logarithm and is then rounded. The logarithm of an array may differ from that of a single number
in the last bit, so what comes to lie at an edge of rounding is drawn again as a single number: not one exit differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from random import Random
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
    """n exits, one after another. kind: which of the source's `kinds` each is; durations are nanoseconds, int64.

    It holds until the next one is asked for, which may be drawn in its place.
    """

    kind: NDArray[np.int16]
    after: Ints
    service: Ints
    wake: Ints

    def __len__(self) -> int:
        return len(self.kind)

    def part(self, first: int, stop: int) -> Block:
        """Return the exits first ... stop - 1, where they are."""
        span = slice(first, stop)
        return Block(self.kind[span], self.after[span], self.service[span], self.wake[span])

    def last(self) -> Block:
        """Return the last exit, which holds on."""
        kind, after, service, wake = self.part(len(self) - 1, len(self))
        return Block(kind.copy(), after.copy(), service.copy(), wake.copy())

    def put(self, kept: Block) -> None:
        """Have some exits in place of the first ones."""
        n = len(kept)
        self.kind[:n], self.after[:n], self.service[:n] = kept[:3]
        if self.wake.flags.writeable:
            self.wake[:n] = kept.wake

    def behind(self, kept: Block | None) -> Block:
        """Return both, one behind the other."""
        if kept is None:
            return self
        pairs = zip(kept[1:], self[1:], strict=True)
        return Block(np.concatenate((kept.kind, self.kind)), *(np.concatenate(pair) for pair in pairs))


def _columns(n: int, *, sleeps: bool) -> Block:
    """Return room for n exits; no wake can be written where none sleeps."""
    wake = np.zeros(n, np.int64) if sleeps else np.broadcast_to(np.int64(0), (n,))
    return Block(np.empty(n, np.int16), np.empty(n, np.int64), np.empty(n, np.int64), wake)


class Arrays(Protocol):
    """A source that gives blocks. kinds: an exit of each kind, without its durations; fixed: the service time of each
    exit of a kind that does not sleep, -1 where they differ or it is not known. It may be shorter."""

    @property
    def kinds(self) -> list[Exit]: ...

    @property
    def fixed(self) -> Sequence[int]: ...

    def block(self, n: int, kept: Block | None = None) -> Block:
        """Return the next n exits behind those that are kept; fewer when no more will come."""
        ...


def arrays_of(source: Source) -> Arrays:
    """Return the exits of a source from here on as arrays. The source itself is not to be asked any more."""
    if isinstance(source, Paced):
        return _PacedArrays(source)
    return MixArrays(source) if isinstance(source, MixSource) else _Collected(source)


class MixArrays:
    """A mix, drawn with the numbers that its own random numbers would come to."""

    def __init__(self, source: MixSource) -> None:
        self._of = source.kinds
        self.kinds = [kind.exit for kind in self._of]
        self._edges = np.array([kind.until for kind in self._of[:-1]])
        self._total = source.total
        self._mean_after_ns = source.mean_after_ns
        self._timeless = source.timeless
        self._random = _continued(source.random)
        self._draws = np.empty((AT_ONCE, 2))
        self._times = None if source.times is None else _continued(source.times)
        self._time_draws = np.empty(AT_ONCE)
        fixed = [kind.service.ns if isinstance(kind.service, Constant) else -1 for kind in self._of]
        self._fixed = np.array(fixed, np.int64)  # service times, -1 for those that are drawn
        awake = [not source.timeless and kind.wake is None for kind in self._of]
        self.fixed = np.where(awake, self._fixed, -1).tolist()
        self._sleeps = not source.timeless and any(kind.wake is not None for kind in self._of)
        self._columns = _columns(0, sleeps=self._sleeps)

    def block(self, n: int, kept: Block | None = None) -> Block:
        first = 0 if kept is None else len(kept)
        stop = first + n
        if stop > len(self._columns):
            # Seldom: memory that is asked for anew costs as much as what is drawn into it.
            self._columns = _columns(stop, sleeps=self._sleeps)
        if kept is not None:
            self._columns.put(kept)
        for begin in range(first, stop, AT_ONCE):
            self._draw(*self._columns.part(begin, min(begin + AT_ONCE, stop)))
        return self._columns.part(0, stop)

    def _draw(self, kind: NDArray[np.int16], after: Ints, service: Ints, wake: Ints) -> None:
        """Draw the next exits into the columns of a block. wake: 0, but for exits that are drawn one."""
        n = len(kind)
        draws = self._random.random(out=self._draws[:n])
        self._kind_of(draws[:, 0] * self._total, kind)
        if self._timeless:
            after[:] = service[:] = 0
            return
        after_draw, mean_ns = draws[:, 1], self._mean_after_ns
        after[:] = _settled(
            np.log1p(-after_draw) * -mean_ns, after_draw, lambda u: MixSource.after_ns(u, mean_ns), edge=0.0
        )
        np.take(self._fixed, kind, out=service, mode="clip")  # none is out of range, and none need be looked for
        if self._sleeps:
            wake[:] = 0
        if self._times is None:
            return
        time_draw = self._times.random(out=self._time_draws[:n])
        for number, each in enumerate(self._of):
            if not each.is_drawn:
                continue
            at = np.flatnonzero(kind == number)
            if self._fixed[number] < 0:
                service[at] = drawn(each.service, time_draw[at])
            if each.wake is not None:
                wake[at] = drawn(each.wake, time_draw[at])

    def _kind_of(self, weight: Floats, kind: NDArray[np.int16]) -> None:
        """Write the kind that each weight, counted from the first on, comes to lie in."""
        if len(self._edges) > FEW:
            kind[:] = self._edges.searchsorted(weight, side="right")
            return
        kind[:] = 0
        for edge in self._edges:
            kind += weight >= edge


def _continued(random: Random) -> np.random.Generator:
    """Return what draws the numbers that would come next."""
    version, state, _ = random.getstate()
    assert version == 3, "the Mersenne twister"
    twister = np.random.MT19937()
    twister.state = {
        "bit_generator": "MT19937", "state": {"key": np.array(state[:-1], np.uint32), "pos": int(state[-1])}
    }  # fmt: skip
    return np.random.Generator(twister)


class _PacedArrays:
    """Another source, every duration of it scaled."""

    fixed: Sequence[int] = ()

    def __init__(self, source: Paced) -> None:
        self._inner = arrays_of(source.inner)
        self.kinds = self._inner.kinds
        self._mode, self._scale = source.mode, source.scale

    def block(self, n: int, kept: Block | None = None) -> Block:
        kind, *times = self._inner.block(n)
        if self._mode == "scaled":
            times = [np.minimum(np.rint(ns * self._scale), DURATION_NS_MAX).astype(np.int64) for ns in times]
        elif self._mode == "max":
            times = [np.zeros_like(ns) for ns in times]
        block = Block(kind, *times)
        return block.behind(kept)


class _Collected:
    """Any other source, asked one exit after another."""

    fixed: Sequence[int] = ()

    def __init__(self, source: Source) -> None:
        self.kinds: list[Exit] = []
        self._exits = iter(source.next, None)
        self._numbers: dict[Exit, int] = {}

    def block(self, n: int, kept: Block | None = None) -> Block:
        found = [(self._kind(each), each.after_ns, each.service_ns, each.wake_ns) for each in islice(self._exits, n)]
        columns = np.array(found, np.int64).reshape(len(found), 4).T
        block = Block(columns[0].astype(np.int16), *(np.ascontiguousarray(column) for column in columns[1:]))
        return block.behind(kept)

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
