"""What the daemon answers to operations that change nothing: status, hyperthreads, gates, statistics, records.

Modes come from the core page, a quick look that may be a moment old; nothing is decided by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from asid import optypes as t
from asid import policies
from asid.core.events import Mode
from asid.core.record import as_map, topic_of
from asid.errors import BadArgument, NoSuchObject
from asid.live.children import Place
from asid.live.page import INSNS, MCE, MODE, NMI, ROUND, base_of, interrupt_parts
from asid.live.spaces import Spaces, named_vm
from asid.targets import resolve

if TYPE_CHECKING:
    from asid.live.daemon import Daemon


class Queries:
    """Queries of the control protocol, one method each."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.spaces = Spaces(daemon)
        self.remapping: set[int] = set()  # VMs whose mapping hyperthreads are being told of

    def seq(self) -> int:
        return self.daemon.merge.seq

    def resolve(self, target: str) -> tuple[Place, ...]:
        return resolve(target, self.daemon.topology)

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
            "state": d.health.condition(),
            "name": d.config.name,
            "policy": d.policy,
            "kick": policies.kick_in_force(d.policy, d.kick),
            "seed": d.config.seed,
            "started_ns": d.started_ns,
            "run_dir": str(d.run.path),
            "cores": cores,
            "counters": {**d.control.counters(), **d.counters},
            "warnings": d.health.warnings(),
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
            "nmis": interrupt_parts(words[base + NMI])[1],
            "mces": interrupt_parts(words[base + MCE])[1],
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

    def vm_named(self, name: str, where: str) -> int:
        """Return the number of a VM, by its name or as vm1. Raise NoSuchObject."""
        vm = named_vm(self.daemon.config, name)
        if not vm:
            names = [each.name or f"vm{number}" for number, each in enumerate(self.daemon.config.vm, start=1)]
            allowed = f"one of {', '.join(names)}" if names else ""
            raise NoSuchObject(f"there is no VM {name!r}", where=where, allowed=allowed, hint="asid status")
        return vm

    def query_space_get(self, args: t.SpaceGetArgs) -> dict[str, Any]:
        vms = range(1, len(self.daemon.config.vm) + 1)
        wanted = (self.vm_named(args.vm, "space.get: vm"),) if args.vm else vms
        return {"spaces": [{**self.spaces.look(vm), "changing": vm in self.remapping} for vm in wanted]}

    def query_gate_get(self, args: t.TargetArgs) -> dict[str, Any]:
        cores = sorted({core for core, _ in self.resolve(args.target)})
        silent = self.daemon.health.silent()  # what is told of these gates is what was so before
        gates = []
        for core in cores:
            seen = self.daemon.gates.get(core, {})
            members = seen.get("members", [])
            gates.append(
                {
                    "core": core,
                    "round": self.daemon.words(core)[ROUND],
                    "open": bool(seen.get("open", False)),
                    "vm": seen.get("vm", 0),
                    "phase": "silent" if core in silent else phase_of(seen),
                    "waiting": [f"c{core}h{m['ht']} {m['want'].lower()}" for m in members if m["want"] != "NONE"],
                    "members": members,
                    "holder": "",
                    "held_ns": 0,
                }
            )
        return {"gates": gates}

    def _writers(self, target: str) -> frozenset[Place]:
        """Return the places whose records are of the target; a coordinator's are when its core is, as a whole."""
        places = set(self.resolve(target))
        for core in {core for core, _ in places}:
            if all((core, ht) in places for ht in range(self.daemon.config.machine.smt)):
                places.add((core, -1))
        return frozenset(places)

    def query_stats_get(self, args: t.StatsGetArgs) -> dict[str, Any]:
        self.daemon.drain()
        try:
            return self.daemon.merge.stats.page(self._writers(args.target), args.after, args.limit)
        except ValueError:
            raise BadArgument(
                "no row is called so", where="stats.get: args.after", allowed="the `next` of an answer, or nothing"
            ) from None

    def query_hist_get(self, args: t.HistGetArgs) -> dict[str, Any]:
        if args.reason and args.what != "exit":
            raise BadArgument(
                f"a reason for {args.what}", where="hist.get: args.reason", allowed="with what = exit",
                hint="Leave it out.",
            )  # fmt: skip
        found = self.daemon.merge.stats.distribution(args.what, args.reason, self._writers(args.target)).as_map()
        return {"buckets": found["hist"], "n": found["n"], "min_ns": found["min_ns"], "max_ns": found["max_ns"]}

    def query_policy_list(self, args: t.Args) -> dict[str, Any]:
        rows = []
        for name in policies.names():
            policy = policies.make(name, self.daemon.kick)
            rows.append({"name": name, "kick": policy.kick.name.lower(), "about": policy.about})
        current = self.daemon.policy
        return {"policies": rows, "current": current, "kick": policies.kick_in_force(current, self.daemon.kick)}

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
