"""What each VM's isolated space mapped in a run, and whether it translates what an exit's handling touches.

Rule 1. What was mapped at the start is in the run directory (`space.toml`), the changes are in the journal.
Rule 2. By names first: when every object that is touched was mapped, nothing is missed. Page tables are built where
        names do not tell, as when something larger was mapped around an object, or something beside it.
Rule 3. Where it is not certain with which mapping a hyperthread decided, every one that it may have had is asked, and
        the run gets the benefit of the doubt.

A generation of a VM's mapping is the same for all hyperthreads. The daemon tells each change; a hyperthread tells those
that it makes while it runs that VM. One that was born later, or that ran another VM or none meanwhile, has made others
too, untold.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asid.errors import InputError

if TYPE_CHECKING:
    from asid.audit.history import History
    from asid.audit.rows import MappedRow
    from asid.mm.footprint import Access
    from asid.mm.host import Host
    from asid.mm.reach import Reach

MAPPING = "space.toml"
CONFIG = "config.resolved.json"
LATE_NS = 2_000_000_000  # until every hyperthread has made a change that one of them has
LEVELS = {"x86-64-4level": 4, "x86-64-5level": 5}
ENTRIES = ("PTE", "PMD", "PUD", "P4D", "PGD")
ALIASES = {"other vcpu": "vcpu"}  # one thing under two names


class Mapped(NamedTuple):
    """An object that was mapped, as in a file of `asid.space_files`; nothing of `asid.mm` is imported for it."""

    object: str
    level: str = "PTE"
    split: bool = False


class Asked(NamedTuple):
    """Who decided an exit, and when. changes: how many changes its hyperthread had told before."""

    core: int
    ht: int
    vm: int
    ts: int
    changes: int


class _Stays(NamedTuple):
    """Which VMs a hyperthread ran in the whole run, since when, and whether it ever idled."""

    vms: frozenset[int]
    first_ts: int
    idled: bool


class Spaces:
    """The isolated spaces of the run in a directory; read when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read = False
        self._start: dict[int, tuple[Mapped, ...]] = {}
        self._config: dict[str, Any] = {}
        self._host: Host | None = None
        self._changes: dict[int, dict[int, dict[tuple[str, bool], MappedRow]]] | None = None
        self._stays: dict[tuple[int, int], _Stays] = {}
        self._reaches: dict[tuple[int, int, tuple[Mapped, ...]], tuple[Reach, ...]] = {}

    @property
    def exist(self) -> bool:
        """Whether the run says what was mapped. Those of before there was such a file do not."""
        return (self._root / MAPPING).exists()

    def translate(self, history: History, asked: Asked, accesses: tuple[Access, ...]) -> bool:
        """Say whether all these are translated, by some mapping that may have been the one. Raise InputError."""
        touched = {ALIASES.get(access.object, access.object) for access in accesses}
        found = list(self._mappings(history, asked))
        if any(touched <= {entry.object for entry in entries} for entries in found):
            return True
        return any(reach.first_miss(accesses) is None for entries in found for reach in self._reach(asked, entries))

    def lack(self, history: History, asked: Asked, name: str, accesses: tuple[Access, ...]) -> bool:
        """Say whether an access to this object is not translated, by some mapping that may have been the one."""
        accesses = tuple(access for access in accesses if access.object == name)
        found = list(self._mappings(history, asked))
        if any(ALIASES.get(name, name) not in {entry.object for entry in entries} for entries in found):
            return True
        return any(reach.first_miss(accesses) is not None for entries in found for reach in self._reach(asked, entries))

    # --- which mapping --------------------------------------------------------------------------------------

    def _mappings(self, history: History, asked: Asked) -> Iterator[tuple[Mapped, ...]]:
        """Yield each mapping that the hyperthread may have decided with."""
        self._load()
        if self._changes is None:
            self._changes = _generations(history)
        generations = self._changes.get(asked.vm, {})
        stays = self._stays.get((asked.core, asked.ht))
        if stays is None:
            stays = self._stays[asked.core, asked.ht] = _stays_of(history, asked)
        low, high = _span(history, asked, generations, stays)
        mapped = {entry.object: entry for entry in self._start.get(asked.vm, ())}
        for generation in sorted({0, *generations}):
            if generation > high:
                break
            if low < generation:
                yield tuple(mapped.values())
            _make(mapped, generations.get(generation, {}).values())
        yield tuple(mapped.values())

    def _reach(self, asked: Asked, entries: tuple[Mapped, ...]) -> tuple[Reach, ...]:
        """Return what each vCPU of a VM reaches on a CPU: which of them was there is not told."""
        from asid.mm.entry import Level
        from asid.mm.isolated import Isolated
        from asid.mm.reach import Reach

        smt = int(self._config["machine"]["smt"])
        key = asked.vm, asked.core * smt + asked.ht, entries
        found = self._reaches.get(key)
        if found is None:
            host = self._host = self._host or self._built()
            if asked.vm > len(host.vms):
                return ()
            isolated = Isolated(host, asked.vm)
            for entry in entries:
                isolated.map(entry.object, Level[entry.level], split=entry.split)
            vcpus = range(len(host.vms[asked.vm - 1].cpus))
            found = self._reaches[key] = tuple(Reach(isolated, vcpu, key[1]) for vcpu in vcpus)
        return found

    # --- the run directory ----------------------------------------------------------------------------------

    def _load(self) -> None:
        if self._read:
            return
        try:
            kept = tomllib.loads((self._root / MAPPING).read_text())
            named = {vm["name"]: tuple(_mapped(**item) for item in vm["map"]) for vm in kept["vm"]}
            self._config = json.loads((self._root / CONFIG).read_bytes())
            self._start = {number: named[str(vm["name"])] for number, vm in enumerate(self._config["vm"], start=1)}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
            raise InputError(
                f"the run directory does not say what was mapped: {fault}", where=str(self._root)
            ) from None
        self._read = True

    def _built(self) -> Host:
        from asid.mm.host import Host, VmShape
        from asid.space_files import read_symbols
        from asid.targets import Topology, resolve

        try:
            machine, space = self._config["machine"], self._config["space"]
            topology = Topology(machine["cores"], machine["smt"])
            shapes = [
                VmShape(
                    vm["name"],
                    tuple(core * topology.smt + ht for item in vm["on"] for core, ht in resolve(item, topology)),
                )
                for vm in self._config["vm"]
            ]
            symbols = read_symbols(Path(space["kallsyms"])) if space["kallsyms"] else None
            cpus = topology.cores * topology.smt
            return Host(shapes, cpus, levels=LEVELS[space["layout"]], symbols=symbols)
        except (KeyError, TypeError, ValueError) as fault:
            raise InputError(f"{CONFIG} does not say what machine it was: {fault}", where=str(self._root)) from None


