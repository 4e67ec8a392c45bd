"""Whether the guests of the siblings stand still while this hyperthread is in HOST, by what they themselves count.

A real guest counts the turns of its loop in its own memory, which this process has mapped. Two looks, one behind the
entry into HOST and one in front of the way out of it, say whether guest instructions ran in between. Nothing that a
hyperthread or a gate reports has a part in it, so it can tell when all of them are wrong.

Rule 1. A look reads each sibling's count in each real VM's memory: whoever runs there now, or was moved there.
Rule 2. What is seen decides nothing. It is noted, and judged by the audit.
"""

from __future__ import annotations

from collections.abc import Iterable

from asid.core.tally import Notes
from asid.guest.kvm_programs import COUNTER, GuestMemory


class Standstill:
    """The looks of one hyperthread. Counts since the last `note`, by how HOST was reached."""

    def __init__(self, memory_fds: Iterable[int], places: Iterable[int]) -> None:
        """places: the numbers of the siblings, over the whole machine."""
        self._memories = [GuestMemory(fd) for fd in memory_fds]
        places = tuple(places)
        self._words = [(memory.words, memory.word(place, COUNTER)) for memory in self._memories for place in places]
        self._via = ""
        self._before: list[int] = []
        self._rows: dict[str, list[int]] = {}

    def begin(self, via: str) -> None:
        """HOST was entered."""
        self._via = via
        self._before = [words[at] for words, at in self._words]

    def end(self) -> None:
        """HOST is about to be left."""
        turns = 0
        for before, (words, at) in zip(self._before, self._words, strict=False):
            turns += abs(words[at] - before)
        row = self._rows.setdefault(self._via, [0, 0, 0])
        row[0] += 1
        row[1] += turns > 0
        row[2] += turns

    def note(self, notebook: Notes, round_: int) -> None:
        """Note what was seen since the last time."""
        for via, (visits, moved, turns) in self._rows.items():
            notebook.note("standstill", {"via": via, "visits": visits, "moved": moved, "turns": turns}, round_)
        self._rows.clear()

    def close(self) -> None:
        self._words.clear()
        for memory in self._memories:
            memory.close()
