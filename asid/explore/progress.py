"""Progress: nobody waits for ever, and nobody can be shut out for good.

Two questions about the graph of worlds, faults left out (they come when they like, or never):

* `unfair_cycles`: is there an endless run in which a hyperthread waits all the time, although every actor that keeps
  being able to move does move? Such a run goes round in a strongly connected part of the worlds in which it waits.
* `shut_out`: is there a world from which a hyperthread can get into guest in no way at all?
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from asid.core.events import Kick, Mode
from asid.core.guarantees import l1_leave_waits, l2_ask_waits, l2_has_not_run
from asid.core.hyperthread import HyperthreadState, Phase
from asid.explore.interner import MASK
from asid.explore.parts import Dead, Down, Sibling
from asid.explore.world import FAIR, World


@dataclass
class Graph:
    """Worlds and the steps between them that are not faults. Steps of world i: starts[i] to starts[i + 1]."""

    world: World
    worlds: list[int]
    starts: array[int] = field(default_factory=lambda: array("L"))
    targets: array[int] = field(default_factory=lambda: array("I"))
    actors: array[int] = field(default_factory=lambda: array("B"))

    def able(self, at: int) -> int:
        """Return the fair actors that are able to move in a world, as bits."""
        bits = 0
        for step in range(self.starts[at], self.starts[at + 1]):
            if self.actors[step] >= FAIR:
                bits |= 1 << self.actors[step]
        return self.world.able(self.worlds[at], bits)

    def taken(self, step: int) -> int:
        """Return the bit of the actor of a step."""
        return self.world.counted(1 << self.actors[step])


@dataclass(frozen=True, slots=True)
class Lasso:
    """A world, and a way from it back to it."""

    guarantee: str
    sentence: str
    at: int
    moves: tuple[int, ...] = ()
    worlds: tuple[int, ...] = ()


# --- who waits --------------------------------------------------------------------------------------------


def waits(kick: Kick) -> tuple[tuple[str, str, Callable[[HyperthreadState], bool]], ...]:
    """Return what must end. With `send` and `stun` a sibling may win the race for HOST again and again, so an admitted
    guest is not promised its first instruction, only its admission; that somebody works is, see `nobody_works`.
    """
    if kick in (Kick.SEND, Kick.STUN):
        return (("L2", "asks and is never admitted", l2_ask_waits),)
    return (
        ("L1", "waits for its leave for ever", l1_leave_waits),
        ("L2", "never runs an instruction", l2_has_not_run),
    )


def members(graph: Graph, ht: int, test: Callable[[HyperthreadState], bool], to_run: bool) -> bytearray:
    """Return 1 for each world in which hyperthread `ht` lives, was not stopped, and passes the test.

    to_run: it is guest that it waits for, so it does not count on a core that a machine check has failed.
    """
    w = graph.world
    at = w.at[ht]

    def passes(s: Sibling) -> bool:
        if isinstance(s.process, Dead) or s.stopped or (to_run and s.words.failed):
            return False
        return test(s.process)

    table = bytes(map(passes, w.siblings.things))
    return bytearray(table[world >> at & MASK] for world in graph.worlds)


# --- endless waiting --------------------------------------------------------------------------------------


def lassos(graph: Graph) -> Iterator[Lasso]:
    """Yield what never ends and should: first endless fair runs, then worlds from which somebody is shut out."""
    for find in (unfair_cycles, shut_out):
        yield from find(graph)


def unfair_cycles(graph: Graph) -> Iterator[Lasso]:
    """Yield endless fair runs: in which a hyperthread waits all the time, and in which nobody works."""
    for ht in range(graph.world.n):
        for guarantee, words, test in waits(graph.world.model.kick):
            inside = members(graph, ht, test, to_run=guarantee == "L2")
            lasso = fair_round(graph, inside, guarantee, f"h{ht} {words}, while the others go round")
            if lasso is not None:
                yield lasso
    lasso = fair_round(graph, nobody_works(graph), "L3", "nobody does any work: they hold each other for ever")
    if lasso is not None:
        yield lasso


def fair_round(graph: Graph, inside: bytearray, guarantee: str, sentence: str) -> Lasso | None:
    """Return an endless fair run that stays in the worlds `inside`, None if there is none."""
    for part in components(graph, inside):
        if is_fair(graph, part):
            at, moves = round_trip(graph, part)
            worlds = tuple(graph.worlds[there] for _, there in moves)
            return Lasso(guarantee, sentence, at, tuple(move for move, _ in moves), worlds)
    return None


def nobody_works(graph: Graph) -> bytearray:
    """Return 1 for each world in which somebody should run, and nobody works in HOST or can run a guest instruction.

    A run that stays in such worlds is the mutual hold of RFC comment 14: "one thread is actually doing work while the
    other one is held".
    """
    w = graph.world

    def kind(s: Sibling) -> int:
        if isinstance(s.process, Dead) or s.runs_never or not s.process.vm:
            return 0
        if s.process.phase in (Phase.HALTED, Phase.STOPPED):
            return 0
        works = s.process.mode is Mode.HOST or (s.process.mode is Mode.GUEST and not s.words.pending)
        return 2 if works else 1

    table = bytes(map(kind, w.siblings.things))
    fields = w.at[: w.n]
    return bytearray(max(table[world >> at & MASK] for at in fields) == 1 for world in graph.worlds)


def components(graph: Graph, inside: bytearray) -> Iterator[list[int]]:
    """Yield the strongly connected parts, of two or more, of the worlds `inside` (Tarjan, without recursion)."""
    starts, targets = graph.starts, graph.targets
    count = len(graph.worlds)
    low = array("I", bytes(4 * count))  # 0: not seen yet
    done = count + 1  # greater than every number given
    seen = 0
    open_: list[int] = []
    for root in range(count):
        if not inside[root] or low[root]:
            continue
        seen += 1
        low[root] = mine = seen
        node, step, end = root, starts[root], starts[root + 1]
        trail: list[tuple[int, int, int, int]] = []
        open_.append(node)
        reach = mine
        while True:
            if step < end:
                to = targets[step]
                step += 1
                if not inside[to]:
                    continue
                there = low[to]
                if not there:
                    trail.append((node, step, mine, reach))
                    seen += 1
                    node, step, end = to, starts[to], starts[to + 1]
                    low[node] = mine = reach = seen
                    open_.append(node)
                elif there < reach:
                    reach = there
                continue
            if reach == mine:
                part = []
                while True:
                    member = open_.pop()
                    low[member] = done
                    part.append(member)
                    if member == node:
                        break
                if len(part) > 1:
                    yield part
            else:
                low[node] = reach
            if not trail:
                break
            below = reach
            node, step, mine, reach = trail.pop()
            end = starts[node + 1]
            if below < reach:
                reach = below


def is_fair(graph: Graph, part: list[int]) -> bool:
    """Say whether a run can go round in this part for ever and be fair: each fair actor moves in it, or is unable
    to move in one of its worlds.
    """
    within = set(part)
    taken = 0
    for at in part:
        for step in range(graph.starts[at], graph.starts[at + 1]):
            if graph.targets[step] in within:
                taken |= graph.taken(step)
    left_out = ~taken
    for at in part:
        left_out &= graph.able(at)
        if not left_out:
            return True
    return False


def round_trip(graph: Graph, part: list[int]) -> tuple[int, list[tuple[int, int]]]:
    """Return a world of the part and a way round that is fair: (step, world), worlds by their number."""
    within = set(part)
    home = min(part)
    steps: list[tuple[int, int]] = []
    seen, at = ~0, home
    while True:
        seen_here = graph.able(at)
        seen &= seen_here
        wanted = seen
        way = walk(graph, within, at, lambda a, e, w=wanted: bool(w & graph.taken(e)) or bool(w & ~graph.able(a)))  # type: ignore[misc]
        if not wanted or not way:
            break
        for step, there in way:
            seen &= ~graph.taken(step) & graph.able(there)
            steps.append((step, there))
            at = there
    steps += walk(graph, within, at, lambda a, e: graph.targets[e] == home) if at != home or not steps else []
    return home, [(named(graph, here, step), there) for here, step, there in linked(home, steps)]


def linked(home: int, steps: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    here = home
    for step, there in steps:
        yield here, step, there
        here = there


def walk(graph: Graph, within: set[int], at: int, wanted: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Return the shortest way inside the part whose last step is wanted: (step, world after it)."""
    back: dict[int, tuple[int, int]] = {}
    queue = deque([at])
    visited = {at}
    while queue:
        here = queue.popleft()
        for step in range(graph.starts[here], graph.starts[here + 1]):
            there = graph.targets[step]
            if there not in within:
                continue
            if wanted(here, step):
                way = [(step, there)]
                while here != at:
                    here, step = back[here]
                    way.append((step, graph.targets[step]))
                return way[::-1]
            if there not in visited:
                visited.add(there)
                back[there] = (here, step)
                queue.append(there)
    return []


