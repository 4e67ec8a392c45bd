"""One core as a transition system: which worlds can follow a world.

A world is one integer. It packs the numbers of its parts, BITS bits each: one `Sibling` a hyperthread, the `Desk`,
the `Budget`. Parts are interned, since each occurs in very many worlds, and a step is worked out once for the parts
that it reads; ever after it is a look-up and an addition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, product
from typing import Final

from asid.core import gate, mce
from asid.core.events import Kick, Mode, Report, Timer
from asid.core.guarantees import CoreView
from asid.explore import desk, meetings, numbers, siblings
from asid.explore.interner import BITS, MASK, Interner
from asid.explore.parts import (
    COORDINATOR,
    Arrivals,
    Budget,
    Dead,
    Death,
    Desk,
    DeskMove,
    Down,
    Label,
    Model,
    Sibling,
    Touch,
    Touched,
    Who,
    Words,
    actor,
    spec_of,
)

HOLDS: Final = 1  # its flag or depth is raised
BURIED: Final = 2  # it may be born again
FAIR: Final = actor(Who.PROCESS)  # actors from here on keep moving when they can

Step = tuple[int, int]  # the number of what happened, see World.label and World.actor, and the world after it
Touches = tuple[tuple[int, int], ...]  # (hyperthread, number of the touch)
OwnStep = tuple[int, int, Touches, int]  # what happened, what it adds to the world, touches, renumbered
OwnKey = tuple[int, meetings.Peers]  # what was read for them
DeskStep = tuple[int, int, int, Touches]  # what happened, desk, budget, touches


class World:
    """The successors of the worlds of one model. Fields of a world: siblings 0..n-1, desk, budget."""

    def __init__(self, model: Model) -> None:
        self.model = model
        n = self.n = model.siblings
        self.specs = tuple(spec_of(model, ht) for ht in range(n))
        self.together = model.kick is Kick.RENDEZVOUS
        self.gate_spec = gate.Spec(model.rooms, model.overtakes_max, model.host_alone, self.together)
        self.siblings: Interner[Sibling] = Interner()
        self.desks: Interner[Desk] = Interner()
        self.budgets: Interner[Budget] = Interner()
        self.touches: Interner[Touch] = Interner()
        self.heard: Interner[Report | Death] = Interner()
        self.moves: Interner[tuple[Label, int]] = Interner()
        self.at = tuple(BITS * field for field in range(n + 2))
        self.desk_at, self.budget_at = self.at[n], self.at[n + 1]
        # What was worked out before, by the numbers of the parts that were read.
        self._own: tuple[dict[int | OwnKey, tuple[OwnStep, ...]], ...] = tuple({} for _ in range(n))
        self._desk: dict[tuple[int, int], tuple[DeskStep, ...]] = {}
        self._hears: dict[tuple[int, int, int], DeskStep] = {}
        self._touched: dict[tuple[int, int, int], int] = {}
        self._renumbered: dict[tuple[int, int, int], int] = {}
        self._inbox: tuple[dict[int, tuple[tuple[int, int], ...]], ...] = tuple({} for _ in range(n))
        self._traits = bytearray()  # of each sibling part: HOLDS, BURIED
        self._able: tuple[dict[int, int], ...] = tuple({} for _ in range(n + 1))

    # --- worlds -------------------------------------------------------------------------------------------

    def initial(self) -> int:
        empty = Sibling(Dead(0), Words(request=numbers.BASE, tainted=self.model.taints), (), ())
        parts = [self.siblings(siblings.born(self.model, spec, 1, 1, empty)) for spec in self.specs]
        parts += [self.desks(desk.opened(self.model, self.gate_spec)), self.budgets(self.model.budget)]
        return sum(part << at for part, at in zip(parts, self.at, strict=True))

    def parts(self, world: int) -> tuple[tuple[Sibling, ...], Desk, Budget]:
        """Return what a world is made of."""
        hts = tuple(self.siblings.things[world >> at & MASK] for at in self.at[: self.n])
        return hts, self.desks.things[world >> self.desk_at & MASK], self.budgets.things[world >> self.budget_at]

    def view(self, world: int) -> CoreView:
        """Return the world as the guarantees see it."""
        hts, d, _ = self.parts(world)
        processes = tuple(None if isinstance(s.process, Dead) else s.process for s in hts)
        pending, tainted = (tuple(getattr(s.words, word) for s in hts) for word in ("pending", "tainted"))
        met = tuple(None if isinstance(s.process, Dead) else meetings.meeting(s) for s in hts)
        return CoreView(processes, pending, None if isinstance(d.gate, Down) else d.gate, tainted, met)

    def label(self, move: int) -> Label:
        return self.moves.things[move][0]

    def actor(self, move: int) -> int:
        return self.moves.things[move][1]

    # --- successors ---------------------------------------------------------------------------------------

    def successors(self, world: int) -> list[Step]:
        """Return every step that can be taken, and the world after it. Steps that change nothing are left out."""
        parts = [world >> at & MASK for at in self.at]
        found = self._by_siblings(world, parts)
        self._by_coordinator(world, parts, found)
        if self.model.budget.restart:
            self._births(world, parts, found)
        if self.model.budget.loss or self.model.budget.fatal:
            self._time_passes(world, parts, found)
        if self.model.budget.broadcast:
            self._machine_checks(world, parts, found)
        return [step for step in found if step[1] != world]

    def traits(self, part: int) -> int:
        """Return what a sibling is to the others, as bits."""
        traits, things = self._traits, self.siblings.things
        while len(traits) <= part:
            s = things[len(traits)]
            holds = HOLDS if s.words.flag or s.words.depth else 0
            buried = BURIED if isinstance(s.process, Dead) and s.process.buried else 0
            traits.append(holds | buried)
        return traits[part]

    def _by_siblings(self, world: int, parts: list[int]) -> list[Step]:
        n, at, d, b = self.n, self.at, parts[self.n], parts[self.n + 1]
        raised = 0
        for ht in range(n):
            raised |= (self.traits(parts[ht]) & HOLDS) << ht
        found: list[Step] = []
        for ht in range(n):
            part = parts[ht]
            others = raised & ~(1 << ht)
            if self.together:
                others |= self._absent(part, parts)
            key: int | OwnKey = (b << BITS | part) << n | others
            seen = meetings.NOBODY
            if self.model.budget.broadcast:
                all_ = [self.siblings.things[each] for each in parts[:n]]
                others |= meetings.missed(ht, all_[ht], all_)
                seen = meetings.peers(all_[ht], all_)
                key = ((b << BITS | part) << n | others, seen)
            steps = self._own[ht].get(key)
            if steps is None:
                steps = self._own[ht][key] = tuple(self._work_out(ht, part, b, others, seen))
            for move, delta, touches, renumbered in steps:
                after = world + delta
                for other, touch in touches:
                    after += (self._touch(other, parts[other], touch) - parts[other]) << at[other]
                if renumbered:
                    after += (self._renumber(ht, d, renumbered) - d) << self.desk_at
                found.append((move, after))
        return found

    def _absent(self, part: int, parts: list[int]) -> int:
        """Return the bits of those whom a sibling is to meet and who have not arrived."""
        things = self.siblings.things
        h = things[part].process
        if isinstance(h, Dead) or not h.party:
            return 0
        return sum(1 << o for o in range(self.n) if h.party >> o & 1 and things[parts[o]].words.arrived < h.round)

    def _work_out(self, ht: int, part: int, b: int, raised: int, seen: meetings.Peers) -> Iterable[OwnStep]:
        """Yield the steps of one sibling by itself."""
        s, budget, spec = self.siblings.things[part], self.budgets.things[b], self.specs[ht]
        found = siblings.moves(self.model, spec, s, raised, budget)
        if self.model.budget.broadcast:
            found = chain(found, meetings.moves(self.model, spec, s, budget, seen))
        for m in found:
            delta = (self.siblings(m.sibling) - part) << self.at[ht]
            delta += (self.budgets(m.budget) - b) << self.budget_at
            yield self.moves((m.label, m.actor)), delta, self._numbered(m.touches), m.renumbered

    def _numbered(self, touches: Iterable[Touch]) -> Touches:
        return tuple((touch.ht, self.touches(touch)) for touch in touches)

    def _touch(self, ht: int, part: int, touch: int) -> int:
        key = (ht, part, touch)
        after = self._touched.get(key)
        if after is None:
            s = siblings.touched(self.model, self.specs[ht], self.siblings.things[part], self.touches.things[touch])
            after = self._touched[key] = self.siblings(s)
        return after

    def _renumber(self, ht: int, d: int, delta: int) -> int:
        key = (ht, d, delta)
        after = self._renumbered.get(key)
        if after is None:
            after = self._renumbered[key] = self.desks(numbers.desk_requests(self.desks.things[d], ht, delta))
        return after

    # --- the coordinator ----------------------------------------------------------------------------------

    def _by_coordinator(self, world: int, parts: list[int], found: list[Step]) -> None:
        d, b = parts[self.n], parts[self.n + 1]
        place = self.desks.things[d]
        if isinstance(place.gate, Down):
            living = tuple(0 if isinstance(s.process, Dead) else s.process.inc for s in self.parts(world)[0])
            back = desk.comes_back(self.gate_spec, place, living, self.budgets.things[b])
            found.append(self._applied(world, parts, self._in_numbers(back)))
            return
        steps = self._desk.get((d, b))
        if steps is None:
            steps = self._desk[d, b] = tuple(self._in_numbers(m) for m in self._by_itself(place, b))
        for step in steps:
            found.append(self._applied(world, parts, step))
        if not place.todo:
            for ht in range(self.n):
                part = parts[ht]
                for heard, rest in self._audible(ht, part):
                    decided = self._hear(d, b, heard)
                    parts[ht] = rest
                    found.append(self._applied(world + ((rest - part) << self.at[ht]), parts, decided))
                parts[ht] = part
        if self.budgets.things[b].coordinator:
            self._coordinator_dies(world, parts, found)

    def _by_itself(self, place: Desk, b: int) -> Iterable[DeskMove]:
        """Yield what the coordinator does without hearing anybody."""
        budget = self.budgets.things[b]
        if place.todo:
            yield from desk.performs(place, budget)
            return
        turn = desk.turn(self.gate_spec, place, budget)
        if turn is not None:
            yield turn
        yield from desk.outside(self.model, self.gate_spec, place, budget)

    def _in_numbers(self, m: DeskMove) -> DeskStep:
        return self.moves((m.label, m.actor)), self.desks(m.desk), self.budgets(m.budget), self._numbered(m.touches)

    def _applied(self, world: int, parts: list[int], step: DeskStep) -> Step:
        """Return the world after a step of the coordinator, and what happened."""
        n = self.n
        move, d, b, touches = step
        after = world + ((d - parts[n]) << self.desk_at) + ((b - parts[n + 1]) << self.budget_at)
        if touches:
            now = parts[:n]
            if self.model.taints:
                touches = (*self._left_behind(parts, touches), *touches)
            for ht, touch in touches:
                now[ht] = self._touch(ht, now[ht], touch)
            for ht in range(n):
                if now[ht] != parts[ht]:
                    after += (now[ht] - parts[ht]) << self.at[ht]
        return move, after

    def _left_behind(self, parts: list[int], touches: Touches) -> Touches:
        """Return what a fence does to the buffers: whom it kills in HOST had loaded something until then."""
        for ht, touch in touches:
            process = self.siblings.things[parts[ht]].process
            killed = self.touches.things[touch].what is Touched.KILLED
            if killed and not isinstance(process, Dead) and process.mode is Mode.HOST:
                return self._numbered(Touch(other, Touched.TAINTED) for other in range(self.n))
        return ()

    def _audible(self, ht: int, part: int) -> tuple[tuple[int, int], ...]:
        """Return what the coordinator can hear of a sibling now, and the sibling after it was heard."""
        heard = self._inbox[ht].get(part)
        if heard is None:
            s = self.siblings.things[part]
            all_ = [(self.heard(r[0]), self.siblings(s._replace(up=siblings.taken(s.up, inc)))) for inc, r in s.up]
            if isinstance(s.process, Dead) and not s.process.told:
                all_.append((self.heard(Death(ht, s.process.inc)), part))
            heard = self._inbox[ht][part] = tuple(all_)
        return heard

    def _hear(self, d: int, b: int, heard: int) -> DeskStep:
        step = self._hears.get((d, b, heard))
        if step is None:
            what, place, budget = self.heard.things[heard], self.desks.things[d], self.budgets.things[b]
            if isinstance(what, Death):
                m = desk.hears_of_death(self.gate_spec, place, what.ht, what.inc, budget)
            else:
                m = desk.receives(self.gate_spec, place, what, budget)
            step = self._hears[d, b, heard] = self._in_numbers(m)
        return step

    def _coordinator_dies(self, world: int, parts: list[int], found: list[Step]) -> None:
        """It may not have sent its newest orders: any number of those still under way (see `desk`).

        Whom it has buried and who is not born again yet waits for the next one: that wipes the words of all the dead.
        """
        hts, place, budget = self.parts(world)
        assert not isinstance(place.gate, Down)
        coord = place.gate.coord
        after = budget._replace(coordinator=budget.coordinator - 1)
        choices = [range(sum(o.coord == coord for o in s.down) + 1) for s in hts]
        for unsent in product(*choices):
            lost = tuple(Touch(ht, Touched.UNSENT, count) for ht, count in enumerate(unsent) if count)
            touches = (*lost, *(Touch(ht, Touched.UNBURIED) for ht in range(self.n)))
            label = Label(COORDINATOR, "is killed", str(unsent))
            m = DeskMove(label, actor(Who.FAULT), desk.dies(place), after, touches)
            found.append(self._applied(world, parts, self._in_numbers(m)))

    # --- the daemon and the clock -------------------------------------------------------------------------

    def _births(self, world: int, parts: list[int], found: list[Step]) -> None:
        """Whoever was buried may be born again, told which coordinator there is, or was last."""
        for ht in range(self.n):
            if self.traits(parts[ht]) & BURIED:
                _, place, budget = self.parts(world)
                if budget.restart:
                    after = budget._replace(restart=budget.restart - 1)
                    touch = Touch(ht, Touched.BORN, place.gate.coord)
                    m = DeskMove(Label(ht, "is born again"), actor(Who.DAEMON), place, after, (touch,))
                    found.append(self._applied(world, parts, self._in_numbers(m)))

    def _machine_checks(self, world: int, parts: list[int], found: list[Step]) -> None:
        """One reaches everybody who lives; and whoever missed somebody in the rendezvous has him fenced, afterwards."""
        hts, place, budget = self.parts(world)
        if budget.broadcast:
            number = self.model.budget.broadcast - budget.broadcast + 1
            living = [ht for ht, s in enumerate(hts) if not isinstance(s.process, Dead)]
            word = mce.broadcast_word(number, sum(1 << ht for ht in living))
            touches = tuple(Touch(ht, Touched.RAISED, word) for ht in living)
            after = budget._replace(broadcast=budget.broadcast - 1)
            m = DeskMove(Label(COORDINATOR, "is in a machine check"), actor(Who.FAULT), place, after, touches)
            found.append(self._applied(world, parts, self._in_numbers(m)))
        reported = 0
        for ht, s in enumerate(hts):
            if not isinstance(s.process, Dead) and not s.process.frames and not s.stopped:
                reported |= meetings.missed(ht, s, hts)
        for ht, s in enumerate(hts):
            if reported >> ht & 1 and not isinstance(s.process, Dead):
                for unsent in range(siblings.unread(s, s.process.inc) + 1):
                    touch = (Touch(ht, Touched.KILLED, unsent),)
                    m = DeskMove(Label(ht, "is fenced"), actor(Who.DAEMON, ht), place, budget, touch)
                    found.append(self._applied(world, parts, self._in_numbers(m)))

    def _time_passes(self, world: int, parts: list[int], found: list[Step]) -> None:
        """A time-out strikes in the end where a message was lost: its sender waits, and nothing is under way; and where
        what would stop it never comes, on a core that a machine check has failed."""
        hts, place, budget = self.parts(world)
        d = parts[self.n]
        for ht, again, timer in self._overdue(world):
            if again:
                m = siblings.timed_out(self.model, self.specs[ht], hts[ht], budget)
                after = world + ((self.siblings(m.sibling) - parts[ht]) << self.at[ht])
                after += (self._renumber(ht, d, m.renumbered) - d) << self.desk_at
                found.append((self.moves((m.label, m.actor)), after))
            if timer is not None and not place.todo:
                step = desk.timer(self.gate_spec, place, timer, ht, budget, actor(Who.TIME, ht))
                found.append(self._applied(world, parts, self._in_numbers(step)))

    def _overdue(self, world: int) -> Iterator[tuple[int, bool, Timer | None]]:
        """Yield for each sibling whether its request times out in the end, and which time-out of the gate does."""
        hts, place, budget = self.parts(world)
        g = place.gate
        lost = budget.loss < self.model.budget.loss
        if (lost or budget.fatal < self.model.budget.fatal) and not isinstance(g, Down):
            for ht, (s, m) in enumerate(zip(hts, g.members, strict=True)):
                yield ht, lost and siblings.overdue(s, m), desk.overdue(s, g, ht)

    # --- who could move -----------------------------------------------------------------------------------

    def able(self, world: int, moved: int) -> int:
        """Return the fair actors that could move, as bits. `moved`: the bits of those that have a step here.

        A peer whose report waits is able to be read while the coordinator is busy, and so on: what counts is that
        there is something for it to do.
        """
        bits = moved
        for ht in range(self.n):
            part = world >> self.at[ht] & MASK
            mask = self._able[ht].get(part)
            if mask is None:
                mask = 1 << actor(Who.INBOX, ht) if self.siblings.things[part].down else 0
                for heard, _ in self._audible(ht, part):
                    what = self.heard.things[heard]
                    mask |= 1 << actor(Who.DEATH if isinstance(what, Death) else Who.LINK, what.ht)
                self._able[ht][part] = mask
            bits |= mask
        d = world >> self.desk_at & MASK
        mask = self._able[self.n].get(d)
        if mask is None:
            mask = self._able[self.n][d] = self._able_at_desk(self.desks.things[d])
        if self.model.budget.loss or self.model.budget.fatal:
            for ht, again, timer in self._overdue(world):
                if again or timer is not None:
                    bits |= 1 << actor(Who.TIME, ht)
        return self.counted(bits | mask)

    def _able_at_desk(self, place: Desk) -> int:
        if isinstance(place.gate, Down):
            return 0
        turn = desk.turn(self.gate_spec, place, Budget()) is not None
        return turn << actor(Who.TURN) | place.gate.held << actor(Who.DAEMON)

    def counted(self, bits: int) -> int:
        """Return actors as they count for fairness: with Arrivals.ANY all peers are one."""
        links = ((1 << self.n) - 1) << actor(Who.LINK)
        if self.model.arrivals is Arrivals.ANY and bits & links:
            return bits & ~links | 1 << actor(Who.LINK)
        return bits
