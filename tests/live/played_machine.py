"""A daemon's parent and its operations over children that the test plays: who answers, who dies, and when."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack

from asid.config import Loaded, load_config
from asid.live import parent as parent_
from asid.live.operations import Operations
from asid.live.parent import Parent
from asid.mm.entry import Level
from asid.mm.isolated import Entry
from asid.space_build import mapping_at_start

MS = 1_000_000
S = 1_000_000_000
Place = tuple[int, int]


class Clock:
    """A node's timers, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000 * S
        self.timers: dict[object, tuple[int, Callable[[], None]]] = {}

    def now_ns(self) -> int:
        return self.now

    def has_timer(self, key: object) -> bool:
        return key in self.timers

    def set_timer(self, key: object, after_ns: int, what: Callable[[], None]) -> None:
        self.timers[key] = (self.now + after_ns, what)

    def fire(self) -> None:
        for key, (at, what) in sorted(self.timers.items(), key=lambda item: item[1][0]):
            if at <= self.now and self.timers.get(key) == (at, what):
                del self.timers[key]
                what()


class Actor:
    """A process that does what it is told when the test lets it."""

    def __init__(self, birth: Any) -> None:
        self.birth = birth
        self.place: Place = (birth.core, birth.ht)
        self.pid = 0
        self.kind = "coordinator" if birth.ht < 0 else "ht"
        self.ring = SimpleNamespace(empty=True)
        self.identity = f"{birth.name}.{birth.inc}".encode()
        self.up, self.wanted, self.born_ns = True, False, 0
        self.outbox: list[dict[str, Any]] = []
        self.mail: deque[dict[str, Any]] = deque()
        self.signals: list[int] = []
        self.policy = (birth.policy, birth.kick)
        self.held = set(birth.held)
        self.vms = dict(enumerate(birth.attached))  # a coordinator's: which VM is to run where
        self.number = birth.vcpu[1]
        self.mapped = [{entry.object: entry for entry in entries} for entries in birth.mapping]
        self.generation = birth.generation

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self.wanted = self.wanted or signum == signal.SIGKILL
        self.signals.append(signum)


