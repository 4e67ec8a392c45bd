"""VM exit reasons: numbers, names, and how often the details of one take its handling further than others.

Rule 1. A reason is (isa, number). Names are for people: the kernel's name is the one we print, every other is read.
Rule 2. This file reads no clock and draws no random number.
Rule 3. Whether an exit is fast is not said here: that is up to what its handling touches (`asid.mm.footprint`) and what
        is mapped.

Names
    `canonical` reads the kernel's text (`EPT_VIOLATION`, `npf`, `PF excp`), the trace plugin's (`PENDING_INTERRUPT`,
    `EXIT_NPF`, `UNKNOWN (75)`), header macros (`EXIT_REASON_HLT`, `SVM_EXIT_NPF`), flags behind a VMX name
    (`INVALID_STATE FAILED_VMENTRY`) and bare numbers (`0x4b`). Letter case tells the isa, as in the kernel's own text:
    `HLT` is VMX, `hlt` is SVM. A name in another case is accepted when only one isa has it, or when the isa is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple, cast

from asid.core.exits_svm import SVM_ROWS
from asid.core.exits_vmx import VMX_FLAGS, VMX_ROWS, Row
from asid.errors import InputError

Isa = Literal["vmx", "svm"]
When = Literal["", "userspace", "schedule", "host"]

VMX_BASIC_MASK: Final = 0xFFFF  # the basic reason; the bits above are flags
NAME_CHARS_MAX: Final = 80  # the longest name we have is 30; a longer text is no name
SUGGESTIONS_MAX: Final = 4


class Canonical(NamedTuple):
    """One exit reason as we store it: isa, number with its flags, the kernel's name."""

    isa: Isa
    number: int
    name: str


@dataclass(frozen=True, slots=True)
class ExitReason:
    """One row of the table. `share` of its exits, above 0.0 and below 1.0, have a detail that takes their handling
    further: to where `when` says. 0.0 and "" where the exits of a reason do not differ.
    """

    isa: Isa
    number: int
    name: str
    other_names: tuple[str, ...]
    share: float
    when: When
    why: str

    @property
    def canonical(self) -> Canonical:
        return Canonical(self.isa, self.number, self.name)


def _read_row(isa: Isa, row: Row) -> ExitReason:
    if len(row) == 4:
        number, name, others, why = row
        return ExitReason(isa, number, name, others, 0.0, "", why)
    number, name, others, share, when, why = row
    assert 0.0 < share < 1.0, row
    assert when in ("userspace", "schedule", "host"), row
    return ExitReason(isa, number, name, others, share, cast(When, when), why)


def _read_rows(isa: Isa, rows: tuple[Row, ...]) -> tuple[ExitReason, ...]:
    reasons = tuple(_read_row(isa, row) for row in rows)
    assert all(reason.why for reason in reasons), f"{isa}: a reason without a why"
    assert len({r.number for r in reasons}) == len(reasons), f"{isa}: a number twice"
    return reasons


VMX: Final = _read_rows("vmx", VMX_ROWS)
SVM: Final = _read_rows("svm", SVM_ROWS)

_BY_NUMBER: Final[dict[tuple[str, int], ExitReason]] = {(r.isa, r.number): r for r in VMX + SVM}


def _all_names(reason: ExitReason) -> Iterator[str]:
    yield reason.name
    yield from reason.other_names


def _index_names() -> tuple[dict[str, ExitReason], dict[tuple[str, str], ExitReason]]:
    exact: dict[str, ExitReason] = {}
    folded: dict[tuple[str, str], ExitReason] = {}
    for reason in VMX + SVM:
        for name in _all_names(reason):
            assert exact.setdefault(name, reason) is reason, f"{name} names two reasons"
            assert folded.setdefault((reason.isa, name.lower()), reason) is reason, f"{name} names two reasons"
    # The plugin's SVM names without their prefix ("NPF", "ioio") are what people type.
    for reason in SVM:
        for name in reason.other_names:
            folded.setdefault(("svm", name.lower().removeprefix("exit_")), reason)
    return exact, folded


_EXACT, _FOLDED = _index_names()

# Reasons after which the vCPU has nothing to run until something wakes it.
_IDLE: Final = frozenset({("vmx", 12), ("svm", 0x78), ("svm", 0xA6), ("svm", 0x80000004)})


def normal_number(isa: str, number: int) -> int:
    """Return the number as the table has it: SVM's -1 also arrives as 2^32-1 and 2^64-1. VMX flags are kept."""
    if isa == "svm" and number in (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF):
        return -1
    return number


def find_number(isa: str, number: int) -> ExitReason | None:
    """Return the row of an exit number, VMX flags ignored; None when neither kernel nor manual has it."""
    number = normal_number(isa, number)
    return _BY_NUMBER.get((isa, number & VMX_BASIC_MASK if isa == "vmx" else number))


