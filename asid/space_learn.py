"""Learning a mapping: the exits of a configuration's VMs are played, and what they miss is mapped, round by round.

Rule 1. The exits are those of the guests' sources, seeded: the same configuration learns the same mapping.
Rule 2. An exit ends at its first fault, for it goes on in the full address space: what it would miss behind that is
        found in the next round. So a round adds no object that nothing has missed.
Rule 3. What is the host's and not for VMs (secret or mixed) is refused, unless secrets are allowed.
Rule 4. What turns out to make no exit fast is taken back at the end: it would expose its pages for nothing.

What is saved
    A full exit is one leave, and with siblings one kick of them. An object saves the full exits a second that would
    come back without it: of two objects that the same exits need, both save these. Rates are those of the workload,
    per second of its vCPUs' own time: guest, handlers and halts. An exit that is full whatever is mapped is counted,
    and nothing is learned from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from asid.config import Loaded, vm_name
from asid.core.exits import Isa, canonical, is_idle
from asid.errors import InputError
from asid.guest import Exit, make_source
from asid.mm.fault import FaultLog
from asid.mm.faulting import handle
from asid.mm.footprint import Access, footprint
from asid.mm.host import Host
from asid.mm.isolated import Entry, Isolated, object_of
from asid.mm.objects import ALIASES, OBJECT
from asid.mm.parts import Part
from asid.mm.reach import Miss, Reach
from asid.mm.secrets import Ownership, is_secret, secret_bytes
from asid.space_build import host_of, isolated_of, mapping_of, own_pages
from asid.space_pareto import Lack, Point, curve

STEP: Final = "learned"
NS: Final = 1_000_000_000


class Kind(NamedTuple):
    """Exits that are handled alike: of one vCPU, one reason, with the same parts. full: whatever is mapped."""

    vcpu: int
    isa: Isa
    number: int
    name: str
    parts: frozenset[Part]
    full: bool = False

    @property
    def accesses(self) -> tuple[Access, ...]:
        """What handling one touches."""
        return footprint(self.isa, self.number, self.parts)


@dataclass(slots=True)
class Workload:
    """The exits of one VM, by kind in the order of their first one, and the time of each vCPU in ns."""

    counts: dict[Kind, int] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)

    @property
    def exits(self) -> int:
        """How many were played."""
        return sum(self.counts.values())

    def rate_hz(self, kind: Kind) -> float:
        """Return exits a second of a kind, of its vCPU's own time."""
        return self.counts[kind] * NS / max(1, self.times[kind.vcpu])


class Round(NamedTuple):
    """One round of one VM. lines: the faults as printed; added, refused: objects, in the order in which they missed."""

    number: int
    vm: str
    lines: tuple[str, ...]
    added: tuple[str, ...]
    refused: tuple[str, ...]


class Addition(NamedTuple):
    """An object that was mapped. saves_hz: see the head; mapped: bytes that it made reachable; secret: of these, of the
    host's or of other VMs."""

    object: str
    whose: str
    round: int
    saves_hz: float
    mapped: int
    secret: int


class OfVm(NamedTuple):
    """What was learned for one VM. before, after: the full exits' part of all, 0 to 1; anyway: of these, those that are
    full whatever is mapped. refused: (object, whose, full exits a second that miss it). left: kinds of exits that would
    be fast if all was mapped that may be. curve: what each object buys and costs from where it began
    (`asid.space_pareto`); empty unless it was asked for.
    """

    name: str
    exits: int
    rate_hz: float
    before: float
    after: float
    anyway: float
    additions: tuple[Addition, ...]
    refused: tuple[tuple[str, str, float], ...]
    dropped: tuple[str, ...]
    left: int
    curve: tuple[Point, ...] = ()


class Learned(NamedTuple):
    """The outcome. mapping: by VM; complete: no fault is left but those that need secrets."""

    rounds: tuple[Round, ...]
    vms: tuple[OfVm, ...]
    mapping: dict[str, tuple[Entry, ...]]
    complete: bool


def play(loaded: Loaded, vm: int, exits: int) -> Workload:
    """Return `exits` exits of each vCPU of a VM, fewer where a recording ends. Raise as make_source does."""
    config = loaded.config
    guest = config.vm[vm - 1].guest
    work = Workload()
    for vcpu in range(len(config.places_of(vm))):
        source = make_source(guest, vm=vm, vcpu=vcpu, seed=config.seed, base_dir=loaded.base_dir)
        for _ in range(exits):
            event = source.next()
            if event is None:
                break
            kind = kind_of(event, vcpu, guest.halt_poll_ns)
            work.counts[kind] = work.counts.get(kind, 0) + 1
            time_ns = event.after_ns + event.service_ns + event.wake_ns
            work.times[vcpu] = work.times.get(vcpu, 0) + time_ns
    return work


