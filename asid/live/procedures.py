"""Procedures: operations that need several processes, and so several turns of the daemon's loop.

A procedure is a generator that yields the answers it waits for. It ends finished or undone, never in between. Up to its
point of no return it has a deadline; when that passes its generator is closed, and so undoes what it did. Past that
point (`_bind`) it goes on until it is finished, whatever happens; a caller for whom that takes too long is told so.

Time here is the daemon's own: it stands still while the daemon does, so that a daemon that was stopped holds its pause
against nobody.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from asid.errors import NoAnswer
from asid.live.children import Child
from asid.live.queries import Queries

if TYPE_CHECKING:
    from asid.live.daemon import Daemon

PROCEDURE_NS: Final = 3_000_000_000  # until one that is not bound is undone
BOUND_NS: Final = 1_500_000_000  # until the caller of one that is bound is told that it goes on
SILENT_NS: Final = 1_000_000_000  # past the point of no return: who has not answered by then is killed
LATE_NS: Final = 100_000_000  # more than this between two looks at the clock is a pause of the daemon
NEVER_NS: Final = 1 << 62

Waits = set[int]  # numbers of messages; the empty set is "look again in a millisecond"
Steps = Generator[Waits, None, None]
Procedure = Generator[Waits, None, dict[str, Any]]


@dataclass
class Running:
    """One procedure. goes_on: empty before its point of no return, then what its caller is told at the deadline."""

    steps: Procedure
    until_ns: int
    waits: Waits
    goes_on: str = ""
    answered: bool = False  # the caller has been told that it goes on


class Procedures(Queries):
    """Runs procedures, and has the steps that several of them take."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self._running: dict[int, Running] = {}  # by ticket
        self._looked_ns = self.now_ns()
        self._awake_ns = 0  # the procedures' clock

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def awake_ns(self) -> int:
        """The procedures' clock: a silence measured by it is nobody's but the other's."""
        return self._awake_ns

    def now_ns(self) -> int:
        return self.daemon.node.now_ns()

    def start(self, procedure: Procedure, ticket: int) -> None:
        self._running[ticket] = Running(procedure, self._awake_ns + PROCEDURE_NS, set())
        self.daemon.node.set_timer(("procedure", ticket), 0, lambda: self._advance(ticket))

    def _advance(self, ticket: int) -> None:
        running = self._running.get(ticket)
        if running is None:
            return
        try:
            running.waits = next(running.steps)
        except StopIteration as end:
            del self._running[ticket]
            if not running.answered:
                self.daemon.complete(ticket, end.value)
            return
        except Exception as error:
            del self._running[ticket]
            if not running.answered:
                self.daemon.fail(ticket, error)
            return
        if not running.waits:
            self.daemon.node.set_timer(("procedure", ticket), 1_000_000, lambda: self._advance(ticket))

    def on_reply(self, number: int) -> None:
        """A child did what message `number` asked for (or is dead, which is an answer too)."""
        for ticket, running in list(self._running.items()):
            if number in running.waits:
                running.waits.discard(number)
                if not running.waits:
                    self._advance(ticket)

    def expire(self) -> None:
        """Undo what is late, or tell its caller that it goes on."""
        now = self.now_ns()
        self._awake_ns += min(now - self._looked_ns, LATE_NS)
        self._looked_ns = now
        for ticket, running in list(self._running.items()):
            if self._awake_ns < running.until_ns or running.answered:
                continue
            if running.goes_on:
                running.answered = True
                hint = "asid status shows when it is done."
                self.daemon.fail(ticket, NoAnswer("it is not finished yet", state=running.goes_on, hint=hint))
                continue
            del self._running[ticket]
            running.steps.close()
            error = NoAnswer("not done in time", state="undone: nothing has changed", hint="asid status; try again.")
            vars(error)["applied"] = "no"
            self.daemon.fail(ticket, error)

    def close(self) -> None:
        """The machine stops: what runs is given up."""
        for ticket, running in list(self._running.items()):
            del self._running[ticket]
            running.steps.close()
            if not running.answered:
                self.daemon.fail(ticket, NoAnswer("the machine stops", hint="asid status"))

    # --- steps --------------------------------------------------------------------------------------------

    def _bind(self, ticket: int, goes_on: str, within_ns: int = 0) -> None:
        """The point of no return. Its caller is told `goes_on` after `within_ns`, by default at the old deadline."""
        running = self._running[ticket]
        running.goes_on = goes_on
        if within_ns:
            running.until_ns = self._awake_ns + within_ns

    def _ask(self, children: Iterable[Child], message: dict[str, Any]) -> Waits:
        return {self.daemon.ask(child, message) for child in children}

    def _gates(self, cores: Iterable[int]) -> list[Child]:
        """Coordinators that live. One that is born later is born knowing holds, policy and vCPUs as they are then."""
        return [child for core in cores if (child := self.daemon.coordinator(core)) is not None]

    def _hold(self, cores: list[int], what: str, by: str) -> Steps:
        """Close gates for `what` (a client, a change of policy); each opens when nothing holds it any more."""
        for core in cores:
            self.daemon.holders.setdefault(core, {})[what] = by
        yield self._ask(self._gates(cores), {"op": "hold", "what": what, "by": by})

    def _release(self, cores: list[int], what: str, by: str) -> Steps:
        for core in cores:
            self.daemon.holders.get(core, {}).pop(what, None)
        yield self._ask(self._gates(cores), {"op": "release", "what": what, "by": by})

    def _let_go(self, cores: list[int], what: str, by: str) -> None:
        """Release without waiting: what is undone must not leave a gate closed that nobody knows of."""
        for core in cores:
            self.daemon.holders.get(core, {}).pop(what, None)
        for coordinator in self._gates(cores):
            self.daemon.tell(coordinator, {"op": "release", "what": what, "by": by})

    def _quiet(self, cores: list[int]) -> Steps:
        """Wait until on all these cores at once nobody holds a lease or is in HOST.

        Only a coordinator that lives can say so: what a dead one said, its successor must find out anew.
        """
        asked: dict[int, tuple[Child, int]] = {}
        while True:
            waits: Waits = set()
            missing = False
            for core in cores:
                coordinator = self.daemon.coordinator(core)
                if coordinator is None:
                    missing = True
                    continue
                if core not in asked or asked[core][0] is not coordinator:
                    asked[core] = (coordinator, self.daemon.ask(coordinator, {"op": "quiet"}))
                if self.daemon.unanswered(asked[core][1]):
                    waits.add(asked[core][1])
            if not waits and not missing:
                return
            yield waits

    def _surely(self, children: Iterable[Child], message: dict[str, Any], what: str) -> Steps:
        """Wait until each has done it or is dead; whoever stays silent is killed, for nothing can be undone any more.

        Its successor is born as the message would have made it.
        """
        asked = {self.daemon.ask(child, message): child for child in children}
        since_ns = self._awake_ns
        while asked := {number: child for number, child in asked.items() if self.daemon.unanswered(number)}:
            if self._awake_ns - since_ns > SILENT_NS:
                for child in asked.values():
                    self.daemon.put_down(child, f"it did not answer to {what}")
            yield set()
