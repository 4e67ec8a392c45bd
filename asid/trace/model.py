"""What a trace text holds: vCPU threads, their exits, and what of the text was not used. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from asid.core.exits import Canonical

REJECTED_KEPT_MAX: Final = 100  # lines kept to be shown; all are counted
TEXT_KEPT_CHARS: Final = 120


class Rejected(NamedTuple):
    """A line that was not used: its number from 1, why, and its first TEXT_KEPT_CHARS characters."""

    number: int
    reason: str
    text: str


class Pair(NamedTuple):
    """One exit of a thread and the time until its next entry.

    `guest` is the time in guest before the exit, None when the entry before it was not recorded. `service` is the
    distance to the next entry; for the last exit of a thread without one (`complete` is False) it is the distance to
    the thread's last event: it took at least that. `userspace` names the KVM_EXIT_* that went to the VMM, or is "".
    """

    reason: Canonical
    line: int
    cpu: int
    time: int
    guest: int | None
    service: int
    complete: bool
    userspace: str
    nested: bool


@dataclass(frozen=True, slots=True)
class Thread:
    """One vCPU thread. `key` is the pid as text, or `cpuN` / `comm NAME` where the tool printed no pid."""

    key: str
    pid: int
    comm: str
    vcpu: int  # -1 when no event told
    cpus: tuple[int, ...]
    exits: int
    entries: int
    pairs: tuple[Pair, ...]
    tail: Pair | None  # an exit at the end of the recording, without entry
    double_exits: int  # exits followed by another exit: the entry between was lost
    dropped: int  # exits whose entry cannot be told because of lost or unreadable lines
    nested_exits: int
    backward: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace text holds, and what of it was not used."""

    path: str
    clock: Literal["ns", "tsc"]
    threads: tuple[Thread, ...]  # vCPU threads, in order of first appearance
    lines: int
    events: int  # lines with an event, kvm's or not
    rejected_count: int
    rejected: tuple[Rejected, ...]  # the first REJECTED_KEPT_MAX
    losses: int  # reports of lost events
    lost_events: int  # events those reports counted; a report without a number adds 0
    overwritten: int  # events overwritten before the buffer was read
    truncated: bool  # the last line is cut off
    userspace_events: int  # kvm_userspace_exit seen; 0 often means that it was not recorded
    notes: tuple[str, ...]

    @property
    def exits(self) -> int:
        return sum(thread.exits for thread in self.threads)

    @property
    def entries(self) -> int:
        return sum(thread.entries for thread in self.threads)

    @property
    def pairs(self) -> int:
        return sum(len(thread.pairs) for thread in self.threads)
