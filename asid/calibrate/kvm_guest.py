"""The smallest guest that /dev/kvm runs, to time its exits: a loop of machine code with its count, then one OUT.

Rule 1. A whole loop is one KVM_RUN. What is timed is a loop with the instruction less one without it, so neither Python
        nor the exit to user space is in the figure.
Rule 2. A guest that does anything but come to its OUT ends the measurement: it says what it did, and nothing is kept.

The guest runs in long mode with one identity page of 2 MiB. It has no interrupts and no devices.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Final

from asid.guest.kvm_api import EXIT_NAMES, EXIT_REASON, KVM_EXIT_IO, VcpuOfVm
from asid.guest.kvm_programs import set_long_mode

PORT: Final = 0x10

_MEMORY_BYTES: Final = 2 << 20
_CODE, _PML4, _PDPT, _PD = 0x1000, 0x2000, 0x3000, 0x4000
_PRESENT, _HUGE = 0x7, 0x87  # for ring 3 too
_RFLAGS: Final = 0x2 | 3 << 12  # ring 3 may use ports
_NOFLUSH: Final = 1 << 63
_PCID_BIT: Final = 1 << 17  # of ECX of CPUID leaf 1

# An iteration each; `dec esi; jnz` follows.
CPUID: Final = bytes.fromhex("31c0 0fa2")
CR3: Final = bytes.fromhex("0f22d8")
NOTHING: Final = b""


class Unexpected(OSError):
    """The guest did something else than come to its OUT."""


class Guest:
    """One VM with one vCPU. Raise HostUnsuitable or PermissionRefused where KVM gives none."""

    def __init__(self, ring: int) -> None:
        self._memory = mmap.mmap(-1, _MEMORY_BYTES)
        try:
            self._vcpu = VcpuOfVm(self._memory)
        except Exception:
            self._memory.close()
            raise
        for table, entry in ((_PML4, _PDPT | _PRESENT), (_PDPT, _PD | _PRESENT), (_PD, _HUGE)):
            struct.pack_into("<Q", self._memory, table, entry)
        self.has_pcid = _has_pcid(self._vcpu.cpuid)
        sregs = self._vcpu.sregs
        set_long_mode(sregs, _PML4, ring=ring, has_pcid=self.has_pcid)
        self._vcpu.sregs = sregs
        self._enter = self._vcpu.runner()

    def close(self) -> None:
        self._vcpu.close()
        self._memory.close()

    def load(self, iteration: bytes, count: int) -> None:
        """Put a loop of `count` iterations and its OUT at the start of the guest."""
        body = iteration + bytes.fromhex("ffce")
        body += struct.pack("<Bb", 0x75, -len(body) - 2)  # jnz
        code = b"\xbe" + struct.pack("<I", count) + body + bytes((0xE6, PORT))
        code += struct.pack("<Bb", 0xEB, -len(code) - 2)  # jmp: again, in the next KVM_RUN
        self._memory[_CODE : _CODE + len(code)] = code
        cr3 = _PML4 | (_NOFLUSH if self.has_pcid else 0)
        self._vcpu.regs = (cr3, *[0] * 15, _CODE, _RFLAGS)  # rax, ..., rip, rflags

    def run(self) -> int:
        """Run until the OUT; return nanoseconds. Raise Unexpected for any other exit."""
        begun_ns = time.perf_counter_ns()
        while not self._enter():
            pass  # a signal ended it: the guest goes on where it was
        took_ns = time.perf_counter_ns() - begun_ns
        reason = self._vcpu.run32[EXIT_REASON // 4]
        if reason != KVM_EXIT_IO:
            said = EXIT_NAMES.get(reason, str(reason)).removeprefix("KVM_EXIT_")
            raise Unexpected(f"the guest ended with exit {said}")
        return took_ns


def _has_pcid(cpuid: bytes) -> bool:
    """Whether leaf 1 of a struct kvm_cpuid2 has PCIDs."""
    (count,) = struct.unpack_from("<I", cpuid)
    for number in range(count):
        function, _, _, _, _, ecx = struct.unpack_from("<6I", cpuid, 8 + 40 * number)
        if function == 1:
            return bool(ecx & _PCID_BIT)
    return False
