"""A script: who takes which step, in which order, on one core of the live machine.

The explorer writes one from a schedule (`asid.explore.script`), the live engine plays it (`asid.live.turns`), and
neither knows of the other. A script says what a step is in the words of `asid.core`, and what the core page must show
after it, so that a machine that goes another way is noticed at the step at which it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from asid.core.events import Action, Do, Order
from asid.core.limits import SIBLINGS_ALLOWED
from asid.errors import InputError

VERSION: Final = 1
PLAYED: Final = "played.json"  # what came of it, in the run directory
COORDINATOR: Final = -1  # who: a hyperthread, or the coordinator
# How long a schedule about a wait is kept going: what the audit lets anybody wait, and as much again, for it excuses a
# part of each wait (the siblings' visits to HOST).
WAIT_NS: Final = 6_000_000_000

# Events that are no events of the step functions. The others have the names of `hyperthread.What` and `gate.Ev`.
DOES: Final = ""  # goes on with what is still to be done
BORN: Final = "BORN"  # a process starts, and says that it is ready; of the coordinator: it comes back
KILLED: Final = "KILLED"
ENDS: Final = "ENDS"
LOST: Final = "LOST"  # its oldest message is never read: an order of a hyperthread, a report at the coordinator
STALE: Final = "STALE"  # a report to the coordinator before; nothing in it counts but whom it comes from
READS: Final = "READS"  # one word of a look
GETS: Final = "GETS"  # nothing but this: so many messages have come to it, and lie there unread
DELIVERS: Final = "DELIVERS"  # the bus takes an IPI to whom it is for; the coordinator sees to it for one that is dead
RETIRES: Final = "RETIRES"  # one guest instruction, of which nobody is told


class Astray(Exception):
    """A step cannot be taken as the script has it. expected, found: what the script says, and what there was."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


class Line(msgspec.Struct, frozen=True, array_like=True):
    """What the page shows of one hyperthread. mode: empty where it tells nothing, since the process is dead."""

    mode: str
    pending: bool = False
    flag: bool = False
    depth: int = 0


def line_words(line: Line) -> str:
    flag = ", its leave flag raised" if line.flag else ""
    depth = f", at depth {line.depth}" if line.depth else ""
    return f"{line.mode or 'dead'}, its pending bit {'set' if line.pending else 'clear'}{flag}{depth}"


