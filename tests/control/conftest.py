"""A control server over a machine that does nothing but remember, with a clock that the test moves."""

from __future__ import annotations

import copy
import os
import threading
import time
from typing import Any

import msgpack
import pytest
import zmq

from asid.errors import NoSuchObject
from asid.live import instance as instances_
from asid.live import sockets
from asid.live.control import Control, Identity, Reply
from asid.live.instance import Endpoints
from asid.report.stat import StatFold

S = 1_000_000_000


# What the machine says of itself; events.fetch is answered by its arguments.
LOOKS: dict[str, dict[str, Any]] = {
    "status.get": {
        "state": "ready",
        "name": "t",
        "policy": "asi",
        "kick": "ack",
        "seed": 7,
        "started_ns": 0,
        "run_dir": "/run",
        "cores": [],
    },
    "ht.list": {"hts": []},
    "vm.list": {"vms": []},
    "gate.get": {"gates": [{"core": 0}, {"core": 1}]},
    "stats.get": {"rows": []},
    "hist.get": {"buckets": [], "n": 0},
    "policy.list": {"policies": [{"name": "asi"}], "current": "asi", "kick": "ack"},
    "config.get": {"config": {"name": "t"}},
    "space.get": {"spaces": []},
}

REMAPPED = {
    "vm": 1, "name": "a", "generation": 1, "changed": ["buses"], "mapped": [8192, 4096], "secret": [16, 0]
}  # fmt: skip

# What it says of what it did; an injection says how much it took, every other operation what it changed.
DEEDS: dict[str, dict[str, Any]] = {
    "stop": {},
    "gate.hold": {"cores": []},
    "gate.release": {"cores": []},
    "policy.set": {"old": "asi", "new": "none", "kick": "ack"},
    "space.map": REMAPPED,
    "space.unmap": REMAPPED,
}


class FakeMachine:
    """Answers at once in the operation's form (or with `ret`), or later when `defer` is set. Two cores of two."""

    def __init__(self) -> None:
        self.now = 1_000 * S
        self.head = 41
        self.defer = False
        self.refusal: Exception | None = None
        self.begun: list[tuple[str, Any, int, str]] = []
        self.cancelled: list[int] = []
        self.jobs: list[tuple[str, str, str, int, int]] = []
        self.ret: dict[str, Any] | None = None
        self.stats: StatFold | None = None

    def begin(self, op: str, args: Any, ticket: int, client: str) -> dict[str, Any] | None:
        if self.refusal is not None:
            raise self.refusal
        self.begun.append((op, args, ticket, client))
        self.head += 1
        return None if self.defer else self.answer(op)

    def answer(self, op: str) -> dict[str, Any]:
        if self.ret is not None:
            return self.ret
        if op.startswith("inject."):
            return {"accepted": 1}
        return {"seq": self.head} if op == "mark" else DEEDS.get(op, {"changed": []})

    def query(self, op: str, args: Any) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        if op == "events.fetch":
            events = [{"seq": n, "data": {"text": "x" * 500}} for n in range(args.since, args.since + args.limit)]
            return {"events": events, "next": args.since + args.limit, "complete": True, "head": 10_000}
        if op == "stats.get" and self.stats is not None:
            places = [(core, ht) for core in range(64) for ht in range(2) if args.target in ("c*", f"c{core}")]
            return self.stats.page(places, args.after, args.limit)
        return self.ret or copy.deepcopy(LOOKS[op])  # the server writes into some answers

    def note_job(self, job: str, op: str, state: str, done: int, total: int) -> None:
        self.jobs.append((job, op, state, done, total))

    def cancel(self, ticket: int) -> None:
        self.cancelled.append(ticket)

    def resolve(self, target: str) -> tuple[tuple[int, int], ...]:
        places = {"c0": ((0, 0), (0, 1)), "c1": ((1, 0), (1, 1)), "c0h1": ((0, 1),), "c1h0": ((1, 0),)}
        places["c*"] = places["c0"] + places["c1"]
        if target not in places:
            raise NoSuchObject(f"no {target}", where="target", allowed="c0 or c1", hint="asid status")
        return places[target]

    def seq(self) -> int:
        return self.head

    def now_ns(self) -> int:
        return self.now


