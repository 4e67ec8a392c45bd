"""A thin binding to the KVM API: its ioctls by number, `struct kvm_run` by offset, both with the kernel's names.

From Documentation/virt/kvm/api.rst and include/uapi/linux/kvm.h (x86). No compiler is needed; nothing is decided here.

KVM_RUN goes through ctypes and not through `fcntl.ioctl`: its EINTR is an answer, which nobody may retry.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import Final

from asid.errors import HostUnsuitable, PermissionRefused

DEVICE: Final = "/dev/kvm"
API_VERSION: Final = 12

_KVMIO: Final = 0xAE


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


SREGS_BYTES: Final = 312  # struct kvm_sregs
REGS_BYTES: Final = 144  # struct kvm_regs: 16 registers, rip, rflags

KVM_GET_API_VERSION: Final = _io(0x00)
KVM_CREATE_VM: Final = _io(0x01)
KVM_CHECK_EXTENSION: Final = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io(0x04)
KVM_GET_SUPPORTED_CPUID: Final = 3 << 30 | 8 << 16 | _io(0x05)
KVM_CREATE_VCPU: Final = _io(0x41)
KVM_SET_USER_MEMORY_REGION: Final = _iow(0x46, 32)
KVM_RUN: Final = _io(0x80)
KVM_GET_REGS: Final = _ior(0x81, REGS_BYTES)
KVM_SET_REGS: Final = _iow(0x82, REGS_BYTES)
KVM_GET_SREGS: Final = _ior(0x83, SREGS_BYTES)
KVM_SET_SREGS: Final = _iow(0x84, SREGS_BYTES)
KVM_SET_SIGNAL_MASK: Final = _iow(0x8B, 4)
KVM_SET_CPUID2: Final = _iow(0x90, 8)
KVM_GET_TSC_KHZ: Final = _io(0xA3)
KVM_GET_STATS_FD: Final = _io(0xCE)

KVM_CAP_USER_MEMORY: Final = 3

# struct kvm_run, in bytes.
EXIT_REASON: Final = 8  # u32
IO_OFFSET: Final = 32  # u8 direction, u8 size, u16 port, u32 count, u64 data_offset
MMIO_OFFSET: Final = 32  # u64 phys_addr, u8 data[8], u32 len, u8 is_write
FAIL_ENTRY_OFFSET: Final = 32  # u64 hardware_entry_failure_reason
SUBERROR_OFFSET: Final = 32  # u32 suberror

KVM_EXIT_UNKNOWN: Final = 0
KVM_EXIT_IO: Final = 2
KVM_EXIT_HLT: Final = 5
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_SHUTDOWN: Final = 8
KVM_EXIT_FAIL_ENTRY: Final = 9
KVM_EXIT_INTR: Final = 10
KVM_EXIT_INTERNAL_ERROR: Final = 17

EXIT_NAMES: Final = {
    KVM_EXIT_UNKNOWN: "KVM_EXIT_UNKNOWN",
    KVM_EXIT_IO: "KVM_EXIT_IO",
    KVM_EXIT_HLT: "KVM_EXIT_HLT",
    KVM_EXIT_MMIO: "KVM_EXIT_MMIO",
    KVM_EXIT_SHUTDOWN: "KVM_EXIT_SHUTDOWN",
    KVM_EXIT_FAIL_ENTRY: "KVM_EXIT_FAIL_ENTRY",
    KVM_EXIT_INTR: "KVM_EXIT_INTR",
    KVM_EXIT_INTERNAL_ERROR: "KVM_EXIT_INTERNAL_ERROR",
}

_CPUID_ENTRIES_MAX: Final = 256
_CPUID_ENTRY_BYTES: Final = 40

# What to look at first, by what KVM said.
_WHY_ELSE: Final = "Look at dmesg; nested virtualization may be off."
_WHY: Final = {
    errno.EPERM: "A filter of system calls (seccomp) may forbid it: docker run --security-opt seccomp=unconfined.",
    errno.EACCES: "A security module may forbid it: look at dmesg.",
    errno.EBUSY: "Another hypervisor may have the processors: end its VMs, or unload its modules.",
    errno.ENOMEM: "The host, or this control group, is out of memory: smaller machines, or a higher limit.",
    errno.EMFILE: "Too few open files are allowed: ulimit -n.",
}

_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_ioctl.restype = ctypes.c_int


class VcpuOfVm:
    """A KVM VM of this process with one vCPU, over memory that other processes may have mapped too.

    KVM ties a VM to the process that made it, so hyperthreads that run vCPUs of one VM have one of these each.
    `run32` and `run64` are views of struct kvm_run, in words. `cpuid` is what the vCPU was given, a struct kvm_cpuid2.
    """

    def __init__(self, memory: mmap.mmap, *, device: str = DEVICE) -> None:
        """memory: what the guest has from physical address 0 on; whole pages. Raise as `open_device`, or
        HostUnsuitable for a device that cannot make a VM."""
        self._fds: list[int] = []
        self._views: list[memoryview] = []
        self._map: mmap.mmap | None = None
        self._memory: ctypes.Array[ctypes.c_char] | None = None
        try:
            self._make(memory, device)
        except OSError as error:
            self.close()
            raise unusable(error, device) from None
        except BaseException:
            self.close()
            raise

    def _make(self, memory: mmap.mmap, device: str) -> None:
        kvm = open_device(device)
        self._fds.append(kvm)
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        self._fds.append(vm)
        # The array keeps the mapping where it is: mmap refuses to close while it lives.
        self._memory = (ctypes.c_char * len(memory)).from_buffer(memory)
        region = struct.pack("IIQQQ", 0, 0, 0, len(memory), ctypes.addressof(self._memory))
        fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, region)
        self.fd = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
        self._fds.append(self.fd)
        self._map = mmap.mmap(self.fd, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
        whole = memoryview(self._map)
        self.run32, self.run64 = whole[:256].cast("I"), whole[:256].cast("Q")
        self._views = [self.run32, self.run64, whole]
        self.tsc_khz = self._tsc_khz()
        self._set_cpuid(kvm)

    def _set_cpuid(self, kvm: int) -> None:
        """Give the vCPU all that this KVM can, as a CPU without long mode may not be put into it."""
        cpuid = bytearray(8 + _CPUID_ENTRY_BYTES * _CPUID_ENTRIES_MAX)
        struct.pack_into("I", cpuid, 0, _CPUID_ENTRIES_MAX)
        fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)
        fcntl.ioctl(self.fd, KVM_SET_CPUID2, cpuid)
        self.cpuid = bytes(cpuid)

    def _tsc_khz(self) -> int:
        """Return the frequency of the guest's time-stamp counter; 0 where KVM does not know it."""
        try:
            return fcntl.ioctl(self.fd, KVM_GET_TSC_KHZ, 0)
        except OSError:
            return 0

    def set_signal_mask(self, blocked: set[int]) -> None:
        """Let these signals, and no others, be blocked while KVM_RUN runs; the thread's own mask holds elsewhere."""
        mask = sum(1 << signum - 1 for signum in blocked)
        fcntl.ioctl(self.fd, KVM_SET_SIGNAL_MASK, struct.pack("=IQ", 8, mask))

    @property
    def sregs(self) -> bytearray:
        """struct kvm_sregs, as it is now."""
        sregs = bytearray(SREGS_BYTES)
        fcntl.ioctl(self.fd, KVM_GET_SREGS, sregs)
        return sregs

    @sregs.setter
    def sregs(self, sregs: bytearray) -> None:
        fcntl.ioctl(self.fd, KVM_SET_SREGS, sregs)

    @property
    def regs(self) -> tuple[int, ...]:
        """rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags."""
        regs = bytearray(REGS_BYTES)
        fcntl.ioctl(self.fd, KVM_GET_REGS, regs)
        return struct.unpack("18Q", regs)

    @regs.setter
    def regs(self, regs: tuple[int, ...]) -> None:
        fcntl.ioctl(self.fd, KVM_SET_REGS, struct.pack("18Q", *regs))

    def runner(self) -> Callable[[], bool]:
        """Return what enters the guest. It returns True for an exit, False when a signal ended it or kept it out.

        It raises HostUnsuitable when KVM cannot run this guest.
        """
        fd, ioctl, get_errno = self.fd, _ioctl, ctypes.get_errno

        def run() -> bool:
            if ioctl(fd, KVM_RUN, 0) >= 0:
                return True
            if get_errno() in (errno.EINTR, errno.EAGAIN):
                return False
            raise unusable(OSError(get_errno(), os.strerror(get_errno())), what="KVM_RUN")

        return run

    def emulated(self) -> int | None:
        """Return how many guest instructions KVM has emulated in software; None where it does not say."""
        try:
            fd = fcntl.ioctl(self.fd, KVM_GET_STATS_FD, 0)
        except OSError:
            return None
        try:
            return _statistic(fd, b"insn_emulation")
        finally:
            os.close(fd)

    def close(self) -> None:
        """No guest runs on, and nothing of it is left in this process but the memory, which is its owner's."""
        for view in self._views:
            view.release()
        self._views = []
        if self._map is not None:
            self._map.close()
            self._map = None
        while self._fds:
            os.close(self._fds.pop())
        self._memory = None


