"""What a coordinator tells of its gate: its decisions as records, and whose the core is. Pure, and decides nothing.

The records of a decision are stamped and written before any of it is performed, in the order given here: what was told,
the gate's own change, what is granted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from asid.core.events import Action, Bid, Do, Mode, Order, Report, Said, Want
from asid.core.gate import Belief, Ev, Event, GateState, Rooms, Spec


class Note(NamedTuple):
    """A record to be written. ht: the hyperthread spoken of, -1 for the core as a whole."""

    kind: str
    data: dict[str, Any]
    round: int
    ht: int = -1


_PLAIN = {
    Said.DONE: "gate.done",
    Said.ENTERED: "gate.entered",
    Said.IDLE: "gate.idle",
    Said.BYE: "gate.bye",
}


def notes_of(before: GateState, event: Event, after: GateState, actions: tuple[Action, ...]) -> list[Note]:
    """Return the records of one step of the gate."""
    notes: list[Note] = []
    if event.ev is Ev.REPORT:
        assert event.report is not None
        notes += _told(before, event.report, after.round)
    elif event.ev is Ev.DEAD and actions:
        notes.append(Note("gate.dead", {"inc": event.inc}, after.round, event.ht))
    if before.open and not after.open:
        notes.append(Note("gate.close", {}, after.round))
    elif after.open and after.round != before.round:
        notes.append(Note("gate.open", {}, after.round))
    if after.turn != before.turn:
        notes.append(Note("gate.turn", {"vm": _admitted(after, actions), "room": after.turn}, after.round))
    for action in actions:
        if action.do is Do.ORDER:
            order = action.a
            assert isinstance(order, Order)
            if order.bid is Bid.ADMIT:
                data = {"vm": order.vm, "req": order.req, "inc": order.inc}
                notes.append(Note("gate.admit", data, order.round, order.ht))
            elif order.bid is Bid.GRANT:
                notes.append(Note("gate.grant", {"req": order.req}, order.round, order.ht))
    return notes


def _admitted(after: GateState, actions: tuple[Action, ...]) -> int:
    """Return the VM whose admission made it the turn of its room: a room's number may be a hyperthread's."""
    orders = [action.a for action in actions if isinstance(action.a, Order) and action.a.bid is Bid.ADMIT]
    return next((order.vm for order in orders if after.members[order.ht].room == after.turn), 0)


def vm_of(spec: Spec, g: GateState) -> int:
    """Return the VM that has the core: that of its leases, else the one whose turn it is; 0 for none or several."""
    vms = {m.vm for m in g.members if m.belief is Belief.SESSION}
    if vms:
        return vms.pop() if len(vms) == 1 else 0
    if spec.rooms is Rooms.HYPERTHREAD and g.turn:
        return g.members[g.turn - 1].attached
    return g.turn if spec.rooms is Rooms.VM else 0


def _told(before: GateState, r: Report, round_: int) -> list[Note]:
    m = before.members[r.ht]
    mode = Mode.ISOLATED if r.mode is Mode.ENTER else r.mode
    notes: list[Note] = []
    if m.belief is Belief.UNKNOWN:  # whatever it says first: every report tells its whole state
        notes.append(Note("gate.resync", {"inc": r.inc}, round_, r.ht))
    if r.said is Said.READY:
        if m.inc != r.inc or m.belief is Belief.OFFLINE:  # the first time: it repeats itself until it is needed
            notes.append(Note("gate.ready", {"inc": r.inc, "mode": mode.name}, round_, r.ht))
    elif r.said is Said.ANSWER:
        notes.append(Note("gate.answer", {"number": r.answered, "was": mode.name}, round_, r.ht))
    elif r.said is Said.LEAVE:
        notes.append(_leave(r, mode, round_))
    elif r.said in _PLAIN:
        notes.append(Note(_PLAIN[r.said], {}, round_, r.ht))
    news = m.req != r.req or m.want is not r.want
    if r.want is Want.ASK and news:
        notes.append(Note("gate.ask", {"vm": r.vm, "req": r.req}, round_, r.ht))
    elif r.want is Want.LEAVE and news and r.said is not Said.LEAVE and m.granted != r.req:
        notes.append(_leave(r, mode, round_))  # its own report was lost
    return notes


def _leave(r: Report, mode: Mode, round_: int) -> Note:
    parked = {} if r.session else {"mode": mode.name}
    return Note("gate.leave", {"req": r.req, "reason": "", **parked}, round_, r.ht)
