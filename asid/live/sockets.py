"""Every ZeroMQ socket of asid is made here, with its settings spelled out at the call.

What the settings are for (pyzmq 27, libzmq 4.3.5):
    ROUTER_MANDATORY  a message to a peer that is gone, or whose queue is full, is an error and not silence
    SNDHWM, RCVHWM    bounded queues, in messages for one peer
    LINGER            0: close drops what was not sent; the default waits for ever in ctx.term()
    MAXMSGSIZE        a longer frame costs its sender the connection (which then reconnects by itself)
    HANDSHAKE_IVL     a peer that connects and says nothing is cut after a second, not after thirty
    IMMEDIATE         nothing is queued for a peer that is not there, where it would reach its next incarnation
    ROUTER_HANDOVER   0: a second peer with the same identity is ignored; identities hold the incarnation
    IPC_FILTER_UID    only this user (deprecated upstream, so the directory's mode 0700 is the rule and this the second)

An ipc bind takes a path over from a living socket without any error. Whoever binds holds the lock of the instance
first. Contexts are made in the process that uses them, never before a fork, never in a module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import zmq

from asid import ops
from asid.errors import ConfigError, PermissionRefused

IPC_PATH_BYTES_MAX = 107  # sun_path of Linux, less its final zero
HANDSHAKE_MS = 1_000
CONTROL_QUEUE_MAX = 256  # messages; a client that does not read its answers loses the rest
GATE_QUEUE_MAX = 1_000  # far above the few messages that one hyperthread can have under way
LINK_QUEUE_MAX = 100_000  # records on their way to the daemon; a full queue pushes back on the writer of records
TELEMETRY_QUEUE_MAX = 10_000  # messages for one subscriber; then they are dropped, and its numbers show it
REPLY_LINGER_MS = 200  # for the last answers of a daemon that ends

# As plain integers: pyzmq's flags are enums, and joining two costs a microsecond.
NOBLOCK = int(zmq.NOBLOCK)
MORE_NOBLOCK = int(zmq.NOBLOCK | zmq.SNDMORE)

_umask_lock = threading.Lock()  # the umask belongs to the process


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return a context of this process, whose end never waits."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    context.set(zmq.BLOCKY, 0)
    return context


def ipc_endpoint(path: Path) -> str:
    """Return the endpoint of a socket file. Raise ConfigError when its path is too long for the kernel."""
    size = len(os.fsencode(path))
    if size > IPC_PATH_BYTES_MAX:
        raise ConfigError(
            f"a socket path of {size} bytes",
            where=str(path),
            state="the kernel's address has room for no more",
            allowed=f"at most {IPC_PATH_BYTES_MAX} bytes",
            hint="Use a shorter --instance, or set XDG_RUNTIME_DIR to a shorter directory.",
        )
    return f"ipc://{path}"


def make_private_dir(path: Path) -> Path:
    """Make a directory of mode 0700, or check that it is one of ours. Raise PermissionRefused."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise PermissionRefused(
            str(error), where=str(path), hint="Set XDG_RUNTIME_DIR to a directory of yours."
        ) from None
    private = found.st_uid == os.geteuid() and found.st_mode & 0o077 == 0 and path.is_dir() and not path.is_symlink()
    if not private:
        raise PermissionRefused(
            f"mode {found.st_mode & 0o7777:04o}, owner {found.st_uid}",
            where=str(path),
            allowed=f"a directory of mode 0700 that belongs to user {os.geteuid()}",
            hint=f"chmod 700 {path}, or set XDG_RUNTIME_DIR.",
        )
    return path


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    with _umask_lock:
        old = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(old)


def bind_ipc(socket: zmq.Socket[bytes], path: Path) -> str:
    """Bind to a socket file of mode 0600; return the endpoint. The caller holds the instance's lock."""
    endpoint = ipc_endpoint(path)
    try:
        with _private_umask():
            socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # no question of rights: see room.start_failure
        raise PermissionRefused(f"cannot bind: {error}", where=str(path), hint="asid doctor") from None
    return endpoint


# ---------------------------------------------------------------- control and telemetry


