"""Injections: accepted, delivered at their pace, and followed until each has exactly one `inject.done` (G8).

NMIs and #MCs go through the interrupt lines of the core page. The hyperthread's `intr` record names the last one that
it has taken: that one was handled, those before it merged into it, as on x86. Exits and
IRQs go as messages, and the hyperthread answers how many of a message it left undone: nobody else knows. So what is
to be refused is asked of it. What a dead hyperthread had not done is lost, and said to be.

A machine check of all siblings is one injection a sibling: each handles it, or merges it, or dies.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

from asid.core import mce
from asid.core.record import Record
from asid.errors import Conflict
from asid.live.children import Child, Place, absent
from asid.live.page import BROADCAST, MCE, NMI, SEVERITY, base_of, interrupt_parts, interrupt_word
from asid.units import parse_duration_ns

RESULTS: Final = ("handled", "merged", "lost", "refused")
IDS_SHOWN_MAX: Final = 64
BURST_MAX: Final = 1_000  # interrupts and signals of a batch that are delivered before anything else is served
MESSAGES: Final = ("exit", "irq")  # what goes as a message, all of a batch at once
TAKEN_AWAY: Final = "the vCPU was taken away"
STOPS: Final = "the machine stops"


@dataclass
class Batch:
    """One accepted operation: n injections a target, and what became of them. `ticket` 0: nobody waits."""

    what: str
    places: tuple[Place, ...]
    left: int  # injections a place, still to be delivered
    interval_ns: int
    next_ns: int
    details: dict[str, Any]
    ticket: int = 0
    gaps: Random | None = None  # draws exponential gaps, interval_ns in the mean; None: they are even
    open: int = 0  # delivered, and not done
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    ids: list[int] = field(default_factory=list)
    accepted: int = 0

    def gap_ns(self) -> int:
        """Return the time from one delivery to the next."""
        return self.interval_ns if self.gaps is None else round(self.gaps.expovariate(1) * self.interval_ns)

    @property
    def delivered(self) -> int:
        return self.accepted - self.left * len(self.places)

    @property
    def over(self) -> bool:
        return self.left == 0 and self.open == 0

    def as_ret(self) -> dict[str, Any]:
        return {"accepted": self.accepted, **self.counts, "ids": list(self.ids)}


class Machinery(Protocol):
    """What the injector needs of the daemon."""

    def child(self, place: Place) -> Child | None: ...
    def words(self, core: int) -> Any: ...
    def vcpu(self, place: Place) -> tuple[int, int]: ...
    def stays_away(self, place: Place) -> bool: ...
    def ring_bell(self, place: Place) -> None: ...
    def tell(self, child: Child, message: dict[str, Any]) -> None: ...
    def note(self, kind: str, data: dict[str, Any], core: int = -1, ht: int = -1) -> None: ...
    def later(self, after_ns: int, what: Callable[[], None]) -> None: ...
    def progressed(self, batch: Batch) -> None: ...
    def completed(self, batch: Batch) -> None: ...
    def now_ns(self) -> int: ...


@dataclass
class _Open:
    batch: Batch
    id: int
    n: int
    left: int = 0  # of those n, refused
    broadcast: int = 0  # the machine check of all siblings that it is part of


class Injector:
    """All injections under way."""

    def __init__(self, machinery: Machinery) -> None:
        self._machine = machinery
        self._batches: list[Batch] = []
        self._lines: dict[tuple[Place, str], deque[tuple[int, _Open]]] = {}  # by number, oldest first
        self._messages: dict[int, tuple[Place, _Open]] = {}
        self._signals: dict[Place, list[_Open]] = {}
        self._next_id = 1
        self._broadcasts = 0  # machine checks of all siblings so far
        self.stopped = False

    @property
    def busy(self) -> bool:
        return bool(self._batches)

    def accept(self, batch: Batch) -> None:
        """Check that every target can take it, then begin. Raise Conflict or Busy with no effect."""
        for core, ht in batch.places:
            child = self._machine.child((core, ht))
            if child is None or not child.up:
                raise absent((core, ht), f"inject.{batch.what}", self._machine.stays_away((core, ht)))
            if batch.what == "exit" and self._machine.vcpu((core, ht))[0] == 0:
                raise Conflict(
                    f"c{core}h{ht} runs no vCPU, so it never exits",
                    where=f"inject.{batch.what}",
                    allowed="a hyperthread with a vCPU",
                    hint="asid status shows which hyperthread runs which vCPU.",
                )
        batch.accepted = batch.left * len(batch.places)
        self._batches.append(batch)
        self.tick()

    def tick(self) -> int | None:
        """Deliver what is due. Return when the next one is, None when nothing is."""
        now = self._machine.now_ns()
        soonest: int | None = None
        for batch in list(self._batches):
            burst, before = BURST_MAX, batch.left
            while batch.left and batch.next_ns <= now and burst:
                n = 1 if batch.interval_ns else batch.left if batch.what in MESSAGES else min(batch.left, burst)
                self._deliver(batch, n)
                batch.left -= n
                batch.next_ns += batch.gap_ns()
                burst -= min(n, burst)
            if batch.ticket and batch.left < before:
                self._machine.progressed(batch)
            if batch.left and (soonest is None or batch.next_ns < soonest):
                soonest = batch.next_ns
            self._finish(batch)
        return soonest

    def cancel(self, ticket: int) -> None:
        """Deliver no more of a batch; what was delivered is followed to its end."""
        for batch in list(self._batches):
            if batch.ticket == ticket:
                batch.accepted -= batch.left * len(batch.places)
                batch.left = 0
                self._finish(batch)

    def _deliver(self, batch: Batch, n: int) -> None:
        if batch.details.get("scope") == "broadcast":
            for _ in range(n):
                for core in sorted({core for core, _ in batch.places}):
                    self._broadcast(batch, tuple(place for place in batch.places if place[0] == core))
            return
        for place in batch.places:
            child = self._machine.child(place)
            if batch.what in ("nmi", "mce"):
                for _ in range(n):
                    opened = self._open(batch, place, 1)
                    if child is None:
                        self._done(opened, place, "lost", "the hyperthread died")
                    else:
                        self._raise_line(place, batch, opened)
                if child is not None:
                    self._machine.ring_bell(place)
            elif batch.what in MESSAGES:
                opened = self._open(batch, place, n)
                if child is None:
                    self._done(opened, place, "lost", "the hyperthread died")
                elif batch.what == "exit" and self._machine.vcpu(place)[0] == 0:
                    self._done(opened, place, "refused", TAKEN_AWAY)
                else:
                    self._messages[opened.id] = (place, opened)
                    self._machine.tell(child, {"op": batch.what, "id": opened.id, "n": n, **batch.details})
            else:
                for _ in range(n):
                    self._signal(batch, place, child)

    def _broadcast(self, batch: Batch, siblings: tuple[Place, ...]) -> None:
        """One machine check of all siblings that live. Each learns whom it reached, for those it will wait for."""
        self._broadcasts += 1
        living = [place for place in siblings if self._machine.child(place) is not None]
        word = mce.broadcast_word(self._broadcasts, sum(1 << ht for _, ht in living))
        for place in siblings:
            opened = self._open(batch, place, 1, self._broadcasts)
            if place not in living:
                self._done(opened, place, "lost", "the hyperthread died")
                continue
            self._machine.words(place[0])[base_of(place[1]) + BROADCAST] = word
            self._raise_line(place, batch, opened)
        for place in living:
            self._machine.ring_bell(place)

    def _open(self, batch: Batch, place: Place, n: int, broadcast: int = 0) -> _Open:
        opened = _Open(batch, self._next_id, n, broadcast=broadcast)
        self._next_id += 1
        batch.open += 1
        if len(batch.ids) < IDS_SHOWN_MAX:
            batch.ids.append(opened.id)
        core, ht = place
        target = f"c{core}h{ht}" if ht >= 0 else f"c{core}"
        data: dict[str, Any] = {"id": opened.id, "what": batch.what, "target": target}
        if batch.details.get("reason"):
            data["reason"] = batch.details["reason"]
        if n > 1:
            data["n"] = n
        if "vector" in batch.details:
            data["vector"] = batch.details["vector"]
        if broadcast:
            data["broadcast"] = broadcast
        self._machine.note("inject", data, core, max(ht, -1))
        return opened

    def _raise_line(self, place: Place, batch: Batch, opened: _Open) -> None:
        (core, ht), what = place, batch.what
        words = self._machine.words(core)
        at = base_of(ht) + (NMI if what == "nmi" else MCE)
        if what == "mce":  # before the line itself: who takes it finds at least this
            severity = mce.Severity[batch.details.get("severity", "recoverable").upper()]
            words[base_of(ht) + SEVERITY] = mce.severity_word(words[base_of(ht) + SEVERITY], severity)
        words[at] = interrupt_word(opened.id, interrupt_parts(words[at])[1] + 1)
        self._lines.setdefault((place, what), deque()).append((opened.id, opened))

    def _signal(self, batch: Batch, place: Place, child: Child | None) -> None:
        opened = self._open(batch, place, 1)
        if child is None:
            self._done(opened, place, "lost", "the process died")
            return
        self._signals.setdefault(place, []).append(opened)
        if batch.what == "kill":
            child.kill()
            return
        child.kill(signal.SIGSTOP)

        def go_on() -> None:
            child_now = self._machine.child(place)
            if child_now is child and opened in self._signals.get(place, []):
                child.kill(signal.SIGCONT)
                self._signals[place].remove(opened)
                self._done(opened, place, "handled")

        self._machine.later(batch.details["for_ns"], go_on)

    # --- what became of them ------------------------------------------------------------------------------

    def on_record(self, record: Record) -> None:
        """An NMI or #MC handler ended: it took everything up to its number."""
        if record.type != "intr":
            return
        place = (record.core, record.ht)
        line = self._lines.get((place, record.data["what"]))
        taken: list[_Open] = []
        while line and line[0][0] <= record.data["id"]:
            taken.append(line.popleft()[1])
        for number, opened in enumerate(taken, start=1):
            last = number == len(taken)
            self._done(opened, place, "handled" if last else "merged")

    def unhandled(self, place: Place, broadcast: int) -> bool:
        """Say whether this hyperthread has neither handled its part of a machine check of all siblings, nor died."""
        return any(opened.broadcast == broadcast for _, opened in self._lines.get((place, "mce"), ()))

    def on_done(self, number: int, left: int = 0) -> bool:
        """A hyperthread has done with message `number`, but for `left` exits that it will never do.

        Return False when that number is not an injection's.
        """
        entry = self._messages.pop(number, None)
        if entry is None:
            return False
        place, opened = entry
        assert 0 <= left <= opened.n
        opened.left = left
        if left:
            why = STOPS if self.stopped else TAKEN_AWAY
            done = opened.n - left
            self._done(opened, place, "refused", f"{why}; {done} of {opened.n} were done" if done else why)
        else:
            self._done(opened, place, "handled")
        return True

    def on_death(self, place: Place) -> None:
        """Everything that a process had not done is lost; a kill is what was wanted."""
        for opened in self._signals.pop(place, []):
            kill = opened.batch.what == "kill"
            self._done(opened, place, "handled" if kill else "lost", "" if kill else "the hyperthread died")
        for what in ("nmi", "mce"):
            for _, opened in self._lines.pop((place, what), ()):
                self._done(opened, place, "lost", "the hyperthread died")
        for number, (whose, opened) in list(self._messages.items()):
            if whose == place:
                del self._messages[number]
                self._done(opened, place, "lost", "the hyperthread died")

    def on_detach(self, place: Place) -> None:
        """A hyperthread without a vCPU takes no exits any more; it says itself how many it had not done by now."""
        child = self._machine.child(place)
        if child is not None and any(whose == place for whose, _ in self._messages.values()):
            self._machine.tell(child, {"op": "refuse"})

    def close(self) -> None:
        """The machine stops: deliver nothing more, and end what can be ended.

        What was delivered may be done all the same, so it is not called refused here: its hyperthread tells, or dies.
        """
        self.stopped = True
        for batch in self._batches:
            batch.accepted -= batch.left * len(batch.places)
            batch.left = 0
        for place in list({place for batch in self._batches for place in batch.places}):
            self.on_detach(place)
            child = self._machine.child(place)
            for opened in list(self._signals.get(place, ())):
                if child is not None and opened.batch.what == "stall":
                    child.kill(signal.SIGCONT)
                    self._signals[place].remove(opened)
                    self._done(opened, place, "handled", "cut short: the machine stops")
        for batch in list(self._batches):
            self._finish(batch)

    def _done(self, opened: _Open, place: Place, result: str, why: str = "") -> None:
        data: dict[str, Any] = {"id": opened.id, "result": result}
        if why:
            data["why"] = why
        self._machine.note("inject.done", data, place[0], max(place[1], -1))
        opened.batch.open -= 1
        opened.batch.counts[result] += opened.left or opened.n
        if opened.left:
            opened.batch.counts["handled"] += opened.n - opened.left
        self._finish(opened.batch)

    def _finish(self, batch: Batch) -> None:
        if batch.over and batch in self._batches:
            self._batches.remove(batch)
            self._machine.completed(batch)


def batch_of_config(what: str, places: tuple[Place, ...], spec: Any, now_ns: int, details: dict[str, Any]) -> Batch:
    """Return the batch of one [[inject]] table of a configuration."""
    interval_ns = round(1e9 / spec.rate_hz) if spec.rate_hz else 0
    if what == "stall":
        details = {**details, "for_ns": parse_duration_ns(spec.duration, "inject.duration")}
    return Batch(what, places, spec.count, interval_ns, now_ns, details)