class Step(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One step.

    who: the hyperthread, or COORDINATOR. event: what happens to it. text: the step in words. at: its number in the
    schedule, 0 for one that the schedule has not. For the rest of an event: full, idle: as in `hyperthread.Event`; ht,
    inc: whom an event of the coordinator is about; word: what a report says, what an order orders, which timer, which
    word is read; coord: the coordinator that a message is from, or for; vms: which vCPU runs where, for a coordinator
    that comes back; number: of messages.
    actions: what a hyperthread then does, each by its name (see `named`).
    left: what the coordinator has still to do after the step; it sends orders that come first at once.
    after: what the page then shows of each hyperthread.
    """

    who: int
    event: str
    text: str = ""
    at: int = 0
    full: bool = False
    idle: bool = False
    ht: int = -1
    inc: int = 0
    word: str = ""
    coord: int = 0
    number: int = 0
    vms: tuple[int, ...] = ()
    actions: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    after: tuple[Line, ...] = ()


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All steps of one core.

    vms: VM of each hyperthread's vCPU, 0 for none; there are as many hyperthreads as entries, and VMs are counted from
    1 without a hole. settings: tables of a configuration, for a machine that is what the model is. ht_spec, gate_spec:
    the fields of `hyperthread.Spec` (without its place) and `gate.Spec`. cycle: the step from which on all is repeated
    for WAIT_NS, -1 for none. guarantee, sentence: what is broken at the end, empty for nothing.
    """

    vms: tuple[int, ...]
    settings: dict[str, dict[str, Any]]
    ht_spec: dict[str, Any]
    gate_spec: dict[str, Any]
    steps: tuple[Step, ...]
    cycle: int = -1
    guarantee: str = ""
    sentence: str = ""

    @property
    def siblings(self) -> int:
        return len(self.vms)

    @property
    def length(self) -> int:
        """How many steps of the schedule it has."""
        return max((step.at for step in self.steps), default=0)

    @property
    def keeps_ns(self) -> int:
        """How long it is kept going after its last step: for as long as the audit must see somebody wait."""
        return WAIT_NS if self.cycle >= 0 or self.guarantee.startswith("L") else 0


class Scripts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine plays: core 0 the first script, core 1 the second, and so on."""

    asid_script: int
    cores: tuple[Script, ...]


def counted(vms: tuple[int, ...]) -> tuple[int, ...]:
    """Return the VMs counted from 1 without a hole, in the same order."""
    known = sorted({vm for vm in vms if vm})
    return tuple(known.index(vm) + 1 if vm else 0 for vm in vms)


def named(action: Action) -> str:
    """Return an action by its kind and what it is done to; without numbers of kicks, requests, rounds and lives."""
    name, what = action.do.name, action.a
    if action.do is Do.ARRIVE:
        return name
    if isinstance(what, Order):
        return f"{name} {what.bid.name} {what.ht}"
    if isinstance(what, IntEnum):
        return f"{name} {what.name}"
    return f"{name} {int(what)}"


def config_of(scripts: Sequence[Script], name: str) -> dict[str, Any]:
    """Return the configuration of a machine that plays these, one a core: guests that only spin, no exits but told."""
    first = scripts[0]
    if any(script.settings != first.settings for script in scripts):
        raise InputError("scripts of several policies", where="asid.script", allowed="one policy for the machine")
    smt = next(n for n in SIBLINGS_ALLOWED if n >= max(script.siblings for script in scripts))
    vms = max(vm for script in scripts for vm in script.vms)  # each of them runs somewhere: see `Script.vms`
    return {
        "name": name,
        "machine": {"cores": len(scripts), "smt": smt},
        **first.settings,
        "vm": [
            {
                "name": f"vm{number}",
                "on": [
                    f"c{core}h{ht}" for core, s in enumerate(scripts) for ht, vm in enumerate(s.vms) if vm == number
                ],
                "guest": {"source": "idle"},
            }
            for number in range(1, vms + 1)
        ],
    }


def write(path: Path, scripts: Sequence[Script]) -> None:
    path.write_bytes(msgspec.json.encode(Scripts(VERSION, tuple(scripts))))


def read(path: Path) -> tuple[Script, ...]:
    """Return the scripts of a file. Raise InputError when it has none."""
    try:
        scripts = msgspec.json.decode(path.read_bytes(), type=Scripts)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            f"no script: {error}", where=str(path), hint="asid replay writes one from a schedule"
        ) from None
    if scripts.asid_script != VERSION or not scripts.cores:
        raise InputError(f"a script of version {scripts.asid_script}", where=str(path), allowed=f"version {VERSION}")
    return scripts.cores


def beside(lines: Sequence[tuple[str, int, bool]]) -> list[str]:
    """Say which two siblings are in modes that must not be side by side. lines: (mode, vm, pending bit) of each."""
    found = []
    for guest, (mode, vm, pending) in enumerate(lines):
        if mode != "GUEST":
            continue
        for other, (there, its_vm, _) in enumerate(lines):
            both_in_guest = there == "GUEST" and other < guest  # told once
            if other == guest or both_in_guest:
                continue
            if there == "HOST" or (there in ("GUEST", "ISOLATED") and its_vm != vm):
                bit = "set" if pending else "clear"
                place = there if there == "HOST" else f"{there} of vm{its_vm}"
                found.append(f"h{guest} is in GUEST of vm{vm}, its pending bit {bit}, beside h{other} in {place}")
    return found