def ctl_router(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """The daemon's socket for all operations."""
    return _control_router(context, path)


def urgent_router(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """The daemon's socket for what must not wait behind anything: ping, stop, hold, release, cancel."""
    return _control_router(context, path)


def _control_router(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.SNDHWM, CONTROL_QUEUE_MAX)
    socket.setsockopt(zmq.RCVHWM, CONTROL_QUEUE_MAX)
    socket.setsockopt(zmq.LINGER, REPLY_LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, ops.FRAME_BYTES_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    _only_this_user(socket)
    bind_ipc(socket, path)
    return socket


def tel_xpub(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """The daemon's telemetry. It sees subscriptions; to a subscriber that is slow it drops, so numbers tell the gap."""
    socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each subscription is seen, so each late joiner gets the cached state
    socket.setsockopt(zmq.SNDHWM, TELEMETRY_QUEUE_MAX)
    socket.setsockopt(zmq.RCVHWM, CONTROL_QUEUE_MAX)
    socket.setsockopt(zmq.LINGER, REPLY_LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, ops.REQUEST_BYTES_MAX)  # what comes in is topics
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    _only_this_user(socket)
    bind_ipc(socket, path)
    return socket


def client_dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, identity: bytes) -> zmq.Socket[bytes]:
    """A client's socket. The same identity on ctl and urgent makes it one client."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, identity)
    socket.setsockopt(zmq.SNDHWM, CONTROL_QUEUE_MAX)
    socket.setsockopt(zmq.RCVHWM, CONTROL_QUEUE_MAX)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, 2 * ops.REPLY_BYTES_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.connect(endpoint)
    return socket


def tel_sub(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, prefixes: list[bytes]) -> zmq.Socket[bytes]:
    """A subscriber to topics that begin with one of `prefixes`."""
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, TELEMETRY_QUEUE_MAX)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, ops.FRAME_BYTES_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    for prefix in prefixes:
        socket.setsockopt(zmq.SUBSCRIBE, prefix)
    socket.connect(endpoint)
    return socket


# ---------------------------------------------------------------- the gate, and the daemon's links


def gate_router(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """A coordinator's socket to the hyperthreads of its core."""
    return _inner_router(context, path, GATE_QUEUE_MAX)


def gate_dealer(context: zmq.Context[zmq.Socket[bytes]], path: Path, identity: bytes) -> zmq.Socket[bytes]:
    """A hyperthread's socket to its coordinator; the identity holds its incarnation (`ht1.3`)."""
    return _inner_dealer(context, path, identity, GATE_QUEUE_MAX, probe=True)


def daemon_link_router(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """The daemon's socket to all its children: orders out, records in."""
    return _inner_router(context, path, LINK_QUEUE_MAX)


def daemon_link_dealer(context: zmq.Context[zmq.Socket[bytes]], path: Path, identity: bytes) -> zmq.Socket[bytes]:
    """A child's socket to the daemon; a full queue is told (False), never waited for."""
    return _inner_dealer(context, path, identity, LINK_QUEUE_MAX)


def _inner_router(context: zmq.Context[zmq.Socket[bytes]], path: Path, queue_max: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.SNDHWM, queue_max)
    socket.setsockopt(zmq.RCVHWM, queue_max)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, ops.FRAME_BYTES_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    _only_this_user(socket)
    bind_ipc(socket, path)
    return socket


def _inner_dealer(
    context: zmq.Context[zmq.Socket[bytes]], path: Path, identity: bytes, queue_max: int, *, probe: bool = False
) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    if probe:
        socket.setsockopt(
            zmq.PROBE_ROUTER, 1
        )  # an empty message at each connection: a new coordinator sees who is there
    socket.setsockopt(zmq.ROUTING_ID, identity)
    socket.setsockopt(zmq.SNDHWM, queue_max)
    socket.setsockopt(zmq.RCVHWM, queue_max)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, ops.FRAME_BYTES_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, 5)  # ms; a coordinator that comes back is met soon
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 50)
    socket.connect(ipc_endpoint(path))
    return socket


def _only_this_user(socket: zmq.Socket[bytes]) -> None:
    # Not in every build of libzmq, and not needed: the directory's mode already keeps others out.
    with contextlib.suppress(AttributeError, zmq.ZMQError):
        socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())


# ---------------------------------------------------------------- sending and receiving


def send_nonblocking(socket: zmq.Socket[bytes], frames: list[bytes]) -> bool:
    """Send all frames or none. Return False when the peer is gone or its queue is full; never wait."""
    try:
        for frame in frames[:-1]:
            socket.send(frame, MORE_NOBLOCK)
        socket.send(frames[-1], NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def receive_nonblocking(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """Return one message, None when there is none. Its number of frames is the caller's to check."""
    try:
        return socket.recv_multipart(flags=zmq.NOBLOCK, copy=True)
    except zmq.Again:
        return None


def close(context: zmq.Context[zmq.Socket[bytes]], *sockets: zmq.Socket[bytes]) -> None:
    """Close sockets and their context without waiting longer than their own LINGER."""
    for socket in sockets:
        socket.close()
    context.term()
