"""What a check says: held, broken or not exercised, how often it was looked at, and what broke it."""

from __future__ import annotations

from typing import Any, NamedTuple

VIOLATIONS_KEPT = 50

HELD = "held"
BROKEN = "broken"
NOT_EXERCISED = "not exercised"

TITLES = {
    "G1": "guest only with a lease of this round",
    "G2": "no guest beside a voluntary HOST",
    "G3": "one VM to a core at a time",
    "G4": "no guest instruction after a kick",
    "G5": "rounds and incarnations only grow",
    "G8": "each injection done exactly once",
    "G9": "no guest where others' data is left",
    "G10": "NMI and #MC nest, restore, never wait",
    "G11": "in doubt the gate is closed",
    "L1": "every leave is granted",
    "L2": "every ask is admitted",
    "L3": "no silent stretch while anybody waits",
    "L4": "every death is recovered from in 5 s",
}


def name_of(core: int, ht: int) -> str:
    """Return what a hyperthread is called: c0h1."""
    return f"c{core}h{ht}"


class Violation(NamedTuple):
    """One broken promise. hts: those involved; seqs: the records that show it; text: one sentence."""

    ts: int
    core: int
    hts: tuple[int, ...]
    seqs: tuple[int, ...]
    text: str


class Finding:
    """The result of one check, filled in by it."""

    def __init__(self, guarantee: str) -> None:
        assert guarantee in TITLES
        self.guarantee = guarantee
        self.checked = 0
        self.broken = 0
        self.suspects = 0  # what may be a violation and is not certain
        self.violations: list[Violation] = []
        self.note = ""

    @property
    def title(self) -> str:
        return TITLES[self.guarantee]

    @property
    def state(self) -> str:
        if self.broken:
            return BROKEN
        return HELD if self.checked else NOT_EXERCISED

    @property
    def first(self) -> Violation | None:
        return min(self.violations, default=None)

    def violate(self, ts: int, core: int, hts: tuple[int, ...], seqs: tuple[int, ...], text: str) -> None:
        self.broken += 1
        if len(self.violations) < VIOLATIONS_KEPT:
            self.violations.append(Violation(ts, core, hts, seqs, text))

    def as_map(self) -> dict[str, Any]:
        """Return the JSON form, as in verdict.json."""
        return {
            "state": self.state,
            "title": self.title,
            "checked": self.checked,
            "broken": self.broken,
            "suspects": self.suspects,
            "note": self.note,
            "violations": [
                {"ts": v.ts, "core": v.core, "hts": list(v.hts), "seqs": list(v.seqs), "text": v.text}
                for v in sorted(self.violations)[:10]
            ],
        }
