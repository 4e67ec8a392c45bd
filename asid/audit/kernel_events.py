"""What KVM itself told of a run with real guests, beside what its hyperthreads reported: figures, and no guarantee.

The records `kvm.recording` and `kvm.events` are the kernel's word for what the records `exit` are the hyperthreads'.
An exit that KVM handed to userspace is told by both, so their numbers agree but for what was under way (the last exit
of each life of a hyperthread) and exits that a client injected, of which KVM knows nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asid.audit.finding import name_of
from asid.core.record import Record

if TYPE_CHECKING:
    from asid.audit.history import History

EXIT = "kvm_exit"
USERSPACE_EXIT = "kvm_userspace_exit"

# KVM's reason for a return to userspace, and under which the hyperthread reports it (see docs/kvm.md). Others, a signal
# most of all, are no exit of the guest's.
REPORTED_AS = {
    "KVM_EXIT_IO": ("IO_INSTRUCTION", "io"),
    "KVM_EXIT_HLT": ("HLT", "hlt"),
    "KVM_EXIT_MMIO": ("EPT_MISCONFIG", "npf"),
}
HANDED_OVER = frozenset(name for names in REPORTED_AS.values() for name in names)


class KernelEvents:
    """Sums over the run. `recorded`: whether anything was; None for a run that did not try to."""

    def __init__(self) -> None:
        self.recorded: bool | None = None
        self.whole = True  # as far as anybody said
        self.why = ""
        self.lost = 0
        self.text_cut = ""
        self.over = False
        self._sums: dict[tuple[str, str, str], list[int]] = {}  # (of, event, reason) -> [n, ended, kept, sum_ns]
        self._reported: dict[tuple[int, int], int] = {}  # by core and ht: exits as handed over

    def on_recording(self, record: Record) -> None:
        data = record.data
        self.recorded = self.recorded or data["state"] != "off"
        if "why" in data:
            self.why, self.whole = data["why"], False
        self.lost += data.get("lost", 0)
        self.text_cut = data.get("cut", "")
        self.over = data["state"] == "over"

    def on_events(self, record: Record) -> None:
        data = record.data
        sums = self._sums.setdefault((data["of"], data["event"], data["reason"]), [0, 0, 0, 0])
        for at, name in enumerate(("n", "ended", "kept", "sum_ns")):
            sums[at] += data.get(name, 0)

    def on_exit(self, record: Record) -> None:
        """An exit that a hyperthread reported, while KVM's events are recorded."""
        if record.data["reason"] in HANDED_OVER:
            place = record.core, record.ht
            self._reported[place] = self._reported.get(place, 0) + record.data["n"]

    def figures(self, history: History) -> dict[str, Any]:
        """Return what was told; nothing for a run that did not try to record any."""
        if self.recorded is None:
            return {}
        told = {"recorded": self.recorded, "why": self.why, "lost": self.lost, "text_cut": self.text_cut}
        if not self.recorded:
            return {"kvm": told}
        threads: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
        for (of, event, reason), (n, ended, kept, sum_ns) in sorted(self._sums.items()):
            figure = {"n": n} | ({"ended": ended, "kept": kept, "sum_ns": sum_ns} if event == EXIT else {})
            threads.setdefault(of or "others", {}).setdefault(event, {})[reason] = figure
        return {"kvm": told | {"threads": threads, "agreement": self._agreement(history)}}

    def _agreement(self, history: History) -> dict[str, dict[str, int | None]]:
        """Return by hyperthread how many exits KVM handed over, how many it reported, and how far apart these may be;
        None where nobody can say: events were lost, or a hyperthread was killed with what it had not noted yet."""
        out: dict[str, dict[str, int | None]] = {}
        for number, core in sorted(history.cores.items()):
            for ht in core.hts():
                of = name_of(number, ht)
                handed = sum(self._sums.get((of, USERSPACE_EXIT, reason), [0])[0] for reason in REPORTED_AS)
                reported = self._reported.get((number, ht), 0)
                if handed or reported:
                    lives, deaths = core.spawns.get(ht, ()), core.deaths.get(ht, ())
                    sure = self.whole and self.over and not self.lost and not any(row.status for row in deaths)
                    bound = len(lives) + _injected(history, number, ht) if sure else None
                    out[of] = {"handed": handed, "reported": reported, "bound": bound}
        return out


def _injected(history: History, core: int, ht: int) -> int:
    """Count exits that a client injected and that look as if KVM had handed them over."""
    rows = (row for rows in history.injects.values() for row in rows)
    return sum(row.n for row in rows if (row.core, row.ht) == (core, ht) and row.reason in HANDED_OVER)
