"""The exits of one vCPU's guest, and those ahead as arrays: what a run of fast exits comes to without playing each.

Rule 1. A run of fast exits touches nothing that siblings share and is told by counts alone. So it is one span of time,
        until the first exit that is not fast; how far it has come is found by a search in the sum of what each takes.
Rule 2. What interrupts a run finds it as it would have found the exits played one by one: the one that is under way is
        played, see `asid.sim.vcpu`; those before it are counted.
Rule 3. Nothing depends on the size of a block, nor on whether there are arrays at all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from asid.core import hyperthread as core
from asid.core.events import Do, Mode, Seen
from asid.core.hyperthread import Phase, Spec, What
from asid.core.tally import Notes, Tally
from asid.guest.base import Exit, Source
from asid.sim.counted import Rules, count_fast, rules_of

if TYPE_CHECKING:
    from numpy import intp
    from numpy.typing import NDArray

    from asid.guest.arrays import Block, Ints

FIRST_BLOCK: Final = 64  # exits; each block has four times as many as the one before
LARGEST_BLOCK: Final = 1 << 15
COUNTED_AT_ONCE: Final = 1 << 14  # what it needs stays in a cache
SHORTEST: Final = 3  # exits that are worth a run

IsFast = Callable[[Exit, bool], bool]  # (exit, polled): it will be fast, and nothing is to be told of it


class Run(NamedTuple):
    """Fast exits first, first + 1 ... last, which go on by themselves; `last` itself is not of them.

    base_ns: exit i of the block has its guest begin at base_ns + begins[i]. stops: it ends with the guest time before
    `last`, which is not fast; else where that time begins, with the block.
    """

    first: int
    last: int
    base_ns: int
    end_ns: int
    stops: bool


class Stop(NamedTuple):
    """An exit that is not fast. out_ns: when it leaves the guest, after the base of its run.

    next_ns, next_after_ns: when the guest time before the next exit begins, likewise, and how long it is.
    """

    i: int
    kind: int
    work_ns: int
    wake_ns: int
    out_ns: int
    next_ns: int
    next_after_ns: int


class Stream:
    """A source's exits, one at a time; and in runs, where arrays are asked for.

    into: where what was fast in a run is counted. exit_ns, entry_ns: of a fast exit, before its handler and behind it.
    """

    def __init__(
        self, source: Source, into: Tally, is_fast: IsFast, poll_ns: int, exit_ns: int, entry_ns: int,
        shortest: int,
    ) -> None:  # fmt: skip
        import numpy as np

        from asid.guest.arrays import arrays_of

        self._arrays = arrays_of(source)
        self._into = into
        self._is_fast = is_fast
        self._poll_ns = poll_ns
        self._entry_ns = entry_ns
        self._around_ns = exit_ns + entry_ns
        self._shortest = shortest
        self._size = FIRST_BLOCK
        self._known = rules_of([], [], [], [], poll_ns)
        self._n = self._at = self._counted = self._stop = 0  # exits; given; counted; place in stops
        self._block: Block
        self._took: Ints  # by the handler
        self._begins: Ints  # one more than exits
        self._stops: list[int]  # exits that no run goes on with, and the number of exits
        self._stops_at: NDArray[intp]  # the same exits, as an array and without the number
        self._apart: list[int]  # exits among those that are not counted yet, which are played by themselves
        self._room: Ints = np.empty(0, np.int64)  # for begins
        self._ahead: list[tuple[int, ...]] | None
        self._load(self._arrays.block(0))

    def next(self) -> Exit | None:
        """Return the next exit; None when no more will come."""
        if self._at == self._n:
            self.count(self._n)
            self._read()
            if not self._n:
                return None
        self._at += 1
        return self._exit(self._at - 1)

    def read_on(self) -> bool:
        """Go on to a block whose first exit is the last of this one, and the last one given: all that is before it has
        happened. Return whether there was more to read."""
        last = self._n - 1
        self.count(last)
        self._read(self._block.last())
        self._at = 1
        return self._n > 1

    def played(self) -> None:
        """The last exit given is played by itself: whoever plays it counts it."""
        self._apart.append(self._at - 1)

    @property
    def kinds(self) -> Sequence[Exit]:
        """An exit of each kind that has come up until now, by number and without its durations."""
        return self._arrays.kinds

    @property
    def times(self) -> tuple[memoryview[int], memoryview[int]]:
        """When the guest time before each exit of the block begins, after the base of its run, and how long it is."""
        return self._begins.data, self._block.after.data

    @property
    def counted(self) -> bool:
        """Whether the last exit given was counted when the run that it was of had come behind its handler."""
        return self._counted >= self._at

    def _exit(self, i: int) -> Exit:
        kind = self._arrays.kinds[self._block.kind[i]]
        after, service, wake = self._block.after[i], self._block.service[i], self._block.wake[i]
        return Exit(int(after), kind.reason, kind.isa, int(service), kind.full, int(wake), kind.parts)

    # --- runs -----------------------------------------------------------------------------------------------

    def run(self, now_ns: int, left_ns: int) -> Run | None:
        """Return the run that begins with the last exit given, left_ns of its guest time still to come; None: none."""
        i = self._at - 1
        stops = self._stops
        while stops[self._stop] < i:
            self._stop += 1
        stop = stops[self._stop]
        last = min(stop, self._n - 1)
        if stop - i < self._shortest or (i == last < stop):
            return None
        return self._run(i, stop, now_ns + left_ns - int(self._block.after[i]) - int(self._begins[i]))

    def run_of(self, first: int, base_ns: int) -> Run:
        """Return the run that begins with an exit of this block."""
        return self._run(first, self._stops[bisect_left(self._stops, first)], base_ns)

    def _run(self, first: int, stop: int, base_ns: int) -> Run:
        if stop == self._n:
            return Run(first, stop - 1, base_ns, base_ns + int(self._begins[stop - 1]), stops=False)
        return Run(first, stop, base_ns, base_ns + int(self._begins[stop] + self._block.after[stop]), stops=True)

    def reach(self, run: Run, over_ns: int) -> tuple[Exit, int, int]:
        """Return the exit that is under way when all before over_ns has happened; when its guest began, and ends.

        It is the last one given then.
        """
        i = self._begun(run, over_ns)
        self._at = i + 1
        event, begin_ns = self._exit(i), run.base_ns + int(self._begins[i])
        return event, begin_ns, begin_ns + event.after_ns

    def is_at_first(self, run: Run) -> bool:
        """Whether the last exit given is the first one of a run."""
        return self._at == run.first + 1

    def out_ns(self, run: Run, over_ns: int) -> int | None:
        """Return when the exit that is under way left the guest; None while the guest runs."""
        i = self._begun(run, over_ns)
        ends_ns = run.base_ns + int(self._begins[i] + self._block.after[i])
        return ends_ns if ends_ns < over_ns else None

    def guest(self, run: Run, over_ns: int) -> tuple[int, int]:
        """Return which exit is under way, and when the guest time before it ends or ended."""
        i = self._begun(run, over_ns)
        return i, run.base_ns + int(self._begins[i] + self._block.after[i])

    def span(self, i: int) -> tuple[int, int]:
        """Return when the guest time before an exit begins, after the base of its run, and how long it is."""
        return int(self._begins[i]), int(self._block.after[i])

    def stop(self, run: Run) -> Stop | None:
        """Return what a run is stopped by; None where that is the last of the block."""
        at, ahead = self.at_stop(run), self.ahead()
        return Stop._make(ahead[at]) if at < len(ahead) else None

    def ahead(self) -> list[tuple[int, ...]]:
        """Return the exits of this block that stop runs, but for one that is its last, as the fields of a `Stop` each.

        Plain tuples: there are many, and whoever collects garbage leaves these alone.
        """
        if self._ahead is None:
            block, begins = self._block, self._begins
            stops = self._stops_at
            if len(stops) and stops[-1] == self._n - 1:
                stops = stops[:-1]
            after = stops + 1
            columns = (
                stops, block.kind[stops], block.service[stops], block.wake[stops], begins[stops] + block.after[stops],
                begins[after], block.after[after],
            )  # fmt: skip
            rows = zip(*(column.tolist() for column in columns), strict=True)
            self._ahead = [*rows]
        return self._ahead

    def at_stop(self, run: Run) -> int:
        """Return the place in `ahead` of what a run is stopped by, or of the first behind it."""
        return bisect_left(self._stops, run.last)

    def _begun(self, run: Run, over_ns: int) -> int:
        """Return the last exit of a run whose guest has begun."""
        i = int(self._begins.searchsorted(over_ns - run.base_ns)) - 1
        return min(max(i, run.first), run.last)

    def count_run(self, run: Run, over_ns: int) -> None:
        """Count the exits of a run that goes on whose handlers were over before over_ns."""
        self.count(self._begun(run, over_ns + self._entry_ns))

    def count(self, before: int | None = None) -> None:
        """Count the exits of runs before this one, each once. None: the last one given."""
        before = self._at - 1 if before is None else before
        if before > self._counted:
            for begin in range(self._counted, before, COUNTED_AT_ONCE):
                stop = min(begin + COUNTED_AT_ONCE, before)
                apart = [i - begin for i in self._apart if begin <= i < stop]
                count_fast(self._block.part(begin, stop), self._took[begin:stop], apart, self._rules(), self._into)
            self._counted = before
            self._apart = [i for i in self._apart if i >= before]

    # --- blocks ---------------------------------------------------------------------------------------------

    def _read(self, kept: Block | None = None) -> None:
        """Load the next block, behind what is kept of this one."""
        self._load(self._arrays.block(self._size, kept))
        self._size = min(LARGEST_BLOCK, 4 * self._size)

    def _load(self, block: Block) -> None:
        import numpy as np

        n = len(block)
        if n >= len(self._room):
            self._room = np.empty(n + 1, np.int64)
        self._block = block
        self._n, self._at, self._counted, self._stop = n, 0, 0, 0
        self._ahead, self._apart = None, []
        self._took, fast = self._rules().takes(block)
        self._stops_at = np.flatnonzero(~fast)
        self._stops = [*self._stops_at.tolist(), n]
        self._begins = self._room[: n + 1]
        self._begins[0] = 0
        takes = self._begins[1:]
        np.add(block.after, self._took, out=takes)
        takes += self._around_ns
        np.cumsum(takes, out=takes)

    def _rules(self) -> Rules:
        """Return what exits of each kind come to. Kinds of a recording come up one by one."""
        kinds, known = self._arrays.kinds, self._known
        if len(known.kinds) < len(kinds):
            more = kinds[len(known.kinds) :]
            fast = [*known.fast.tolist(), *(self._is_fast(kind, False) for kind in more)]
            polled = [*known.fast_polled.tolist(), *(self._is_fast(kind, True) for kind in more)]
            self._known = rules_of(kinds, fast, polled, self._arrays.fixed, self._poll_ns)
        return self._known


class Tallied(Tally):
    """Counts of fast exits, those of runs among them. behind: counts what a run has come to."""

    __slots__ = ("_behind",)

    def __init__(self, behind: Callable[[], None]) -> None:
        super().__init__()
        self._behind = behind

    def note(self, notebook: Notes, round_: int) -> None:
        self._behind()
        super().note(notebook, round_)


def fast_ns(spec: Spec, mode_ns: Callable[[Mode, Mode], int]) -> tuple[int, int] | None:
    """Return what a fast exit takes before its handler and behind it; None where it is more than changes of mode and a
    look, or leaves another state behind.

    mode_ns: of a change of mode.
    """
    guest = core.born(1, 1, 0)._replace(
        phase=Phase.GUEST, mode=Mode.GUEST, vm=1, session=True, used=True, round=1, todo=()
    )
    state = core.step(spec, guest, core.FAST_EXIT)
    around, worked = [0, 0], False
    while (action := core.next_action(state)) is not None:
        seen = None
        if action.do is Do.SET_MODE:
            around[worked] += mode_ns(state.mode, Mode(action.a))  # type: ignore[arg-type]
        elif action.do is Do.LOOK:
            seen = Seen(False, state.answered, False, False, False)
        elif action.do is not Do.WORK or worked:
            return None
        worked = worked or action.do is Do.WORK
        state = core.step(spec, state, core.Event(What.PERFORMED, seen=seen))
    return (around[0], around[1]) if state == guest else None
