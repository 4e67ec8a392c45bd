"""Requests that wait for an answer, and the answers: deadlines, tickets, jobs, idempotency keys.

Not to be confused with `control`, which decides whether a request is taken at all.
"""

from __future__ import annotations

import heapq
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

from asid import ops, optypes
from asid.errors import ControlError, Expired, Internal, LimitExceeded
from asid.live import requests
from asid.live.ledger import IdemCache, Job, Jobs, Ticket, Waiter
from asid.report.stat import row_name

FAULTS_KEPT_MAX = 16


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on its way: frames after the routing id. urgent: on which of the two sockets."""

    client: bytes
    frames: list[bytes]
    urgent: bool


class Pending:
    """Everything under way. The daemon's thread only."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.idem = IdemCache()
        self.jobs = Jobs()
        self.waiting = 0
        self._tickets: dict[int, Ticket] = {}
        self._ticket_last = 0
        self._due: list[tuple[int, int, Waiter]] = []  # heap by deadline; those answered meanwhile leave it later
        self._due_last = 0
        self._faults: list[str] = []

    # ---------------------------------------------------------------- tickets

    def under_way(self) -> int:
        return len(self._tickets)

    def find(self, number: int) -> Ticket | None:
        return self._tickets.get(number)

    def open_ticket(self, op: ops.Op, args: optypes.Args, cores: tuple[int, ...], by: str) -> Ticket:
        """Return a new ticket. Raise LimitExceeded when too much is under way."""
        if len(self._tickets) >= ops.TICKETS_MAX:
            raise over_limit("tickets", ops.TICKETS_MAX, f"{len(self._tickets)} operations are under way", op.name)
        self._ticket_last += 1
        ticket = Ticket(self._ticket_last, op, args, cores, by)
        self._tickets[ticket.number] = ticket
        return ticket

    def drop_ticket(self, ticket: Ticket) -> None:
        del self._tickets[ticket.number]

    def settle(self, ticket: Ticket, answer: dict[str, Any], seq: int, now_ns: int) -> list[Reply]:
        """The ticket is over: answer all who wait for it, end its job, keep the answer for its key."""
        self.drop_ticket(ticket)
        waiters = ticket.waiters
        if ticket.idem:
            if answer["ok"] or answer["err"]["applied"] != "no":
                self.idem.settle(ticket.idem, answer, seq)
            else:
                self.idem.forget(ticket.idem)  # nothing happened, so the same key may try again
        if ticket.job is not None:
            _end_job(ticket.job, answer, seq)
            waiters, answer = ticket.job.waiters, {"ok": True, "ret": ticket.job.as_ret()}
        return [self.answer(waiter, answer, seq, now_ns) for waiter in list(waiters)]

    # ---------------------------------------------------------------- waiting

    def check_room(self, waiter: Waiter, op: str) -> None:
        """Raise LimitExceeded when this client, or all together, have too many requests unanswered."""
        if waiter.entry.in_flight >= ops.IN_FLIGHT_MAX:
            raise over_limit("in_flight", ops.IN_FLIGHT_MAX, f"{waiter.entry.in_flight} requests are unanswered", op)
        if self.waiting >= ops.WAITERS_MAX:
            raise over_limit("waiters", ops.WAITERS_MAX, f"{self.waiting} requests are unanswered", op)

    def wait(self, waiter: Waiter, queue: list[Waiter], op: str) -> None:
        """Put a request aside until its answer is known, its deadline at the latest."""
        self.check_room(waiter, op)
        queue.append(waiter)
        waiter.queue = queue
        waiter.entry.in_flight += 1
        self.waiting += 1
        self._due_last += 1
        heapq.heappush(self._due, (waiter.deadline_ns, self._due_last, waiter))
        if len(self._due) > 2 * ops.WAITERS_MAX:
            self._due = [item for item in self._due if item[2].queue is not None]
            heapq.heapify(self._due)

    def stop_waiting(self, waiter: Waiter) -> None:
        if waiter.queue is not None:
            waiter.queue.remove(waiter)
            waiter.queue = None
            waiter.entry.in_flight -= 1
            self.waiting -= 1

    def forget_client(self, client: bytes) -> None:
        for _, _, waiter in self._due:
            if waiter.client == client:
                self.stop_waiting(waiter)

    def expire(self, seq: int, now_ns: int) -> list[Reply]:
        """Answer the requests whose deadline has passed. What they began goes on; its result is kept for their key."""
        replies: list[Reply] = []
        while self._due and (self._due[0][0] <= now_ns or self._due[0][2].queue is None):
            waiter = heapq.heappop(self._due)[2]
            if waiter.queue is None:
                continue
            if waiter.job is not None:
                replies.append(self.answer(waiter, {"ok": True, "ret": waiter.job.as_ret()}, seq, now_ns))
                continue
            self.counts["expired"] += 1
            error = Expired(
                "the deadline passed before it was done",
                state="it may still happen",
                hint="Ask again with the same idempotency key.",
            )
            err = {**requests.error_map(error), "applied": "unknown"}
            replies.append(self.answer(waiter, {"ok": False, "err": err}, seq, now_ns))
        return replies

    # ---------------------------------------------------------------- answers

    def answer(self, waiter: Waiter, answer: dict[str, Any], seq: int, now_ns: int) -> Reply:
        """Encode an answer, now or for a request that waited."""
        self.stop_waiting(waiter)
        body = self._encode(waiter.request_id, answer, seq, now_ns)
        self.counts["replies"] += 1
        return Reply(waiter.client, [*waiter.prefix, ops.MAGIC, body], waiter.urgent)

    def refuse(self, waiter: Waiter, error: ControlError, seq: int, now_ns: int) -> Reply:
        self.counts["refused"] += 1
        return self.answer(waiter, {"ok": False, "err": requests.error_map(error)}, seq, now_ns)

    def _encode(self, request_id: str, answer: dict[str, Any], seq: int, now_ns: int) -> bytes:
        try:
            body = requests.encode_answer(request_id, answer, seq, now_ns)
            while len(body) > ops.REPLY_BYTES_MAX:
                answer = _halved(answer)
                body = requests.encode_answer(request_id, answer, seq, now_ns)
        except Exception as error:
            err = requests.error_map(self.explain(error))
            return requests.encode_answer(request_id, {"ok": False, "err": err}, seq, now_ns)
        return body

    def explain(self, error: Exception) -> ControlError:
        """Return what to tell; a fault of ours is kept for the daemon's log."""
        told = requests.as_control_error(error)
        if told.applied == "no" and isinstance(told, requests.UNFIT):
            return requests.complete(told)
        if isinstance(told, Internal):
            self.counts["internal"] += 1
            if len(self._faults) < FAULTS_KEPT_MAX:
                self._faults.append("".join(traceback.format_exception(error)))
        return told

    def take_faults(self) -> list[str]:
        faults, self._faults = self._faults, []
        return faults


