"""Leaves that were played before: a core whose siblings are all in guest does the same thing again, at another time.

Rule 1. The simulator is deterministic and knows only differences: of times, and of numbers that grow (of rounds, of
        requests, of kicks). So a leave that begins in the same state, beside siblings that are as undisturbed, goes as
        the one before it went.
Rule 2. How far that goes where times of work differ is said in `asid.sim.known`.
Rule 3. A sibling's part is the same for as long as its guest does not come to an exit of its own before all is quiet
        again. A leave beside one that would is played.
Rule 4. The first exit of its kind in a life may report faults that no later one does: it is played, and what is
        learned of its leave is the rest.
Rule 5. Only figures come of this, no records: numbers that grow stand still in the state of a core while its leaves are
        only counted, and nobody may see them.

A leave of this kind costs a search in what lies ahead of each sibling and some sums; to play it costs a hundred times
as much.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from asid.core.events import Mode
from asid.core.hyperthread import Phase
from asid.sim.figures import Figures, Teller
from asid.sim.known import Pieces, Played
from asid.sim.stream import Run

if TYPE_CHECKING:
    from collections.abc import Hashable

    from asid.sim.core import Core
    from asid.sim.hyperthread import Hyperthread
    from asid.sim.stream import Stream

ONCE: Final = ("fault", "fault.full")  # notes of the first exit of a kind


class Watch(NamedTuple):
    """A leave that is being played, since `at_ns`. runs: everybody's, as they were; ends: of the guest time that each
    sibling was in, 0 for one that was in none and for the leaver. notes, to_come: how many there were, and how many
    appointments were to come."""

    at_ns: int
    ht: int
    kind: int
    work_ns: int
    state: Hashable
    runs: tuple[Run, ...]
    firsts: tuple[int, ...]
    ends: tuple[int, ...]
    notes: int
    to_come: int


class Lane:
    """Where one sibling is while leaves are only counted. base_ns: of its run; at: its next stop in `stops`; known: of
    its own leaves, by kind."""

    __slots__ = (
        "after",
        "at",
        "base_ns",
        "begins",
        "end_ns",
        "first",
        "ht",
        "known",
        "last",
        "number",
        "stops",
        "stream",
    )

    def __init__(self, ht: Hyperthread, run: Run, stream: Stream, known: dict[tuple[int, int], Pieces]) -> None:
        self.ht, self.number, self.stream = ht, ht.ht, stream
        kinds = stream.kinds  # a life may not have come to all that one before it knows: a recording begins again
        self.known = {
            kind: pieces
            for (number, kind), pieces in known.items()
            if number == ht.ht and kind < len(kinds) and not ht.isolation.owes(kinds[kind])
        }
        self.stops = stream.ahead()
        self.begins, self.after = stream.times
        self.first, self.last, self.base_ns, self.end_ns, _ = run
        self.at = stream.at_stop(run)

    def next_stop(self) -> None:
        """The leave for a stop is over: the next one is the one behind it."""
        self.at += 1
        if self.at < len(self.stops):
            self.last, _, _, _, out_ns, _, _ = self.stops[self.at]
            self.end_ns = self.base_ns + out_ns
        else:
            _, self.last, _, self.end_ns, _ = self.run()

    def ends(self) -> int:
        return self.end_ns

    def read_on(self) -> bool:
        """All that lies ahead is over: read what comes behind it. Return whether there is more."""
        self.base_ns += self.begins[len(self.after) - 1]
        more = self.stream.read_on()
        self.stops = self.stream.ahead()
        self.begins, self.after = self.stream.times
        self.first, self.last, _, self.end_ns, _ = run = self.stream.run_of(0, self.base_ns)
        self.at = self.stream.at_stop(run)
        return more

    def run(self) -> Run:
        return self.stream.run_of(self.first, self.base_ns)


class Seen:
    """The leaves of one core."""

    def __init__(self, of: Core) -> None:
        self.core = of
        self.taken = 0  # notes that are not in the core's list any more
        self.counted = 0  # leaves that were not played
        self._settled = 0  # of them, those that were put into figures
        self._figures = Figures()
        self._known: dict[Hashable, dict[tuple[int, int], Pieces]] = {}  # by state, then by leaver and kind
        self._watch: Watch | None = None

    def run_ended(self, ht: Hyperthread) -> None:
        """The run of a hyperthread has come to its end: play what comes, or count it and all that follow."""
        state = self._quiet()
        if self._watch is not None:
            self._learn(self._watch, state)
            self._watch = None
        if state is not None and ht.vcpu.run is not None and ht.vcpu.run.stops:
            if self._count(ht, self._known.setdefault(state, {})):
                return
            self._begin(ht, state)
        ht.go()

    def figures(self) -> Figures:
        """Return the figures of all leaves that were counted."""
        for known in self._known.values():
            for each in (piece for pieces in known.values() for piece in pieces.known):
                each.count(self._figures)
        return self._figures

    def settle(self) -> int:
        """Put the leaves that were counted since the last time into figures. Return how many there were.

        Until then the time of work of each is kept.
        """
        n, self._settled = self.counted - self._settled, self.counted
        self.figures()
        return n

    # --- what the core is like ------------------------------------------------------------------------------

    def _quiet(self) -> Hashable | None:
        """Return the state of a core that is quiet: everybody in a run of its own, nothing under way. None: it is not.

        Two that are equal differ only by what grows.
        """
        core = self.core
        gate = core.gate.state
        if core.agenda.flying or core.page.failed or gate.held or gate.queue or not gate.open or gate.overtaken:
            return None
        found: list[Hashable] = []
        rooms = set()
        for ht, member in zip(core.hts, gate.members, strict=True):
            if ht is None or not ht.calm():
                return None
            state, words = ht.state, ht.words
            if ht.vcpu.run is None and (state.vm or state.phase is not Phase.IDLE):
                return None
            if words.apic.bus:
                return None  # an IPI is on its way, and nobody says since when
            if state.vm:
                rooms.add(core.gate.spec.room(ht.ht, state.vm))
            kicked = member.kicked and member.kicked - words.request
            round_ = state.round - gate.round if state.session else state.round  # none grows without a lease
            granted = member.granted if member.granted < 0 else member.granted - state.req
            found += (
                state._replace(inc=0, coord=0, round=round_, req=0, answered=0),
                member._replace(
                    inc=member.inc - state.inc, req=member.req - state.req, granted=granted,
                    kicks=member.kicks - words.request, kicked=kicked,
                ),
                (words.flag, words.depth, words.apic, words.pending, words.request - state.answered),
            )  # fmt: skip
        if len(rooms) > 1:
            return None  # turns come by the clock
        return (gate.turn in rooms, core.page.tainted(), *found)

    def _running(self) -> list[tuple[Hyperthread, Run, Stream]]:
        """Return whoever has a run, by number, with its run and its exits."""
        vcpus = [(ht, ht.vcpu) for ht in self.core.hts if ht is not None]
        return [(ht, vcpu.run, vcpu.stream) for ht, vcpu in vcpus if vcpu.run is not None and vcpu.stream is not None]

    # --- a leave that is played -----------------------------------------------------------------------------

    def _begin(self, ht: Hyperthread, state: Hashable) -> None:
        """Watch the leave that is about to be played."""
        core, stop = self.core, None
        runs, firsts, ends = [], [], []
        for other, run, stream in self._running():
            over_ns = core.agenda.over_ns(other.ht)
            if other is ht:
                stop, first, end_ns = stream.stop(run), run.last + 1, 0
            else:
                first, end_ns = stream.guest(run, over_ns)
            runs.append(run)
            firsts.append(first)
            ends.append(end_ns if end_ns >= over_ns else 0)
        if stop is not None and not stop.wake_ns:
            self._watch = Watch(
                core.agenda.now_ns, ht.ht, stop.kind, stop.work_ns, state, tuple(runs), tuple(firsts), tuple(ends),
                self.taken + len(core.noted), core.agenda.to_come,
            )  # fmt: skip

    def _learn(self, watch: Watch, state: Hashable | None) -> None:
        """The core is at the end of a run again: if it is as it was, what was played can be counted from now on."""
        if state != watch.state or watch.notes < self.taken or watch.to_come != self.core.agenda.to_come:
            return
        shifts: list[int | None] = []
        back_ns = 0
        for (ht, run, stream), was, first, end_ns in zip(
            self._running(), watch.runs, watch.firsts, watch.ends, strict=True
        ):
            if run is was:
                shifts.append(None)
                continue
            if run.first != first:
                return  # an exit of its own came in between
            begin, after = stream.span(first)
            if ht.ht == watch.ht:
                back_ns = run.base_ns + begin - watch.at_ns
                shifts.append(None)
            elif end_ns:
                shifts.append(run.base_ns + begin + after - end_ns)
            else:
                return
        notes = [note for note in self.core.noted[watch.notes - self.taken :] if note.kind not in ONCE]
        told = Teller(self.core.number, Mode.GUEST).tell(notes)
        leaver = next(place for place, (ht, _, _) in enumerate(self._running()) if ht.ht == watch.ht)
        played = Played(
            leaver, tuple((note.kind, note.ht) for note in notes), tuple(note.ts - watch.at_ns for note in notes),
            self.core.agenda.last_ns - watch.at_ns, back_ns, tuple(shifts), told,
        )  # fmt: skip
        pieces = self._known[watch.state].setdefault((watch.ht, watch.kind), Pieces())
        pieces.learn(watch.work_ns, played, self._figures)

    # --- leaves that are counted ----------------------------------------------------------------------------

    def _count(self, ht: Hyperthread, known: dict[tuple[int, int], Pieces]) -> bool:
        """Count the leave that begins now and those that follow, for as long as all is known of them. Return whether
        there was one; everybody's run then goes on to where the next leave begins."""
        if not known:
            return False
        lanes = [Lane(*each, known) for each in self._running()]
        leaver = next(lane for lane in lanes if lane.ht is ht)
        n = _count_from(leaver, lanes, self.core.agenda.undisturbed_ns())
        self.counted += n
        if n:
            for lane in lanes:
                lane.ht.run_on(lane.run())
        else:
            ht.vcpu.run = leaver.run()  # it may have read on
        return n > 0


