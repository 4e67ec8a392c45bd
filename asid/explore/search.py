"""Breadth-first search over the worlds of a model: guarantees in every world, no dead end, progress.

A search keeps for each world its parent and the step that led to it, so the first violation found is one of the
shortest. The number of worlds is exact and pinned by tests: a change there is a change of behaviour.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from asid.core import gate
from asid.core.hyperthread import Phase
from asid.errors import ProtocolFault
from asid.explore import progress
from asid.explore.checks import SOMETIMES, Checks
from asid.explore.parts import Dead, Down, Model, Who, actor
from asid.explore.world import FAIR, Step, World

FAULT: Final = actor(Who.FAULT)
TELL_EVERY: Final = 1 << 13  # worlds between two calls of `tell`
STUCK: Final = frozenset({Phase.ASKING, Phase.LEAVING, Phase.HELD})
KEPT_OUT: Final = frozenset({Phase.ASKING, Phase.HELD})  # for good, on a core that a machine check has failed


@dataclass(frozen=True, slots=True)
class Violation:
    """What is broken, how, and the way there: numbers of steps, and where the cycle starts (-1: there is none)."""

    guarantee: str
    sentence: str
    moves: tuple[int, ...]
    worlds: tuple[int, ...]  # after each step
    cycle: int = -1

    @property
    def steps(self) -> int:
        """Return how long the way there is; of a cycle, the way to where it starts."""
        return self.cycle if self.cycle >= 0 else len(self.moves)


class Leak(NamedTuple):
    """In how many worlds a guest can read what is not its own, and how many steps lead to the first of them."""

    worlds: int
    steps: int


@dataclass
class Result:
    """What a search found. `complete` is False when a limit was hit: then nothing is proved."""

    model: Model
    world: World
    states: int = 0
    transitions: int = 0
    depth: int = 0  # steps to the farthest world
    complete: bool = False
    violation: Violation | None = None  # the first one
    violations: dict[str, Violation] = field(default_factory=dict)  # of each guarantee that is broken, a shortest one
    sometimes: dict[str, bool] = field(default_factory=dict)
    leaks: dict[str, Leak] = field(default_factory=dict)  # "concurrent" and "residual", if there are any

    @property
    def passed(self) -> bool:
        return self.complete and self.violation is None and all(self.sometimes.values())


Tell = Callable[[int], bool]


def search(
    model: Model, *, states_max: int = 2_000_000, depth_max: int = 1 << 30, with_progress: bool = True,
    waiting: bool = True, tell: Tell = lambda states: True, world: World | None = None,
    only: frozenset[str] | None = None, to_the_end: bool = False,
) -> Result:  # fmt: skip
    """Explore a model.

    `tell` is given the number of worlds so far now and then, and stops the search with False. Without `waiting` a
    world in which nobody has to move is no violation; without `with_progress` cycles are not looked for. `only`: the
    guarantees to look at, None for all. The first violation ends a search unless it goes `to_the_end`: then each
    guarantee's own shortest one is found.
    """
    w = World(model) if world is None else world
    result = Result(model, w)
    checks = Checks(w, only)
    first_world = w.initial()
    number = {first_world: 0}
    worlds = [first_world]
    parents, via = array("I", [0]), array("I", [0])
    # Steps that are not faults, by world: where they lead, and whose they are.
    graph = progress.Graph(w, worlds)
    starts, targets, actors = graph.starts, graph.targets, graph.actors
    level_end, depth, at = 1, 0, 0

    def found(guarantee: str, sentence: str) -> bool:
        """Note a violation, if it is the first of its guarantee. Return whether the search ends here."""
        if guarantee not in result.violations:
            moves, passed = path(at, parents, via, worlds)
            noted(result, Violation(guarantee, sentence, moves, passed))
        result.states, result.depth = len(worlds), depth
        return not to_the_end

    while at < len(worlds):
        if at == level_end:
            level_end, depth = len(worlds), depth + 1
            if depth > depth_max:
                break
        here = worlds[at]
        for guarantee, sentence in checks(here):
            if guarantee == "G9":
                kind = checks.leak(here)
                before = result.leaks.get(kind, Leak(0, depth))
                result.leaks[kind] = before._replace(worlds=before.worlds + 1)
            if found(guarantee, sentence):
                return result
        steps: list[Step] = []
        able = False
        try:
            steps = w.successors(here)
        except (ProtocolFault, AssertionError) as mistake:
            if found(*failed(mistake)):
                return result
            able = True  # nobody knows who would move on
        starts.append(len(targets))
        for move, there in steps:
            target = number.get(there)
            if target is None:
                target = number[there] = len(worlds)
                worlds.append(there)
                parents.append(at)
                via.append(move)
            whose = w.moves.things[move][1]
            if whose != FAULT:
                targets.append(target)
                actors.append(whose)
                able = able or whose >= FAIR
        if waiting and not able:
            stuck = waits_for_ever(w, here)
            if stuck is not None and found("L3", stuck):
                return result
        result.transitions += len(steps)
        at += 1
        if at & (TELL_EVERY - 1) == 0 and not tell(len(worlds)):
            break
        if len(worlds) > states_max:
            break
    else:
        result.complete = True
    result.states, result.depth = len(worlds), depth
    reached = list(checks.reached())
    for name, (applies, happens) in SOMETIMES.items():
        if applies(model):
            result.sometimes[name] = any(happens(seen) for seen in reached)
    if result.complete and with_progress:
        starts.append(len(targets))
        for lasso in progress.lassos(graph):
            at = lasso.at
            moves, passed = path(at, parents, via, worlds)
            cycle = len(moves) if lasso.moves else -1
            moves, passed = (*moves, *lasso.moves), (*passed, *lasso.worlds)
            noted(result, Violation(lasso.guarantee, lasso.sentence, moves, passed, cycle))
            if not to_the_end:
                break
    return result


def noted(result: Result, violation: Violation) -> None:
    """Keep a violation if it is the first, and if it is its guarantee's shortest."""
    best = result.violations.get(violation.guarantee)
    if best is None or violation.steps < best.steps:
        result.violations[violation.guarantee] = violation
    if result.violation is None:
        result.violation = violation


