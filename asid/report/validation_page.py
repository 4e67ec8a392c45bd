"""docs/validation.md: what was published, beside what the simulator and the live machine give.

Rule 1. A figure is from docs/validation/figures.json, which `python -m asid.validating` measures; none is written here.
Rule 2. Whether the simulator agrees is decided by the figures too: each claim has a test of its own.
Rule 3. Where it does not, or for another reason than the published one, the claim says so.

`make docs` writes the page; a test fails when it is not what this returns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import Any, Final, NamedTuple

from asid.agreement import AGREEMENTS, COUNTS
from asid.validating import BY_NAME, DIRECTORY

FIGURES: Final = "figures.json"
EVERY, EXCEPT, ASI, NOSMT = "kick-every-exit/ack", "kick-except-idle/ack", "asi/ack", "nosmt"
SEND: Final = "kick-every-exit/send"
FLUSH: Final = "core-sched"
WIDTH: Final = 116
YES, IN_PART, NO = "yes", "in part", "no"


class Row(NamedTuple):
    """The figures of one variant. [0]: with typical costs, then low and high ones."""

    exits: list[float]
    kicks: float
    kicks_for_halts: float
    full: float
    leave_ns: list[int]
    vs_none: list[float]

    @property
    def loss(self) -> float:
        """The part of none's exits a second that it has less."""
        return 1 - self.vs_none[0]

    @property
    def loss_most(self) -> float:
        return 1 - self.vs_none[1]

    @property
    def cost(self) -> str:
        """`1.0 % [0.3, 2.8]`: fewer exits a second than none, typical, and from the least to the most."""
        typical, low, high = (100 * (1 - ratio) for ratio in self.vs_none)
        return f"{_plain(typical)} % [{_plain(high)}, {_plain(low)}]"


