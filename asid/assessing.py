"""What each policy would cost a workload: the same guests under every one of them, in virtual time.

Rule 1. Every variant plays the same guests: the ratio of two variants is taken of runs with the same seed and costs.
Rule 2. An interval is the least and the most of what the runs gave, with other seeds and with low and high costs. It
        is no interval of confidence.
Rule 3. What was assumed is said, and how far the answer moves with each assumption (`asid.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asid.audit import audit
from asid.missing import Missing, missing_of
from asid.report.repeats import Sample
from asid.report.variants import BASELINE, Variant
from asid.sim.costs import LEVELS, Costs, Level, costs_of
from asid.simulating import given, load_for, machine_of

if TYPE_CHECKING:
    from asid.core.record import Record
    from asid.recorded import Assumption
    from asid.sim.machine import Played

TYPICAL: Final[Level] = "typical"
VIRTUAL_NS_MAX: Final = 3_600_000_000_000  # a recording that has not ended by then is cut


class Workload(NamedTuple):
    """What is assessed. duration_ns: of virtual time, 0 until its recordings have ended. words: what was assumed.

    rate_hz: exits a second of guest time of one vCPU, where that was assumed, else 0. apart: the same guests on cores
    of their own, where it was assumed that they are siblings. further: what else was assumed. costs_file: instead of
    [costs] of the configuration, "" for that.
    """

    source: str | Path | Mapping[str, Any]
    duration_ns: int
    words: tuple[str, ...] = ()
    rate_hz: float = 0.0
    apart: Mapping[str, Any] | None = None
    further: tuple[Assumption, ...] = ()
    costs_file: str = ""


class Cause(NamedTuple):
    """Leaves of one reason for one object, of one run. object: missed first, "" if it is full whatever is mapped.
    others: what the handler would have missed behind it."""

    reason: str
    object: str
    leaves_hz: float
    kicks_hz: float
    others: tuple[str, ...] = ()


class Assessed(NamedTuple):
    """What the runs gave. samples: by variant, then by run; the first of each is typical. causes: by variant's label,
    dearest first."""

    samples: tuple[Sample, ...]
    causes: dict[str, tuple[Cause, ...]]

    @property
    def vcpus(self) -> int:
        """How many vCPUs were played."""
        return int(self.samples[0].document["run"]["vcpus"])


def runs_of(seed: int, seeds: int) -> list[tuple[Level, int]]:
    """Return the runs of each variant, as (costs, seed): typical ones of every seed, then the others of the first."""
    return [(TYPICAL, seed + n) for n in range(seeds)] + [(level, seed) for level in LEVELS if level != TYPICAL]


def assess(
    work: Workload, chosen: Sequence[Variant], *, seed: int, seeds: int, on_run: Callable[[Variant, int, int], None]
) -> Assessed:
    """Run every variant; on_run(variant, done, total) is called before each. Raise as load_for and machine_of do."""
    missing = missing_of(work.source)
    samples: list[Sample] = []
    causes: dict[str, tuple[Cause, ...]] = {}
    plan = runs_of(seed, seeds)
    total = len(chosen) * len(plan)
    for variant in chosen:
        for number, (level, own_seed) in enumerate(plan, start=1):
            on_run(variant, len(samples), total)
            played = simulated(work, variant, costs_of(level), own_seed)
            sample = Sample(variant, number, _of_the_duration(audit(played.records).as_map(), played, work.duration_ns))
            samples.append(sample)
            if number == 1:
                causes[variant.label] = _with_others(causes_of(played.records, sample), missing)
    return Assessed(tuple(samples), causes)


def _of_the_duration(document: dict[str, Any], played: Played, duration_ns: int) -> dict[str, Any]:
    """Count for all of the time that was asked for, also what is slept at its end, and nothing of the stop: no guest
    paid for the kicks of that."""
    if duration_ns:
        figures = document["figures"]
        figures["kicks"] -= sum(record.ts >= duration_ns and record.type == "gate.kick" for record in played.records)
        figures["served_ns"] = duration_ns
        figures["guest_percent"] = round(
            100 * figures["guest_ns"] / (duration_ns * max(1, document["run"]["vcpus"])), 2
        )
    return document


def _with_others(causes: tuple[Cause, ...], missing: Missing) -> tuple[Cause, ...]:
    return tuple(
        cause._replace(others=missing.behind(cause.reason, cause.object)) if cause.object else cause for cause in causes
    )


def simulated(
    work: Workload, variant: Variant, costs: Costs, seed: int, overrides: Mapping[str, Any] | None = None
) -> Played:
    """Return one run. overrides: dotted keys of the configuration."""
    chosen = given(policy=variant.policy, kick=variant.kick, seed=seed, costs_file=work.costs_file) | dict(
        overrides or {}
    )
    machine = machine_of(load_for(work.source, chosen), costs)
    return machine.play(work.duration_ns or VIRTUAL_NS_MAX, until_exhausted=not work.duration_ns)


def exits_hz(played: Played) -> float:
    """Return the exits a second of a run that nobody has judged."""
    exits: int = sum(record.data["n"] for record in played.records if record.type == "exit")
    return exits * 1e9 / played.duration_ns if played.duration_ns else 0.0


def causes_of(records: Sequence[Record], sample: Sample) -> tuple[Cause, ...]:
    """Return what the leaves of a run were for, those with the most kicks first.

    A kick belongs to the leave for which its gate sent it; an IPI that a leaver sent itself, to the leave after it.
    """
    waiting: dict[tuple[int, int], int] = {}  # kicks for the leave that (core, hyperthread) is about to make
    counts: dict[tuple[str, str], list[int]] = {}
    for record in records:
        if record.type == "gate.kick":
            place = (record.core, record.data["for_ht"])
            waiting[place] = waiting.get(place, 0) + 1
        elif record.type == "ipi" and record.data["why"] not in ("nmi", "mce"):
            place = (record.core, record.ht)
            waiting[place] = waiting.get(place, 0) + 1
        elif record.type == "leave":
            row = counts.setdefault((record.data["reason"], record.data.get("object", "")), [0, 0])
            row[0] += 1
            row[1] += waiting.pop((record.core, record.ht), 0)
    seconds = served_s(sample)
    found = [
        Cause(reason, object_, leaves / seconds, kicks / seconds)
        for (reason, object_), (leaves, kicks) in counts.items()
        if seconds
    ]
    return tuple(sorted(found, key=lambda cause: (-cause.kicks_hz, -cause.leaves_hz, cause.reason)))


def served_s(sample: Sample) -> float:
    """Return the seconds in which guests were served."""
    figures = sample.document.get("figures", {})
    return (figures.get("served_ns") or figures.get("duration_ns") or 0) / 1e9


def ratios(samples: Sequence[Sample], variant: Variant) -> list[float]:
    """Return the ratios to none of every run of a variant, the typical one first; [] where none was not run."""
    base = {sample.repeat: sample for sample in samples if sample.variant.policy == BASELINE}
    pairs = [(sample, base[sample.repeat]) for sample in samples if sample.variant == variant and sample.repeat in base]
    rates = [(own.per_second("exits"), below.per_second("exits")) for own, below in pairs]
    return [own / below for own, below in rates if below]
