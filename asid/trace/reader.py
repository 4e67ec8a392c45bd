"""A trace text as vCPU threads and their exits.

Rules
    1. The key is the thread (pid): every tool prints it, and a vCPU keeps it when it migrates. An exit belongs to the
       next kvm_entry of the same thread, on whatever CPU. Where a tool printed no pid, the CPU stands in, and the
       trace's notes say so.
    2. File order decides, never the time stamp: several events share one, and the clocks of two CPUs differ. A
       distance that comes out negative is 0 and is counted (`backward`).
    3. After lost events the open exit or guest interval of every thread last seen on that CPU is dropped. A line that
       names a thread but cannot be read does the same to that thread. Nothing is filled in.
    4. A nested exit prints kvm_exit and kvm_nested_vmexit: it is one exit, marked nested.
    5. Whatever was not used is counted: `rejected`, `losses`, `double_exits`, `dropped`, `tail`.

Times are nanoseconds, or TSC cycles while `clock` is "tsc" (give `tsc_hz` to have nanoseconds).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from asid.core.exits import Canonical
from asid.errors import InputError
from asid.trace import kvm_events
from asid.trace.lines import EventLine, HeaderLine, LossLine, split_line
from asid.trace.model import REJECTED_KEPT_MAX, TEXT_KEPT_CHARS, Pair, Rejected, Thread, Trace
from asid.trace.sniff import foreign, read_lines, sniff

TSC_HZ_MIN: Final = 1e6
TSC_HZ_MAX: Final = 1e11
UNKNOWN_COMM: Final = "<...>"

_WANTED: Final = "text of ftrace, trace-cmd report or perf script with kvm_exit and kvm_entry"


@dataclass(slots=True)
class _Open:
    """An exit that waits for its entry."""

    reason: Canonical
    line: int
    cpu: int
    time: int
    guest: int | None
    userspace: str = ""
    nested: bool = False


@dataclass(slots=True)
class _ThreadState:
    key: str
    pid: int
    comm: str
    vcpus: list[int] = field(default_factory=list)
    cpus: list[int] = field(default_factory=list)
    cpu_last: int = -1
    time_last: int = 0
    entered: int | None = None  # time of the entry that has no exit yet
    open: _Open | None = None
    pairs: list[Pair] = field(default_factory=list)
    exits: int = 0
    entries: int = 0
    double_exits: int = 0
    dropped: int = 0
    nested_exits: int = 0
    backward: int = 0

    def drop(self) -> None:
        """Forget what is open: events in between are missing."""
        self.dropped += self.open is not None
        self.open = None
        self.entered = None

    def distance(self, start: int, end: int) -> int:
        self.backward += end < start
        return max(0, end - start)

    def close(self, time: int, complete: bool) -> Pair | None:
        """Return the open exit as a pair that ends at `time`, or None when no exit is open."""
        if self.open is None:
            return None
        o = self.open
        self.open = None
        service = self.distance(o.time, time)
        return Pair(o.reason, o.line, o.cpu, o.time, o.guest, service, complete, o.userspace, o.nested)


class _Reader:
    """Takes lines one by one; see the rules at the head of this file."""

    def __init__(self, tsc_hz: float | None) -> None:
        self.tsc_hz = tsc_hz
        self.states: dict[str, _ThreadState] = {}
        self.tsc: bool | None = None
        self.lines = self.events = 0
        self.rejected_count = 0
        self.rejected: list[Rejected] = []
        self.losses = self.lost_events = self.overwritten = 0
        self.userspace_events = 0
        self.other_cpu_exits = 0

    def take(self, number: int, text: str) -> bool:
        """Read one line; return False when it was rejected."""
        self.lines += 1
        line = split_line(text)
        if isinstance(line, EventLine):
            problem = self._take_event(number, line)
            if problem:
                state = self.states.get(_key(line))
                if state is not None:
                    state.drop()
                self._reject(number, problem, text)
            return not problem
        if isinstance(line, LossLine):
            self.losses += 1
            self.lost_events += line.n
            for state in self.states.values():
                if line.cpu in (-1, state.cpu_last) or state.cpu_last == -1:
                    state.drop()
            return True
        if isinstance(line, HeaderLine):
            self.overwritten += line.overwritten
            return True
        self._reject(number, line, text)
        return False

    def _reject(self, number: int, reason: str, text: str) -> None:
        self.rejected_count += 1
        if len(self.rejected) < REJECTED_KEPT_MAX:
            self.rejected.append(Rejected(number, reason, text[:TEXT_KEPT_CHARS]))

    def _take_event(self, number: int, line: EventLine) -> str:
        """Return why the event cannot be used, "" when it was."""
        if line.payload is None:
            return f"cut off behind the event name {line.event[:40]!r}"
        if self.tsc is None:
            self.tsc = line.tsc
        elif self.tsc is not line.tsc:
            return "time stamp of another clock than the lines before"
        time = round(line.time * 1e9 / self.tsc_hz) if line.tsc and self.tsc_hz else line.time
        try:
            if line.event == kvm_events.EXIT:
                self._take_exit(number, line, time, kvm_events.parse_exit(line.payload))
            elif line.event == kvm_events.ENTRY:
                self._take_entry(line, time, kvm_events.parse_entry(line.payload))
            elif line.event == kvm_events.USERSPACE_EXIT:
                leaving = kvm_events.parse_userspace_exit(line.payload)
                self.userspace_events += 1
                state = self._seen(line, time)
                if state is not None and state.open is not None:
                    state.open.userspace = leaving.name
            elif (state := self._seen(line, time)) is not None and line.event == kvm_events.NESTED_EXIT:
                state.nested_exits += 1
                if state.open is not None:
                    state.open.nested = True
        except kvm_events.PayloadError as error:
            self.other_cpu_exits += "architecture" in str(error)
            return str(error)
        self.events += 1
        return ""

    def _seen(self, line: EventLine, time: int) -> _ThreadState | None:
        """Note where and when a known vCPU thread was; None for every other thread."""
        state = self.states.get(_key(line))
        if state is not None:
            state.cpu_last = line.cpu
            state.time_last = time
        return state

    def _vcpu_thread(self, line: EventLine, time: int, vcpu: int) -> _ThreadState:
        key = _key(line)
        state = self.states.get(key)
        if state is None:
            state = self.states[key] = _ThreadState(key, line.pid, line.comm)
        if state.comm in ("", UNKNOWN_COMM):
            state.comm = line.comm or state.comm
        if vcpu >= 0 and vcpu not in state.vcpus:
            state.vcpus.append(vcpu)
        if line.cpu >= 0 and line.cpu not in state.cpus:
            state.cpus.append(line.cpu)
        state.cpu_last = line.cpu
        state.time_last = time
        return state

    def _take_exit(self, number: int, line: EventLine, time: int, event: kvm_events.ExitEvent) -> None:
        state = self._vcpu_thread(line, time, event.vcpu)
        state.exits += 1
        state.double_exits += state.open is not None
        guest = None if state.entered is None else state.distance(state.entered, time)
        state.entered = None
        state.open = _Open(event.reason, number, line.cpu, time, guest)

    def _take_entry(self, line: EventLine, time: int, event: kvm_events.EntryEvent) -> None:
        state = self._vcpu_thread(line, time, event.vcpu)
        state.entries += 1
        pair = state.close(time, complete=True)
        if pair is not None:
            state.pairs.append(pair)
        state.entered = time

    def finish(self, path: Path, truncated: bool, ended: bool) -> Trace:
        threads = tuple(_freeze(state) for state in self.states.values())
        clock: Literal["ns", "tsc"] = "tsc" if self.tsc and not self.tsc_hz else "ns"
        return Trace(
            path=str(path),
            clock=clock,
            threads=threads,
            lines=self.lines,
            events=self.events,
            rejected_count=self.rejected_count,
            rejected=tuple(self.rejected),
            losses=self.losses,
            lost_events=self.lost_events,
            overwritten=self.overwritten,
            truncated=truncated,
            userspace_events=self.userspace_events,
            notes=tuple(self._notes(clock, truncated, ended)),
        )

    def _notes(self, clock: str, truncated: bool, ended: bool) -> list[str]:
        notes = []
        if self.losses or self.overwritten:
            lost = f"{self.lost_events} events" if self.lost_events else "an unknown number of events"
            notes.append(
                f"{self.losses} reports of lost events ({lost}), {self.overwritten} overwritten; exits that were open "
                "then are left out."
            )
        if self.rejected_count:
            first = self.rejected[0]
            notes.append(f"{self.rejected_count} lines not used; the first is line {first.number}: {first.reason}.")
        if truncated:
            notes.append("The last line is cut off.")
        elif not ended:
            notes.append("The last line has no line end; a number in it may be cut off.")
        if clock == "tsc":
            notes.append("Time stamps are TSC cycles; times need the TSC's frequency.")
        if any(state.pid < 0 for state in self.states.values()):
            notes.append("Some lines carry no pid: the CPU or the name stands for the thread, migrations go unseen.")
        for state in self.states.values():
            if len(state.vcpus) > 1:
                notes.append(f"Thread {state.key} ran vCPUs {', '.join(map(str, state.vcpus))}: pid used twice?")
        backward = sum(state.backward for state in self.states.values())
        if backward:
            notes.append(f"{backward} distances were negative (clocks of two CPUs) and count as 0.")
        return notes


def read_trace(path: Path | str, *, tsc_hz: float | None = None) -> Trace:
    """Read a trace text. Raise InputError for a file that is no trace, or a trace without a single kvm_exit."""
    path = Path(path)
    if tsc_hz is not None and not TSC_HZ_MIN <= tsc_hz <= TSC_HZ_MAX:
        raise InputError(
            f"tsc_hz = {tsc_hz!r}",
            where=str(path),
            allowed=f"a frequency from {TSC_HZ_MIN:g} to {TSC_HZ_MAX:g} Hz",
            hint="dmesg of the recording machine says `tsc: Refined TSC clocksource calibration: 2994.375 MHz`.",
        )
    kind = sniff(path)
    if kind not in ("trace", "unknown"):
        raise foreign(path, kind, _WANTED)
    reader = _Reader(tsc_hz)
    used = ended = True
    for number, text, line_ended in read_lines(path):
        used, ended = reader.take(number, text), line_ended
    trace = reader.finish(path, truncated=not ended and not used, ended=ended)
    if trace.exits == 0:
        raise _without_exits(path, trace, reader.other_cpu_exits)
    return trace


def _without_exits(path: Path, trace: Trace, other_cpu_exits: int) -> InputError:
    if trace.events == 0 and other_cpu_exits == 0:
        return foreign(path, "unknown", _WANTED)
    if other_cpu_exits:
        what, hint = "kvm_exit events of another architecture", "asid reads x86: Intel VMX and AMD SVM."
    elif trace.userspace_events:
        what = f"no kvm_exit, but {trace.userspace_events} kvm_userspace_exit"
        hint = "A KVM that emulates its guests told no exits; where one runs them, record all: trace-cmd record -e kvm."
    else:
        what, hint = "no kvm_exit", "Record all of KVM's events: trace-cmd record -e kvm, or perf record -e 'kvm:*'."
    return InputError(
        what,
        where=str(path),
        state=f"{trace.lines} lines, {trace.events} events, {trace.entries} kvm_entry, {trace.rejected_count} rejected",
        allowed=_WANTED,
        hint=hint,
        data={"rejected": [list(line) for line in trace.rejected[:5]]},
    )


def _key(line: EventLine) -> str:
    if line.pid >= 0:
        return str(line.pid)
    return f"cpu{line.cpu}" if line.cpu >= 0 else f"comm {line.comm}"


def _freeze(state: _ThreadState) -> Thread:
    tail = state.close(state.time_last, complete=False)
    return Thread(
        key=state.key,
        pid=state.pid,
        comm=state.comm,
        vcpu=state.vcpus[0] if state.vcpus else -1,
        cpus=tuple(state.cpus),
        exits=state.exits,
        entries=state.entries,
        pairs=tuple(state.pairs),
        tail=tail,
        double_exits=state.double_exits,
        dropped=state.dropped,
        nested_exits=state.nested_exits,
        backward=state.backward,
    )