def _count_from(leaver: Lane, lanes: list[Lane], until_ns: int) -> int:
    """Count the leave of a lane and those that follow, until one is not known or something comes in between. Return how
    many there were.

    It is the inner loop of long plays: an attribute is looked up once, and nothing is called that need not be.
    """
    n = 0
    while leaver.end_ns < until_ns:
        if leaver.at == len(leaver.stops):
            came_ns = leaver.end_ns
            if not leaver.read_on():
                break
            if leaver.end_ns > came_ns:  # it was no leave, only as far as had been read
                leaver = min(lanes, key=Lane.ends)
            continue
        stop = leaver.stops[leaver.at]
        stop_i, kind, work_ns, wake_ns, _, next_ns, next_after_ns = stop
        pieces = leaver.known.get(kind)
        like = None if pieces is None or wake_ns else pieces.find(work_ns)
        if like is None:
            break
        begins_ns, number = leaver.end_ns, leaver.number
        quiet_ns = like.quiet_at + like.quiet_slope * work_ns
        back_ns = like.back_at + like.back_slope * work_ns
        all_quiet_ns = begins_ns + quiet_ns
        if all_quiet_ns >= until_ns or back_ns + next_after_ns <= quiet_ns:
            break
        moved = []
        for place, at, slope in like.moves:
            lane, shift_ns = lanes[place], at + slope * work_ns
            base_ns, first, begins = lane.base_ns, lane.first, lane.begins
            over_ns = begins_ns - base_ns + (lane.number < number)
            i = bisect_left(begins, over_ns, first, lane.last + 1) - 1  # whose guest time is under way
            if i < first or base_ns + begins[i] + lane.after[i] + shift_ns <= all_quiet_ns:
                return n  # its own exit would come in between
            moved.append((lane, i, shift_ns))
        for place in like.others:
            if lanes[place].end_ns <= all_quiet_ns:
                return n
        for lane, i, shift_ns in moved:
            lane.first = i
            lane.base_ns += shift_ns
            lane.end_ns += shift_ns
        leaver.first, leaver.base_ns = stop_i + 1, begins_ns + back_ns - next_ns
        leaver.next_stop()
        like.add(work_ns)
        n += 1
        leaver = lanes[0]
        for lane in lanes:
            if lane.end_ns < leaver.end_ns:
                leaver = lane
    return n
