"""Naive variants of the protocol, planted by replacing functions of `asid.core` and of the explorer's page.

Each is what a sensible person might have written. `MUTANTS` says which rule each breaks, the smallest model that
shows it, and what becomes of it: `unsafe` (a guarantee is broken), `deadlock`, `starvation`, or `passes`, for those
that look wrong and are not. Nothing of this is reachable from `asid/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from asid.core import gate, guarantees, hyperthread
from asid.core.events import Action, Bid, Do, Mode, Report, Said, Seen, Want
from asid.core.gate import Belief, GateState, Member
from asid.core.hyperthread import HyperthreadState, Phase, What, send, set_mode
from asid.explore import search, siblings
from asid.explore.parts import Model, Sibling

Plant = Callable[[ExitStack], None]


class Mutant(NamedTuple):
    """One naive variant."""

    name: str
    naive: str
    model: Model
    verdict: str
    how: str  # it fails, or why it does not
    cure: str
    plant: Plant


def put(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(owner, name, value))


def put_item(stack: ExitStack, table: Any, **changes: Any) -> None:
    stack.enter_context(patch.dict(table, changes))


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The protocol with one naive part in it."""
    with ExitStack() as stack:
        mutant.plant(stack)
        yield


def plain(stack: ExitStack, what: What, function: Any) -> None:
    """Replace the function of an event that has no more to it than the state."""
    stack.enter_context(patch.dict(hyperthread._PLAIN, {what: function}))


# --- who decides, and what it believes --------------------------------------------------------------------


def toctou(stack: ExitStack) -> None:
    """Nobody decides: look whether a sibling's word is raised, then raise one's own and go."""

    def on_order(spec: hyperthread.Spec, s: HyperthreadState, order: Any) -> HyperthreadState:
        if order.bid is not Bid.ATTACH:
            return s
        return s._replace(vm=order.vm, phase=Phase.ENTERING, todo=(hyperthread.LOOK,))

    def on_look(spec: hyperthread.Spec, s: HyperthreadState, seen: Seen) -> HyperthreadState:
        up = Action(Do.SET_FLAG, 1)
        if s.phase is Phase.LEAVING:
            if seen.holders:
                return s
            return s._replace(phase=Phase.HOSTING, todo=(up, set_mode(Mode.HOST)))
        if seen.holders:
            return s._replace(phase=Phase.HELD)
        return s._replace(phase=Phase.ENTERING, session=True, todo=(up, set_mode(Mode.GUEST)))

    def on_exit(spec: hyperthread.Spec, s: HyperthreadState, full: bool) -> HyperthreadState:
        down = Action(Do.SET_FLAG, 0)
        return s._replace(phase=Phase.LEAVING, todo=(set_mode(Mode.ISOLATED), down, hyperthread.LOOK))

    put(stack, hyperthread, "on_order", on_order)
    put(stack, hyperthread, "on_look", on_look)
    put(stack, hyperthread, "on_exit", on_exit)
    put_item(stack, guarantees.GUARANTEES, G1=lambda core: None)  # nobody grants anything
    put(stack, search, "waits_for_ever", lambda w, world: None)


def belief_when_told(stack: ExitStack) -> None:
    real = gate.admit

    def admit(spec: gate.Spec, g: GateState, ht: int) -> gate.Step:
        before = g.members[ht].belief
        g, actions = real(spec, g, ht)
        return gate.put(g, ht, belief=before), actions

    put(stack, gate, "admit", admit)


def stale_grant(stack: ExitStack) -> None:
    """The answer to a kick counts as the end of a lease, though the lease is still on its way."""
    real_kick, real_absorb = hyperthread.on_kick, gate.absorb

    def on_kick(spec: hyperthread.Spec, s: HyperthreadState, number: int) -> HyperthreadState:
        return real_kick(spec, s, number)._replace(void=False)

    def absorb(spec: gate.Spec, m: Member, r: Report) -> Member:
        return real_absorb(spec, m, r._replace(void=r.void or r.said is Said.ANSWER))

    put(stack, hyperthread, "on_kick", on_kick)
    put(stack, gate, "absorb", absorb)


