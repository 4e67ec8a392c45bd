"""Whether every vCPU of a configuration can have its source of exits; asked once, before anything is started.

The sources themselves are made in the hyperthreads, each in its own process, where a refusal comes too late: the
machine would run without its guests. So whoever starts a machine reads here what they will read. What may be refused
is what `make_source` refuses, by the same functions.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from asid.config import Guest, Loaded
from asid.config_rules import printable
from asid.errors import AsidError, ConfigError, HostUnsuitable, PermissionRefused
from asid.guest import FILE_KEYS, guest_path, mix_rate_hz
from asid.guest.kvm import check_kvm
from asid.guest.mix import MixTable, read_mix
from asid.guest.trace import VcpuThread, check_clock, choose, vcpus
from asid.trace.reader import read_trace
from asid.trace.record import check_thread_numbers, find_tracefs, instance, places


class Recording(NamedTuple):
    """What must be known of a trace before it is played; its exits may be millions and are not kept."""

    path: str
    clock: str
    threads: tuple[VcpuThread, ...]
    notes: tuple[str, ...]


def recording(path: Path) -> Recording:
    """Read a trace, once however often it is asked for while its file stays as it is. Raise as `read_trace`."""
    path = path.resolve()
    try:
        found = path.stat()
    except OSError:
        return _read(path)  # which says what is wrong
    return _read_once(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


def check_guests(loaded: Loaded) -> None:
    """Raise what a hyperthread would die of: ConfigError with the key and its line, or PermissionRefused.

    Of a configuration that is no file, the error of the reader as it is.
    """
    config = loaded.config
    tables: dict[Path, MixTable] = {}
    for number, vm in enumerate(config.vm, start=1):
        if vm.guest.source not in FILE_KEYS:
            continue
        try:
            _check(vm.guest, len(config.places_of(number)), loaded.base_dir, tables)
        except AsidError as refused:
            if loaded.path is None:
                raise
            raise _placed(refused, vm.guest, number - 1, loaded) from None


def check_real_guests(loaded: Loaded) -> None:
    """Run the program of each real guest for a moment, on this host, and see whether KVM's events can be recorded when
    the configuration insists on them.

    Raise what stands in the way: HostUnsuitable, or PermissionRefused.
    """
    for program in sorted({vm.guest.program for vm in loaded.config.vm if vm.guest.source == "kvm"}):
        check_kvm(program)
    if loaded.config.real_vms and loaded.config.journal.kvm_events == "on":
        _check_tracefs()


def _check_tracefs() -> None:
    """Make an instance, as the recorder of a run will, and let it be."""
    try:
        check_thread_numbers()
        with instance(find_tracefs(places(), "journal.kvm_events")):
            pass
    except AsidError as refused:
        raise required(refused) from None


def required(refused: AsidError) -> AsidError:
    """Return the refusal of tracefs as that of the key which insists on it."""
    kind = PermissionRefused if isinstance(refused, PermissionRefused) else HostUnsuitable
    return kind(
        'journal.kvm_events = "on"',
        state=f"{refused.what}; {refused.state}" if refused.state else refused.what,
        allowed=refused.allowed,
        hint=refused.hint or 'Use "auto", and the journal says why there are none.',
    )


def _check(guest: Guest, vcpu_count: int, base_dir: Path, tables: dict[Path, MixTable]) -> None:
    path = guest_path(guest, base_dir)
    if guest.source == "mix":
        if path not in tables:
            tables[path] = read_mix(path)
        mix_rate_hz(guest, tables[path])
        return
    known = recording(path)
    check_clock(known.clock, known.path)
    for vcpu in range(vcpu_count):
        choose(known.threads, known.path, guest.thread, vcpu)


def _placed(refused: AsidError, guest: Guest, index: int, loaded: Loaded) -> AsidError:
    """Return the refusal of a file as that of the key which names it."""
    name = FILE_KEYS[guest.source]
    key, value = f"vm.{index}.guest.{name}", str(getattr(guest, name))
    said = refused.what if refused.where in ("", value) else f"{refused.where}: {refused.what}"
    kind = PermissionRefused if isinstance(refused, PermissionRefused) else ConfigError
    return kind(
        f'{key} = "{printable(value)}"',
        where=loaded.origin[key],
        state=printable(f"{said}; {refused.state}" if refused.state else said),
        allowed=refused.allowed,
        hint=printable(refused.hint),
        data=refused.data,
    )


def _read(path: Path) -> Recording:
    trace = read_trace(path)
    return Recording(trace.path, trace.clock, vcpus(trace), trace.notes)


@lru_cache(maxsize=8)
def _read_once(path: Path, _as_it_is: tuple[int, ...]) -> Recording:
    return _read(path)
