"""What handling an exit misses in an isolated space besides what it misses first: all of it would have to be mapped.

A leave is recorded with the object that was missed first, and the handler goes no further. What it would have missed
next is in its footprint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asid.core.exits import find, find_number
from asid.guest.details import details_of
from asid.mm.footprint import footprint
from asid.mm.reach import Reach
from asid.space_build import host_of, isolated_of, mapping_at_start

if TYPE_CHECKING:
    from asid.config import Loaded


class Missing:
    """The isolated spaces of a configuration, as they are mapped at the start."""

    def __init__(self, loaded: Loaded) -> None:
        host = host_of(loaded)
        self._reaches = [Reach(isolated_of(host, vm, entries), 0) for vm, entries in mapping_at_start(loaded).items()]

    def behind(self, reason: str, first: str) -> tuple[str, ...]:
        """Return what exits of a reason that miss `first` before anything else miss behind it, in the handler's order.

        Of several VMs or details, what any of them misses. () where none of them misses it first.
        """
        found: dict[str, None] = {}
        for missed in self._missed(reason):
            if missed and missed[0] == first:
                found |= dict.fromkeys(missed)
        found.pop(first, None)
        return tuple(found)

    def _missed(self, reason: str) -> Iterator[list[str]]:
        known = find(reason)
        if known is None:
            return
        details = details_of(known.isa, known.number)
        row = find_number(known.isa, known.number)
        for parts in {details.usual: None, details.further: None} if row else ():
            accesses = footprint(known.isa, known.number, parts)
            for reach in self._reaches:
                yield [miss.access.object for miss in reach.misses(accesses)]


def missing_of(source: str | Path | Mapping[str, Any]) -> Missing:
    """Read a configuration. Raise ConfigError or InputError as a run of it does."""
    from asid.simulating import load_for

    return Missing(load_for(source, {}))
