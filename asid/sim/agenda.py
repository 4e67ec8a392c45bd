"""What happens when, in virtual time: the one clock of a simulated core and everything that is still to come.

What is to happen at the same nanosecond happens in the order in which it was put down, so a run has one order only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heappop, heappush

Happening = Callable[[], object]


class Agenda:
    """`now_ns` is virtual: nanoseconds since the machine was switched on."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._heap: list[tuple[int, int, Happening]] = []
        self._count = 0
        self._timers: dict[Hashable, int] = {}  # number of the entry that counts
        self._halted = False

    def now(self) -> int:
        return self.now_ns

    def after(self, ns: int, what: Happening) -> int:
        """Put something down for `ns` from now; return its number."""
        assert ns >= 0, ns
        self._count += 1
        heappush(self._heap, (self.now_ns + ns, self._count, what))
        return self._count

    def set_timer(self, key: Hashable, ns: int, what: Happening) -> None:
        """Put something down under a key; what was there under the same key does not happen."""

        def fire() -> None:
            if self._timers.get(key) == number:
                del self._timers[key]
                what()

        number = self.after(ns, fire)
        self._timers[key] = number

    def has_timer(self, key: Hashable) -> bool:
        return key in self._timers

    def drop_timer(self, key: Hashable) -> None:
        self._timers.pop(key, None)

    def halt(self) -> None:
        """Let the run that goes on end here, at this nanosecond."""
        self._halted = True

    def run(self, until_ns: int) -> bool:
        """Let everything happen that is due before `until_ns`, and leave the clock there. Return False if halted."""
        heap = self._heap
        self._halted = False
        while heap and heap[0][0] < until_ns:
            self.now_ns, _, what = heappop(heap)
            what()
            if self._halted:
                return False
        self.now_ns = max(self.now_ns, until_ns)
        return True
