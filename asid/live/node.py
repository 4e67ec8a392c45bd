"""The poll loop under every process of the live engine: sockets, doorbells, timers, and the parent's life.

A node waits for the first of: a message on one of its sockets, a readable descriptor, a timer, a deadline. ZeroMQ's
descriptors are edge-triggered and time-outs restart at every signal, so a wait drains every socket before it sleeps
and computes what is left from the clock each time round.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable
from multiprocessing import parent_process

import zmq

Frames = list[bytes]
PR_SET_PDEATHSIG = 1
# A wait never sleeps longer than this before it looks at everything again.
SLEEP_MAX_NS = 20_000_000


class ParentGone(Exception):
    """The daemon is dead; so is this process, in a moment."""


class Node:
    """Sockets, descriptors and timers of one process. One thread uses it."""

    def __init__(self) -> None:
        self._sockets: list[tuple[zmq.Socket[bytes], Callable[[Frames], None], int]] = []
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: dict[object, tuple[int, Callable[[], None]]] = {}
        self._fds: list[int] = []
        self.now_ns = time.monotonic_ns

    def add_socket(self, socket: zmq.Socket[bytes], on_message: Callable[[Frames], None]) -> None:
        fd = int(socket.getsockopt(zmq.FD))
        self._sockets.append((socket, on_message, fd))
        self._fds = [fd for _, _, fd in self._sockets] + list(self._readers)

    def add_reader(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._readers[fd] = on_readable
        self._fds = [fd for _, _, fd in self._sockets] + list(self._readers)

    def drop_reader(self, fd: int) -> None:
        self._readers.pop(fd, None)
        self._fds = [fd for _, _, fd in self._sockets] + list(self._readers)

    def watch_parent(self) -> None:
        """Raise ParentGone from `turn` when the process that started this one is dead."""
        parent = parent_process()
        assert parent is not None, "a node of the live engine is always somebody's child"

        def gone() -> None:
            raise ParentGone

        self.add_reader(parent.sentinel, gone)

    def set_timer(self, key: object, after_ns: int, on_timer: Callable[[], None]) -> None:
        """Set a timer; one that is set under the same key is replaced."""
        self._timers[key] = (self.now_ns() + after_ns, on_timer)

    def has_timer(self, key: object) -> bool:
        return key in self._timers

    def drop_timer(self, key: object) -> None:
        self._timers.pop(key, None)

    def drain(self, most: int = 16) -> bool:
        """Take up to `most` messages of each socket in turn (R12), without waiting. Return whether any came."""
        any_came = False
        for socket, on_message, _ in self._sockets:
            for _ in range(most):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                any_came = True
                on_message(frames)
        return any_came

    def turn(self, deadline_ns: int | None = None) -> bool:
        """Wait once, at the longest until `deadline_ns`, and serve what came. Return whether anything did."""
        came = self.drain()
        now = self.now_ns()
        came = self._fire(now) or came
        if came:
            timeout = 0.0
        else:
            until = now + SLEEP_MAX_NS
            if deadline_ns is not None:
                until = min(until, deadline_ns)
            if self._timers:
                until = min(until, min(at for at, _ in self._timers.values()))
            timeout = max(0, until - now) / 1e9
        ready, _, _ = select.select(self._fds, (), (), timeout)
        for fd in ready:
            on_readable = self._readers.get(fd)
            if on_readable is not None:
                came = True
                on_readable()
        return self.drain() or self._fire(self.now_ns()) or came

    def _fire(self, now_ns: int) -> bool:
        due = [(at, key) for key, (at, _) in self._timers.items() if at <= now_ns]
        for _, key in sorted(due, key=lambda item: item[0]):
            entry = self._timers.pop(key, None)
            if entry is not None:
                entry[1]()
        return bool(due)


def ring_doorbell(fd: int) -> None:
    """Wake a sleeping sibling. Never blocks: a doorbell that rings already rings."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return


def hush_doorbell(fd: int) -> None:
    """Take the ring off a doorbell, if there is one."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return


def prepare_child(title: str) -> None:
    """What every child does first: signals, name, and death with its parent even while stopped.

    The sentinel of the parent is the rule; PDEATHSIG is the second line, for a child that cannot run. It belongs to
    the fork server's only thread, which ends with the daemon.
    """
    import setproctitle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C goes to the whole group; the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    setproctitle.setproctitle(title)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(0)
