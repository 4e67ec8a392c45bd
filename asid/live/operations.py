"""The operations of the control protocol, as the daemon does them: the `Machine` that the control server asks.

What takes several processes is a procedure (`asid.live.procedures`): each is finished or undone, never left in between.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from asid import optypes as t
from asid import policies
from asid.config import vm_name
from asid.core.exits import canonical
from asid.core.policy import KICKS
from asid.errors import BadArgument, ConfigError, Conflict, NoSuchObject
from asid.guest.details import details_of as details_of_exit
from asid.live.children import Place, absent
from asid.live.injector import Batch
from asid.live.procedures import BOUND_NS, NEVER_NS, Procedure, Procedures
from asid.live.spaces import Change
from asid.mm.footprint import NO_PARTS

if TYPE_CHECKING:
    from asid.config import Config
    from asid.live.daemon import Daemon


class Operations(Procedures):
    """Implements asid.live.machine.Machine: what changes something is here, what only looks is in `Queries`."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self._holding: set[int] = set()  # cores that a client's hold is under way for
        self._changing = False  # a change of policy is under way
        self._placing: dict[Place, tuple[int, int]] = {}  # vCPUs on their way to a hyperthread

    # --- Machine ------------------------------------------------------------------------------------------

    def cancel(self, ticket: int) -> None:
        self.daemon.injector.cancel(ticket)

    def note_job(self, job: str, op: str, state: str, done: int, total: int) -> None:
        if not self.daemon.over:  # nothing comes behind the end of the run
            data = {"job": job, "op": op, "state": state, "done": done, "total": total}
            self.daemon.merge.note("job", data)

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
        self.start(procedure, ticket)
        return None

    # --- procedures ---------------------------------------------------------------------------------------

    def do_gate_hold(self, args: t.GateHoldArgs, client: str, ticket: int) -> Procedure:
        cores = sorted({core for core, _ in self.resolve(args.target)})
        if self._holding.intersection(cores):
            raise Conflict("a hold of this gate is under way", where="gate.hold", hint="Try again in a moment.")
        fresh = [core for core in cores if "client" not in self.daemon.holders.get(core, {})]
        self._holding.update(cores)
        try:
            yield from self._hold(cores, "client", client)
        except BaseException:
            self._let_go(fresh, "client", client)
            raise
        finally:
            self._holding.difference_update(cores)
        return {"cores": cores}

    def do_gate_release(self, args: t.GateReleaseArgs, client: str, ticket: int) -> Procedure:
        """Bound from its first step: closing again what may be open already would be worse than to wait."""
        cores = sorted({core for core, _ in self.resolve(args.target)})
        self._bind(ticket, "the gates open as soon as their coordinators answer", NEVER_NS)
        yield from self._release(cores, "client", client)
        return {"cores": cores}

    def do_policy_set(self, args: t.PolicySetArgs, client: str, ticket: int) -> Procedure:
        """Change the policy: hold all gates, wait until nobody holds a lease, tell all, release."""
        policies.require_tested(args.name)
        kick = args.kick if args.kick in KICKS else self.daemon.kick
        try:
            policies.make(args.name, kick)
        except Exception as error:
            raise BadArgument(
                str(error), where="policy.set", allowed=f"one of {', '.join(policies.names())}; a kick variant"
            ) from None
        try:
            policies.require_kick(args.name, args.kick)
        except ConfigError as error:
            raise BadArgument(error.what, where="policy.set: kick", allowed=error.allowed, hint=error.hint) from None
        while self._changing:  # the next one's gates must not open with this one's
            yield set()
        self._changing = True
        try:
            return (yield from self._change_policy(args.name, kick, client, ticket))
        finally:
            self._changing = False

    def _change_policy(self, name: str, kick: str, client: str, ticket: int) -> Procedure:
        """Up to the point of no return a time-out opens the gates under the old policy. Past it they stay closed until
        every process has the new one, from its birth or because it said so; a silent one is killed."""
        daemon, cores = self.daemon, list(range(self.daemon.config.machine.cores))
        try:
            yield from self._hold(cores, "policy", client)
            yield from self._quiet(cores)
        except BaseException:
            self._let_go(cores, "policy", client)
            raise
        self._bind(ticket, f"the change to {name} goes on; all gates are held until everybody has it", BOUND_NS)
        old = daemon.policy
        daemon.coming = (name, kick)  # whoever is born from now on has it from its birth
        message = {"op": "policy", "name": name, "kick": kick}
        yield from self._surely(daemon.children.hyperthreads(), message, "a change of policy")
        yield from self._surely(daemon.children.coordinators(), message, "a change of policy")
        daemon.note_policy(old, name, kick)
        self._bind(ticket, f"the policy is {name}; the gates open as soon as their coordinators answer")
        yield from self._release(cores, "policy", client)
        return {"old": old, "new": name, "kick": policies.kick_in_force(name, kick)}

    def do_space_map(self, args: t.SpaceMapArgs, client: str, ticket: int) -> Procedure:
        def change(vm: int) -> Change:
            return self.spaces.map(
                vm, args.objects, level=args.level, split=args.split, secrets=args.allow_secrets
            )  # fmt: skip

        return self._remap(args.vm, "space.map", change, ticket)

    def do_space_unmap(self, args: t.SpaceUnmapArgs, client: str, ticket: int) -> Procedure:
        return self._remap(args.vm, "space.unmap", lambda vm: self.spaces.unmap(vm, args.objects), ticket)

    def _remap(self, name: str, op: str, change: Callable[[int], Change], ticket: int) -> Procedure:
        """Change a VM's mapping here, and be done when every hyperthread that lives has it.

        No gate is held and nobody is killed for his silence: each decides by what it has, and whoever is stopped makes
        the change before it decides anything again. Two changes of one VM come one after the other.
        """
        vm = self.vm_named(name, f"{op}: vm")
        while vm in self.remapping:
            yield set()
        self.remapping.add(vm)
        try:
            done = change(vm)
            self._bind(ticket, "the mapping is changed; hyperthreads that did not answer have it when they go on")
            yield self._ask(self.daemon.children.hyperthreads(), done.message())
        finally:
            self.remapping.discard(vm)
        return {
            "vm": vm, "name": vm_name(self.daemon.config, vm), "generation": done.generation,
            "changed": [*done.gone, *(entry.object for entry in done.added)],
            "mapped": done.mapped, "secret": done.secret, "lacks": list(done.lacks),
        }  # fmt: skip

    def do_ht_unplug(self, args: t.HtUnplugArgs, client: str, ticket: int) -> Procedure:
        """Keep away all that do not stay away already: those that are about to be born again, too."""
        daemon = self.daemon
        living = {place: child for place in self.resolve(args.target) if (child := daemon.child(place)) is not None}
        going = [place for place in self.resolve(args.target) if place in living or not daemon.stays_away(place)]
        if args.force:
            self._bind(ticket, "the hyperthreads were killed; their deaths are not confirmed yet")
        try:
            daemon.unplugged.update(going)
            for place, child in living.items():
                coordinator = daemon.coordinator(place[0])
                if args.force:
                    child.kill()
                elif coordinator is not None:  # one that is not there is told when it comes back
                    daemon.tell(coordinator, {"op": "stop", "ht": place[1]})
            while any(daemon.child(place) is child for place, child in living.items()):
                yield set()
        except BaseException:
            if not args.force:
                for place in going:
                    daemon.plug(place)  # those that are gone come back, the others stay
            raise
        return {"changed": [f"c{core}h{ht}" for core, ht in going]}

    def do_ht_plug(self, args: t.HtPlugArgs, client: str, ticket: int) -> Procedure:
        daemon = self.daemon
        coming = [p for p in self.resolve(args.target) if daemon.stays_away(p)]
        self._bind(ticket, "the hyperthreads come back as soon as their coordinators have done with the dead ones")
        for place in coming:
            daemon.plug(place)
        while waiting := [p for p in coming if (child := daemon.child(p)) is None or not child.up]:
            for core, ht in waiting:
                if daemon.stays_away((core, ht)):
                    state = "unplugged again" if (core, ht) in daemon.unplugged else "it died too often"
                    raise Conflict(f"c{core}h{ht} did not come back", where="ht.plug", state=state, hint="asid status")
            yield set()
        return {"changed": [f"c{core}h{ht}" for core, ht in coming]}

    def do_vcpu_detach(self, args: t.VcpuDetachArgs, client: str, ticket: int) -> Procedure:
        vcpus = self.daemon.vcpus
        going = {place: vcpus[place] for place in self.resolve(args.target) if vcpus.get(place, (0, 0))[0]}
        if self.daemon.detaching.intersection(going):
            raise Conflict("it is being taken away already", where="vcpu.detach", hint="Try again in a moment.")
        yield from self.daemon.detach(list(going))
        return {"changed": [(vm, vcpu, f"c{core}h{ht}") for (core, ht), (vm, vcpu) in going.items()]}

    def do_vcpu_attach(self, args: t.VcpuAttachArgs, client: str, ticket: int) -> Procedure:
        daemon = self.daemon
        places = self.resolve(args.to)
        vm, vcpu = self._named_vcpu(args.target)
        if len(places) != 1:
            raise BadArgument(f"{args.to} names {len(places)} hyperthreads", where="vcpu.attach", allowed="one")
        place = places[0]
        if daemon.vcpus.get(place, (0, 0))[0]:
            raise Conflict(f"{args.to} runs a vCPU already", where="vcpu.attach", hint="asid ht detach it first.")
        if (vm, vcpu) in daemon.vcpus.values():
            raise Conflict(f"{args.target} runs elsewhere", where="vcpu.attach", hint="asid ht detach it first.")
        if place in self._placing or (vm, vcpu) in self._placing.values():
            raise Conflict("it is on its way already", where="vcpu.attach", hint="Try again in a moment.")
        if daemon.child(place) is None:
            raise absent(place, "vcpu.attach", daemon.stays_away(place))
        self._placing[place] = (vm, vcpu)
        try:
            while True:  # until a hyperthread knows which vCPU it is to run that is there to do so
                child = daemon.child(place)
                yield self._ask([child] if child else [], {"op": "vcpu", "vm": vm, "vcpu": vcpu})
                if child is not None and daemon.child(place) is child:
                    break
            self._bind(ticket, f"{args.target} runs on {args.to} as soon as its coordinator answers")
            daemon.vcpus[place] = (vm, vcpu)  # a coordinator that is born from now on knows it from its birth
        finally:
            del self._placing[place]
        yield self._ask(self._gates([place[0]]), {"op": "attach", "ht": place[1], "vm": vm})
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
        details: dict[str, Any] = {}
        if isinstance(args, t.InjectMceArgs):
            details = {
                "scope": daemon.config.mce.mode if args.scope == "auto" else args.scope,
                "severity": args.severity,
            }
            places = daemon.struck(places, details["scope"])
        if isinstance(args, t.InjectExitArgs):
            details = exit_details(args.reason, args.full)
        elif isinstance(args, t.InjectIrqArgs):
            details = {**irq_details(args.full), "vector": args.vector}
        elif isinstance(args, t.InjectStallArgs):
            details = {"for_ns": args.for_ms * 1_000_000}
        count = getattr(args, "count", 1)
        rate_hz = getattr(args, "rate_hz", 0)
        interval_ns = round(1e9 / rate_hz) if rate_hz and count > 1 else 0
        random = getattr(args, "gaps", "even") == "random"
        if random and not interval_ns:
            raise BadArgument("gaps = random", where=f"inject.{what}", allowed="with a rate_hz, and a count above 1")
        from asid import ops

        waits = bool(getattr(args, "wait", False)) or ops.OPS[f"inject.{what}"].is_job(args)
        batch = Batch(
            what, places, count, interval_ns, self.now_ns(), details, ticket=ticket if waits else 0,
            gaps=Random(args.seed) if random else None,  # type: ignore[attr-defined]
        )  # fmt: skip
        if random:
            batch.next_ns += batch.gap_ns()  # the first is no likelier to be at once than at any other moment
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


