"""What the control server remembers: clients, idempotency keys, jobs, tickets. Each is bounded.

Not to be confused with the journal: nothing here survives the daemon, and nothing here decides about a gate.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from asid import ops, optypes
from asid.errors import LimitExceeded

NS_PER_S = 1_000_000_000
REFUSALS_HZ_MAX = 1_000  # errors a second told to one client; beyond, its bad requests are dropped and counted


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate_hz` in the long run, `burst` at once."""

    rate_hz: int
    burst: int
    tokens: float
    at_ns: int

    @classmethod
    def full(cls, rate_hz: int, burst: int, now_ns: int) -> Bucket:
        return cls(rate_hz, burst, burst, now_ns)

    def ready(self, now_ns: int) -> bool:
        """Return whether there is a token. A clock that stands still or goes back adds nothing."""
        passed_ns = max(0, now_ns - self.at_ns)
        self.at_ns = max(self.at_ns, now_ns)
        self.tokens = min(float(self.burst), self.tokens + passed_ns * self.rate_hz / NS_PER_S)
        return self.tokens >= 1

    def take(self, now_ns: int) -> bool:
        """Take one token; return False when there is none."""
        if not self.ready(now_ns):
            return False
        self.tokens -= 1
        return True


@dataclass(slots=True)
class ClientEntry:
    """One routing id. `name` owns the locks: what the client called itself, else its id."""

    name: str
    role: optypes.Role
    requests: Bucket
    refusals: Bucket
    in_flight: int = 0


class Clients:
    """Clients by routing id, the longest silent forgotten first."""

    def __init__(self, role: optypes.Role) -> None:
        self._role: optypes.Role = role
        self._entries: OrderedDict[bytes, ClientEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, client: bytes, now_ns: int) -> ClientEntry:
        """Return the entry of a client, new if need be."""
        entry = self._entries.get(client)
        if entry is None:
            self._make_room()
            entry = ClientEntry(
                f"id:{client.hex()[:32]}",
                self._role,
                Bucket.full(ops.RATE_HZ_MAX, ops.BURST_MAX, now_ns),
                Bucket.full(REFUSALS_HZ_MAX, REFUSALS_HZ_MAX, now_ns),
            )
            self._entries[client] = entry
        self._entries.move_to_end(client)
        return entry

    def _make_room(self) -> None:
        while len(self._entries) >= ops.CLIENTS_MAX:
            # One that waits for an answer must stay, or its count would start anew; tickets bound how many wait.
            idle = next((key for key, entry in self._entries.items() if entry.in_flight == 0), None)
            if idle is None:
                return
            del self._entries[idle]

    def forget(self, client: bytes) -> None:
        self._entries.pop(client, None)


@dataclass(slots=True, eq=False)
class Waiter:
    """A request without an answer yet."""

    client: bytes
    request_id: str
    prefix: list[bytes]
    urgent: bool
    deadline_ns: int
    entry: ClientEntry
    job: Job | None = None  # waits for this job, not for an operation
    queue: list[Waiter] | None = None  # of the ticket or job that will answer it; None: not waiting


@dataclass(slots=True, eq=False)
class Job:
    """Work that outlives its request."""

    name: str
    op: str
    ticket: int
    state: str = "running"
    done: int = 0
    total: int = 0
    seq: int = 0
    cancelling: bool = False
    told_ns: int = 0  # when its progress was last told to readers of the events
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    waiters: list[Waiter] = field(default_factory=list)

    def as_ret(self) -> dict[str, Any]:
        return {
            "job": self.name,
            "op": self.op,
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "seq": self.seq,
            "result": self.result,
            "error": self.error,
        }


class Jobs:
    """Jobs by name, the oldest ended ones forgotten first."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._made = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def running(self) -> int:
        return sum(job.state == "running" for job in self._jobs.values())

    def find(self, name: str) -> Job | None:
        return self._jobs.get(name)

    def make(self, op: str, ticket: int, total: int) -> Job:
        """Return a new running job. Raise LimitExceeded when every remembered job still runs."""
        while len(self._jobs) >= ops.JOBS_MAX:
            ended = next((name for name, job in self._jobs.items() if job.state != "running"), None)
            if ended is None:
                raise LimitExceeded(
                    f"{len(self._jobs)} jobs run already",
                    where=op,
                    allowed=f"at most {ops.JOBS_MAX}",
                    hint="Wait for one to end, or cancel one.",
                    data={"limit": "jobs"},
                )
            del self._jobs[ended]
        self._made += 1
        job = Job(f"j{self._made}", op, ticket, total=total)
        self._jobs[job.name] = job
        return job

    def drop(self, job: Job) -> None:
        self._jobs.pop(job.name, None)


@dataclass(slots=True, eq=False)
class Ticket:
    """An operation under way in the machine, and who waits for it. cores: those it touches."""

    number: int
    op: ops.Op
    args: optypes.Args
    cores: tuple[int, ...]
    by: str
    idem: str = ""
    job: Job | None = None
    fresh: tuple[int, ...] = ()  # cores that this gate.hold was the first to lock: undone if it fails
    waiters: list[Waiter] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Remembered:
    """An idempotency key: what was asked, and the answer once there is one."""

    digest: bytes
    ticket: Ticket | None
    answer: dict[str, Any] | None = None
    seq: int = 0


class IdemCache:
    """Idempotency keys, those with an answer forgotten from the least recently used on."""

    def __init__(self, limit: int = ops.IDEM_KEYS_MAX) -> None:
        self._limit = limit
        self._entries: OrderedDict[str, Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str) -> Remembered | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def begin(self, key: str, digest: bytes, ticket: Ticket) -> None:
        self._entries[key] = Remembered(digest, ticket)

    def settle(self, key: str, answer: dict[str, Any], seq: int) -> None:
        """Keep the answer for the next time that this key comes, and make room."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.answer, entry.seq, entry.ticket = answer, seq, None
        self._entries.move_to_end(key)
        while len(self._entries) > self._limit:
            oldest = next((name for name, kept in self._entries.items() if kept.ticket is None), None)
            if oldest is None:
                return
            del self._entries[oldest]

    def forget(self, key: str) -> None:
        self._entries.pop(key, None)
