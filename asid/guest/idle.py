"""The idle source: a guest that spins and never exits by itself; clients inject everything that happens to it."""

from __future__ import annotations

from asid.guest.base import Exit


class IdleSource:
    """Never returns an exit."""

    __slots__ = ()

    def next(self) -> Exit | None:
        return None
