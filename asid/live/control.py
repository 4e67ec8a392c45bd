"""The control server, without its sockets: requests in, answers out.

Rule 1. This file opens no socket and reads no clock: the daemon hands it frames and the time, and sends its answers.
Rule 2. No input raises. Whatever is malformed gets an error, or is dropped and counted, and changes nothing.
Rule 3. The machine is asked only after everything that can be refused here was refused.

Order of the checks, cheapest first: frames and size, form, rate, operation, role, arguments, deadline, idempotency key,
draining, holds, limits. A retry is answered from memory before draining and holds are looked at, since its effect is
there already.

An answer that comes later has a *ticket*: `Machine.begin` returns None and the daemon calls `complete` or `fail` with
that number. Work that outlives its request is a *job*: the request is answered at once with the job's name, and the
ticket ends the job.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from asid import ops, optypes
from asid.core.record import events_schema
from asid.errors import (
    BadArgument,
    ControlError,
    Expired,
    Forbidden,
    IdempotencyConflict,
    Internal,
    LimitExceeded,
    NoSuchObject,
    ShuttingDown,
    UnknownOp,
)
from asid.live import requests
from asid.live.holds import Hold, Holds
from asid.live.ledger import ClientEntry, Clients, Job, Ticket, Waiter
from asid.live.machine import Identity, Machine
from asid.live.pending import Pending, Reply, over_limit

NS_PER_MS = 1_000_000
OWN_CLIENT = "asid"  # who releases a hold whose time is over
JOB_TOLD_NS = 100_000_000  # between two records of one job that goes on

COUNTS = (
    "requests",
    "replies",
    "malformed",  # not a well-formed request
    "dropped",  # of those malformed or over the rate: without an answer
    "over_rate",
    "expired",
    "repeated",  # a known idempotency key
    "refused",  # answered with an error
    "internal",  # faults of ours
    "late_tickets",  # completions of tickets that are over
)

__all__ = ["Control", "Identity", "Machine", "Reply"]


class Control:
    """All requests of all clients. See the module's text."""

    def __init__(self, machine: Machine, identity: Identity, *, role: optypes.Role = "admin") -> None:
        self._machine = machine
        self._identity = identity
        self._clients = Clients(role)
        self._holds = Holds()
        self._pending = Pending()
        self._starting = 0  # ticket that the machine is being handed right now
        self.draining = False

    # ---------------------------------------------------------------- what the daemon calls

    def request(self, client: bytes, frames: list[bytes], now_ns: int, urgent: bool) -> list[Reply]:
        """Take one message of a client (frames after the routing id); return the answers that are due now."""
        counts = self._pending.counts
        counts["requests"] += 1
        prefix, own = requests.split_frames(frames)
        entry = self._clients.entry(client, now_ns)
        over = not entry.requests.take(now_ns)
        if over and not entry.refusals.take(now_ns):
            counts["dropped"] += 1  # not even decoded: a flood must stay cheap
            return []
        waiter = Waiter(client, "", prefix, urgent, now_ns, entry)
        try:
            body = requests.open_body(own)
            waiter.request_id = requests.read_id(body)
            request = requests.read_request(body, now_ns)
        except ControlError as error:
            counts["malformed"] += 1
            if not over and not entry.refusals.take(now_ns):
                counts["dropped"] += 1
                return []
            return self._refuse(waiter, requests.complete(error), now_ns)
        waiter.deadline_ns = request.deadline_ns
        try:
            if over:
                counts["over_rate"] += 1
                raise over_limit("rate_hz", ops.RATE_HZ_MAX, f"over {ops.BURST_MAX} requests at once", request.op)
            return self._dispatch(waiter, request, now_ns)
        except Exception as error:
            return self._refuse(waiter, self._pending.explain(error), now_ns)

    def complete(self, ticket: int, ret: dict[str, Any], seq: int) -> list[Reply]:
        """The machine did what the ticket asked for. seq: the record at which the effect can be seen."""
        held = self._find_ticket(ticket)
        if held is None:
            return []
        # The effect is there even when its return has a wrong form: the holds follow the effect.
        if isinstance(held.args, optypes.GateHoldArgs | optypes.GateReleaseArgs):
            ret = self._holds.as_ret(held.args, held.cores)
        self._holds.succeeded(held.args, held.cores)
        try:
            answer = {"ok": True, "ret": _checked(held.op, ret)}
        except Internal as error:
            answer = {"ok": False, "err": requests.error_map(self._pending.explain(error))}
        return self._settle(held, answer, seq)

    def fail(self, ticket: int, error: Exception) -> list[Reply]:
        """The machine could not do what the ticket asked for."""
        held = self._find_ticket(ticket)
        if held is None:
            return []
        self._holds.failed(held.args, held.cores, held.fresh)
        answer = {"ok": False, "err": requests.error_map(self._pending.explain(error))}
        return self._settle(held, answer, self._machine.seq())

    def progress(self, ticket: int, done: int, total: int) -> None:
        """How far a job is: delivered so far, of how many. A ticket without a job, or one that is over, is ignored."""
        held = self._pending.find(ticket)
        if held is None or held.job is None:
            return
        job, now_ns = held.job, self._machine.now_ns()
        job.done, job.total = done, total
        if now_ns - job.told_ns >= JOB_TOLD_NS:
            job.told_ns = now_ns
            self._tell(job)

    def _tell(self, job: Job) -> None:
        self._machine.note_job(job.name, job.op, job.state, job.done, job.total)

    def _settle(self, ticket: Ticket, answer: dict[str, Any], seq: int) -> list[Reply]:
        """The ticket is over, and so is its job; the end of a stop is that of the run."""
        replies = self._pending.settle(ticket, answer, seq, self._machine.now_ns())
        if ticket.job is not None and ticket.op.ret is not optypes.StopRet:
            self._tell(ticket.job)
        return replies

    def expire(self, now_ns: int) -> list[Reply]:
        """Answer the requests whose deadline has passed, and begin to release the holds whose time is over."""
        replies = self._pending.expire(self._machine.seq(), now_ns)
        for core in self._holds.overdue(now_ns):
            replies += self._release_overdue(core, now_ns)
        return replies

    def gone(self, client: bytes) -> None:
        """The client cannot be reached any more: forget its requests. What they began goes on, its holds run out."""
        self._pending.forget_client(client)
        self._clients.forget(client)

    def begin_draining(self) -> None:
        """From now on mutating operations are refused, but for those that end things."""
        self.draining = True

    def holds(self) -> dict[int, Hold]:
        """Return who holds which core's gate."""
        return self._holds.by_core()

    def counters(self) -> dict[str, int]:
        """Return counts since the start, and the present sizes of everything that is bounded."""
        return {name: self._pending.counts[name] for name in COUNTS} | {
            "clients": len(self._clients),
            "waiting": self._pending.waiting,
            "under_way": self._pending.under_way(),
            "holds": len(self._holds),
            "jobs_running": self._pending.jobs.running(),
            "idem_keys": len(self._pending.idem),
        }

    def take_faults(self) -> list[str]:
        """Return the tracebacks of faults of ours since the last call, for the daemon's log."""
        return self._pending.take_faults()

    # ---------------------------------------------------------------- one request

    def _dispatch(self, waiter: Waiter, request: requests.Request, now_ns: int) -> list[Reply]:
        op = ops.find_op(request.op)
        if waiter.urgent and not op.urgent:
            raise UnknownOp(f"{op.name} on the urgent socket", where="op", allowed="one marked urgent", hint="Use ctl.")
        if ops.ROLES.index(waiter.entry.role) < ops.ROLES.index(op.role):
            raise Forbidden(f"{waiter.entry.name} is {waiter.entry.role}", where=op.name, allowed=f"{op.role} or above")
        args = ops.convert_args(op, request.args)
        if op.mutating and not request.idem:
            raise BadArgument("missing", where="idem", allowed=f"a fresh key, which {op.name} needs")
        if request.deadline_ns <= now_ns:
            self._pending.counts["expired"] += 1
            raise Expired(
                "the deadline had passed on arrival", where=op.name, allowed="one that lies ahead",
                hint="Ask again, with a longer one.",
            )  # fmt: skip
        if not op.machine:
            return self._own(op, args, waiter, now_ns)
        if op.mutating:
            return self._mutate(op, args, request.idem, waiter, now_ns)
        ret = self._machine.query(op.name, args)
        if op.name == "gate.get":
            self._holds.add_holders(ret, now_ns)
        return self._answer(waiter, _checked(op, ret), self._machine.seq(), now_ns)

    def _mutate(self, op: ops.Op, args: optypes.Args, idem: str, waiter: Waiter, now_ns: int) -> list[Reply]:
        digest = hashlib.sha256(op.name.encode() + b"\0" + msgspec.json.encode(args)).digest()
        known = self._pending.idem.find(idem)
        if known is not None:
            if known.digest != digest:
                raise IdempotencyConflict(
                    "used before with another operation or other arguments",
                    where=f"{op.name}: idem",
                    allowed="a fresh key for a new operation",
                )
            self._pending.counts["repeated"] += 1
            if known.answer is not None:
                return [self._pending.answer(waiter, known.answer, known.seq, now_ns)]
            assert known.ticket is not None, "a key without an answer has a ticket"
            self._pending.wait(waiter, known.ticket.waiters, op.name)
            return []
        if self.draining and op.name not in ops.WHILE_DRAINING:
            raise ShuttingDown("the daemon is draining", where=op.name, hint="asid up starts a new one.")
        cores = self._cores(op, args)
        self._holds.refuse(op, args, cores, waiter.entry.name, now_ns)
        self._pending.check_room(waiter, op.name)
        ticket = self._pending.open_ticket(op, args, cores, waiter.entry.name)
        if op.is_job(args):
            return self._begin_job(ticket, idem, digest, waiter, now_ns)
        self._pending.wait(waiter, ticket.waiters, op.name)
        ticket.idem = idem
        self._pending.idem.begin(idem, digest, ticket)
        return self._begin(ticket, now_ns)

    def _begin(self, ticket: Ticket, now_ns: int) -> list[Reply]:
        # Locked before the machine is asked, so that no second holder slips in while the gate closes.
        ticket.fresh = self._holds.lock(ticket.args, ticket.cores, ticket.by, now_ns)
        try:
            ret = self._start(ticket)
        except Exception as error:
            return self.fail(ticket.number, error)
        return [] if ret is None else self.complete(ticket.number, ret, self._machine.seq())

    def _begin_job(self, ticket: Ticket, idem: str, digest: bytes, waiter: Waiter, now_ns: int) -> list[Reply]:
        """Start a job and answer with its name. The key stands for that answer; the ticket ends the job."""
        jobs = self._pending.jobs
        try:
            ticket.job = jobs.make(ticket.op.name, ticket.number, self._total(ticket))
            ret = self._start(ticket)
        except Exception:
            self._pending.drop_ticket(ticket)
            if ticket.job is not None:
                jobs.drop(ticket.job)
            raise
        ticket.job.told_ns = now_ns
        self._tell(ticket.job)
        first = {"job": ticket.job.name} | ({"accepted": 0} if ticket.op.ret is optypes.InjectRet else {})
        answer, seq = {"ok": True, "ret": _checked(ticket.op, first)}, self._machine.seq()
        self._pending.idem.begin(idem, digest, ticket)
        self._pending.idem.settle(idem, answer, seq)
        replies = [self._pending.answer(waiter, answer, seq, now_ns)]
        return replies if ret is None else replies + self.complete(ticket.number, ret, seq)

    def _start(self, ticket: Ticket) -> dict[str, Any] | None:
        """Hand a ticket to the machine; raise what the machine raises."""
        self._starting = ticket.number
        try:
            return self._machine.begin(ticket.op.name, ticket.args, ticket.number, ticket.by)
        finally:
            self._starting = 0

    def _release_overdue(self, core: int, now_ns: int) -> list[Reply]:
        args = optypes.GateReleaseArgs(target=f"c{core}", force=True)
        try:
            ticket = self._pending.open_ticket(ops.OPS["gate.release"], args, (core,), OWN_CLIENT)
        except LimitExceeded:
            return []  # it is overdue again in a moment
        return self._begin(ticket, now_ns)

    # ---------------------------------------------------------------- operations that need no machine

    def _own(self, op: ops.Op, args: optypes.Args, waiter: Waiter, now_ns: int) -> list[Reply]:
        seq = self._machine.seq()
        if isinstance(args, optypes.HelloArgs):
            return self._answer(waiter, self._hello(args, waiter.entry), seq, now_ns)
        if isinstance(args, optypes.SchemaArgs):
            events = {} if args.op else {"events": events_schema()}
            return self._answer(waiter, {"schema": {**ops.ops_schema(args.op), **events}}, seq, now_ns)
        if op.name == "ping":
            return self._answer(waiter, {"t": now_ns, "seq": seq}, seq, now_ns)
        assert isinstance(args, optypes.JobArgs | optypes.JobWaitArgs), "an operation that nobody answers"
        job = self._pending.jobs.find(args.job)
        if job is None:
            raise NoSuchObject(
                f"no job {args.job!r}", where=f"{op.name}: args.job", allowed="a job of this daemon",
                hint="Only the last are kept.",
            )  # fmt: skip
        if op.name == "job.get" or job.state != "running":
            return self._answer(waiter, job.as_ret(), max(seq, job.seq), now_ns)
        self._pending.check_room(waiter, op.name)
        if isinstance(args, optypes.JobWaitArgs):
            waiter.deadline_ns = min(waiter.deadline_ns, now_ns + args.timeout_ms * NS_PER_MS)
        elif not job.cancelling:
            self._machine.cancel(job.ticket)
            job.cancelling = True
        waiter.job = job
        self._pending.wait(waiter, job.waiters, op.name)
        return []

    def _hello(self, args: optypes.HelloArgs, entry: ClientEntry) -> dict[str, Any]:
        if args.name:
            if not args.name.isprintable():
                raise BadArgument("not printable", where="hello: args.name", allowed="printable characters")
            entry.name = args.name
        if args.role:
            # A client may give up rights for itself; it cannot get more here.
            entry.role = min(entry.role, args.role, key=ops.ROLES.index)
        me = self._identity
        return {
            "asid": me.version,
            "protocol": ops.PROTOCOL_VERSION,
            "boot_id": me.boot_id,
            "instance": me.instance,
            "pid": me.pid,
            "client": entry.name,
            "role": entry.role,
            "capabilities": list(me.capabilities),
            "limits": dict(ops.LIMITS),
            "telemetry": me.telemetry,
            "run_dir": me.run_dir,
            "draining": self.draining,
            "seq": self._machine.seq(),
        }

    # ---------------------------------------------------------------- small parts

    def _cores(self, op: ops.Op, args: optypes.Args) -> tuple[int, ...]:
        """Return the cores that this operation touches."""
        return tuple(sorted({core for name in op.targets for core, _ in self._machine.resolve(getattr(args, name))}))

    def _total(self, ticket: Ticket) -> int:
        """Return how many deeds a job is, as far as it can be told before the machine knows of it."""
        places = {place for name in ticket.op.targets for place in self._machine.resolve(getattr(ticket.args, name))}
        return getattr(ticket.args, "count", 1) * max(1, len(places))

    def _find_ticket(self, number: int) -> Ticket | None:
        assert number != self._starting or number == 0, "from within Machine.begin: return the map, or raise, instead"
        ticket = self._pending.find(number)
        if ticket is None:
            self._pending.counts["late_tickets"] += 1
        return ticket

    def _answer(self, waiter: Waiter, ret: dict[str, Any], seq: int, now_ns: int) -> list[Reply]:
        return [self._pending.answer(waiter, {"ok": True, "ret": ret}, seq, now_ns)]

    def _refuse(self, waiter: Waiter, error: ControlError, now_ns: int) -> list[Reply]:
        return [self._pending.refuse(waiter, error, self._machine.seq(), now_ns)]


def _checked(op: ops.Op, ret: dict[str, Any]) -> dict[str, Any]:
    try:
        return ops.convert_ret(op, ret)
    except msgspec.ValidationError as error:
        raise Internal(f"the return of {op.name} has a wrong form: {error}", where=op.name) from None
