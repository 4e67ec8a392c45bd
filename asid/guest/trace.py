"""The trace source: one recorded vCPU thread played again.

Guest time is the distance entry -> exit, service time the distance exit -> entry of the recording. For HLT the latter
is time asleep (`wake_ns`) and service is 0. The last exit of a recording has no entry; it is played with the time that
the recording shows at least. A guest time that was not recorded (the first exit, or behind lost events) is 0.

Details
    A kvm_userspace_exit between an exit and its entry says that it went on to the VMM, and the absence of one says that
    it did not, where the recording has such events at all. What it does not say is drawn: see `asid.guest.details`.
    An exit that went to the VMM although its handler has nothing to do there is full, whatever is mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from asid.core.exits import is_idle
from asid.errors import InputError
from asid.guest.base import DURATION_NS_MAX, Exit
from asid.guest.details import details_of, stayed_in_kernel, went_to_vmm
from asid.mm.footprint import NO_PARTS
from asid.trace.model import Pair, Thread, Trace


@dataclass(frozen=True, slots=True)
class VcpuThread:
    """One thread that can be played. `index` is its place in the order of vCPU numbers, which `make_source` uses.
    span_ns: how long one pass of it takes."""

    index: int
    key: str
    pid: int
    vcpu: int
    comm: str
    cpus: tuple[int, ...]
    exits: int
    span_ns: int = 0


class TraceSource:
    """The exits of one thread in recorded order, once or for ever."""

    __slots__ = ("_exits", "_loop", "_position")

    def __init__(self, exits: Sequence[Exit], loop: bool = False) -> None:
        assert exits, "a thread without exits is refused when it is chosen"
        self._exits = tuple(exits)
        self._loop = loop
        self._position = 0

    def __len__(self) -> int:
        """Number of exits of one pass."""
        return len(self._exits)

    def next(self) -> Exit | None:
        if self._position == len(self._exits):
            if not self._loop:
                return None
            self._position = 0
        event = self._exits[self._position]
        self._position += 1
        return event


def vcpus(trace: Trace) -> tuple[VcpuThread, ...]:
    """Return the threads that have an exit to play, in order of vCPU number, then of appearance."""
    playable = [thread for thread in trace.threads if thread.pairs or thread.tail is not None]
    playable.sort(key=lambda thread: (thread.vcpu < 0, thread.vcpu))  # stable: equal numbers keep their order
    return tuple(
        VcpuThread(n, t.key, t.pid, t.vcpu, t.comm, t.cpus, len(t.pairs) + (t.tail is not None), _span_ns(t))
        for n, t in enumerate(playable)
    )


def _span_ns(thread: Thread) -> int:
    pairs = thread.pairs if thread.tail is None else (*thread.pairs, thread.tail)
    return sum(min(pair.guest or 0, DURATION_NS_MAX) + min(pair.service, DURATION_NS_MAX) for pair in pairs)


def find_thread(trace: Trace, name: str = "", vcpu: int = 0) -> Thread:
    """Return the thread that `choose` chooses."""
    chosen = choose(vcpus(trace), trace.path, name, vcpu)
    return next(thread for thread in trace.threads if thread.key == chosen.key)


def choose(threads: Sequence[VcpuThread], path: str, name: str = "", vcpu: int = 0) -> VcpuThread:
    """Return the thread called `name`: a pid, `vcpuN`, or a vCPU number that one thread alone has.

    With an empty name, the thread at place `vcpu`. Raise InputError when there is none. threads: of `vcpus`.
    """
    if not name:
        fit = [threads[vcpu]] if 0 <= vcpu < len(threads) else []
    else:
        fit = [t for t in threads if t.key == name]
        if not fit:
            number = name.removeprefix("vcpu").removeprefix("/")
            fit = [t for t in threads if number.isascii() and number.isdigit() and t.vcpu == int(number)]
    if len(fit) == 1:
        return fit[0]
    listed = ", ".join(f"{t.key} ({t.comm or 'no name'}, vCPU {t.vcpu if t.vcpu >= 0 else '?'})" for t in threads[:8])
    asked = f"thread {name!r}" if name else f"a thread for vCPU {vcpu}"
    raise InputError(
        f"{asked}: {'several threads fit' if fit else 'the trace has no such thread'}",
        where=path,
        state=f"{len(threads)} vCPU threads: {listed or 'none'}",
        allowed="the pid of one of these threads, or as many vCPUs as the trace has threads",
        hint=f'Try thread = "{threads[0].key}".' if threads else "Record longer: no exit has an entry behind it.",
    )


def check_clock(clock: str, path: str) -> None:
    """Raise InputError when the times of a trace are TSC cycles. clock: as in `Trace`."""
    if clock != "ns":
        raise InputError(
            "time stamps are TSC cycles, not seconds",
            where=path,
            state="recorded with -C x86-tsc",
            allowed="a trace with a clock in seconds (local, global, mono, boot)",
            hint="Record again: trace-cmd record -C mono -e kvm.",
        )


def thread_exits(trace: Trace, thread: Thread, random: Random) -> tuple[Exit, ...]:
    """Return the exits of a thread, tail included. One draw an exit. Raise InputError when times are TSC cycles."""
    check_clock(trace.clock, trace.path)
    pairs = [*thread.pairs, thread.tail] if thread.tail is not None else list(thread.pairs)
    told = trace.userspace_events > 0
    return tuple(_to_exit(pair, told, random.random()) for pair in pairs)


def _to_exit(pair: Pair, told: bool, draw: float) -> Exit:
    isa, number, name = pair.reason
    idle = is_idle(isa, number)
    if pair.userspace:
        parts = went_to_vmm(isa, number)
    elif told:
        parts = stayed_in_kernel(isa, number, draw)
    else:
        parts = details_of(isa, number).parts(draw)
    elapsed_ns = min(pair.service, DURATION_NS_MAX)
    return Exit(
        after_ns=min(pair.guest or 0, DURATION_NS_MAX),
        reason=name,
        isa=isa,
        service_ns=0 if idle else elapsed_ns,
        full=parts is None,
        wake_ns=elapsed_ns if idle else 0,
        parts=NO_PARTS if parts is None else parts,
    )
