"""The rows of the table of naive variants about the APIC's writes, meetings, flushes and external interrupts."""

from __future__ import annotations

from typing import Final

import explore_naive_hardware as naive
from explore_planting import Mutant

from asid.core.policy import make_policy
from asid.explore.models import build, of_policy
from asid.explore.parts import Budget

# Siblings may idle in HOST unheeded, but each VM has the core to itself.
IDLES: Final = of_policy(make_policy("kick-except-idle", "ack"), (1, 2), budget=Budget(nmi=1))

APIC_WRITES: Final = (
    Mutant(
        "V13", "an NMI's own IPI overwrites ICR2, `send`", build("n2v1-xapic-isolated-nmi-send-unfixed"), "unsafe",
        "The NMI hits between the two writes of a kick and sends itself an IPI; the kick goes to its own sender.",
        "handlers put ICR2 back and wait until the bus is idle (I14)", naive.nothing,
    ),
    Mutant(
        "V13b", "... with `stun` kicks", build("n2v1-xapic-isolated-nmi-stun-unfixed"), "unsafe",
        "As V13: the stun never reaches the sibling, which is in guest and stays there.",
        "handlers put ICR2 back and wait until the bus is idle (I14)", naive.nothing,
    ),
    Mutant(
        "V13c", "... with `ack` kicks", build("n2v1-xapic-isolated-nmi-unfixed"), "passes",
        "The gate kicks, and no NMI of the leaver comes between; the leaver itself writes no ICR.",
        "-", naive.nothing,
    ),
    Mutant(
        "V13d", "... and the NMI is handled in HOST", build("n2v1-xapic-nmi-send-unfixed"), "passes",
        "Such an NMI kicks every sibling itself, so the one kick that goes astray is not missed (two siblings).",
        "-", naive.nothing,
    ),
    Mutant(
        "V13e", "... with shorthand kicks", build("n2v1-shorthand-isolated-nmi-send-unfixed"), "passes",
        "\"All but self\" is in the ICR itself; ICR2 is not read.",
        "-", naive.nothing,
    ),
    Mutant(
        "V14", "into HOST before the ICR is idle", build("n2v1-xapic-send"), "unsafe",
        "The kick is on the bus for a while; the sibling runs on beside HOST with nothing pending.",
        "wait until the bus has delivered, then HOST (I6)", naive.host_before_idle,
    ),
    Mutant(
        "V14b", "... with shorthand kicks", build("n2v1-shorthand-send"), "unsafe",
        "As V14: one write instead of two, and the same bus.",
        "wait until the bus has delivered, then HOST (I6)", naive.host_before_idle,
    ),
)  # fmt: skip