def one_bit_numbers(stack: ExitStack) -> None:
    """Ask again at once after a kick, and tell answers apart by one bit."""
    real_kick, real_order = hyperthread.on_kick, hyperthread.on_order

    def on_kick(spec: hyperthread.Spec, s: HyperthreadState, number: int) -> HyperthreadState:
        t = real_kick(spec, s, number)
        return t._replace(req=s.req + 1, void=False) if s.phase is Phase.ASKING else t

    def on_order(spec: hyperthread.Spec, s: HyperthreadState, order: Any) -> HyperthreadState:
        if (order.req - s.req) % 2 == 0:
            order = order._replace(req=s.req)
        return real_order(spec, s, order)

    put(stack, hyperthread, "on_kick", on_kick)
    put(stack, hyperthread, "on_order", on_order)


def same_number_again(stack: ExitStack) -> None:
    """A retry keeps the number of its request."""
    real = hyperthread.on_timeout
    plain(stack, What.TIMEOUT, lambda spec, s: real(spec, s)._replace(req=s.req))


def same_number_believed(stack: ExitStack) -> None:
    """A retry keeps its number, and the gate takes whatever it is told for the truth."""
    same_number_again(stack)
    real = gate.absorb
    put(stack, gate, "absorb", lambda spec, m, r: real(spec, m._replace(granted=-1), r))


def inferred(stack: ExitStack) -> None:
    """Whoever asks for HOST is not in HOST, so it must be parked."""
    real = gate.told
    put(stack, gate, "told", lambda r: Belief.PARKED if r.want is Want.LEAVE and not r.session else real(r))
    real_absorb = gate.absorb

    def absorb(spec: gate.Spec, m: Member, r: Report) -> Member:
        if m.belief is Belief.HOST and r.want is Want.LEAVE:
            r = r._replace(session=False, mode=Mode.PARKED)
        return real_absorb(spec, m, r)

    put(stack, gate, "absorb", absorb)


def no_retry(stack: ExitStack) -> None:
    plain(stack, What.TIMEOUT, lambda spec, s: s)


def timeout_opens(stack: ExitStack) -> None:
    """By now it will have left."""

    def on_timer(spec: gate.Spec, g: GateState, timer: Any, ht: int, key: int) -> gate.Step:
        if g.members[ht].kicked == key:
            return gate.put(g, ht, kicked=0, belief=Belief.PARKED), ()
        return g, ()

    put(stack, gate, "on_timer", on_timer)


def deaf_while_leaving(stack: ExitStack) -> None:
    row = hyperthread.TABLE[Phase.LEAVING]
    row = (row[0], hyperthread.IGNORE, *row[2:])
    stack.enter_context(patch.dict(hyperthread.TABLE, {Phase.LEAVING: row}))


def answers_on_receipt(stack: ExitStack) -> None:
    """A thread of its own answers the kick as soon as it hears of it; the guest loop leaves later."""
    real_menu, real_look = siblings.menu, hyperthread.on_look

    def menu(model: Model, s: Sibling, holders: bool) -> Iterator[Any]:
        yield from real_menu(model, s, holders)
        h = s.process
        assert isinstance(h, HyperthreadState)
        if h.phase is Phase.GUEST and s.words.request != h.answered:
            yield "hears the doorbell", siblings.Who.PROCESS, hyperthread.DOORBELL

    def on_look(spec: hyperthread.Spec, s: HyperthreadState, seen: Seen) -> HyperthreadState:
        if s.phase is not Phase.GUEST:
            return real_look(spec, s, seen)
        s = s._replace(answered=seen.request, session=False, used=False, round=0, phase=Phase.ASKING)
        return s._replace(want=Want.ASK, req=s.req + 1, todo=(send(Said.ANSWER), set_mode(Mode.PARKED)))

    row = hyperthread.TABLE[Phase.GUEST]
    row = (row[0], hyperthread.DO, *row[2:])
    stack.enter_context(patch.dict(hyperthread.TABLE, {Phase.GUEST: row}))
    put(stack, siblings, "menu", menu)
    put(stack, hyperthread, "on_look", on_look)
    put_item(stack, guarantees.GUARANTEES, G1=lambda core: None)  # what comes of it, not the missing lease itself


def stale_view(stack: ExitStack) -> None:
    """A hyperthread back from HOST reads in the gate's published view whether it still has its lease."""
    real_touched, real_menu, real_worked = siblings.touched, siblings.menu, hyperthread.on_worked
    # The view is the last kick the gate has processed the answer of: until then it still says "lease".
    raise NotImplementedError(real_touched, real_menu, real_worked)
