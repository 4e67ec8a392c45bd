"""One line of a trace: its prefix, by every tool that prints one.

A line is PREFIX (of the tool) + EVENT + PAYLOAD (of the kernel or a plugin). This file reads prefixes:

    ftrace, trace_pipe, trace-cmd report      COMM-PID [CPU] FLAGS STAMP: EVENT: payload
                                              (no FLAGS in trace-cmd; `(TGID)` behind PID with record-tgid)
    trace-cmd report -l                       COMM-PID CPUFLAGS STAMP: EVENT: payload
    perf script                               COMM PID [CPU] STAMP: SYS:EVENT: payload
                                              (PID/TID; no COMM; no CPU; wall clock in front and FLAGS of perf-prof)

STAMP is seconds with 6 digits behind the dot, or 9 with `-t` and `--ns`. A bare integer is a TSC stamp (`-C x86-tsc`):
cycles, not seconds.

Strict: a line that fits no form comes back as a str that says so; nothing is ever guessed. Pure: text in, values out.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class EventLine(NamedTuple):
    """One event. `time` is nanoseconds since boot, or TSC cycles when `tsc`. `pid` and `cpu` are -1 when not printed.

    `payload` is None when the line ends right behind the event's name, without its colon: it was cut off.
    """

    comm: str
    pid: int
    cpu: int
    time: int
    tsc: bool
    event: str
    payload: str | None


class LossLine(NamedTuple):
    """The tool says that events were lost. `cpu` is -1 when it does not say where, `n` is 0 when not how many."""

    cpu: int
    n: int


class HeaderLine(NamedTuple):
    """A line that carries no event. `overwritten` counts events lost before the buffer was read."""

    overwritten: int


# A prefix is shorter than this: 15 characters of COMM, numbers, padding. It bounds what the patterns may search.
PREFIX_CHARS_MAX: Final = 200

_COMM: Final = r"(?P<comm>\S.{0,62}?)"  # may hold blanks, `/` and `-`
_CPU: Final = r"\[(?P<cpu>\d{1,5})\]"
_FLAGS: Final = r"[.a-zA-Z#?][.a-zA-Z0-9#?]{3,4}"  # four columns, five since migrate-disable
_TGID: Final = r"(?:\( *(?:\d{1,10}|-+)\)\s+)?"
_SECONDS: Final = r"(?P<secs>\d{1,12})\.(?P<frac>\d{9}|\d{6})"
_STAMP: Final = rf"(?:{_SECONDS}|(?P<tsc>\d{{1,20}}))"
_WALL: Final = r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\s+)?"
_TASK: Final = r"(?P<pid>\d{1,10})(?:/(?P<tid>\d{1,10}))?"

# Every pattern has the same groups, so that one call reads them all; (?!) never matches.
_NO_TID: Final = r"(?P<tid>(?!))?"
_NO_TSC: Final = r"(?P<tsc>(?!))?"
_NO_CPU: Final = r"(?P<cpu>(?!))?"

_FTRACE = re.compile(rf"\s*{_COMM}-(?P<pid>\d{{1,10}})\s+{_NO_TID}{_TGID}{_CPU}\s+(?:{_FLAGS}\s+)?{_STAMP}:\s+")
_LATENCY = re.compile(rf"\s*{_COMM}-(?P<pid>\d{{1,10}})\s+{_NO_TID}(?P<cpu>\d{{1,5}}){_FLAGS}\s+{_STAMP}:\s+")
_PERF = re.compile(rf"\s*{_WALL}(?:(?:{_COMM}\s+)??{_TASK}\s+)?(?:{_FLAGS}\s+)?{_CPU}\s+{_STAMP}:\s+")
# No `[` in COMM here: a line with a damaged [CPU] must not pass as one without.
_PERF_NO_CPU = re.compile(
    rf"\s*{_WALL}(?P<comm>[^\s\[][^\[]{{0,62}}?)(?:\s+{_TASK})?\s+{_NO_CPU}{_NO_TSC}{_SECONDS}:\s+(?=[\w-]+:\S)"
)

_PREFIXES: Final = (_FTRACE, _PERF, _LATENCY, _PERF_NO_CPU)

# perf prints SYS:EVENT; what follows SYS: there is never a blank, while ftrace has one behind EVENT:.
_EVENT = re.compile(r"(?:[\w-]+:)?(?P<event>[^\s:]+)(?::(?P<payload>.*))?\s*$")

_DROPPED = re.compile(r"\s*CPU:(?P<cpu>\d{1,5}) \[(?:LOST )?(?:(?P<n>\d{1,18}) )?EVENTS(?: DROPPED)?\]\s*$")
_LOST_CHUNKS = re.compile(r"\s*Processed \d+ events and lost (?P<n>\d{1,18}) chunks!")
_PERF_LOST = re.compile(r".*\[(?P<cpu>\d{1,5})\]\s+[\d.]+:\s+PERF_RECORD_LOST(?:_SAMPLES)? lost (?P<n>\d{1,18})\s*$")
_WRITTEN = re.compile(r"# entries-in-buffer/entries-written: (?P<left>\d{1,18})/(?P<written>\d{1,18})\b")
_HEADER = re.compile(r"\s*(?:#.*|version = \d+|cpus=\d+|CPU \d+ is empty|)$")


def split_line(line: str) -> EventLine | LossLine | HeaderLine | str:
    """Return what one line is. A str is the reason why it fits no form."""
    for pattern in _PREFIXES:
        found = pattern.match(line, 0, PREFIX_CHARS_MAX)
        if found:
            return _read_event(line, found)
    return _read_other(line)


def _read_event(line: str, prefix: re.Match[str]) -> EventLine | LossLine | str:
    event = _EVENT.match(line, prefix.end())
    if event is None:
        lost = _PERF_LOST.match(line)
        return LossLine(int(lost["cpu"]), int(lost["n"])) if lost else "no event name behind the time stamp"
    comm, pid, tid, cpu, secs, frac, tsc = prefix.group("comm", "pid", "tid", "cpu", "secs", "frac", "tsc")
    time = int(tsc) if tsc else int(secs) * 1_000_000_000 + int(frac.ljust(9, "0"))
    name, payload = event.group("event", "payload")
    return EventLine(comm or "", int(tid or pid or -1), int(cpu or -1), time, tsc is not None, name, payload)


def _read_other(line: str) -> LossLine | HeaderLine | str:
    found = _DROPPED.match(line)
    if found:
        return LossLine(int(found["cpu"]), int(found["n"] or 0))
    found = _LOST_CHUNKS.match(line)
    if found:
        return LossLine(-1, 0)  # chunks, not events: how many events is not known
    found = _WRITTEN.match(line)
    if found:
        return HeaderLine(max(0, int(found["written"]) - int(found["left"])))
    if _HEADER.match(line):
        return HeaderLine(0)
    return "no known prefix (ftrace, trace-cmd report or perf script)"
