"""Random walks through a model, as scripts: what the live machine has to be able to follow, step by step."""

from __future__ import annotations

import random

from asid.explore.parts import Model
from asid.explore.script import script_of
from asid.explore.search import FAULT, Violation
from asid.explore.world import World
from asid.script import Script

FAULT_WEIGHT = 0.05


def walk(model: Model, seed: int, steps: int) -> tuple[World, Violation]:
    """Return a walk of so many steps, drawn from all that can be taken; the same for the same seed.

    What comes from outside comes seldom, so that it does not all come at the beginning.
    """
    w = World(model)
    drawn = random.Random(seed)
    here, moves, worlds = w.initial(), [], []
    while len(moves) < steps and (choices := w.successors(here)):
        weights = [FAULT_WEIGHT if w.actor(move) == FAULT else 1.0 for move, _ in choices]
        ((move, here),) = drawn.choices(choices, weights)
        moves.append(move)
        worlds.append(here)
    return w, Violation("", "", tuple(moves), tuple(worlds))


def walk_script(model: Model, seed: int, steps: int) -> Script:
    return script_of(*walk(model, seed, steps))
