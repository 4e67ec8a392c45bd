"""What this host can carry: the checks of `asid doctor`. Each looks at one fact and says what it means for asid.

good: as it should be. note: asid runs, but read its numbers with this in mind. bad: asid cannot run here.
"""

from __future__ import annotations

import os
import platform
import resource
import stat
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from asid.units import format_cpulist, format_size, parse_cpulist

SOCKET_PATH_MAX_BYTES = 107  # sockaddr_un has 108, one of them the final NUL
LONGEST_SOCKET = "listener-12345678"  # the fork server's
INSTANCE_NAME_MAX = 32
FILES_NEEDED = 1024  # 64 hyperthreads and 8 coordinators with their sockets, pidfds and pages
PROCESSES_NEEDED = 256
FILE_BYTES_NEEDED = 2 << 20  # a ring, with some to spare
MEMORY_NEEDED_BYTES = 1 << 30
MEMORY_BAD_BYTES = 128 << 20
PACKAGES = (("pyzmq", (27,)), ("msgpack", (1, 2, 1)), ("msgspec", (0, 19)), ("psutil", (5, 9)), ("click", (8, 1)))

SYS = Path("/sys/devices/system")


class Finding(NamedTuple):
    """One fact. level: good, note or bad."""

    level: str
    what: str
    value: str
    meaning: str


def findings() -> list[Finding]:
    """Every check of this host, in a fixed order. A check that itself fails is a note, never the end of the list."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found.extend(check())
        except OSError as failed:
            found.append(Finding("note", check.__name__.strip("_"), str(failed), "could not be looked at"))
    return found


def _python() -> list[Finding]:
    found = platform.python_version()
    level = "good" if sys.version_info >= (3, 11) else "bad"
    items = [Finding(level, "python", found, "3.11 or newer is needed")]
    if not __debug__:
        items.append(
            Finding("bad", "python -O", "on", "each process asserts what it can see of the guarantees: leave -O out")
        )
    return items


def _packages() -> list[Finding]:
    items = []
    for name, least in PACKAGES:
        wanted = ".".join(map(str, least))
        try:
            have = version(name)
        except PackageNotFoundError:
            items.append(Finding("bad", name, "missing", f"needed, {wanted} or newer: pip install '{name}>={wanted}'"))
            continue
        numbers = tuple(int(part) for part in have.split(".")[:3] if part.isdigit())
        meaning = "below 1.2.1 a caught decoding error can crash the process" if name == "msgpack" else "as needed"
        items.append(Finding("good" if numbers >= least else "bad", name, have, f"{wanted} or newer: {meaning}"))
    return items


def _kernel() -> list[Finding]:
    """The calls that processes, kicks and deaths rest on."""
    missing = [name for name in ("memfd_create", "pidfd_open", "eventfd") if not hasattr(os, name)]
    try:
        for name in {"memfd_create", "pidfd_open", "eventfd"} - set(missing):
            os.close(_open_one(name))
    except OSError as failed:
        missing.append(f"{name}: {failed.strerror}")
    what = "memfd, pidfd, eventfd"
    if missing:
        return [
            Finding("bad", what, "lacking " + ", ".join(missing), "a Linux of 5.3 or newer, not filtered by seccomp")
        ]
    return [Finding("good", what, platform.release(), "core pages without names, deaths confirmed without doubt")]


def _open_one(name: str) -> int:
    if name == "memfd_create":
        return os.memfd_create("asid-doctor")
    return os.pidfd_open(os.getpid()) if name == "pidfd_open" else os.eventfd(0)


def _cores() -> list[Finding]:
    usable = sorted(os.sched_getaffinity(0))
    cores: dict[str, list[int]] = {}
    for cpu in usable:
        path = SYS / f"cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings = path.read_text().strip() if path.exists() else str(cpu)
        cores.setdefault(siblings, []).append(cpu)
    few = len(usable) < 2
    shared = [format_cpulist(parse_cpulist(siblings)) for siblings, cpus in cores.items() if len(cpus) > 1]
    return [
        Finding(
            "note" if few else "good",
            "cpus",
            f"{format_cpulist(usable)} ({len(usable)})",
            "hyperthreads of asid share these; with fewer than its processes, waits hold the scheduler's share"
            if len(usable) < 8
            else "enough for small machines to run without waiting for a CPU",
        ),
        Finding(
            "note" if shared else "good",
            "smt siblings",
            "; ".join(shared) if shared else "none seen",
            "two asid processes on siblings slow each other" if shared else "each CPU stands for a core of its own",
        ),
    ]


def _clock() -> list[Finding]:
    import time

    path = SYS / "clocksource/clocksource0/current_clocksource"
    source = path.read_text().strip() if path.exists() else "unknown"
    step_ns = time.get_clock_info("monotonic").resolution * 1e9
    cheap = source in ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
    return [
        Finding(
            "good" if cheap and step_ns <= 1000 else "note",
            "clocksource",
            f"{source}, step {step_ns:.0f} ns",
            "reading it is cheap" if cheap else "reading it may cost a microsecond: short exits look longer",
        )
    ]


def _limits() -> list[Finding]:
    items = []
    for what, limit, needed, meaning in (
        ("open files", resource.RLIMIT_NOFILE, FILES_NEEDED, "sockets of 64 hyperthreads need as many: ulimit -n"),
        ("processes", resource.RLIMIT_NPROC, PROCESSES_NEEDED, "one a hyperthread, with ZeroMQ threads: ulimit -u"),
    ):
        soft, hard = resource.getrlimit(limit)
        free = soft == resource.RLIM_INFINITY or soft >= needed
        shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        level = "good" if free else "note" if hard == resource.RLIM_INFINITY or hard >= needed else "bad"
        items.append(Finding(level, what, shown, f"{needed} for the largest machines; {meaning}"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = soft == resource.RLIM_INFINITY
    shown = "unlimited" if free else format_size(soft)
    level = "good" if free else "note" if soft >= FILE_BYTES_NEEDED or hard == resource.RLIM_INFINITY else "bad"
    meaning = f"{format_size(FILE_BYTES_NEEDED)} between processes, and a journal as long as its run: ulimit -f"
    return [*items, Finding(level, "file length", shown, meaning)]


def _memory() -> list[Finding]:
    import psutil

    free_bytes = int(psutil.virtual_memory().available)
    level = "good" if free_bytes >= MEMORY_NEEDED_BYTES else "note" if free_bytes >= MEMORY_BAD_BYTES else "bad"
    return [
        Finding(level, "free memory", format_size(free_bytes), "small machines need some 100 MiB, 64 threads 1 GiB")
    ]


def _directories() -> list[Finding]:
    # The same rule as asid.live.instance, which is not imported: it needs ZeroMQ, and that may be what is wrong.
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = os.path.isabs(given) and os.access(given, os.W_OK | os.X_OK)
    base = Path(given) / "asid" if usable else Path(tempfile.gettempdir()) / f"asid-{os.geteuid()}"
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "asid" / "runs"
    longest = len(os.fsencode(base / ("x" * INSTANCE_NAME_MAX) / LONGEST_SOCKET))
    fits = longest <= SOCKET_PATH_MAX_BYTES
    room = SOCKET_PATH_MAX_BYTES - (longest - INSTANCE_NAME_MAX)
    return [
        _directory("sockets", base, "XDG_RUNTIME_DIR"),
        Finding(
            "good" if fits else "note" if room >= len("default") else "bad",
            "socket path",
            f"up to {longest} bytes of {SOCKET_PATH_MAX_BYTES}",
            "any instance name fits" if fits else f"instance names of at most {max(room, 0)} characters fit",
        ),
        _directory("runs", state, "XDG_STATE_HOME"),
    ]


def _directory(what: str, path: Path, variable: str) -> Finding:
    """Whether `path`, or the nearest directory above it that exists, can be written by us."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding("bad", what, f"{there} is not writable", f"set {variable} to a directory of yours")
    mode = stat.S_IMODE(there.stat().st_mode)
    if what == "sockets" and there == path and mode & 0o077:
        return Finding("bad", what, f"{path} has mode {mode:04o}", f"others could talk to the daemon: chmod 700 {path}")
    return Finding("good", what, str(path), f"{variable} moves it")


