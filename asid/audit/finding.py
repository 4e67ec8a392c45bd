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
    "G6": "what is not mapped makes a leave",
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
        self.allowed = 0  # of these: what the policy in force never promised against
        self.policies: set[str] = set()  # under which that was
        self.suspects = 0  # what may be a violation and is not certain
        self.remark = ""
        self._kept: dict[bool, list[Violation]] = {False: [], True: []}  # by whether it was allowed

    @property
    def title(self) -> str:
        return TITLES[self.guarantee]

    @property
    def state(self) -> str:
        if self.broken:
            return BROKEN
        return HELD if self.checked else NOT_EXERCISED

    @property
    def violations(self) -> list[Violation]:
        """Return those that were kept, by time; what its policy never promised against comes behind."""
        return sorted(self._kept[False]) + sorted(self._kept[True])

    @property
    def first(self) -> Violation | None:
        return next(iter(self.violations), None)

    @property
    def note(self) -> str:
        if not self.allowed:
            return self.remark
        policies, others = " and ".join(sorted(self.policies)), self.broken - self.allowed
        note = f"{self.allowed:,} that policy {policies} does not promise against; {others:,} others"
        first = min(self._kept[False], default=None)
        return note if first is None else f"{note}, the first: {first.text}"

    def violate(
        self, ts: int, core: int, hts: tuple[int, ...], seqs: tuple[int, ...], text: str, *, allowed_by: str = ""
    ) -> None:
        """Count a violation. allowed_by: the policy in force, if it never promised otherwise."""
        self.broken += 1
        self.keep(Violation(ts, core, hts, seqs, text), allowed_by)
        if allowed_by:
            self.allow(allowed_by)

    def allow(self, policy: str, count: int = 1) -> None:
        """Say of violations that are counted that this policy never promised otherwise."""
        self.allowed += count
        self.policies.add(policy)

    def keep(self, violation: Violation, allowed_by: str = "") -> None:
        """Keep a violation to be shown, if it is one of the first."""
        kept = self._kept[bool(allowed_by)]
        if len(kept) < VIOLATIONS_KEPT:
            label = f" (policy {allowed_by} does not promise otherwise)" if allowed_by else ""
            kept.append(violation._replace(text=violation.text + label))

    def as_map(self) -> dict[str, Any]:
        """Return the JSON form, as in verdict.json."""
        return {
            "state": self.state,
            "title": self.title,
            "checked": self.checked,
            "broken": self.broken,
            "allowed": self.allowed,
            "suspects": self.suspects,
            "note": self.note,
            "violations": [
                {"ts": v.ts, "core": v.core, "hts": list(v.hts), "seqs": list(v.seqs), "text": v.text}
                for v in self.violations[:10]
            ],
        }
