"""The operations of the control protocol, as the daemon does them: the `Machine` that the control server asks.

Operations that need several processes are procedures: generators that yield the replies they wait for. A procedure
has a deadline; when it passes, what was held is released and the caller is told that the effect is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from asid import optypes as t
from asid.core.exits import TABLE_HANDLING, canonical
from asid.core.policy import NAMES, make_policy
from asid.errors import BadArgument, Conflict, NoAnswer, NoSuchObject
from asid.live.children import Child
from asid.live.injector import Batch
from asid.live.queries import Queries

if TYPE_CHECKING:
    from asid.live.daemon import Daemon

PROCEDURE_NS: Final = 3_000_000_000
Waits = set[int]
Procedure = Generator[Waits, None, dict[str, Any]]


class Operations(Queries):
    """Implements asid.live.machine.Machine: what changes something is here, what only looks is in `Queries`."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self._running: dict[int, tuple[Procedure, Waits, int]] = {}  # by ticket: procedure, replies awaited, deadline
        self._cleanup: dict[int, Callable[[], None]] = {}

    # --- Machine ------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self.daemon.node.now_ns()

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
        except Exception as error:
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
                self.daemon.fail(
                    ticket, NoAnswer("the machine did not finish in time", state="3 s", hint="asid status")
                )

    def close(self) -> None:
        """The machine stops: what runs is given up."""
        for ticket, (procedure, _, _) in list(self._running.items()):
            procedure.close()
            self._end(ticket)
            self.daemon.fail(ticket, NoAnswer("the machine stops", hint="asid status"))

    def _ask(self, child: Child | None, message: dict[str, Any]) -> Waits:
        return set() if child is None else {self.daemon.ask(child, message)}

    def _gate(self, core: int, message: dict[str, Any]) -> Generator[Waits, None, None]:
        """Ask a core's coordinator until one has answered that is alive: what a dead one was told died with it."""
        while True:
            coordinator = self.daemon.coordinator(core)
            yield self._ask(coordinator, message)
            if coordinator is not None and self.daemon.coordinator(core) is coordinator:
                return

    def _hold(self, core: int, what: str, by: str) -> Generator[Waits, None, None]:
        """Close a gate for `what` (a client, a change of policy); it opens when nothing holds it any more."""
        self.daemon.holders.setdefault(core, {})[what] = by
        yield from self._gate(core, {"op": "hold", "what": what, "by": by})

    def _release(self, core: int, what: str, by: str) -> Generator[Waits, None, None]:
        self.daemon.holders.get(core, {}).pop(what, None)
        yield from self._gate(core, {"op": "release", "what": what, "by": by})

    def _let_go(self, cores: list[int], what: str, by: str) -> None:
        """Release without waiting: what failed must not leave a gate closed that nobody knows of."""
        for core in cores:
            self.daemon.holders.get(core, {}).pop(what, None)
            coordinator = self.daemon.coordinator(core)
            if coordinator is not None:
                self.daemon.tell(coordinator, {"op": "release", "what": what, "by": by})

    def do_gate_hold(self, args: t.GateHoldArgs, client: str, ticket: int) -> Procedure:
        cores = sorted({core for core, _ in self.resolve(args.target)})
        fresh = [core for core in cores if "client" not in self.daemon.holders.get(core, {})]
        self._cleanup[ticket] = lambda: self._let_go(fresh, "client", client)
        for core in cores:
            yield from self._hold(core, "client", client)
        self._cleanup.pop(ticket)
        return {"cores": cores}

    def do_gate_release(self, args: t.GateReleaseArgs, client: str, ticket: int) -> Procedure:
        cores = sorted({core for core, _ in self.resolve(args.target)})
        for core in cores:
            yield from self._release(core, "client", client)
        return {"cores": cores}

    def do_policy_set(self, args: t.PolicySetArgs, client: str, ticket: int) -> Procedure:
        """Change the policy: hold all gates, wait until nobody holds a lease, tell all, release."""
        daemon = self.daemon
        old, kick = daemon.policy, args.kick or daemon.kick
        try:
            make_policy(args.name, kick)
        except Exception as error:
            raise BadArgument(
                str(error), where="policy.set", allowed=f"one of {', '.join(NAMES)}; ack or send"
            ) from None
        message = {"op": "policy", "name": args.name, "kick": kick}
        cores = list(range(daemon.config.machine.cores))
        self._cleanup[ticket] = lambda: self._let_go(cores, "policy", client)
        for core in cores:
            yield from self._hold(core, "policy", client)
        for core in cores:
            yield from self._gate(core, {"op": "quiet"})
        daemon.policy, daemon.kick = args.name, kick  # whoever is born from now on has it from its birth
        waits: Waits = set()
        for child in daemon.children.hyperthreads():
            waits |= self._ask(child, message)
        yield waits
        for core in cores:
            yield from self._gate(core, message)
        for core in cores:
            yield from self._release(core, "policy", client)
        self._cleanup.pop(ticket)
        daemon.note_policy(old, args.name, kick)
        return {"old": old, "new": args.name, "kick": kick}

    def do_ht_unplug(self, args: t.HtUnplugArgs, client: str, ticket: int) -> Procedure:
        changed = []
        for place in self.resolve(args.target):
            child = self.daemon.child(place)
            if child is None:
                continue
            self.daemon.unplugged.add(place)
            coordinator = self.daemon.coordinator(place[0])
            if args.force:
                child.kill()
            elif coordinator is not None:  # one that is not there is told when it comes back
                self.daemon.tell(coordinator, {"op": "stop", "ht": place[1]})
            try:
                while self.daemon.child(place) is child:
                    yield set()
            except GeneratorExit:
                self.daemon.unplugged.discard(place)
                self.daemon.keep(place)
                raise
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
        yield from self._gate(place[0], {"op": "attach", "ht": place[1], "vm": vm})
        return {"changed": [(vm, vcpu, f"c{place[0]}h{place[1]}")]}

    def _named_vcpu(self, target: str) -> tuple[int, int]:
        """Return (vm, vcpu) of `vm1/0`: it may run nowhere, so it is not a place."""
        name, _, vcpu = target.partition("/")
        config = self.daemon.config
        for number in range(1, len(config.vm) + 1):
            named = name in (f"vm{number}", config.vm[number - 1].name)
            if named and vcpu.isdigit() and int(vcpu) < len(config.places_of(number)):
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
        except Exception as error:
            self.daemon.fail(ticket, error)
        else:
            self.daemon.hasten()


def exit_details(reason: str, full: str) -> dict[str, Any]:
    """Return the message of an injected exit. Raise BadArgument for a reason that the kernel does not have."""
    try:
        isa, number, name = canonical(reason)
    except Exception as error:
        raise BadArgument(str(error), where="inject.exit: reason", hint="asid schema ops; e.g. EPT_VIOLATION") from None
    needs = full == "yes" or (full == "auto" and TABLE_HANDLING.needs_full(isa, number, 0.5))
    return {"reason": name, "isa": isa, "service_ns": 0, "full": needs}
