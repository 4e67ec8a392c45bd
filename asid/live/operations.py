"""The operations of the control protocol, as the daemon does them: the `Machine` that the control server asks.

Operations that need several processes are procedures: generators that yield the replies they wait for. A procedure
has a deadline; when it passes, what was held is released and the caller is told that the effect is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asid import optypes as t
from asid.core.events import Mode
from asid.core.exits import TABLE_HANDLING, canonical
from asid.core.policy import NAMES, make_policy
from asid.core.record import as_map, topic_of
from asid.errors import BadArgument, Conflict, ControlError, NoAnswer, NoSuchObject
from asid.live.children import Child, Place
from asid.live.injector import Batch
from asid.live.page import INSNS, MCE, MODE, NMI, ROUND, base_of
from asid.targets import resolve

if TYPE_CHECKING:
    from asid.live.daemon import Daemon

PROCEDURE_NS: Final = 3_000_000_000
Waits = set[int]
Procedure = Generator[Waits, None, dict[str, Any]]


class Operations:
    """Implements asid.live.machine.Machine."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._running: dict[int, tuple[Procedure, Waits, int]] = {}  # by ticket: procedure, replies awaited, deadline
        self._cleanup: dict[int, Callable[[], None]] = {}

    # --- Machine ------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self.daemon.node.now_ns()

    def seq(self) -> int:
        return self.daemon.merge.seq

    def resolve(self, target: str) -> tuple[Place, ...]:
        return resolve(target, self.daemon.topology)

    def cancel(self, ticket: int) -> None:
        self.daemon.injector.cancel(ticket)

    def query(self, op: str, args: t.Args) -> dict[str, Any]:
        name = "query_" + op.replace(".", "_")
        found: dict[str, Any] = getattr(self, name)(args)
        return found

    def begin(self, op: str, args: t.Args, ticket: int, client: str) -> dict[str, Any] | None:
        verb = op.replace(".", "_")
        if op.startswith("inject."):
            return self._inject(op.removeprefix("inject."), args, ticket)
        if op == "mark":
            assert isinstance(args, t.MarkArgs)
            self.daemon.merge.note("mark", {"text": args.text})
            self.daemon.drain()
            return {"seq": self.seq()}
        if op == "stop":
            assert isinstance(args, t.StopArgs)
            self.daemon.begin_stop(args.reason, force=args.force, ticket=ticket)
            return None
        procedure: Procedure = getattr(self, "do_" + verb)(args, client, ticket)
        self._running[ticket] = (procedure, set(), self.now_ns() + PROCEDURE_NS)
        self.daemon.node.set_timer(("procedure", ticket), 0, lambda: self._advance(ticket))
        return None

    # --- procedures ---------------------------------------------------------------------------------------

    def _advance(self, ticket: int) -> None:
        entry = self._running.get(ticket)
        if entry is None:
            return
        procedure, _, deadline_ns = entry
        try:
            waits = next(procedure)
        except StopIteration as end:
            self._end(ticket)
            self.daemon.complete(ticket, end.value)
            return
        except ControlError as error:
            self._end(ticket)
            self.daemon.fail(ticket, error)
            return
        self._running[ticket] = (procedure, waits, deadline_ns)
        if not waits:
            self.daemon.node.set_timer(("procedure", ticket), 1_000_000, lambda: self._advance(ticket))

    def _end(self, ticket: int) -> None:
        self._running.pop(ticket, None)
        cleanup = self._cleanup.pop(ticket, None)
        if cleanup is not None:
            cleanup()

    def on_reply(self, number: int) -> None:
        """A child did what message `number` asked for (or is dead, which is an answer too)."""
        for ticket, (_, waits, _) in list(self._running.items()):
            if number in waits:
                waits.discard(number)
                if not waits:
                    self._advance(ticket)

    def expire(self) -> None:
        now = self.now_ns()
        for ticket, (procedure, _, deadline_ns) in list(self._running.items()):
            if now >= deadline_ns:
                procedure.close()
                self._end(ticket)
                self.daemon.fail(ticket, NoAnswer("the machine did not finish in time", state="3 s", hint="asid status"))

    def _ask(self, child: Child | None, message: dict[str, Any]) -> Waits:
        return set() if child is None else {self.daemon.ask(child, message)}

    def do_gate_hold(self, args: t.GateHoldArgs, client: str, ticket: int) -> Procedure:
        cores = sorted({core for core, _ in self.resolve(args.target)})
        for core in cores:
            yield self._ask(self.daemon.coordinator(core), {"op": "hold", "by": client})
        return {"cores": cores}

    def do_gate_release(self, args: t.GateReleaseArgs, client: str, ticket: int) -> Procedure:
        cores = sorted({core for core, _ in self.resolve(args.target)})
        for core in cores:
            yield self._ask(self.daemon.coordinator(core), {"op": "release", "by": client})
        return {"cores": cores}

    def do_policy_set(self, args: t.PolicySetArgs, client: str, ticket: int) -> Procedure:
        """Change the policy one gate after the other: hold, wait until nobody holds a lease, tell all, release."""
        daemon = self.daemon
        old, kick = daemon.policy, args.kick or daemon.kick
        try:
            make_policy(args.name, kick)
        except Exception as error:
            raise BadArgument(str(error), where="policy.set", allowed=f"one of {', '.join(NAMES)}; ack or send") from None
        daemon.policy, daemon.kick = args.name, kick
        for core in range(daemon.config.machine.cores):
            held = daemon.coordinator(core)
            message = {"op": "release", "by": "policy.set"}
            self._cleanup[ticket] = lambda core=core, message=message: self._release(core, message)  # type: ignore[misc]
            yield self._ask(held, {"op": "hold", "by": "policy.set"})
            yield self._ask(daemon.coordinator(core), {"op": "quiet"})
            waits: Waits = set()
            for child in daemon.children.hyperthreads():
                if child.birth.core == core:
                    waits |= self._ask(child, {"op": "policy", "name": args.name, "kick": kick})
            waits |= self._ask(daemon.coordinator(core), {"op": "policy", "name": args.name, "kick": kick})
            yield waits
            yield self._ask(daemon.coordinator(core), message)
            self._cleanup.pop(ticket)
        daemon.note_policy(old, args.name, kick)
        return {"old": old, "new": args.name, "kick": kick}

    def _release(self, core: int, message: dict[str, Any]) -> None:
        child = self.daemon.coordinator(core)
        if child is not None:
            self.daemon.ask(child, dict(message))

    def do_ht_unplug(self, args: t.HtUnplugArgs, client: str, ticket: int) -> Procedure:
        changed = []
        for place in self.resolve(args.target):
            child = self.daemon.child(place)
            if child is None:
                continue
            self.daemon.unplugged.add(place)
            if args.force:
                child.kill()
            else:
                coordinator = self.daemon.coordinator(place[0])
                if coordinator is not None:
                    self.daemon.tell(coordinator, {"op": "stop", "ht": place[1]})
            while self.daemon.child(place) is child:
                yield set()
            changed.append(f"c{place[0]}h{place[1]}")
        return {"changed": changed}

    def do_ht_plug(self, args: t.HtPlugArgs, client: str, ticket: int) -> Procedure:
        changed = []
        for place in self.resolve(args.target):
            if place not in self.daemon.unplugged and not self.daemon.given_up(place):
                continue
            self.daemon.plug(place)
            while (child := self.daemon.child(place)) is None or not child.up:
                yield set()
            changed.append(f"c{place[0]}h{place[1]}")
        return {"changed": changed}

    def do_vcpu_detach(self, args: t.VcpuDetachArgs, client: str, ticket: int) -> Procedure:
        changed = []
        for place in self.resolve(args.target):
            vm, vcpu = self.daemon.vcpus.get(place, (0, 0))
            if vm == 0:
                continue
            yield from self.daemon.detach(place)
            changed.append((vm, vcpu, f"c{place[0]}h{place[1]}"))
        return {"changed": changed}

    def do_vcpu_attach(self, args: t.VcpuAttachArgs, client: str, ticket: int) -> Procedure:
        places = self.resolve(args.to)
        vm, vcpu = self._named_vcpu(args.target)
        if len(places) != 1:
            raise BadArgument(f"{args.to} names {len(places)} hyperthreads", where="vcpu.attach", allowed="one")
        place = places[0]
        if self.daemon.vcpus.get(place, (0, 0))[0]:
            raise Conflict(f"{args.to} runs a vCPU already", where="vcpu.attach", hint="asid ht detach it first.")
        if (vm, vcpu) in self.daemon.vcpus.values():
            raise Conflict(f"{args.target} runs elsewhere", where="vcpu.attach", hint="asid ht detach it first.")
        child = self.daemon.child(place)
        if child is None:
            raise Conflict(f"{args.to} is OFFLINE", where="vcpu.attach", hint="asid ht plug it first.")
        self.daemon.vcpus[place] = (vm, vcpu)
        yield self._ask(child, {"op": "vcpu", "vm": vm, "vcpu": vcpu})
        yield self._ask(self.daemon.coordinator(place[0]), {"op": "attach", "ht": place[1], "vm": vm})
        return {"changed": [(vm, vcpu, f"c{place[0]}h{place[1]}")]}

    def _named_vcpu(self, target: str) -> tuple[int, int]:
        """Return (vm, vcpu) of `vm1/0`: it may run nowhere, so it is not a place."""
        name, _, vcpu = target.partition("/")
        config = self.daemon.config
        for number in range(1, len(config.vm) + 1):
            if name in (f"vm{number}", config.vm[number - 1].name) and vcpu.isdigit():
                if int(vcpu) < len(config.places_of(number)):
                    return number, int(vcpu)
        raise NoSuchObject(f"no vCPU {target!r}", where="vcpu.attach", allowed="vm1/0 and the like", hint="asid status")

    # --- injections ---------------------------------------------------------------------------------------

    def _inject(self, what: str, args: t.Args, ticket: int) -> dict[str, Any] | None:
        daemon = self.daemon
        places = self.resolve(args.target)  # type: ignore[attr-defined]
        if what == "kill" and args.what == "coordinator":  # type: ignore[attr-defined]
            places = tuple(sorted({(core, -1) for core, _ in places}))
        if what == "mce" and args.scope == "broadcast":  # type: ignore[attr-defined]
            cores = sorted({core for core, _ in places})
            places = tuple((c, h) for c in cores for h in range(daemon.config.machine.smt) if daemon.child((c, h)))
        details: dict[str, Any] = {}
        if isinstance(args, t.InjectExitArgs):
            details = exit_details(args.reason, args.full)
        elif isinstance(args, t.InjectIrqArgs):
            details = {**exit_details("EXTERNAL_INTERRUPT", "yes")}
        elif isinstance(args, t.InjectStallArgs):
            details = {"for_ns": args.for_ms * 1_000_000}
        count = getattr(args, "count", 1)
        rate_hz = getattr(args, "rate_hz", 0)
        interval_ns = round(1e9 / rate_hz) if rate_hz and count > 1 else 0
        from asid import ops

        waits = bool(getattr(args, "wait", False)) or ops.OPS[f"inject.{what}"].is_job(args)
        batch = Batch(what, places, count, interval_ns, self.now_ns(), details, ticket=ticket if waits else 0)
        if not waits:
            daemon.injector.accept(batch)
            return batch.as_ret()
        # Nothing completes from within `begin`: the batch starts with the next turn of the loop.
        self.daemon.node.set_timer(("inject", ticket), 0, lambda: self._accept(batch, ticket))
        return None

    def _accept(self, batch: Batch, ticket: int) -> None:
        try:
            self.daemon.injector.accept(batch)
        except ControlError as error:
            self.daemon.fail(ticket, error)

    # --- queries ------------------------------------------------------------------------------------------

    def query_status_get(self, args: t.Args) -> dict[str, Any]:
        d = self.daemon
        cores = []
        for core in range(d.config.machine.cores):
            coordinator = d.coordinator(core)
            cores.append(
                {
                    "core": core,
                    "round": d.words(core)[ROUND],
                    "coordinator": {"pid": coordinator.pid, "inc": coordinator.birth.inc} if coordinator else None,
                    "hts": [self._ht(core, ht) for ht in range(d.config.machine.smt)],
                }
            )
        return {
            "state": d.condition(),
            "name": d.config.name,
            "policy": d.policy,
            "kick": d.kick,
            "seed": d.config.seed,
            "started_ns": d.started_ns,
            "run_dir": str(d.run.path),
            "cores": cores,
            "counters": {**d.control.counters(), **d.counters},
            "warnings": d.warnings(),
        }

    def _ht(self, core: int, ht: int) -> dict[str, Any]:
        d = self.daemon
        child = d.child((core, ht))
        words, base = d.words(core), base_of(ht)
        vm, vcpu = d.vcpus.get((core, ht), (0, 0))
        mode = Mode(words[base + MODE] & 0xFF) if child is not None else Mode.OFFLINE
        exits, full = d.exit_counts.get((core, ht), (0, 0))
        return {
            "name": f"c{core}h{ht}",
            "core": core,
            "ht": ht,
            "pid": child.pid if child else 0,
            "inc": child.birth.inc if child else d.incs.get((core, ht), 0),
            "mode": mode.name,
            "vm": vm,
            "vcpu": vcpu,
            "exits": exits,
            "full": full,
            "nmis": words[base + NMI],
            "mces": words[base + MCE],
            "insns": words[base + INSNS],
        }

    def query_ht_list(self, args: t.TargetArgs) -> dict[str, Any]:
        return {"hts": [self._ht(core, ht) for core, ht in self.resolve(args.target)]}

    def query_vm_list(self, args: t.Args) -> dict[str, Any]:
        d = self.daemon
        vms = []
        for number, vm in enumerate(d.config.vm, start=1):
            on = sorted((vcpu, place) for place, (n, vcpu) in d.vcpus.items() if n == number)
            counts = [d.exit_counts.get(place, (0, 0)) for _, place in on]
            vms.append(
                {
                    "vm": number,
                    "name": vm.name or f"vm{number}",
                    "vcpus": [{"vcpu": vcpu, "ht": f"c{place[0]}h{place[1]}"} for vcpu, place in on],
                    "exits": sum(n for n, _ in counts),
                    "full": sum(full for _, full in counts),
                }
            )
        return {"vms": vms}

    def query_gate_get(self, args: t.TargetArgs) -> dict[str, Any]:
        cores = sorted({core for core, _ in self.resolve(args.target)})
        gates = []
        for core in cores:
            seen = self.daemon.gates.get(core, {})
            members = seen.get("members", [])
            gates.append(
                {
                    "core": core,
                    "round": self.daemon.words(core)[ROUND],
                    "open": bool(seen.get("open", False)),
                    "vm": seen.get("turn", 0),
                    "phase": phase_of(seen),
                    "waiting": [f"c{core}h{m['ht']} {m['want'].lower()}" for m in members if m["want"] != "NONE"],
                    "members": members,
                    "holder": "",
                    "held_ns": 0,
                }
            )
        return {"gates": gates}

    def query_stats_get(self, args: t.TargetArgs) -> dict[str, Any]:
        self.daemon.drain()
        document = self.daemon.merge.stats.as_map()
        places = set(self.resolve(args.target))
        rows = [row for row in document["rows"] if (row["core"], row["ht"]) in places]
        return {"rows": rows, "totals": document["totals"]}

    def query_hist_get(self, args: t.HistGetArgs) -> dict[str, Any]:
        places = frozenset(self.resolve(args.target))
        if args.what == "exposure":
            found = self.daemon.merge.exposure.as_map()
            return {
                "buckets": found.get("hist", []),
                "n": found.get("count", 0),
                "min_ns": found.get("min_ns", 0),
                "max_ns": found.get("max_ns", 0),
            }
        row = self.daemon.merge.stats.histogram(args.what, args.reason, places).as_map()
        return {"buckets": row["hist"], "n": row["n"], "min_ns": row["min_ns"], "max_ns": row["max_ns"]}

    def query_policy_list(self, args: t.Args) -> dict[str, Any]:
        rows = []
        for name in NAMES:
            policy = make_policy(name, self.daemon.kick)
            rows.append({"name": name, "kick": policy.kick.name.lower(), "about": policy.about})
        return {"policies": rows, "current": self.daemon.policy, "kick": self.daemon.kick}

    def query_config_get(self, args: t.Args) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self.daemon.config)
        return {"config": found}

    def query_events_fetch(self, args: t.EventsFetchArgs) -> dict[str, Any]:
        """Records from the journal on disk, from `since` on, filtered by topic."""
        self.daemon.drain()
        head = self.seq()
        records = self.daemon.reader.fetch(args.since, args.limit)
        events = []
        following = args.since
        for record in records:
            if record.seq > args.until:
                break
            following = record.seq + 1
            topic = topic_of(record)
            if not args.topics or any(topic.startswith(prefix) for prefix in args.topics):
                events.append({"topic": topic, **as_map(record)})
        complete = following > min(args.until, head)
        return {"events": events, "next": following, "complete": complete, "head": head}


def exit_details(reason: str, full: str) -> dict[str, Any]:
    """Return the message of an injected exit. Raise BadArgument for a reason that the kernel does not have."""
    try:
        isa, number, name = canonical(reason)
    except Exception as error:
        raise BadArgument(str(error), where="inject.exit: reason", hint="asid schema ops; e.g. EPT_VIOLATION") from None
    needs = full == "yes" or (full == "auto" and TABLE_HANDLING.needs_full(isa, number, 0.5))
    return {"reason": name, "isa": isa, "service_ns": 0, "full": needs}


def phase_of(seen: dict[str, Any]) -> str:
    """Say in a word what a gate is doing."""
    if not seen:
        return "unknown"
    if seen["held"]:
        return "held"
    members = seen["members"]
    if any(m["belief"] == "UNKNOWN" for m in members):
        return "resync"
    if any(m["kicked"] for m in members):
        return "kicking"
    if any(m["belief"] == "HOST" for m in members):
        return "host"
    return "open" if seen["open"] else "closed"