class Figures:
    """What was measured."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._rows = document["assessed"]
        self.agreed = document["agreed"]

    def row(self, case: str, label: str) -> Row:
        found = self._rows[case][label]
        return Row(
            found["exits_per_s"], found["kicks_per_s"], found["kicks_for_halts_per_s"], found["full_percent"],
            found["leave_p50_ns"], found["vs_none"],
        )  # fmt: skip

    def of_kicks(self, case: str) -> float:
        """Return the kicks of asi as a part of those of kick-every-exit."""
        return self.row(case, ASI).kicks / self.row(case, EVERY).kicks


def _plain(percent: float) -> str:
    """One digit, and no sign before a nought."""
    return f"{round(percent, 1) + 0.0:.1f}"


def _ns_of_exit(figures: Figures) -> list[float]:
    return [1e9 / rate for rate in figures.row("cpuid", "none").exits]


class Claim(NamedTuple):
    """Something published. simulated and agrees are of the figures; why: in which way, and where not."""

    title: str
    published: str
    source: str
    cases: tuple[str, ...]
    simulated: Callable[[Figures], str]
    agrees: Callable[[Figures], str]
    why: str
    command: str = ""  # instead of those of its cases


def _exit(figures: Figures) -> str:
    typical, low, high = _ns_of_exit(figures)
    return f"{typical:,.0f} ns [{low:,.0f}, {high:,.0f}]"


def _exit_agrees(figures: Figures) -> str:
    typical, _, high = _ns_of_exit(figures)
    return YES if high <= 500 else IN_PART if typical <= 505 else NO


def _leave(figures: Figures) -> str:
    typical, low, high = figures.row("server", ASI).leave_ns
    return f"{typical:,} ns [{low:,}, {high:,}] from wanting the full address space to having it (median)"


def _every(figures: Figures) -> str:
    names = {"server": "server", "server-polling": "polling server", "spinning": "spinning"}
    return "; ".join(f"{shown} {figures.row(case, EVERY).cost}" for case, shown in names.items())


def _every_agrees(figures: Figures) -> str:
    hurts = [figures.row(case, EVERY).loss > 0.1 for case in ("server", "server-polling", "spinning")]
    return YES if all(hurts) else IN_PART if any(hurts) else NO


def _send(figures: Figures) -> str:
    pairs = [(case, figures.row(case, SEND).cost, figures.row(case, EVERY).cost) for case in ("server", "spinning")]
    return "; ".join(f"{case} {sent}, and with an answer {acked}" for case, sent, acked in pairs)


def _send_agrees(figures: Figures) -> str:
    cheaper = [figures.row(case, SEND).loss < figures.row(case, EVERY).loss for case in ("server", "spinning")]
    return YES if all(cheaper) else NO


def _idle(figures: Figures) -> str:
    said = []
    for case, shown in (("server-polling", "polling server"), ("server", "server")):
        every, but = figures.row(case, EVERY), figures.row(case, EXCEPT)
        said.append(f"{shown} {every.cost} to {but.cost}, {every.kicks:,.0f} kicks/s to {but.kicks:,.0f}")
    return "; ".join(said)


def _idle_agrees(figures: Figures) -> str:
    wins = [
        figures.row(case, EVERY).loss - figures.row(case, EXCEPT).loss > 0.1 for case in ("server-polling", "server")
    ]
    return YES if all(wins) else IN_PART if any(wins) else NO


def _rare(figures: Figures) -> str:
    row = figures.row("server", ASI)
    parts = [f"{case} {figures.of_kicks(case):.0%}" for case in ("server", "server-polling", "spinning")]
    return f"of kick-every-exit's kicks: {', '.join(parts)}; server {row.kicks_for_halts / row.kicks:.0%} for halts"


def _rare_agrees(figures: Figures) -> str:
    rare = [figures.of_kicks(case) < 0.1 for case in ("server", "server-polling", "spinning")]
    return YES if all(rare) else IN_PART if any(rare) else NO


def _share(figures: Figures) -> str:
    stays, polled = (100 - figures.row(case, ASI).full for case in ("server", "server-polling"))
    return f"{stays:.1f} %; polling server {polled:.1f} %"


def _asi(figures: Figures) -> str:
    return "; ".join(f"{case} {figures.row(case, ASI).cost}" for case in ("server", "server-polling", "spinning"))


def _asi_agrees(figures: Figures) -> str:
    server, spinning = figures.row("server", ASI), figures.row("spinning", ASI)
    common = server.loss < 0.01 and server.loss_most < 0.05
    return YES if common and spinning.loss_most < 0.05 else IN_PART if common else NO


def _flush(figures: Figures) -> str:
    return "; ".join(f"{case} {figures.row(case, FLUSH).cost}" for case in ("alone", "alone-spinning"))


def _flush_agrees(figures: Figures) -> str:
    ends = (figures.row("alone", FLUSH).loss, figures.row("alone-spinning", FLUSH).loss)
    return YES if ends[0] >= 0.01 and ends[1] <= 0.5 else IN_PART if ends[1] >= 0.01 else NO


def _nosmt(figures: Figures) -> str:
    pairs = [(case, figures.row(case, NOSMT).cost, figures.row(case, ASI).cost) for case in ("server", "spinning")]
    return "; ".join(f"{case} {without}, asi {asi}" for case, without, asi in pairs)


def _nosmt_agrees(figures: Figures) -> str:
    better = [figures.row(case, ASI).loss < figures.row(case, NOSMT).loss for case in ("server", "spinning")]
    return YES if all(better) else IN_PART if any(better) else NO


CLAIMS: Final = (
    Claim(
        "An exit and the entry after it",
        "below 500 ns: 100 CPUIDs in less than 50 us",
        "kvm-unit-tests, Bonzini",
        ("cpuid",),
        _exit,
        _exit_agrees,
        "A second over the exits of `none` in a second. An input more than a result: the typical cost of exit and "
        "entry is set to that bound, and two nanoseconds here are the guest's own. The high column is that of older "
        "machines, and beyond it.",
    ),
    Claim(
        "A kick",
        "an IPI: 1,243 ns until its handler runs, 1,791 ns for a call that waits for it",
        "ipi_benchmark",
        ("server",),
        _leave,
        lambda figures: IN_PART if figures.row("server", ASI).leave_ns[0] > 1_791 else NO,
        "The IPI is an input. What asid adds is the protocol around it: the way out of guest of both, three words "
        "between siblings, the switch. Nobody has published a figure for the whole, so only the part can be compared.",
        "asid run docs/validation/server.toml --engine sim --duration 200ms --json | jq .figures.leaves.p50_ns",
    ),
    Claim(
        "To kick at every exit hurts",
        "significantly, of guests with emulated or paravirtual devices; dear even when nobody waits (no figures)",
        "RFC, cover letter; comments 4, 9, 11 and 14",
        ("server", "server-polling", "spinning"),
        _every,
        _every_agrees,
        "It does where exits are many, or where a handler is long: a host that polls while its guest halts holds the "
        "sibling all that time. At the server's 3,650 exits a second and vCPU it hardly does, which the thread does "
        "not say. Two things are missing here that real machines pay for: cold caches and TLBs after a kick, and the "
        "locks and schedulers of a whole host; and the guests of the thread's experiment are unknown.",
    ),
    Claim(
        "To send a kick is cheaper than to wait for its answer",
        "far cheaper than to synchronize, and dear all the same (no figures)",
        "RFC thread, comments 9 to 11",
        ("server", "spinning"),
        _send,
        _send_agrees,
        "In order, and for the reason given there. With `send` a sibling is still in guest for the time of an IPI: "
        "`EXPOSED` in the table of the command.",
    ),
    Claim(
        "Not to kick for idle exits makes the difference",
        "that alone makes kicks at all other exits bearable (no figures)",
        "RFC thread, comment 14",
        ("server-polling", "server"),
        _idle,
        _idle_agrees,
        "About half of it where a halt is waited for in the host, which is how the sibling came to be held there. "
        "The rest is the gate: whoever was kicked for another exit waits until the poll is over (GATE P99), for "
        "nobody enters guest beside HOST. Where a halted vCPU is scheduled out at once, asid parks it: it holds "
        "nobody, and what is saved are the kicks alone.",
    ),
    Claim(
        "With address space isolation kicks are rare",
        "hoped for: nearly all handlers do without the full address space",
        "RFC thread, comments 4 and 5",
        ("server", "server-polling", "spinning"),
        _rare,
        _rare_agrees,
        "Rare beside an exit, not in themselves. A halt that is scheduled out leaves the isolated address space, "
        "since the scheduler touches other tasks; that is most of the server's kicks, and polling saves most of "
        "those. A PAUSE that yields to another task is most of the spinning guest's.",
    ),
    Claim(
        "The share of exits that stay isolated",
        "about 70 % (derived from the mix of bcc's example; none is published)",
        "bcc, tools/kvmexit_example.txt",
        ("server", "server-polling"),
        _share,
        lambda figures: YES if abs(100 - figures.row("server", ASI).full - 70) < 5 else NO,
        "The mix is the same, so this is about the mapping: which exits stay is computed from what handlers touch and "
        "what is mapped, and comes to the same split, with HLT outside and MSR_WRITE inside.",
    ),
    Claim(
        "What isolation costs a workload",
        "below 5 % on all end-to-end metrics, below 1 % commonly",
        "ASI 2024, cover letter (Google, KVM only)",
        ("server", "server-polling", "spinning"),
        _asi,
        _asi_agrees,
        "Exits a second are no end-to-end metric: who does other things than to exit notices less. The spinning "
        "guest, half a million exits a second, is beyond the published range, and nobody runs one for its throughput.",
    ),
    Claim(
        "An L1D flush at each entry",
        "1 % to 50 %",
        "Linux, l1tf.rst",
        ("alone", "alone-spinning"),
        _flush,
        _flush_agrees,
        "One vCPU on a core of its own, so that the flush is all that a policy costs. The server is below the range: "
        "what the guest pays afterwards to fill its cache again is in none of the figures that the row is from. The "
        "spinning guest is within it with typical and low costs, and above it with high ones.",
    ),
    Claim(
        "To do without SMT",
        "out of the question for a public cloud (no figures)",
        "RFC, cover letter",
        ("server", "spinning"),
        _nosmt,
        _nosmt_agrees,
        "asi is cheaper in both. How much a core gains by two siblings is not in the simulator: both run at the speed "
        "of one alone, so what `nosmt` loses is the most that it can lose.",
    ),
)

INTRODUCTION: Final = """\
# Validation