def named(graph: Graph, here: int, step: int) -> int:
    """Return the number of what happened in a step, worked out again: a search keeps only whose step it was."""
    there, whose = graph.worlds[graph.targets[step]], graph.actors[step]
    w = graph.world
    return next(move for move, after in w.successors(graph.worlds[here]) if after == there and w.actor(move) == whose)


# --- shut out ---------------------------------------------------------------------------------------------


def shut_out(graph: Graph) -> Iterator[Lasso]:
    """Yield worlds from which some hyperthread that should run can never be in guest again."""
    starts, sources = reverse(graph)
    for ht in range(graph.world.n):
        good = runs_or_is_excused(graph, ht)
        queue = [at for at, is_good in enumerate(good) if is_good]
        while queue:
            at = queue.pop()
            for step in range(starts[at], starts[at + 1]):
                before = sources[step]
                if not good[before]:
                    good[before] = 1
                    queue.append(before)
        first = good.find(0)
        if first >= 0:
            yield Lasso("L2", f"h{ht} can never get into guest again", first)


def runs_or_is_excused(graph: Graph, ht: int) -> bytearray:
    """Return 1 for each world in which a hyperthread is in guest, or is not to run: dead, at an end, stopped from
    outside, on a failed core, without a vCPU."""
    w = graph.world
    at, desk_at = w.at[ht], w.desk_at

    def good(s: Sibling) -> bool:
        if isinstance(s.process, Dead) or s.runs_never:
            return True
        return s.process.phase is Phase.STOPPED or s.process.mode is Mode.GUEST

    sibling = bytes(map(good, w.siblings.things))
    idle = bytes(not isinstance(d.gate, Down) and not d.gate.members[ht].attached for d in w.desks.things)
    return bytearray(sibling[world >> at & MASK] | idle[world >> desk_at & MASK] for world in graph.worlds)


def reverse(graph: Graph) -> tuple[array[int], array[int]]:
    """Return the steps by the world they lead to: where each world's begin, and where they come from."""
    count = len(graph.worlds)
    starts = array("L", bytes(8 * (count + 1)))
    for to in graph.targets:
        starts[to + 1] += 1
    for at in range(count):
        starts[at + 1] += starts[at]
    sources = array("I", bytes(4 * len(graph.targets)))
    fill = array("L", starts)
    for at in range(count):
        for step in range(graph.starts[at], graph.starts[at + 1]):
            to = graph.targets[step]
            sources[fill[to]] = at
            fill[to] += 1
    return starts, sources
