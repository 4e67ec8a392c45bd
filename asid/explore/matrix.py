"""Which guarantee holds under which policy and kick, at two siblings: each is searched to the end.

A row is a policy with a kick, on a core with one VM or two. It is searched once for each kind of event from outside; a
cell is `broken` when any of these searches broke the guarantee, `held` when one had anything to say about it and all
were complete, `n.a.` when none had (no other VM, no leave that waits), and `unknown` when a limit was hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from asid.core.apic import Apic
from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.core.policies.asi import Asi
from asid.core.policies.base import Policy
from asid.core.policy import POLICIES
from asid.explore.models import of_policy
from asid.explore.parts import Budget, Model
from asid.explore.pool import Outcome
from asid.explore.search import Leak

NAMES: Final = ("G1", "G2", "G3", "G4", "G5", "G9", "G10", "G11", "L1", "L2", "L3")
# What comes from outside, each by itself. A coordinator's death with vCPUs that sleep would take as long as all others.
FAULTS: Final[dict[str, dict[str, Any]]] = {
    "nmi": {"budget": Budget(nmi=1)},
    "irq": {"budget": Budget(irq=1)},
    "coordinator": {"budget": Budget(coordinator=1), "halts": False},
}
APICS: Final[dict[str, dict[str, Any]]] = {
    "x2apic": {"apic": Apic.X2APIC},
    "shorthand": {"apic": Apic.SHORTHAND},
    "xapic": {"apic": Apic.XAPIC},
    "xapic, unfixed": {"apic": Apic.XAPIC, "icr_fix": False},
}
VMS: Final = ((1, 1), (1, 2))


class Row(NamedTuple):
    """One policy with one kick on one core. searches: by what comes from outside."""

    policy: str
    kick: Kick
    vms: tuple[int, ...]
    apic: str  # "" where the table is not about it
    searches: dict[str, Model]

    @property
    def setting(self) -> tuple[str, int]:
        """Return the kick's name and the number of VMs."""
        return self.kick.name.lower(), len({*self.vms})


class Cell(NamedTuple):
    """What came of one guarantee. steps and by: of a shortest counterexample, and what came from outside in it."""

    verdict: str
    steps: int = 0
    by: str = ""

    def __str__(self) -> str:
        return f"broken {self.steps}" if self.verdict == "broken" else self.verdict


class Found(NamedTuple):
    """What the searches of a row came to: by guarantee, and the worlds that leak by kind."""

    row: Row
    cells: dict[str, Cell]
    leaks: dict[str, Leak]

    @property
    def shorts(self) -> list[str]:
        """Return the cells for a table without room."""
        short = {"unknown": "?"}
        return [
            f"!{c.steps}" if c.verdict == "broken" else short.get(c.verdict, c.verdict) for c in self.cells.values()
        ]


def policies() -> list[Row]:
    """Return a row for each policy, each kick that it may have, and one VM or two."""
    chosen = [(policy, kick, vms) for policy in POLICIES.values() for kick in policy.kicks for vms in VMS]
    return [Row(policy.name, kick, vms, "", faced(policy(kick), vms)) for policy, kick, vms in chosen]


def faced(policy: Policy, vms: tuple[int, ...]) -> dict[str, Model]:
    models = {word: of_policy(policy, vms, **more) for word, more in FAULTS.items()}
    # Where no interrupt comes it is no matter how they are taken: the same search for two policies.
    return {word: m if m.budget.irq else replace(m, irqs_off=False, irq_kick=None) for word, m in models.items()}


def apics() -> list[Row]:
    """Return a row for each kick and each way to write it, under `asi`, with an NMI at any step that runs isolated."""
    rows = []
    for kick in Asi.kicks:
        for name, apic in APICS.items():
            model = of_policy(Asi(kick), (1, 1), budget=Budget(nmi=1), nmi_isolated=True, halts=False, **apic)
            rows.append(Row(Asi.name, kick, (1, 1), name, {"nmi": model}))
    return rows