def kind_of(event: Exit, vcpu: int, halt_poll_ns: int = 0) -> Kind:
    """Return what an exit's handling does. A halt that is polled for does not block."""
    isa, number, name = canonical(event.reason, event.isa)
    parts = event.parts
    if is_idle(isa, number) and event.wake_ns <= halt_poll_ns:
        parts -= {Part.BLOCKS}
    return Kind(vcpu, isa, number, name, parts, event.full)


def learn(loaded: Loaded, mapping: str, *, rounds: int, exits: int, secrets: bool, pareto: bool = False) -> Learned:
    """Learn the mapping of every VM, from a named one or a file on. rounds, exits of a vCPU: at most. pareto: the curve
    of each VM, too.

    Raise InputError when no VM has an exit, and as host_of, mapping_of and Isolated.apply do.
    """
    start = mapping_of(loaded, mapping)
    work = {vm: play(loaded, vm, exits) for vm in start}
    if not any(each.exits for each in work.values()):
        raise InputError(
            "no VM has an exit to learn from",
            where=str(loaded.path),
            state=f"{len(work)} VMs",
            allowed="a guest with source mix or trace",
            hint='Try guest = { source = "mix", table = "tables/web.toml" }.',
        )
    host = host_of(loaded)
    learners = [
        _Learner(host, vm, entries, work[vm], secrets, loaded.config.space.page_fault_stack)
        for vm, entries in start.items()
    ]
    done: list[Round] = []
    for number in range(1, rounds + 1):
        turns = [learner.round(number) for learner in learners]
        done += [turn for turn in turns if turn.lines or turn.added]
        if not any(turn.added for turn in turns):
            break
    found = [learner.finish() for learner in learners]
    if pareto:
        found = [vm._replace(curve=curve(_Played(each))) for vm, each in zip(found, learners, strict=True)]
    names = [vm_name(loaded.config, vm) for vm in start]
    kept = {name: learner.isolated.entries for name, learner in zip(names, learners, strict=True)}
    return Learned(tuple(done), tuple(found), kept, not any(vm.left for vm in found))


