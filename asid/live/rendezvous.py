"""A hyperthread's part in the rendezvous of #MC handlers, on the core page. What it means is `asid.core.mce`.

Everything here is a look at words and a wait for own doorbell; no socket is touched, so a handler hears neither the
gate nor the daemon. A wait goes back to the loop every few milliseconds at least, and whenever the doorbell rings: an
NMI is taken in the middle of it.

Calling in must be one atomic step, and the page has none that a Python program could do on it. A lock of the kernel's
on a byte of the page takes the place of a locked instruction: it excludes for microseconds, and who dies holding it
lets go of it.
"""

from __future__ import annotations

import fcntl
import select
from typing import TYPE_CHECKING, Any, Final

from asid.core import mce
from asid.core.events import Action, Do
from asid.core.hyperthread import Event, Frame, HyperthreadState, What
from asid.core.mce import CallIn, Check, Met, Severity
from asid.live.node import hush_doorbell
from asid.live.page import BROADCAST, CALLIN, SEVERITY, base_of

if TYPE_CHECKING:
    from asid.live.hyperthread import Hyperthread

LOOK_NS: Final = 10_000_000  # a wait looks at the words at least this often, whoever rings
LOCK_BYTE: Final = 0  # of the page; only locked, never read for it


class Rendezvous:
    """That of hyperthread `ht`."""

    def __init__(self, ht: Hyperthread) -> None:
        self.ht = ht
        self.words = ht.words
        self.own = ht.own + CALLIN
        self.timeout_ns = ht.birth.config.mce.timeout_ns
        self.lines = ht.birth.checks  # the BROADCAST and SEVERITY words as last taken
        self.words[self.own] = mce.packed(mce.closed(mce.broadcast_parts(self.lines[0])[0]))
        self.begun_ns = 0  # when the handler that is under way began to call in, 0 for not yet
        self.waiting_ns = 0  # since when it waits, 0 for not
        self.waited_ns = 0
        self.worst = Severity.CORRECTED
        self.missing: tuple[int, int, int] | None = None  # broadcast, bits, waited: to be told after the handlers
        self._bell = select.poll()
        self._bell.register(ht.bell, select.POLLIN)

    def taken(self) -> Check:
        """Return the machine check that is on the line, and remember that it was taken."""
        words, own = self.words, self.ht.own
        lines = (words[own + BROADCAST], words[own + SEVERITY])
        check = mce.check_of(lines[0], self.lines[0], mce.severity_since(lines[1], self.lines[1]))
        self.lines = lines
        self.begun_ns = self.waiting_ns = self.waited_ns = 0
        self.worst = check.severity
        return check

    def perform(self, action: Action, frame: Frame) -> Event | None:
        """Do one step of the rendezvous. Return what came of it, None when it is to be tried again."""
        if action.do is Do.CALL_IN:
            return Event(What.PERFORMED) if self._call_in(frame.check) else None
        if action.do is Do.CALL_OUT:
            self._write(mce.unpacked(self.words[self.own])._replace(done=True))
            return Event(What.PERFORMED)
        met = self._awaited(action.do, frame.check.party)
        if met is None:
            return None
        self.worst = max(self.worst, met.severity)
        if met.missing:
            self.missing = (frame.check.broadcast, met.missing, self.waited_ns)
        return Event(What.PERFORMED, met=met)

    def _call_in(self, check: Check) -> bool:
        now = self.ht.node.now_ns()
        if not self.begun_ns:
            self.begun_ns = now
        fd = self.ht.birth.page.fd
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCK_BYTE)
        except OSError:
            if now < self.begun_ns + self.timeout_ns:
                return False
            # Its holder does not go on: it is missing, and what it may still write will count for nothing.
            self._write(mce.called_in(check, self._others()))
            return True
        try:
            self._write(mce.called_in(check, self._others()))
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, LOCK_BYTE)
        return True

    def _awaited(self, do: Do, party: int) -> Met | None:
        """Return what a wait came to, None while it goes on; then a moment has passed."""
        words = self._all()
        ht = self.ht.birth.ht
        missing = mce.awaited(do, ht, party, words)
        now = self.ht.node.now_ns()
        left_ns = self.begun_ns + self.timeout_ns - now
        if missing and left_ns > 0:
            self.waiting_ns = self.waiting_ns or now
            if self._bell.poll(min(left_ns, LOOK_NS) / 1e6):
                hush_doorbell(self.ht.bell)
            return None
        if self.waiting_ns:
            self.waited_ns += now - self.waiting_ns
            self.waiting_ns = 0
        return mce.met(ht, words, missing)

    def _write(self, word: CallIn) -> None:
        self.words[self.own] = mce.packed(word)
        self.ht.page.fence()

    def _all(self) -> tuple[CallIn, ...]:
        return tuple(mce.unpacked(self.words[base_of(ht) + CALLIN]) for ht in range(self.ht.birth.siblings))

    def _others(self) -> tuple[CallIn, ...]:
        return tuple(mce.unpacked(self.words[base_of(other) + CALLIN]) for other in self.ht.siblings)

    def missed(self) -> bool:
        """Whether somebody whom a handler gave up waiting for has neither come to an end since nor been fenced."""
        absent = self.ht.state.absent
        return absent != 0 and mce.unfinished(self.ht.birth.ht, absent, self._all()) != 0

    def record(self, frame: Frame) -> dict[str, Any]:
        """Return what the record of a #MC's handler says and that of an NMI's does not; nothing for most local ones."""
        check = frame.check
        if not check.broadcast:
            return {} if check.severity is Severity.RECOVERABLE else {"severity": check.severity.name.lower()}
        return {
            "severity": self.worst.name.lower(), "broadcast": check.broadcast, "role": frame.role.name.lower(),
            "order": mce.unpacked(self.words[self.own]).order, "wait_ns": self.waited_ns,
        }  # fmt: skip

    def handlers_over(self, state: HyperthreadState) -> None:
        """No handler is under way any more: say who was missing."""
        if self.missing is None:
            return
        (broadcast, bits, waited_ns), self.missing = self.missing, None
        hts = [ht for ht in self.ht.siblings if bits >> ht & 1]
        self.ht.chronicle.missing(broadcast, hts, waited_ns, state.round)
        self.ht.link.tell({"op": "missing", "broadcast": broadcast, "hts": hts})
