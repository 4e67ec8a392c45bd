"""The client's side of the control protocol: what scripts, tests and the command line talk to a daemon with.

    with asid.connect() as client:
        with client.events("gate") as events:
            reply = client.inject_exit("c0h1", reason="EPT_VIOLATION", count=100)
            events.wait_seq(reply.seq)

Every call has one deadline, computed once; an answer to an older call is dropped by its id and extends nothing. A call
without an answer raises NoAnswer, and what was asked for may still happen: `error.data["idem"]` is the key with which
asking again has no second effect. Errors of the daemon are raised as the class of asid.errors that they name.

A client belongs to one thread of one process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack
import zmq

from asid import ops
from asid.errors import (
    EXIT_INTERRUPTED,
    AsidError,
    ControlError,
    NoAnswer,
    NotRunning,
)
from asid.live import instance as instances_
from asid.live import silence, sockets
from asid.live.instance import Endpoints, Instance
from asid.live.outcome import as_error, decode_answer
from asid.live.subscriber import POLL_SLICE_MS, Event, Events

if TYPE_CHECKING:
    from asid.running import Daemon, Run

__all__ = [
    "AsidError",
    "Client",
    "ControlError",
    "Daemon",
    "Event",
    "Events",
    "Instance",
    "NoAnswer",
    "NotRunning",
    "Reply",
    "Run",
    "connect",
    "exit_with",
    "instances",
]

NS_PER_MS = 1_000_000
TIMEOUT_S = 5.0
LAST_MS = 2_000  # from the lock, which a daemon gives back last, to the end of its process
SECONDS_MAX = 1_000_000  # that a script may be told to take or to wait
FETCH_PAGE = 500  # records asked for at a time


def __getattr__(name: str) -> Any:
    if name in ("Daemon", "Run"):
        from asid import running

        return getattr(running, name)
    raise AttributeError(f"module 'asid.client' has no attribute {name!r}")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: ret as docs/protocol.md has it; seq: the record at which the effect is visible; t: daemon's clock."""

    ret: dict[str, Any]
    seq: int
    t: int

    def __getitem__(self, name: str) -> Any:
        return self.ret[name]


def instances() -> list[Instance]:
    """Return the instances of this user; running, stale and ended ones."""
    return instances_.find_instances()


def connect(instance: str = "", *, name: str = "", timeout_s: float = TIMEOUT_S) -> Client:
    """Return a client of a running instance: the one named, else ASID_INSTANCE, else `default`. Raise NotRunning.

    name: who holds the locks that this client takes; by default the program and its terminal or process.
    """
    wanted = instance or os.environ.get("ASID_INSTANCE", "") or instances_.DEFAULT_INSTANCE
    paths = instances_.instance_paths(wanted)
    endpoints = instances_.read_endpoints(paths)
    locked = instances_.is_locked(paths)
    if locked and endpoints is None:
        raise silence.of_one_between(paths)
    if not locked or endpoints is None:
        running = [found.name for found in instances() if found.running]
        raise NotRunning(
            f"no daemon runs as instance {wanted!r}",
            state=f"running: {', '.join(running)}" if running else "none runs",
            hint=f"asid up --instance {wanted} --detach" if not running else "Choose one with --instance.",
            data={"instance": wanted},
        )
    client = Client(endpoints, name=name, timeout_s=timeout_s)
    try:
        client.hello()
    except BaseException:
        client.close()
        raise
    return client


