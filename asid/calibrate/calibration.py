"""The table of costs beside what this host takes: which rows could be measured, how, and the [costs] that come of it.

Rule 1. A row is measured or it says why not; nothing is estimated.
Rule 2. Each probe is a process with a deadline. It is killed then, and its rows were not measured.
Rule 3. What a figure has in it beside its step is said with it: no program sees a step alone.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from asid.calibrate.probes import PROBES, quartile
from asid.config_costs import COST_MAX_NS
from asid.interpreter import words_of
from asid.sim.costs import BY_NAME, TABLE, Cost
from asid.units import parse_cpulist

DEADLINE_S: Final = 20.0
BURIED_S: Final = 2.0
SIBLINGS: Final = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
NEEDS_TWO: Final = ("ipi", "message")
NEEDS_KVM: Final = ("vm_exit", "cr3_write", "user_exit")

# Row -> the probe that measures it, by how much its figure is divided, and what the figure is.
ROWS: Final = {
    "vm_exit": ("vm_exit", 2, "half of a CPUID in guest, with what KVM does for it"),
    "vm_entry": ("vm_exit", 2, "as vm_exit"),
    "cr3_write": ("cr3_write", 1, "written in guest"),
    "ipi_delivery": ("ipi", 1, "membarrier: sent, taken, and the sender told; ipi_send is in it"),
    "message": ("message", 1, "half of a round trip of a word, by machine code"),
    "schedule": ("schedule", 1, "one of two threads sleeps in a pipe, the other wakes: two calls and a switch"),
}
UNMEASURED: Final = {
    "l1d_flush": "IA32_FLUSH_CMD is written in ring 0 alone",
    "ipi_send": "the ICR is written in ring 0 alone; within ipi_delivery",
    "nmi": "no program can send one and time its handler",
    "mce": "no program can raise one and go on",
}
# What has no row: a probe, and what it says.
CONTEXT: Final = {
    "system_call": "getpid, by machine code",
    "signal_to_self": "a call, a handler of one instruction, the way back",
    "user_exit": "an OUT in guest to KVM_RUN's return and in again, with Python between",
}
assert set(ROWS) | set(UNMEASURED) == set(BY_NAME), "a cost that is neither measured nor said to be unmeasurable"
assert {probe for probe, _, _ in ROWS.values()} | set(CONTEXT) == set(PROBES), "a probe that nobody asks"

OnProbe = Callable[[str, int, int], None]


class Measured(NamedTuple):
    """One figure. ns: the lower quartile and the median of the samples; None where there is none, and how says why."""

    name: str
    ns: float | None
    median_ns: float | None
    how: str

    @property
    def row(self) -> Cost | None:
        return BY_NAME.get(self.name)

    @property
    def word(self) -> str:
        """Where the figure is beside the row: within, below or above; "" where one of them is not."""
        if self.ns is None or self.row is None:
            return ""
        return "below" if self.ns < self.row.low else "above" if self.ns > self.row.high else "within"

    def as_map(self) -> dict[str, Any]:
        row = self.row
        figures = {level: getattr(row, level) if row is not None else None for level in ("low", "typical", "high")}
        return {"name": self.name, "ns": self.ns, "median_ns": self.median_ns, **figures, "is": self.word,
                "how": self.how}  # fmt: skip


class Pair(NamedTuple):
    """The CPUs that stand for two siblings. words: whether they are."""

    cpu: int
    other: int | None
    words: str


def pair_of(usable: Sequence[int], siblings: Callable[[int], str]) -> Pair:
    """Return two siblings of one core among the usable CPUs, else two CPUs, else one. siblings(cpu): a cpulist."""
    for cpu in sorted(usable):
        beside = [other for other in parse_cpulist(siblings(cpu)) if other != cpu and other in usable]
        if beside:
            return Pair(cpu, beside[0], f"CPUs {cpu} and {beside[0]}, siblings of one core")
    first, *others = sorted(usable)
    if not others:
        return Pair(first, None, f"CPU {first} alone")
    words = f"CPUs {first} and {others[0]}, which are no siblings: those would be nearer"
    return Pair(first, others[0], words)


def host_pair() -> Pair:
    """Return the pair of this host."""

    def siblings(cpu: int) -> str:
        path = Path(SIBLINGS.format(cpu))
        return path.read_text(encoding="utf-8").strip() if path.exists() else str(cpu)

    return pair_of(sorted(os.sched_getaffinity(0)), siblings)


def calibrate(on_probe: OnProbe, pair: Pair, *, deadline_s: float = DEADLINE_S) -> list[Measured]:
    """Return every row of the table, and then what has none. on_probe(name, done, total) is called before each."""
    answers = {}
    for done, probe in enumerate(PROBES):
        on_probe(probe, done, len(PROBES))
        answers[probe] = ask(probe, pair, deadline_s)
    found = []
    for row in TABLE:
        if row.name in ROWS:
            probe, divisor, what = ROWS[row.name]
            found.append(_measured(row.name, answers[probe], divisor, what))
        else:
            found.append(Measured(row.name, None, None, UNMEASURED[row.name]))
    return found + [_measured(name, answers[name], 1, what) for name, what in CONTEXT.items()]


def ask(probe: str, pair: Pair, deadline_s: float) -> dict[str, Any]:
    """Return what a probe said, `samples` and `notes`, or {"refused": why}."""
    if probe in NEEDS_TWO and pair.other is None:
        return {"refused": "it takes two CPUs"}
    if probe in NEEDS_KVM and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return {"refused": "/dev/kvm is " + ("not yours to open" if Path("/dev/kvm").exists() else "absent")}
    other = pair.cpu if pair.other is None else pair.other
    words = [*words_of("asid.calibrate.probes"), probe, str(pair.cpu), str(other)]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said, errors = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()  # SIGKILL ends loops and KVM_RUN alike
            return {"refused": f"no figure within {deadline_s:g} s"}
    if process.returncode:
        last = (errors.strip().splitlines() or ["nothing said"])[-1]
        return {"refused": f"the probe ended with {process.returncode}: {last[:120]}"}
    answer: dict[str, Any] = json.loads(said)
    return answer


def _measured(name: str, answer: dict[str, Any], divisor: int, what: str) -> Measured:
    if "refused" in answer:
        return Measured(name, None, None, answer["refused"])
    samples = sorted(answer["samples"])
    ns, median_ns = quartile(samples) / divisor, samples[len(samples) // 2] / divisor
    how = "; ".join([what, *answer["notes"]])
    if ns <= 0:
        return Measured(name, None, None, f"less than its measuring takes ({ns:,.1f} ns): {how}")
    return Measured(name, round(ns, 1), round(median_ns, 1), how)


def costs_text(found: Sequence[Measured], heading: str) -> str:
    """Return the [costs] of what was measured, as TOML. heading: a line of comment."""
    lines = [f"# {heading}", "[costs]"]
    for each in found:
        if each.row is None:
            continue
        if each.ns is None:
            lines.append(f"# {each.name}: not measured: {each.how}")
        elif each.ns > COST_MAX_NS:
            lines.append(f"# {each.name}: {each.ns:,.0f} ns is no cost any more")
        else:
            lines.append(f'{each.name} = "{max(1, round(each.ns))}ns"  # {each.how}')
    return "\n".join(lines) + "\n"
