"""Whether an exit is handled in the isolated address space, and if not, what it missed first; for any engine.

Rule 1. Kinds of exits are decided once a mapping: by reason, parts, and whether they are full whatever is mapped.
Rule 2. A miss is reported when the first exit of its kind is there: once a place, ending and life of the hyperthread.
Rule 3. Under a policy whose every exit is full there is no isolated space to ask. Handlers of NMI and #MC ask nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from asid.core.chronicle import Chronicle
from asid.core.exits import Isa, canonical
from asid.core.hyperthread import HyperthreadState
from asid.core.policies.base import Policy
from asid.guest.base import Exit
from asid.mm import faulting
from asid.mm.fault import FaultLog
from asid.mm.footprint import footprint
from asid.mm.parts import Part
from asid.mm.reach import Miss, Reach

Kind = tuple[Isa, str, frozenset[Part], bool]  # of exits that are decided alike: full, whatever is mapped

BLOCKS: Final = frozenset({Part.BLOCKS})
WHATEVER_IS_MAPPED: Final = ""  # missed by an exit that is full and would be with any mapping, or by its policy
_UNDECIDED: Final = "?"


class ShutDown(Exception):
    """Nothing more can be run here: a #MC while the last one is in progress, or a triple fault."""


class Sibling(Protocol):
    """What is asked of the hyperthread on which the exits happen."""

    policy: Policy
    chronicle: Chronicle
    state: HyperthreadState


class IsolatedExits(ABC):
    """The exits of whoever runs on hyperthread `ht`. vm: whose space they are handled in, 0 for none."""

    def __init__(self, ht: Sibling, *, stack: bool) -> None:
        """stack: faults are reported with their call traces."""
        self._of = ht
        self.vm = 0
        self._log = FaultLog(stack=stack)
        self._told: set[tuple[tuple[int, int], faulting.Ending]] = set()
        self._missed: dict[Kind, str | None] = {}
        self._due: dict[Kind, Callable[[], None]] = {}  # reports of kinds that are decided and were not there yet

    @abstractmethod
    def reach(self) -> Reach:
        """Return what the vCPU of now reaches from the isolated space of its VM."""

    def forget(self) -> None:
        """Decide anew from here on: the policy, the VM or what is mapped is another."""
        self._missed.clear()
        self._due.clear()

    def missed(self, event: Exit, *, polled: bool = False) -> str | None:
        """Return None when an exit is fast; else the object that its handler misses first, if it is for that.

        polled: it is a halt, and nobody is scheduled out for it. Raise ShutDown where not even a fault can be handled.
        """
        parts, full = event.parts, event.full
        if polled:
            parts, full = parts - BLOCKS, False
        key = event.isa, event.reason, parts, full
        found = self._found(key)
        if self._due and (report := self._due.pop(key, None)) is not None:
            report()
        if found is None and event.wake_ns and not polled:
            return WHATEVER_IS_MAPPED  # whoever sleeps is scheduled out
        return found

    def settled(self, event: Exit, *, polled: bool = False) -> bool:
        """Say whether exits of this kind are fast, as `missed` would say, and nothing is to be reported of them."""
        parts, full = (event.parts - BLOCKS, False) if polled else (event.parts, event.full)
        key = event.isa, event.reason, parts, full
        return self._found(key) is None and key not in self._due

    def owes(self, event: Exit) -> bool:
        """Say whether the next exit of this kind, which is no polled halt, reports something that later ones do not."""
        key = event.isa, event.reason, event.parts, event.full
        self._found(key)
        return key in self._due

    def misses(self, event: Exit) -> bool:
        """Say whether an exit that is yet to come will be full; if it faults, that is reported when it is there."""
        return self._found((event.isa, event.reason, event.parts, event.full)) is not None

    def _found(self, key: Kind) -> str | None:
        found = self._missed.get(key, _UNDECIDED)
        if found is _UNDECIDED:
            found = self._missed[key] = self._decide(key)
        return found

    def _decide(self, key: Kind) -> str | None:
        isa, reason, parts, full = key
        policy = self._of.policy
        if policy.every_exit_full:
            return WHATEVER_IS_MAPPED
        if not self.vm:  # no space of a VM is loaded
            return WHATEVER_IS_MAPPED if policy.needs_full(True, reason) else None
        if full or policy.needs_full(False, reason):
            if not policy.needs_full(True, reason):
                return None
            self._due[key] = partial(self._switch, reason)
            return WHATEVER_IS_MAPPED
        reach = self.reach()
        miss = reach.first_miss(footprint(isa, canonical(reason, isa).number, parts))
        if miss is None or not policy.needs_full(True, reason):
            return None
        self._due[key] = partial(self._fault, miss, reason)
        return miss.access.object

    def _fault(self, miss: Miss, reason: str) -> None:
        """The handler of an exit misses something."""
        self._report(faulting.handle(self.reach(), miss, self._log), miss.access.object, reason)

    def _switch(self, reason: str) -> None:
        """An exit leaves, whatever is mapped; what the switch itself touches may be missing."""
        handled = faulting.switch(self.reach(), self._log)
        if handled is not None:
            self._report(handled, handled.missing[0].access.object, reason)

    def _report(self, handled: faulting.Handled, object_: str, reason: str) -> None:
        """Note a fault, if its place is new or ends in a new way; and that there is no room for more places, once."""
        ht, before, self._log = self._of, self._log, handled.log
        fault, ending = handled.fault, handled.ending
        place = fault.ip, fault.address
        stopped = ending is faulting.Ending.STOPPED
        if stopped or (place in self._log.places and (place, ending) not in self._told):
            self._told.add((place, ending))
            show = self.reach().isolated.host.symbols.show
            ht.chronicle.fault(
                {
                    "vm": self.vm,
                    "ip": fault.ip,
                    "address": fault.address,
                    "error": int(fault.error),
                    "at": show(fault.ip),
                    "on": show(fault.address),
                    "object": object_,
                    "reason": reason,
                    "ending": ending.value,
                    "trace": ";".join(map(show, fault.trace)) if self._log.stack else "",
                },
                ht.state.round,
            )
        elif self._log.unlogged == 1 > before.unlogged:
            ht.chronicle.faults_full(len(self._log.places), ht.state.round)
        if stopped:
            ht.chronicle.flush(ht.state.round)
            raise ShutDown
