"""What happens when, in virtual time: the one clock of a simulated core and everything that is still to come.

What is to happen at the same nanosecond happens by rank, and of the same rank in the order in which it was put down.
The rank of what a hyperthread does by itself (its guest, its handlers, what it is busy with) is its number; what comes
from elsewhere is behind all of them. So at any moment it is known which of a hyperthread's own doings are over, however
they came to be put down, and a run has one order only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from heapq import heappop, heappush
from typing import Final

Happening = Callable[[], object]

ELSEWHERE: Final = 1_000  # rank of what no hyperthread does by itself
_FIRST: Final = -1


class Agenda:
    """`now_ns` is virtual: nanoseconds since the machine was switched on."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.taken = 0  # happenings that have come, for whoever wants to know what a play took
        self.until_ns = 0  # of the run that goes on
        self.last_ns = 0  # when something happened, other than a timer, that was not forgotten meanwhile
        self.flying = 0  # happenings from elsewhere that are on their way; neither timers nor appointments
        self._appointments: deque[int] = deque()
        self._rank = _FIRST  # of what happens now
        self._heap: list[tuple[int, int, int, Happening]] = []
        self._count = 0
        self._timers: dict[Hashable, int] = {}  # number of the entry that counts
        self._halted = False

    def now(self) -> int:
        return self.now_ns

    def after(self, ns: int, what: Happening, rank: int = ELSEWHERE) -> None:
        """Put something down for `ns` from now."""
        if rank != ELSEWHERE:
            self._put(ns, what, rank)
            return
        self.flying += 1

        def arrives() -> None:
            self.flying -= 1
            self.last_ns = self.now_ns
            what()

        self._put(ns, arrives, rank)

    def appoint(self, times_ns: list[int], what: list[Happening]) -> None:
        """Put down what is known from the beginning. times_ns: in order."""
        assert not self._appointments
        self._appointments.extend(times_ns)
        for at_ns, happening in zip(times_ns, what, strict=True):
            self._put(at_ns - self.now_ns, partial(self._keep, happening), ELSEWHERE)

    def _keep(self, happening: Happening) -> None:
        self._appointments.popleft()
        happening()

    @property
    def to_come(self) -> int:
        """How many appointments have not come yet."""
        return len(self._appointments)

    def undisturbed_ns(self) -> int:
        """Return before which time no appointment comes, and the run that goes on does not end."""
        return min(self.until_ns, self._appointments[0]) if self._appointments else self.until_ns

    def _put(self, ns: int, what: Happening, rank: int) -> int:
        """Return the number of what was put down."""
        assert ns >= 0, ns
        self._count += 1
        heappush(self._heap, (self.now_ns + ns, rank, self._count, what))
        return self._count

    def set_timer(self, key: Hashable, ns: int, what: Happening) -> None:
        """Put something down under a key; what was there under the same key does not happen."""

        def fire() -> None:
            if self._timers.get(key) == number:
                del self._timers[key]
                what()

        number = self._put(ns, fire, ELSEWHERE)
        self._timers[key] = number

    def has_timer(self, key: Hashable) -> bool:
        return key in self._timers

    def drop_timer(self, key: Hashable) -> None:
        self._timers.pop(key, None)

    def halt(self) -> None:
        """Let the run that goes on end here, at this nanosecond."""
        self._halted = True

    def over_ns(self, rank: int) -> int:
        """Return before which time whatever has this rank has happened."""
        return self.now_ns + (rank <= self._rank)

    def run(self, until_ns: int) -> bool:
        """Let everything happen that is due before `until_ns`, and leave the clock there. Return False if halted."""
        heap = self._heap
        self._halted = False
        self.until_ns = until_ns
        while heap and heap[0][0] < until_ns:
            self.now_ns, self._rank, _, what = heappop(heap)
            self.taken += 1
            what()
            if self._halted:
                return False
        self.now_ns, self._rank = max(self.now_ns, until_ns), _FIRST
        return True

    def replay(self, since_ns: int, rank: int, what: Happening) -> None:
        """Let something happen late that was due at `since_ns`, and what comes of it of the same rank, until now.

        It must not put down anything else that is due by now.
        """
        heap, now = self._heap, (self.now_ns, self._rank)
        others = []
        self.now_ns, self._rank = since_ns, rank
        what()
        while heap and heap[0][:2] < now:
            entry = heappop(heap)
            if entry[1] == rank:
                self.now_ns = entry[0]
                self.taken += 1
                entry[3]()
            else:
                others.append(entry)
        for entry in others:
            heappush(heap, entry)
        self.now_ns, self._rank = now
