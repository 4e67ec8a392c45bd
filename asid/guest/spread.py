"""Distributions of a duration that are fitted to what a table tells: minimum, mean, maximum.

A table gives three numbers and nothing about the shape between them. Of all distributions with a given support and
mean the one that assumes nothing else is the one of the largest entropy, so that is what is drawn:

    mean only              exponential                      support [0, inf)
    minimum and mean       exponential behind the minimum   support [min, inf)
    minimum, mean, maximum truncated exponential            support [min, max], mean exact
    one fixed duration     constant

The truncated exponential is solved once, when a table is loaded. What it does not have is the heavy tail of real exits:
a maximum seen once in a million samples is drawn hardly ever. Means, and so the load on the machine, are right.

Pure: a draw comes in as a number in [0, 1), a duration in nanoseconds goes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

from asid.guest.base import DURATION_NS_MAX

BISECTION_STEPS: Final = 120  # more than the bits of a float: further halving changes nothing
FLAT: Final = 1e-6  # below this rate the truncated exponential is the uniform distribution


class Spread(Protocol):
    """A distribution of durations."""

    @property
    def mean_ns(self) -> float: ...

    def draw(self, uniform: float) -> int:
        """Return the duration in nanoseconds at `uniform` in [0, 1); it grows with `uniform`."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same duration."""

    ns: int

    @property
    def mean_ns(self) -> float:
        return float(self.ns)

    def draw(self, uniform: float) -> int:
        return self.ns


@dataclass(frozen=True, slots=True)
class Exponential:
    """min + an exponential of mean `mean_ns` - `min_ns`."""

    min_ns: float
    mean_ns: float

    def draw(self, uniform: float) -> int:
        ns = self.min_ns - math.log1p(-uniform) * (self.mean_ns - self.min_ns)
        return min(round(ns), DURATION_NS_MAX)


@dataclass(frozen=True, slots=True)
class TruncatedExponential:
    """Density proportional to exp(-rate * x) for x in [0, 1], stretched to [min_ns, max_ns]. `rate` may be negative."""

    min_ns: float
    mean_ns: float
    max_ns: float
    rate: float

    def draw(self, uniform: float) -> int:
        share = _inverse(uniform, self.rate) if self.rate >= 0 else 1.0 - _inverse(1.0 - uniform, -self.rate)
        return round(self.min_ns + share * (self.max_ns - self.min_ns))


def fit(mean_ns: float, min_ns: float | None = None, max_ns: float | None = None) -> Spread:
    """Return the distribution of the largest entropy with this mean and, where given, this minimum and maximum.

    Raise ValueError unless 0 <= min <= mean <= max <= DURATION_NS_MAX.
    """
    low = 0.0 if min_ns is None else float(min_ns)
    high = None if max_ns is None else float(max_ns)
    if not 0.0 <= low <= mean_ns <= (DURATION_NS_MAX if high is None else high) <= DURATION_NS_MAX:
        raise ValueError(f"min {low:g} ns, mean {mean_ns:g} ns, max {max_ns if high is not None else 'none'}")
    if mean_ns in (low, high):
        return Constant(round(mean_ns))  # the mean of a support lies on its edge only when everything does
    if high is None:
        return Exponential(low, mean_ns)
    share = (mean_ns - low) / (high - low)
    if not 0.0 < share < 1.0:
        return Constant(round(mean_ns))  # nearer to an edge than a float can tell
    return TruncatedExponential(low, mean_ns, high, _solve_rate(share))


def _mean(rate: float) -> float:
    """Mean of the density exp(-rate x) on [0, 1], for rate > 0. 1/rate - 1/(e^rate - 1)."""
    if rate < 1e-3:
        return 0.5 - rate / 12.0  # series; the closed form cancels here
    return 1.0 / rate - (1.0 / math.expm1(rate) if rate < 700.0 else 0.0)


def _solve_rate(mean: float) -> float:
    """Return the rate whose mean is `mean` in (0, 1)."""
    assert 0.0 < mean < 1.0, mean
    if mean > 0.5:
        return -_solve_rate(1.0 - mean)  # mirror image
    if mean > 0.5 - FLAT / 12.0:
        return 0.0
    low, high = 0.0, max(2.0 / mean, 1.0)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2.0
        if _mean(middle) > mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def _inverse(uniform: float, rate: float) -> float:
    """Return x in [0, 1] below which a share `uniform` of the density exp(-rate x) lies, for rate >= 0."""
    if rate < FLAT:
        return uniform
    inside = uniform * -math.expm1(-rate)
    return 1.0 if inside >= 1.0 else min(1.0, -math.log1p(-inside) / rate)
