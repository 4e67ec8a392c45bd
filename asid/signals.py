"""The signals that ask a process to end, and the few moments in which they must wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_endings(handler: Callable[[int, Any], Any]) -> None:
    """Call `handler` for each of them that is not ignored: nohup and a shell's `&` have their reasons."""
    for signum in ENDINGS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)


@contextlib.contextmanager
def later() -> Iterator[None]:
    """A block that no such signal cuts short; one that came meanwhile is handled at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread alone
        return
    came: list[int] = []
    kept: dict[int, Any] = {}
    try:
        for signum in ENDINGS:
            handler = signal.getsignal(signum)
            if callable(handler):
                kept[signum] = handler
                signal.signal(signum, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started in this block never hear ^C, from their first instruction on: who started them ends them."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # deaf by itself; begun in the block it would end with the signal unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
