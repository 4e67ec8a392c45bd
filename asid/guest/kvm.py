"""A real guest: one vCPU of this process on /dev/kvm, the program it runs, and its exits in the words of all sources.

The hyperthread process is what KVM is to a VM, and KVM_RUN is its VM entry. So the exits that KVM hands to userspace
are the exits that the hyperthread handles: a port of the timer is one of a device in the kernel, and may be handled in
the isolated address space; one of the UART goes on to the VMM. What KVM itself does with an exit that it hands to
nobody (CPUID, most MSRs, page faults) is not visible from here; such an exit is part of the guest's time.

KVM ties a VM to the process that made it. So each hyperthread has a KVM VM with one vCPU, and what makes them one VM
is their memory: the same pages, mapped by all of them.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from asid.core.exits import Isa, name_of
from asid.errors import ConfigError, HostUnsuitable
from asid.guest.base import Exit
from asid.guest.kvm_api import (
    DEVICE,
    EXIT_NAMES,
    EXIT_REASON,
    FAIL_ENTRY_OFFSET,
    IO_OFFSET,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_HLT,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_IO,
    KVM_EXIT_MMIO,
    MMIO_OFFSET,
    SUBERROR_OFFSET,
    VcpuOfVm,
    open_device,
    unusable,
)
from asid.guest.kvm_kick import Kick, make_bell
from asid.guest.kvm_programs import (
    CODE,
    COUNTER,
    IO_APIC,
    PERIOD,
    PROGRAMS,
    GuestMemory,
    Program,
    entry_regs,
    entry_sregs,
    make_memory,
)
from asid.mm.parts import Part

PROGRAM_DEFAULT: Final = "mix"
RATE_HZ_DEFAULT: Final = 1000.0
MACHINES: Final = ("x86_64", "AMD64")
TRY_NS: Final = 1_000_000_000  # for a guest to show that it runs
LOOK_NS: Final = 10_000_000  # between two looks at whether it has

# Ports of devices that KVM itself can have for a VM: interrupt controllers, timer. The others are the VMM's.
KERNEL_PORTS: Final = frozenset((0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61))

Key = tuple[int, int]  # of exits that are alike: KVM's reason, and the port or address with its width


REASON_WORD: Final = EXIT_REASON // 4  # of a key, in run32
DETAIL_WORD: Final = IO_OFFSET // 8  # and in run64


class _Numbers(NamedTuple):
    """Exit numbers of a kind of processor: a port, a halt, and an access where no memory is."""

    io: int
    hlt: int
    mmio: int


_NUMBERS: Final[dict[Isa, _Numbers]] = {"vmx": _Numbers(30, 12, 49), "svm": _Numbers(0x7B, 0x78, 0x400)}


def host_isa(cpuinfo: Path = Path("/proc/cpuinfo")) -> Isa:
    """Return the kind of virtualization of this host's processors; vmx where they do not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "vmx"
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "svm" if "svm" in flags else "vmx"


def find_program(name: str, where: str = "guest.program") -> Program:
    """Return a program by its name, the default for an empty one. Raise ConfigError when there is none."""
    program = PROGRAMS.get(name or PROGRAM_DEFAULT)
    if program is not None:
        return program
    raise ConfigError(
        f"guest.program = {name!r}", where=where, state="no such program", allowed=", ".join(PROGRAMS),
        hint="docs/kvm.md says what each of them does.",
    )  # fmt: skip


