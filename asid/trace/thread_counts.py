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
)
_REASON: Final = re.compile(rb"reason (?P<reason>\S.{0,79}?)(?: rip 0x| \(-?\d+\)$)")

# Most lines differ from an earlier one in their stamp and behind `rip` alone: what such parts are is looked up.
_MARK: Final = b": kvm_"
_VARIES: Final = b" rip "
_DOT: Final = ord(".")
KNOWN_MAX: Final = 4096


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
        self._heads: dict[bytes, tuple[_Thread, int]] = {}  # what stands in front of the stamp: the thread and its CPU
        self._tails: dict[bytes, tuple[str, str]] = {}  # what stands behind the mark, but what varies: event and reason

    def feed(self, lines: bytes) -> None:
        """Count whole lines."""
        heads, tails = self._heads, self._tails
        for line in lines.split(b"\n"):
            front, _, tail = line.partition(_MARK)
            head, _, stamp = front.rpartition(b" ")
            by, what = heads.get(head), tails.get(tail.partition(_VARIES)[0])
            if by is None or what is None or len(stamp) < 8 or stamp[-7] != _DOT:
                self._feed_new(line, head, tail)
                continue
            try:
                now_us = int(stamp.replace(b".", b"", 1))
            except ValueError:  # no text of the kernel's
                continue
            thread, cpu = by
            thread.cpu = cpu
            self._count(thread, what, now_us)

    def _feed_new(self, line: bytes, head: bytes, tail: bytes) -> None:
        """Count a line with a part that is not known yet, or that is none; its parts are known from then on."""
        found = _LINE.match(line)
        if found is None:
            return
        pid, cpu, seconds, us, event, said, lossy, lost = found.groups()
        if lossy is not None:
            self._lose(int(lossy), int(lost))
            return
        thread = self._threads.get(int(pid))
        if thread is None:
            thread = self._threads[int(pid)] = _Thread()
        thread.cpu = int(cpu)
        what = event.decode(), "" if event.decode() == ENTRY else _reason(said)
        if found.start("s") == len(head) + 1 and found.end("event") > len(line) - len(tail):  # the parts are these
            if max(len(self._heads), len(self._tails)) >= KNOWN_MAX:
                self._heads.clear()
                self._tails.clear()
            self._heads[head] = thread, thread.cpu
            self._tails[tail.partition(_VARIES)[0]] = what
        self._count(thread, what, int(seconds) * 1_000_000 + int(us))

    def _count(self, thread: _Thread, what: tuple[str, str], now_us: int) -> None:
        sums = thread.sums.get(what)
        if sums is None:
            sums = thread.sums[what] = [0, 0, 0, 0]
        sums[0] += 1
        event = what[0]
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


def _reason(said: bytes) -> str:
    found = _REASON.search(said)
    return found["reason"].decode("utf-8", "replace") if found else ""
