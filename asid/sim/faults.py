"""A plan of faults from a seed: NMIs, machine checks, interrupts, exits, stalls and kills, at random instants; and now
and then a sibling whose answers to kicks are long on their way, from the beginning to the end.

Rule 1. The same seed makes the same plan, in every process.
Rule 2. First it breaks, then it heals: nothing is injected in the last part of a run, so whoever still waits at its end
        waits for something that does not come.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

FAULTS_MAX: Final = 12
BREAKS: Final = 0.5  # of the time; the rest is for healing
KINDS: Final = (("nmi", 5), ("exit", 4), ("mce", 2), ("irq", 2), ("stall", 2), ("kill", 1))
STALL_US_MAX: Final = 3_000
COUNT_MAX: Final = 3
SLOW_SHARE: Final = 0.25  # of seeds that have a slow sibling
SLOW_US_MAX: Final = 400
SLOW: Final = "slow"

Plan = tuple[dict[str, Any], ...]


def plan_of(seed: int, cores: int, smt: int, duration_ns: int) -> Plan:
    """Return [[inject]] tables of a configuration, by time; in front of them one of what = "slow", if any, which is a
    table of [[faults.slow]] but for that word."""
    random = Random(f"asid faults seed={seed}")
    kinds, weights = zip(*KINDS, strict=True)
    found = []
    for _ in range(random.randint(1, FAULTS_MAX)):
        what = random.choices(kinds, weights)[0]
        at_ns = random.randrange(1, max(2, int(duration_ns * BREAKS)))
        table: dict[str, Any] = {
            "what": what,
            "target": f"c{random.randrange(cores)}h{random.randrange(smt)}",
            "at": f"{at_ns}ns",
        }
        count, stall_us = random.randint(1, COUNT_MAX), random.randint(1, STALL_US_MAX)
        if what in ("nmi", "mce", "exit", "irq") and count > 1:
            table["count"] = count
        if what == "exit":
            table["reason"] = random.choice(("EPT_VIOLATION", "MSR_WRITE", "CPUID"))
        if what == "stall":
            table["duration"] = f"{stall_us}us"
        found.append((at_ns, table))
    return *_slow(seed, cores, smt), *(table for _, table in sorted(found, key=lambda item: item[0]))


def _slow(seed: int, cores: int, smt: int) -> Plan:
    random = Random(f"asid slow seed={seed}")
    if random.random() >= SLOW_SHARE:
        return ()
    target = f"c{random.randrange(cores)}h{random.randrange(smt)}"
    return ({"what": SLOW, "target": target, "delay": f"{random.randint(1, SLOW_US_MAX)}us"},)


def tables_of(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tables of a plan for [[inject]] and for [[faults.slow]]."""
    slow = [{key: value for key, value in table.items() if key != "what"} for table in plan if table["what"] == SLOW]
    return [table for table in plan if table["what"] != SLOW], slow
