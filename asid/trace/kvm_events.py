"""Payloads of KVM's trace points: text to values. Pure.

Every event is recognised by its own text. Distributors backport each trace point alone, so one file may hold an old
kvm_exit beside a new kvm_entry; no kernel version is ever concluded from it. Layouts of kvm_exit:

    V0   reason R rip 0xX
    V1   reason R rip 0xX info A B                     numbers hex without 0x; also the plugin's text on any kernel
    V1b  vcpu N reason R rip 0xX info A B
    V2   vcpu N reason R rip 0xX info1 0xA info2 0xB intr_info 0xC error_code 0xD
    V3   V2 + ` requests 0xE`
    raw  exit_reason=1024 guest_rip=0x400433 isa=2 ... vcpu_id=0          (trace-cmd report -R: the one without doubt)

R is everything up to ` rip 0x` and may hold blanks (`PF excp`, `INVALID_STATE FAILED_VMENTRY`). The kernel's text does
not say whether the machine is Intel or AMD; R does (see `asid.core.exits`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from asid.core.exits import Canonical, Isa, canonical_number, find

Layout = Literal["V0", "V1", "V1b", "V2", "V3", "raw"]

# Events of these names matter to a reader; every other kvm event is a companion that is only counted.
EXIT: Final = "kvm_exit"
ENTRY: Final = "kvm_entry"
USERSPACE_EXIT: Final = "kvm_userspace_exit"
NESTED_EXIT: Final = "kvm_nested_vmexit"


class PayloadError(ValueError):
    """A payload that fits none of the forms above; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class ExitEvent:
    """One kvm_exit. `vcpu` is -1 where the layout has none; numbers that were not printed are None."""

    reason: Canonical
    rip: int
    layout: Layout
    vcpu: int = -1
    info1: int | None = None
    info2: int | None = None
    intr_info: int | None = None
    error_code: int | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class EntryEvent:
    """One kvm_entry. `rip` is None where the text has none; `immediate`: KVM asked to exit again at once."""

    vcpu: int
    rip: int | None = None
    immediate: bool = False


@dataclass(frozen=True, slots=True)
class UserspaceExit:
    """One kvm_userspace_exit: KVM_RUN returns to the VMM. `name` as printed; `number` is KVM_EXIT_* or an errno."""

    name: str
    number: int


_HEX: Final = r"0x[0-9a-fA-F]{1,16}"
_BARE: Final = r"[0-9a-fA-F]{1,16}"
_EXIT = re.compile(
    rf"\s*(?:vcpu (?P<vcpu>\d{{1,9}}) )?reason (?P<reason>\S.{{0,79}}?) rip (?P<rip>{_HEX})"
    rf"(?: [^\s+]+\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?)?"  # the plugin may put the symbol of rip here
    rf"(?: info (?P<a>{_BARE}) (?P<b>{_BARE})(?: intr (?P<intr>{_BARE}))?"
    rf"| info1 (?P<info1>{_HEX}) info2 (?P<info2>{_HEX}) intr_info (?P<intr_info>{_HEX})"
    rf" error_code (?P<error_code>{_HEX})(?: requests (?P<requests>{_HEX}))?)?\s*$"
)
_ENTRY = re.compile(
    rf"\s*vcpu (?P<vcpu>\d{{1,9}})(?:,? rip (?P<rip>{_HEX}))?"
    rf"(?: intr_info {_HEX} error_code {_HEX})?(?P<immediate>\[immediate exit\])?\s*$"
)
_USERSPACE = re.compile(r"\s*reason (?P<name>[A-Za-z0-9_]{1,40}) \((?P<number>-?\d{1,9})\)\s*$")
_RAW_FIELD = re.compile(r"(?P<key>[a-z]\w{0,30})=(?P<value>-?(?:0x[0-9a-fA-F]{1,16}|\d{1,20}))$")
_OTHER_CPU = re.compile(r"\s*(?:(?:IRQ|TRAP|EL1_SERROR|IL): HSR_EC:|vcpu \d+ \[0x|HSR_EC:)")

_ISA: Final[dict[int, Isa]] = {1: "vmx", 2: "svm"}


