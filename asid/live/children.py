"""The children of the daemon: born, named, watched through pidfds, reaped, born again.

A death is confirmed by the pidfd: readable, it says that the process executes nothing any more; no silence and no
time-out says so. How it ended is another matter. Its corpse tells, else the fork server, its parent, who may be late:
it is waited for in the loop, and after STATUS_WAIT_NS the status of that death is unknown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from asid.core.rebirth import YOUNG_DEATHS_MAX, Rebirth
from asid.errors import AsidError, Busy, Conflict, HostUnsuitable
from asid.live import fork_server
from asid.live.birth import PRELOAD, SPAWN, Birth
from asid.live.coordinator import coordinator_main
from asid.live.hyperthread import hyperthread_main
from asid.live.node import Node
from asid.live.ring import Ring

STATUS_WAIT_NS: Final = 200_000_000  # from a readable pidfd to the fork server's word
BIRTH_FDS: Final = 12  # descriptors that a birth may need at a time, with some to spare
STATUS_UNKNOWN: Final = 255
START_DEATHS: Final = 8  # of a coordinator in a row, before the machine was ready: then it will not be

Place = tuple[int, int]  # core, ht; ht -1 is the coordinator


@dataclass
class Child:
    """One process. `up` once it has spoken to the daemon; what is said to it before waits in `outbox`."""

    birth: Birth
    process: BaseProcess
    pid: int
    pidfd: int
    ring: Ring
    ring_fd: int
    born_ns: int
    up: bool = False
    wanted: bool = False  # we killed it ourselves: no sign of a crash loop
    outbox: list[dict[str, Any]] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return self.birth.core, self.birth.ht

    @property
    def identity(self) -> bytes:
        return f"{self.birth.name}.{self.birth.inc}".encode()

    @property
    def kind(self) -> str:
        return "coordinator" if self.birth.ht < 0 else "ht"

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal through the pidfd, which never reaches another process that got the same pid."""
        self.wanted = self.wanted or signum == signal.SIGKILL
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Close what is ours of it. `process` is closed when the fork server has said its word."""
        self.ring.close()
        os.close(self.ring_fd)
        os.close(self.pidfd)


def name_of(place: Place) -> str:
    """Return what people call a hyperthread or a coordinator."""
    core, ht = place
    return f"c{core}h{ht}" if ht >= 0 else f"the coordinator of c{core}"


def dying(rebirths: Mapping[Place, Rebirth]) -> list[str]:
    """Return who died young too often for a machine that is not ready yet: what ails them is no accident.

    A hyperthread that often is given up, so it would never be ready; a coordinator never is.
    """
    return [
        name_of(place)
        for place, rebirth in sorted(rebirths.items())
        if rebirth.young >= (START_DEATHS if place[1] < 0 else YOUNG_DEATHS_MAX + 1)
    ]


def not_up(late: Sequence[str], dead: Sequence[str]) -> HostUnsuitable:
    """Return the end of a start in which these were late. dead: those who died again and again."""
    state, hint = "30 s", "asid doctor; fewer cores; look at load and memory."
    if dead:
        state, hint = f"{', '.join(dead)} died again and again", "asid policy test, if the policy is your own."
    return HostUnsuitable(f"{', '.join(late)} did not come up", where="start", state=state, hint=hint)


def absent(place: Place, where: str, stays_away: bool) -> AsidError:
    """Return the refusal of what needs a process that is not there: Conflict, or Busy when it is about to be born."""
    name = name_of(place)
    if stays_away:
        return Conflict(
            f"{name} is OFFLINE", where=where, allowed="a hyperthread that runs", hint=f"asid ht plug {name} first."
        )
    return Busy(
        f"{name} is not up", where=where, state="it is about to be born again", allowed="one that runs",
        hint="Try again in a moment; asid status shows when it is back.",
    )  # fmt: skip


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide what program this is from a child that starts: it would import it anew, which costs a tenth of a second
    and runs scripts that have no `__name__` guard a second time. Children need nothing of it.
    """
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    main.__spec__ = None
    main.__file__ = None
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def check_room(fd: int) -> None:
    """Raise OSError without descriptors for a birth: a fork server left halfway dies, with all that it bore."""
    taken: list[int] = []
    try:
        while len(taken) < BIRTH_FDS:
            taken.append(os.dup(fd))
    finally:
        for each in taken:
            os.close(each)