def models_of(rows: Iterable[Row]) -> list[tuple[str, Model]]:
    """Return what is to be searched for some rows, each model once, named by the first row that asks for it."""
    named: dict[Model, str] = {}
    for row in rows:
        for word, model in row.searches.items():
            named.setdefault(model, " ".join((row.policy, row.kick.name.lower(), row.apic, word)).replace("  ", " "))
    return sorted(((name, model) for model, name in named.items()), key=lambda item: weight(item[1]), reverse=True)


def weight(model: Model) -> tuple[bool, ...]:
    """Return what makes a search long, so that the longest come first."""
    nobody_waits = model.kick in (Kick.SEND, Kick.STUN)
    return len({*model.vms}) == 1 and nobody_waits, model.budget.coordinator > 0, model.apic is Apic.XAPIC, nobody_waits


def found(row: Row, outcomes: Mapping[Model, Outcome]) -> Found:
    """Return what came of a row. outcomes: of every model that it names, of searches to the end."""
    return Found(row, {name: cell(name, row, outcomes) for name in NAMES}, leaks(row, outcomes))


def cell(name: str, row: Row, outcomes: Mapping[Model, Outcome]) -> Cell:
    found = [(word, outcomes[model]) for word, model in row.searches.items()]
    broken = [(steps, word) for word, outcome in found for guarantee, steps in outcome.broken if guarantee == name]
    if broken:
        steps, word = min(broken)
        return Cell("broken", steps, word)
    if not all(outcome.complete for _, outcome in found):
        return Cell("unknown")
    return Cell("held" if any(name in outcome.exercised for _, outcome in found) else "n.a.")


def leaks(row: Row, outcomes: Mapping[Model, Outcome]) -> dict[str, Leak]:
    """Return in how many worlds of a row's searches a guest leaks, by kind, and after how many steps the first time."""
    found: dict[str, Leak] = {}
    for model in row.searches.values():
        for kind, leak in outcomes[model].leaks:
            worlds, steps = found.get(kind, Leak(0, leak.steps))
            found[kind] = Leak(worlds + leak.worlds, min(steps, leak.steps))
    return found


def counted(found: Mapping[str, Leak]) -> list[str]:
    """Return in how many worlds a guest leaks, concurrent and residual."""
    return [f"{found[kind].worlds:,}" if kind in found else "0" for kind in ("concurrent", "residual")]


# --- what is promised, and how it is shown ----------------------------------------------------------------

# Of a round, and of who is unknown, more is asked in worlds than a journal shows: a gate that lets all in breaks it.
UNHEEDED: Final = frozenset({"G5", "G11"})
UNFIXED: Final = frozenset({"G2", "G9"})  # an xAPIC whose handlers do not leave it as found


def unpromised(policy: type[Policy]) -> frozenset[str]:
    """Return what a policy does not promise of the worlds: broken there, it is what is to be seen."""
    return policy.unpromised() | (UNHEEDED if policy.rooms is Rooms.ALL else frozenset())


def not_promised(row: Row) -> frozenset[str]:
    """Return what a row does not promise."""
    return UNFIXED if "unfixed" in row.apic else unpromised(POLICIES[row.policy])


def kept(row: Row, found: Mapping[str, Cell]) -> bool | None:
    """Return whether a row keeps what it promises, None when a limit was hit."""
    promised = [cell.verdict for name, cell in found.items() if name not in not_promised(row)]
    return False if "broken" in promised else None if "unknown" in promised else True


def document(found: Found) -> dict[str, Any]:
    """Return a row in plain values."""
    row = found.row
    shown = {
        name: {"verdict": "broken", "steps": cell.steps, "by": cell.by, "promised": name not in not_promised(row)}
        if cell.verdict == "broken"
        else {"verdict": cell.verdict}
        for name, cell in found.cells.items()
    }
    what = {"policy": row.policy, "kick": row.kick.name.lower(), "vms": list(row.vms)}
    leaked = {kind: leak._asdict() for kind, leak in found.leaks.items()}
    return what | ({"apic": row.apic} if row.apic else {}) | {"cells": shown, "leaks": leaked}
