"""From a schedule to a script that the live machine can play: the same steps, each in the words of `asid.core`.

The schedule is taken again in the explorer. For each step this tells what happened to whom, which actions were
performed in it, and what the page shows afterwards. What belongs to a step is not decided here: it is read off the
worlds before and after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Final

from asid.core import gate, hyperthread
from asid.core.apic import BY_NAME
from asid.core.events import Action, Bid, Do, Mode, Order, Report, Said, Seen
from asid.core.hyperthread import Event, HyperthreadState, What
from asid.core.policy import KICKS, NAMES, make_policy
from asid.errors import InputError
from asid.explore import siblings, story
from asid.explore.parts import COORDINATOR, Dead, Desk, Down, Label, Sibling
from asid.explore.schedule import Schedule, planned
from asid.explore.search import Violation
from asid.explore.world import World
from asid.script import (
    BORN,
    DELIVERS,
    DOES,
    ENDS,
    GETS,
    KILLED,
    LOST,
    READS,
    RETIRES,
    STALE,
    Line,
    Script,
    Step,
    counted,
    named,
)

ACTIONS_MAX: Final = 64  # of one step; more would be a circle
# Steps of a hyperthread that are no events of its step function, nor any in `siblings.menu`.
OWN: Final = {"does": DOES, "ends": ENDS, "is killed": KILLED, "is born again": BORN, "reads": READS}
OWN_EVENTS: Final = {word: event for word, _, event in siblings.INTERRUPTS} | {"asks again": hyperthread.TIMEOUT}
GATE: Final = {
    "does": DOES,
    "is killed": KILLED,
    "comes back": BORN,
    "is told to detach": gate.Ev.DETACH.name,
    "is told to attach": gate.Ev.ATTACH.name,
    "is told to unplug": gate.Ev.STOP.name,
    "is held": gate.Ev.HOLD.name,
    "is let go": gate.Ev.RELEASE.name,
    "hears of the death": gate.Ev.DEAD.name,
}


def script_of(w: World, v: Violation) -> Script:
    """Return the script of a run of the explorer (`v.guarantee` is empty when nothing is broken at its end).

    Raise InputError, naming the step, when the live machine has no such step.
    """
    worlds = (w.initial(), *v.worlds)
    steps: list[Step] = []
    cycle = -1
    for at, (move, before, after) in enumerate(zip(v.moves, worlds, worlds[1:], strict=False)):
        if at == v.cycle:
            cycle = len(steps)
        steps += arrivals(w, w.label(move), before)
        step = step_of(w, w.label(move), before, after, at + 1)
        steps += [step] if step is not None else []
    if v.guarantee and v.cycle < 0:
        steps += leaks(w, worlds[-1])
    ht_spec = asdict(w.specs[0])
    del ht_spec["ht"], ht_spec["siblings"]
    vms, gate_spec = counted(w.model.vms), asdict(w.gate_spec)
    return Script(vms, settings_of(w), ht_spec, gate_spec, tuple(steps), cycle, v.guarantee, v.sentence)


def settings_of(w: World) -> dict[str, dict[str, Any]]:
    """Return the policy, kick and APIC under which a live machine is what the model is; raise InputError for none.

    A model need not have a policy's flushes and exits; one that has comes first.
    """
    m = w.model
    apic = {"mode": next(word for word, kind in BY_NAME.items() if kind is m.apic), "icr_fix": m.icr_fix}
    nmi = "isolated" if m.nmi_isolated else "full"
    found = []
    for name in NAMES:
        for kick in KICKS:
            policy = make_policy(name, kick)
            gate_spec = replace(policy.gate_spec(), overtakes_max=m.overtakes_max)
            rooms_fit = gate_spec == w.gate_spec or (
                m.rooms is gate.Rooms.HYPERTHREAD and policy.rooms is gate.Rooms.VM
            )
            if policy.kick is m.kick and rooms_fit:
                # What hyperthreads and the gate are told is the script's; the rest is the policy's.
                unlike = (
                    (policy.guarded, policy.idle_kick) != (m.guarded, m.idle_kick), gate_spec != w.gate_spec,
                    policy.flush != m.flush, policy.every_exit_full == m.fast_exits,
                )  # fmt: skip
                found.append(
                    (unlike, name != "asi", {"name": name, "kick": kick, "kick_deadline": "400ms", "nmi": nmi})
                )
    if not found:
        raise InputError(
            "no policy of the live machine is like this model", where="asid.explore.script",
            state=f"kick {m.kick.name.lower()}, rooms {m.rooms.name.lower()}, guarded {m.guarded}",
            allowed="a policy with one of its kicks", hint="asid replay FILE --engine explore",
        )  # fmt: skip
    return {"policy": min(found, key=lambda row: row[:2])[2], "apic": apic}


def taken(schedule: Schedule) -> tuple[World, Violation]:
    """Take the steps of a schedule as they are, whatever they break. Raise InputError at one that cannot be taken."""
    w = World(schedule.model)
    here = w.initial()
    moves, worlds = [], []
    for number, wanted in enumerate(schedule.steps, 1):
        found = next(((m, after) for m, after in w.successors(here) if planned(w.label(m)) == wanted), None)
        if found is None:
            raise InputError(
                f"cannot be taken: {wanted.who} {wanted.kind} {wanted.detail}".rstrip(), where=f"step {number}",
                hint="the schedule was made with another protocol, or was edited",
            )  # fmt: skip
        moves.append(found[0])
        here = found[1]
        worlds.append(here)
    return w, Violation(schedule.guarantee, schedule.sentence, tuple(moves), tuple(worlds), schedule.cycle)


def step_of(w: World, label: Label, before: int, after: int, number: int) -> Step | None:
    """Return one step; None for one of which the live machine has nothing to do."""
    lines = tuple(line_of(s) for s in w.parts(after)[0])
    try:
        if label.who == COORDINATOR:
            step = of_coordinator(w, label, w.parts(before)[1], w.parts(after)[1])
        else:
            step = of_hyperthread(w, label, before, after)
    except LookupError:
        raise InputError(
            f"{who_of(label)} {story.words(label)}",
            where=f"step {number}",
            state="the live machine has no such step",
            allowed="steps of processes, messages, interrupts, kills and clients",
            hint="asid replay FILE --engine explore",
        ) from None
    if step is None:
        return None
    return replaced(step, text=f"{who_of(label)} {story.words(label)}", at=number, after=lines)


def who_of(label: Label) -> str:
    return "gate" if label.who == COORDINATOR else f"h{label.who}"


def replaced(step: Step, **changes: Any) -> Step:
    fields: dict[str, Any] = {name: getattr(step, name) for name in step.__struct_fields__}
    return Step(**{**fields, **changes})


def line_of(s: Sibling) -> Line:
    mode = "" if isinstance(s.process, Dead) else s.process.mode.name
    return Line(mode, s.words.pending, s.words.flag, s.words.depth)


def arrivals(w: World, label: Label, before: int) -> Iterator[Step]:
    """Yield what must have arrived before a process goes: what it has said, else it might take that along.

    In the explorer a message that was sent is under way, whatever becomes of its sender; in the live machine it may
    still be in the sender's own hands.
    """
    hts, place, _ = w.parts(before)
    lines, g = tuple(line_of(s) for s in hts), place.gate
    if isinstance(g, Down):
        return
    if label.who == COORDINATOR and label.what == "is killed":
        for ht, s in enumerate(hts):
            number = sum(o.coord == g.coord for o in s.down)
            if number:
                text = f"h{ht} gets what the gate has sent"
                yield Step(ht, GETS, text, coord=g.coord, number=number, after=lines)
        return
    fences = isinstance(label.detail, Action) and label.detail.do is Do.FENCE
    going = int_of(label.detail.a) if fences and isinstance(label.detail, Action) else label.who
    if not fences and label.what not in ("is killed", "ends"):
        return
    for inc, reports in hts[going].up:
        number = sum(r.coord == g.coord for r in reports)
        if number:
            text = f"gate gets what h{going} has sent"
            left = tuple(named(action) for action in place.todo)
            yield Step(COORDINATOR, GETS, text, ht=going, inc=inc, coord=g.coord, number=number, left=left, after=lines)


def leaks(w: World, world: int) -> Iterator[Step]:
    """Yield a last step for each guest that may run in the forbidden state: one instruction, which is the leak."""
    for ht, s in enumerate(w.parts(world)[0]):
        if isinstance(s.process, HyperthreadState) and s.process.mode is Mode.GUEST and not s.words.pending:
            if s.process.frames or s.process.todo:
                continue
            yield Step(ht, RETIRES, f"h{ht} runs a guest instruction there")


# --- the coordinator --------------------------------------------------------------------------------------


def of_coordinator(w: World, label: Label, before: Desk, after: Desk) -> Step | None:
    """Return a step of the coordinator. Raise LookupError for one that is not known."""
    left = tuple(named(action) for action in after.todo)
    detail = label.detail
    if isinstance(detail, Report):
        if isinstance(before.gate, Down):
            return None  # nobody ever reads it: it was said to the coordinator that is dead
        event = {"receives": gate.Ev.REPORT.name, "never gets report": LOST}[label.what]
        if detail.coord != before.gate.coord:
            if event == LOST:
                return None
            event = STALE
        return Step(
            COORDINATOR, event, ht=detail.ht, inc=detail.inc, word=detail.said.name, coord=detail.coord, left=left
        )
    if label.what == "ends the turn":
        return Step(COORDINATOR, gate.Ev.TIMER.name, word="TURN", ht=0, left=left)
    if label.what.endswith(" time-out"):
        return Step(COORDINATOR, gate.Ev.TIMER.name, word=label.what.split()[0].upper(), ht=int_of(detail), left=left)
    event = GATE[label.what]
    ht = detail if isinstance(detail, int) else -1
    vms: tuple[int, ...] = ()
    if event == BORN:
        assert isinstance(before.gate, Down)
        vms = tuple(now and was for now, was in zip(before.gate.attached, counted(w.model.vms), strict=True))
    elif event == gate.Ev.ATTACH.name:
        vms = counted(w.model.vms)
    return Step(COORDINATOR, event, ht=ht, vms=vms, left=left)


def int_of(detail: object) -> int:
    assert isinstance(detail, int)
    return detail


# --- a hyperthread ----------------------------------------------------------------------------------------


def of_hyperthread(w: World, label: Label, before: int, after: int) -> Step:
    """Return a step of a hyperthread. Raise LookupError for one that is not known."""
    ht, what = label.who, label.what
    s, t = w.parts(before)[0][ht], w.parts(after)[0][ht]
    holders = kept_out(w, ht, before)
    if what == "never gets order":
        return Step(ht, LOST, **ordered(label))
    if what == "its IPI is delivered":
        return delivered(w, ht, before)
    if what in OWN:
        event = OWN[what]
        if event == BORN:
            return Step(ht, event, actions=(named(hyperthread.send(Said.READY)),))
        if event == READS:
            word = str(label.detail)
            read_by_then = reads(w, s, ht, before)
            if read_by_then is None:
                return Step(ht, event, word=word)
            return Step(ht, event, word=word, actions=performed(w, ht, read_by_then, t, holders, "LOOK 0"))
        return Step(ht, event, actions=performed(w, ht, s, t, holders) if event == DOES else ())
    if what in OWN_EVENTS:
        happened = OWN_EVENTS[what]
    else:
        happened = {name: event for name, _, event in siblings.menu(w.model, s, holders)}[what]
    rest = s._replace(down=s.down[1:]) if happened.what is What.ORDER else s
    actions = performed(w, ht, siblings.stepped(w.specs[ht], rest, happened), t, holders)
    return Step(ht, happened.what.name, full=happened.full, idle=happened.idle, actions=actions, **ordered(label))


def delivered(w: World, ht: int, before: int) -> Step:
    """The bus needs no process: in the live machine its sender stands for it, the coordinator for one that is dead."""
    hts, place, _ = w.parts(before)
    if not isinstance(hts[ht].process, Dead):
        return Step(ht, DELIVERS)
    if isinstance(place.gate, Down):
        raise LookupError("nobody is there")
    return Step(COORDINATOR, DELIVERS, ht=ht, left=tuple(named(action) for action in place.todo))


def kept_out(w: World, ht: int, world: int) -> bool:
    """Say whether a look of this hyperthread finds that somebody keeps it out."""
    hts = w.parts(world)[0]
    return any(keeps_out(hts[ht], other, s) for other, s in enumerate(hts) if other != ht)


def keeps_out(s: Sibling, other: int, its: Sibling) -> bool:
    """Say whether another keeps a sibling out: by its flag, its depth, or by not having come where they are to meet."""
    if its.words.flag or its.words.depth:
        return True
    h = s.process
    return isinstance(h, HyperthreadState) and bool(h.party >> other & 1) and its.words.arrived < h.round


def ordered(label: Label) -> dict[str, Any]:
    detail = label.detail
    return {"word": Bid(detail.bid).name, "coord": detail.coord} if isinstance(detail, Order) else {}


def reads(w: World, s: Sibling, ht: int, before: int) -> Sibling | None:
    """Return the sibling as its whole look leaves it when this word was its last; None when more are to come."""
    seen = s.glimpse
    if seen is None or seen.request < 0:
        return None
    order = [other for other in range(w.n) if other != ht]
    if seen.next_ht != order[-1]:
        return None
    holders = seen.holders or keeps_out(s, seen.next_ht, w.parts(before)[0][seen.next_ht])
    looked = Seen(seen.pending, seen.request, holders, s.words.tainted, s.words.failed)
    return siblings.stepped(w.specs[ht], s._replace(glimpse=None), Event(What.PERFORMED, seen=looked))


def performed(w: World, ht: int, s: Sibling, target: Sibling, holders: bool, *first: str) -> tuple[str, ...]:
    """Return the names of the actions that lead from one state of a hyperthread to another."""
    names = list(first)
    for _ in range(ACTIONS_MAX):
        assert isinstance(s.process, HyperthreadState)
        if is_there(s.process, target):
            return tuple(names)
        action = hyperthread.next_action(s.process)
        assert action is not None, "a step that ends where no action leads"
        names.append(named(action))
        s, _ = siblings.performed(w.model, w.specs[ht], s, action, holders)
    raise AssertionError("a step that does not end")


def is_there(h: HyperthreadState, target: Sibling) -> bool:
    """Say whether two states are the same but for what is counted from elsewhere."""
    t = target.process
    assert isinstance(t, HyperthreadState)
    return h._replace(req=t.req, answered=t.answered, round=t.round) == t