class Desk:
    """A control server and its machine, with the client's side of the encoding."""

    def __init__(self, role: Any = "admin") -> None:
        self.machine = FakeMachine()
        identity = Identity("0.1.0", "boot", "default", 77, "ipc://tel", "/run", ("live",))
        self.control = Control(self.machine, identity, role=role)
        self._ids = 0

    def raw(self, frames: list[bytes], client: bytes = b"alice", urgent: bool = False) -> list[dict[str, Any]]:
        return answers(self.control.request(client, frames, self.machine.now, urgent))

    def body(self, body: Any, client: bytes = b"alice", urgent: bool = False) -> dict[str, Any]:
        """Send one map; return its one answer."""
        found = self.raw([b"ASID1", msgpack.packb(body)], client, urgent)
        assert len(found) == 1, found
        return found[0]

    def ask(self, op: str, args: Any = None, *, client: bytes = b"alice", urgent: bool = False, **more: Any) -> Any:
        """Ask for one operation; return its answer, None when it is put aside. A fresh key unless idem is given."""
        self._ids += 1
        body = {"v": 1, "id": f"r{self._ids}", "op": op, "idem": f"k{self._ids}"}
        if args is not None:
            body["args"] = args
        found = self.raw([b"ASID1", msgpack.packb(body | more)], client, urgent)
        assert len(found) <= 1, found
        if not found:
            return None
        assert found[0]["id"] == (body | more)["id"]
        return found[0]

    def pass_s(self, seconds: float) -> list[dict[str, Any]]:
        """Let time pass; return the answers that it brings."""
        self.machine.now += int(seconds * S)
        return answers(self.control.expire(self.machine.now))

    def error(self, answer: Any) -> str:
        assert answer is not None and answer["ok"] is False, answer
        return str(answer["err"]["class"])


def answers(replies: list[Reply]) -> list[dict[str, Any]]:
    found = []
    for reply in replies:
        assert reply.frames[-2] == b"ASID1"
        found.append(msgpack.unpackb(reply.frames[-1]))
    return found


class Server:
    """One thread: the sockets of an instance around a Desk. `orders` run in it between two turns."""

    def __init__(self, desk, paths):
        self.desk, self.paths = desk, paths
        self.orders = []
        self.strays = []
        self.silent = False
        self.syncs_lost = 0  # so many answers to a sync are dropped, as behind a full queue
        self._end = threading.Event()
        self._up = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self.thread.start()
        assert self._up.wait(5)

    def stop(self):
        self._end.set()
        self.thread.join(5)
        assert not self.thread.is_alive()

    def do(self, order):
        """Run `order(self)` in the server's thread and wait for it."""
        done = threading.Event()
        self.orders.append(lambda: (order(self), done.set()))
        assert done.wait(5)

    def publish(self, topic, **event):
        self.tel.send_multipart([topic.encode(), msgpack.packb(event)])

    def event(self, kind, seq, tseq, *, lose=False):
        self.desk.machine.head = seq
        if not lose:
            topic = f"e.c000.h0.{kind}."
            self.publish(topic, seq=seq, tseq=tseq, ts=1, type=kind, core=0, ht=0, round=0, cause=0, data={})

    def _run(self):
        context = sockets.new_context()
        self.ctl = sockets.ctl_router(context, self.paths.ctl)
        self.urgent = sockets.urgent_router(context, self.paths.urgent)
        self.tel = sockets.tel_xpub(context, self.paths.tel)
        self._up.set()
        poller = zmq.Poller()
        for socket in (self.ctl, self.urgent, self.tel):
            poller.register(socket, zmq.POLLIN)
        while not self._end.is_set():
            poller.poll(5)
            while self.orders:
                self.orders.pop(0)()
            while (message := sockets.receive_nonblocking(self.tel)) is not None:
                if message[0] == b"\x01s.":
                    self.publish("s.c000.h0.", t=1, seq=self.desk.machine.head, mode="GUEST")
                if message[0].startswith(b"\x01y.sync.") and self.syncs_lost:
                    self.syncs_lost -= 1
                elif message[0].startswith((b"\x01y.welcome.", b"\x01y.sync.")):
                    self.publish(message[0][1:].decode(), seq=self.desk.machine.head)
            self.desk.machine.now = time.monotonic_ns()
            replies = self.desk.control.expire(self.desk.machine.now)
            for socket, urgent in ((self.urgent, True), (self.ctl, False)):
                while (message := sockets.receive_nonblocking(socket)) is not None:
                    if not self.silent:
                        found = self.desk.control.request(message[0], message[1:], time.monotonic_ns(), urgent)
                        replies += found
            for reply in replies:
                socket = self.urgent if reply.urgent else self.ctl
                for stray in self.strays:
                    sockets.send_nonblocking(socket, [reply.client, *stray])
                sockets.send_nonblocking(socket, [reply.client, *reply.frames])
        sockets.close(context, self.ctl, self.urgent, self.tel)


@pytest.fixture
def place(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return instances_.make_instance_dir("t")


@pytest.fixture
def server(desk, place):
    lock_fd = instances_.take_lock(place)
    one = Server(desk, place)
    one.start()
    endpoints = Endpoints(
        1, "boot", os.getpid(), "t", f"ipc://{place.ctl}", f"ipc://{place.urgent}", f"ipc://{place.tel}", "", 0
    )
    instances_.write_endpoints(place, endpoints)
    yield one
    one.stop()
    os.close(lock_fd)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def observer() -> Desk:
    return Desk(role="observer")


@pytest.fixture(scope="session")
def make_desk() -> type[Desk]:
    """For tests that need a new one for each example."""
    return Desk