<!-- Generated by `make docs` from validation/figures.json; change asid/report/validation_page.py, not this. -->

What was published about kicks and address space isolation, beside what asid gives for it. `make validation`
measures all of it anew, in some minutes. The simulated figures are the same on every host; the live ones at the end
are of one busy host with two CPUs.

A cost is the part of `none`'s exits a second that a policy has less, with typical costs, and in brackets from the
least to the most with low, typical and high ones (`costs.md`). Some tenths are noise: the guests of two policies
halt at other times. The guests: a *server*, with the exits of bcc's kvmexit example and its rate; the same one on a
host that *polls* for the end of a halt; and a *spinning* one with the exits and the rate of SystemTap's example.
Their files say what had to be assumed. *Agrees* is decided by the figures, not by us.
"""

NOT_COMPARED: Final = """\
## What is compared with nothing

* Builds of a kernel, native (+7.6 %) and in guest (+5.8 %), and random reads of a tmpfs (-13.1 %, and -70 % with
  the predictors flushed at each exit; ASI, January and August 2025): most of that is a flush of branch predictors
  and the page cache's way through a restricted address space. asid has neither files nor user tasks.
* Redis below 5 % (ASI 2024): no mix of its exits was published.
* Exits of nested guests (13,000 to 47,000 cycles in 2019): a table of costs can say so (`[costs]`), none does.
* A full rendezvous of siblings, an NMI, a context switch, an L1D flush as measured: no figure was found to compare
  with.