def _statistic(fd: int, name: bytes) -> int | None:
    """Return a counter of KVM's binary statistics by its name; None when there is none of that name."""
    _, name_bytes, rows, _, rows_at, values_at = struct.unpack("6I", os.pread(fd, 24, 0))
    for row in range(rows):
        text = os.pread(fd, 16 + name_bytes, rows_at + row * (16 + name_bytes))
        if text[16:].rstrip(b"\0") == name:
            (offset,) = struct.unpack_from("I", text, 8)
            (value,) = struct.unpack("Q", os.pread(fd, 8, values_at + offset))
            return int(value)
    return None


def open_device(device: str = DEVICE) -> int:
    """Return a descriptor of the KVM device.

    Raise HostUnsuitable when there is none or it is none, PermissionRefused when it is not ours to open.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        theirs = error.errno == errno.EACCES
        raise PermissionRefused(
            f"{device} may not be opened",
            where="real guests",
            state="it belongs to another user or group" if theirs else "this container was not given it",
            allowed="who may read and write it",
            hint=("Join the group kvm" if theirs else f"docker run --device {device}")
            + ", or use a guest of another source (mix, trace).",
        ) from None
    except OSError as error:
        raise HostUnsuitable(
            f"{device}: {os.strerror(error.errno or 0)}",
            where="real guests",
            state="this host has no KVM, or this container was not given it",
            allowed=f"a host with {device}",
            hint="modprobe kvm_intel or kvm_amd; docker run --device /dev/kvm; or use a guest of source mix or trace.",
        ) from None
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION, 0)
        has_memory = version == API_VERSION and fcntl.ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY)
    except OSError as error:
        os.close(fd)
        raise unusable(error, device) from None
    if not has_memory:
        os.close(fd)
        raise HostUnsuitable(
            f"{device} speaks version {version} of the KVM API",
            where="real guests",
            allowed=f"version {API_VERSION}, with user memory",
            hint="Use a guest of another source (mix, trace).",
        )
    return fd


def unusable(error: OSError, device: str = DEVICE, what: str = "making a VM") -> HostUnsuitable:
    """Return what a user is told when the device is there, and KVM does not do what it is asked for."""
    return HostUnsuitable(
        f"{device}: {what} fails: {error.strerror}",
        where="real guests",
        state="the device is there, but makes no VM that runs",
        allowed="a KVM that runs x86 guests in real mode and in long mode",
        hint=f"{_WHY.get(error.errno or 0, _WHY_ELSE)} Or use a guest of source mix or trace.",
        data={"errno": error.errno},
    )
