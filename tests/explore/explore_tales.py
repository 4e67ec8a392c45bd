"""Counterexamples of real configurations, told in docs/counterexamples.md: what each shows, and why it matters.

None needs a plant. A tale names what must have happened on the way, in order; the search goes from one to the next by
the shortest way, and the last must break the guarantee.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from asid.core.apic import Apic
from asid.core.events import Mode
from asid.core.guarantees import GUARANTEES, CoreView
from asid.core.hyperthread import Phase
from asid.core.policy import make_policy
from asid.explore import schedule
from asid.explore.models import of_policy
from asid.explore.parts import Budget, Model
from asid.explore.schedule import Schedule
from asid.explore.search import Violation
from asid.explore.world import World

Sees = Callable[[CoreView], bool]


class Tale(NamedTuple):
    """One counterexample. name: of its file; way: what must be seen on the way; cure: what closes it."""

    name: str
    title: str
    setup: str  # policy, kick and what else the machine was told
    model: Model
    guarantee: str
    way: tuple[Sees, ...]
    what: str
    why: str
    cure: str


def under(policy: str, kick: str = "ack", vms: tuple[int, ...] = (1, 1), **more: Any) -> Model:
    return of_policy(make_policy(policy, kick), vms, **{"halts": False, **more})


def modes(core: CoreView) -> tuple[Mode, ...]:
    return tuple(Mode.OFFLINE if h is None else h.mode for h in core.hyperthreads)


def in_host(core: CoreView) -> bool:
    return Mode.HOST in modes(core)


def breaks(guarantee: str, sees: Sees = lambda core: True) -> Sees:
    return lambda core: sees(core) and GUARANTEES[guarantee](core) is not None


def nobody_in_host(core: CoreView) -> bool:
    return Mode.HOST not in modes(core)


def all_in_guest(core: CoreView) -> bool:
    return all(h is not None and h.mode is Mode.GUEST and h.used for h in core.hyperthreads)


def one_sleeps(core: CoreView) -> bool:
    return any(h is not None and h.phase is Phase.HALTED for h in core.hyperthreads)


def one_waits_its_turn(core: CoreView) -> bool:
    """h0 runs instructions, h1 asks and is not let in."""
    h0, h1 = core.hyperthreads
    return h0 is not None and h1 is not None and h0.mode is Mode.GUEST and h0.used and h1.phase is Phase.ASKING


TALES: Final = (
    Tale(
        "none-beside", "Policy `none`: a guest runs beside the kernel", "policy `none`",
        under("none"), "G2", (breaks("G2"),),
        "h0 exits for something that the kernel has to do. Nobody tells h1, which is let into guest meanwhile, or was"
        " there all the time.",
        "What the kernel touches passes through buffers that both hyperthreads share, and the guest may sample them"
        " meanwhile: L1TF, MDS, and what came after. It needs two hyperthreads and a full exit, nothing else: the"
        " normal case of every host with SMT and no isolation.",
        "Kick the siblings before the full address space is entered: every policy but `none` and `core-sched`.",
    ),
    Tale(
        "none-residual", "Policy `none`: a guest goes back in over what the kernel left", "policy `none`",
        under("none"), "G9", (in_host, breaks("G9", nobody_in_host)),
        "h0 exits, the kernel works, h0 goes back into guest. Nobody is in HOST any more, no sibling takes any part,"
        " and nothing was flushed.",
        "The leak needs no SMT: L1D and fill buffers still hold what the kernel loaded. Turning SMT off does not help.",
        "Flush before the entry when somebody worked in HOST since the last flush: every policy but `none`.",
    ),
    Tale(
        "none-two-vms", "Policy `none`: two tenants on one core", "policy `none`, two VMs",
        under("none", vms=(1, 2)), "G3", (breaks("G3", lambda core: set(modes(core)) == {Mode.GUEST}),),
        "Each sibling runs another VM's vCPU, and both are in guest.",
        "One tenant samples what the other loads, and the kernel is not even involved, so no isolation of the kernel's"
        " address space can help.",
        "Rooms: one VM at a time has the core (core scheduling), which every policy but `none` has.",
    ),
    Tale(
        "core-sched-beside", "Policy `core-sched`: the kernel is not a tenant", "policy `core-sched`",
        under("core-sched"), "G2", (all_in_guest, breaks("G2")),
        "Both siblings run the same VM, as core scheduling wants it. h0 exits to the kernel, and h1 runs on.",
        "Linux says so itself (core-scheduling.rst, \"Limitations\"): core scheduling keeps tenants apart and does not"
        " protect the kernel from a sibling in guest. With one trusting tenant it is enough, with a hostile one it is"
        " not.",
        "Kick on full exits (`asi`), or on all (`kick-every-exit`).",
    ),
    Tale(
        "core-sched-late", "Policy `core-sched`: a flush at entry comes too early", "policy `core-sched`",
        under("core-sched", halts=True), "G9", (in_host, breaks("G9", nobody_in_host)),
        "h1 flushes while h0 works in HOST, looks, finds the buffers clean and is about to enter. h0 is done with its"
        " work. Now h1 enters: nobody is in HOST, the flush was made, and what h0 loaded after it is there.",
        "A flush at entry is of use only while nobody can load anything between it and the entry. On a core whose"
        " siblings are not kept out of each other's way it is a matter of luck.",
        "Kicks, so that the look is repeated: who goes to HOST sets the pending bit, or waits for the lease.",
    ),
    Tale(
        "core-sched-parked", "Policy `core-sched`: an interrupt of the one that waits for its turn",
        "policy `core-sched`, two VMs, one external interrupt",
        under("core-sched", vms=(1, 2), budget=Budget(irq=1)), "G2", (one_waits_its_turn, breaks("G2")),
        "Two VMs take turns, so h1 is parked while h0 runs. An interrupt is delivered to h1; its handler runs in HOST,"
        " beside the guest.",
        "Forced idle is not \"nothing runs\": an idle sibling takes interrupts, and softirqs and timers with them. Who"
        " steers interrupts to such a sibling chooses what is loaded beside the guest.",
        "Idle to HOST is a leave like any other and kicks the guest beside it: `asi`, `kick-every-exit`, `nosmt`.",
    ),
    Tale(
        "idle-beside", "Policy `kick-except-idle`: the way into idle is in the kernel, too",
        "policy `kick-except-idle`, kick `ack`",
        under("kick-except-idle", halts=True), "G2", (all_in_guest, breaks("G2")),
        "The guest on h0 executes HLT. That exit kicks nobody, so h1 runs on while h0 is in HOST.",
        "RFC comment 14 left idle out in an experiment, and called it a big enough win. What the kernel does on the way"
        " into idle is seldom secret, and nobody checks.",
        "Handle HLT in the isolated address space (`asi`), or kick there, too (`kick-every-exit`).",
    ),
    Tale(
        "idle-left-behind", "Policy `kick-except-idle`: what is left behind on the way into idle",
        "policy `kick-except-idle`, kick `ack`",
        under("kick-except-idle", halts=True), "G9", (all_in_guest, in_host, breaks("G9", one_sleeps)),
        "As before, but h0 sleeps by now. h1 was in guest all the time and made no entry, so nothing was flushed: what"
        " the way into idle loaded is there to be read, for as long as h1 makes no exit.",
        "The exposure does not end with the visit to HOST. A guest that polls keeps it open as long as it likes.",
        "A kick is what makes the sibling look again; without one no flush reaches it.",
    ),
    Tale(
        "xapic-send", "xAPIC: an NMI leads a kick astray", "policy `asi`, kick `send`, xAPIC, `icr_fix = false`,"
        " `nmi = \"isolated\"`, one NMI",
        under("asi", "send", apic=Apic.XAPIC, icr_fix=False, nmi_isolated=True, budget=Budget(nmi=1)), "G2",
        (breaks("G2"),),
        "h0 has written h1 into ICR2 and not the command yet. An NMI hits; its handler sends itself an IPI and leaves"
        " its own number in ICR2. The command of the interrupted kick goes there. h0 waits until the bus is idle, as it"
        " should, and goes to HOST; h1 was never kicked.",
        "RFC comment 10 warns of it. It takes one NMI between two writes, so it is rare, silent, and on a busy host"
        " with perf certain in the end. Nobody waits for an answer, so nobody notices.",
        "The handler puts ICR2 back and waits for an idle bus (`icr_fix`), or kicks go by shorthand (as Linux does in"
        " `arch_irq_work_raise`) or x2APIC.",
    ),
    Tale(
        "xapic-stun", "xAPIC: a stun that never arrives", "policy `asi-stun`, xAPIC, `icr_fix = false`,"
        " `nmi = \"isolated\"`, one NMI",
        under("asi-stun", "stun", apic=Apic.XAPIC, icr_fix=False, nmi_isolated=True, budget=Budget(nmi=1)), "G2",
        (breaks("G2"),),
        "The same with stun kicks. The stun is a flag that is looked at before every entry, and it is up; but h1 has"
        " looked already, and the IPI that would take it out of guest again goes to h0.",
        "A stun protects every later entry and not the guest that is running. The flag alone is no kick.",
        "As before: `icr_fix`, a shorthand, or x2APIC.",
    ),
)  # fmt: skip


def searched(tale: Tale) -> Schedule:
    """Return the schedule of a tale: the shortest way to each thing that is to be seen, one after the other."""
    w = World(tale.model)
    here, moves, worlds = w.initial(), [], []
    for sees in tale.way:
        for move, after in way_to(w, here, sees):
            moves.append(move)
            worlds.append(after)
            here = after
    sentence = GUARANTEES[tale.guarantee](w.view(here))
    assert sentence is not None, f"{tale.name}: the last thing that is seen breaks nothing"
    return schedule.scheduled(w, Violation(tale.guarantee, sentence, tuple(moves), tuple(worlds)))


def way_to(w: World, start: int, sees: Sees) -> list[tuple[int, int]]:
    """Return the shortest way to a world in which something is seen, as steps and the worlds after them."""
    back: dict[int, tuple[int, int]] = {start: (-1, -1)}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if sees(w.view(here)):
            way = []
            while here != start:
                before, move = back[here]
                way.append((move, here))
                here = before
            return way[::-1]
        for move, after in w.successors(here):
            if after not in back:
                back[after] = (here, move)
                queue.append(after)
    raise AssertionError("it is nowhere to be seen")
