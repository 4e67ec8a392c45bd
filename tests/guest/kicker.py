"""Kicks a vCPU of another process at random instants, and says how many kicks were answered.

    python kicker.py WORDS_FD RING_FD KICKS SEED

The words: the number of the kick that stands, and of the last one that was answered. A kick that is not answered in
ten seconds is lost, and the last one.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time

LOST_NS = 10_000_000_000


def main() -> int:
    words_fd, ring, kicks, seed = map(int, sys.argv[1:])
    words = memoryview(mmap.mmap(words_fd, 4096)).cast("Q")
    chance = random.Random(seed)
    for number in range(1, kicks + 1):
        later_ns = time.monotonic_ns() + chance.randrange(40_000)
        while time.monotonic_ns() < later_ns:
            pass
        words[0] = number
        os.write(ring, b"\1")
        deadline_ns = time.monotonic_ns() + LOST_NS
        while words[8] != number:
            if time.monotonic_ns() > deadline_ns:
                return 1
    words[0] = kicks + 1
    os.write(ring, b"\1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
