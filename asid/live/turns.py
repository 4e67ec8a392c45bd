"""Taking turns: how processes play a script, each its own steps, in the one order that the script has.

A word of the core page, TURN, is the number of the step whose turn it is, from 1. Whose step that is takes it, and
then writes the number of the next; everybody else waits. Nobody directs: the daemon opens the first turn and notices
when the last is over (`asid.live.directed_daemon`), or when one takes too long. A fence on either side makes the page
of the step before visible to the step after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from asid.core.events import Mode
from asid.errors import ProtocolFault
from asid.live.link import Link
from asid.live.node import Node, ring_doorbell
from asid.live.page import DEPTH, FLAG, MODE, PENDING, TURN, CorePage, base_of
from asid.script import Astray, Line, Script, Step, line_words

OVER: Final = 1 << 32  # TURN: there are no turns any more, everybody goes on by itself
POLL_NS: Final = 1_000_000  # between two looks at TURN of who has no doorbell
SLEEP_NS: Final = 20_000_000  # and of who has one
COMES_NS: Final = 5_000_000_000  # what a step waits for is under way: a message, a death
STILL_NS: Final = 60_000_000_000  # without any turn being taken: the daemon has noticed long before


class Turns:
    """The turns of one process."""

    def __init__(self, script: Script, who: int, node: Node, page: CorePage, bells: Sequence[int], sleep_ns: int):
        """who: as in `Step`. bells: the doorbells of all hyperthreads, to wake the one whose turn is next."""
        self._script = script
        self.who = who
        self._node, self._page, self._bells, self._sleep_ns = node, page, bells, sleep_ns
        self._words = page.words

    @property
    def over(self) -> bool:
        return bool(self._words[TURN] == OVER)

    @property
    def step(self) -> Step | None:
        """The step whose turn it is, whosever it is; None before the first and after the last."""
        return step_at(self._script, self._words)

    def wait(self) -> Step | None:
        """Wait for the next turn of this process; return its step, None when there are no turns any more."""
        until = self._node.now_ns() + STILL_NS
        seen = self._words[TURN]
        while not self.over:
            step = self.step
            if step is not None and step.who == self.who:
                self._page.fence()
                return step
            now = self._node.now_ns()
            if self._words[TURN] != seen:
                seen, until = self._words[TURN], now + STILL_NS
            if now > until:
                raise Astray("its turn", f"{STILL_NS // 1_000_000_000} s without a step of anybody")
            self._node.turn(now + self._sleep_ns)
        return None

    def until(self, what: Callable[[], bool], expected: str) -> None:
        """Wait, within a turn, for something that is under way. Raise Astray when it does not come."""
        until = self._node.now_ns() + COMES_NS
        while not what():
            now = self._node.now_ns()
            if now > until:
                raise Astray(expected, f"nothing of the kind within {COMES_NS // 1_000_000_000} s")
            if self.over:
                raise Astray(expected, "the end of the play")
            self._node.turn(now + POLL_NS)

    def check(self, step: Step) -> None:
        """Compare the page with what the step leaves. Raise Astray."""
        for ht, line in enumerate(step.after):
            found = line_on(self._words, ht)
            if not line.mode:
                found = Line("", found.pending, found.flag, found.depth)
            if found != line:
                raise Astray(f"h{ht} {line_words(line)}", f"h{ht} {line_words(found)}")

    def next(self) -> None:
        """Give the turn to whose it is after the step that was taken."""
        self._page.fence()
        self._words[TURN] = self._words[TURN] + 1
        self._page.fence()
        step = self.step
        if step is not None and step.who >= 0:
            ring_doorbell(self._bells[step.who])


def told_where_astray(play: Callable[[], None], link: Link) -> None:
    """Play, and tell the daemon when a step cannot be taken as the script has it, or is forbidden by the protocol."""
    try:
        play()
    except Astray as astray:
        link.tell({"op": "astray", "expected": astray.expected, "found": astray.found})
    except (ProtocolFault, AssertionError) as refused:
        found = f"{type(refused).__name__}: {refused}"
        link.tell({"op": "astray", "expected": "a step that the protocol allows", "found": found})


def step_at(script: Script, page: memoryview[int]) -> Step | None:
    """Return the step whose turn it is."""
    number = page[TURN]
    return script.steps[number - 1] if 0 < number <= len(script.steps) else None


def line_on(page: memoryview[int], ht: int) -> Line:
    """Return what the page shows of a hyperthread."""
    base = base_of(ht)
    return Line(mode_on(page, ht), bool(page[base + PENDING]), bool(page[base + FLAG]), page[base + DEPTH])


def mode_on(page: memoryview[int], ht: int) -> str:
    return Mode(page[base_of(ht) + MODE] & 0xFF).name
