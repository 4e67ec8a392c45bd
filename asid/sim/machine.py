"""A simulated machine: a configuration played in virtual time, as one stream of records.

The records are those of the live engine, so audit, statistics and reports read both. The same configuration, seed and
costs give the same records, byte for byte, in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asid.core.exits import canonical
from asid.core.policies.base import Policy
from asid.core.record import NO_CORE, NO_HT, Record, topic_of
from asid.guest import make_source
from asid.guest.base import Exit, Source
from asid.guest.details import details_of
from asid.sim.core import Core, Injection, Standing, refuse_broadcast
from asid.sim.costs import Costs
from asid.sim.notes import Noted
from asid.targets import resolve

if TYPE_CHECKING:
    from asid.config import Config, Loaded
    from asid.mm.isolated import Isolated

ENGINE: Final = "sim"

OnProgress = Callable[[int, int], None]


def nobody(done_ns: int, total_ns: int) -> None:
    """Nobody watches."""


class Played(NamedTuple):
    """What a simulation came to. duration_ns: of virtual time, the stop included. standing: when the stop began."""

    records: list[Record]
    duration_ns: int
    standing: tuple[Standing, ...] = ()


class Machine:
    """All cores of a configuration. policy: that of the configuration; said: what run.begin says of it besides;
    isolated: the isolated space of each VM, by number.

    Raise ConfigError for what is not simulated.
    """

    def __init__(
        self, loaded: Loaded, costs: Costs, policy: Policy, said: Mapping[str, str], isolated: Mapping[int, Isolated]
    ) -> None:
        refuse_broadcast(loaded.config)
        self.loaded = loaded
        self.config: Config = loaded.config
        self.costs = costs
        self.policy = policy
        self.said = dict(said)
        self.isolated = isolated

    def play(self, duration_ns: int, on_progress: OnProgress = nobody, *, until_exhausted: bool = False) -> Played:
        """Play `duration_ns` of virtual time. Raise ConfigError or InputError for guests that cannot be made.

        until_exhausted: end before, when every recording has; a core whose recordings are shorter waits for nobody.
        on_progress(done_ns, total_ns): of all cores together, one after the other.
        """
        injections = self._injections(duration_ns)
        streams = []
        standing: list[Standing] = []
        cores = self.config.machine.cores
        for number in range(cores):
            mine = tuple(injection for core, injection in injections if core == number)
            before_ns = number * duration_ns

            def progressed(now_ns: int, before_ns: int = before_ns) -> None:
                on_progress(before_ns + now_ns, cores * duration_ns)

            core = self._core(number)
            streams.append(core.run(duration_ns, mine, progressed, until_exhausted=until_exhausted))
            standing += core.standing
        end_ns = max(stream[-1].ts for stream in streams)
        return Played(list(self._numbered(merge(*streams, key=attrgetter("ts")), end_ns)), end_ns, tuple(standing))

    def _core(self, number: int) -> Core:
        config, loaded = self.config, self.loaded

        def guest_of(ht: int, vm: int) -> tuple[Source, int]:
            guest, place = config.vm[vm - 1].guest, config.vcpu_at(number, ht)
            source = make_source(
                guest, vm=vm, vcpu=place[1] if place else 0, seed=config.seed, base_dir=loaded.base_dir,
                pace=config.pace.mode, scale=1.0 / config.pace.scale,
            )  # fmt: skip
            return source, guest.halt_poll_ns

        return Core(config, self.policy, number, self.costs, guest_of, self.isolated)

    def _injections(self, duration_ns: int) -> list[tuple[int, Injection]]:
        """Return every [[inject]] that comes in time, as (core, injection) by time; numbered in that order."""
        found: list[tuple[int, int, int, str, int, Exit | None, int]] = []
        for spec in self.config.inject:
            event = None
            if spec.what in ("exit", "irq"):
                irq = spec.what == "irq"
                event = _exit_of("EXTERNAL_INTERRUPT" if irq else spec.reason or "EPT_VIOLATION", full=irq)
            interval_ns = round(1e9 / spec.rate_hz) if spec.rate_hz else 0
            whole = not interval_ns and event is not None
            for turn in range(1 if whole else spec.count):
                at_ns = spec.at_ns + turn * interval_ns
                n = spec.count if whole else 1
                found += [
                    (at_ns, core, ht, spec.what, n, event, spec.duration_ns)
                    for core, ht in resolve(spec.target, self.config.topology)
                ]
        found.sort(key=lambda item: item[0])
        return [
            (core, Injection(at_ns, number, what, ht, n, event, for_ns))
            for number, (at_ns, core, ht, what, n, event, for_ns) in enumerate(found, start=1)
            if at_ns < duration_ns
        ]

    def _numbered(self, noted: Iterable[Noted], end_ns: int) -> Iterator[Record]:
        """Give every record its number, and turn keys of causes into numbers."""
        seqs: dict[int, int] = {}
        tseqs: dict[str, int] = {}
        begin = Noted(0, 0, "run.begin", NO_CORE, NO_HT, 0, 0, self._begin())
        end = Noted(end_ns, 0, "run.end", NO_CORE, NO_HT, 0, 0, {"reason": "duration"})
        for seq, each in enumerate((begin, *noted, end), start=1):
            seqs[each.key] = seq
            cause = seqs.get(each.cause, 0) if each.cause else 0
            record = Record(seq, 0, each.ts, each.kind, each.core, each.ht, each.round, cause, each.data)
            topic = topic_of(record)
            tseqs[topic] = tseqs.get(topic, 0) + 1
            yield record._replace(tseq=tseqs[topic])

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
