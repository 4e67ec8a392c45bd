"""A schedule: the steps of one run of a model, as a file that can be run again.

    {"asid_schedule": 1, "model": {...}, "expect": {"guarantee": "G2", "sentence": "..."}, "cycle": -1,
     "steps": [{"who": "h0", "kind": "takes order", "detail": "the lease for #5"}, ...]}

`who` is a hyperthread (`h0`) or `gate`; `kind` and `detail` are the words of `parts.Label` and `story`. In a given
world they name one step. Numbers in details are counted from the explorer's base, see `numbers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple

from asid.core.apic import Apic
from asid.core.events import Action, Kick, Order, Report
from asid.core.gate import Rooms
from asid.errors import InputError, ProtocolFault
from asid.explore import story
from asid.explore.checks import Checks
from asid.explore.parts import COORDINATOR, Arrivals, Budget, Label, Model
from asid.explore.search import Violation, failed, waits_for_ever
from asid.explore.world import FAIR, World

VERSION: Final = 1
# Fields of a model that hold a word; an empty one is None.
ENUMS: Final[dict[str, Any]] = {
    "kick": Kick,
    "idle_kick": Kick,
    "irq_kick": Kick,
    "rooms": Rooms,
    "arrivals": Arrivals,
    "apic": Apic,
}


class Planned(NamedTuple):
    """One step of a schedule."""

    who: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """A model, the steps to take in it, and what is expected at the end ("" for nothing)."""

    model: Model
    steps: tuple[Planned, ...]
    guarantee: str = ""
    sentence: str = ""
    cycle: int = -1


def planned(label: Label) -> Planned:
    """Return a step's label as it stands in a schedule."""
    detail = label.detail
    if isinstance(detail, Report):
        text = story.said(detail) + f" [{', '.join(f'{value:d}' for value in detail)}]"
    elif isinstance(detail, Order):
        text = story.ordered(detail) + f" [{', '.join(f'{value:d}' for value in detail)}]"
    elif isinstance(detail, Action):
        text = story.did(detail)
    else:
        text = str(detail)
    return Planned("gate" if label.who == COORDINATOR else f"h{label.who}", label.what, text)


def scheduled(w: World, v: Violation) -> Schedule:
    """Return the schedule of a counterexample."""
    return Schedule(w.model, tuple(planned(w.label(move)) for move in v.moves), v.guarantee, v.sentence, v.cycle)


# --- as a file --------------------------------------------------------------------------------------------


def model_as_document(model: Model) -> dict[str, Any]:
    document = asdict(model)
    document["vms"] = list(model.vms)
    document["budget"] = {name: count for name, count in model.budget._asdict().items() if count}
    for name in ENUMS:
        document[name] = document[name].name.lower() if document[name] is not None else ""
    return document


def as_document(schedule: Schedule) -> dict[str, Any]:
    return {
        "asid_schedule": VERSION,
        "model": model_as_document(schedule.model),
        "expect": {"guarantee": schedule.guarantee, "sentence": schedule.sentence},
        "cycle": schedule.cycle,
        "steps": [step._asdict() for step in schedule.steps],
    }


def model_of(document: Any) -> Model:
    given = dict(document)
    unknown = set(given) - {f.name for f in fields(Model)}
    if unknown:
        raise ValueError(f"model has no {sorted(unknown)[0]!r}")
    given["vms"] = tuple(given["vms"])
    given["budget"] = Budget(**given.get("budget", {}))
    for name, kind in ENUMS.items():
        if name in given:
            given[name] = kind[str(given[name]).upper()] if given[name] else None
    return Model(**given)


def parse(text: str, where: str = "schedule") -> Schedule:
    """Read a schedule. Raise InputError when it is none."""
    try:
        document = json.loads(text)
        if document["asid_schedule"] != VERSION:
            raise ValueError(f"version {document['asid_schedule']}")
        steps = tuple(Planned(str(s["who"]), str(s["kind"]), str(s["detail"])) for s in document["steps"])
        expect = document["expect"]
        return Schedule(model_of(document["model"]), steps, expect["guarantee"], expect["sentence"], document["cycle"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a schedule of version {VERSION}: {type(error).__name__} {error}",
            where=where,
            hint="asid explore --save FILE writes one",
        ) from error


# --- run again --------------------------------------------------------------------------------------------


def replayed(schedule: Schedule, world: World | None = None) -> tuple[World, Violation | None]:
    """Take the steps again, and return what is broken: what is expected at the end, else on the way, else anything;
    None if nothing is.

    Raise InputError at a step that cannot be taken: the protocol is not the one the schedule was made with.
    """
    w = World(schedule.model) if world is None else world
    checks = Checks(w)
    here = w.initial()
    moves: list[int] = []
    worlds: list[int] = []
    first: dict[str, Violation] = {}

    def stopped(guarantee: str, sentence: str) -> tuple[World, Violation]:
        return w, Violation(guarantee, sentence, tuple(moves), tuple(worlds))

    for number, step in enumerate((*schedule.steps, None), 1):
        for broken in checks(here):
            if not schedule.guarantee or (step is None and broken[0] == schedule.guarantee):
                return stopped(*broken)
            first.setdefault(broken[0], stopped(*broken)[1])
        try:
            steps = w.successors(here)
        except (ProtocolFault, AssertionError) as mistake:
            return stopped(*failed(mistake))
        if step is None:
            break
        found = [(move, after) for move, after in steps if planned(w.label(move)) == step]
        if not found:
            raise InputError(
                f"cannot be taken: {step.who} {step.kind} {step.detail}".rstrip(),
                where=f"step {number}",
                allowed=_choices(planned(w.label(move)) for move, _ in steps),
                hint="the schedule was made with another protocol, or was edited",
            )
        move, here = found[0]
        moves.append(move)
        worlds.append(here)
    if schedule.cycle >= 0:
        before = worlds[schedule.cycle - 1] if schedule.cycle else w.initial()
        if here == before:
            return w, Violation(schedule.guarantee, schedule.sentence, tuple(moves), tuple(worlds), schedule.cycle)
    elif not any(w.actor(move) >= FAIR for move, _ in steps):
        stuck = waits_for_ever(w, here)
        if stuck is not None:
            return stopped("L3", stuck)
    return w, first.get(schedule.guarantee) or next(iter(first.values()), None)


def _choices(steps: Iterable[Planned]) -> str:
    shown = [f"{s.who} {s.kind} {s.detail}".rstrip() for s in steps]
    return " | ".join(shown[:6]) or "nothing"