class Client:
    """A connection to one daemon. See the module's text."""

    def __init__(self, endpoints: Endpoints, *, name: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self.endpoints = endpoints
        self.name = name or default_name()
        self.timeout_s = timeout_s
        self._made_by = os.getpid()
        self._identity = b"k" + secrets.token_bytes(15)  # never begins with 0, which ZeroMQ keeps for itself
        self._context = sockets.new_context()
        self._ctl = sockets.client_dealer(self._context, endpoints.ctl, self._identity)
        self._urgent = sockets.client_dealer(self._context, endpoints.urgent, self._identity)
        self._subscriptions: list[Events] = []
        self._closed = False
        self._pidfd = -1
        with contextlib.suppress(OSError):  # without it a daemon's death shows at the deadline only
            self._pidfd = os.pidfd_open(endpoints.pid)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; subscriptions too. Twice is fine."""
        if self._closed or self._made_by != os.getpid():
            return
        self._closed = True
        for events in self._subscriptions:
            events.close()
        sockets.close(self._context, self._ctl, self._urgent)
        if self._pidfd >= 0:
            os.close(self._pidfd)

    # ---------------------------------------------------------------- one call

    def call(
        self,
        op: str,
        args: dict[str, Any] | None = None,
        *,
        idem: str = "",
        timeout_s: float | None = None,
        urgent: bool | None = None,
    ) -> Reply:
        """Ask for one operation and wait for its answer.

        idem: key for a retry, a fresh one by default. urgent: which socket; by default urgent if the operation is.
        Raise NoAnswer (effect unknown), NotRunning (nothing was sent) or the ControlError that the daemon names.
        """
        assert not self._closed, "a closed client"
        assert self._made_by == os.getpid(), "a client made before a fork: connect in the child"
        known = ops.OPS.get(op)
        timeout_ms = max(1, int((self.timeout_s if timeout_s is None else timeout_s) * 1000))
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + timeout_ms * NS_PER_MS
        request_id = secrets.token_hex(8)
        body: dict[str, Any] = {"v": ops.PROTOCOL_VERSION, "id": request_id, "op": op, "t": now_ns}
        body["deadline_ms"] = min(timeout_ms, ops.DEADLINE_MS_MAX)
        if args:
            body["args"] = args
        if known is None or known.mutating:
            idem = body["idem"] = idem or secrets.token_hex(12)
        on_urgent = urgent if urgent is not None else known is not None and known.urgent and op != "hello"
        socket = self._urgent if on_urgent else self._ctl
        self._send(socket, [ops.MAGIC, msgpack.packb(body)], op, deadline_ns)
        return self._receive(socket, request_id, op, idem, deadline_ns)

    def _send(self, socket: zmq.Socket[bytes], frames: list[bytes], op: str, deadline_ns: int) -> None:
        while not sockets.send_nonblocking(socket, frames):
            self._pause(socket, zmq.POLLOUT, deadline_ns, op, sent=False)

    def _receive(self, socket: zmq.Socket[bytes], request_id: str, op: str, idem: str, deadline_ns: int) -> Reply:
        while True:
            frames = sockets.receive_nonblocking(socket)
            if frames is None:
                self._pause(socket, zmq.POLLIN, deadline_ns, op, sent=True, idem=idem)
                continue
            answer = decode_answer(frames)
            if answer is None or answer.get("id") not in (request_id, ""):
                continue  # an answer to a call that was given up
            if answer.get("ok") is True:
                return Reply(answer["ret"], answer["seq"], answer["t"])
            raise as_error(answer.get("err", {}), idem)

    def _pause(
        self, socket: zmq.Socket[bytes], flag: int, deadline_ns: int, what: str, *, sent: bool, idem: str = ""
    ) -> None:
        """Wait a little for the socket. Raise when the deadline has passed or the daemon has ended."""
        left_ms = (deadline_ns - time.monotonic_ns()) // NS_PER_MS
        dead = False
        if left_ms > 0:
            poller = zmq.Poller()
            poller.register(socket, flag)
            if self._pidfd >= 0:
                poller.register(self._pidfd, zmq.POLLIN)
            ready = dict(poller.poll(min(left_ms, POLL_SLICE_MS)))
            # Its last answer may still be on the way: its death counts only when nothing else comes.
            dead = self._pidfd in ready and socket not in ready and not socket.poll(POLL_SLICE_MS, flag)
        if left_ms > 0 and not dead:
            return
        raise silence.of(instances_.instance_paths(self.endpoints.instance), what, dead=dead, sent=sent, idem=idem)

    # ---------------------------------------------------------------- operations by name

    def hello(self) -> Reply:
        """Say who we are, on both sockets: the name owns the locks."""
        reply = self.call("hello", {"name": self.name})
        self.call("hello", {"name": self.name}, urgent=True)
        return reply

    def ping(self, *, urgent: bool = True, timeout_s: float | None = None) -> Reply:
        return self.call("ping", urgent=urgent, timeout_s=timeout_s)

    def status(self) -> dict[str, Any]:
        return self.call("status.get").ret

    def stats(self, target: str = "c*") -> dict[str, Any]:
        """Return rows and totals of the exits, as in stats.json. A long table comes by pages, one after the other."""
        rows: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.call("stats.get", {"target": target, "after": after})
            rows += page["rows"]
            after = page["next"]
            if not after:
                return {"rows": rows, "totals": page["totals"]}

    def inject_exit(self, target: str, *, reason: str = "EPT_VIOLATION", full: str = "auto", **more: Any) -> Reply:
        """Make VM exits happen. more: count, rate_hz, wait; and timeout_s, idem."""
        return self.inject("exit", target, reason=reason, full=full, **more)

    def inject_nmi(self, target: str, **more: Any) -> Reply:
        return self.inject("nmi", target, **more)

    def inject_mce(self, target: str, *, scope: str = "auto", **more: Any) -> Reply:
        return self.inject("mce", target, scope=scope, **more)

    def inject(self, what: str, on: str, /, *, timeout_s: float | None = None, idem: str = "", **args: Any) -> Reply:
        """Inject exit, nmi, mce, irq, stall or kill; see docs/protocol.md for the arguments of each."""
        return self.call(f"inject.{what}", {"target": on, **args}, timeout_s=timeout_s, idem=idem)

    def gate_hold(self, target: str, *, ttl_ms: int = 10_000) -> Reply:
        return self.call("gate.hold", {"target": target, "ttl_ms": ttl_ms})

    def gate_release(self, target: str, *, force: bool = False) -> Reply:
        return self.call("gate.release", {"target": target, "force": force})

    def policy_set(self, name: str, *, kick: str = "") -> Reply:
        return self.call("policy.set", {"name": name, "kick": kick})

    def plug(self, target: str) -> Reply:
        return self.call("ht.plug", {"target": target})

    def unplug(self, target: str, *, force: bool = False) -> Reply:
        return self.call("ht.unplug", {"target": target, "force": force})

    def attach(self, vcpu: str, to: str) -> Reply:
        return self.call("vcpu.attach", {"target": vcpu, "to": to})

    def detach(self, target: str) -> Reply:
        return self.call("vcpu.detach", {"target": target})

    def mark(self, text: str) -> Reply:
        return self.call("mark", {"text": text})

    def stop(self, *, force: bool = False, reason: str = "stop") -> Reply:
        """Ask the daemon to end; answered when it has begun to. See `wait_ended`."""
        return self.call("stop", {"force": force, "reason": reason})

    def wait_ended(self, timeout_s: float) -> None:
        """Wait until the daemon's process is gone. Raise NoAnswer."""
        paths = instances_.instance_paths(self.endpoints.instance)
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        poller = zmq.Poller()
        if self._pidfd >= 0:
            poller.register(self._pidfd, zmq.POLLIN)
        while time.monotonic_ns() < deadline_ns:
            if poller.poll(POLL_SLICE_MS):
                return
            if not instances_.is_locked(paths):
                poller.poll(LAST_MS)  # its process goes next; one that judges its run takes longer, in nobody's way
                return
        raise NoAnswer("the daemon still runs", state=f"after {timeout_s:g} s", hint="asid down --force")

    @property
    def has_ended(self) -> bool:
        """Whether the daemon of this connection is gone, whoever has its name by now."""
        if self._pidfd < 0:
            return not instances_.is_locked(instances_.instance_paths(self.endpoints.instance))
        poller = zmq.Poller()
        poller.register(self._pidfd, zmq.POLLIN)
        return bool(poller.poll(0))

    def wait_job(self, job: str, *, timeout_s: float | None = None) -> Reply:
        """Wait for the end of a job. Raise NoAnswer when it still runs then, its own error when it failed."""
        deadline_ns = time.monotonic_ns() + int((self.timeout_s if timeout_s is None else timeout_s) * 1e9)
        while (left_ms := (deadline_ns - time.monotonic_ns()) // NS_PER_MS) > 0:
            slice_ms = min(left_ms, 1_000)
            # A busy daemon may be late with it: only the end of the whole wait is too late.
            reply = self.call("job.wait", {"job": job, "timeout_ms": slice_ms}, timeout_s=left_ms / 1000 + 1)
            if reply["state"] == "failed":
                raise as_error(reply["error"])
            if reply["state"] != "running":
                return reply
        raise NoAnswer(f"job {job} still runs", hint=f"Wait longer, or cancel it: job.cancel {job}", data={"job": job})

    # ---------------------------------------------------------------- events

    def events(self, *topics: str, since: int | None = None, timeout_s: float | None = None) -> Events:
        """Return a subscription, to be entered as a context manager.

        topics: types (`gate`, `ht.mode`), places (`c0h1`) or raw prefixes; none: every event. since: first record
        wanted, fetched from the journal when it has passed already; by default what comes from now on.
        """
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        events = Events(
            self._context, self.endpoints.tel, topics, self.fetch, since=since, timeout_s=wait_s, pidfd=self._pidfd
        )
        self._subscriptions.append(events)
        return events

    def fetch(self, since: int, until: int, topics: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the records since..until (both included) from the journal, by pages. topics: prefixes, [] for all."""
        while since <= until:
            ask = {"since": since, "until": until, "limit": FETCH_PAGE, "topics": topics}
            reply = self.call("events.fetch", ask)
            yield from reply["events"]
            if reply["complete"] or reply["next"] <= since:
                return
            since = reply["next"]


def default_name() -> str:
    """Return `program@terminal`, or `@session-N`: who holds a gate with one command releases it with the next."""
    script = Path(sys.argv[0] or "python")
    program = script.parent.name if script.stem == "__main__" else script.stem
    place = f"session-{os.getsid(0)}"
    with contextlib.suppress(OSError, ValueError):
        place = os.ttyname(0).removeprefix("/dev/")
    text = f"{program}@{place}"[:64]
    return text if text.isprintable() else f"client@{os.getpid()}"


def seconds(text: str) -> float:
    """Return a time of a script's command line, in seconds: a type for argparse, which says what is none."""
    import argparse

    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= SECONDS_MAX:  # a NaN is neither
        raise argparse.ArgumentTypeError(f"{text!r} is no time: must be seconds above 0, at most {SECONDS_MAX}")
    return found


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a script's main and exit with its code; say an error of asid in its own words and exit with its code."""
    try:
        code = main()
        sys.stdout.flush()
    except AsidError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {type(error).__name__}: {error}\n")
        sys.stderr.write(f"hint: {error.hint}\n" if error.hint else "")
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
