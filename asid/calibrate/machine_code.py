"""A few loops in machine code, so that what is measured has no Python in it. x86-64, System V calls.

Rule 1. A loop ends by its count, or waits for another thread: whoever runs one is a process of its own that its parent
        kills at a deadline.
Rule 2. While one runs the interpreter's lock is free: two threads of one process can run one each.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Callable
from typing import Final

GETPID: Final = 39
TGKILL: Final = 234
MEMBARRIER: Final = 324
READ: Final = 0
WRITE: Final = 1

# take_turns(word, count, mine): wait until *word is `mine`, make it the other of 0 and 1; `count` times.
_TAKE_TURNS: Final = bytes.fromhex("8b07 39d0 75fa 83f001 8907 ffce 75f1 c3")
# count_until(counter, word): add 1 to *counter until *word is not 0.
_COUNT_UNTIL: Final = bytes.fromhex("ff07 833e00 74f9 c3")
# call(a, b, c, count, number): the system call `number` with three arguments; `count` times.
_CALL: Final = bytes.fromhex("4489c0 51 0f05 59 ffc9 75f5 c3")
# pass_on(fd, byte, 1, count, other, first): READ or WRITE (`first`) at fd, the other one at other; `count` times.
_PASS_ON: Final = bytes.fromhex("4489c8 51 0f05 4c87c7 4183f101 4489c8 0f05 4c87c7 4183f101 59 ffc9 75e2 c3")
# nothing(): returns; also what a signal's handler is.
_NOTHING: Final = bytes.fromhex("c3")

_ROOM: Final = 64  # bytes from one loop to the next


class Loops:
    """The loops, in a page of this process. Raise OSError where no such page may be had or this is no x86-64."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise OSError(f"the loops are for x86-64, and this is {platform.machine()}")
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._used = 0
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self.take_turns = self._loop(_TAKE_TURNS, pointer, number, number)
        self.count_until = self._loop(_COUNT_UNTIL, pointer, pointer)
        self.call = self._loop(_CALL, number, number, number, number, number)
        self.pass_on = self._loop(_PASS_ON, number, pointer, number, number, number, number)
        self.nothing_at = self._put(_NOTHING)

    def _loop(self, code: bytes, *arguments: type) -> Callable[..., int]:
        return ctypes.CFUNCTYPE(ctypes.c_long, *arguments)(self._put(code))

    def _put(self, code: bytes) -> int:
        assert len(code) <= _ROOM, "a loop of more bytes than there are between two"
        assert self._used + _ROOM <= mmap.PAGESIZE, "more loops than there is room for"
        self._page[self._used : self._used + len(code)] = code
        self._used += _ROOM
        return self._address + self._used - _ROOM


class Word:
    """32 bits on a cache line of their own, which threads of this process share."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._value = ctypes.c_uint32.from_buffer(self._page)
        self.address = ctypes.addressof(self._value)

    @property
    def value(self) -> int:
        return int(self._value.value)

    @value.setter
    def value(self, value: int) -> None:
        self._value.value = value
