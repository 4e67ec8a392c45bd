"""One measurement each, in a process of its own: `python -m asid.calibrate.probes NAME CPU CPU`.

Rule 1. A probe prints one JSON document: {"samples": [nanoseconds, ...], "notes": [...]}, or {"refused": why}.
Rule 2. A sample is the mean of a batch of some milliseconds. Which of the samples counts is for the reader.
Rule 3. A probe has no deadline of its own: its parent kills it (`asid.calibrate.calibration`).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from asid.calibrate import kvm_guest
from asid.calibrate.machine_code import GETPID, MEMBARRIER, READ, TGKILL, WRITE, Loops, Word
from asid.errors import AsidError

BATCHES: Final = 25
BATCH_NS: Final = 2_000_000
COUNT_MAX: Final = 1_000_000
# Far shorter than a scheduler's slice: the thread beside has the CPU for a whole batch, or has not got it at all.
IPI_BATCH: Final = 20
IPI_BATCHES: Final = 1_000
IPI_NS: Final = 2_000_000_000
# `dec; jnz` takes a nanosecond where a CPU runs it, and hundreds where it is emulated.
NATIVE_NS_MAX: Final = 20.0
WITHIN: Final = "this host is a guest itself, and its host takes part"

_PRIVATE_EXPEDITED, _REGISTER = 1 << 3, 1 << 4  # of membarrier


class Refused(Exception):
    """What is measured here would not be what was asked for."""


Found = tuple[list[float], list[str]]  # nanoseconds, and notes


def batches(run: Callable[[int], int], first_count: int = 100) -> list[float]:
    """Return the mean time of one of `run`'s iterations, batch by batch. run(count) -> nanoseconds."""
    run(first_count)
    each = max(run(first_count) / first_count, 0.5)
    count = max(10, min(COUNT_MAX, int(BATCH_NS / each)))
    return [run(count) / count for _ in range(BATCHES)]


