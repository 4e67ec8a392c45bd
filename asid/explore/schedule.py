"""A schedule: the steps of one run of a model, as a file that can be run again.

    {"asid_schedule": 1, "model": {...}, "expect": {"guarantee": "G2", "sentence": "..."}, "cycle": -1,
     "steps": [{"who": "h0", "kind": "takes order", "detail": "the lease for #5"}, ...]}

`who` is a hyperthread (`h0`) or `gate`; `kind` and `detail` are the words of `parts.Label` and `story`. In a given
world they name one step. Numbers in details are counted from the explorer's base, see `numbers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_type_hints

import msgspec
from msgspec import UNSET, Meta

from asid.core.apic import Apic
from asid.core.events import Action, Kick, Order, Report
from asid.core.gate import Rooms
from asid.core.guarantees import GUARANTEES
from asid.core.limits import SIBLINGS_MAX
from asid.errors import InputError, ProtocolFault
from asid.explore import story
from asid.explore.checks import Checks
from asid.explore.parts import COORDINATOR, Arrivals, Budget, Label, Model
from asid.explore.search import Violation, failed, waits_for_ever
from asid.explore.world import FAIR, World

VERSION: Final = 1
BYTES_MAX: Final = 32 << 20  # of a file
STEPS_MAX: Final = 100_000  # the deepest search that there is has some hundred
COUNT_MAX: Final = 1_000_000  # of events from outside, and of overtakes
VM_MAX: Final = 8
TEXT_MAX: Final = 2_000  # characters
# What else than a guarantee a search may find broken: see `checks`, `progress` and `search.failed`.
BESIDES: Final = ("L1", "L2", "L3", "I10", "table", "assertion")
# Fields of a model that hold a word; an empty one is None.
ENUMS: Final[dict[str, Any]] = {
    "kick": Kick,
    "idle_kick": Kick,
    "irq_kick": Kick,
    "rooms": Rooms,
    "arrivals": Arrivals,
    "apic": Apic,
}
NULLABLE: Final = ("idle_kick", "irq_kick")


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


Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
_FORMS: Final[dict[str, Any]] = {
    "vms": Annotated[
        tuple[Annotated[int, Meta(ge=0, le=VM_MAX)], ...], Meta(min_length=1, max_length=SIBLINGS_MAX)
    ],
    "budget": msgspec.defstruct("BudgetForm", [(f, Count, 0) for f in Budget._fields], forbid_unknown_fields=True),
    **dict.fromkeys(ENUMS, str),
}  # fmt: skip
_BY_TYPE: Final[dict[Any, Any]] = {bool: bool, int: Count}
# Every field of a model, in the form that it has in a file; all but `vms` may be left out.
ModelForm: Final = msgspec.defstruct(
    "ModelForm",
    [
        (name, form) if name == "vms" else (name, form, UNSET)
        for name, kind in get_type_hints(Model).items()
        for form in [_FORMS.get(name) or _BY_TYPE[kind]]
    ],
    forbid_unknown_fields=True,
)


class StepForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    who: Text
    kind: Text
    detail: Text


class ExpectForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    guarantee: str
    sentence: Text


class Head(msgspec.Struct, frozen=True):
    """What is read first of a file: whether it is one of this version."""

    asid_schedule: int


class ScheduleForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schedule as it is in a file."""

    asid_schedule: int
    model: ModelForm  # type: ignore[valid-type]
    expect: ExpectForm
    cycle: Annotated[int, Meta(ge=-1, lt=STEPS_MAX)]
    steps: Annotated[tuple[StepForm, ...], Meta(max_length=STEPS_MAX)]


def model_of(document: Any) -> Model:
    """Return the model of a document; the inverse of `model_as_document`. Raise ValueError for what is none."""
    return _model(msgspec.convert(document, ModelForm))


def _model(form: Any) -> Model:
    given = {f.name: value for f in fields(Model) if (value := getattr(form, f.name)) is not UNSET}
    if "budget" in given:
        given["budget"] = Budget(**msgspec.structs.asdict(given["budget"]))
    for name, kind in ENUMS.items():
        if name in given:
            given[name] = _word(name, given[name], kind)
    return Model(**given)


def _word(name: str, word: str, kind: Any) -> Any:
    words = {member.name.lower(): member for member in kind}
    if name in NULLABLE:
        words[""] = None
    if word not in words:
        raise ValueError(f"{word[:40]!r} is none of {', '.join(map(repr, words))} - at `$.model.{name}`")
    return words[word]


def _checked(form: ScheduleForm) -> Schedule:
    """Raise ValueError for what no form says."""
    known = ("", *GUARANTEES, *BESIDES)
    if form.expect.guarantee not in known:
        name = form.expect.guarantee[:40]
        raise ValueError(f"{name!r} is none of {', '.join(map(repr, known))} - at `$.expect.guarantee`")
    if form.cycle >= len(form.steps):
        raise ValueError(f"a cycle from step {form.cycle} on, of {len(form.steps)} - at `$.cycle`")
    steps = tuple(Planned(step.who, step.kind, step.detail) for step in form.steps)
    for text in (form.expect.sentence, *(word for step in steps for word in step)):
        if not text.replace("\n", " ").isprintable():
            raise ValueError(f"{text[:40]!r} cannot be printed")
    return Schedule(_model(form.model), steps, form.expect.guarantee, form.expect.sentence, form.cycle)


def read(path: Path) -> Schedule:
    """Return the schedule in a file. Raise InputError when it is none."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, perhaps for ever
            raise InputError(f"not a schedule of version {VERSION}: it is no regular file", where=str(path))
        with path.open("rb") as file:
            text = file.read(BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(
            f"cannot be read: {error}", where=str(path), hint="asid explore --save FILE writes one"
        ) from error
    return parse(text, path.name)


def parse(text: str | bytes, where: str = "schedule") -> Schedule:
    """Read a schedule. Raise InputError when it is none."""
    try:
        if len(text) > BYTES_MAX:
            raise ValueError(f"more than {BYTES_MAX >> 20} MiB")
        version = msgspec.json.decode(text, type=Head).asid_schedule
        if version != VERSION:
            raise ValueError(f"version {version}")
        return _checked(msgspec.json.decode(text, type=ScheduleForm))
    except (ValueError, RecursionError) as error:  # a fault of msgspec is a ValueError
        raise InputError(
            f"not a schedule of version {VERSION}: {str(error).replace(chr(96), '')}", where=where,
            allowed="as asid explore writes it", hint="asid explore --save FILE writes one",
        ) from error  # fmt: skip


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
