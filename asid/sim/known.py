"""What is known of a leave from the times that it was played: one of a kind, for more or less work.

Every moment of a leave is a sum of costs, with the time of its work in it once or not at all, or the later or
earlier of two such sums. So where two plays with different times of work took the same way, and between them
each moment moved by nothing or by the whole difference, it does so for every time of work between these two.
A leave is known there, and nowhere else; one of a kind may be known in several pieces.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from asid.core.record import bucket_of
from asid.sim.counted import buckets

if TYPE_CHECKING:
    from asid.sim.figures import Figures, Told

PIECES_MAX: Final = 32  # of leaves of one kind


class Played(NamedTuple):
    """One leave that was played. All times are nanoseconds since the leaver's guest was left.

    leaver: its place among those that run. way: what was noted, and by whom, in order; moments: when. quiet_ns: from
    here on everybody was in guest and nothing was under way. back_ns: when the leaver's guest went on. shifts: by how
    much later each sibling comes to the end of its guest time; None for one whose run went on, and for the leaver.
    """

    leaver: int
    way: tuple[tuple[str, int], ...]
    moments: tuple[int, ...]
    quiet_ns: int
    back_ns: int
    shifts: tuple[int | None, ...]
    told: Told

    def like(self, other: Played) -> bool:
        """Whether two took the same way."""
        return self._kinds() == other._kinds()

    def _kinds(self) -> tuple[object, ...]:
        """Return what each number of `flat` is of."""
        moved = [shift is None for shift in self.shifts]
        return self.way, moved, list(self.told.sums), [key for key, _ in self.told.samples]

    def flat(self) -> list[int]:
        """Return all numbers of it; the moments come first."""
        shifts = [shift for shift in self.shifts if shift is not None]
        told = [*self.told.sums.values(), *(ns for _, ns in self.told.samples)]
        return [self.quiet_ns, self.back_ns, *shifts, *self.moments, *told]


class Line(NamedTuple):
    """at + slope * work_ns."""

    at: int
    slope: int


class Known:
    """What is known of leaves of one kind that go one way, for times of work from `low` to `high`.

    A moment is at + slope * work: quiet and back, see `Played`; moves: (place, at, slope) of each sibling's shift.
    others: places of siblings whose runs went on.
    """

    def __init__(self, work_ns: int, played: Played) -> None:
        self.low = self.high = work_ns
        self._first = self._last = played
        self._n = self._total_ns = 0
        self._works = array("q")
        self._set([0] * len(played.flat()))

    def add(self, work_ns: int) -> None:
        """Count one."""
        self._n += 1
        self._total_ns += work_ns
        if self._sloped:
            self._works.append(work_ns)

    @property
    def kept(self) -> int:
        """How many times of work are kept until they are put into figures."""
        return len(self._works)

    def says(self, work_ns: int, played: Played) -> bool:
        """Whether a play came out as it is known."""
        return played.like(self._first) and played.flat() == [line.at + line.slope * work_ns for line in self._lines]

    def learn(self, work_ns: int, played: Played, into: Figures) -> bool:
        """Take in one more, of another time of work. into: gets what was counted until now. Return False, and leave
        everything as it is, when it does not go the same way."""
        before = work_ns < self.low
        first, last = (played, self._last) if before else (self._first, played)
        over = self.high - work_ns if before else work_ns - self.low
        if not first.like(last):
            return False
        slopes = _slopes(first.flat(), last.flat(), over, 2 + len(first.moments) + _shifted(first))
        if slopes is None:
            return False
        self.count(into)
        self._first, self._last = first, last
        self.low, self.high = min(self.low, work_ns), max(self.high, work_ns)
        self._set(slopes)
        return True

    def _set(self, slopes: list[int]) -> None:
        first = self._first
        self._lines = [Line(a - slope * self.low, slope) for a, slope in zip(first.flat(), slopes, strict=True)]
        (self.quiet_at, self.quiet_slope), (self.back_at, self.back_slope) = self._lines[:2]
        moved = [place for place, shift in enumerate(first.shifts) if shift is not None]
        self.moves = [(place, *line) for place, line in zip(moved, self._lines[2:], strict=False)]
        self.others = [place for place in range(len(first.shifts)) if place not in (first.leaver, *moved)]
        self._figures = self._lines[2 + _shifted(first) + len(first.moments) :]
        self._sloped = any(line.slope for line in self._figures)

    def count(self, into: Figures) -> None:
        """Put what was counted into figures."""
        n, total_ns, works = self._n, self._total_ns, self._works
        self._n, self._total_ns, self._works = 0, 0, array("q")
        if not n:
            return
        told, lines = self._first.told, iter(self._figures)
        for key in told.sums:
            line = next(lines)
            into.sums[key] += line.at * n + line.slope * total_ns
        for key, _ in told.samples:
            line = next(lines)
            hist = _hist(line, works) if line.slope else {bucket_of(line.at): n}
            into.sample(key, hist, line.at * n + line.slope * total_ns)


def _shifted(played: Played) -> int:
    return sum(shift is not None for shift in played.shifts)


def _slopes(first: list[int], last: list[int], over: int, moments: int) -> list[int] | None:
    """Return by how much each number grows with the time of work; None unless all moments do by nothing or by it."""
    slopes = []
    for at, (a, b) in enumerate(zip(first, last, strict=True)):
        slope, rest = divmod(b - a, over)
        if rest or (at < moments and slope not in (0, 1)):
            return None
        slopes.append(slope)
    return slopes


def _hist(line: Line, works: array[int]) -> dict[int, int]:
    import numpy as np

    found, n = np.unique(buckets(line.at + line.slope * np.array(works, np.int64)), return_counts=True)
    return dict(zip(found.tolist(), n.tolist(), strict=True))


class Pieces:
    """What is known of leaves of one kind."""

    __slots__ = ("known", "wrong")

    def __init__(self) -> None:
        self.known: list[Known] = []
        self.wrong = False  # something else than the time of work differs: such leaves are played

    def find(self, work_ns: int) -> Known | None:
        for each in self.known:
            if each.low <= work_ns <= each.high:
                return None if self.wrong else each
        return None

    def learn(self, work_ns: int, played: Played, into: Figures) -> None:
        """Take in one more play. into: gets what was counted of a piece that grows."""
        for each in self.known:
            if each.low <= work_ns <= each.high:
                self.wrong = self.wrong or not each.says(work_ns, played)
                return
        apart = [each for each in self.known if not self._between(each, work_ns)]
        if not any(each.learn(work_ns, played, into) for each in apart) and len(self.known) < PIECES_MAX:
            self.known.append(Known(work_ns, played))

    def _between(self, piece: Known, work_ns: int) -> bool:
        """Whether another piece lies between this one and a time of work."""
        low, high = min(work_ns, piece.high), max(work_ns, piece.low)
        return any(low < other.low < high for other in self.known if other is not piece)
