"""The core page: the IPI line of one core, in shared memory that has no name.

One 64-byte line a word, one writer a word (but for the pending bit, which any sibling sets and only its owner
clears), 8-byte aligned, so no read is torn. A memfd handed down to the children: nothing to unlink, nothing to leak.

    core lines          ROUND, KICKS           written by the coordinator: numbers it must not give out twice
                        WATCHED                written by the daemon: somebody wants to see every change of mode
                        TURN                   number of the step whose turn it is, while a script is played; written
                                               by whose turn it is, opened and closed by the daemon (see live.turns)
                        FAILED                 set by a hyperthread: a #MC was fatal, no guest runs here any more
    hyperthread lines   MODE FLAG DEPTH INSNS  written by the hyperthread
                        ARRIVED                round of the last meeting it came to (a dead one's: the coordinator)
                        TAINT CLEAN            its visits to HOST, and what the visits of all came to at its last flush
                        ICR2 ICR               its local APIC: the destination, and whom an IPI is on its way to
                        REQUEST                written by the coordinator: number of the kick that stands
                        KICK_NUMBER KICK_INSNS written by the coordinator after a kick is visible: INSNS by then,
                                               which counts the instruction that was in flight (see hyperthread.retire)
                        PENDING                the IRR bit: set by siblings and the coordinator, cleared by its owner
                        NMI MCE                written by the daemon: the interrupt line, see `interrupt_word`
                        BROADCAST SEVERITY     written by the daemon before MCE, see `asid.core.mce`
                        CALLIN                 its part in a rendezvous of #MC handlers (a dead one's: the coordinator)

The fence between "publish" and "look" is a lock taken and given back: a locked instruction on x86, a full barrier on
every CPython platform. The pending bit, looked at before every guest instruction, is the second line.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import Final

LINE_WORDS: Final = 8  # one 64-byte line
CORE_LINES: Final = 5
HT_LINES: Final = 18

ROUND: Final = 0 * LINE_WORDS
KICKS: Final = 1 * LINE_WORDS
WATCHED: Final = 2 * LINE_WORDS
TURN: Final = 3 * LINE_WORDS
FAILED: Final = 4 * LINE_WORDS

(
    MODE, FLAG, DEPTH, INSNS, REQUEST, PENDING, NMI, MCE, KICK_NUMBER, KICK_INSNS, ARRIVED, TAINT, CLEAN, ICR2, ICR,
    BROADCAST, SEVERITY, CALLIN,
) = (line * LINE_WORDS for line in range(HT_LINES))  # fmt: skip


def base_of(ht: int) -> int:
    """Return the index of the first word of a hyperthread's lines; add MODE, FLAG and so on to it."""
    return (CORE_LINES + ht * HT_LINES) * LINE_WORDS


COUNT_BITS: Final = 20


def interrupt_word(number: int, count: int) -> int:
    """Pack what an interrupt line holds: the number of the last injection, and how many there were (modulo 2^20)."""
    return number << COUNT_BITS | count & (1 << COUNT_BITS) - 1


def interrupt_parts(word: int) -> tuple[int, int]:
    """Return (number of the last injection, count) of an interrupt line."""
    return word >> COUNT_BITS, word & (1 << COUNT_BITS) - 1


def page_bytes(siblings: int) -> int:
    return (CORE_LINES + siblings * HT_LINES) * LINE_WORDS * 8


def make_page(core: int, siblings: int) -> int:
    """Return the descriptor of a new core page, all zero."""
    fd = os.memfd_create(f"asid-core-{core}", os.MFD_CLOEXEC)
    os.ftruncate(fd, page_bytes(siblings))
    return fd


class CorePage:
    """A mapping of a core page. `words` is a flat view of 64-bit words; index it with `base_of(ht) + FIELD`."""

    __slots__ = ("_lock", "_map", "siblings", "words")

    def __init__(self, fd: int, siblings: int) -> None:
        self.siblings = siblings
        self._map = mmap.mmap(fd, page_bytes(siblings))
        self.words = memoryview(self._map).cast("Q")
        self._lock = threading.Lock()

    def fence(self) -> None:
        """Full memory barrier."""
        self._lock.acquire()
        self._lock.release()

    def holders(self, siblings: tuple[int, ...]) -> bool:
        """Return whether any of these siblings has its flag or depth raised."""
        words = self.words
        return any(words[base_of(other) + FLAG] or words[base_of(other) + DEPTH] for other in siblings)

    def tainted(self) -> bool:
        """Return whether anybody worked in HOST since the last flush of anybody.

        Both counts only grow, so the sum of the visits says which of them a flush had seen.
        """
        words = self.words
        visits = flushed = 0
        for ht in range(self.siblings):
            base = base_of(ht)
            visits += words[base + TAINT]
            flushed = max(flushed, words[base + CLEAN])
        return visits > flushed

    def visits(self) -> int:
        """Return the visits to HOST of all siblings, begun and ended."""
        return sum(self.words[base_of(ht) + TAINT] for ht in range(self.siblings))

    def close(self) -> None:
        self.words.release()
        self._map.close()
