"""How often a process died young, and so how long its next birth waits; the same rule in every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

YOUNG_NS: Final = 2_000_000_000  # who dies younger was not well born
YOUNG_DEATHS_MAX: Final = 5  # in a row; then the hyperthread stays OFFLINE
BACKOFF_NS: Final = 20_000_000  # doubles with each young death
BACKOFF_NS_MAX: Final = 5_000_000_000


def too_often(name: str) -> str:
    """Return what is said of a hyperthread that is given up."""
    return f"{name} died too often; it stays OFFLINE"


@dataclass
class Rebirth:
    """Of one place. young: deaths in a row of processes that were young. Who was killed on purpose counts as old."""

    young: int = 0

    def after(self, age_ns: int) -> int | None:
        """Return the delay before the next birth in ns, None when it is given up."""
        self.young = self.young + 1 if age_ns < YOUNG_NS else 0
        return None if self.given_up else self.delay_ns

    @property
    def given_up(self) -> bool:
        return self.young > YOUNG_DEATHS_MAX

    @property
    def delay_ns(self) -> int:
        return min(BACKOFF_NS << (self.young - 1), BACKOFF_NS_MAX) if self.young else 0
