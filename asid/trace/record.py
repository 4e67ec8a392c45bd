"""Records VM exits of this host from tracefs, in the text that all readers of recordings here take.

An instance of its own (`instances/asid-PID`) has its own buffers and switches, so whoever else traces on this host is
not disturbed, and nothing is left on when it is removed. What a recorder that was killed has left, the next one
removes. Needs root, as a rule.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from asid.errors import HostUnsuitable, PermissionRefused

VERB: Final = "trace record"  # who looks for tracefs, if nobody else says so
PLACES: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
VARIABLE: Final = "ASID_TRACEFS"  # of the environment: where else tracefs is mounted
EVENTS: Final = ("kvm_exit", "kvm_entry", "kvm_userspace_exit")
OPTIONAL: Final = frozenset({"kvm_userspace_exit"})  # a recording without it is used as well
BUFFER_KB: Final = 8192  # of each CPU
LOOK_S: Final = 0.1
READ_BYTES: Final = 1 << 16
HEAD: Final = b"# tracer: nop\n# recorded by asid, clock mono\n"

FIRST_PIDS: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO, the same on every host

_EVENT = re.compile(rb": (kvm_[a-z_]+): ")


def places() -> tuple[Path, ...]:
    """Return where tracefs is looked for: the place that ASID_TRACEFS names, else the usual ones."""
    named = os.environ.get(VARIABLE, "")
    return (Path(named).absolute(),) if named else PLACES


def find_tracefs(places: Iterable[Path] = PLACES, where: str = VERB) -> Path:
    """Return the tracefs of this host that has events of KVM. where: who looks for it, for the errors.

    Raise HostUnsuitable where none is mounted or it has none, PermissionRefused where it is not ours to read.
    """
    mounted = None
    for place in places:
        try:
            if (place / "events" / "kvm").is_dir():
                return place
            mounted = place if (place / "events").is_dir() else mounted
        except PermissionError:
            raise PermissionRefused(
                f"{place} may not be read",
                where=where,
                state="tracefs belongs to root",
                allowed="root, or whom root has given it",
                hint="sudo asid trace record; or read the recording of somebody who may: asid assess FILE."
                if where == VERB
                else "Run as root.",
            ) from None
        except OSError:  # a name that is too long, a file system that fails: no tracefs either
            continue
    if mounted is not None:
        raise HostUnsuitable(
            f"{mounted} has no events of KVM",
            where=where,
            state="the module kvm is not loaded, or was built without them",
            allowed="a host with events/kvm",
            hint="modprobe kvm_intel or kvm_amd.",
        )
    raise HostUnsuitable(
        "no tracefs is mounted",
        where=where,
        state=f"looked at {', '.join(map(str, places))}",
        allowed="a mounted tracefs",
        hint="mount -t tracefs none /sys/kernel/tracing; or name another place: "
        + (f"{VARIABLE}, or --tracefs DIR." if where == VERB else f"{VARIABLE}."),
    )


def check_thread_numbers(where: str = VERB) -> None:
    """Raise HostUnsuitable where threads have other numbers for this process than for the kernel."""
    if os.readlink("/proc/self/ns/pid") != FIRST_PIDS:
        raise HostUnsuitable(
            "this process is in a pid namespace of its own",
            where=where,
            state="its threads have other numbers in the kernel's text",
            allowed="the first pid namespace of the host",
            hint="Start the container with the host's: --pid=host.",
        )


@contextlib.contextmanager
def instance(tracefs: Path, pids: Iterable[int] = (), buffer_kb: int = BUFFER_KB) -> Iterator[Path]:
    """An instance that records the events of KVM: of these threads, or of all. Nothing of it is left at the end.

    buffer_kb: its buffer for each CPU. Raise HostUnsuitable or PermissionRefused.
    """
    own = tracefs / "instances" / f"asid-{os.getpid()}"
    _remove(own)  # of one that was killed, whose number is ours by now
    clear_left(tracefs)
    try:
        own.mkdir()
    except OSError as error:
        raise _refused(own, error) from None
    try:
        try:
            _set_up(own, pids, buffer_kb)
        except OSError as error:
            raise _refused(own, error) from None
        yield own
    finally:
        _remove(own)


def clear_left(tracefs: Path) -> None:
    """Remove the instances of recorders that were killed."""
    for left in (tracefs / "instances").glob("asid-*"):
        pid = left.name.removeprefix("asid-")
        if pid.isdecimal() and _has_ended(pid):  # else somebody else has called theirs so
            _remove(left)


def _has_ended(pid: str) -> bool:
    """Whether a process is no more, or is dead and only waits for its parent to look."""
    try:
        return Path("/proc", pid, "stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def _remove(own: Path) -> None:
    """Switch an instance off, and remove it; whoever still reads it keeps it until then."""
    with contextlib.suppress(OSError):
        (own / "tracing_on").write_text("0")
    with contextlib.suppress(OSError):
        own.rmdir()


def _set_up(own: Path, pids: Iterable[int], buffer_kb: int) -> None:
    (own / "trace_clock").write_text("mono")
    (own / "buffer_size_kb").write_text(str(buffer_kb))
    if threads := " ".join(map(str, pids)):
        (own / "set_event_pid").write_text(threads)
        (own / "trace_options").write_text("event-fork")  # and those that they start
    for event in EVENTS:
        switch = own / "events" / "kvm" / event / "enable"
        if event not in OPTIONAL or switch.exists():
            switch.write_text("1")


def add_thread(own: Path, pid: int) -> None:
    """Record a further thread, in an instance that was made for some. Raise OSError."""
    fd = os.open(own / "set_event_pid", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)  # O_TRUNC would clear it first
    try:
        os.write(fd, f"{pid}\n".encode())
    finally:
        os.close(fd)


def open_pipe(own: Path) -> int:
    """Open the text of an instance: reading it takes it. Raise HostUnsuitable or PermissionRefused."""
    try:
        return os.open(own / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(own, error) from None


def record(own: Path, out: BinaryIO, ns: int, on_progress: Callable[[Counter[str], int], None]) -> Counter[str]:
    """Copy what an instance records into a file for some time; return how many events of each name there were.

    on_progress(so far, ns left) is called ten times a second or so, however much comes. Raise OSError for the
    file, and HostUnsuitable or PermissionRefused for the instance.
    """
    counts: Counter[str] = Counter()
    out.write(HEAD)
    until_ns = time.monotonic_ns() + ns
    fd = open_pipe(own)
    try:
        while (left_ns := until_ns - time.monotonic_ns()) > 0:
            select.select((fd,), (), (), min(LOOK_S, left_ns / 1e9))
            _copy(fd, out, counts, min(until_ns, time.monotonic_ns() + int(LOOK_S * 1e9)))
            on_progress(counts, max(0, until_ns - time.monotonic_ns()))
        with contextlib.suppress(OSError):
            (own / "tracing_on").write_text("0")
        _copy(fd, out, counts, time.monotonic_ns() + ns)
    finally:
        os.close(fd)
    return counts


def _copy(fd: int, out: BinaryIO, counts: Counter[str], until_ns: int) -> None:
    """Copy what there is by now, or until it is time."""
    while time.monotonic_ns() < until_ns:
        try:
            text = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise _refused(Path("trace_pipe"), error) from None
        if not text:
            return
        out.write(text)
        counts.update(name.decode() for name in _EVENT.findall(text))


def threads_of(pid: int) -> tuple[int, ...]:
    """Return the threads of a process. Raise HostUnsuitable when there is none of that number."""
    try:
        return tuple(sorted(int(name) for name in os.listdir(f"/proc/{pid}/task")))
    except OSError:
        raise HostUnsuitable(
            f"there is no process {pid}", where="trace record: --pid", allowed="the process of a VM",
            hint="pgrep -a qemu finds those of QEMU; without --pid all VMs of this host are recorded.",
        ) from None  # fmt: skip


def check_counts(counts: Counter[str], path: str, seconds: float) -> None:
    """Raise HostUnsuitable for a recording that nobody can use: it has no exit, or no entry."""
    if counts["kvm_exit"] and counts["kvm_entry"]:
        return
    told = ", ".join(f"{counts[name]:,} {name}" for name in EVENTS)
    why = "a VM ran, and this KVM tells no exits" if counts["kvm_userspace_exit"] else "no VM ran meanwhile, it seems"
    raise HostUnsuitable(
        f"no VM exit was recorded in {seconds:g} s",
        where=path,
        state=f"{told}: {why}",
        allowed="kvm_exit and kvm_entry, both",
        hint="A KVM that emulates its guests emits none. Else record while a VM runs, and for longer.",
    )


def _refused(own: Path, error: OSError) -> HostUnsuitable | PermissionRefused:
    kind = PermissionRefused if isinstance(error, PermissionError) else HostUnsuitable
    return kind(
        f"{error.filename or own}: {os.strerror(error.errno or 0)}",
        where="trace record",
        state="nothing was recorded",
        allowed="a tracefs that makes instances",
        hint="Run as root; a kernel in lockdown traces nobody.",
    )
