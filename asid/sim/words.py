"""The words that the siblings of a simulated core share; `asid.live.page` says what each means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from asid.core.apic import IDLE, Registers
from asid.core.events import Mode
from asid.core.mce import CallIn

NOT_IN: Final = CallIn()


@dataclass(slots=True)
class Words:
    """Those of one hyperthread. taint: its visits to HOST, begun and ended; clean: what the visits of all came to at
    its last flush; broadcast, callin: as `asid.core.mce` has them."""

    mode: Mode = Mode.OFFLINE
    flag: int = 0
    depth: int = 0
    request: int = 0
    pending: bool = False
    arrived: int = 0
    taint: int = 0
    clean: int = 0
    apic: Registers = IDLE
    broadcast: int = 0
    callin: CallIn = NOT_IN


@dataclass(slots=True)
class Page:
    """Those of a core. failed: a machine check was fatal; no guest runs here any more."""

    hts: tuple[Words, ...]
    failed: bool = field(default=False)

    def tainted(self) -> bool:
        """Return whether anybody worked in HOST since the last flush of anybody."""
        return self.visits() > max(words.clean for words in self.hts)

    def visits(self) -> int:
        return sum(words.taint for words in self.hts)
