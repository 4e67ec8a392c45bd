"""Counts of KVM's events by thread, taken from the text of tracefs while it is recorded.

Rule 1. Events are counted as they come, whether or not their text is kept.
Rule 2. An exit is over with the next kvm_entry of its thread. If no kvm_userspace_exit came in between, KVM kept it to
        itself. An exit whose end is not known, for events were lost or another exit came, is counted and has no time.
Rule 3. Only text in the form of trace_pipe with a clock in microseconds is read; of other lines there is nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

EXIT: Final = "kvm_exit"
ENTRY: Final = "kvm_entry"
USERSPACE_EXIT: Final = "kvm_userspace_exit"

_LINE: Final = re.compile(
    rb"^.*?-(?P<pid>\d{1,10}) +(?:\( *[-\d]+\) +)?\[(?P<cpu>\d{1,5})\] +(?:\S+ +)?(?P<s>\d{1,12})\.(?P<us>\d{6}): "
    rb"(?P<event>kvm_[a-z_]+): (?P<said>.*)$"
    rb"|^CPU:(?P<lossy>\d{1,5}) \[LOST (?P<lost>\d{1,18}) EVENTS\]",
    re.MULTILINE,
)
_REASON: Final = re.compile(rb"reason (?P<reason>\S.{0,79}?)(?: rip 0x| \(-?\d+\)$)")


class Count(NamedTuple):
    """n events of a thread of one name and reason ("": it has none). Of kvm_exit also: how many were seen to end, how
    many of these KVM kept to itself, and the time of those that ended."""

    pid: int
    event: str
    reason: str
    n: int
    ended: int = 0
    kept: int = 0
    sum_ns: int = 0


@dataclass(slots=True)
class _Thread:
    cpu: int = -1
    open: list[int] | None = None  # sums of the exit that has not ended
    since_us: int = 0
    handed: bool = False  # to userspace
    sums: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # [n, ended, kept, sum_ns]


class ThreadCounts:
    """What was told of each thread since the last `take`. lost: events that the kernel dropped, in all."""

    def __init__(self) -> None:
        self.lost = 0
        self._threads: dict[int, _Thread] = {}
        self._reasons: dict[bytes, str] = {}

    def feed(self, lines: bytes) -> None:
        """Count whole lines."""
        for found in _LINE.finditer(lines):
            pid, cpu, seconds, us, event, said, lossy, lost = found.groups()
            if lossy is not None:
                self._lose(int(lossy), int(lost))
                continue
            thread = self._threads.get(int(pid))
            if thread is None:
                thread = self._threads[int(pid)] = _Thread()
            thread.cpu = int(cpu)
            self._count(thread, event.decode(), said, int(seconds) * 1_000_000 + int(us))

    def _count(self, thread: _Thread, event: str, said: bytes, now_us: int) -> None:
        key = (event, "" if event == ENTRY else self._reason(said))
        sums = thread.sums.get(key)
        if sums is None:
            sums = thread.sums[key] = [0, 0, 0, 0]
        sums[0] += 1
        if event == EXIT:
            thread.open, thread.since_us, thread.handed = sums, now_us, False
        elif event == USERSPACE_EXIT:
            thread.handed = True
        elif event == ENTRY and thread.open is not None:
            ended = thread.open
            ended[1] += 1
            ended[2] += not thread.handed
            ended[3] += max(0, now_us - thread.since_us) * 1000
            thread.open = None

    def _reason(self, said: bytes) -> str:
        found = _REASON.search(said)
        if found is None:
            return ""
        reason = self._reasons.get(found["reason"])
        if reason is None:
            reason = found["reason"].decode("utf-8", "replace")
            if len(self._reasons) < 1024:
                self._reasons[found["reason"]] = reason
        return reason

    def _lose(self, cpu: int, n: int) -> None:
        self.lost += n
        for thread in self._threads.values():
            if thread.cpu == cpu:
                thread.open = None

    def take(self) -> list[Count]:
        """Return what was counted since the last time, by thread, event and reason. An exit may end after it is told
        of: `ended` of a later Count may exceed its n."""
        told = []
        for pid, thread in sorted(self._threads.items()):
            for (event, reason), sums in sorted(thread.sums.items()):
                if any(sums):
                    told.append(Count(pid, event, reason, *sums))
                    sums[:] = [0, 0, 0, 0]
        return told
