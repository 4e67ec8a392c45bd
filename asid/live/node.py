"""The poll loop under every process of the live engine: sockets, doorbells, timers, and the parent's life.

A node waits for the first of: a message on one of its sockets, a readable descriptor, a timer, a deadline. ZeroMQ's
descriptors are edge-triggered and time-outs restart at every signal; so every sleep goes through zmq_poll, which looks
at each socket's own queue before and after, is short, and what is left is computed from the clock each time round.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from typing import Any

import zmq
from zmq.backend import zmq_poll

Frames = list[bytes]
PR_SET_PDEATHSIG = 1
# A wait never sleeps longer than this before it looks at everything again.
SLEEP_MAX_NS = 100_000_000
NEVER_NS = 1 << 63
# As plain integers: pyzmq's flags are enums, and an enum costs a microsecond where an integer costs nothing.
POLLIN = int(zmq.POLLIN)
NOBLOCK = int(zmq.NOBLOCK)
RCVMORE = int(zmq.RCVMORE)
RING = (1).to_bytes(8, sys.byteorder)  # one ring of a doorbell, be it an eventfd or a pipe
RINGS_BYTES = 4096
FD_SETSIZE = 1024  # select takes no descriptor from here on


class ParentGone(Exception):
    """The daemon is dead; so is this process, in a moment."""


class Node:
    """Sockets, descriptors and timers of one process. One thread uses it."""

    def __init__(self) -> None:
        self._sockets: dict[zmq.Socket[bytes], Callable[[Frames], None]] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: dict[object, tuple[int, Callable[[], None]]] = {}
        self._next_ns = NEVER_NS  # no timer is due before; it may be too early, never too late
        self._items: list[tuple[zmq.Socket[bytes] | int, int]] = []  # everything to wait for, as zmq_poll takes it
        self._fds: list[int] = []  # the same, as select takes it
        self._selectable = True  # a daemon of many cores has descriptors too high for select
        self.now_ns = time.monotonic_ns

    def add_socket(self, socket: zmq.Socket[bytes], on_message: Callable[[Frames], None]) -> None:
        self._sockets[socket] = on_message
        self._changed()

    def add_reader(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._readers[fd] = on_readable
        self._changed()

    def drop_reader(self, fd: int) -> None:
        self._readers.pop(fd, None)
        self._changed()

    def _changed(self) -> None:
        everything: list[zmq.Socket[bytes] | int] = [*self._sockets, *self._readers]
        self._items = [(what, POLLIN) for what in everything]
        self._fds = [int(socket.getsockopt(zmq.FD)) for socket in self._sockets] + list(self._readers)
        self._selectable = max(self._fds, default=0) < FD_SETSIZE

    def watch_parent(self) -> None:
        """Raise ParentGone from `turn` when the process that started this one is dead."""
        parent = parent_process()
        assert parent is not None, "a node of the live engine is always somebody's child"

        def gone() -> None:
            raise ParentGone

        self.add_reader(parent.sentinel, gone)

    def set_timer(self, key: object, after_ns: int, on_timer: Callable[[], None]) -> None:
        """Set a timer; one that is set under the same key is replaced."""
        at = self.now_ns() + after_ns
        self._timers[key] = (at, on_timer)
        if at < self._next_ns:
            self._next_ns = at

    def has_timer(self, key: object) -> bool:
        return key in self._timers

    def drop_timer(self, key: object) -> None:
        self._timers.pop(key, None)

    def drain(self, most: int = 16) -> bool:
        """Take what is there, up to `most` messages of each socket in turn (R12). Return whether anything was."""
        any_came = False
        for _ in range(most):
            ready = zmq_poll(self._items, 0)
            if not ready:
                break
            any_came = True
            self._serve(ready)
        return any_came

    def turn(self, deadline_ns: int | None = None) -> bool:
        """Wait once, at the longest until `deadline_ns`, and serve what came. Return whether anything did."""
        now = self.now_ns()
        until = now + SLEEP_MAX_NS
        if deadline_ns is not None and deadline_ns < until:
            until = deadline_ns
        if self._next_ns < until:
            until = self._next_ns
        ready = self._wait(until - now)
        if ready:
            self._serve(ready)
        now = self.now_ns()
        return (now >= self._next_ns and self._fire(now)) or bool(ready)

    def _wait(self, ns: int) -> Sequence[tuple[Any, int]]:
        """Return what is ready within ns. zmq_poll looks at every socket's own queue before it sleeps, and after."""
        if ns >= 1_000_000:
            return zmq_poll(self._items, ns // 1_000_000)
        ready = zmq_poll(self._items, 0)
        if not ready and ns > 0:  # zmq_poll counts in milliseconds
            if not self._selectable:
                return zmq_poll(self._items, 1)
            select.select(self._fds, (), (), ns / 1e9)
            ready = zmq_poll(self._items, 0)
        return ready

    def _serve(self, ready: Sequence[tuple[Any, int]]) -> None:
        """One message of each socket, so that no peer starves another, and every descriptor."""
        for what, _ in ready:
            if isinstance(what, int):
                on_readable = self._readers.get(what)
                if on_readable is not None:
                    on_readable()
                continue
            try:
                frames = [what.recv(NOBLOCK)]
                while what.getsockopt(RCVMORE):
                    frames.append(what.recv(NOBLOCK))
            except zmq.Again:
                continue
            self._sockets[what](frames)

    def _fire(self, now_ns: int) -> bool:
        self.drain()  # what came before the timer was due is looked at first
        due = [(at, key) for key, (at, _) in self._timers.items() if at <= now_ns]
        for _, key in sorted(due, key=lambda item: item[0]):
            entry = self._timers.pop(key, None)
            if entry is not None:
                entry[1]()
        self._next_ns = min((at for at, _ in self._timers.values()), default=NEVER_NS)
        return bool(due)


def ring_doorbell(fd: int) -> None:
    """Wake a sleeping sibling. Never blocks: a doorbell that rings already rings, and whom nobody hears is dead."""
    try:
        os.write(fd, RING)
    except (BlockingIOError, BrokenPipeError):
        return


def hush_doorbell(fd: int) -> None:
    """Take the ring off a doorbell, if there is one."""
    try:
        os.read(fd, RINGS_BYTES)
    except BlockingIOError:
        return


fork_server_pid = 0  # set in the fork server, and so known to whom it forks


def prepare_child(title: str, last: signal.Signals = signal.SIGKILL) -> None:
    """What every child does first: signals, name, and death with its parent even while stopped.

    The sentinel of the parent is the rule; PDEATHSIG (`last`) is the second line, for a child that cannot run. It
    belongs to the fork server's only thread, which ends with the daemon.
    """
    import setproctitle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C goes to the whole group; the daemon decides
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the kernel's, to a stopped child whose parent's group is gone
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    setproctitle.setproctitle(title)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, last)
    if os.getppid() == 1 or (fork_server_pid and os.getppid() != fork_server_pid):
        os._exit(0)  # it ended before the line above, and somebody else has adopted this process