class PlayedMachine(Parent):
    """Two cores of two; vm1 on everything."""

    def __init__(self, monkeypatch: Any) -> None:
        super().__init__()
        monkeypatch.setattr(parent_, "make_ring", lambda name: -1)
        self.config = load_config({"machine": {"cores": 2, "smt": 2}, "vm": [{"on": ["c*"]}]})
        self.topology = self.config.topology
        self.node = Clock()  # type: ignore[assignment]
        self.loaded = Loaded(self.config, None, "", Path("."), {})
        self.mapping = tuple(mapping_at_start(self.loaded).values())
        self.paths = SimpleNamespace(root=Path("."))  # type: ignore[assignment]
        self.link_path = "."  # type: ignore[assignment]
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.merge = SimpleNamespace(  # type: ignore[assignment]
            note=lambda kind, data, *place: self.notes.append((kind, data)), drain=lambda rings: None
        )
        self.refused: list[Place] = []
        self.injector = SimpleNamespace(  # type: ignore[assignment]
            on_death=lambda place: None, on_detach=self.refused.append, on_done=lambda number, left: None
        )
        self.drain = lambda: None
        self.now_ns = self.node.now_ns
        self.policy, self.kick, self.state = "asi", "ack", "ready"
        self.answers: dict[int, Any] = {}
        self.by_place: dict[Place, Actor] = {}
        self.children = SimpleNamespace(  # type: ignore[assignment]
            by_place=self.by_place,
            hyperthreads=lambda: [actor for (_, ht), actor in sorted(self.by_place.items()) if ht >= 0],
            coordinators=lambda: [actor for (_, ht), actor in sorted(self.by_place.items()) if ht < 0],
        )
        self.later = lambda after_ns, what: self.node.set_timer(object(), after_ns, what)
        self.vcpus = {(core, ht): (1, 2 * core + ht) for core in range(2) for ht in range(2)}
        for core in range(2):
            self.pages[core] = (0, SimpleNamespace(words=[0] * 1000))  # type: ignore[assignment]
            for ht in range(2):
                self.bells[core, ht] = 0
        self.operations = Operations(self)  # type: ignore[arg-type]
        for core in range(2):
            self.bear_coordinator(core)
            for ht in range(2):
                self.bear_hyperthread((core, ht))

    def _bear(self, birth: Any, ring_fd: int) -> None:
        assert (birth.core, birth.ht) not in self.by_place
        self.by_place[birth.core, birth.ht] = Actor(birth)

    def tell(self, child: Any, message: dict[str, Any]) -> None:
        child.mail.append(message)

    def note_policy(self, old: str, new: str, kick: str) -> None:
        self.policy, self.kick, self.coming = new, kick, None
        self.notes.append(("policy", {"old": old, "new": new, "kick": kick}))
        self.check_policies()

    def complete(self, ticket: int, ret: dict[str, Any]) -> None:
        assert ticket not in self.answers, "answered twice"
        self.answers[ticket] = ret

    def fail(self, ticket: int, error: Exception) -> None:
        assert ticket not in self.answers, "answered twice"
        self.answers[ticket] = error

    # --- what the test does -------------------------------------------------------------------------------

    def begin(self, op: str, args: Any, ticket: int) -> None:
        assert self.operations.begin(op, args, ticket, "me") is None
        self.node.fire()

    def says(self, actor: Actor, message: dict[str, Any]) -> None:
        self.on_link([actor.identity, msgpack.packb(message)])

    def reads(self, place: Place) -> bool:
        """A process takes its next message and does it. Return False when there is none."""
        actor = self.by_place.get(place)
        if actor is None or not actor.mail:
            return False
        message = actor.mail.popleft()
        op = message["op"]
        if op == "hold":
            actor.held.add(message["what"])
        elif op == "release":
            actor.held.discard(message["what"])
        elif op == "policy":
            actor.policy = (message["name"], message["kick"])
        elif op == "space":
            mapped = actor.mapped[message["vm"] - 1]
            for name in message["unmap"]:
                del mapped[name]
            for name, level, split, step in message["map"]:
                mapped[name] = Entry(name, Level(level), split, step)
            actor.generation = message["generation"]
        elif op == "vcpu":
            actor.number = message["vcpu"]
        elif op in ("attach", "detach"):
            actor.vms[message["ht"]] = message.get("vm", 0)
            sibling = self.by_place.get((place[0], message["ht"]))
            if op == "detach" and sibling is not None:
                sibling.mail.append({"op": "DETACH"})
        elif op == "DETACH":
            self.says(actor, {"op": "idle"})
        elif op == "stop":
            sibling = self.by_place.get((place[0], message["ht"]))
            if sibling is not None:
                sibling.mail.append({"op": "STOP"})
        elif op == "STOP":
            self.dies(place)
        if "id" in message:
            self.says(actor, {"op": "done", "id": message["id"]})
        return True

    def dies(self, place: Place) -> None:
        actor = self.by_place.pop(place, None)
        if actor is None:
            return
        self.on_death(actor, -9)  # type: ignore[arg-type]
        if place[1] >= 0 and self.coordinator(place[0]) is not None:
            self._buried(place, actor.birth.inc)
        elif place[1] < 0:
            self.later(0, lambda: None)

    def changes_until_bound(self, args: Any) -> None:
        """A change of policy (ticket 1) up to its point of no return, within a second of the played clock."""
        self.begin("policy.set", args, 1)
        for _ in range(1_000):
            for place in list(self.by_place):
                if self.coming is None:
                    self.reads(place)
            if self.coming is not None:
                return
            self.pass_ns(MS, MS)
        raise AssertionError(f"the change of policy is not bound: {self.answers}")

    def pass_ns(self, ns: int, step_ns: int = 10 * MS) -> None:
        """Let time pass for a daemon that runs; those it killed die."""
        until = self.node.now + ns
        while self.node.now < until:
            self.node.now = min(until, self.node.now + step_ns)
            self.node.fire()
            self.operations.expire()
            for place, actor in list(self.by_place.items()):
                if signal.SIGKILL in actor.signals:
                    self.dies(place)
            for place in list(self.waiting_burial):
                if self.coordinator(place[0]) is not None:
                    self._buried(place, 0)

    def settle(self, *silent: Place) -> None:
        """Everybody but `silent` does all that is to be done, until nothing more happens."""
        for _ in range(200):
            busy = [place for place in list(self.by_place) if place not in silent and self.reads(place)]
            self.pass_ns(2 * MS, MS)
            if not busy and not self.operations.busy:
                return

    # --- what must hold -----------------------------------------------------------------------------------

    def check_policies(self) -> None:
        """Where a gate may open, everybody on that core has one policy: the one that the status shows."""
        for core in range(2):
            gate = self.coordinator(core)
            if gate is None or gate.held:  # type: ignore[attr-defined]
                continue
            for ht in (-1, 0, 1):
                actor = self.by_place.get((core, ht))
                assert actor is None or actor.policy == (self.policy, self.kick), (core, ht)
