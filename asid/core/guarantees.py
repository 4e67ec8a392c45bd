"""The guarantees as functions of one core, seen from outside and all at once.

Only the explorer and the simulator see a core that way; the live machine asserts what each of its processes can see
(`of_gate`, `of_hyperthread`), and the audit checks the same sentences from the journal by code of its own. Each
function returns None when the guarantee holds and a sentence when it is broken. I-numbers are the formal invariants
behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from asid.core import mce
from asid.core.events import Mode, Want
from asid.core.gate import Belief, GateState
from asid.core.hyperthread import HyperthreadState, Phase


class CoreView(NamedTuple):
    """One core at one instant: the truth, the page and the belief. A dead hyperthread is None."""

    hyperthreads: tuple[HyperthreadState | None, ...]
    pending: tuple[bool, ...]
    gate: GateState | None  # None while no coordinator runs
    tainted: tuple[bool, ...] = ()  # by hyperthread: the buffers hold what is not its guest's; empty: nobody looks
    meetings: tuple[mce.Meeting | None, ...] = ()  # by hyperthread: its part in a rendezvous of #MC handlers


IN_LEASE: Final = (Mode.ISOLATED, Mode.ENTER, Mode.GUEST)


def g1_admission(core: CoreView) -> str | None:
    """G1 (I9). Whoever is in the room holds a lease, and the gate believed so since before it granted it.

    Broken by: believing "in guest" when told instead of when granting; a stale grant that is used.
    """
    for ht, s in enumerate(core.hyperthreads):
        if s is None or s.mode not in IN_LEASE:
            continue
        if not s.session and not (s.frames or s.todo):
            return f"h{ht} is {s.mode.name} without a lease"
        if core.gate is not None and s.session and not s.void:
            m = core.gate.members[ht]
            if m.inc == s.inc and core.gate.coord == s.coord and m.belief not in (Belief.SESSION, Belief.UNKNOWN):
                if m.belief is Belief.HOST and s.phase is Phase.LEAVING:
                    continue  # its leave is granted; it stays out of guest until it has used a grant
                return f"h{ht} holds a lease while the gate believes {m.belief.name}"
    return None


def g2_exclusion(core: CoreView) -> str | None:
    """G2 (I1, I2). No guest beside HOST, but for the in-flight window of an NMI, a #MC or a `send` kick, in which
    the guest's pending bit is set and so no guest instruction retires.

    Broken by: leaving before the answers; a kick without a standing request; an IPI that was saved.
    """
    for guest, s in enumerate(core.hyperthreads):
        if s is None or s.mode is not Mode.GUEST:
            continue
        for host, o in enumerate(core.hyperthreads):
            if host == guest or o is None or o.mode is not Mode.HOST:
                continue
            if not core.pending[guest]:
                return f"h{guest} may run guest instructions beside h{host} in HOST"
            if not o.flag and not o.depth:
                return f"h{guest} is in guest beside h{host}, which is in HOST by a grant"
    return None


def g3_one_vm(core: CoreView) -> str | None:
    """G3 (I3, I4). GUEST(x) beside neither GUEST(y) nor ISOLATED(y).

    Broken by: admitting before the other VM's isolated address spaces are left.
    """
    for guest, s in enumerate(core.hyperthreads):
        if s is None or s.mode is not Mode.GUEST:
            continue
        for other, o in enumerate(core.hyperthreads):
            if other != guest and o is not None and o.mode in (Mode.GUEST, Mode.ISOLATED) and o.vm != s.vm:
                return f"h{guest} is in guest of vm {s.vm} beside h{other}, {o.mode.name} of vm {o.vm}"
    return None


def g4_kick(core: CoreView) -> str | None:
    """G4 (I2, I8). Whoever handed its lease back is out of guest, and stays out before a later admission.

    ENTER is not guest: a look from there may find the kick, and PARKED is its next step.
    Broken by: an answer sent before the guest was left; a void grant that is used. That no instruction retires
    while the pending bit is set is G2's: the engine looks at the bit before each one.
    """
    for ht, s in enumerate(core.hyperthreads):
        if s is not None and not s.session and s.mode is Mode.GUEST:
            return f"h{ht} is in guest after it handed its lease back"
    return None


def g5_rounds(core: CoreView) -> str | None:
    """G5 (I11). A lease is of the gate's current round; all leases of a core are of one round."""
    rounds = {s.round for s in core.hyperthreads if s is not None and s.session}
    if len(rounds) > 1:
        return f"leases of rounds {sorted(rounds)} side by side"
    return None


