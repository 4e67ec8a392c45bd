"""A counterexample as text: numbered steps, who does what, the modes after it, and what the gate believes.

    G2 is broken after 14 steps: h1 may run guest instructions beside h0 in HOST
     step  who   what                                        h0             h1             the gate believes
        1  gate  hears that h0 is ready                      PARKED         PARKED         parked  offline

A `!` after a mode is a set pending bit, a `^` the leave flag, a `+` for each NMI or #MC handler under way, a `*` that
the buffers hold something that is not its guest's.
"""

from __future__ import annotations

from asid.core.events import Action, Bid, Do, Mode, Order, Report, Said
from asid.core.gate import Belief, GateState
from asid.explore.parts import COORDINATOR, Dead, Down, Label, Sibling
from asid.explore.search import Violation
from asid.explore.world import World

SAID = {
    Said.READY: "is ready",
    Said.ASK: "asks for guest",
    Said.LEAVE: "asks for HOST",
    Said.DONE: "is back from HOST",
    Said.ANSWER: "answers the kick",
    Said.ENTERED: "has run an instruction",
    Said.IDLE: "has no vCPU",
    Said.BYE: "says goodbye",
}
BID = {
    Bid.ATTACH: "the vCPU",
    Bid.DETACH: "the detach",
    Bid.ADMIT: "the lease",
    Bid.GRANT: "the leave",
    Bid.RESYNC: "the new coordinator",
    Bid.STOP: "the stop",
}
SET_MODE = {
    Mode.PARKED: "goes PARKED",
    Mode.HOST: "goes HOST",
    Mode.ISOLATED: "goes ISOLATED",
    Mode.ENTER: "publishes ENTER",
    Mode.GUEST: "goes GUEST",
}
HITS = {
    "nmi": "is hit by an NMI",
    "mce": "is hit by a #MC",
    "fatal mce": "is hit by a fatal #MC",
    "fast irq": "takes an interrupt that is mapped",
    "full irq": "takes an interrupt that needs HOST",
}
BELIEF = {
    Belief.OFFLINE: "offline",
    Belief.PARKED: "parked",
    Belief.SESSION: "lease",
    Belief.HOST: "HOST",
    Belief.UNKNOWN: "unknown",
}


def words(label: Label) -> str:
    """Return what happened, without who."""
    detail = label.detail
    if isinstance(detail, Report):
        return f"{label.what.replace('receives', 'hears')} {'that ' if label.what == 'receives' else ''}{said(detail)}"
    if isinstance(detail, Order):
        return f"{label.what}: {ordered(detail)}"
    if isinstance(detail, Action):
        return did(detail)
    if label.what == "is killed" and label.who != COORDINATOR:
        return f"is killed, {detail} of its reports unsent" if detail else "is killed"
    if isinstance(detail, int) and label.who == COORDINATOR:
        return f"{label.what} of h{detail}" if "death" in label.what else f"{label.what}, h{detail}"
    return f"{HITS.get(label.what, label.what)} {detail}".rstrip()


def said(r: Report) -> str:
    text = f"h{r.ht} {SAID[r.said]}"
    if r.said is Said.ANSWER:
        text += f" {r.answered}"
    if r.want and r.said not in (Said.ASK, Said.LEAVE):
        text += f", wants {'guest' if r.want == 1 else 'HOST'}"
    if r.want:
        text += f" #{r.req}"
    return text + (f" (of incarnation {r.inc})" if r.inc > 1 else "")


def ordered(o: Order) -> str:
    text = BID[o.bid]
    if o.bid is Bid.ATTACH:
        text += f" of vm {o.vm}"
    if o.bid in (Bid.ADMIT, Bid.GRANT):
        text += f" for #{o.req}"
    return text + (f" (of coordinator {o.coord})" if o.coord > 1 else "")


def did(a: Action) -> str:
    """Return an action in words."""
    if a.do is Do.SET_MODE:
        return SET_MODE[a.a]  # type: ignore[index]
    if a.do is Do.ORDER:
        assert isinstance(a.a, Order)
        return f"orders h{a.a.ht}: {ordered(a.a)}"
    return {
        Do.SET_FLAG: "raises its leave flag" if a.a else "lowers its leave flag",
        Do.SET_DEPTH: f"sets its depth to {a.a}",
        Do.CLEAR_PENDING: "clears its pending bit",
        Do.IPI: f"sends an IPI to h{a.a}",
        Do.LOOK: "looks at its line and its siblings' flags",
        Do.SEND: "reports",
        Do.REQUEST: f"writes kick {a.b} into h{a.a}'s request word",
        Do.PEND: f"sets h{a.a}'s pending bit",
        Do.WIPE: f"wipes h{a.a}'s words",
        Do.FENCE: f"fences h{a.a}",
        Do.BURIED: f"has buried h{a.a}",
        Do.ICR2: f"writes h{a.a} into ICR2",
        Do.ICR: "writes the ICR: all but itself" if a.a else "writes the ICR: to whom ICR2 says",
        Do.ICR_IDLE: "finds the ICR idle",
        Do.ARRIVE: "arrives at the meeting",
        Do.FLUSH: "flushes the buffers",
        Do.FAIL: "marks the core as failed",
    }.get(a.do, a.do.name.lower())


def mode(s: Sibling) -> str:
    """Return a sibling's mode as the story's table shows it."""
    h = s.process
    if isinstance(h, Dead):
        return "dead"
    room = f"({h.vm})" if h.mode in (Mode.ISOLATED, Mode.ENTER, Mode.GUEST) else ""
    return h.mode.name + room + "!" * s.words.pending + "^" * s.words.flag + "+" * s.words.depth + "*" * s.words.tainted


def belief(gate: GateState | Down) -> tuple[str, ...]:
    if isinstance(gate, Down):
        return ("(no coordinator)",)
    return tuple(BELIEF[m.belief] + (" kicked" if m.kicked else "") for m in gate.members)


def rows(w: World, v: Violation) -> list[tuple[str, ...]]:
    """Return step, who, what, the siblings' modes and the gate's belief, a row a step."""
    table = []
    for step, (move, world) in enumerate(zip(v.moves, v.worlds, strict=True), 1):
        label = w.label(move)
        hts, d, _ = w.parts(world)
        who = "gate" if label.who == COORDINATOR else f"h{label.who}"
        table.append((str(step), who, words(label), *(mode(s) for s in hts), ", ".join(belief(d.gate))))
    return table


def told(w: World, v: Violation, name: str = "") -> str:
    """Return the whole story."""
    of = f" of model {name}" if name else ""
    stem = v.cycle if v.cycle >= 0 else len(v.moves)
    heading = f"{v.guarantee} is broken after {stem} steps{of}: {v.sentence}"
    if v.cycle >= 0:
        heading += f" (steps {v.cycle + 1} to {len(v.moves)}, again and again)"
    titles = ("step", "who", "what", *(f"h{ht}" for ht in range(w.n)), "the gate believes")
    table = [titles, *rows(w, v)]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles))]
    lines = [heading]
    for number, row in enumerate(table):
        if v.cycle >= 0 and number == v.cycle + 1:
            lines.append("  from here on, for ever:")
        cells = [row[0].rjust(widths[0]), *(cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
