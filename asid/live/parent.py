"""The parent: births, deaths and burials of all processes, and what is said to them.

A hyperthread is born again only after its coordinator has done with its death; a coordinator is born again knowing who
lives and who does not. Nothing here asks how a gate stands: a child is alive, or its death is confirmed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgpack

from asid.core.rebirth import BACKOFF_NS_MAX, YOUNG_NS, Rebirth, too_often
from asid.live import sockets
from asid.live.birth import Birth, Fd
from asid.live.children import Child, Children, Place, name_of
from asid.live.node import Node, ring_doorbell
from asid.live.page import BROADCAST, MCE, NMI, SEVERITY, CorePage, base_of
from asid.live.ring import make_ring

if TYPE_CHECKING:
    from pathlib import Path

    import zmq

    from asid.config import Config, Loaded
    from asid.live.injector import Injector
    from asid.live.instance import InstancePaths
    from asid.live.merge import Merge
    from asid.live.operations import Operations
    from asid.live.procedures import Steps
    from asid.mm.isolated import Entry
    from asid.script import Script

STARVED_NS: Final = 500_000_000  # until a birth that the host refused is tried again

log = logging.getLogger("asid.daemon")
_pack = msgpack.Packer().pack


class Parent:
    """What a daemon is to its children. `Daemon` has the rest and sets what is only declared here."""

    loaded: Loaded
    config: Config
    paths: InstancePaths
    link_path: Path
    link: zmq.Socket[bytes]
    node: Node
    merge: Merge
    injector: Injector
    operations: Operations
    children: Children
    policy: str  # in force: every process has it
    kick: str
    state: str
    mapping: tuple[tuple[Entry, ...], ...]  # of each VM, by its number - 1
    vcpus: dict[Place, tuple[int, int]]  # (vm, vcpu) that a hyperthread runs, (0, 0) for none

    drain: Callable[[], None]
    later: Callable[[int, Callable[[], None]], None]
    now_ns: Callable[[], int]
    begin_stop: Callable[[str], None]

    def __init__(self) -> None:
        self.generation = 0  # changes of the mapping since the start
        self.holders: dict[int, dict[str, str]] = {}  # by core: what holds its gate closed, and for whom
        self.pages: dict[int, tuple[int, CorePage]] = {}  # by core: descriptor, mapping
        self.bells: dict[Place, int] = {}  # doorbells, the end to ring
        self.ears: dict[Place, int] = {}  # and where they are heard, when that is another end
        self.memories: dict[int, int] = {}  # of each VM that is real
        self.incs: dict[Place, int] = {}  # last incarnation born
        self.rebirths: dict[Place, Rebirth] = {}
        self.unplugged: set[Place] = set()
        self.waiting_burial: set[Place] = set()
        self.exhausted: set[Place] = set()  # hyperthreads whose recording has ended
        self.gates: dict[int, dict[str, Any]] = {}  # by core: what its coordinator last told of its gate
        self.counters: dict[str, int] = {"deaths": 0, "fences": 0, "respawns": 0}
        self.problems: list[str] = []
        self._messages = 1 << 40  # numbers of messages that are to be answered; injections count from 1
        self._asked: dict[int, Place] = {}
        self._idle_wanted: set[Place] = set()  # hyperthreads that have not given up their vCPU yet
        self.detaching: set[Place] = set()  # places whose vCPU is being taken away
        self.coming: tuple[str, str] | None = None  # policy and kick that are on their way to everybody
        self.scripts: tuple[Script, ...] = ()  # by core: what it plays

    # --- births -------------------------------------------------------------------------------------------

    def _birth(self, core: int, ht: int, ring_fd: int, **more: Any) -> Birth:
        page_fd = self.pages[core][0]
        smt = self.config.machine.smt
        policy, kick = self.coming or (self.policy, self.kick)
        return Birth(
            core=core, ht=ht, siblings=smt, inc=self.incs[core, ht], coord=self.incs[core, -1],
            page=Fd(page_fd), ring=Fd(ring_fd),
            doorbells=tuple(Fd(self.bells[core, other]) for other in range(smt)),
            gate_path=str(self.paths.root / f"c{core}.sock"), link_path=str(self.link_path),
            config=self.config, base_dir=str(self.loaded.base_dir), policy=policy, kick=kick,
            instance_root=str(self.paths.root), script=self.scripts[core] if self.scripts else None,
            mapping=self.mapping, generation=self.generation,
            bell=Fd(self.ears[core, ht]) if (core, ht) in self.ears else None,
            memories=tuple((vm, Fd(fd)) for vm, fd in self.memories.items()) if ht >= 0 else (), **more,
        )  # fmt: skip

    def bear_coordinator(self, core: int) -> None:
        place = (core, -1)
        inc = self.incs[place] = self.incs.get(place, 0) + 1
        living = []
        for ht in range(self.config.machine.smt):
            child = self.child((core, ht))
            living.append(child.birth.inc if child is not None else 0)
        attached = tuple(
            0 if (core, ht) in self.detaching else self.vcpus[core, ht][0] for ht in range(self.config.machine.smt)
        )
        ring_fd = make_ring(f"c{core}.{inc}")
        birth = self._birth(
            core, -1, ring_fd, living=tuple(living), attached=attached, fresh=inc == 1,
            held=tuple(self.holders.get(core, ())),
        )  # fmt: skip
        self._bear(birth, ring_fd)

    def bear_hyperthread(self, place: Place) -> None:
        core, ht = place
        inc = self.incs[place] = self.incs.get(place, 0) + 1
        ring_fd = make_ring(f"c{core}h{ht}.{inc}")
        words, base = self.words(core), base_of(ht)
        lines = (words[base + NMI], words[base + MCE])  # what is raised from now on is for this incarnation
        checks = (words[base + BROADCAST], words[base + SEVERITY])
        birth = self._birth(core, ht, ring_fd, vcpu=self.vcpus[place], interrupts=lines, checks=checks)
        self._bear(birth, ring_fd)

    def _bear(self, birth: Birth, ring_fd: int) -> None:
        try:
            child = self.children.bear(birth, ring_fd, self.now_ns())
        except OSError:
            os.close(ring_fd)
            raise
        what = {"what": child.kind, "pid": child.pid, "inc": birth.inc}
        self.merge.note("spawn", what, birth.core, birth.ht)

    # --- talk ---------------------------------------------------------------------------------------------

    def child(self, place: Place) -> Child | None:
        return self.children.by_place.get(place)

    def coordinator(self, core: int) -> Child | None:
        return self.child((core, -1))

    def vcpu(self, place: Place) -> tuple[int, int]:
        return self.vcpus.get(place, (0, 0))

    def words(self, core: int) -> Any:
        return self.pages[core][1].words

    def struck(self, places: tuple[Place, ...], scope: str) -> tuple[Place, ...]:
        """Return whom a machine check reaches: these, or whoever lives on their cores; these when nobody does."""
        if scope != "broadcast":
            return places
        cores = sorted({core for core, _ in places})
        return tuple((c, h) for c in cores for h in range(self.config.machine.smt) if self.child((c, h))) or places

    def ring_bell(self, place: Place) -> None:
        ring_doorbell(self.bells[place])

    def tell(self, child: Child, message: dict[str, Any]) -> None:
        """Send to a child; before it is up, keep it for then."""
        if not child.up:
            child.outbox.append(message)
            return
        if not sockets.send_nonblocking(self.link, [child.identity, _pack(message)]):
            log.debug("%s is gone: %s undelivered", child.birth.name, message["op"])

    def ask(self, child: Child, message: dict[str, Any]) -> int:
        """Send what is to be answered; return the number of the answer. A death answers too."""
        self._messages += 1
        self._asked[self._messages] = child.place
        self.tell(child, {**message, "id": self._messages})
        return self._messages

    def unanswered(self, number: int) -> bool:
        """Whether the answer to message `number` is still to come."""
        return number in self._asked

    def on_link(self, frames: list[bytes]) -> None:
        """A message of a child. What comes from nobody of ours, or from one whose death is confirmed, is dropped."""
        if len(frames) != 2:
            return
        try:
            name, _, inc = frames[0].decode().partition(".")
            core, _, ht = name.removeprefix("c").partition("h")
            child = self.child((int(core), int(ht) if ht else -1))
            if child is None or child.birth.inc != int(inc):
                return
            message = msgpack.unpackb(frames[1])
            op = message["op"]
        except Exception:  # msgpack alone raises eight kinds; none of our children sends such a thing
            log.warning("a malformed message on the link was dropped")
            return
        if op == "up":
            child.up = True
            waiting, child.outbox = child.outbox, []
            for kept in waiting:
                self.tell(child, kept)
        elif op == "done":
            self._on_done(message)
        elif op == "fence":
            self._fence((child.birth.core, message["ht"]), message["inc"])
        elif op == "buried":
            self._buried((child.birth.core, message["ht"]), message["inc"])
        elif op == "idle":
            self._idle_wanted.discard(child.place)
        elif op == "exhausted":
            self.exhausted.add(child.place)
        elif op == "missing":
            self._missing(child, message["broadcast"], message["hts"])
        elif op == "astray":
            self.on_astray(child, message)

    def on_astray(self, child: Child, message: dict[str, Any]) -> None:
        """It cannot play its script: see asid.live.directed_daemon."""

    def _on_done(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if "gate" in message:
            self.gates[message["gate"]["core"]] = message["gate"]
        if self._asked.pop(number, None) is not None:
            self.operations.on_reply(number)
            return
        self.drain()
        self.injector.on_done(number, message.get("left", 0))

    # --- deaths -------------------------------------------------------------------------------------------

    def _fence(self, place: Place, inc: int) -> None:
        child = self.child(place)
        if child is not None and child.birth.inc == inc:
            self.counters["fences"] += 1
            log.warning("fencing %s: it did not answer a kick", child.birth.name)
            child.kill()

    def put_down(self, child: Child, why: str) -> None:
        """Kill a child that stays silent, as a fence would; once."""
        if child.wanted:
            return
        self.counters["fences"] += 1
        self.merge.note("warn", {"text": f"{child.birth.name} is killed: {why}"}, *child.place)
        log.warning("killing %s: %s", child.birth.name, why)
        child.kill()

    def _missing(self, child: Child, broadcast: int, hts: list[int]) -> None:
        """A #MC handler gave up waiting for these. Whoever has handled it by now, or died, is no longer meant."""
        self.drain()
        for ht in hts:
            place = (child.birth.core, ht)
            absent = self.child(place)
            if absent is not None and self.injector.unhandled(place, broadcast):
                self.put_down(absent, f"it did not come to an end with machine check {broadcast} of all siblings")

    def on_death(self, child: Child, status: int) -> None:
        """A confirmed death: the last of its records, its coordinator, its injections, its successor."""
        place = child.place
        core, ht = place
        # Its last words, and with them those of the others: what they name as a cause is in the same stream by then.
        rings = [child.ring, *(other.ring for other in self.children.by_place.values())]
        self.merge.drain(rings)
        while not child.ring.empty:
            self.merge.drain(rings)
        what = {"what": child.kind, "pid": child.pid, "inc": child.birth.inc, "status": status}
        self.merge.note("death", what, core, ht)
        self.drain()
        self.injector.on_death(place)
        for number, whose in list(self._asked.items()):
            if whose == place:
                del self._asked[number]
                self.operations.on_reply(number)
        if self.state == "draining":
            if ht < 0:
                self._orphans(core)
            elif (coordinator := self.coordinator(core)) is not None:
                self.tell(coordinator, {"op": "dead", "ht": ht, "inc": child.birth.inc})
            return
        self.counters["deaths"] += 1
        log.warning("%s (pid %d) died with status %d", child.birth.name, child.pid, status)
        age_ns = YOUNG_NS if child.wanted else self.now_ns() - child.born_ns
        delay_ns = self.rebirths.setdefault(place, Rebirth()).after(age_ns)
        if ht < 0:
            if delay_ns is None:
                # Never given up: a core without a coordinator serves nobody, and its gate is closed all the same.
                delay_ns = BACKOFF_NS_MAX
                self.merge.note("warn", {"text": f"the coordinator of c{core} dies again and again"}, core)
            # Whoever is dead now is wiped by the coordinator that comes back: no birth before it has said so, not
            # even one that the old coordinator allowed. Else the wipe would take a newborn's depth (V26c).
            smt = self.config.machine.smt
            self.waiting_burial |= {(core, other) for other in range(smt) if self.child((core, other)) is None}
            self.later(delay_ns, lambda: self._again(place))
            return
        self.waiting_burial.add(place)
        coordinator = self.coordinator(core)
        if coordinator is not None:  # else the one that comes back knows it as dead from its birth
            self.tell(coordinator, {"op": "dead", "ht": ht, "inc": child.birth.inc})
        if delay_ns is None and place not in self.unplugged:
            self.merge.note("warn", {"text": too_often(name_of(place))}, core, ht)

    def _orphans(self, core: int) -> None:
        """The machine stops and a coordinator died: nobody will let its hyperthreads go in order any more."""
        for child in self.children.hyperthreads():
            if child.birth.core == core:
                child.kill()

    def _buried(self, place: Place, inc: int) -> None:
        """The coordinator has done with a death: now, and not before, the next incarnation may be born.

        inc 0 is a coordinator that came back and wiped whoever lay there.
        """
        if place not in self.waiting_burial or inc not in (0, self.incs[place]):
            return
        self.waiting_burial.discard(place)
        rebirth = self.rebirths.setdefault(place, Rebirth())
        if place in self.unplugged or rebirth.given_up or self.state == "draining":
            return
        delay_ns = rebirth.delay_ns
        self.later(delay_ns, lambda: self._again(place))

    def _again(self, place: Place) -> None:
        if self.state == "draining" or self.child(place) is not None or place in self.unplugged:
            return
        if place in self.waiting_burial:
            return  # its coordinator died meanwhile; the burial by the next one comes back here
        try:
            if place[1] >= 0:
                self.bear_hyperthread(place)
            else:
                self._bear_coordinator_again(place[0])
        except OSError as error:  # no descriptor, no memory: the others go on, and this one comes back when there is
            self.merge.note("warn", {"text": f"no process can be started: {error.strerror}"}, *place)
            self.later(STARVED_NS, lambda: self._again(place))
            return
        self.counters["respawns"] += 1

    def _bear_coordinator_again(self, core: int) -> None:
        self.bear_coordinator(core)
        coordinator = self.coordinator(core)
        assert coordinator is not None
        for ht in range(self.config.machine.smt):
            place = (core, ht)
            if self.child(place) is not None and place in self.unplugged:
                self.tell(coordinator, {"op": "stop", "ht": ht})  # what the dead one was told died with it

    def given_up(self, place: Place) -> bool:
        return self.child(place) is None and self.rebirths.get(place, Rebirth()).given_up

    def stays_away(self, place: Place) -> bool:
        """Whether a hyperthread that is not there does not come back by itself. Coordinators do."""
        return place[1] >= 0 and (place in self.unplugged or self.given_up(place))

    def plug(self, place: Place) -> None:
        self.unplugged.discard(place)
        self.rebirths[place] = Rebirth()
        if place not in self.waiting_burial:
            self._again(place)
        self.keep(place)

    def detach(self, places: list[Place]) -> Steps:
        """Take the vCPUs off hyperthreads, in order; done when each has said that it is idle, or is dead."""
        going = {place: child for place in places if (child := self.child(place)) is not None}
        told: dict[Place, Child] = {}
        self.detaching.update(places)
        self._idle_wanted.update(going)
        try:
            while True:
                for place in places:
                    coordinator = self.coordinator(place[0])
                    if coordinator is not None and told.get(place) is not coordinator:
                        told[place] = coordinator  # one that comes back in between has not heard of it
                        self.tell(coordinator, {"op": "detach", "ht": place[1]})
                if not any(self.child(place) is child and place in self._idle_wanted for place, child in going.items()):
                    break
                yield set()
        except BaseException:
            for place in places:
                self.keep(place)
            raise
        finally:
            self._idle_wanted.difference_update(places)
            self.detaching.difference_update(places)
        for place in places:
            self.vcpus[place] = (0, 0)
            self.injector.on_detach(place)

    def keep(self, place: Place) -> None:
        """Take back that a hyperthread or its vCPU was to go: it did not in time, so it stays, whatever comes later."""
        coordinator, vm = self.coordinator(place[0]), self.vcpus[place][0]
        if vm and coordinator is not None:
            self.tell(coordinator, {"op": "attach", "ht": place[1], "vm": vm})
