"""Naive variants of who decides, what is believed, who waits and takes turns, and what death means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from explore_planting import plain, put, put_item

from asid.core import gate, guarantees, hyperthread
from asid.core.events import Action, Bid, Do, Mode, Report, Said, Seen, Timer, Want
from asid.core.gate import Belief, GateState, Member
from asid.core.hyperthread import HyperthreadState, Phase, What, send, set_mode
from asid.explore import desk, search, siblings
from asid.explore.parts import Model, Sibling, Touch, Touched

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

    def on_exit(spec: hyperthread.Spec, s: HyperthreadState, full: bool, idle: bool = False) -> HyperthreadState:
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


def stale_view(stack: ExitStack) -> None:
    """Back from HOST, look up one's lease in the gate's published view; one's own answer may not be in it yet."""
    real = siblings.stepped

    def stepped(spec: hyperthread.Spec, s: Sibling, event: Any) -> Sibling:
        h = s.process
        assert isinstance(h, HyperthreadState)
        unread = any(r.said is Said.ANSWER for inc, reports in s.up if inc == h.inc for r in reports)
        if event.what is What.WORKED and unread:
            s = s._replace(process=h._replace(session=True))
        return real(spec, s, event)

    put(stack, siblings, "stepped", stepped)


# --- waiting and taking turns -----------------------------------------------------------------------------


def waits_isolated(stack: ExitStack) -> None:
    """Whoever hands its lease back, or comes back from HOST, waits in its VM's isolated address space, as the thread
    has it to the letter. The gate knows, and lets another VM wait for it.
    """
    real_mode, real_absorb, real_clear = hyperthread.set_mode, gate.absorb, gate.clear_for

    def absorb(spec: gate.Spec, m: Member, r: Report) -> Member:
        m = real_absorb(spec, m, r)
        return m if r.session else m._replace(room=r.vm if r.mode is Mode.ISOLATED else 0)

    def clear_for(spec: gate.Spec, g: GateState, ht: int) -> bool:
        asks, vm = g.members[ht].want is Want.ASK, g.members[ht].vm
        waiting = (m.room for o, m in enumerate(g.members) if o != ht and m.belief is Belief.PARKED)
        return real_clear(spec, g, ht) and not (asks and any(room not in (0, vm) for room in waiting))

    put(stack, hyperthread, "set_mode", lambda mode: real_mode(Mode.ISOLATED if mode is Mode.PARKED else mode))
    put(stack, gate, "absorb", absorb)
    put(stack, gate, "clear_for", clear_for)
    put_item(stack, guarantees.GUARANTEES, G1=lambda core: None)  # here ISOLATED needs no lease


def leaves_first(stack: ExitStack) -> None:
    """A leave always overtakes an ask."""
    real = gate.grant_leave

    def grant_leave(spec: gate.Spec, g: GateState, ht: int) -> gate.Step:
        g, actions = real(spec, g, ht)
        return g._replace(overtaken=0), actions

    put(stack, gate, "grant_leave", grant_leave)


def not_sticky(stack: ExitStack) -> None:
    real = gate.admit

    def admit(spec: gate.Spec, g: GateState, ht: int) -> gate.Step:
        g, actions = real(spec, g, ht)
        return gate.put(g, ht, fresh=False), actions

    put(stack, gate, "admit", admit)


# --- death and rebirth ------------------------------------------------------------------------------------


def death_unnoticed(stack: ExitStack) -> None:
    put(stack, gate, "on_dead", lambda spec, g, ht, inc: (g, ()))


def flags_of_the_dead(stack: ExitStack) -> None:
    real = gate.on_dead

    def on_dead(spec: gate.Spec, g: GateState, ht: int, inc: int) -> gate.Step:
        g, actions = real(spec, g, ht, inc)
        return g, tuple(a for a in actions if a.do is not Do.WIPE)

    put(stack, gate, "on_dead", on_dead)


def zombies(stack: ExitStack) -> None:
    """Nobody looks at the sender's incarnation."""
    real = gate.on_report

    def on_report(spec: gate.Spec, g: GateState, r: Report) -> gate.Step:
        return real(spec, g, r._replace(inc=max(r.inc, g.members[r.ht].inc)))

    put(stack, gate, "of_this_life", lambda g, r: r.coord == g.coord)
    put(stack, gate, "on_report", on_report)


def born_in_host(stack: ExitStack) -> None:
    """A new process finishes its start in HOST, and parks itself then."""
    real = hyperthread.born

    def born(inc: int, coord: int, answered: int) -> HyperthreadState:
        s = real(inc, coord, answered)
        return s if inc == 1 else s._replace(mode=Mode.HOST, todo=(*s.todo, set_mode(Mode.PARKED), send(Said.IDLE)))

    put(stack, hyperthread, "born", born)


def silent_is_dead(stack: ExitStack) -> None:
    def on_timer(spec: gate.Spec, g: GateState, timer: Any, ht: int, key: int) -> gate.Step:
        m = g.members[ht]
        return gate.on_dead(spec, g, ht, m.inc) if m.kicked == key else (g, ())

    put(stack, gate, "on_timer", on_timer)


def born_before_the_wipe(stack: ExitStack) -> None:
    """Whom the old coordinator had buried is born again while the next one is about to wipe its words."""
    real = siblings.touched

    def touched(model: Model, spec: hyperthread.Spec, s: Sibling, touch: Touch) -> Sibling:
        return s if touch.what is Touched.UNBURIED else real(model, spec, s, touch)

    put(stack, siblings, "touched", touched)


def amnesia(stack: ExitStack) -> None:
    real = gate.resumed

    def resumed(*args: Any) -> gate.Step:
        g, actions = real(*args)
        members = tuple(m._replace(belief=Belief.PARKED) if m.inc else m for m in g.members)
        return g._replace(members=members), actions

    put(stack, gate, "resumed", resumed)


def resync_said_once(stack: ExitStack) -> None:
    put(stack, gate, "resync_again", lambda *_: ())


def resync_waits_for_ever(stack: ExitStack) -> None:
    def overdue(*args: Any) -> Timer | None:
        timer = real(*args)
        return None if timer is Timer.RESYNC else timer

    real = desk.overdue
    put(stack, desk, "overdue", overdue)


def no_epoch(stack: ExitStack) -> None:
    """Nobody looks at the coordinator's incarnation."""
    real = gate.of_this_life
    put(stack, gate, "of_this_life", lambda g, r: real(g, r._replace(coord=g.coord)))
    put(stack, hyperthread, "of_this_life", lambda s, order: order.inc == s.inc)


def nothing(stack: ExitStack) -> None:
    """The protocol as it is; the model asks for more."""
