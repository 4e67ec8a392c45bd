"""A simulated machine: a configuration played in virtual time, as one stream of records.

The records are those of the live engine, so audit, statistics and reports read both. The same configuration, seed and
costs give the same records, byte for byte, in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import merge
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asid.core.exits import canonical
from asid.core.policies.base import Policy
from asid.core.record import NO_CORE, NO_HT, Record
from asid.guest import make_source
from asid.guest.base import Exit, Source
from asid.guest.details import details_of
from asid.sim.core import Core, GuestOf, Injection, Standing
from asid.sim.costs import Costs
from asid.sim.figures import Figures, Teller
from asid.sim.notes import Noted, Numbers
from asid.targets import resolve

if TYPE_CHECKING:
    from asid.config import Config, Loaded
    from asid.mm.isolated import Isolated

ENGINE: Final = "sim"
INTERRUPTED: Final = "interrupted"

OnProgress = Callable[[int, int], None]


def nobody(done_ns: int, total_ns: int) -> None:
    """Nobody watches."""


class Played(NamedTuple):
    """What a simulation came to. duration_ns: of virtual time, the stop included. standing: when the stop began."""

    records: list[Record]
    duration_ns: int
    standing: tuple[Standing, ...] = ()


class Measured(NamedTuple):
    """What a simulation came to in figures. duration_ns: as in `Played`. counted: leaves that were not played."""

    figures: Figures
    duration_ns: int
    counted: int


class Machine:
    """All cores of a configuration. policy: that of the configuration; said: what run.begin says of it besides;
    isolated: the isolated space of each VM, by number. runs: play fast exits that follow each other as one; it changes
    no record, and needs numpy.

    Raise ConfigError for what is not simulated.
    """

    def __init__(
        self, loaded: Loaded, costs: Costs, policy: Policy, said: Mapping[str, str], isolated: Mapping[int, Isolated],
        *, runs: bool = True,
    ) -> None:  # fmt: skip
        self.loaded = loaded
        self.config: Config = loaded.config
        self.costs = costs
        self.policy = policy
        self.said = dict(said)
        self.isolated = isolated
        self.runs = runs and find_spec("numpy") is not None
        self.ended = False  # before its time
        self._figures = False
        self.cores: list[Core] = []

    def play(self, duration_ns: int, on_progress: OnProgress = nobody, *, until_exhausted: bool = False) -> Played:
        """Play `duration_ns` of virtual time, as `stream` does, and return all of it at once."""
        records = list(self.stream(duration_ns, on_progress, until_exhausted=until_exhausted))
        standing = tuple(one for core in self.cores for one in core.standing)
        return Played(records, records[-1].ts, standing)

    def measure(
        self, duration_ns: int, on_progress: OnProgress = nobody, *, until_exhausted: bool = False, seen: bool = True
    ) -> Measured:  # fmt: skip
        """Play `duration_ns` of virtual time as `stream` does, and return figures alone; they come out the same.

        seen: a leave that goes as one before it is not played but counted. Only where runs are played, too.
        """
        self._figures = self.runs and seen
        plays, figures, tellers = self._plays(duration_ns, until_exhausted), Figures(), {}
        for core in self.cores:
            tellers[core.number] = Teller(core.number)
        while not all(core.over for core in self.cores):
            now_ns = min(next(play, duration_ns) for play in plays)
            on_progress(min(now_ns, duration_ns), duration_ns)
            for core in self.cores:
                figures.add(core.told(tellers[core.number]))
        counted, end_ns = 0, max(core.end_ns for core in self.cores)
        for core in self.cores:
            figures.add(tellers[core.number].end(end_ns))
            if core.seen is not None:
                figures.merge(core.seen.figures())
                counted += core.seen.counted
        return Measured(figures, end_ns, counted)

    def stream(
        self, duration_ns: int, on_progress: OnProgress = nobody, *, until_exhausted: bool = False
    ) -> Iterator[Record]:  # fmt: skip
        """Play `duration_ns` of virtual time; give each record when nothing can come before it any more.

        Raise ConfigError or InputError for guests that cannot be made.

        until_exhausted: end before, when every recording has; a core whose recordings are shorter waits for nobody.
        on_progress(done_ns, total_ns): the cores go on side by side, a slice of virtual time each.
        """
        return self._numbered(self._noted(self._plays(duration_ns, until_exhausted), duration_ns, on_progress))

    def _plays(self, duration_ns: int, until_exhausted: bool) -> list[Iterator[int]]:
        injections = self._injections(duration_ns)
        self.cores = [self._core(number) for number in range(self.config.machine.cores)]
        plays = [
            core.play(
                duration_ns,
                tuple(injection for number, injection in injections if number == core.number),
                until_exhausted=until_exhausted,
            )
            for core in self.cores
        ]
        if self.ended:
            self.end()
        return plays

    def end(self) -> None:
        """Let the play end here, in order. May be called at any moment, by a signal's handler too."""
        self.ended = True
        for core in self.cores:
            core.end()

    def _noted(self, plays: list[Iterator[int]], duration_ns: int, on_progress: OnProgress) -> Iterator[Noted]:
        """Yield what the cores note, by time; of the same nanosecond that of the first core first."""
        while not all(core.over for core in self.cores):
            now_ns = min(next(play, duration_ns) for play in plays)
            on_progress(min(now_ns, duration_ns), duration_ns)
            known = [ns for ns in (core.known_ns() for core in self.cores) if ns is not None]
            before_ns = min(known, default=None)
            yield from merge(*(core.taken(before_ns) for core in self.cores), key=attrgetter("ts"))

    def _core(self, number: int) -> Core:
        config, loaded = self.config, self.loaded

        def guest_of(ht: int, vm: int) -> tuple[Source, int]:
            guest, place = config.vm[vm - 1].guest, config.vcpu_at(number, ht)
            source = make_source(
                guest, vm=vm, vcpu=place[1] if place else 0, seed=config.seed, base_dir=loaded.base_dir,
                pace=config.pace.mode, scale=1.0 / config.pace.scale,
            )  # fmt: skip
            return source, guest.halt_poll_ns

        return self.new_core(number, guest_of)

    def new_core(self, number: int, guest_of: GuestOf) -> Core:
        return Core(
            self.config, self.policy, number, self.costs, guest_of, self.isolated, runs=self.runs, figures=self._figures
        )

    def _injections(self, duration_ns: int) -> list[tuple[int, Injection]]:
        """Return every [[inject]] that comes in time, as (core, injection) by time; numbered in that order."""
        smt = self.config.machine.smt
        found: list[tuple[int, int, Injection]] = []  # when, on which core, what; not numbered yet
        for spec in self.config.inject:
            event = None
            if spec.what in ("exit", "irq"):
                irq = spec.what == "irq"
                event = _exit_of("EXTERNAL_INTERRUPT" if irq else spec.reason or "EPT_VIOLATION", full=irq)
            interval_ns = round(1e9 / spec.rate_hz) if spec.rate_hz else 0
            whole = not interval_ns and event is not None
            to_all = spec.what == "mce" and self.config.mce.mode == "broadcast"
            places = resolve(spec.target, self.config.topology)
            if to_all:
                cores = sorted({core for core, _ in places})
                places = tuple((core, ht) for core in cores for ht in range(smt))
            for turn in range(1 if whole else spec.count):
                at_ns = spec.at_ns + turn * interval_ns
                n = spec.count if whole else 1
                found += [
                    (at_ns, core, Injection(at_ns, 0, spec.what, ht, n, event, spec.duration_ns, int(to_all)))
                    for core, ht in places
                ]
        found.sort(key=lambda item: item[:1])
        numbered, raised = [], 0
        for number, (at_ns, core, injection) in enumerate(found, start=1):
            if at_ns >= duration_ns:
                break
            raised += injection.broadcast and injection.ht == 0  # those of one machine check follow each other
            numbered.append((core, injection._replace(id=number, broadcast=raised if injection.broadcast else 0)))
        return numbered

    def _numbered(self, noted: Iterable[Noted]) -> Iterator[Record]:
        """Give every record its number, and turn keys of causes into numbers."""
        seqs = Numbers(self.config.machine.cores)
        tseqs: dict[tuple[str, int, int], int] = {}  # a topic is of these three

        def numbered(seq: int, each: Noted) -> Record:
            ts, _, kind, core, ht, round_, cause, data = each
            topic = kind, core, ht
            tseq = tseqs[topic] = tseqs.get(topic, 0) + 1
            return Record(seq, tseq, ts, kind, core, ht, round_, seqs[cause], data)

        seq = 1
        yield numbered(seq, Noted(0, 0, "run.begin", NO_CORE, NO_HT, 0, 0, self._begin()))
        for each in noted:
            seq += 1
            seqs[each.key] = seq
            yield numbered(seq, each)
        end_ns = max(core.end_ns for core in self.cores)
        reason = INTERRUPTED if self.ended else "duration"
        yield numbered(seq + 1, Noted(end_ns, 0, "run.end", NO_CORE, NO_HT, 0, 0, {"reason": reason}))

    def _begin(self) -> dict[str, Any]:
        config = self.config
        places = [(core, ht) for core in range(config.machine.cores) for ht in range(config.machine.smt)]
        return {
            "name": config.name, "policy": config.policy.name, **self.said, "seed": config.seed,
            "cores": config.machine.cores, "smt": config.machine.smt, "engine": ENGINE,
            "vcpus": sum(config.vcpu_at(*place) is not None for place in places),
            "mce_timeout_ns": config.mce.timeout_ns,
        }  # fmt: skip


def _exit_of(reason: str, *, full: bool) -> Exit:
    """Return an injected exit: full whatever is mapped, or with the details that most of its reason have."""
    isa, number, name = canonical(reason)
    return Exit(0, name, isa, 0, full, parts=details_of(isa, number).parts(0.5))
