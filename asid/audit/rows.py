"""The small rows that a history keeps of its records."""

from __future__ import annotations

from typing import NamedTuple


class ModeRow(NamedTuple):
    """One ht.mode."""

    ts: int
    seq: int
    inc: int
    round: int
    old: str
    new: str
    vm: int
    via: str


class GateRow(NamedTuple):
    """One gate.* record. number: of kick, request or room; number, inc, vm, mode: 0 or empty where there is none."""

    ts: int
    seq: int
    kind: str
    ht: int
    round: int
    inc: int
    vm: int
    mode: str
    number: int


class ProcessRow(NamedTuple):
    """One spawn or death. status: exit code, or minus the signal; 0 for a spawn."""

    ts: int
    seq: int
    inc: int
    status: int


class LongWait(NamedTuple):
    """What a hyperthread says of a long wait of its own. kind: ask or leave."""

    ts: int
    wait_ns: int
    kind: str
    ht: int


class IntrRow(NamedTuple):
    """One intr: the end of a handler. broadcast: number of the machine check of all siblings that it was part of, 0 for
    none; role, order and wait_ns are those of the rendezvous."""

    ts: int
    seq: int
    what: str
    id: int
    depth: int
    mode: str
    severity: str = ""
    broadcast: int = 0
    role: str = ""
    order: int = 0
    wait_ns: int = 0


class SeenRow(NamedTuple):
    """One kick.seen. insns: None when they were not measured."""

    ts: int
    seq: int
    number: int
    was: str
    insns: int | None


class IpiRow(NamedTuple):
    """One ipi."""

    ts: int
    seq: int
    to: int
    why: str


class FaultRow(NamedTuple):
    """One isolation fault."""

    ts: int
    seq: int
    vm: int
    object: str
    reason: str
    ending: str


class MissedRow(NamedTuple):
    """One leave for something that the isolated space lacks. vm: whose space. decided_ns: when it was missed."""

    ts: int
    seq: int
    vm: int
    object: str
    reason: str
    decided_ns: int


class MappedRow(NamedTuple):
    """One space.map or, when not `mapped`, space.unmap."""

    ts: int
    seq: int
    vm: int
    object: str
    generation: int
    mapped: bool
    level: str = "PTE"
    split: bool = True


class FastKind(NamedTuple):
    """Fast exits that were decided alike. changes: how many changes of what is mapped its hyperthread had told before;
    vms: those that it may have run; policies: how many there had been."""

    ht: int
    changes: int
    vms: tuple[int, ...]
    isa: str
    reason: str
    policies: int


class InjectRow(NamedTuple):
    """One inject, of n."""

    ts: int
    seq: int
    what: str
    target: str
    core: int
    ht: int
    n: int
    reason: str


class DoneRow(NamedTuple):
    """One inject.done."""

    ts: int
    seq: int
    result: str
    why: str
