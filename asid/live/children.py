"""The children of the daemon: born, named, watched through pidfds, reaped, born again.

A death is confirmed when the pidfd is readable *and* the exit status is known; never by a time-out. The fork server is
the children's parent and reports their status; should it die, the pidfd alone is the proof and the status is unknown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, Final

from asid.errors import AsidError, Busy, Conflict
from asid.live.birth import PRELOAD, SPAWN, Birth
from asid.live.coordinator import coordinator_main
from asid.live.hyperthread import hyperthread_main
from asid.live.ring import Ring

STATUS_WAIT_S: Final = 0.2  # between a readable pidfd and the fork server's word
BIRTH_FDS: Final = 12  # descriptors that a birth may need at a time, with some to spare
STATUS_UNKNOWN: Final = 255
YOUNG_NS: Final = 2_000_000_000  # who dies younger was not well born
YOUNG_DEATHS_MAX: Final = 5  # in a row; then the hyperthread stays OFFLINE
BACKOFF_NS: Final = 20_000_000  # doubles with each young death
BACKOFF_NS_MAX: Final = 5_000_000_000

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
        self.ring.close()
        os.close(self.ring_fd)
        os.close(self.pidfd)
        self.process.close()


@dataclass
class Rebirth:
    """How often a place died young, and so how long its next birth waits."""

    young: int = 0

    def after(self, age_ns: int) -> int | None:
        """Return the delay before the next birth in ns, None when it is given up."""
        self.young = self.young + 1 if age_ns < YOUNG_NS else 0
        return None if self.young > YOUNG_DEATHS_MAX else self.delay_ns

    @property
    def delay_ns(self) -> int:
        return min(BACKOFF_NS << (self.young - 1), BACKOFF_NS_MAX) if self.young else 0


def absent(place: Place, where: str, stays_away: bool) -> AsidError:
    """Return the refusal of what needs a process that is not there: Conflict, or Busy when it is about to be born."""
    core, ht = place
    name = f"c{core}h{ht}" if ht >= 0 else f"the coordinator of c{core}"
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


class Children:
    """All children by place. `on_death(child, status)` is called once for each, after its confirmed death."""

    def __init__(
        self, watch: Callable[[int, Callable[[], None]], None], unwatch: Callable[[int], None],
        on_death: Callable[[Child, int], None],
    ) -> None:  # fmt: skip
        self.by_place: dict[Place, Child] = {}
        self._watch = watch
        self._unwatch = unwatch
        self._on_death = on_death
        SPAWN.set_forkserver_preload(PRELOAD)

    def bear(self, birth: Birth, ring_fd: int, now_ns: int) -> Child:
        """Start a process. The place must be empty: a death is done with before the next birth."""
        place = (birth.core, birth.ht)
        assert place not in self.by_place, f"{birth.name} is alive"
        main = coordinator_main if birth.ht < 0 else hyperthread_main
        check_room(ring_fd)
        ring = Ring(ring_fd)
        process = SPAWN.Process(target=main, args=(birth,), name=birth.name, daemon=True)
        try:
            with without_main():
                process.start()
            pidfd = pidfd_of(process)
        except OSError:  # out of descriptors, of memory or of processes: whatever was begun is undone
            ring.close()
            if process.pid is not None:
                process.kill()
            raise
        assert process.pid is not None
        child = Child(birth, process, process.pid, pidfd, ring, ring_fd, now_ns)
        self.by_place[place] = child
        self._watch(pidfd, lambda: self.reap(child))
        return child

    def reap(self, child: Child) -> None:
        """The pidfd is readable: the process has ended. Take its status and tell."""
        child.process.join(STATUS_WAIT_S)
        status = child.process.exitcode
        self._unwatch(child.pidfd)
        if self.by_place.get(child.place) is child:
            del self.by_place[child.place]
        self._on_death(child, STATUS_UNKNOWN if status is None else status)
        child.close()

    def hyperthreads(self) -> list[Child]:
        return [child for (_, ht), child in sorted(self.by_place.items()) if ht >= 0]

    def coordinators(self) -> list[Child]:
        return [child for (_, ht), child in sorted(self.by_place.items()) if ht < 0]