HARDWARE: Final = (
    Mutant(
        "V32", "a dropped admission does not arrive at its meeting", build("n2v1-irq-rendezvous"), "deadlock",
        "An interrupt made it leave while its admission was on the way. The other waits for it before its first"
        " instruction, so that lease is sticky, and the leave waits for the lease.",
        "whoever drops an admission arrives all the same", naive.dropped_admissions_do_not_arrive,
    ),
    Mutant(
        "V32b", "... when nothing crosses an admission", build("n2v1-rendezvous"), "passes",
        "Only a kick, an interrupt or an unplug makes anybody drop one.",
        "-", naive.dropped_admissions_do_not_arrive,
    ),
    Mutant(
        "V33", "a rendezvous admits one at a time", build("n2v1-halts-rendezvous"), "passes",
        "Each meets those who have a lease and have arrived long ago, so nobody waits; but nobody starts together"
        " either: it is `ack`.",
        "-", naive.one_at_a_time,
    ),
    Mutant(
        "V33b", "nobody waits for the party", build("n2v1-nmi-rendezvous"), "passes",
        "The gate has every answer before it admits anybody; the meeting adds that they start together, and no safety.",
        "-", naive.nobody_waits_for_the_party,
    ),
    Mutant(
        "V33c", "everybody of the core comes to every meeting", build("n2v1-halts-rendezvous"), "deadlock",
        "One of the party is halted: it was never admitted, so it never arrives.",
        "the party is who is admitted, and who has a lease", naive.party_of_all,
    ),
    Mutant(
        "V33d", "... two VMs", build("n2v2-rendezvous"), "deadlock",
        "The other VM's vCPU is parked until this one's turn ends; it does not end, for it has not begun.",
        "the party is who is admitted, and who has a lease", naive.party_of_all,
    ),
    Mutant(
        "V34", "an NMI between the look and the entry is not followed by another look", build("n2v1-nmi-flush"),
        "unsafe", "What the handler loaded goes along into guest.",
        "look again after a handler", naive.no_second_look,
    ),
    Mutant(
        "V34b", "one flush an entry has to do, whatever hits after it", IDLES, "unsafe",
        "Where siblings are not heeded an entry flushes once; nobody asked for an NMI between that flush and the look.",
        "a handler earns another flush", naive.no_look_after_the_one_flush,
    ),
    Mutant(
        "V35", "the buffers are flushed at the admission, later looks do not ask, `send`", build("n2v1-send-flush"),
        "unsafe", "The lease outlives a visit to HOST, its own or a sibling's.",
        "each look before an entry asks the buffers", naive.flushed_at_admission_only,
    ),
    Mutant(
        "V35b", "... `ack`, with an NMI", build("n2v1-nmi-flush"), "unsafe",
        "The lease outlives a handler in HOST.",
        "each look before an entry asks the buffers", naive.flushed_at_admission_only,
    ),
    Mutant(
        "V35c", "... `ack`, without an NMI", build("n2v1-flush"), "passes",
        "HOST begins when no lease is left, and ends before the next.",
        "-", naive.flushed_at_admission_only,
    ),
    Mutant(
        "V35d", "... `stun`", build("n2v1-stun-flush"), "passes",
        "The visit itself ends with a flush, before anybody is let go on.",
        "-", naive.flushed_at_admission_only,
    ),
    Mutant(
        "V36", "a `stun` leaver unstuns, then flushes", build("n2v1-nmi-stun-flush"), "passes",
        "Each sibling looks before its entry, finds what is left, and flushes itself.",
        "-", naive.unstunned_before_the_flush,
    ),
    Mutant(
        "V36b", "... and looks do not ask", build("n2v1-stun-flush"), "unsafe",
        "The sibling is in guest before the leaver's flush. One of the two is needed.",
        "flush, then unstun; or each look asks", naive.stun_trusts_the_flush,
    ),
    Mutant(
        "V36c", "the flush comes before the switch back", build("n2v1-nmi-stun-flush"), "passes",
        "What is loaded between the flush and the switch is found by the next look: one flush more.",
        "-", naive.flushed_in_host,
    ),
    Mutant(
        "V37", "an interrupt in a fast exit's handler goes HOST without a leave", build("n2v1-irq"), "unsafe",
        "Its entry code switches the address space, and the siblings are in guest.",
        "one isolation exit in the code, whatever the cause", naive.irq_without_a_leave,
    ),
    Mutant(
        "V37b", "an interrupt of a parked hyperthread goes HOST without a leave", build("n2v1-irq"), "unsafe",
        "It has no lease to hand back, but its sibling has one: idle to HOST needs a kick, too. `nosmt` did this.",
        "one isolation exit in the code, whatever the cause", naive.idle_takes_irqs_in_host,
    ),
    Mutant(
        "V38", "an order to stop that reaches a parked leaver is a mistake of the gate", build("n2v1-irq-unplug"),
        "unsafe", "The gate had not heard of the leave. The cell rejects, and the process dies of it.",
        "what crosses is obeyed (stop) or answered by the next report (detach)", naive.parked_leaver_rejects,
    ),
    Mutant(
        "V38b", "... and one to detach", build("n2v1-irq-hotplug"), "unsafe",
        "As V38.",
        "what crosses is obeyed (stop) or answered by the next report (detach)", naive.parked_leaver_rejects,
    ),
    Mutant(
        "V38c", "an order to stop that reaches a parked leaver is forgotten", build("n2v1-irq-unplug"), "passes",
        "Nobody waits for it in the protocol; its vCPU is detached by the next report. Whoever unplugs waits in vain.",
        "-", naive.parked_leaver_stops_never,
    ),
    Mutant(
        "V38d", "an order to detach that reaches a parked leaver is obeyed at once", build("n2v1-irq-hotplug"),
        "passes", "The leave is dropped with the vCPU, and its grant matches no request any more.",
        "-", naive.detach_obeyed_while_leaving,
    ),
    Mutant(
        "V39", "a leaver's fresh lease stays sticky", build("n2v1-irq"), "deadlock",
        "An interrupt takes it out of guest before its first instruction. Another's leave waits for that instruction,"
        " and it waits for the other's lease.",
        "who wants to leave runs nothing under its lease", naive.fresh_leaver,
    ),
)  # fmt: skip
