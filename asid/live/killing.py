"""The end of a daemon that does not answer, by force: it, its children, and the files by which it would be found."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import psutil

from asid.errors import NoAnswer
from asid.live.instance import InstancePaths, clear_after, lock_holder, wait_unlocked


def kill_daemon(paths: InstancePaths, timeout_s: float) -> None:
    """SIGKILL the daemon that holds the lock, and its children. Raise NoAnswer when it cannot be found or stays."""
    pid = lock_holder(paths)
    with contextlib.ExitStack() as kept:
        # A descriptor, taken before a second look at the lock, cannot mean another process that got the same number.
        daemon = _descriptor(kept, pid) if pid else -1
        if daemon < 0 or lock_holder(paths) != pid:
            raise NoAnswer(
                f"the process of instance {paths.name!r} cannot be found",
                where=str(paths.lock), state="its lock is held", hint="asid ls; fuser shows who has that file open.",
            )  # fmt: skip
        children = [_descriptor(kept, child) for child in _children_of(pid)]
        for each in (daemon, *children):  # the daemon first, else it bears them again
            if each >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(each, signal.SIGKILL)
        wait_unlocked(paths, timeout_s)
        for each in (daemon, *children):
            if each >= 0:
                select.select([each], [], [], timeout_s)
    clear_after(paths)


def _descriptor(kept: contextlib.ExitStack, pid: int) -> int:
    """Return a pidfd, closed with `kept`; -1 for a process that is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    kept.callback(os.close, descriptor)
    return descriptor


def _children_of(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []
