"""Isolation faults as the RFC prints them, made from their records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FaultLines:
    """Turns the fault records of a journal, in its order, into lines. A VM's faults are numbered from 0.

    whole: it is the journal from its beginning; where it is not, nobody knows how many came before, and the number
    is `?`.
    """

    def __init__(self, *, whole: bool = True) -> None:
        self._whole = whole
        self._numbers: dict[int, int] = {}

    def of(self, data: Mapping[str, Any]) -> list[str]:
        """Return the lines of the next fault, its call trace below it. data: of the record."""
        number = self._numbers.get(data["vm"], 0)
        self._numbers[data["vm"]] = number + 1
        out = [
            f"KVM isolation: page fault #{number if self._whole else '?'} ({data['error']}) at {data['at']}"
            f" on {data['address']:016x} ({data['on']})"
        ]
        if data["trace"]:
            out += ["Call Trace:", *(f" {frame}" for frame in data["trace"].split(";"))]
        if data["ending"] != "left":
            out.append(f"KVM isolation: {ENDINGS[data['ending']]}")
        return out


ENDINGS = {
    "forced": "double fault: forced into the full address space",
    "switch forced": "fault while switching: CR3 is written, in whatever state",
    "stopped": "triple fault: no handler can be run",
}