def _mapped(object: str, level: str = "PTE", split: bool = False, step: str = "") -> Mapped:
    """Return an item of the file. Raise ValueError for what is none. step: who mapped it, no matter here."""
    if not isinstance(object, str) or level not in ENTRIES:
        raise ValueError(f"object {object!r:.40}, level {level!r:.40}")
    return Mapped(object, level, split)


def _generations(history: History) -> dict[int, dict[int, dict[tuple[str, bool], MappedRow]]]:
    """Return the changes of each VM's mapping by generation, each once, with the one that was told first."""
    found: dict[int, dict[int, dict[tuple[str, bool], MappedRow]]] = {}
    rows = [row for core in history.cores.values() for rows in core.decided.changes.values() for row in rows]
    for row in sorted([*history.remapped, *rows]):
        found.setdefault(row.vm, {}).setdefault(row.generation, {}).setdefault((row.object, row.mapped), row)
    return found


def _stays_of(history: History, asked: Asked) -> _Stays:
    core = history.cores[asked.core]
    guests = core.guests.get(asked.ht, [])
    idled = any(row.kind == "gate.idle" for row in core.gate_of.get(asked.ht, ()))
    return _Stays(frozenset(row.vm for row in guests), guests[0].ts if guests else 0, idled)


def _span(
    history: History, asked: Asked, generations: dict[int, dict[tuple[str, bool], MappedRow]], stays: _Stays
) -> tuple[int, int]:
    """Return the oldest and the newest generation that a hyperthread may have decided by."""
    core = history.cores[asked.core]
    told = [row.generation for row in core.decided.changes.get(asked.ht, ())[: asked.changes] if row.vm == asked.vm]
    own = told[-1] if told else 0
    born = max((row.ts for row in core.spawns.get(asked.ht, ()) if row.ts <= asked.ts), default=0)
    firsts = {number: min(row.ts for row in rows.values()) for number, rows in generations.items()}
    low = max([own, *(number for number, ts in firsts.items() if ts <= born)])
    if stays.vms == {asked.vm} and not stays.idled and len(core.spawns.get(asked.ht, ())) <= 1:
        # Only what was changed before it began with this VM has it made untold.
        return own, max([own, *(number for number, ts in firsts.items() if ts <= stays.first_ts)])
    return low, max([low, *(number for number, ts in firsts.items() if ts <= asked.ts + LATE_NS)])


def _make(mapped: dict[str, Mapped], rows: Iterable[MappedRow]) -> None:
    """Make the changes of one generation. What is unmapped goes first: an object may be mapped in another way."""
    changes = list(rows)
    for row in changes:
        if not row.mapped:
            mapped.pop(row.object, None)
    for row in changes:
        if row.mapped:
            mapped[row.object] = Mapped(row.object, row.level, row.split)
