"""Targets: one grammar for "which hyperthreads", used by every command, by configurations and by the protocol.

    target  = item { "," item }
    item    = core [ ht ]          c0   c0h1   c0-3   c0h0-1   c*h1   c1-2h*
            | vm [ "/" vcpu ]      vm1  vm1/2  vm2/0-1  vm*  tenant-a  tenant-a/0
    core    = "c" numbers          numbers = N | N-M | "*"
    ht      = "h" numbers          N counts the siblings of one core, from 0
    vm      = "vm" numbers | a name from the configuration

A core stands for all its hyperthreads, a VM for the hyperthreads that its vCPUs are on now. Numbers of VMs start at 1
(0 means "no VM"), all others at 0. A target that selects nothing is an error: nobody types one on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from asid.errors import ConfigError, NoSuchObject

Place = tuple[int, int]
"""(core, ht): one hyperthread."""

_NUMBERS = r"(?:\d{1,6}(?:-\d{1,6})?|\*)"
_HARDWARE = re.compile(rf"c({_NUMBERS})(?:h({_NUMBERS}))?", re.ASCII)
_LIKE_HARDWARE = re.compile(r"c[\d*-]", re.ASCII)
_VM = re.compile(rf"(vm{_NUMBERS}|[a-z][a-z0-9_.-]*)(?:/({_NUMBERS}))?", re.ASCII)

TARGET_MAX_CHARS = 4096
GRAMMAR = "a target: c0, c0h1, vm1, vm1/2, a VM's name, a list c0h0,c0h1, a range c0-3 or a glob c*h1"


@dataclass(frozen=True, slots=True)
class VmPlaces:
    """A VM as a target sees it. places: by vCPU number, None for a vCPU that is on no hyperthread now."""

    name: str
    places: tuple[Place | None, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """What there is to aim at. vms: in the order of the configuration, the first is vm1."""

    cores: int
    smt: int
    vms: tuple[VmPlaces, ...] = ()

    def all_places(self) -> tuple[Place, ...]:
        return tuple((core, ht) for core in range(self.cores) for ht in range(self.smt))


def format_place(core: int, ht: int) -> str:
    """(0, 1) -> `c0h1`."""
    return f"c{core}h{ht}"


def format_places(places: tuple[Place, ...]) -> str:
    return ",".join(format_place(core, ht) for core, ht in places)


def resolve(text: str, topology: Topology, where: str = "") -> tuple[Place, ...]:
    """Return the hyperthreads that `text` selects, sorted, each once. Raise ConfigError or NoSuchObject."""
    what = f"{where} = {_shown(text)}" if where else f"target {_shown(text)}"
    if len(text) > TARGET_MAX_CHARS or not text.strip():
        raise ConfigError(what, allowed=GRAMMAR, hint="Try c0h0.")
    found: set[Place] = set()
    for item in text.split(","):
        found.update(_resolve_item(item.strip(), topology, what))
    if not found:
        raise NoSuchObject(f"{what}: none of its vCPUs is on a hyperthread", hint="asid ht attach, or name a core.")
    return tuple(sorted(found))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _resolve_item(item: str, topology: Topology, what: str) -> Iterator[Place]:
    hardware = _HARDWARE.fullmatch(item)
    if hardware is not None:
        cores = _numbers(hardware[1], 0, topology.cores - 1, "core", "c", what)
        hts = _numbers(hardware[2] or "*", 0, topology.smt - 1, "hyperthread", "h", what)
        yield from ((core, ht) for core in cores for ht in hts)
        return
    vm = _VM.fullmatch(item)
    if vm is None or (_LIKE_HARDWARE.match(item) and all(known.name != vm[1] for known in topology.vms)):
        state = f"at {_shown(item)}" if item else "an empty item"
        raise ConfigError(what, state=state, allowed=GRAMMAR, hint="Try c0h0.")
    for chosen in _vms(vm[1], topology, what):
        vcpus = range(len(chosen.places))
        if vm[2] is not None and vm[2] != "*":
            vcpus = _numbers(vm[2], 0, len(chosen.places) - 1, f"vCPU of {chosen.name}", "", what)
        yield from (place for number in vcpus if (place := chosen.places[number]) is not None)


def _vms(text: str, topology: Topology, what: str) -> tuple[VmPlaces, ...]:
    for vm in topology.vms:
        if vm.name == text:
            return (vm,)
    if not topology.vms:
        raise NoSuchObject(f"{what}: there is no VM", allowed="a core or hyperthread", hint="Try c0h0.")
    numbered = re.fullmatch(rf"vm({_NUMBERS})", text, re.ASCII)
    if numbered is None:
        names = ", ".join(vm.name for vm in topology.vms[:8])
        raise NoSuchObject(f"{what}: no VM is called {text!r}", allowed=f"vm1 to vm{len(topology.vms)}, or {names}")
    return tuple(topology.vms[number - 1] for number in _numbers(numbered[1], 1, len(topology.vms), "VM", "vm", what))


def _numbers(text: str, low: int, high: int, noun: str, prefix: str, what: str) -> range:
    """`*`, `2` or `0-3`, each within low..high."""
    if text == "*":
        return range(low, high + 1)
    first, _, last = text.partition("-")
    chosen = range(int(first), int(last or first) + 1)
    if not chosen:
        raise ConfigError(f"{what}: the range {text} runs backwards", allowed="low-high", hint=f"Try {last}-{first}.")
    if chosen[0] < low or chosen[-1] > high:
        wrong = chosen[0] if chosen[0] < low else chosen[-1]
        there = f"{prefix}{low}" if low == high else f"{prefix}{low} to {prefix}{high}"
        raise NoSuchObject(f"{what}: there is no {noun} {prefix}{wrong}", allowed=there, hint="asid ht ls lists them.")
    return chosen
