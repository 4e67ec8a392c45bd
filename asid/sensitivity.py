"""How far an assessment moves with each of its assumptions: one is changed at a time, the widest swing first.

The measure is the exits a second of a policy over those of none. What none itself does moves with most assumptions, so
both are run again each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from asid.assessing import TYPICAL, Workload, exits_hz, simulated
from asid.config import load
from asid.config_costs import written
from asid.report.variants import BASELINE, Variant
from asid.sim.costs import BY_NAME, Costs, costs_of, replaced
from asid.simulating import given

# Costs that are one assumption together: what a machine has little of one it has little of the other.
GROUPS: Final = (
    ("exit and entry", ("vm_exit", "vm_entry")),
    ("switch of address spaces", ("cr3_write",)),
    ("flush", ("l1d_flush",)),
    ("kick", ("ipi_send", "ipi_delivery")),
    ("words between siblings", ("message",)),
    ("scheduling out", ("schedule",)),
)


class Swing(NamedTuple):
    """One assumption. low, high: the ratio with each of its two other values; words: what these are."""

    what: str
    low: float
    high: float
    words: tuple[str, str]

    @property
    def width(self) -> float:
        return abs(self.high - self.low)


class _Case(NamedTuple):
    """One assumption with its two other values. works: whose guests; the same twice but where they lie elsewhere."""

    what: str
    words: tuple[str, str]
    works: tuple[Workload, Workload]
    costs: tuple[Costs, Costs]
    overrides: tuple[dict[str, Any], dict[str, Any]]


def swings(
    work: Workload, variant: Variant, *, seed: int, on_run: Callable[[str, int, int], None]
) -> tuple[Swing, ...]:
    """Return every assumption, the widest first; none that could not be counted. on_run(what, done, total)."""
    cases = _cases(work)
    found = []
    for number, case in enumerate(cases):
        on_run(case.what, number, len(cases))
        values = []
        for of, costs, overrides in zip(case.works, case.costs, case.overrides, strict=True):
            own, base = (exits_hz(simulated(of, each, costs, seed, overrides)) for each in (variant, Variant(BASELINE)))
            values.append(own / base if base else 0.0)
        if all(values):
            found.append(Swing(case.what, values[0], values[1], case.words))
    return tuple(sorted(found, key=lambda swing: (-swing.width, swing.what)))


def _known(work: Workload) -> dict[str, str]:
    """Return the costs that the workload's own [costs] says: what is known is not assumed."""
    return written(load(work.source, given(costs_file=work.costs_file)).config.costs)


def _cases(work: Workload) -> list[_Case]:
    known = _known(work)
    typical = replaced(costs_of(TYPICAL), known)
    same, unchanged = (work, work), (typical, typical)
    found = []
    for what, group in GROUPS:
        names = [name for name in group if name not in known]
        if not names:
            continue
        low, high = (typical._replace(**{n: getattr(BY_NAME[n], level) for n in names}) for level in ("low", "high"))
        words = tuple(f"{sum(getattr(costs, name) for name in group):,} ns" for costs in (low, high))
        found.append(_Case(what, (words[0], words[1]), same, (low, high), ({}, {})))
    if work.rate_hz:
        half, twice = work.rate_hz / 2, work.rate_hz * 2
        rates = (f"{half:,.5g}/s", f"{twice:,.5g}/s")
        rated = ({"vm.0.guest.rate": f"{half:.9f}/s"}, {"vm.0.guest.rate": f"{twice:.9f}/s"})
        found.append(_Case("exits a second of a vCPU", rates, same, unchanged, rated))
    found += [_Case(each.what, each.words, same, unchanged, each.overrides) for each in work.further]
    if work.apart is not None:
        placed = ("siblings", "a core each")
        found.append(_Case("where vCPUs run", placed, (work, work._replace(source=work.apart)), unchanged, ({}, {})))
    return found