def g9_flush(core: CoreView) -> str | None:
    """G9. No guest instruction runs while the buffers hold what HOST or another lease loaded.

    Broken by: entering without a flush; a flush before the last visit to HOST ended; a guest beside HOST.
    """
    for ht, tainted in enumerate(core.tainted):
        s = core.hyperthreads[ht]
        if tainted and s is not None and s.mode is Mode.GUEST and not core.pending[ht]:
            return (
                f"h{ht} may run guest instructions while the buffers hold what was loaded in HOST or by another lease"
            )
    return None


def g10_atomic(core: CoreView) -> str | None:
    """G10 (I12, I15). The published depth counts the handlers that are, or are going, HOST; none is left behind. In a
    rendezvous of #MC handlers there is one monarch, and nobody counts as come who was not hit (`mce.broken`). When the
    handlers are over that failed a core, no guest instruction runs on it."""
    for ht, s in enumerate(core.hyperthreads):
        if s is None:
            continue
        if not 0 <= s.depth <= len(s.frames):
            return f"h{ht} publishes depth {s.depth} with {len(s.frames)} handlers under way"
    return runs_on_a_failed_core(core) or mce.broken(core.meetings)


def runs_on_a_failed_core(core: CoreView) -> str | None:
    """Of G10: how a guest may run although a machine check was fatal and its handler is over, None when none may.

    Broken by: a handler that marks the core and kicks nobody; one that goes back to an entry which has had its look.
    """
    if not any(met is not None and met.failed for met in core.meetings):
        return None
    if any(s is not None and s.frames for s in core.hyperthreads):
        return None
    for ht, s in enumerate(core.hyperthreads):
        if s is not None and s.mode is Mode.GUEST and not core.pending[ht]:
            return f"h{ht} may run guest instructions on a core that a machine check has failed"
    return None


def g11_closed(core: CoreView) -> str | None:
    """G11 (I16, I17, I19). While anybody is unknown nobody holds a lease that this coordinator gave."""
    g = core.gate
    if g is None or all(m.belief is not Belief.UNKNOWN for m in g.members):
        return None
    for ht, m in enumerate(g.members):
        if m.belief is Belief.SESSION and m.granted >= 0 and m.fresh:
            return f"h{ht} was admitted while a sibling was unknown"
    return None


def l1_leave_waits(s: HyperthreadState) -> bool:
    """L1. Waits to be let into HOST. Every cycle of states in which this holds for ever must be unfair."""
    return s.phase is Phase.LEAVING


def l2_ask_waits(s: HyperthreadState) -> bool:
    """L2. Waits to be admitted."""
    return s.phase is Phase.ASKING


def l2_has_not_run(s: HyperthreadState) -> bool:
    """L2. Waits to be admitted, or was admitted and has not run an instruction yet."""
    return s.phase in (Phase.ASKING, Phase.ENTERING, Phase.HELD, Phase.GUEST) and not s.used


def of_gate(g: GateState, host_alone: bool = True) -> str | None:
    """G1, G2, G3, G11 in what a gate that excludes believes by itself: true after every step of it.

    host_alone: whether HOST and guest exclude each other under its policy (see gate.Spec).

    A holder that waits to leave is out of guest, and has no way in but by a grant. One that asked again before its
    grant reached it is such a holder once more, beside whoever was granted HOST meanwhile.
    """
    leases = [ht for ht, m in enumerate(g.members) if m.belief is Belief.SESSION]
    rooms = {g.members[ht].room for ht in leases}
    if len(rooms) > 1:
        return f"leases of rooms {sorted(rooms)} side by side"
    if not leases:
        return None
    for ht, m in enumerate(g.members):
        if host_alone and m.belief is Belief.HOST and m.granted >= 0:
            may_run = [o for o in leases if g.members[o].want is not Want.LEAVE]
            if may_run:
                return f"h{ht} was granted HOST while h{may_run[0]} holds a lease"
        if m.belief is Belief.UNKNOWN and any(g.members[o].fresh and g.members[o].granted >= 0 for o in leases):
            return f"somebody was admitted while h{ht} was unknown"
    return None


def of_hyperthread(s: HyperthreadState) -> str | None:
    """G4 and G10 in a hyperthread's own state: true after every step of it."""
    if s.mode is Mode.GUEST and not s.session:
        return "in guest without a lease"
    if not 0 <= s.depth <= len(s.frames):
        return f"depth {s.depth} with {len(s.frames)} handlers under way"
    return None


GUARANTEES: Final[dict[str, Callable[[CoreView], str | None]]] = {
    "G1": g1_admission,
    "G2": g2_exclusion,
    "G3": g3_one_vm,
    "G4": g4_kick,
    "G5": g5_rounds,
    "G9": g9_flush,
    "G10": g10_atomic,
    "G11": g11_closed,
}
