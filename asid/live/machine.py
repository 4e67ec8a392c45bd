"""What the control server needs of the daemon: the machine it acts on, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from asid import optypes


class Machine(Protocol):
    """What the daemon can do. Every method returns at once; all run in the thread that calls Control."""

    def begin(self, op: str, args: optypes.Args, ticket: int, client: str) -> dict[str, Any] | None:
        """Start a mutating operation. Return its return when it is done, None when complete(ticket) or fail(ticket)
        will follow (never from within this call). Raise ControlError to refuse, with no effect."""
        ...

    def query(self, op: str, args: optypes.Args) -> dict[str, Any]:
        """Answer an operation that changes nothing."""
        ...

    def cancel(self, ticket: int) -> None:
        """End this job early. Its complete(ticket) follows all the same, later, with what was done by then."""
        ...

    def note_job(self, job: str, op: str, state: str, done: int, total: int) -> None:
        """Let readers of the events know of a job: at its begin, on its way, and at its end."""
        ...

    def resolve(self, target: str) -> tuple[tuple[int, int], ...]:
        """Return the (core, ht) pairs of a target. Raise NoSuchObject, or ConfigError for a bad form."""
        ...

    def seq(self) -> int:
        """Return the number of the last record."""
        ...

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What `hello` tells about the daemon. telemetry: endpoint; run_dir: path or empty."""

    version: str
    boot_id: str
    instance: str
    pid: int
    telemetry: str
    run_dir: str = ""
    capabilities: tuple[str, ...] = ()
