"""The daemon: parent of all processes, owner of the instance, writer of the journal, server of the control sockets.

It decides nothing about who may enter guest. It starts processes and buries them, merges what they note down, answers
clients, and ends everything in order. `asid.live.serve` runs it.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import zmq

from asid import __version__, policies
from asid.config import Config, Loaded, resolved
from asid.core.limits import DEATH_DEADLINE_NS
from asid.core.record import Record
from asid.errors import AsidError
from asid.live import hardware, instance, room, sockets
from asid.live.children import Children, Place, dying, not_up
from asid.live.control import Control, Identity, Reply
from asid.live.health import Health
from asid.live.injector import Batch, Injector, batch_of_config
from asid.live.journal import JournalReader, JournalWriter
from asid.live.kernel_events import FILE as KERNEL_FILE
from asid.live.kernel_events import KernelEvents
from asid.live.merge import Merge
from asid.live.node import Node
from asid.live.operations import Operations, details_of
from asid.live.page import WATCHED
from asid.live.parent import Parent
from asid.live.ring import Ring
from asid.live.rundir import RunDir, create_run
from asid.live.telemetry import Telemetry
from asid.space_build import file_text, mapping_at_start
from asid.targets import resolve

START_NS: Final = 30_000_000_000  # all processes up, or the start has failed
STOP_NS: Final = 2_000_000_000  # hyperthreads that have not left the gate by then are killed
TICK_NS: Final = 10_000_000
BUSY_TICK_NS: Final = 1_000_000  # while somebody waits for what the rings will say
MEET_NS: Final = 500_000_000  # a daemon lives at least this long after READY, so that its starter meets it

log = logging.getLogger("asid.daemon")


class Daemon(Parent):
    """One instance. `start`, then `run` until it has stopped; `close` whatever happens."""

    def __init__(
        self, loaded: Loaded, name: str, *, run_dir: Path | None = None, until_exhausted: bool = False
    ) -> None:
        super().__init__()
        self.loaded = loaded
        self.config: Config = loaded.config
        self.topology = self.config.topology
        self.policy, self.kick = self.config.policy.name, self.config.policy.kick
        self.until_exhausted = until_exhausted
        self.mapping = tuple(mapping_at_start(loaded).values())
        self.node = Node()
        self.boot_id = secrets.token_hex(8)
        self.started_ns = time.monotonic_ns()
        self.state = "starting"
        self.exit_counts: dict[Place, tuple[int, int]] = {}
        self.vcpus: dict[Place, tuple[int, int]] = {}
        for core in range(self.config.machine.cores):
            for ht in range(self.config.machine.smt):
                self.vcpus[core, ht] = self.config.vcpu_at(core, ht) or (0, 0)
        self._ready_seen: dict[Place, int] = {}  # last incarnation that its gate knows
        self._stop_tickets: list[int] = []
        self.signalled = ""  # the last one caught; acted upon by the loop, never from within its handler
        self._stop_reason = ""
        self._stop_deadline_ns = 0
        self.over = False
        self._synced_ns, self._met_ns = self.started_ns, 0
        self.verdict_wanted = True  # by this process, when it has ended: nobody who stops it will see to it
        room.check_descriptors(self.config)
        self.paths = instance.make_instance_dir(name)
        self.lock_fd = instance.take_lock(self.paths)
        try:
            self._open(run_dir)
        except BaseException:
            instance.clear_leftovers(self.paths)
            os.close(self.lock_fd)
            raise

    def _open(self, run_dir: Path | None) -> None:
        """Everything that can refuse, before any process is started."""
        instance.clear_leftovers(self.paths)
        plain = resolved(self.loaded)
        self.run_dir: RunDir = create_run(
            self.config.name, config_text=self.loaded.text or "", resolved=plain, seed=self.config.seed, path=run_dir,
            mapping_text=file_text(self.loaded, self.mapping),
        )  # fmt: skip
        self.run = self.run_dir
        instance.point_to_run(self.paths, self.run_dir.path)
        self.journal = JournalWriter(self.run_dir.journal)
        self.reader = JournalReader(self.run_dir.journal)
        context = self.context = sockets.new_context()
        self.ctl = sockets.ctl_router(context, self.paths.ctl)
        self.urgent = sockets.urgent_router(context, self.paths.urgent)
        self.tel = sockets.tel_xpub(context, self.paths.tel)
        self.begun_as: dict[str, bool] = {}  # told by run.begin besides
        self.link_path = self.paths.root / "link.sock"
        self.link = sockets.daemon_link_router(context, self.link_path)
        self.telemetry = Telemetry(self.tel, lambda: self.merge.seq, self._on_watched)
        self.merge = Merge(self.journal, self.telemetry.publish, self.telemetry.show)
        self.injector = Injector(self)
        self.operations = Operations(self)
        self.health = Health(self)
        self.kernel = KernelEvents(self.config, self.node, self.merge, self.run_dir.path / KERNEL_FILE)
        self.merge.listeners += [self.injector.on_record, self._on_record]
        identity = Identity(
            version=__version__, boot_id=self.boot_id, instance=self.paths.name, pid=os.getpid(),
            telemetry=sockets.ipc_endpoint(self.paths.tel), run_dir=str(self.run_dir.path),
            capabilities=("live", "events.fetch", "jobs"),
        )  # fmt: skip
        self.control = Control(self.operations, identity)
        self.children = Children(self.node, self.paths.root, self.on_death, self.warn, self.run_dir.resolved)
        self.node.add_socket(self.urgent, lambda frames: self._on_request(self.urgent, frames, urgent=True))
        self.node.add_socket(self.ctl, lambda frames: self._on_request(self.ctl, frames, urgent=False))
        self.node.add_socket(self.link, self.on_link)
        self.node.add_socket(self.tel, self.telemetry.on_subscription)

    # --- start --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring every process up; write endpoints.json last. Raise HostUnsuitable when they do not come up in time."""
        machine, policy = self.config.machine, self.config.policy
        self.kernel.begin(self.children.start_server)
        self.merge.note(
            "run.begin",
            {
                "name": self.config.name, "policy": policy.name, **policies.said_of(policy.name, policy.kick),
                "seed": self.config.seed, "cores": machine.cores, "smt": machine.smt, "engine": "live",
                "vcpus": sum(vm > 0 for vm, _ in self.vcpus.values()), "mce_timeout_ns": self.config.mce.timeout_ns,
                **self.begun_as,
            },
        )  # fmt: skip
        self.kernel.begun()
        hardware.build(self)
        for core in range(machine.cores):
            self.bear_coordinator(core)
            for ht in range(machine.smt):
                self.bear_hyperthread((core, ht))
        deadline_ns = time.monotonic_ns() + START_NS
        # Who is known to its gate is up, whether or not its own word of it has come: it may be stopped by now.
        while late := self._late():
            if self.signalled:
                return  # to be stopped before it was ready
            if time.monotonic_ns() > deadline_ns or dying(self.rebirths):
                raise not_up(late, dying(self.rebirths))
            self.node.turn(min(deadline_ns, self.now_ns() + TICK_NS))  # a record in a ring wakes nobody
            self.drain()
        self.state = "ready"
        self._schedule_config()
        self._tick()
        self.health.look()
        endpoints = instance.Endpoints(
            v=1, boot_id=self.boot_id, pid=os.getpid(), instance=self.paths.name,
            ctl=sockets.ipc_endpoint(self.paths.ctl), urgent=sockets.ipc_endpoint(self.paths.urgent),
            tel=sockets.ipc_endpoint(self.paths.tel), run_dir=str(self.run_dir.path), started_ns=self.started_ns,
        )  # fmt: skip
        instance.write_endpoints(self.paths, endpoints)
        self._met_ns = self.now_ns() + MEET_NS
        log.info("ready: instance %s, run %s", self.paths.name, self.run_dir.path)

    def _late(self) -> list[str]:
        """Return coordinators that have not said that they are up, and hyperthreads that their gate does not know."""
        late = [child.birth.name for child in self.children.coordinators() if not child.up]
        hyperthreads = {place: inc for place, inc in self.incs.items() if place[1] >= 0}
        return late + [f"c{c}h{ht}" for (c, ht), inc in hyperthreads.items() if self._ready_seen.get((c, ht)) != inc]

    def _schedule_config(self) -> None:
        """Arm the [[inject]] tables of the configuration."""
        for spec in self.config.inject:
            places = resolve(spec.target, self.topology)
            details = details_of(spec, self.config)

            def begin(spec: Any = spec, places: Any = places, details: Any = details) -> None:
                struck = self.struck(places, details.get("scope", ""))
                try:
                    self.injector.accept(batch_of_config(spec.what, struck, spec, self.now_ns(), details))
                except AsidError as error:
                    self.merge.note("warn", {"text": f"[[inject]] {spec.what} {spec.target}: {error}"})

            self.later(spec.at_ns, begin)

    # --- the loop -----------------------------------------------------------------------------------------

    def run_loop(self, duration_ns: int = 0) -> None:
        """Serve until stopped; after `duration_ns` (0: never) stop by itself."""
        if duration_ns:
            self.later(duration_ns, self._time_is_over)
        while not self.over:
            if self.signalled:
                name, self.signalled = self.signalled, ""
                self.begin_stop(name, force=self.state == "draining")
            self.node.turn()

    def _time_is_over(self) -> None:
        """Stop, but not before the starter has met it: it would take a very short run for one that never came up."""
        if self.now_ns() < self._met_ns and not self.control.counters()["clients"]:
            self.later(BUSY_TICK_NS, self._time_is_over)
        else:
            self.begin_stop("duration")

    def on_signal(self, number: int, _frame: object) -> None:
        """Remember it. The loop looks at least every few milliseconds; a second one forces the stop."""
        self.signalled = signal.Signals(number).name

    def hasten(self) -> None:
        """Somebody waits for what the rings will say: look soon, and often."""
        self.node.set_timer("tick", BUSY_TICK_NS, self._tick)

    def _tick(self) -> None:
        """Drain the rings, deliver injections, let deadlines pass, and come again."""
        rings = self.rings()
        self.merge.drain(rings)
        behind = not all(ring.empty for ring in rings)
        now = self.now_ns()
        if now - self._synced_ns >= self.config.journal.flush_ns:
            self._synced_ns = now
            self.journal.sync()
        soonest = self.injector.tick()
        self.operations.expire()
        self._reply(self.control.expire(now))
        for fault in self.control.take_faults():
            log.error("%s", fault)
        if self.state == "draining":
            self._stop_further()
        elif self.until_exhausted and now > self._met_ns and self._all_exhausted():
            self.begin_stop("the recording has ended")
        busy = self.injector.busy or self.operations.busy or self.state == "draining"
        after = 0 if behind else BUSY_TICK_NS if busy else TICK_NS
        if soonest is not None:
            after = max(0, min(after, soonest - now))
        if not self.over:
            self.node.set_timer("tick", after, self._tick)

    def _all_exhausted(self) -> bool:
        return self.exhausted >= {place for place, (vm, _) in self.vcpus.items() if vm}

    def rings(self) -> list[Ring]:
        return [child.ring for child in self.children.by_place.values()]

    def drain(self) -> None:
        """Number everything that has been noted by now; what is noted meanwhile may come later."""
        now, rings = self.now_ns(), self.rings()
        self.merge.drain(rings)
        while self.merge.horizon_ns < now:
            self.merge.drain(rings)

    def _on_watched(self, watched: bool) -> None:
        """Telemetry class `r` has readers, or none any more: hyperthreads see it at their next change of mode."""
        for core in self.pages:
            self.words(core)[WATCHED] = int(watched)

    def _on_record(self, record: Record) -> None:
        place = (record.core, record.ht)
        kind = record.type
        if kind == "exit":
            n, full = self.exit_counts.get(place, (0, 0))
            more = record.data["n"]
            self.exit_counts[place] = (n + more, full + (more if record.data["full"] else 0))
        elif kind == "intr":
            if record.data.get("severity") == "fatal":
                self.health.fail(record.core)
        elif kind in ("gate.ready", "gate.resync"):
            self._ready_seen[place] = record.data["inc"]

    # --- requests -----------------------------------------------------------------------------------------

    def _on_request(self, socket: zmq.Socket[bytes], frames: list[bytes], *, urgent: bool) -> None:
        self._reply(self.control.request(frames[0], frames[1:], self.now_ns(), urgent))

    def _reply(self, replies: list[Reply]) -> None:
        for reply in replies:
            socket = self.urgent if reply.urgent else self.ctl
            if not sockets.send_nonblocking(socket, [reply.client, *reply.frames]):
                self.control.gone(reply.client)

    def complete(self, ticket: int, ret: dict[str, Any]) -> None:
        self.drain()
        self._reply(self.control.complete(ticket, ret, self.merge.seq))

    def fail(self, ticket: int, error: Exception) -> None:
        self._reply(self.control.fail(ticket, error))

    def progressed(self, batch: Batch) -> None:
        self.control.progress(batch.ticket, batch.delivered, batch.accepted)

    def completed(self, batch: Batch) -> None:
        """An injection is over; its `inject.done` records get their numbers before the answer names them."""
        if batch.ticket:
            ticket = batch.ticket
            batch.ticket = 0
            self.later(0, lambda: self.complete(ticket, batch.as_ret()))

    def note(self, kind: str, data: dict[str, Any], core: int = -1, ht: int = -1) -> None:
        self.merge.note(kind, data, core, ht)

    def warn(self, text: str) -> None:
        log.warning("%s", text)
        self.merge.note("warn", {"text": text})

    def note_policy(self, old: str, new: str, kick: str) -> None:
        self.policy, self.kick, self.coming = new, kick, None
        self.merge.note("policy", {"old": old, "new": new, **policies.said_of(new, kick)})

    def later(self, after_ns: int, what: Callable[[], None]) -> None:
        self._messages += 1
        self.node.set_timer(("later", self._messages), after_ns, what)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    # --- stop ---------------------------------------------------------------------------------------------

    def begin_stop(self, reason: str, *, force: bool = False, ticket: int = 0) -> None:
        """Close in order: no new work, every hyperthread out through its gate, then the coordinators, then the run."""
        if ticket:
            self._stop_tickets.append(ticket)
            self.verdict_wanted = False  # who asks for the end sees to the verdict
        if self.state == "draining":
            if force:
                self._stop_deadline_ns = self.now_ns()
            return
        self.state = "draining"
        self._stop_reason = reason
        self._stop_deadline_ns = self.now_ns() + (0 if force else STOP_NS)
        self.control.begin_draining()
        self.injector.close()
        self.operations.close()
        for child in self.children.hyperthreads():
            coordinator = self.coordinator(child.birth.core)
            if coordinator is None:
                child.kill()
            else:
                self.tell(coordinator, {"op": "stop", "ht": child.birth.ht})
        self.node.set_timer("tick", 0, self._tick)

    def _stop_further(self) -> None:
        left = self.children.hyperthreads()
        if left:
            if self.now_ns() > self._stop_deadline_ns:
                for child in left:
                    child.kill()
            return
        # While there are coordinators, who would do it if this process were killed now. Whoever is connected stays so.
        instance.clear_leftovers(self.paths)
        for child in self.children.coordinators():
            child.kill()
        if not self.children.by_place and self.kernel.over():
            self.over = True

    def end(self) -> None:
        """Write the end of the run: the last record and the statistics. The verdict is made from these, later."""
        self.merge.note("run.end", {"reason": self._stop_reason})
        self.drain()
        self.journal.sync()
        self.journal.close()
        stats = self.merge.stats.as_map()
        document = {"schema": "stats/1", **stats, "exposure": stats["totals"]["exposure"], "counters": self.counters}
        self.run_dir.write_json("stats.json", document)
        self.run_dir.end(self._stop_reason)

    def farewell(self) -> None:
        """The last answers and the last telemetry, once the run is on disk."""
        self.node.drain()  # who asked for the end a moment ago is answered too
        for ticket in self._stop_tickets:
            self._reply(self.control.complete(ticket, {}, self.merge.seq))
        self.telemetry.bye(self._stop_reason)

    def close(self) -> None:
        """Leave nothing behind: no process, no socket file, no lock."""
        self.state = "draining"  # nobody is born any more, whatever went wrong
        for child in list(self.children.by_place.values()):
            child.kill()
        deadline_ns = self.now_ns() + DEATH_DEADLINE_NS
        try:
            while self.children.by_place and self.now_ns() < deadline_ns:
                self.node.turn(deadline_ns)
        finally:
            self.kernel.close()
            self.children.close()
            instance.clear_leftovers(self.paths)
        self.journal.close()
        sockets.close(self.context, self.ctl, self.urgent, self.tel, self.link)
        self.reader.close()
        hardware.dismantle(self)
        os.close(self.lock_fd)
