"""The state diagrams of docs/, drawn from what the step functions do and not from what somebody thinks they do.

A few small models are walked through; every change of a hyperthread's phase, and of the gate's belief in it, that
occurs in them is an arrow, named by what made it happen. A change of the protocol changes the picture.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

from asid.core.events import Action, Mode, Order, Report
from asid.core.hyperthread import Phase
from asid.explore.models import build
from asid.explore.parts import Dead, Down, Label
from asid.explore.world import World

# Together these visit every phase; no kills, so that no arrow is a mere disappearance.
WALKED: Final = ("n2v2-halts", "n2v1-hotplug", "n2v2-coordinator", "n2v1-send", "n1-nmi-mce-send", "n1-unplug")
Arrow = tuple[str, str, str]  # from, to, why


def arrows(names: Iterable[str] = WALKED) -> tuple[set[Arrow], set[Arrow]]:
    """Return the arrows of hyperthreads and those of the gate's beliefs, over every world of these models."""
    phases: set[Arrow] = set()
    beliefs: set[Arrow] = set()
    for name in names:
        w = World(build(name))
        first = w.initial()
        seen = {first}
        rest = [first]
        while rest:
            world = rest.pop()
            before, desk, _ = w.parts(world)
            for step in w.successors(world):
                after, desk_after, _ = w.parts(step[1])
                for old, new in zip(before, after, strict=True):
                    if old is not new and not isinstance(old.process, Dead) and not isinstance(new.process, Dead):
                        a, b = old.process, new.process
                        if a.phase is not b.phase and a.inc == b.inc:
                            phases.add((a.phase.name, b.phase.name, why(w.label(step[0]))))
                g, h = desk.gate, desk_after.gate
                if g is not h and not isinstance(g, Down) and not isinstance(h, Down):
                    for m, n in zip(g.members, h.members, strict=True):
                        if m.belief is not n.belief:
                            beliefs.add((m.belief.name, n.belief.name, why(w.label(step[0]))))
                if step[1] not in seen:
                    seen.add(step[1])
                    rest.append(step[1])
    return phases, beliefs


def why(label: Label) -> str:
    """Say in a word or two what made a step."""
    detail = label.detail
    if isinstance(detail, Report):
        return detail.said.name.lower()
    if isinstance(detail, Order):
        return detail.bid.name.lower()
    if isinstance(detail, Action):
        what = detail.do.name.lower().replace("_", " ")
        return f"{what} {detail.a.name}" if isinstance(detail.a, Mode) else what
    return label.what


def mermaid(found: set[Arrow], order: list[str]) -> str:
    """Return a Mermaid state diagram; arrows between the same two states share one line."""
    lines = ["```mermaid", "stateDiagram-v2"]
    pairs = sorted({(a, b) for a, b, _ in found}, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    for a, b in pairs:
        reasons = ", ".join(sorted(reason for x, y, reason in found if (x, y) == (a, b)))
        lines.append(f"    {a} --> {b}: {reasons}")
    return "\n".join([*lines, "```"])


def page() -> str:
    """Return docs/states.md."""
    phases, beliefs = arrows()
    order = [phase.name for phase in Phase]
    gate_order = ["OFFLINE", "PARKED", "SESSION", "HOST", "UNKNOWN"]
    assert {p for a, b, _ in phases for p in (a, b)} == set(order), "a phase that no walked model reaches"
    return "\n".join(
        [
            "# State diagrams",
            "",
            "Drawn by `make docs` (`asid/explore/diagram.py`) from every world of a few small models; a test fails if",
            "this page is stale. NMI and #MC handlers run on top of any phase and change none, but that an interrupted",
            "guest goes back in through ENTERING. Deaths are left out.",
            "",
            "## A hyperthread's phases (`asid/core/hyperthread.py`)",
            "",
            mermaid(phases, order),
            "",
            "## What the gate believes of a hyperthread (`asid/core/gate.py`)",
            "",
            mermaid(beliefs, gate_order),
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(page())
