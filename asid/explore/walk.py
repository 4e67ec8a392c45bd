"""Random walks: one run of a model after another, chosen by a seed, for cores too large to be searched.

A walk takes one step after another at random, faults too as long as the budget lasts, and checks every guarantee in
every world. It proves nothing; it looks where a search cannot: four siblings, several VMs, long runs.
"""

from __future__ import annotations

import random
from typing import Final

from asid.errors import ProtocolFault
from asid.explore.checks import Checks
from asid.explore.search import Violation, failed, waits_for_ever
from asid.explore.world import FAIR, World

STEPS: Final = 2_000


def walk(world: World, seed: int, *, steps: int = STEPS, checks: Checks | None = None) -> Violation | None:
    """Take `steps` random steps, and return what is broken on the way, None if nothing is.

    world: of the model; walks may share one, and the `checks` on it, for speed. The same seed takes the same steps.
    """
    chance = random.Random(seed)
    check = Checks(world) if checks is None else checks
    here = world.initial()
    moves: list[int] = []
    passed: list[int] = []

    def stopped(guarantee: str, sentence: str) -> Violation:
        return Violation(guarantee, sentence, tuple(moves), tuple(passed))

    for _ in range(steps):
        broken = check(here)
        if broken:
            return stopped(*broken[0])
        try:
            found = world.successors(here)
        except (ProtocolFault, AssertionError) as mistake:
            return stopped(*failed(mistake))
        if not any(world.actor(move) >= FAIR for move, _ in found):
            stuck = waits_for_ever(world, here)
            if stuck is not None:
                return stopped("L3", stuck)
        if not found:
            return None
        move, here = chance.choice(found)
        moves.append(move)
        passed.append(here)
    return None
