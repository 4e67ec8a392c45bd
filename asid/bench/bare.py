"""The bare limit: processes that do nothing but pass a frame on, over the same sockets with the same settings.

    relay   leaver -> router -> sibling -> router -> leaver: the four hops of a voluntary leave, no work at any of them
    echo    REQ -> ROUTER -> REQ: the least that a control round trip can be
    hello   a child that makes a ZeroMQ context and says that it is there

A relay waits in one of two ways: `poll` is pyzmq's plain best practice (zmq.Poller, then receive), `node` is the poll
loop of the live engine. Each sample is taken after a pause, as leaves come in life: sockets that are driven without
one stay hot in every cache, and what they show is another machine's speed.
"""

from __future__ import annotations

import array
import os
import select
import tempfile
import time
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal, Self

import zmq

from asid import signals
from asid.errors import NoAnswer
from asid.live import sockets
from asid.live.birth import SPAWN
from asid.live.node import Node, ParentGone, prepare_child

How = Literal["poll", "node"]
Socket = zmq.Socket[bytes]

# The size of a report of the live engine.
FRAME: Final = bytes(30)
HERE, GO, LEAVER, SIBLING = b"here", b"go", b"ht0.1", b"ht1.1"
SLICE_MS: Final = 1_000
DEADLINE_S: Final = 30.0
PRELOAD: Final = ["asid.bench.bare"]


class Waiter:
    """Waits for messages on one socket in the way that `how` names, and ends with the parent."""

    def __init__(self, how: How, socket: Socket) -> None:
        self._socket = socket
        self._came: list[list[bytes]] = []
        self._node = Node() if how == "node" else None
        self._poller = zmq.Poller()
        parent = parent_process()
        assert parent is not None
        self._sentinel = parent.sentinel
        if self._node is not None:
            self._node.add_socket(socket, self._came.append)
            self._node.watch_parent()
        else:
            self._poller.register(socket, zmq.POLLIN)
            self._poller.register(self._sentinel, zmq.POLLIN)

    def receive(self) -> list[bytes]:
        """Return the next message. Raise ParentGone."""
        if self._node is not None:
            while not self._came:
                self._node.turn()
            return self._came.pop(0)
        while True:
            ready = dict(self._poller.poll(SLICE_MS))
            if self._sentinel in ready:
                raise ParentGone
            if self._socket in ready:
                return self._socket.recv_multipart(zmq.NOBLOCK)


def pause(ns: int) -> None:
    """Let the CPU go for a while."""
    select.select((), (), (), ns / 1e9)


def relay_router(path: str, how: How) -> None:
    socket = sockets.gate_router(sockets.new_context(), Path(path))
    waiter = Waiter(how, socket)
    here: set[bytes] = set()
    while True:
        sender, frame = waiter.receive()
        if frame == HERE:
            here.add(sender)
            if here == {LEAVER, SIBLING}:
                socket.send_multipart([LEAVER, GO], zmq.NOBLOCK)
        elif frame:
            socket.send_multipart([SIBLING if sender == LEAVER else LEAVER, frame], zmq.NOBLOCK)


def relay_sibling(path: str, how: How) -> None:
    socket = sockets.gate_dealer(sockets.new_context(), Path(path), SIBLING)
    waiter = Waiter(how, socket)
    _say_here(socket)
    while True:
        socket.send(waiter.receive()[0], zmq.NOBLOCK)


def relay_leaver(path: str, how: How, line: Connection) -> None:
    socket = sockets.gate_dealer(sockets.new_context(), Path(path), LEAVER)
    waiter = Waiter(how, socket)
    _say_here(socket)
    go = waiter.receive()
    assert go == [GO], "the router says go when both are here"
    line.send_bytes(GO)
    while True:
        n, pause_ns = array.array("Q", line.recv_bytes())
        samples = array.array("Q")
        for _ in range(n):
            pause(pause_ns)
            begin_ns = time.monotonic_ns()
            socket.send(FRAME, zmq.NOBLOCK)
            waiter.receive()
            samples.append(time.monotonic_ns() - begin_ns)
        line.send_bytes(samples.tobytes())


