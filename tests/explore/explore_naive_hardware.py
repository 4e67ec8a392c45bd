"""Naive variants of what is closest to the hardware: the APIC's writes, meetings, flushes, and external interrupts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from explore_planting import put

from asid.core import apic, gate, hyperthread
from asid.core.apic import Apic
from asid.core.events import Action, Bid, Do, Kick, Mode, Order, Report, Seen, Want
from asid.core.gate import GateState, Member
from asid.core.hyperthread import HyperthreadState, Phase, What, set_mode
from asid.errors import ProtocolFault
from asid.explore.world import World


def nothing(stack: ExitStack) -> None:
    """The protocol as it is; the model asks for more."""


# --- the APIC ---------------------------------------------------------------------------------------------


def host_before_idle(stack: ExitStack) -> None:
    """Into HOST as soon as the last IPI is written; it may be on the bus for a while."""
    real = apic.kicks

    def kicks(kind: Apic, others: tuple[int, ...]) -> tuple[Action, ...]:
        sent = real(kind, others)
        return sent[:-1] if sent and sent[-1] == apic.ICR_IDLE else sent

    put(stack, apic, "kicks", kicks)


# --- meetings ---------------------------------------------------------------------------------------------


def dropped_admissions_do_not_arrive(stack: ExitStack) -> None:
    """Who does not use an admission need not tell the others of the party."""
    real = hyperthread.on_admit

    def on_admit(spec: hyperthread.Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
        t = real(spec, s, order)
        return t._replace(todo=tuple(a for a in t.todo if a.do is not Do.ARRIVE)) if s.void else t

    put(stack, hyperthread, "on_admit", on_admit)
    put(stack, hyperthread, "declined", lambda spec, s, order: s)


def one_at_a_time(stack: ExitStack) -> None:
    """Admit whoever is first, to meet those who have a lease already."""

    def admit_together(spec: gate.Spec, g: GateState, ht: int) -> gate.Step:
        holders = sum(1 << o for o, m in enumerate(g.members) if m.belief is gate.Belief.SESSION)
        return gate.admit(spec, g, ht, holders | 1 << ht)

    put(stack, gate, "admit_together", admit_together)


def party_of_all(stack: ExitStack) -> None:
    """Every vCPU of the core comes to every meeting, whether it asked or not."""
    real = gate.admit

    def admit(spec: gate.Spec, g: GateState, ht: int, party: int = 0) -> gate.Step:
        return real(spec, g, ht, (1 << len(g.members)) - 1)

    put(stack, gate, "admit", admit)


def nobody_waits_for_the_party(stack: ExitStack) -> None:
    put(stack, World, "_absent", lambda w, part, parts: 0)


# --- flushes ----------------------------------------------------------------------------------------------


def no_second_look(stack: ExitStack) -> None:
    """An NMI between the look and the entry changes nothing: the look found the buffers clean."""
    real = hyperthread.on_interrupt

    def on_interrupt(spec: hyperthread.Spec, s: HyperthreadState, what: What, *check: Any) -> HyperthreadState:
        return real(replace(spec, flush=False), s, what, *check)

    put(stack, hyperthread, "on_interrupt", on_interrupt)


def no_look_after_the_one_flush(stack: ExitStack) -> None:
    """One flush an entry has to do, even if an NMI hits before the look that follows it."""
    real = hyperthread.on_interrupt

    def on_interrupt(spec: hyperthread.Spec, s: HyperthreadState, what: What, *check: Any) -> HyperthreadState:
        return real(replace(spec, flush=False) if s.todo == (hyperthread.LOOK_ONCE,) else spec, s, what, *check)

    put(stack, hyperthread, "on_interrupt", on_interrupt)


def flushed_at_admission_only(stack: ExitStack) -> None:
    """The buffers are flushed when the lease is given; later looks do not ask."""
    real = hyperthread.on_look

    def on_look(spec: hyperthread.Spec, s: HyperthreadState, seen: Seen) -> HyperthreadState:
        return real(spec, s, seen._replace(tainted=False))

    put(stack, hyperthread, "on_look", on_look)


def replanned_visits(stack: ExitStack, plan: Any) -> None:
    """Replace the way back from HOST: `plan` is given the mode to return to, the lowering of the flag, the rest."""
    real = hyperthread.on_worked

    def on_worked(spec: hyperthread.Spec, s: HyperthreadState, halted: bool) -> HyperthreadState:
        t = real(spec, s, halted)
        back, *todo = t.todo
        if hyperthread.FLUSH not in todo:
            return t
        at = todo.index(hyperthread.FLUSH)
        rest = (*todo[:at], *todo[at + 1 :])
        return t._replace(todo=plan(back, rest))

    put(stack, hyperthread, "on_worked", on_worked)


def flushed_in_host(stack: ExitStack) -> None:
    """Flush, then leave HOST: what is loaded between the two stays behind."""
    replanned_visits(stack, lambda back, rest: (hyperthread.FLUSH, back, *rest))


def unstunned_before_the_flush(stack: ExitStack) -> None:
    def plan(back: Action, rest: tuple[Action, ...]) -> tuple[Action, ...]:
        at = rest.index(Action(Do.SET_FLAG, 0)) + 1
        return (back, *rest[:at], hyperthread.FLUSH, *rest[at:])

    replanned_visits(stack, plan)


def stun_trusts_the_flush(stack: ExitStack) -> None:
    """... and because a visit ends with a flush, nobody looks at the buffers before an entry."""
    unstunned_before_the_flush(stack)
    flushed_at_admission_only(stack)


# --- external interrupts ----------------------------------------------------------------------------------


def irq_without_a_leave(stack: ExitStack) -> None:
    """An interrupt is handled in HOST, wherever it hit: its entry code switches the address space."""
    real = hyperthread.on_irq

    def on_irq(spec: hyperthread.Spec, s: HyperthreadState, full: bool) -> HyperthreadState:
        if not full or s.phase in (Phase.HOSTING, Phase.GUEST) or not s.session:
            return real(spec, s, full)
        return s._replace(phase=Phase.HOSTING, todo=(set_mode(Mode.HOST),))

    put(stack, hyperthread, "on_irq", on_irq)


def idle_takes_irqs_in_host(stack: ExitStack) -> None:
    """Who is parked has no lease to hand back, so it goes to HOST and tells nobody."""
    real = hyperthread.on_irq

    def on_irq(spec: hyperthread.Spec, s: HyperthreadState, full: bool) -> HyperthreadState:
        if not full or s.phase is Phase.HOSTING or s.session:
            return real(spec, s, full)
        return hyperthread.leave(spec, s, Kick.BARE)

    put(stack, hyperthread, "on_irq", on_irq)


def parked_leaver_rejects(stack: ExitStack) -> None:
    """An order to detach or stop while a leave is under way means that the gate is broken."""
    real = hyperthread.on_order

    def on_order(spec: hyperthread.Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
        if hyperthread.of_this_life(s, order) and hyperthread.ORDERS[s.phase][order.bid] is hyperthread.REJECT:
            raise ProtocolFault(f"hyperthread {spec.ht} was ordered to {order.bid.name.lower()} in {s.phase.name}")
        return real(spec, s, order)

    put(stack, hyperthread, "on_order", on_order)


def parked_leaver_stops_never(stack: ExitStack) -> None:
    """An order to stop that crosses a leave from PARKED is dropped, as one to detach is."""
    real = hyperthread.on_order

    def on_order(spec: hyperthread.Spec, s: HyperthreadState, order: Order) -> HyperthreadState:
        crossed = order.bid is Bid.STOP and s.phase in (Phase.LEAVING, Phase.HOSTING)
        return s if crossed else real(spec, s, order)

    put(stack, hyperthread, "on_order", on_order)


def detach_obeyed_while_leaving(stack: ExitStack) -> None:
    """An order to detach that crosses a leave from PARKED is obeyed at once."""
    row = hyperthread.ORDERS[Phase.LEAVING]
    row = (row[0], hyperthread.DO, *row[2:])
    stack.enter_context(patch.dict(hyperthread.ORDERS, {Phase.LEAVING: row}))


def fresh_leaver(stack: ExitStack) -> None:
    """A lease is sticky until its first instruction, even of one that wants to leave."""
    real = gate.absorb

    def absorb(spec: gate.Spec, m: Member, r: Report) -> Member:
        after = real(spec, m, r)
        sticky = m.fresh and r.session and not r.used and r.want is Want.LEAVE
        return after._replace(fresh=True) if sticky else after

    put(stack, gate, "absorb", absorb)