def name_of(isa: str, number: int) -> str:
    """Return the text the kernel prints for an exit number: name or hex, then the names of VMX flags."""
    number = normal_number(isa, number)
    basic = number & VMX_BASIC_MASK if isa == "vmx" else number
    row = _BY_NUMBER.get((isa, basic))
    words = [row.name if row else f"{basic:#x}"]
    flags = number & ~VMX_BASIC_MASK if isa == "vmx" else 0
    for bit, flag in VMX_FLAGS:
        if flags & bit:
            words.append(flag)
            flags &= ~bit
    if flags:
        words.append(f"{flags:#x}")
    return " ".join(words)


def canonical_number(isa: Isa, number: int) -> Canonical:
    """Return the reason of a raw exit number, known or not."""
    number = normal_number(isa, number)
    return Canonical(isa, number, name_of(isa, number))


def _find_name(text: str, isa: str | None) -> ExitReason | None:
    """Return the row that has `text` as a name, exactly or in another letter case; None when none or both isas do."""
    row = _EXACT.get(text)
    if row is not None and isa in (None, row.isa):
        return row
    lower = text.lower()
    for prefix, side in (("exit_reason_", "vmx"), ("svm_", "svm")):  # header macros: EXIT_REASON_HLT, SVM_EXIT_NPF
        if lower.startswith(prefix) and isa in (None, side):
            lower, isa = lower.removeprefix(prefix), side
            break
    folded = [_FOLDED.get((key, lower)) for key in ("vmx", "svm") if isa in (None, key)]
    found = [r for r in folded if r is not None]
    return found[0] if len(found) == 1 else None


def _read_int(text: str) -> int | None:
    """Return the number in `75`, `-1`, `0x4b`, `UNKNOWN (75)` or `UNKNOWN(75)`; None for any other text."""
    if text.upper().startswith("UNKNOWN"):
        text = text[len("UNKNOWN") :].strip()
        if not (text.startswith("(") and text.endswith(")")):
            return None
        text = text[1:-1].strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits[:1].isdigit()):
        return None
    try:
        return int(text, 0)
    except ValueError:
        return None


def _read_flags(words: list[str]) -> int | None:
    """Return the VMX flag bits named by `words`; None when a word is no flag."""
    bits = 0
    for word in words:
        named = [bit for bit, flag in VMX_FLAGS if flag == word.upper()]
        value = named[0] if named else _read_int(word) if word.lower().startswith("0x") else None
        if value is None or value & VMX_BASIC_MASK or not 0 < value < 1 << 32:
            return None
        bits |= value
    return bits


@lru_cache(maxsize=1024)
def find(text: str, isa: Isa | None = None) -> Canonical | None:
    """Return the reason that `text` means, or None. See the head of this file for the forms read.

    A bare number belongs to `isa`, or to VMX when none is given: the kernel's text does not say.
    """
    text = " ".join(text.split())
    if not text or len(text) > NAME_CHARS_MAX:
        return None
    row = _find_name(text, isa)
    if row is not None:
        return row.canonical
    number = _read_int(text)
    if number is not None:
        side: Isa = isa or "vmx"
        return canonical_number(side, number) if -1 <= number < 1 << 64 and (number >= 0 or side == "svm") else None
    if isa == "svm":
        return None  # flags exist on VMX only
    first, *rest = text.split(" ")
    row = _find_name(first, "vmx")
    basic = row.number if row else _read_int(first)
    flags = _read_flags(rest) if rest else None
    if basic is None or flags is None or not 0 <= basic <= VMX_BASIC_MASK:
        return None
    return canonical_number("vmx", basic | flags)


def canonical(text: str, isa: Isa | None = None, *, where: str = "exit reason") -> Canonical:
    """Return (isa, number, kernel name) of a reason's text. Raise InputError when no reason has that name."""
    found = find(text, isa)
    if found is not None:
        return found
    near = suggestions(text, isa)
    shown = text if len(text) <= NAME_CHARS_MAX else text[:NAME_CHARS_MAX] + "..."
    raise InputError(
        f"{shown!r} is no exit reason",
        where=where,
        state=f"looked among {isa.upper()} names" if isa else "looked among VMX and SVM names",
        allowed="a kernel name (EPT_VIOLATION, npf), a plugin name (EXIT_NPF) or a number (0x30)",
        hint=f"Did you mean {' or '.join(near)}?" if near else "Letter case tells the isa: HLT is VMX, hlt is SVM.",
    )


def suggestions(text: str, isa: Isa | None = None) -> tuple[str, ...]:
    """Return up to SUGGESTIONS_MAX kernel names that share a beginning or a word of 3 letters or more with `text`."""
    words = {w for w in text.lower().replace("_", " ").replace("-", " ").split() if len(w) >= 3}
    head = text.lower()[:3]
    near = [
        reason.name
        for reason in VMX + SVM
        if isa in (None, reason.isa)
        and (words & set(reason.name.lower().replace("_", " ").split()) or (head and reason.name.lower()[:3] == head))
    ]
    return tuple(near[:SUGGESTIONS_MAX])


def is_idle(isa: str, number: int) -> bool:
    """True for HLT and its kin: the vCPU waits to be woken, so the time until its next entry is not service time."""
    return (isa, number & VMX_BASIC_MASK if isa == "vmx" else number) in _IDLE