def details_of(spec: Any, config: Config) -> dict[str, Any]:
    """Return what one [[inject]] table of a configuration says besides what every injection has."""
    if spec.what == "exit":
        return exit_details(spec.reason or "EPT_VIOLATION", "auto")
    if spec.what == "irq":
        return irq_details("yes")
    return {"scope": config.mce.mode} if spec.what == "mce" else {}


def exit_details(reason: str, full: str) -> dict[str, Any]:
    """Return the message of an injected exit. Raise BadArgument for a reason that the kernel does not have.

    full: yes, whatever is mapped. no: of what details may ask for, nothing. auto: what most exits of this reason do.
    """
    try:
        isa, number, name = canonical(reason)
    except Exception as error:
        raise BadArgument(str(error), where="inject.exit: reason", hint="asid schema ops; e.g. EPT_VIOLATION") from None
    parts = details_of_exit(isa, number).parts(0.5) if full == "auto" else NO_PARTS
    words = sorted(part.value for part in parts)
    return {"reason": name, "isa": isa, "service_ns": 0, "full": full == "yes", "parts": words}


def irq_details(full: str) -> dict[str, Any]:
    """Return the message of an external interrupt. full: yes, whatever is mapped; no, its handler touches only what is
    mapped; auto, it touches what those of devices do."""
    return {**exit_details("EXTERNAL_INTERRUPT", full), "mapped": full == "no"}