def pidfd_of(process: BaseProcess) -> int:
    """Return a descriptor that becomes readable when the process is dead. Raise OSError when the host has none."""
    assert process.pid is not None
    try:
        return os.pidfd_open(process.pid)
    except ProcessLookupError:  # dead already, and reaped by the fork server
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # always readable, as a dead one's would be


def status_of_corpse(pid: int) -> int | None:
    """Return how a process ended that is dead and not reaped: the exit code, or minus the signal. None: it is not told.

    An orderly end is never told here: the kernel shows 0 as well to whom it would not show anything else.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    status = int(fields[48]) if state == b"Z" and len(fields) > 48 else 0  # exit_code, the 52nd field of all
    return os.waitstatus_to_exitcode(status) if status else None


class Children:
    """All children by place. `on_death(child, status)` is called once for each, after its confirmed death; `say` is
    told what somebody should know of the fork server.
    """

    def __init__(
        self, node: Node, root: Path, on_death: Callable[[Child, int], None], say: Callable[[str], None],
        config: Path | None = None,
    ) -> None:  # fmt: skip
        self.by_place: dict[Place, Child] = {}
        self._node = node
        self._on_death = on_death
        self._say = say
        self._unsaid: dict[int, BaseProcess] = {}  # by sentinel: dead and told, but for the fork server's word
        SPAWN.set_forkserver_preload(PRELOAD)
        fork_server.settle(root, config)

    def bear(self, birth: Birth, ring_fd: int, now_ns: int) -> Child:
        """Start a process. The place must be empty: a death is done with before the next birth. Raise OSError."""
        place = (birth.core, birth.ht)
        assert place not in self.by_place, f"{birth.name} is alive"
        main = coordinator_main if birth.ht < 0 else hyperthread_main
        check_room(ring_fd)
        ring = Ring(ring_fd)
        process = SPAWN.Process(target=main, args=(birth,), name=birth.name, daemon=True)
        try:
            self._wake()
            with without_main(), fork_server.watched(self._say):
                process.start()
            pidfd = pidfd_of(process)
        except (EOFError, BrokenPipeError, ConnectionResetError, ConnectionRefusedError):  # as its end may show
            ring.close()
            raise fork_server.ForkServerEnded from None
        except OSError:  # out of descriptors, of memory or of processes: whatever was begun is undone
            ring.close()
            if process.pid is not None:
                process.kill()
            raise
        assert process.pid is not None
        child = Child(birth, process, process.pid, pidfd, ring, ring_fd, now_ns)
        self.by_place[place] = child
        self._node.add_reader(pidfd, lambda: self.reap(child))
        return child

    def start_server(self) -> int:
        """Have a fork server before the first birth; return its pid. Raise OSError."""
        with without_main():
            return fork_server.start()

    def _wake(self) -> None:
        if pid := fork_server.wake():
            self._say(fork_server.woken(pid))

    def reap(self, child: Child) -> None:
        """The pidfd is readable: the process has ended. Tell, at once or when its status is known."""
        self._node.drop_reader(child.pidfd)
        status = status_of_corpse(child.pid)
        if status is None:
            status = child.process.exitcode
        if status is not None:
            self._bury(child, status)
            return
        self._wake()
        sentinel = child.process.sentinel
        self._node.add_reader(sentinel, lambda: self._bury(child, child.process.exitcode))
        self._node.set_timer(("status", sentinel), STATUS_WAIT_NS, lambda: self._bury(child, STATUS_UNKNOWN))

    def _bury(self, child: Child, status: int | None) -> None:
        del self.by_place[child.place]
        self._node.drop_timer(("status", child.process.sentinel))
        self._part_with(child.process)
        self._on_death(child, STATUS_UNKNOWN if status is None else status)
        child.close()

    def _part_with(self, process: BaseProcess) -> None:
        """Close what is left of a dead process, now or when the fork server has said its word of it."""
        sentinel = process.sentinel
        if process.exitcode is None:
            self._unsaid[sentinel] = process
            self._node.add_reader(sentinel, lambda: self._part_with(process))
            return
        self._node.drop_reader(sentinel)
        self._unsaid.pop(sentinel, None)
        process.close()

    def close(self) -> None:
        """End the fork server, and with it the last of those that it has not spoken of."""
        fork_server.end()
        for process in list(self._unsaid.values()):
            self._part_with(process)

    def hyperthreads(self) -> list[Child]:
        return [child for (_, ht), child in sorted(self.by_place.items()) if ht >= 0]

    def coordinators(self) -> list[Child]:
        return [child for (_, ht), child in sorted(self.by_place.items()) if ht < 0]
