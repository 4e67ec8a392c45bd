"""The smallest guest that /dev/kvm runs, to time its exits: a loop of machine code with its count, then one OUT.

Rule 1. A whole loop is one KVM_RUN. What is timed is a loop with the instruction less one without it, so neither Python
        nor the exit to user space is in the figure.
Rule 2. A guest that does anything but come to its OUT ends the measurement: it says what it did, and nothing is kept.

The guest runs in long mode with one identity page of 2 MiB. It has no interrupts and no devices.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time
from typing import Final

DEVICE: Final = "/dev/kvm"
API_VERSION: Final = 12
PORT: Final = 0x10

_GET_API_VERSION: Final = 0xAE00
_CREATE_VM: Final = 0xAE01
_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_GET_SUPPORTED_CPUID: Final = 0xC008AE05
_CREATE_VCPU: Final = 0xAE41
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_RUN: Final = 0xAE80
_SET_REGS: Final = 0x4090AE82
_GET_SREGS: Final = 0x8138AE83
_SET_SREGS: Final = 0x4138AE84
_SET_CPUID2: Final = 0x4008AE90

_EXIT_NAMES: Final = {5: "HLT", 6: "MMIO", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 10: "INTR", 17: "INTERNAL_ERROR"}
_EXIT_IO: Final = 2
_EXIT_REASON_AT: Final = 8  # in struct kvm_run

_MEMORY_BYTES: Final = 2 << 20
_CODE, _PML4, _PDPT, _PD = 0x1000, 0x2000, 0x3000, 0x4000
_PRESENT, _HUGE = 0x7, 0x87  # for ring 3 too
_CR0: Final = 0x80000001 | 0x10  # PG, PE, ET
_CR4_PAE, _CR4_PCIDE = 1 << 5, 1 << 17
_EFER: Final = (1 << 8) | (1 << 10)  # LME, LMA
_RFLAGS: Final = 0x2 | 3 << 12  # ring 3 may use ports
_NOFLUSH: Final = 1 << 63
_CPUID_ENTRIES: Final = 256
_PCID_BIT: Final = 1 << 17  # of ECX of CPUID leaf 1

# An iteration each; `dec esi; jnz` follows.
CPUID: Final = bytes.fromhex("31c0 0fa2")
CR3: Final = bytes.fromhex("0f22d8")
NOTHING: Final = b""


class Unexpected(OSError):
    """The guest did something else than come to its OUT."""


class Guest:
    """One VM with one vCPU. Raise OSError where KVM gives none."""

    def __init__(self, ring: int) -> None:
        self._ring = ring
        self._kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        version = fcntl.ioctl(self._kvm, _GET_API_VERSION)
        if version != API_VERSION:
            raise OSError(f"KVM of API version {version}; {API_VERSION} is known here")
        self._vm = fcntl.ioctl(self._kvm, _CREATE_VM, 0)
        self._memory = mmap.mmap(-1, _MEMORY_BYTES)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        fcntl.ioctl(self._vm, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY_BYTES, at))
        self._vcpu = fcntl.ioctl(self._vm, _CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, fcntl.ioctl(self._kvm, _GET_VCPU_MMAP_SIZE))
        for table, entry in ((_PML4, _PDPT | _PRESENT), (_PDPT, _PD | _PRESENT), (_PD, _HUGE)):
            struct.pack_into("<Q", self._memory, table, entry)
        self.has_pcid = self._take_cpuid()
        self._to_long_mode()

    def close(self) -> None:
        for fd in (self._vcpu, self._vm, self._kvm):
            os.close(fd)

    def load(self, iteration: bytes, count: int) -> None:
        """Put a loop of `count` iterations and its OUT at the start of the guest."""
        body = iteration + bytes.fromhex("ffce")
        body += struct.pack("<Bb", 0x75, -len(body) - 2)  # jnz
        code = b"\xbe" + struct.pack("<I", count) + body + bytes((0xE6, PORT))
        code += struct.pack("<Bb", 0xEB, -len(code) - 2)  # jmp: again, in the next KVM_RUN
        self._memory[_CODE : _CODE + len(code)] = code
        cr3 = _PML4 | (_NOFLUSH if self.has_pcid else 0)
        registers = [cr3, *[0] * 15, _CODE, _RFLAGS]  # rax, ..., rip, rflags
        fcntl.ioctl(self._vcpu, _SET_REGS, struct.pack("<18Q", *registers))

    def run(self) -> int:
        """Run until the OUT; return nanoseconds. Raise Unexpected for any other exit."""
        begun_ns = time.perf_counter_ns()
        fcntl.ioctl(self._vcpu, _RUN, 0)
        took_ns = time.perf_counter_ns() - begun_ns
        (reason,) = struct.unpack_from("<I", self._run, _EXIT_REASON_AT)
        if reason != _EXIT_IO:
            raise Unexpected(f"the guest ended with exit {_EXIT_NAMES.get(reason, reason)}")
        return took_ns

    def _take_cpuid(self) -> bool:
        """Give the guest what the host supports; return whether that has PCIDs."""
        entries = bytearray(struct.pack("<II", _CPUID_ENTRIES, 0) + bytes(40 * _CPUID_ENTRIES))
        fcntl.ioctl(self._kvm, _GET_SUPPORTED_CPUID, entries)
        fcntl.ioctl(self._vcpu, _SET_CPUID2, entries)
        (count,) = struct.unpack_from("<I", entries)
        for number in range(count):
            function, _, _, _, _, ecx = struct.unpack_from("<6I", entries, 8 + 40 * number)
            if function == 1:
                return bool(ecx & _PCID_BIT)
        return False

    def _to_long_mode(self) -> None:
        state = bytearray(312)
        fcntl.ioctl(self._vcpu, _GET_SREGS, state)
        code = _segment(0x8, self._ring, kind=0xB, long_mode=True)
        data = _segment(0x10, self._ring, kind=0x3, long_mode=False)
        state[0:144] = code + data * 5  # cs; ds, es, fs, gs, ss
        cr4 = _CR4_PAE | (_CR4_PCIDE if self.has_pcid else 0)
        struct.pack_into("<QQQQ", state, 224, _CR0, 0, _PML4, cr4)
        struct.pack_into("<Q", state, 264, _EFER)
        fcntl.ioctl(self._vcpu, _SET_SREGS, bytes(state))


def _segment(selector: int, ring: int, *, kind: int, long_mode: bool) -> bytes:
    """A flat segment as struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, ..."""
    bits = (kind, 1, ring, not long_mode, 1, long_mode, 1, 0, 0, 0)
    return struct.pack("<QIH10B", 0, 0xFFFFFFFF, selector | ring, *bits)
