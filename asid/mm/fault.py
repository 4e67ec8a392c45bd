"""Isolation faults: what is reported of them, in the RFC's own form, and the log that keeps each place once.

Rule 1. A place is reported once. By default a place is an instruction and the address that it missed; the RFC's own
        is the instruction alone (`per_instruction`), which shows fewer lines and hides what else the instruction needs.
Rule 2. The log is bounded. When it is full it says so once, and from then on only counts.
Rule 3. The log is a value: `record` returns the next one and the lines that it prints.

The lines
    The RFC prints the number of the place, the error code in decimal, the instruction as %pS, the address as %px and
    again as %pS: an address that a symbol reaches shows its name there, any other its number. With page_fault_stack
    the call trace follows. We have no user registers to show below it. A kernel's log has a time stamp before each.

A function that the symbols lack is one that the compiler has put into its caller: it is left out of a trace, and a
fault in it is a fault of the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Final, NamedTuple

from asid.errors import InputError
from asid.mm.footprint import FUNCTIONS, Access
from asid.mm.functions import CALL_SITES
from asid.mm.symbols import Place, SymbolTable

PLACES_MAX: Final = 128  # KVM_LAST_FAULT_COUNT of the RFC
MICROSECOND: Final = 1_000  # ns


class ErrorCode(IntFlag):
    """What the processor says of a page fault (Intel SDM volume 3, 4.7). 0: a read of what is not present."""

    PRESENT = 1 << 0  # a right was missing, not the page
    WRITE = 1 << 1
    USER = 1 << 2
    RESERVED = 1 << 3
    FETCH = 1 << 4


class Fault(NamedTuple):
    """One miss. ip: address of the instruction; trace: return addresses above it, the nearest first."""

    ip: int
    address: int
    error: ErrorCode = ErrorCode(0)
    trace: tuple[int, ...] = ()


ERRORS: Final = {"r": ErrorCode(0), "w": ErrorCode.WRITE, "x": ErrorCode.FETCH}


def fault_of(access: Access, address: int, symbols: SymbolTable) -> Fault:
    """Return the fault of an access of a footprint that misses at `address`.

    Raise InputError when the symbols have neither its function nor one of its callers.
    """
    instructions = []
    offset, name = access.offset, access.function
    for caller in (*access.callers, ""):
        module = FUNCTIONS[name].module
        symbol = symbols.named(name, module) or symbols.named(name)
        if symbol is not None:
            place = symbols.lookup(symbol.address)
            last = place.size - 1 if place is not None and place.name == name else offset
            instructions.append(symbol.address + min(offset, last))
        if caller:
            offset, name = CALL_SITES.get((caller, name), FUNCTIONS[caller].size * 3 // 4), caller
    if not instructions:
        raise InputError(
            f"no symbol {access.function}, nor one of its callers",
            where="symbols",
            state=f"{len(symbols.rows)} symbols",
            hint="Take the symbols of a kernel whose kvm modules are loaded, or none for our own.",
        )
    return Fault(instructions[0], address, ERRORS[access.mode], tuple(instructions[1:]))


def fault_line(number: int, fault: Fault, symbols: SymbolTable) -> str:
    """Return the line of a fault, in the RFC's form."""
    return (
        f"KVM isolation: page fault #{number} ({int(fault.error)}) at {symbols.show(fault.ip)}"
        f" on {fault.address:016x} ({symbols.show(fault.address)})"
    )


def trace_lines(frames: Iterable[Place | int], symbols: SymbolTable) -> tuple[str, ...]:
    """Return a call trace as the kernel prints it. frames: return addresses, or places where the text is known."""
    shown = (symbols.show(frame) if isinstance(frame, int) else str(frame) for frame in frames)
    return ("Call Trace:", *(f" {text}" for text in shown))


def full_line(places: int) -> str:
    """Return the line that says that the log is full."""
    return f"KVM isolation: fault tracking buffer is full [{places}]"


def stamped(line: str, time_ns: int) -> str:
    """Return a line as a kernel's log has it. time_ns: since the machine was started."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"[{seconds:5d}.{rest // MICROSECOND:06d}] {line}"


@dataclass(frozen=True, slots=True)
class FaultLog:
    """The places of one VM that have faulted. `counts[i]` is how often `places[i]` did; invariant: both as long.

    stack: print call traces (page_fault_stack). unlogged: faults at places for which there was no room.
    """

    places: tuple[tuple[int, int], ...] = ()  # (ip, address); the address is 0 when per_instruction
    counts: tuple[int, ...] = ()
    unlogged: int = 0
    stack: bool = True
    per_instruction: bool = False
    places_max: int = PLACES_MAX

    @property
    def full(self) -> bool:
        """True when a place that is not yet known will not be kept."""
        return len(self.places) >= self.places_max

    @property
    def faults(self) -> int:
        """Faults since the log was cleared, reported or not."""
        return sum(self.counts) + self.unlogged

    def record(self, fault: Fault, symbols: SymbolTable) -> tuple[FaultLog, tuple[str, ...]]:
        """Return the log after a fault, and the lines to print: none when the place is known, or there is no room."""
        place = (fault.ip, 0 if self.per_instruction else fault.address)
        if place in self.places:
            index = self.places.index(place)
            counts = (*self.counts[:index], self.counts[index] + 1, *self.counts[index + 1 :])
            return replace(self, counts=counts), ()
        if self.full:
            says = () if self.unlogged else (full_line(len(self.places)),)
            return replace(self, unlogged=self.unlogged + 1), says
        lines: tuple[str, ...] = (fault_line(len(self.places), fault, symbols),)
        if self.stack:
            lines += trace_lines(fault.trace, symbols)
        return replace(self, places=(*self.places, place), counts=(*self.counts, 1)), lines

    def cleared(self) -> FaultLog:
        """Return the empty log with the same settings: a new VM begins with one."""
        return replace(self, places=(), counts=(), unlogged=0)