def over_limit(name: str, most: int, state: str, where: str) -> LimitExceeded:
    """Return the error for a limit; `name` is its name in `hello`."""
    return LimitExceeded(
        state, where=where, allowed=f"at most {most} ({name})", hint="Try again in a moment.", data={"limit": name}
    )


def _end_job(job: Job, answer: dict[str, Any], seq: int) -> None:
    job.seq = seq
    if not answer["ok"]:
        job.error, job.state = answer["err"], "failed"
        return
    job.result = answer["ret"]
    # What was accepted and not taken back is what was delivered, whoever cut it short: a cancel or the end.
    job.done = min(job.result.get("accepted", job.total), job.total)
    job.state = "cancelled" if job.done < job.total else "done"


def _halved(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of events.fetch or stats.get with half of what it tells, and where to go on. Raise LimitExceeded
    for any other answer."""
    ret = answer.get("ret", {})
    name = "rows" if "rows" in ret else "events"
    told = ret.get(name) or []
    if len(told) < 2:
        raise LimitExceeded(
            "the answer is too long",
            allowed=f"at most {ops.REPLY_BYTES_MAX} bytes",
            hint="Ask for less.",
            data={"limit": "reply_bytes"},
        )
    kept = told[: len(told) // 2]
    after = {"next": row_name(kept[-1])} if name == "rows" else {"next": kept[-1]["seq"] + 1, "complete": False}
    return {**answer, "ret": {**ret, name: kept, **after}}
