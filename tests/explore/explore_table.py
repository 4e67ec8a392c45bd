"""The table of naive variants: which there are, and what a search says of each. Letters and numbers are of the table
of naive variants that the protocol was designed against; further letters are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import explore_naive_gate as naive
import explore_naive_kicks as kicks
from explore_planting import Mutant, planted
from explore_table_checks import MACHINE_CHECKS
from explore_table_hardware import APIC_WRITES, HARDWARE

from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.explore.models import build
from asid.explore.parts import Arrivals, Budget, Model
from asid.explore.search import search


def model(name: str, **budget: int) -> Model:
    return replace(build(name), budget=Budget(**budget)) if budget else build(name)


STARVES: Final = 1 << 30  # leaves that may overtake an ask: no bound

MUTANTS: Final = (
    Mutant(
        "V01", "nobody decides: look at the siblings, then act", model("n2v1"), "unsafe",
        "Both look before either has acted, and both go.",
        "one coordinator a core decides, in one step", naive.toctou,
    ),
    Mutant(
        "V02", "the gate believes in a lease when it is told of it, not when it gives it", model("n2v1"), "unsafe",
        "The lease is used and its report is still in the queue; a leave is granted and nobody is kicked.",
        "belief is set before the grant is sent (R3)", naive.belief_when_told,
    ),
    Mutant(
        "V03", "an answered kick does not void the lease on its way", model("n2v1", timer=1), "unsafe",
        "The sibling answers while its lease is under way, the leave is granted, then the lease is used.",
        "a kick makes the grant in flight void (R7)", naive.stale_grant,
    ),
    Mutant(
        "V04", "ask again at once, and tell answers apart by one bit", model("n2v1", timer=2), "unsafe",
        "Two void leases are under way, the number wraps, and the older one matches.",
        "one answer a request, numbers that never repeat", naive.one_bit_numbers,
    ),
    Mutant(
        "V05", "a retry keeps its number, and the gate believes what it is told", model("n2v1", retry=1), "unsafe",
        "The repeated ask arrives after the lease was given: the gate takes the holder for parked.",
        "a new number for each retry (R16)", naive.same_number_believed,
    ),
    Mutant(
        "V05b", "a retry keeps its number", model("n2v1", retry=1), "passes",
        "The gate recognises the request that it has granted: a second line of defence.",
        "-", naive.same_number_again,
    ),
    Mutant(
        "V06", "a leave proves that its sender is not in HOST, the rest is guessed", model("n2v2", retry=1), "unsafe",
        "A slow grant makes a sibling in ISOLATED ask for HOST again; it is taken for parked, and another VM enters.",
        "whole state in every message (R2)", naive.inferred,
    ),
    Mutant(
        "V07", "no retry", model("n2v1", loss=1), "deadlock",
        "One lost message, and its sender waits for ever.",
        "a retry under a new number (R16)", naive.no_retry,
    ),
    Mutant(
        "V08", "a silent sibling will have left by now", model("n2v1", timer=1), "unsafe",
        "It had not: the leave is granted beside a guest.",
        "fence it, and go on when it is dead", naive.timeout_opens,
    ),
    Mutant(
        "V09", "kicks are not served while waiting for HOST", model("n2v1"), "deadlock",
        "Two lease holders ask for HOST, and each waits for the other's answer.",
        "answer in every waiting state (R8)", naive.deaf_while_leaving,
    ),
    Mutant(
        "V09b", "a thread of its own answers the kick on receipt", model("n2v1"), "unsafe",
        "The answer overtakes the exit: HOST is granted beside a guest.",
        "leave first, then answer (R9)", naive.answers_on_receipt,
    ),
    Mutant(
        "V10", "a hyperthread reads the gate's view of itself", model("n2v2-send"), "unsafe",
        "Its own answer is not in the view yet: it returns from HOST into a lease that it has handed back.",
        "membership is the hyperthread's own variable (R11)", naive.stale_view,
    ),
    Mutant(
        "V11", "into HOST first, then kick", model("n2v1-send"), "unsafe",
        "A sibling is in guest beside HOST, and nothing is pending.",
        "kick first (I6)", kicks.host_first,
    ),
    Mutant(
        "V12", "check, then publish, with IPIs saved", model("n2v1-send"), "unsafe",
        "It has checked and not published; the leaver sees nobody on the way in and sends no IPI.",
        "publish, barrier, check (I5)", kicks.check_before_publish_saved_ipis,
    ),
    Mutant(
        "V12b", "check, then publish, every sibling always kicked", model("n2v1-send"), "passes",
        "The pending bit survives until the boundary before the first instruction.",
        "-", kicks.check_before_publish,
    ),
    Mutant(
        "V12c", "IPIs are saved by the mode that an NMI overwrites", model("n2v1-nmi-send"), "unsafe",
        "It has published and checked; an NMI makes its mode HOST; the leaver sends no IPI; the NMI returns.",
        "never save an IPI by the mode word", kicks.saved_ipis,
    ),
    Mutant(
        "V12d", "a `send` leave kicks and raises no flag", model("n2v1-send"), "unsafe",
        "The kicked guest exits, and nothing keeps it from coming straight back beside HOST.",
        "a standing request before each kick (I8)", kicks.no_flag,
    ),
    Mutant(
        "V12e", "the gate kicks and writes no request", model("n2v1"), "deadlock",
        "The kicked guest exits, finds nothing and goes on; the leave waits for an answer that never comes.",
        "a standing request before each kick (I8)", kicks.no_request,
    ),
    *APIC_WRITES,
    Mutant(
        "V15", "an NMI goes HOST without kicks", model("n2v1-nmi"), "unsafe",
        "A sibling is in guest.",
        "NMIs raise their depth and kick (R10)", kicks.nmi_without_kicks,
    ),
    Mutant(
        "V16", "an NMI lowers its depth before it restores the mode", model("n2v1-nmi"), "unsafe",
        "A sibling looks between the two and enters beside HOST.",
        "mode first, depth after (R10)", kicks.depth_before_mode,
    ),
    Mutant(
        "V17", "an NMI clears the pending bit, `send`", model("n2v1-nmi-send"), "unsafe",
        "The kick arrives between the look and the entry, the NMI eats it, the entry goes on.",
        "only the way out of guest clears it", kicks.nmi_clears_pending,
    ),
    Mutant(
        "V17b", "an NMI clears the pending bit, `ack`", model("n2v1-nmi"), "deadlock",
        "The NMI eats the gate's kick; the leave waits until the guest exits by itself, which may be never.",
        "only the way out of guest clears it", kicks.nmi_clears_pending,
    ),
    Mutant(
        "V17c", "as V17b, guarantees only", model("n2v1-nmi"), "passes",
        "A lost kick delays an `ack` leave and exposes nobody.",
        "-", kicks.nmi_clears_pending,
    ),
    Mutant(
        "V17d", "as V17c with two NMIs", model("n2v1-nmi2"), "unsafe",
        "One sibling's NMI eats the kick of the other's, and its entry goes on beside HOST.",
        "only the way out of guest clears it", kicks.nmi_clears_pending,
    ),
    Mutant(
        "V18", "in an NMI or #MC is a flag, not a depth", model("n2v1-nmi-mce"), "unsafe",
        "A #MC inside an NMI clears the flag; the NMI goes on in HOST with the way in open.",
        "a depth (I12)", kicks.flag_not_depth,
    ),
    Mutant(
        "V19", "waiters wait in ISOLATED, two VMs", model("n2v2"), "deadlock",
        "Each waits for the other to leave its VM's isolated address space.",
        "waiters wait in PARKED", naive.waits_isolated,
    ),
    Mutant(
        "V19b", "waiters wait in ISOLATED, one VM", model("n2v1"), "passes",
        "Nobody is in another VM's way.",
        "-", naive.waits_isolated,
    ),
    Mutant(
        "V20", "deaths are not noticed", model("n2v1-death"), "deadlock",
        "A leave waits for the answer of a dead sibling.",
        "a confirmed death is an answer (R15)", naive.death_unnoticed,
    ),
    Mutant(
        "V21", "the flags of the dead stay", model("n2v1", nmi=1, kill=1), "deadlock",
        "A sibling dies in an NMI; its depth keeps the others out for ever.",
        "the coordinator wipes the words of the dead (R15)", naive.flags_of_the_dead,
    ),
    Mutant(
        "V22", "messages of an older incarnation count", model("n2v1-kill"), "unsafe",
        "A report of the dead hyperthread is believed of the reborn one.",
        "incarnations in every message (I11)", naive.zombies,
    ),
    Mutant(
        "V23", "a new process starts in HOST", model("n2v1-kill"), "unsafe",
        "It is reborn beside a guest.",
        "it starts in PARKED, without a lease (I18)", naive.born_in_host,
    ),
    Mutant(
        "V24", "silent means dead", model("n2v1", timer=1), "unsafe",
        "The slow sibling was alive and is still in guest.",
        "only a confirmed death counts (I16)", naive.silent_is_dead,
    ),
    Mutant(
        "V25", "a coordinator that comes back takes everybody for parked", model("n2v1-coordinator"), "unsafe",
        "A lease outlived its coordinator, and a leave is granted beside it.",
        "it believes nothing until it is told (I19)", naive.amnesia,
    ),
    Mutant(
        "V25b", "a coordinator that comes back says so once", model("n2v1-coordinator-loss"), "starvation",
        "That was lost: what the hyperthread asks for again and again is meant for the dead one.",
        "whoever does not know the new coordinator is told again", naive.resync_said_once,
    ),
    Mutant(
        "V25c", "a coordinator that comes back waits without a time-out", model("n2v1-coordinator-loss"), "deadlock",
        "A guest that asks for nothing never hears of it, and stays unknown.",
        "the silent are fenced (I17)", naive.resync_waits_for_ever,
    ),
    Mutant(
        "V26", "no incarnation of the coordinator, which dies twice", model("n2v1", coordinator=2), "unsafe",
        "A lease that the first one gave is used when the third believes its holder parked.",
        "incarnations in every message (I11)", naive.no_epoch,
    ),
    Mutant(
        "V26b", "no incarnation of the coordinator, which dies once", model("n2v1-coordinator"), "passes",
        "Request numbers and whole state in each report are enough against one life's leftovers.",
        "-", naive.no_epoch,
    ),
    Mutant(
        "V26c", "a birth does not wait for the coordinator that comes back",
        model("n2i1-nmi-coordinator-kill"), "unsafe",
        "It was told that nobody lives there: its wipe takes the depth of a newborn that is in an NMI.",
        "the new coordinator wipes, then buries, then births", naive.born_before_the_wipe,
    ),
    Mutant(
        "V27", "a leave always overtakes an ask, three siblings", replace(model("n3v1"), overtakes_max=STARVES),
        "passes", "Here a leave needs a lease and a lease needs HOST empty, so visits to HOST cannot overlap for ever.",
        "-", naive.leaves_first,
    ),
    Mutant(
        "V27b", "a leave always overtakes an ask, two siblings", replace(model("n2v1"), overtakes_max=STARVES),
        "passes", "One sibling alone cannot keep HOST occupied.",
        "-", naive.leaves_first,
    ),
    Mutant(
        "V28", "the coordinator may read one peer for ever", replace(model("n2v1"), arrivals=Arrivals.ANY),
        "starvation", "The other peer's ask is never read.",
        "poll peers fairly (R12)", naive.nothing,
    ),
    Mutant(
        "V29", "a lease may be taken back before it is used", model("n2v1"), "starvation",
        "Every lease is kicked before its first instruction.",
        "a fresh lease is sticky (R13)", naive.not_sticky,
    ),
    Mutant(
        "V30", "every decision kicks again whoever is in the way", model("n2v1"), "passes",
        "Kicks merge; it is only noisy.",
        "-", kicks.kicks_again,
    ),
    Mutant(
        "V31", "policy `none`: nobody is told of a leave",
        replace(model("n2v1"), kick=Kick.BARE, rooms=Rooms.ALL), "unsafe", "The negative control: HOST beside a guest.",
        "a policy that kicks", naive.nothing,
    ),
    *HARDWARE,
    *MACHINE_CHECKS,
)  # fmt: skip

GUARANTEES_ONLY: Final = ("V17c", "V17d")  # waiting is not looked at


def found(mutant: Mutant) -> dict[str, Any]:
    """Search a variant, and return what became of it in plain values."""
    with planted(mutant):
        only = mutant.name in GUARANTEES_ONLY
        result = search(mutant.model, with_progress=not only, waiting=not only)
    v = result.violation
    assert result.complete or v is not None, f"{mutant.name}: the limit of the search was hit"
    row: dict[str, Any] = {"states": result.states, "verdict": "passes", "steps": 0, "broken": "", "sentence": ""}
    if v is None:
        return row
    waits = v.guarantee in ("L1", "L2", "L3")
    verdict = "unsafe" if not waits else "starvation" if v.cycle >= 0 else "deadlock"
    steps = v.cycle if v.cycle >= 0 else len(v.moves)
    return row | {"verdict": verdict, "steps": steps, "broken": v.guarantee, "sentence": v.sentence}
