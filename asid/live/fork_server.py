"""The fork server, parent of all children: continued when it was stopped, killed when it is mute, ended at last.

A birth waits for its word in reads of multiprocessing's own, which have no deadline; all the while the daemon answers
nobody. So a thread looks after it meanwhile. Killed, it takes its hyperthreads along; the next birth starts another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, process
from pathlib import Path
from typing import Any, Final

from asid.live.sockets import ipc_endpoint

BIRTH_S: Final = 20.0  # the first birth includes the fork server's own start, on a host that may be busy
LOOK_S: Final = 0.02
DEATH_S: Final = 2.0  # from SIGKILL to the end of a large process
CONFIG: Final = "ASID_NEST_CONFIG"  # variable of its environment, from which a path is read
LISTENER: Final = "listener-12345678"  # what multiprocessing calls its socket, the last eight at random

_server: Any = forkserver._forkserver  # its lock is held while it is reaped: under it, its pid is its own
_current: Any = process.current_process()


class ForkServerEnded(OSError):
    """The fork server ended during a birth. A hyperthread that it may have begun to bear ends with it."""

    def __init__(self) -> None:
        super().__init__(errno.EOWNERDEAD, "the fork server ended during a birth")


def settle(root: Path, config: Path | None = None) -> None:
    """Have its socket in the instance's directory, where whoever clears up finds it. Raise ConfigError: no room there.

    In a directory that multiprocessing makes it would outlive a daemon that is killed. config: of the machine, for what
    children have in common (`asid.live.nest`); there is no other way to tell it than its environment.
    """
    ipc_endpoint(root / LISTENER)
    _current._config["tempdir"] = str(root)
    if config is not None:
        os.environ[CONFIG] = str(config)


def start() -> int:
    """Start it if it does not run; return its pid. Raise OSError."""
    _server.ensure_running()
    return pid()


def pid() -> int:
    """Return its pid, 0 when there is none."""
    return _server._forkserver_pid or 0


def wake() -> int:
    """Continue the fork server if it was stopped. Return its pid then, else 0."""
    with _server._lock:
        found = pid()
        if not found or not _is_stopped(found):
            return 0
        os.kill(found, signal.SIGCONT)
        return found


def _is_stopped(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it is dead
        return False


def kill() -> int:
    """SIGKILL the fork server. Return its pid, 0 when there is none.

    It is dead then: the next birth would take one that is still dying for a server that lives.
    """
    with _server._lock:
        pid: int | None = _server._forkserver_pid
        if pid is None:
            return 0
        os.kill(pid, signal.SIGKILL)
        pidfd = os.pidfd_open(pid)
        try:
            gone = select.poll()
            gone.register(pidfd, select.POLLIN)
            gone.poll(DEATH_S * 1e3)
        finally:
            os.close(pidfd)
        return pid


def end() -> None:
    """Kill it, also when it is stopped, and reap it. What it has not said of its children by then it never will."""
    kill()
    with contextlib.suppress(OSError):  # of its socket, which may be cleared away already
        _server._stop()
    _current._config["tempdir"] = None
    os.environ.pop(CONFIG, None)


@contextlib.contextmanager
def watched(say: Callable[[str], None]) -> Iterator[None]:
    """A block with a birth, which ends within BIRTH_S. What had to be done for that is told to `say` at its end."""
    over, done = threading.Event(), []

    def look() -> None:
        deadline = time.monotonic() + BIRTH_S
        while not over.wait(LOOK_S):
            if time.monotonic() > deadline:
                done.append(f"the fork server (pid {kill()}) bore nobody for {BIRTH_S:g} s and was killed")
                return
            if pid := wake():
                done.append(woken(pid))

    watcher = threading.Thread(target=look, name="fork server", daemon=True)
    try:
        watcher.start()
    except RuntimeError as error:  # no more threads: then no more processes either
        raise OSError(errno.EAGAIN, str(error)) from None
    try:
        yield
    finally:
        over.set()
        watcher.join()
        for text in done:
            say(text)


def woken(pid: int) -> str:
    """What is said when `wake` had something to do."""
    return f"the fork server (pid {pid}) had been stopped; it was continued, for no process can be born without it"
