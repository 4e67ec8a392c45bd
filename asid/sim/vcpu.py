"""The vCPU on a simulated hyperthread: its guest's exits, one after another, and the work that each of them causes.

What an exit means for the core is decided by `asid.core.hyperthread`. Here is for how long what runs: the guest, the
handler of a fast exit, the work in HOST. Each is a span of time that is interrupted and goes on; guest time passes only
while the vCPU is in guest, so a kick delays what comes after it and swallows nothing.

Fast exits one behind another are a run (`asid.sim.stream`). Before anything changes that one of them would look at, or
that interrupts it, the run is ended: the exit that is under way at that moment is played from where it began.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from asid.core import hyperthread as core
from asid.core.events import Mode
from asid.guest.base import Exit, Source
from asid.sim.stream import SHORTEST, Run, Stream

if TYPE_CHECKING:
    from asid.sim.hyperthread import Hyperthread

STOPPED = -1


class Span:
    """Some work: what is left of it, and since when it goes on."""

    __slots__ = ("_since_ns", "left_ns", "took_ns")

    def __init__(self) -> None:
        self.left_ns = 0
        self.took_ns = 0
        self._since_ns = STOPPED

    def set(self, ns: int) -> None:
        """New work of `ns`; it does not go on yet."""
        self.left_ns, self.took_ns, self._since_ns = ns, 0, STOPPED

    def go_on(self, now_ns: int) -> None:
        self._since_ns = now_ns

    def stop(self, now_ns: int) -> None:
        if self._since_ns != STOPPED:
            passed = now_ns - self._since_ns
            self.took_ns += passed
            self.left_ns = max(0, self.left_ns - passed)
            self._since_ns = STOPPED


class Injected:
    """n exits that somebody asked for, by the number of their injection."""

    __slots__ = ("event", "id", "n")

    def __init__(self, id_: int, event: Exit, n: int) -> None:
        self.id, self.event, self.n = id_, event, n


class Vcpu:
    """What runs on hyperthread `ht`, whoever is attached."""

    def __init__(self, ht: Hyperthread) -> None:
        self.ht = ht
        self.source: Source | Stream | None = None
        self.stream: Stream | None = None  # the source, where runs are played
        self.run: Run | None = None  # that goes on
        self.poll_ns = 0  # a halt that ends within this is polled for
        self.exit: Exit | None = None  # the next exit of the source, or the one being handled
        self.guest, self.handler, self.host = Span(), Span(), Span()
        self.unfinished = False  # the handler of a fast exit has begun
        self.begun = False  # the work in HOST has begun
        self.awake_ns = 0  # when the halt that it polls for ends, or that it sleeps through
        self.exhausted = False
        self.injected: deque[Injected] = deque()
        self.from_injection = False
        self.aside: tuple[Exit | None, int] = (None, 0)  # the source's exit, and what is left before it
        # While an interrupt is handled in HOST: the exit it came in between, what was left before it, whether it sleeps
        self.between: tuple[Exit | None, int, bool] | None = None

    def attach(self, vm: int) -> None:
        """Begin with another VM's guest; 0 for none."""
        self.count()
        source, self.poll_ns = self.ht.core.guest_of(self.ht.ht, vm) if vm else (None, 0)
        self.exit = None
        self.aside = (None, 0)
        self.unfinished = self.from_injection = self.exhausted = False
        self.ht.isolation.attach(vm)
        self.source, self.stream = source, None
        if source is not None and self.ht.fast_ns is not None:
            settled = self.ht.isolation.settled
            self.source = self.stream = Stream(
                source, self.ht.chronicle.tally, lambda event, polled: settled(event, polled=polled), self.poll_ns,
                *self.ht.fast_ns, SHORTEST if self.ht.core.seen is None else 0,
            )  # fmt: skip

    def pause(self) -> None:
        """Something has come: what goes on stops here, until it is asked for again."""
        now = self.ht.agenda.now_ns
        self.guest.stop(now)
        self.handler.stop(now)
        self.host.stop(now)

    # --- in guest -----------------------------------------------------------------------------------------

    def in_guest(self) -> bool:
        """Guest instructions, until something ends them. Return False when nothing does before the span is over."""
        ht = self.ht
        if ht.words.pending:
            ht.step(core.INTERRUPTED)
        elif not ht.state.used:
            ht.step(core.RETIRED)
        elif self.injected:
            self.aside = (self.exit, self.guest.left_ns)
            self.exit = self.injected[0].event
            self.from_injection = True
            self.exits(self.exit)
        else:
            if self.exit is None:
                self._next_exit()
            if self.exit is None:
                return False
            if self.guest.left_ns:
                if not self._runs():
                    self.guest.go_on(ht.agenda.now_ns)
                    ht.look_again(self.guest.left_ns)
                return False
            self.exits(self.exit)
        return True

    def _runs(self) -> bool:
        """Begin a run of fast exits, if there is one and nothing on the page is in its way."""
        ht = self.ht
        if self.stream is None or not ht.undisturbed():
            return False
        run = self.stream.run(ht.agenda.now_ns, self.guest.left_ns)
        if run is None:
            return False
        ht.run_on(run)
        return True

    def end_run(self) -> bool:
        """End the run that goes on: what was over is counted, what is under way is played. Return whether it is guest
        time, which nobody has put down how to go on with."""
        ht, run = self.ht, self.run
        assert run is not None
        assert self.stream is not None
        self.run = None
        over_ns = ht.agenda.over_ns(ht.ht)
        self.exit, begin_ns, end_ns = self.stream.reach(run, over_ns)
        if not self.stream.is_at_first(run):  # else it was in guest before, and interrupted maybe
            ht.since_ns = max(ht.since_ns, begin_ns)
        if end_ns >= over_ns:
            self.guest.set(end_ns - ht.agenda.now_ns)
            return True
        self.guest.set(0)
        ht.agenda.replay(end_ns, ht.ht, ht.goes_on)
        return False

    def count(self) -> None:
        """Count what runs have come to until now."""
        if self.stream is not None:
            if self.run is None:
                self.stream.count()
            else:
                self.stream.count_run(self.run, self.ht.agenda.over_ns(self.ht.ht))

    @property
    def out_ns(self) -> int | None:
        """When the exit of a run that is under way left the guest; None while it is in guest."""
        if self.run is None or self.stream is None:
            return None
        return self.stream.out_ns(self.run, self.ht.agenda.over_ns(self.ht.ht))

    def _next_exit(self) -> None:
        """Take the source's next exit. When a recording has ended its guest spins on."""
        if self.source is None or self.exhausted:
            return
        self.exit = self.source.next()
        if self.exit is None:
            self.exhausted = True
            self.ht.core.source_ended()
            return
        self.guest.set(self.exit.after_ns)

    def exits(self, event: Exit) -> None:
        """One VM exit."""
        ht, polled = self.ht, self.polls(event)
        if self.stream is not None and not self.from_injection:
            self.stream.played()
        missed = ht.isolation.missed(event, polled=polled)
        if missed is not None:
            ht.chronicle.wants_host(event.reason, missed)
            self.begun = False
            ht.step(core.IDLE_EXIT if event.wake_ns else core.FULL_EXIT)
        else:
            ht.step(core.FAST_EXIT)

    def polls(self, event: Exit) -> bool:
        """Whether the exit is a halt whose wake-up its handler waits for."""
        return 0 < event.wake_ns <= self.poll_ns

    def handles(self) -> bool:
        """The handler of a fast exit. Return False while it goes on.

        A kick of the gate ends it, too: the rest comes after the next admission, in front of the guest.
        """
        event, ht = self.exit, self.ht
        if event is None:
            return True
        now, polled = ht.agenda.now_ns, self.polls(event)
        if not self.unfinished:
            self.unfinished = True
            self.handler.set(event.service_ns)
            self.awake_ns = now + event.service_ns + event.wake_ns
        if polled:
            self.handler.left_ns = max(0, self.awake_ns - now)  # time asleep passes wherever the vCPU is
        if self.handler.left_ns:
            if ht.kicked():
                return True
            self.handler.go_on(now)
            ht.look_again(self.handler.left_ns)
            return False
        if self.from_injection or self.stream is None or not self.stream.counted:
            ht.chronicle.tally.add(event.reason, event.isa, 1, max(1, self.handler.took_ns), "polled" if polled else "")
        self.unfinished = False
        self.exit_over()
        return True

    def exit_over(self) -> None:
        """The exit is done. An injected one makes way for that of the source, which was on its way and still comes."""
        self.exit = None
        if self.from_injection:
            self.from_injection = False
            self.exit, left_ns = self.aside
            self.guest.set(left_ns)
            self.injected[0].n -= 1
            if not self.injected[0].n:
                self.ht.core.injection_done(self.ht.ht, self.injected.popleft().id, "handled")

    # --- in HOST, and halted ------------------------------------------------------------------------------

    def interrupted(self, event: Exit, *, halted: bool) -> None:
        """An external interrupt is about to be handled in HOST; what it came in between goes on afterwards."""
        self.between = (self.exit, self.guest.left_ns, halted)
        self.exit, self.begun = event, False

    def interrupt_over(self) -> None:
        """The interrupt was handled. A guest that it hit has had an exit; one that sleeps goes on, unless it is due."""
        assert self.between is not None
        ht, event = self.ht, self.exit
        self.exit, left_ns, halted = self.between
        self.guest.set(left_ns)
        self.between = None
        if event is not None and ht.irqs.begun is not None and ht.irqs.begun[1] is Mode.GUEST:
            ht.chronicle.full_exit(event, ht.state.round)
        ht.irqs.handled(full=True)
        ht.chronicle.wants_guest()
        ht.step(core.HALT if halted and not self.wakes() else core.WORKED)

    def in_host(self) -> bool:
        """Work in the full address space; a kick is answered meanwhile. Return False while it goes on."""
        ht, event = self.ht, self.exit
        if ht.kicked():
            ht.step(core.DOORBELL)
            return True
        polled = event is not None and self.polls(event)
        if not self.begun:
            self.begun = True
            self.host.set(
                0 if event is None else ht.core.host_ns(event, polled=polled) + (event.wake_ns if polled else 0)
            )
        if self.host.left_ns:
            self.host.go_on(ht.agenda.now_ns)
            ht.look_again(self.host.left_ns)
            return False
        if self.between is not None:
            self.interrupt_over()
            return True
        halts = event is not None and event.wake_ns > 0 and not polled
        if event is not None:
            ht.chronicle.full_exit(event, ht.state.round, polled=polled)
            self.awake_ns = ht.agenda.now_ns + event.wake_ns
            self.exit_over()
        ht.step(core.HALT if halts else core.WORKED)
        return True

    def halted(self) -> bool:
        """Asleep. Return False until it is woken."""
        ht = self.ht
        if not self.wakes():
            ht.look_again(self.awake_ns - ht.agenda.now_ns)
            return False
        ht.chronicle.wants_guest()
        ht.step(core.RUNNABLE)
        return True

    def wakes(self) -> bool:
        """Whether a halted vCPU is runnable again: its time has come, or somebody wants an exit of it."""
        return self.ht.agenda.now_ns >= self.awake_ns or bool(self.injected)
