"""A policy on trial: what it decides, every interleaving of two siblings, and random walks of four.

What it promises follows from what it is (see `Policy.like`): one that kicks, and keeps guests out beside HOST, is held
to every guarantee; one that does not is only held to those that it can keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from asid.asking import asked
from asid.core.decisions import decided
from asid.core.exits import SVM, VMX
from asid.core.guarantees import GUARANTEES
from asid.core.policies.base import Policy
from asid.core.policies.kick_except_idle import KickExceptIdle
from asid.errors import PolicyRefused
from asid.explore import story
from asid.explore.checks import Checks
from asid.explore.matrix import unpromised
from asid.explore.models import of_policy
from asid.explore.parts import Budget, Model
from asid.explore.search import Violation, search
from asid.explore.walk import walk
from asid.explore.world import World

STATES_MAX: Final = 2_000_000
# What is explored of two siblings: which VM each runs, and what comes from outside.
CORES: Final = (
    ("one VM", (1, 1), Budget()),
    ("one VM, an NMI", (1, 1), Budget(nmi=1)),
    ("one VM, an interrupt", (1, 1), Budget(irq=1)),
    ("two VMs", (1, 2), Budget()),
    ("two VMs, an NMI", (1, 2), Budget(nmi=1)),
)
# What walks over four siblings meet.
WALKED: Final = Budget(nmi=8, mce=4, irq=8, kill=2, restart=2, coordinator=1, timer=2, hotplug=4)


class Trial(NamedTuple):
    """One thing that was looked at. states: worlds, 0 where there are none; story: of what is broken."""

    what: str
    passed: bool
    states: int
    says: str
    story: str = ""


def trials(policy: type[Policy], seeds: range, name: str = "") -> Iterator[Trial]:
    """Yield what is found, cheapest first: decisions, then for each kick the search of two siblings and the walks.

    name: what the policy is called in what is said of it, by default as its class. One that raises, or ends the
    process, when it is asked does not pass.
    """
    called = name or policy.__qualname__
    try:
        yield from _trials(policy, seeds, called)
    except PolicyRefused as refused:
        yield refused_trial(refused)


def refused_trial(refused: PolicyRefused) -> Trial:
    """Return what is said of a policy that cannot be tried any further."""
    return Trial("decisions", False, 0, f"{refused}. {refused.hint}")


def _trials(policy: type[Policy], seeds: range, name: str) -> Iterator[Trial]:
    with asked(name):
        first = decides(policy)
    yield first
    if not first.passed:
        return
    for kick in policy.kicks:
        with asked(name):
            made = policy(kick)
            cores = [(what, of_policy(made, vms, budget=budget)) for what, vms, budget in CORES]
            four = of_policy(made, (1, 1, 2, 2), budget=WALKED)
        for what, model in cores:
            yield explored(made, f"{kick.name.lower()}, {what}", model)
            if policy.like() == KickExceptIdle.name:  # what excuses an exit for idling excuses no other
                busy = replace(model, idle_exits=False)
                yield explored(made, f"{kick.name.lower()}, {what}, nobody idles", busy, frozenset())
        yield walked(made, f"{kick.name.lower()}, four siblings", seeds, four)


def decides(policy: type[Policy]) -> Trial:
    """Ask it about every exit there is: twice the same answer, True or False, never False for one that needs HOST.
    And about every hyperthread: the same answer for all, see `asid.core.decisions`."""
    try:
        decided(policy)
    except PolicyRefused as refused:
        return refused_trial(refused)
    made, reasons = policy(policy.kicks[0]), (*VMX, *SVM)
    for reason in reasons:
        for full in (False, True):
            answers = [made.needs_full(full, reason.name) for _ in range(2)]
            if answers[0] is not answers[1] or type(answers[0]) is not bool:
                says = f"needs_full({full}, {reason.name!r}) is {answers[0]!r}, then {answers[1]!r}"
                return Trial("decisions", False, 0, says)
            if full and not answers[0]:
                says = f"{reason.name} needs the full address space, and is handled without it"
                return Trial("decisions", False, 0, says)
    return Trial("decisions", True, 0, f"{len(reasons)} exit reasons, each answered the same twice")


def explored(policy: Policy, what: str, model: Model, without: frozenset[str] | None = None) -> Trial:
    """Search every interleaving of two siblings. without: what is not asked; by default what it does not promise."""
    not_made = unpromised(type(policy)) if without is None else without
    result = search(model, states_max=STATES_MAX, only=frozenset(GUARANTEES) - not_made)
    if result.violation is not None:
        return Trial(what, False, result.states, result.violation.sentence, story.told(result.world, result.violation))
    if not result.complete:
        return Trial(what, False, result.states, f"more than {STATES_MAX:,} worlds: not proved")
    return Trial(what, True, result.states, _held(not_made))


def walked(policy: Policy, what: str, seeds: range, model: Model | None = None) -> Trial:
    """Walk at random over four siblings of two VMs, with everything that may come from outside."""
    not_made = unpromised(type(policy))
    world = World(model or of_policy(policy, (1, 1, 2, 2), budget=WALKED))
    checks = Checks(world, frozenset(GUARANTEES) - not_made)
    for seed in seeds:
        broken: Violation | None = walk(world, seed, checks=checks)
        if broken is not None:
            return Trial(what, False, 0, f"seed {seed}: {broken.sentence}", story.told(world, broken))
    return Trial(what, True, 0, f"{len(seeds)} seeds; {_held(not_made)}")


def _held(without: frozenset[str]) -> str:
    return f"all held, but {', '.join(sorted(without))}, which it does not promise" if without else "all held"
