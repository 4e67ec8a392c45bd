"""What the isolated space of each VM maps, as the daemon holds it: changed here first, on a real table.

Rule 1. A change is tried on the VM's own space over the host's page table, for all of its objects or for none. What
        the rules of page tables refuse changes nothing, and nobody hears of it.
Rule 2. Once it is made here, whoever is born has it from its birth. Those that live are told (`Change.message`), and
        take it in their own time.
Rule 3. The number of a change counts all of this machine; that of a VM's mapping is the number of its last one.

Host and spaces are built when they are first asked for: a run that nobody changes needs none of them here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from asid.config import vm_name
from asid.errors import BadArgument, Conflict, ControlError, MappingRefused
from asid.mm.entry import Level
from asid.mm.faulting import survives
from asid.mm.host import Host
from asid.mm.isolated import Entry, Isolated
from asid.mm.objects import ALIASES, OBJECT
from asid.mm.reach import Reach
from asid.mm.secrets import Ownership, is_secret, secret_bytes
from asid.report.spaces import mapped_rows, totals
from asid.space_build import host_of, isolated_of, own_pages

if TYPE_CHECKING:
    from asid.live.parent import Parent

STEP = "live"  # who mapped it: a client, while the machine ran


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one VM's mapping. mapped, secret: bytes that the VM reaches, and those of others, before and after.

    lacks: what the handler of a fault misses now; each fault is then forced out, or stops the hyperthread.
    """

    vm: int
    generation: int
    added: tuple[Entry, ...]
    gone: tuple[str, ...]
    mapped: tuple[int, int]
    secret: tuple[int, int]
    lacks: tuple[str, ...]

    def message(self) -> dict[str, Any]:
        """What hyperthreads are told."""
        entries = [[entry.object, int(entry.level), entry.split, entry.step] for entry in self.added]
        return {"op": "space", "vm": self.vm, "generation": self.generation, "map": entries, "unmap": list(self.gone)}

    def records(self) -> list[dict[str, Any]]:
        """What the journal is told, an object each."""
        gone = [{"object": name, "mapped": False} for name in self.gone]
        added = [
            {"object": entry.object, "mapped": True, "level": entry.level.name, "split": entry.split}
            for entry in self.added
        ]
        return [
            {"vm": self.vm, "object": each.pop("object"), "generation": self.generation, **each}
            for each in (*gone, *added)
        ]