class RealVcpu:
    """One vCPU: `enter` runs it until it exits or is thrown out; `take_exit` says what it exited for.

    run32, run64: views of its struct kvm_run, in words.
    """

    def __init__(self, memory_fd: int, program: Program, place: int, kick: Kick, *, rate_hz: float = 0.0) -> None:
        """memory_fd: of its VM, see `make_memory`. place: the number of its hyperthread over the whole machine.
        rate_hz: how often a paced program exits, 0 for as often as it can; how often one that halts is woken.

        Raise HostUnsuitable or PermissionRefused where no VM can be made.
        """
        self.program = program
        self.isa = host_isa()
        self.kick = kick
        self.memory = GuestMemory(memory_fd)
        self.words = self.memory.words
        self.counter = self.memory.word(place, COUNTER)
        self.wake_ns = round(1e9 / (rate_hz or RATE_HZ_DEFAULT))
        try:
            self.memory.load(program)
            self._vcpu = VcpuOfVm(self.memory.map)
        except BaseException:
            self.memory.close()
            raise
        try:
            self._set_up(place, rate_hz)
        except OSError as error:
            self.close()
            raise unusable(error, what="setting up a vCPU") from None
        self.enter: Callable[[], bool] = self._vcpu.runner()
        self.tsc_khz = self._vcpu.tsc_khz
        self.run32, self.run64 = self._vcpu.run32, self._vcpu.run64
        self._exits: dict[Key, Exit] = {}

    def _set_up(self, place: int, rate_hz: float) -> None:
        vcpu, program = self._vcpu, self.program
        period = round(1000 * vcpu.tsc_khz / rate_hz) if rate_hz else 0
        self.words[self.memory.word(place, PERIOD)] = period
        vcpu.sregs = entry_sregs(program, place, vcpu.sregs)
        vcpu.regs = entry_regs(program, place)
        vcpu.set_signal_mask(self.kick.blocked_in_guest)

    @property
    def count(self) -> int:
        """Turns of the program's loop so far, as the guest itself counts them."""
        return self.words[self.counter]

    def key(self) -> Key:
        """Return what tells the exit that has just come from others, without a look at its reason's details."""
        return self.run32[REASON_WORD], self.run64[DETAIL_WORD]

    def take_exit(self) -> Exit:
        """Return the exit that has just come. Raise HostUnsuitable for one with which a guest cannot go on."""
        key = self.key()
        found = self._exits.get(key)
        if found is None:
            found = self._exits[key] = self._read_exit(key)
            if len(self._exits) > 1024:
                self._exits.clear()
        return found

    def _read_exit(self, key: Key) -> Exit:
        reason, detail = key
        numbers = _NUMBERS[self.isa]
        if reason == KVM_EXIT_IO:
            port = detail >> 16 & 0xFFFF  # the word is direction, size, port, count
            return self._exit(numbers.io, port in KERNEL_PORTS)
        if reason == KVM_EXIT_MMIO:
            address = self.run64[MMIO_OFFSET // 8]
            return self._exit(numbers.mmio, IO_APIC <= address < IO_APIC + 0x1000)
        if reason == KVM_EXIT_HLT:
            name = name_of(self.isa, numbers.hlt)
            return Exit(0, name, self.isa, 0, False, self.wake_ns, frozenset({Part.BLOCKS}))
        raise self._broken(reason)

    def _exit(self, number: int, in_kernel: bool) -> Exit:
        part = Part.KERNEL_DEVICE if in_kernel else Part.VMM_DEVICE
        return Exit(0, name_of(self.isa, number), self.isa, 0, False, parts=frozenset({part}))

    def _broken(self, reason: int) -> HostUnsuitable:
        """Return the end of a guest that cannot go on."""
        said = EXIT_NAMES.get(reason, f"KVM exit reason {reason}")
        if reason == KVM_EXIT_FAIL_ENTRY:
            said += f", hardware reason {self.run64[FAIL_ENTRY_OFFSET // 8]:#x}"
        elif reason == KVM_EXIT_INTERNAL_ERROR:
            said += f", suberror {self.run32[SUBERROR_OFFSET // 4]}"
        try:
            rip = f"{self._vcpu.regs[16]:#x}"
        except OSError:
            rip = "unknown"
        return HostUnsuitable(
            said,
            where=f"program {self.program.name}",
            state=f"rip {rip}, the program begins at {CODE:#x}",
            allowed="exits for a port, MMIO or a halt",
            hint="Look at dmesg: this KVM cannot run it. Use another program, or a source of exits (mix, trace).",
        )

    def is_emulated(self) -> bool:
        """Whether most of what the guest has run was emulated, an instruction or more a turn of its loop."""
        emulated = self._vcpu.emulated()
        return emulated is not None and emulated >= max(self.count, 1)

    def close(self) -> None:
        """The guest is gone; its memory stays with the others."""
        self._vcpu.close()
        self.memory.close()


def check_kvm(program: str = "", *, device: str = DEVICE) -> bool:
    """Run a program for a moment, in this thread. Raise what stands in the way: HostUnsuitable, PermissionRefused.

    Return whether KVM emulates this guest's instructions in software, as one does that has no hardware below it. Then
    exits, kicks and gate are as ever, and guest time is slow. It never waits longer than TRY_NS, whatever this KVM does
    with its guest.
    """
    chosen = find_program(program)
    if platform.machine() not in MACHINES:
        raise HostUnsuitable(
            f"a processor of kind {platform.machine()}",
            where="real guests",
            state="the programs are machine code of x86",
            allowed=", ".join(MACHINES),
            hint="Use a guest of another source (mix, trace).",
        )
    os.close(open_device(device))
    memory_fd = make_memory("asid-try")
    hear, ring = make_bell()
    try:
        kick = Kick(hear)
        try:
            vcpu = RealVcpu(memory_fd, chosen, 0, kick)
            try:
                return _try(vcpu, kick)
            finally:
                vcpu.close()
        finally:
            kick.close()
    except OSError as error:
        raise unusable(error, device, "trying a guest") from None
    finally:
        for fd in (memory_fd, hear, ring):
            os.close(fd)


def _try(vcpu: RealVcpu, kick: Kick) -> bool:
    """Return, when the guest has run, whether it was emulated. Raise HostUnsuitable when it does not run."""
    kick.arm(LOOK_NS, LOOK_NS)
    until_ns = time.monotonic_ns() + TRY_NS
    while time.monotonic_ns() < until_ns:
        if vcpu.enter():
            vcpu.take_exit()
        else:
            kick.hush()
        if vcpu.count:
            return vcpu.is_emulated()
    raise HostUnsuitable(
        f"the program {vcpu.program.name} has not run one turn of its loop in {TRY_NS / 1e9:g} s",
        where="real guests",
        state=f"KVM_RUN on {DEVICE} comes back, but no guest instruction shows",
        allowed="a KVM that runs x86 guests in real mode and in long mode",
        hint="Use a guest of another source (mix, trace).",
    )