def parse_exit(payload: str) -> ExitEvent:
    """Return the kvm_exit in `payload`. Raise PayloadError when it fits no layout or names no reason we know."""
    found = _EXIT.match(payload)
    if found is None:
        if "exit_reason=" in payload:
            return _parse_raw_exit(payload)
        if _OTHER_CPU.match(payload):
            raise PayloadError("a kvm_exit of another architecture than x86")
        raise PayloadError("kvm_exit payload fits no known layout" if payload.strip() else "kvm_exit without payload")
    reason = find(found["reason"])
    if reason is None:
        raise PayloadError(f"unknown exit reason {found['reason']!r}")
    vcpu = int(found["vcpu"]) if found["vcpu"] else -1
    if found["info1"]:
        return ExitEvent(
            reason=reason,
            rip=int(found["rip"], 16),
            layout="V3" if found["requests"] else "V2",
            vcpu=vcpu,
            info1=int(found["info1"], 16),
            info2=int(found["info2"], 16),
            intr_info=int(found["intr_info"], 16),
            error_code=int(found["error_code"], 16),
            requests=_hex_or_none(found["requests"]),
        )
    layout: Layout = "V0" if found["a"] is None else "V1" if vcpu < 0 else "V1b"
    return ExitEvent(
        reason=reason,
        rip=int(found["rip"], 16),
        layout=layout,
        vcpu=vcpu,
        info1=_hex_or_none(found["a"]),
        info2=_hex_or_none(found["b"]),
        intr_info=_hex_or_none(found["intr"]),
    )


def parse_entry(payload: str) -> EntryEvent:
    """Return the kvm_entry in `payload`. Raise PayloadError when it fits no layout."""
    found = _ENTRY.match(payload)
    if found:
        return EntryEvent(int(found["vcpu"]), _hex_or_none(found["rip"]), found["immediate"] is not None)
    if "vcpu_id=" in payload:
        fields = _read_raw_fields(payload)
        if "vcpu_id" in fields and fields["vcpu_id"] >= 0:
            return EntryEvent(fields["vcpu_id"], fields.get("rip"), bool(fields.get("immediate_exit", 0)))
    raise PayloadError("kvm_entry payload fits no known layout" if payload.strip() else "kvm_entry without payload")


def parse_userspace_exit(payload: str) -> UserspaceExit:
    """Return the kvm_userspace_exit in `payload`. Raise PayloadError when it fits no layout."""
    found = _USERSPACE.match(payload)
    if found:
        return UserspaceExit(found["name"], int(found["number"]))
    if "reason=" in payload:
        fields = _read_raw_fields(payload)
        if "reason" in fields:
            errno = fields.get("errno", 0)
            return UserspaceExit(f"{fields['reason']:#x}" if errno >= 0 else "error", fields["reason"])
    raise PayloadError("kvm_userspace_exit payload fits no known layout")


def _parse_raw_exit(payload: str) -> ExitEvent:
    fields = _read_raw_fields(payload)
    missing = [key for key in ("exit_reason", "guest_rip", "isa") if key not in fields]
    if missing:
        raise PayloadError(f"raw kvm_exit without {', '.join(missing)}")
    isa = _ISA.get(fields["isa"])
    if isa is None:
        raise PayloadError(f"raw kvm_exit with isa={fields['isa']}: must be 1 (VMX) or 2 (SVM)")
    if fields["exit_reason"] < (-1 if isa == "svm" else 0):
        raise PayloadError(f"raw kvm_exit with exit_reason={fields['exit_reason']}")
    return ExitEvent(
        reason=canonical_number(isa, fields["exit_reason"]),
        rip=fields["guest_rip"],
        layout="raw",
        vcpu=fields.get("vcpu_id", -1),
        info1=fields.get("info1"),
        info2=fields.get("info2"),
        intr_info=fields.get("intr_info"),
        error_code=fields.get("error_code"),
        requests=fields.get("requests"),
    )


def _read_raw_fields(payload: str) -> dict[str, int]:
    fields: dict[str, int] = {}
    for word in payload.split():
        found = _RAW_FIELD.match(word)
        if found is None:
            raise PayloadError(f"raw field {word[:40]!r} is not key=number")
        if found["key"] in fields:
            raise PayloadError(f"raw field {found['key']} twice")
        value = found["value"]
        fields[found["key"]] = int(value, 16 if "x" in value else 10)
    return fields


def _hex_or_none(text: str | None) -> int | None:
    return None if text is None else int(text, 16)
