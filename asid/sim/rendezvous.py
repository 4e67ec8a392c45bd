"""A simulated hyperthread's part in the rendezvous of #MC handlers. What it means is `asid.core.mce`.

Calling in takes no time, so it is one atomic step by itself. A wait ends when a sibling wakes this one and has come, or
when its time is out; an NMI is taken in the middle of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asid.core import mce
from asid.core.events import Action, Do
from asid.core.hyperthread import PERFORMED, Event, Frame, HyperthreadState, What
from asid.core.mce import CallIn, Check, Severity

if TYPE_CHECKING:
    from asid.sim.hyperthread import Hyperthread


class Rendezvous:
    """That of hyperthread `ht`."""

    def __init__(self, ht: Hyperthread) -> None:
        self.ht = ht
        self.words = ht.words
        self.timeout_ns = ht.core.config.mce.timeout_ns
        self._taken = self.words.broadcast  # the BROADCAST word as last taken
        self.words.callin = mce.closed(mce.broadcast_parts(self._taken)[0])
        self._begun_ns = self._waited_ns = 0
        self._waiting_ns: int | None = None  # since when it waits
        self._worst = Severity.CORRECTED
        self._missing: tuple[int, int, int] | None = None  # broadcast, bits, waited: to be told after the handlers

    def taken(self) -> Check:
        """Return the machine check that is on the line, and remember that it was taken."""
        check = mce.check_of(self.words.broadcast, self._taken, Severity.RECOVERABLE)
        self._taken = self.words.broadcast
        self._waited_ns, self._waiting_ns, self._worst = 0, None, check.severity
        return check

    def perform(self, action: Action, frame: Frame) -> Event | None:
        """Do one step of the rendezvous. Return what came of it, None while it waits."""
        now = self.ht.agenda.now_ns
        if action.do is Do.CALL_IN:
            self._begun_ns = now
            others = [word for other, word in enumerate(self._all()) if other != self.ht.ht]
            self.words.callin = mce.called_in(frame.check, others)
            return PERFORMED
        if action.do is Do.CALL_OUT:
            self.words.callin = self.words.callin._replace(done=True)
            return PERFORMED
        missing = mce.awaited(action.do, self.ht.ht, frame.check.party, self._all())
        left_ns = self._begun_ns + self.timeout_ns - now
        if missing and left_ns > 0:
            self._waiting_ns = now if self._waiting_ns is None else self._waiting_ns
            self.ht.look_again(left_ns)
            return None
        if self._waiting_ns is not None:
            self._waited_ns += now - self._waiting_ns
            self._waiting_ns = None
        met = mce.met(self.ht.ht, self._all(), missing)
        self._worst = max(self._worst, met.severity)
        if met.missing:
            self._missing = (frame.check.broadcast, met.missing, self._waited_ns)
        return Event(What.PERFORMED, met=met)

    def _all(self) -> tuple[CallIn, ...]:
        return tuple(words.callin for words in self.ht.core.page.hts)

    def missed(self) -> bool:
        """Whether somebody whom a handler gave up waiting for has neither come to an end since nor been fenced."""
        absent = self.ht.state.absent
        return absent != 0 and mce.unfinished(self.ht.ht, absent, self._all()) != 0

    def record(self, frame: Frame) -> dict[str, object]:
        """Return what the record of a #MC's handler says and that of an NMI's does not; nothing for most local ones."""
        check = frame.check
        if not check.broadcast:
            return {} if check.severity is Severity.RECOVERABLE else {"severity": check.severity.name.lower()}
        return {
            "severity": self._worst.name.lower(), "broadcast": check.broadcast, "role": frame.role.name.lower(),
            "order": self.words.callin.order, "wait_ns": self._waited_ns,
        }  # fmt: skip

    def handlers_over(self, state: HyperthreadState) -> None:
        """No handler is under way any more: say who was missing."""
        if self._missing is None:
            return
        (broadcast, bits, waited_ns), self._missing = self._missing, None
        hts = [ht for ht in self.ht.siblings if bits >> ht & 1]
        self.ht.chronicle.missing(broadcast, hts, waited_ns, state.round)
        self.ht.core.missing(broadcast, hts)