class _Learner:
    """One VM while its mapping is learned."""

    def __init__(self, host: Host, vm: int, start: Sequence[Entry], work: Workload, secrets: bool, stack: bool) -> None:
        self.host = host
        self.vm = vm
        self.start = tuple(start)
        self.work = work
        self.secrets = secrets
        self.isolated = isolated_of(host, vm, self.start)
        self.log = FaultLog(stack=stack)
        self.added: dict[str, int] = {}  # object: the round
        self.before = self._full_hz()

    def round(self, number: int) -> Round:
        """Play every exit once, and map what misses first in each."""
        lines: list[str] = []
        added: list[str] = []
        refused: list[str] = []
        for kind in self.work.counts:
            miss = None if kind.full else self._miss(kind)
            if miss is None:
                continue
            done = handle(self._reach(kind.vcpu), miss, self.log)
            self.log = done.log
            lines += done.lines
            # What a fault's own handler lacks comes first: it is needed by every fault.
            for seen in (*done.missing, miss):
                name = _object_of(seen)
                (added if self.may(name) else refused).append(name)
        new = [name for name in dict.fromkeys(added) if not self.isolated.has(name)]
        for name in new:
            self.map(self.isolated, name)
            self.added[name] = number
        return Round(number, self.isolated.name, tuple(lines), tuple(new), tuple(dict.fromkeys(refused)))

    def finish(self) -> OfVm:
        """Take back what makes nothing fast, and say what each of the rest saves and exposes."""
        full_hz = self._full_hz()
        left = sum(1 for kind in self.work.counts if not kind.full and self._miss(kind) and self._could(kind))
        dropped: list[str] = []
        # While something is left, nothing is known to be of no use. One at a time: two may do the same for an exit.
        saves = self._saves()
        while not left and (useless := [name for name in saves if not saves[name]]):
            self.isolated.unmap(useless[-1])
            dropped.append(useless[-1])
            saves = {name: rate for name, rate in self._saves().items() if name not in dropped}
        kept = [name for name in self.added if name not in dropped]
        additions = self._measured(kept, saves)
        total = sum(self.work.rate_hz(kind) for kind in self.work.counts)
        return OfVm(
            self.isolated.name,
            self.work.exits,
            total,
            self.before / total if total else 0.0,
            full_hz / total if total else 0.0,
            sum(self.work.rate_hz(kind) for kind in self.work.counts if kind.full) / total if total else 0.0,
            additions,
            self._refused(),
            tuple(sorted(dropped)),
            left,
        )

    def _saves(self) -> dict[str, float]:
        """Return for each object that was added the rate of the fast exits that nothing else would keep fast."""
        saves = dict.fromkeys(self.added, 0.0)
        for kind in self.work.counts:
            if kind.full or self._miss(kind):
                continue
            reach = self._reach(kind.vcpu)
            needed: set[str] = set()
            for access in kind.accesses:
                mapped_for = {object_of(seen) for seen in self.isolated.space.at(reach.address(access))}
                if len(mapped_for) == 1:
                    needed |= mapped_for
            for name in sorted(needed & saves.keys()):
                saves[name] += self.work.rate_hz(kind)
        return saves

    def _measured(self, kept: list[str], saves: dict[str, float]) -> tuple[Addition, ...]:
        """Return what each object saves and exposes: mapped one after the other to where it began."""
        fresh = isolated_of(self.host, self.vm, self.start)
        ownership = Ownership(self.host, self.vm)
        mapped, secret = _reachable(fresh, ownership)
        found = []
        for name in kept:
            self.map(fresh, name)
            now = _reachable(fresh, ownership)
            whose = OBJECT[name].sensitivity.value
            found.append(Addition(name, whose, self.added[name], saves[name], now[0] - mapped, now[1] - secret))
            mapped, secret = now
        fresh.free()
        return tuple(sorted(found, key=lambda each: (-each.saves_hz, each.round)))

    def _refused(self) -> tuple[tuple[str, str, float], ...]:
        rates: dict[str, float] = {}
        for kind in self.work.counts:
            if kind.full:
                continue
            names = {_object_of(miss) for miss in self._reach(kind.vcpu).misses(kind.accesses)}
            for name in sorted(name for name in names if not self.may(name)):
                rates[name] = rates.get(name, 0.0) + self.work.rate_hz(kind)
        listed = ((name, OBJECT[name].sensitivity.value, rate) for name, rate in rates.items())
        return tuple(sorted(listed, key=lambda row: (-row[2], row[0])))

    def _could(self, kind: Kind) -> bool:
        """Say whether an exit would be fast if all were mapped that may be."""
        return all(self.may(_object_of(miss)) for miss in self._reach(kind.vcpu).misses(kind.accesses))

    def may(self, name: str) -> bool:
        """Say whether an object may be mapped."""
        return self.secrets or not is_secret(OBJECT[name].sensitivity)

    def _reach(self, vcpu: int) -> Reach:
        return Reach(self.isolated, vcpu)

    def _miss(self, kind: Kind) -> Miss | None:
        return self._reach(kind.vcpu).first_miss(kind.accesses)

    def _full_hz(self) -> float:
        return sum(self.work.rate_hz(kind) for kind in self.work.counts if kind.full or self._miss(kind))

    def map(self, isolated: Isolated, name: str) -> None:
        """Map an object into one of this VM's spaces, as a learned one is."""
        isolated.apply((own_pages(self.host, self.vm, name, STEP),))


class _Played:
    """A space as a curve sees it: what a learner's exits miss, from where it began."""

    def __init__(self, learner: _Learner) -> None:
        self._learner = learner
        self._isolated = isolated_of(learner.host, learner.vm, learner.start)
        self._ownership = Ownership(learner.host, learner.vm)
        self._costs: dict[str, int] = {}
        self.exits_hz = sum(learner.work.rate_hz(kind) for kind in learner.work.counts)

    def lacks(self) -> list[Lack]:
        found: dict[tuple[str, ...], float] = {}
        for kind in self._learner.work.counts:
            missed = () if kind.full else Reach(self._isolated, kind.vcpu).misses(kind.accesses)
            if kind.full or missed:
                names = tuple(dict.fromkeys(_object_of(miss) for miss in missed))
                found[names] = found.get(names, 0.0) + self._learner.work.rate_hz(kind)
        return [Lack(names, rate_hz) for names, rate_hz in found.items()]

    def exposes(self, name: str) -> int:
        if name not in self._costs:  # what it adds to the beginning is near enough to choose by; points are measured
            before, _ = self.exposed()
            self.map(name)
            self._costs[name] = self.exposed()[0] - before
            self._isolated.unmap(name)
        return self._costs[name]

    def is_refused(self, name: str) -> bool:
        return not self._learner.may(name)

    def map(self, name: str) -> None:
        self._learner.map(self._isolated, name)

    def exposed(self) -> tuple[int, int]:
        return _reachable(self._isolated, self._ownership)


def _object_of(miss: Miss) -> str:
    return ALIASES.get(miss.access.object, miss.access.object)


def _reachable(isolated: Isolated, ownership: Ownership) -> tuple[int, int]:
    mapped = sum(run.end - run.start for run in isolated.space.table.runs(flags=0))
    return mapped, secret_bytes(isolated, ownership)
