"""Naive variants of kicks, of the way into guest, and of NMIs and #MCs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from explore_planting import put

from asid.core import gate, hyperthread
from asid.core.events import Action, Do, Mode, Seen
from asid.core.gate import GateState
from asid.core.hyperthread import HyperthreadState, Phase, set_mode
from asid.explore import siblings
from asid.explore.parts import Dead, Model, Sibling, Touch, Touched

# --- kicks and the way in ---------------------------------------------------------------------------------


def host_first(stack: ExitStack) -> None:
    def on_exit(spec: hyperthread.Spec, s: HyperthreadState, full: bool, idle: bool = False) -> HyperthreadState:
        kicks = tuple(Action(Do.IPI, other) for other in spec.siblings)
        todo = (set_mode(Mode.ISOLATED), set_mode(Mode.HOST), Action(Do.SET_FLAG, 1), *kicks)
        return s._replace(phase=Phase.HOSTING, todo=todo)

    put(stack, hyperthread, "on_exit", on_exit)


def check_before_publish(stack: ExitStack) -> None:
    real = hyperthread.on_look

    def on_look(spec: hyperthread.Spec, s: HyperthreadState, seen: Seen) -> HyperthreadState:
        entering = s.phase in (Phase.ENTERING, Phase.HELD)
        if entering and not (seen.pending or seen.holders) and seen.request == s.answered:
            return s._replace(phase=Phase.ENTERING, todo=(set_mode(Mode.ENTER), set_mode(Mode.GUEST)))
        return real(spec, s, seen)

    put(stack, hyperthread, "ENTRY", (hyperthread.LOOK,))
    put(stack, hyperthread, "FAST", (set_mode(Mode.ISOLATED), hyperthread.WORK, hyperthread.LOOK))
    put(stack, hyperthread, "on_look", on_look)


def saved_ipis(stack: ExitStack) -> None:
    """No IPI to a sibling whose published mode says that it is not on its way into guest."""
    real = siblings.touched

    def touched(model: Model, spec: hyperthread.Spec, s: Sibling, touch: Touch) -> Sibling:
        alive = not isinstance(s.process, Dead)
        if alive and touch.what is Touched.PENDING and s.process.mode not in (Mode.ENTER, Mode.GUEST):
            return s
        return real(model, spec, s, touch)

    put(stack, siblings, "touched", touched)


def check_before_publish_saved_ipis(stack: ExitStack) -> None:
    check_before_publish(stack)
    saved_ipis(stack)


def no_flag(stack: ExitStack) -> None:
    def on_exit(spec: hyperthread.Spec, s: HyperthreadState, full: bool, idle: bool = False) -> HyperthreadState:
        kicks = tuple(Action(Do.IPI, other) for other in spec.siblings)
        todo = (set_mode(Mode.ISOLATED), *kicks, set_mode(Mode.HOST))
        return s._replace(phase=Phase.HOSTING, todo=todo)

    put(stack, hyperthread, "on_exit", on_exit)


def no_request(stack: ExitStack) -> None:
    real = gate.evict

    def evict(spec: gate.Spec, g: GateState, targets: tuple[int, ...]) -> gate.Step:
        g, actions = real(spec, g, targets)
        return g, tuple(a for a in actions if a.do is not Do.REQUEST)

    put(stack, gate, "evict", evict)


def kicks_again(stack: ExitStack) -> None:
    """Every decision kicks whoever is in the way, kicked already or not."""
    real = gate.evict

    def evict(spec: gate.Spec, g: GateState, targets: tuple[int, ...]) -> gate.Step:
        out = [(ht, g.members[ht].kicked) for ht in targets if g.members[ht].kicked]
        g, actions = real(spec, g, targets)
        again = [a for ht, number in out for a in (Action(Do.REQUEST, ht, number), Action(Do.PEND, ht))]
        return g, (*actions, *again)

    put(stack, gate, "evict", evict)


# --- NMI and #MC ------------------------------------------------------------------------------------------

Parts = tuple[Action, tuple[Action, ...], Action, Action, tuple[Action, ...]]


def new_handler(stack: ExitStack, build_it: Callable[[HyperthreadState, Mode, Parts], tuple[Action, ...]]) -> None:
    """Replace what a handler does; `build_it` is given depth up, kicks, way back, depth down, wakes."""

    def handler(spec: hyperthread.Spec, s: HyperthreadState, saved: Mode) -> tuple[Action, ...]:
        kicks = tuple(Action(Do.IPI, other) for other in spec.siblings)
        wakes = tuple(Action(Do.WAKE, other) for other in spec.siblings)
        up, down = Action(Do.SET_DEPTH, s.depth + 1), Action(Do.SET_DEPTH, s.depth)
        return build_it(s, saved, (up, kicks, set_mode(saved), down, wakes))

    put(stack, hyperthread, "handler", handler)


HOST_WORK: Final = (set_mode(Mode.HOST), hyperthread.WORK)


def nmi_without_kicks(stack: ExitStack) -> None:
    new_handler(stack, lambda s, saved, p: (*HOST_WORK, p[2]))


def depth_before_mode(stack: ExitStack) -> None:
    new_handler(stack, lambda s, saved, p: (p[0], *p[1], *HOST_WORK, p[3], p[2], *p[4]))


def nmi_clears_pending(stack: ExitStack) -> None:
    clear = hyperthread.CLEAR_PENDING
    new_handler(stack, lambda s, saved, p: (p[0], *p[1], *HOST_WORK, clear, p[2], p[3], *p[4]))


def flag_not_depth(stack: ExitStack) -> None:
    up, down = Action(Do.SET_DEPTH, 1), Action(Do.SET_DEPTH, 0)
    new_handler(stack, lambda s, saved, p: (up, *p[1], *HOST_WORK, p[2], down, *p[4]))