def failed(mistake: Exception) -> tuple[str, str]:
    """Return what is broken when a step of the protocol raised."""
    if isinstance(mistake, ProtocolFault):
        return "table", f"{mistake}"
    return "assertion", str(mistake) or "an assertion of the protocol failed"


def path(at: int, parents: array[int], via: array[int], worlds: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the steps from the first world to world `at`, and the world after each."""
    moves, passed = [], []
    while at:
        moves.append(via[at])
        passed.append(worlds[at])
        at = parents[at]
    return tuple(reversed(moves)), tuple(reversed(passed))


def waits_for_ever(w: World, world: int) -> str | None:
    """Say who waits in a world in which nobody has to move (faults, and what guests choose to do, may never come)."""
    hts, d, _ = w.parts(world)
    g = d.gate
    assert not isinstance(g, Down), "a coordinator always comes back"
    for ht, s in enumerate(hts):
        h = s.process
        if isinstance(h, Dead) or s.stopped:  # who is missed of the stopped is fenced; on its own nobody misses it
            continue
        if h.frames:
            return f"h{ht} waits for ever inside a handler: nobody has anything left to do"
        if s.words.failed and h.phase in KEPT_OUT:
            continue
        if h.phase in STUCK:
            return f"h{ht} waits for ever, {h.phase.name.lower()}: nobody has anything left to do"
        m = g.members[ht]
        if h.phase is Phase.IDLE and m.attached and m.leaving is None:
            return f"h{ht} is never given the vCPU of vm {m.attached}"
        if m.belief is gate.Belief.UNKNOWN:
            return f"the gate never learns what h{ht} does"
        if m.leaving is not None:
            return f"h{ht} is never told to {m.leaving.name.lower()}"
    return None