def quartile(samples: Sequence[float]) -> float:
    """Return the lower quartile: what a busy host adds is above it."""
    return sorted(samples)[len(samples) // 4]


def timed(call: Callable[..., object], *arguments: object) -> int:
    begun_ns = time.perf_counter_ns()
    call(*arguments)
    return time.perf_counter_ns() - begun_ns


def system_call(cpu: int, _: int) -> Found:
    """getpid."""
    os.sched_setaffinity(0, {cpu})
    loops = Loops()
    return batches(lambda count: timed(loops.call, 0, 0, 0, count, GETPID)), []


def signal_to_self(cpu: int, _: int) -> Found:
    """A signal that the thread sends itself: the call, its handler (one instruction), and the way back."""
    os.sched_setaffinity(0, {cpu})
    loops = Loops()
    install = ctypes.CDLL(None).signal
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    install(signal.SIGUSR1, loops.nothing_at)
    place = (os.getpid(), threading.get_native_id(), int(signal.SIGUSR1))
    return batches(lambda count: timed(loops.call, *place, count, TGKILL)), []


def message(cpu: int, other: int) -> Found:
    """A word that one thread writes and the other reads: half of a round trip."""
    loops, word = Loops(), Word()

    def run(count: int) -> int:
        answering = Beside(other, loops.take_turns, word.address, count, 1)
        took_ns = timed(loops.take_turns, word.address, count, 0)
        answering.join()
        return took_ns // 2

    os.sched_setaffinity(0, {cpu})
    return batches(run, 10_000), []


def ipi(cpu: int, other: int) -> Found:
    """membarrier(PRIVATE_EXPEDITED) with a thread on the other CPU, less the same with nobody there.

    The kernel sends that CPU an IPI and waits until its handler has run.
    """
    os.sched_setaffinity(0, {cpu})
    loops, counter, stop = Loops(), Word(), Word()
    if ctypes.CDLL(None, use_errno=True).syscall(MEMBARRIER, _REGISTER, 0, 0):
        raise Refused("the kernel has no membarrier, or a filter forbids it")

    def run(count: int) -> int:
        return timed(loops.call, _PRIVATE_EXPEDITED, 0, 0, count, MEMBARRIER)

    alone = quartile(batches(run))
    beside = Beside(other, loops.count_until, counter.address, stop.address)
    found: list[float] = []
    until_ns = time.perf_counter_ns() + IPI_NS
    while time.perf_counter_ns() < until_ns and len(found) < IPI_BATCHES:
        before = counter.value
        took_ns = run(IPI_BATCH)
        if counter.value != before:  # else it has no CPU at the moment, and gets no IPI
            found.append(took_ns / IPI_BATCH - alone)
    stop.value = 1
    beside.join()
    if len(found) < BATCHES:
        raise Refused(f"CPU {other} had no time for a thread that only counts")
    notes = [f"{alone:,.0f} ns of the call itself taken off"]
    return found, notes + ([WITHIN] if "hypervisor" in _cpu_flags() else [])


def schedule(cpu: int, _: int) -> Found:
    """Two threads on one CPU that wake each other through pipes: a write, a read that sleeps, and the switch."""
    os.sched_setaffinity(0, {cpu})
    loops, byte = Loops(), Word()
    (here_read, there_write), (there_read, here_write) = os.pipe(), os.pipe()

    def run(count: int) -> int:
        answering = Beside(cpu, loops.pass_on, there_read, byte.address, 1, count, there_write, READ)
        took_ns = timed(loops.pass_on, here_write, byte.address, 1, count, here_read, WRITE)
        answering.join()
        return took_ns // 2

    return batches(run), []


def vm_exit(cpu: int, _: int) -> Found:
    """A CPUID in guest, which always exits and which KVM handles in the kernel: exit, handling and entry."""
    os.sched_setaffinity(0, {cpu})
    return _of_guest(kvm_guest.CPUID, ring=3)


def cr3_write(cpu: int, _: int) -> Found:
    """A write of CR3 in guest, which does not exit where the CPU walks two tables."""
    os.sched_setaffinity(0, {cpu})
    return _of_guest(kvm_guest.CR3, ring=0)


def user_exit(cpu: int, _: int) -> Found:
    """An OUT that comes back to this program: exit, return to user space, Python, KVM_RUN again."""
    os.sched_setaffinity(0, {cpu})
    guest = kvm_guest.Guest(ring=3)
    guest.load(kvm_guest.NOTHING, 1)
    return batches(lambda count: sum(guest.run() for _ in range(count)), 10), []


def _of_guest(iteration: bytes, ring: int) -> Found:
    guest = kvm_guest.Guest(ring)

    def run(body: bytes, count: int) -> int:
        guest.load(body, count)
        return guest.run()

    run(kvm_guest.NOTHING, 1)
    around_ns, longer_ns = (min(run(kvm_guest.NOTHING, count) for _ in range(9)) for count in (1, 10_001))
    empty = (longer_ns - around_ns) / 10_000
    if empty > NATIVE_NS_MAX:
        raise Refused(f"this KVM emulates a guest in ring {ring}: two instructions take {empty:,.0f} ns")
    found = batches(lambda count: run(iteration, count) - around_ns - int(empty * count), 20)
    return found, _notes_of(guest, iteration)


def _notes_of(guest: kvm_guest.Guest, iteration: bytes) -> list[str]:
    notes = []
    if iteration == kvm_guest.CR3:
        notes.append("with PCID and NOFLUSH" if guest.has_pcid else "without PCID: the TLB is filled anew")
    flags = _cpu_flags()
    if not flags & {"vmx", "svm"}:
        notes.append("no vmx and no svm: this KVM does without them")
    elif "hypervisor" in flags:
        notes.append(WITHIN)
    return notes


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


class Beside:
    """A thread on another CPU that runs one loop. It may wait for ever: the process is killed then."""

    def __init__(self, cpu: int, loop: Callable[..., int], *arguments: int) -> None:
        self._here = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(cpu, loop, arguments), daemon=True)
        self._thread.start()
        self._here.wait()

    def _run(self, cpu: int, loop: Callable[..., int], arguments: tuple[int, ...]) -> None:
        os.sched_setaffinity(0, {cpu})
        self._here.set()
        loop(*arguments)

    def join(self) -> None:
        self._thread.join()


PROBES: Final[dict[str, Callable[[int, int], Found]]] = {
    "vm_exit": vm_exit,
    "cr3_write": cr3_write,
    "ipi": ipi,
    "message": message,
    "schedule": schedule,
    "system_call": system_call,
    "signal_to_self": signal_to_self,
    "user_exit": user_exit,
}


def main(name: str, cpu: str, other: str) -> None:
    document: dict[str, Any]
    try:
        samples, notes = PROBES[name](int(cpu), int(other))
        document = {"samples": samples, "notes": notes}
    except AsidError as refused:
        document = {"refused": refused.what}
    except (OSError, Refused) as refused:
        document = {"refused": str(refused)}
    sys.stdout.write(json.dumps(document))


if __name__ == "__main__":
    main(*sys.argv[1:])
