"""What real guests run: small programs in machine code, their assembly beside them, and the memory they run in.

Every program counts in its vCPU's own counter, at each turn of its loop: who reads it knows whether the guest ran.

    physical memory of a VM, 2 MiB, shared by the processes of all its vCPUs
    0x001000   page tables of long mode: the first 4 MiB and the page of the I/O APIC, each at its own address
    0x008000   the program
    0x010000   a page for each hyperthread of the machine, see COUNTER and so on: its vCPU's words
    0x100000   the VM's data, which the program `prober` reads
    0x200000   no memory from here on: a device of the VMM; at 0xfec00000 one of the kernel

Real mode: DS is the vCPU's page. Long mode: RDI is its address, RSI that of the VMM's device.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final, Literal, NamedTuple

MEMORY_BYTES: Final = 0x200000
TABLES: Final = 0x1000
CODE: Final = 0x8000
PAGES: Final = 0x10000
PAGE_BYTES: Final = 0x1000
DATA: Final = 0x100000
VMM_DEVICE: Final = 0x200000
IO_APIC: Final = 0xFEC00000
HYPERTHREADS_MAX: Final = (DATA - PAGES) // PAGE_BYTES  # pages that there is room for, all below 1 MiB

# A vCPU's words, by number, of 64 bits.
COUNTER: Final = 0  # written by the guest: turns of its loop; of 32 bits in real mode
FOUND: Final = 1  # written by the guest `prober`: how often it has read what it looks for
SECRET: Final = 2  # written by the host: what the prober looks for
PERIOD: Final = 3  # written by the host: cycles of the guest's time-stamp counter between two exits of `mix`
WORDS: Final = 4

# Of PERIOD: with fewer the clock of its guest has no word for it; with more nobody could tell it from none.
RATE_HZ_MIN: Final = 1e-3
RATE_HZ_MAX: Final = 1e6

UART: Final = 0x3F8  # a device of the VMM
PIT: Final = 0x40  # one that KVM itself has

Mode = Literal["real", "long"]


class Program(NamedTuple):
    """lines: (machine code in hex, assembly in Intel's syntax), a label ends with a colon. paced: the host sets how
    often it exits."""

    name: str
    mode: Mode
    about: str
    lines: tuple[tuple[str, str], ...]
    paced: bool = False

    @property
    def code(self) -> bytes:
        return bytes.fromhex("".join(code for code, _ in self.lines))


SPIN: Final = Program(
    "spin", "real", "spins, and never exits by itself",
    (
        ("66ff060000", "top: inc dword ptr ds:0"),
        ("ebf9", "jmp top"),
    ),
)  # fmt: skip

PORT: Final = Program(
    "port", "real", "writes to a port of the VMM, without a pause",
    (
        ("baf803", "mov dx, 0x3f8"),
        ("66ff060000", "top: inc dword ptr ds:0"),
        ("ee", "out dx, al"),
        ("ebf8", "jmp top"),
    ),
)  # fmt: skip

TIMER: Final = Program(
    "timer", "real", "writes to the timer, a device that KVM itself has, without a pause",
    (
        ("66ff060000", "top: inc dword ptr ds:0"),
        ("e640", "out 0x40, al"),
        ("ebf7", "jmp top"),
    ),
)  # fmt: skip

HALT: Final = Program(
    "halt", "real", "halts whenever it is woken",
    (
        ("66ff060000", "top: inc dword ptr ds:0"),
        ("f4", "hlt"),
        ("ebf8", "jmp top"),
    ),
    paced=True,
)  # fmt: skip

MMIO: Final = Program(
    "mmio", "long", "writes to a device of the VMM that looks like memory, without a pause",
    (
        ("48ff07", "top: inc qword ptr [rdi]"),
        ("8906", "mov dword ptr [rsi], eax"),
        ("ebf9", "jmp top"),
    ),
)  # fmt: skip

CPUID: Final = Program(
    "cpuid", "long", "exits to KVM alone, who hides it: CPUID, and RDMSR of IA32_APIC_BASE",
    (
        ("48ff07", "top: inc qword ptr [rdi]"),
        ("31c0", "xor eax, eax"),
        ("0fa2", "cpuid"),
        ("b91b000000", "mov ecx, 0x1b"),
        ("0f32", "rdmsr"),
        ("ebf0", "jmp top"),
    ),
)  # fmt: skip

PROBER: Final = Program(
    "prober", "long", "reads all of the VM's data over and over, and counts how often it finds the secret",
    (
        ("be00001000", "again: mov esi, 0x100000"),
        ("b900000200", "mov ecx, 0x20000"),
        ("48ff07", "next: inc qword ptr [rdi]"),
        ("48ad", "lodsq"),
        ("483b4710", "cmp rax, qword ptr [rdi+0x10]"),
        ("7504", "jne other"),
        ("48ff4708", "inc qword ptr [rdi+8]"),
        ("e2ef", "other: loop next"),
        ("ebe3", "jmp again"),
    ),
)  # fmt: skip

MIX: Final = Program(
    "mix", "long",
    "exits at a rate that the host sets; of 64 exits 52 are a port of the kernel's, 3 one of the VMM's, 4 its MMIO,"
    " 4 CPUID (which KVM hides) and 1 a halt",
    (
        ("48ff07", "top: inc qword ptr [rdi]"),
        ("0f31", "rdtsc"),
        ("48c1e220", "shl rdx, 32"),
        ("4809d0", "or rax, rdx"),
        ("4c39c0", "cmp rax, r8"),
        ("72ef", "jb top"),
        ("48034718", "add rax, qword ptr [rdi+0x18]"),
        ("4989c0", "mov r8, rax"),
        ("49ffc1", "inc r9"),
        ("4489c8", "mov eax, r9d"),
        ("243f", "and al, 63"),
        ("3c20", "cmp al, 32"),
        ("7410", "je halt"),
        ("240f", "and al, 15"),
        ("740f", "je port"),
        ("3c08", "cmp al, 8"),
        ("7412", "je device"),
        ("3c04", "cmp al, 4"),
        ("7412", "je cpu"),
        ("e640", "out 0x40, al"),
        ("ebcc", "jmp top"),
        ("f4", "halt: hlt"),
        ("ebc9", "jmp top"),
        ("66baf803", "port: mov dx, 0x3f8"),
        ("ee", "out dx, al"),
        ("ebc2", "jmp top"),
        ("8906", "device: mov dword ptr [rsi], eax"),
        ("ebbe", "jmp top"),
        ("31c0", "cpu: xor eax, eax"),
        ("0fa2", "cpuid"),
        ("ebb8", "jmp top"),
    ),
    paced=True,
)  # fmt: skip

PROGRAMS: Final = {
    program.name: program for program in (MIX, SPIN, PORT, TIMER, MMIO, HALT, CPUID, PROBER)
}  # fmt: skip


def make_memory(name: str) -> int:
    """Return the descriptor of a VM's new memory, all zero; whoever has it has the guest's memory."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, MEMORY_BYTES)
    return fd


class GuestMemory:
    """A mapping of a VM's memory."""

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, MEMORY_BYTES)
        self.words = memoryview(self.map).cast("Q")

    def load(self, program: Program) -> None:
        """Put a program, and the page tables, where the guest expects them. Loading it again changes nothing."""
        self.map[CODE : CODE + len(program.code)] = program.code
        present, large = 0b11, 0b1000_0011  # present and writable; a page of 2 MiB
        pml4, pdpt, low, high = (TABLES + 0x1000 * number for number in range(4))
        entries = (
            (pml4, pdpt | present),
            (pdpt, low | present),
            (pdpt + 8 * (IO_APIC >> 30), high | present),
            (low, large),
            (low + 8, VMM_DEVICE | large),
            (high + 8 * (IO_APIC >> 21 & 511), IO_APIC | large),
        )
        for address, entry in entries:
            self.words[address // 8] = entry

    def word(self, place: int, field: int) -> int:
        """Return the index, in `words`, of a word of the vCPU on hyperthread number `place` of the machine."""
        assert 0 <= place < HYPERTHREADS_MAX
        return page_of(place) // 8 + field

    def close(self) -> None:
        self.words.release()
        self.map.close()


def page_of(place: int) -> int:
    """Return the physical address of the page of the vCPU on hyperthread number `place`, over the whole machine."""
    return PAGES + place * PAGE_BYTES


def entry_regs(program: Program, place: int) -> tuple[int, ...]:
    """Return the registers with which a vCPU begins: rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags."""
    regs = [0] * 16
    regs[4], regs[5] = VMM_DEVICE, page_of(place)
    return (*regs, CODE, 2)


def entry_sregs(program: Program, place: int, sregs: bytearray) -> bytearray:
    """Return the system registers with which a vCPU begins. sregs: those of its reset, a struct kvm_sregs."""
    page = page_of(place)
    if program.mode == "real":
        _set_segment(sregs, 0, base=0, selector=0)
        for number in range(1, 6):
            _set_segment(sregs, number, base=page, selector=page >> 4)
        return sregs
    set_long_mode(sregs, TABLES)
    return sregs


def set_long_mode(sregs: bytearray, tables: int, *, ring: int = 0, has_pcid: bool = False) -> None:
    """Let a vCPU begin in long mode, with flat segments of a ring. tables: the physical address of its page tables.
    has_pcid: whether it numbers address spaces."""
    kinds = (0b1011, *(0b0011,) * 5)  # CS, then DS ES FS GS SS
    for number, kind in enumerate(kinds):
        code = number == 0
        # type, present, dpl, db, s, l, g, avl, unusable, padding; base, limit and selector are before them
        values = (kind, 1, ring, 0 if code else 1, 1, 1 if code else 0, 1, 0, 0, 0)
        struct.pack_into("QIH10B", sregs, 24 * number, 0, 0xFFFFFFFF, (8 if code else 16) | ring, *values)
    cr0, cr4, efer = 0x80000033, 0x20 | has_pcid << 17, 0x500  # PE MP ET NE PG; PAE, PCIDE; LME LMA
    struct.pack_into("QQQQ", sregs, 224, cr0, 0, tables, cr4)
    struct.pack_into("Q", sregs, 264, efer)


def _set_segment(sregs: bytearray, number: int, *, base: int, selector: int) -> None:
    struct.pack_into("Q", sregs, 24 * number, base)
    struct.pack_into("H", sregs, 24 * number + 12, selector)