class Spaces:
    """The mappings of a machine's VMs, which `daemon` keeps for births, and the spaces that changes are tried on."""

    def __init__(self, daemon: Parent) -> None:
        self.daemon = daemon
        self._host: Host | None = None
        self._isolated: dict[int, Isolated] = {}
        self._ownership: tuple[int, Ownership] | None = None  # of the VM that was looked at last
        self._generations: dict[int, int] = {}

    def generation(self, vm: int) -> int:
        """Return the number of the last change of a VM's mapping, 0 for none since the start."""
        return self._generations.get(vm, 0)

    def isolated(self, vm: int) -> Isolated:
        """Return a VM's space."""
        if vm not in self._isolated:
            if self._host is None:
                self._host = host_of(self.daemon.loaded)
            self._isolated[vm] = isolated_of(self._host, vm, self.daemon.mapping[vm - 1])
        return self._isolated[vm]

    def look(self, vm: int) -> dict[str, Any]:
        """Return what a VM's space maps, object by object, and its sums, in plain values."""
        isolated = self.isolated(vm)
        rows = [row._asdict() for row in mapped_rows(isolated)]
        sums = {**totals(isolated), "generation": self.generation(vm)}
        return {"vm": vm, "name": isolated.name, "objects": rows, "totals": sums}

    # --- changes ------------------------------------------------------------------------------------------

    def map(self, vm: int, names: Sequence[str], *, level: str, split: str, secrets: bool) -> Change:
        """Map objects, all or none. level: a name of one, or auto; split: yes, no or auto.

        Raise BadArgument for no object, a secret without `secrets` and what a page table cannot do; Conflict for what
        is mapped, or has no room.
        """
        names = _objects(names, "space.map")
        held = [name for name in names if is_secret(OBJECT[name].sensitivity)]
        if held and not secrets:
            said = ", ".join(f"{name} ({OBJECT[name].sensitivity.value})" for name in held)
            raise BadArgument(
                f"secret to a VM: {said}",
                where="space.map: objects",
                state="nothing was mapped",
                allowed="objects that are this VM's or globally non-sensitive",
                hint="Leave it out, or allow secrets (--allow-secrets) to see what it costs.",
                data={"secrets": held},
            )
        isolated = self.isolated(vm)
        entries = tuple(_entry(isolated, name, level, split) for name in names)
        return self._change(vm, "space.map", entries, (), lambda: isolated.apply(entries))

    def unmap(self, vm: int, names: Sequence[str]) -> Change:
        """Unmap objects, all or none. Raise BadArgument for no object, Conflict for what is not mapped."""
        names = _objects(names, "space.unmap")
        isolated = self.isolated(vm)
        lacking = [name for name in names if not isolated.has(name)]
        if lacking:
            raise Conflict(
                f"EINVAL: {', '.join(lacking)}: not mapped",
                where=f"space.unmap: {isolated.name}",
                state="nothing was unmapped",
                allowed=f"mapped: {', '.join(entry.object for entry in isolated.entries) or 'nothing is'}",
                hint="asid space show lists what is mapped.",
                data={"errno": "EINVAL"},
            )

        def unmap() -> None:
            with isolated.space.table.all_or_nothing():
                for name in names:
                    isolated.unmap(name)

        return self._change(vm, "space.unmap", (), tuple(names), unmap)

    def _change(
        self, vm: int, op: str, added: tuple[Entry, ...], gone: tuple[str, ...], make: Callable[[], None]
    ) -> Change:
        isolated, daemon = self.isolated(vm), self.daemon
        before = self._reachable(isolated)
        try:
            make()
        except MappingRefused as refused:
            raise _refusal(refused, op) from None
        daemon.generation += 1
        self._generations[vm] = daemon.generation
        daemon.mapping = (*daemon.mapping[: vm - 1], isolated.entries, *daemon.mapping[vm:])
        after = self._reachable(isolated)
        lacks = tuple(dict.fromkeys(miss.access.object for miss in survives(Reach(isolated, 0))))
        change = Change(
            vm, daemon.generation, added, gone, (before[0], after[0]), (before[1], after[1]), lacks
        )  # fmt: skip
        for record in change.records():
            daemon.merge.note("space.change", record)
        return change

    def _reachable(self, isolated: Isolated) -> tuple[int, int]:
        """Return how many bytes a VM reaches, and how many of them are of others. Nothing moves in this host."""
        if self._ownership is None or self._ownership[0] != isolated.vm:
            self._ownership = isolated.vm, Ownership(isolated.host, isolated.vm)
        mapped = sum(run.end - run.start for run in isolated.space.table.runs(flags=0))
        return mapped, secret_bytes(isolated, self._ownership[1])


def _entry(isolated: Isolated, name: str, level: str, split: str) -> Entry:
    """Return how an object is to be mapped: in pages of its own where nothing else is asked for."""
    entry = own_pages(isolated.host, isolated.vm, name, STEP)
    if level != "auto":
        entry = entry._replace(level=Level[level])
    return entry if split == "auto" else entry._replace(split=split == "yes")


def _objects(names: Sequence[str], op: str) -> tuple[str, ...]:
    """Return objects by the names that they are mapped by. Raise BadArgument for one that is none, or comes twice."""
    found: list[str] = []
    for given in names:
        name = ALIASES.get(given, given)
        if name not in OBJECT:
            near = get_close_matches(name, OBJECT, 1)
            raise BadArgument(
                f"{name!r} is no object of the kernel",
                where=f"{op}: objects",
                state="nothing was changed",
                allowed=f"one of {', '.join(OBJECT)}",
                hint=f"Did you mean {near[0]!r}?" if near else "asid space show lists what is mapped.",
            )
        if name in found:
            raise BadArgument(
                f"{name!r} comes twice", where=f"{op}: objects", state="nothing was changed",
                allowed="each object once", hint="Leave one of them out.",
            )  # fmt: skip
        found.append(name)
    return tuple(found)


def _refusal(refused: MappingRefused, op: str) -> ControlError:
    """Return what a client is told of a rule that stood against a change."""
    kind: type[ControlError] = Conflict if refused.errno in ("EBUSY", "ENOMEM") else BadArgument
    return kind(
        refused.what, where=f"{op}: {refused.where}", state=refused.state, allowed=refused.allowed, hint=refused.hint,
        data={"errno": refused.errno},
    )  # fmt: skip


def named_vm(config: Any, name: str) -> int:
    """Return the number of the VM of that name or of the form vm1; 0 when there is none."""
    names = [vm_name(config, vm) for vm in range(1, len(config.vm) + 1)]
    numbered = [f"vm{vm}" for vm in range(1, len(config.vm) + 1)]
    return next((known.index(name) + 1 for known in (names, numbered) if name in known), 0)