def _say_here(socket: Socket) -> None:
    if not socket.poll(int(DEADLINE_S * 1000), zmq.POLLOUT):
        raise NoAnswer("the router of the bare relay did not come up", where="bench")
    socket.send(HERE, zmq.NOBLOCK)


def echo_router(path: str) -> None:
    socket = sockets.ctl_router(sockets.new_context(), Path(path))
    waiter = Waiter("poll", socket)
    while True:
        socket.send_multipart(waiter.receive(), zmq.NOBLOCK)


def hello(path: str) -> None:
    """A bare child: a context, a socket, one word, and then it waits for its end."""
    socket = sockets.daemon_link_dealer(sockets.new_context(), Path(path), str(time.monotonic_ns()).encode())
    if socket.poll(int(DEADLINE_S * 1000), zmq.POLLOUT):
        socket.send(HERE, zmq.NOBLOCK)
    socket.poll(int(10 * DEADLINE_S * 1000), zmq.POLLIN)


def child(main: Callable[..., None], title: str, *arguments: Any) -> None:
    """Entry of every bare process: ends with its parent."""
    prepare_child(f"asid bench: {title}")
    try:
        main(*arguments)
    except (ParentGone, EOFError):
        os._exit(0)


class Bare:
    """Some bare processes in a private directory, gone with the block."""

    def __init__(self) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="asid-bench-")
        self.path = str(Path(self._dir.name) / "s")
        self._processes: list[Any] = []
        SPAWN.set_forkserver_preload(PRELOAD)

    def start(self, main: Callable[..., None], title: str, *arguments: Any) -> None:
        process = SPAWN.Process(target=child, args=(main, title, *arguments), daemon=True)
        with signals.deaf_children():  # the fork server too, which the first of them starts
            process.start()
        self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(DEADLINE_S)
        self._dir.cleanup()


class Relay(Bare):
    """The bare relay: three processes, driven from here."""

    def __init__(self, how: How) -> None:
        super().__init__()
        self._line, theirs = SPAWN.Pipe()
        self.start(relay_router, "relay router", self.path, how)
        self.start(relay_sibling, "relay sibling", self.path, how)
        self.start(relay_leaver, "relay leaver", self.path, how, theirs)
        theirs.close()
        self._receive()

    def run(self, n: int, pause_ns: int) -> list[int]:
        """Return n round trips over the four hops, in ns, each after a pause."""
        self._line.send_bytes(array.array("Q", (n, pause_ns)).tobytes())
        return list(array.array("Q", self._receive(n * pause_ns / 1e9)))

    def _receive(self, more_s: float = 0.0) -> bytes:
        if not self._line.poll(DEADLINE_S + more_s):
            raise NoAnswer("the bare relay does not answer", where="bench")
        return self._line.recv_bytes()


class Echo(Bare):
    """A bare ROUTER that sends back what it gets, and a REQ to it."""

    def __init__(self) -> None:
        super().__init__()
        self.start(echo_router, "echo", self.path)
        self._context = sockets.new_context()
        self._socket: Socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(sockets.ipc_endpoint(Path(self.path)))
        self._trip(FRAME)

    def run(self, n: int, request: bytes) -> list[int]:
        """Return n round trips in ns."""
        samples = []
        for _ in range(n):
            begin_ns = time.monotonic_ns()
            self._trip(request)
            samples.append(time.monotonic_ns() - begin_ns)
        return samples

    def _trip(self, request: bytes) -> None:
        self._socket.send(request)
        if not self._socket.poll(int(DEADLINE_S * 1000), zmq.POLLIN):
            raise NoAnswer("the bare echo does not answer", where="bench")
        self._socket.recv()

    def __exit__(self, *_: object) -> None:
        sockets.close(self._context, self._socket)
        super().__exit__()
