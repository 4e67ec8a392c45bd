"""Births and deaths when the fork server is late, mute or gone: nothing waits for ever, and no death is lost."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asid import host
from asid.errors import ConfigError, HostUnsuitable
from asid.live import children as children_
from asid.live import fork_server, instance
from asid.live.birth import SPAWN
from asid.live.children import STATUS_UNKNOWN, STATUS_WAIT_NS, Child, Children, status_of_corpse
from asid.live.node import Node
from asid.live.ring import make_ring
from asid.live.room import start_failure

ROOT = Path("/tmp")


class Played:
    """A process whose fork server says when the test lets it."""

    def __init__(self) -> None:
        self.sentinel, self._word = os.pipe()
        self.pid = 1 << 30  # nobody's
        self.closed = False
        self.exitcode: int | None = None

    def is_told(self, status: int) -> None:
        self.exitcode = status
        os.close(self._word)

    def close(self) -> None:
        if self.exitcode is None:
            raise ValueError("Cannot close a process while it is still running.")
        os.close(self.sentinel)
        self.closed = True


class Ward:
    """Children in a node of their own. `deaths`: (place, status); `said`: what was said of the fork server."""

    def __init__(self) -> None:
        self.node = Node()
        self.deaths: list[tuple[tuple[int, int], int]] = []
        self.said: list[str] = []
        self.children = Children(
            self.node, ROOT, lambda child, status: self.deaths.append((child.place, status)), self.say
        )

    def say(self, text: str) -> None:
        self.said.append(text)

    def dying(self) -> Played:
        """A child whose pidfd is readable by now."""
        process = Played()
        birth: Any = SimpleNamespace(core=0, ht=1, inc=1, name="c0h1")
        ring = SimpleNamespace(close=lambda: None)
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
        child = Child(birth, process, process.pid, fds[0], ring, fds[1], 0)  # type: ignore[arg-type]
        self.children.by_place[child.place] = child
        self.node.add_reader(child.pidfd, lambda: self.children.reap(child))
        return process

    def turns(self, within_s: float = 0.05) -> None:
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            self.node.turn(time.monotonic_ns() + 5_000_000)


@pytest.fixture
def ward(monkeypatch):
    monkeypatch.setattr(fork_server, "settle", lambda root, config: None)
    monkeypatch.setattr(fork_server, "end", lambda: None)
    monkeypatch.setattr(fork_server, "wake", lambda: 0)
    return Ward()


def test_a_status_that_is_late_is_waited_for_in_the_loop(ward):
    process = ward.dying()
    before = time.monotonic_ns()
    ward.node.turn()
    assert time.monotonic_ns() - before < STATUS_WAIT_NS // 2, "the loop stood still"
    assert ward.deaths == []
    process.is_told(-9)
    ward.turns()
    assert ward.deaths == [((0, 1), -9)]
    assert process.closed and not ward.children.by_place
    ward.turns(STATUS_WAIT_NS / 1e9 + 0.05)
    assert len(ward.deaths) == 1


def test_a_status_that_does_not_come_is_unknown_and_the_process_is_closed_when_it_does(ward):
    process = ward.dying()
    ward.turns(STATUS_WAIT_NS / 1e9 + 0.1)
    assert ward.deaths == [((0, 1), STATUS_UNKNOWN)]
    assert not process.closed and not ward.children.by_place
    process.is_told(-9)
    ward.turns()
    assert process.closed and len(ward.deaths) == 1


def test_the_end_closes_whom_the_fork_server_never_spoke_of(ward, monkeypatch):
    process = ward.dying()
    ward.turns(STATUS_WAIT_NS / 1e9 + 0.1)
    monkeypatch.setattr(fork_server, "end", lambda: process.is_told(255))
    ward.children.close()
    assert process.closed


def test_a_corpse_says_how_it_ended():
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    pidfd = os.pidfd_open(pid)
    try:
        assert status_of_corpse(pid) is None, "it lives"
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert status_of_corpse(pid) == -signal.SIGKILL
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)
    assert status_of_corpse(pid) is None, "it is reaped"


def test_a_fork_server_that_ends_during_a_birth_is_an_error_of_the_host(ward, monkeypatch):
    def start() -> None:
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(children_, "SPAWN", SimpleNamespace(Process=lambda **_: SimpleNamespace(start=start, pid=None)))
    ring_fd = make_ring("c0h1.1")
    birth: Any = SimpleNamespace(core=0, ht=1, inc=1, name="c0h1")
    with pytest.raises(OSError, match="fork server") as caught:
        ward.children.bear(birth, ring_fd, 0)
    os.close(ring_fd)
    assert caught.value.errno == errno.EOWNERDEAD and not ward.children.by_place
    error = start_failure(caught.value)
    assert isinstance(error, HostUnsuitable) and all((error.what, error.where, error.state, error.allowed, error.hint))


# --- a real one -------------------------------------------------------------------------------------------


def born(said: list[str]) -> None:
    process = SPAWN.Process(target=os.getpid)
    with fork_server.watched(said.append):
        process.start()
    process.join(10)
    process.close()


def server_pid() -> int:
    return int(vars(forkserver._forkserver)["_forkserver_pid"])


@pytest.fixture
def said():
    fork_server.end()
    yield []
    fork_server.end()
    assert vars(forkserver._forkserver)["_forkserver_pid"] is None


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(40, method="signal")
def test_its_socket_is_where_it_is_cleared_away_and_named_as_the_doctor_believes(said):
    with tempfile.TemporaryDirectory(prefix="asid-") as root:
        paths = instance.InstancePaths("i", Path(root))
        fork_server.settle(paths.root)
        born(said)
        [socket] = paths.sockets()
        assert len(socket.name) == len(fork_server.LISTENER) == len(host.LONGEST_SOCKET)
        assert instance.clear_leftovers(paths) == [socket.name]
        fork_server.end()
    born(said)  # and another time elsewhere


def test_a_directory_too_deep_for_it_is_refused():
    with pytest.raises(ConfigError, match="socket path"):
        fork_server.settle(Path("/" + "d" * 90))


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(40, method="signal")
def test_a_fork_server_that_is_stopped_in_a_birth_goes_on(said):
    born(said)
    before = server_pid()
    os.kill(before, signal.SIGSTOP)
    born(said)
    assert server_pid() == before
    [text] = said
    assert f"(pid {before})" in text and "continued" in text


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(40, method="signal")
def test_a_fork_server_that_bears_nobody_is_killed_and_the_next_birth_has_another(said, monkeypatch):
    born(said)
    before = server_pid()
    monkeypatch.setattr(fork_server, "wake", lambda: 0)
    monkeypatch.setattr(fork_server, "BIRTH_S", 0.3)
    os.kill(before, signal.SIGSTOP)
    with pytest.raises((EOFError, OSError)):
        born(said)
    [text] = said
    assert f"(pid {before})" in text and "killed" in text
    monkeypatch.undo()
    born(said)
    assert server_pid() != before and len(said) == 1


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(40, method="signal")
def test_the_end_of_a_stopped_fork_server_is_not_waited_for(said):
    born(said)
    before = server_pid()
    os.kill(before, signal.SIGSTOP)
    fork_server.end()
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_a_fork_server_can_be_had_before_the_first_birth():
    with tempfile.TemporaryDirectory(dir=ROOT) as root:
        children = Children(Node(), Path(root), lambda child, status: None, lambda text: None)
        try:
            pid = children.start_server()
            assert os.getpgid(pid), "it lives"
            assert (children.start_server(), fork_server.pid()) == (pid, pid), "and the next asks find it"
        finally:
            children.close()
        assert fork_server.pid() == 0
