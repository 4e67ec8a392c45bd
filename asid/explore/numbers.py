"""Request numbers, kick numbers and rounds, counted from a fixed base.

They grow without end, and only their differences matter: two worlds that differ by a shift behave equally. So after
each step a sibling's last request, its last kick and the gate's round are moved back to BASE, and everything that
is compared with them moves along. Numbers more than BASE behind become 0: what is that old is equally stale.
"""

from __future__ import annotations

from typing import Final

from asid.core.events import Action, Do, Order, Report
from asid.core.gate import GateState
from asid.core.hyperthread import HyperthreadState
from asid.explore.parts import Dead, Desk, Down, Sibling, UpLink

BASE: Final = 4


def low(number: int, delta: int) -> int:
    return max(number + delta, 0)


# --- at a sibling -----------------------------------------------------------------------------------------


def with_requests(s: Sibling, delta: int) -> Sibling:
    assert not isinstance(s.process, Dead)
    up: UpLink = tuple((inc, tuple(r._replace(req=low(r.req, delta)) for r in reports)) for inc, reports in s.up)
    down = tuple(o._replace(req=low(o.req, delta)) for o in s.down)
    return s._replace(process=s.process._replace(req=low(s.process.req, delta)), up=up, down=down)


def with_kicks(s: Sibling, delta: int) -> Sibling:
    process = s.process
    if not isinstance(process, Dead):
        process = process._replace(answered=low(process.answered, delta))
    words, glimpse = s.words._replace(request=low(s.words.request, delta)), s.glimpse
    if glimpse is not None and glimpse.request >= 0:
        glimpse = glimpse._replace(request=low(glimpse.request, delta))
    up: UpLink = tuple(
        (inc, tuple(r._replace(answered=low(r.answered, delta)) for r in reports)) for inc, reports in s.up
    )
    return s._replace(process=process, words=words, up=up, glimpse=glimpse)


def with_rounds(s: Sibling, delta: int) -> Sibling:
    def at(t: Report) -> Report:
        return t._replace(round=low(t.round, delta)) if t.session else t

    process = s.process
    if isinstance(process, HyperthreadState) and process.session:
        process = process._replace(round=low(process.round, delta))
    if isinstance(process, HyperthreadState) and any(a.do is Do.ARRIVE for a in process.todo):
        process = process._replace(todo=tuple(arrives(a, delta) for a in process.todo))
    words = s.words._replace(arrived=low(s.words.arrived, delta)) if s.words.arrived else s.words
    up: UpLink = tuple((inc, tuple(at(r) for r in reports)) for inc, reports in s.up)
    down = tuple(o._replace(round=low(o.round, delta)) for o in s.down)
    return s._replace(process=process, words=words, up=up, down=down)


def arrives(action: Action, delta: int) -> Action:
    """Return the action with the round of a meeting moved along."""
    return Action(Do.ARRIVE, low(action.a, delta)) if action.do is Do.ARRIVE else action  # type: ignore[arg-type]


# --- at the coordinator's desk ----------------------------------------------------------------------------


def desk_requests(d: Desk, ht: int, delta: int) -> Desk:
    if isinstance(d.gate, Down):
        return d
    m = d.gate.members[ht]
    granted = m.granted if m.granted < 0 else low(m.granted, delta)
    m = m._replace(req=low(m.req, delta), granted=granted)
    members = (*d.gate.members[:ht], m, *d.gate.members[ht + 1 :])
    todo = tuple(
        Action(a.do, a.a._replace(req=low(a.a.req, delta))) if isinstance(a.a, Order) and a.a.ht == ht else a
        for a in d.todo
    )
    return Desk(d.gate._replace(members=members), todo)


def desk_kicks(d: Desk, ht: int, delta: int) -> Desk:
    assert isinstance(d.gate, GateState)
    m = d.gate.members[ht]
    m = m._replace(kicks=m.kicks + delta, kicked=low(m.kicked, delta) if m.kicked else 0)
    members = (*d.gate.members[:ht], m, *d.gate.members[ht + 1 :])
    todo = tuple(a._replace(b=low(a.b, delta)) if a.do is Do.REQUEST and a.a == ht else a for a in d.todo)
    return Desk(d.gate._replace(members=members), todo)


def desk_rounds(d: Desk, delta: int) -> Desk:
    assert isinstance(d.gate, GateState)

    def at(a: Action) -> Action:
        if isinstance(a.a, Order):
            return Action(a.do, a.a._replace(round=low(a.a.round, delta)))
        return a._replace(b=low(a.b, delta)) if a.do is Do.WIPE and a.b else a

    return Desk(d.gate._replace(round=d.gate.round + delta), tuple(at(a) for a in d.todo))