def _kvm() -> list[Finding]:
    device = Path("/dev/kvm")
    if not device.exists():
        return [Finding("note", "/dev/kvm", "absent", "emulated guests do not need it; real ones would")]
    from asid.errors import AsidError
    from asid.guest.kvm import check_kvm

    try:
        emulated = check_kvm("spin")
    except AsidError as refused:
        return [Finding("note", "/dev/kvm", refused.what, refused.hint)]
    meaning = "real guests run here; their instructions are emulated in software, so slowly"
    usable = Finding("good", "/dev/kvm", "usable", meaning if emulated else "real guests run here")
    return [usable, _kvm_events()]


def _kvm_events() -> Finding:
    """Of use with real guests alone. No instance is made: who only looks leaves tracefs as it is."""
    from asid.errors import AsidError
    from asid.trace.record import check_thread_numbers, find_tracefs, places

    try:
        check_thread_numbers("doctor")
        found = find_tracefs(places(), "doctor")
    except AsidError as refused:
        return Finding("note", "kvm events", refused.what, refused.hint)
    if not os.access(found / "instances", os.W_OK | os.X_OK):
        return Finding("note", "kvm events", f"{found} makes no instances", "mount it writable, or name another place")
    return Finding("good", "kvm events", str(found), "runs of real guests record them")


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _packages,
    _kernel,
    _cores,
    _clock,
    _limits,
    _memory,
    _directories,
    _kvm,
)