"""

LIVE: Final = """\
## Live beside simulated

`pytest tests/live/test_live_beside_sim.py` runs the same configuration for five seconds in both engines, at rates
that a busy host keeps up with. Each vCPU has to leave for the same exits in the same order, with the same object
missed, for as far as both get: a seed decides what guests do. Counts in the same time are not equal, and are
bounded:

* Live costs are Python's and the scheduler's: a leave takes tenths of a millisecond, not two microseconds, and what
  that takes is not there for the guest. So exits and leaves are fewer, by as much as the host is busy.
* A live vCPU's clock is wall time and goes on while it is parked; a simulated guest's stands still. With two VMs
  that take turns a live guest may have had up to twice as many exits as a simulated one.
* Kicks are counted a leave, since how many siblings are in guest when one leaves is chance in both. With two VMs
  the end of a turn kicks too, and comes with the clock.
"""


def page(figures: Figures) -> str:
    """Return the page."""
    rows = [
        f"| {number} | {claim.title} | {claim.published} | {claim.source} | {claim.simulated(figures)} |"
        f" {claim.agrees(figures)} |"
        for number, claim in enumerate(CLAIMS, start=1)
    ]
    table = ["| | what | published | where | simulated | agrees |", "|---|---|---|---|---|---|", *rows]
    return "\n".join([INTRODUCTION, *table, "", *_details(), NOT_COMPARED, LIVE, *_agreements(figures)]) + "\n"


def _details() -> list[str]:
    lines = []
    for number, claim in enumerate(CLAIMS, start=1):
        commands = [claim.command] if claim.command else [BY_NAME[case].command for case in claim.cases]
        lines += [f"## {number}. {claim.title}", "", *wrap(claim.why, WIDTH), "", "```", *commands, "```", ""]
    return lines


def _agreements(figures: Figures) -> list[str]:
    lines = ["| configuration | of | live | simulated | ratio | bounds |", "|---|---|---|---|---|---|"]
    for agreement in AGREEMENTS:
        found = figures.agreed[agreement.name]
        for name in COUNTS:
            low, high = agreement.bounds[name]
            shown = "kicks (ratio: a leave)" if name == "kicks" else name
            lines.append(
                f"| {agreement.file} | {shown} | {found['live'][name]} | {found['sim'][name]} |"
                f" {found['ratios'][name]:.2f} | {low:g} to {high:g} |"
            )
    return lines


def read_figures(root: Path) -> Figures:
    """Return what was measured. root: of the project."""
    return Figures(json.loads((root / DIRECTORY / FIGURES).read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.stdout.write(page(read_figures(Path())))
