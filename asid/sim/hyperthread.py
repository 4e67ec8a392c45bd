"""One simulated sibling: performs what `asid.core.hyperthread` decides, in virtual time.

Rule 1. Between two steps that take time nothing else happens on a hyperthread; what comes meanwhile is looked at after.
Rule 2. A mode is left when its last instruction has run and entered when its first can: the time of an exit counts as
        ISOLATED and that of a switch into HOST as what was before it. So no interval of guest or HOST is too short.
Rule 3. The guest, a handler and the work in HOST are interrupted by whatever comes, at the nanosecond.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from asid.core import apic, mce
from asid.core import hyperthread as core
from asid.core.chronicle import Chronicle
from asid.core.events import Action, Bid, Do, Mode, Order, Said, Seen
from asid.core.guarantees import of_hyperthread
from asid.core.hyperthread import HyperthreadState, Phase, What
from asid.core.limits import INTERRUPT_DEPTH_MAX
from asid.core.policies.base import Policy
from asid.isolated_exits import ShutDown
from asid.sim.irqs import Irqs, Line
from asid.sim.notes import Notebook
from asid.sim.rendezvous import Rendezvous
from asid.sim.spaces import Isolation
from asid.sim.stream import Run, Tallied, fast_ns
from asid.sim.vcpu import Vcpu

if TYPE_CHECKING:
    from asid.sim.core import Core


class Hyperthread:
    """Sibling `ht` of a core."""

    def __init__(self, of: Core, ht: int, inc: int, policy: Policy) -> None:
        self.core = of
        self.agenda = of.agenda
        self.costs = of.costs
        self.ht = ht
        self.name = f"c{of.number}h{ht}"
        self.words = of.page.hts[ht]
        self.siblings = tuple(other for other in range(of.siblings) if other != ht)
        self.policy = policy
        self.spec = of.spec_of(ht, policy)
        self.state = core.born(inc, of.gate.state.coord, self.words.request)
        self.icr_by = self.state
        self.notebook = Notebook(of.noted, of.keys, of.number, ht, of.agenda.now)
        self.fast_ns = fast_ns(self.spec, self._mode_ns) if of.runs else None
        self.isolation = Isolation(self)
        self.vcpu = Vcpu(self)
        self.chronicle = Chronicle(self.notebook, inc, of.agenda.now)
        self.chronicle.tally = Tallied(self.vcpu.count)
        self.irqs = Irqs(self)
        self.rendezvous = Rendezvous(self)
        self.lines = {"nmi": Line(core.NMI), "mce": Line(core.MCE)}
        self.orders: deque[tuple[Order, int]] = deque()
        self.stalls: deque[tuple[int, int]] = deque()  # (for ns, number of the injection)
        self.since_ns = of.agenda.now_ns  # its phase is what it is
        self._flushes = 0  # visits to HOST that the flush under way will have cleared
        self._busy = False
        self._dead = False
        self._turn = 0  # of what is waited for: a later turn has forgotten it
        self.words.mode = Mode.PARKED

    # --- the loop -----------------------------------------------------------------------------------------

    def go(self) -> None:
        """Take steps until one takes time, or nothing is to be done before something comes."""
        if self.vcpu.run is not None:
            self.vcpu.end_run()
        if self._busy:
            return
        self._turn += 1
        self.agenda.last_ns = self.agenda.now_ns
        self.vcpu.pause()
        try:
            self.goes_on()
        except ShutDown:
            self.core.shut_down(self.ht)

    def disturb(self) -> None:
        """Something that a look of its may see is about to change, or something for it is about to come."""
        if self.vcpu.run is not None and self.vcpu.end_run():
            self.look_again(0)

    def undisturbed(self) -> bool:
        """Whether looks find nothing, as they stand."""
        words, page = self.words, self.core.page
        if (
            words.pending
            or words.request != self.state.answered
            or page.failed
            or self.state.party
            or self.state.absent
        ):
            return False
        return not self._holders() and not (self.spec.flush and page.tainted())

    def goes_on(self) -> None:
        while True:
            if self.stalls:
                self._stall()
                return
            self.take_interrupts()
            action = core.next_action(self.state)
            if action is not None:
                if not self.perform(action):
                    return
            elif self.state.phase is Phase.STOPPED:
                self.core.ended(self.ht)
                return
            elif self.orders:
                self.on_order(*self.orders.popleft())
            elif not self.bring_event():
                return

    def look_again(self, ns: int) -> None:
        """Go on after `ns`, unless something comes before."""
        turn = self._turn
        self.agenda.after(ns, lambda: self.go() if self._turn == turn else None, self.ht)

    def run_on(self, run: Run) -> None:
        """Let a run go on to its end, unless something comes before."""
        self.vcpu.run = run
        self._turn += 1
        turn, seen = self._turn, self.core.seen

        def over() -> None:
            if self._turn == turn:
                if seen is None:
                    self.go()
                else:
                    seen.run_ended(self)

        self.agenda.after(run.end_ns - self.agenda.now_ns, over, self.ht)

    def calm(self) -> bool:
        """Whether nothing waits to be done here but what its guest does."""
        vcpu = self.vcpu
        waiting = self.orders or self.stalls or vcpu.injected or self.irqs.waiting or vcpu.from_injection
        return not (self._busy or waiting or any(line.raised for line in self.lines.values()))

    def take(self, ns: int, then: Callable[[], object]) -> None:
        """Be busy for `ns`."""

        def over() -> None:
            if self._dead:
                return
            self._busy = False
            then()
            self.go()

        self._busy = True
        self.agenda.after(ns, over, self.ht)

    def _stall(self) -> None:
        """Do nothing for as long as it was told to."""
        ns, number = self.stalls[0]

        def over() -> None:
            self.stalls.popleft()
            self.core.injection_done(self.ht, number, "handled")

        self.take(ns, over)

    def bury(self) -> None:
        """It is dead: whatever it was busy with does not come to its end."""
        self._busy, self._dead = True, True
        self.vcpu.run = None
        self._turn += 1

    def open_injections(self) -> list[int]:
        """Return the numbers of injections that it has taken and not done."""
        lines = [
            number for line in self.lines.values() for numbers in (line.raised, *line.handled) for number in numbers
        ]
        stalls = (number for _, number in self.stalls)
        return [*lines, *stalls, *(each.id for each in (*self.vcpu.injected, *self.irqs.waiting))]

    def step(self, event: core.Event) -> None:
        before = self.state
        self.state = core.step(self.spec, before, event)
        if self.state.phase is not before.phase:
            self.since_ns = self.agenda.now_ns
        broken = of_hyperthread(self.state)
        assert broken is None, f"{self.name}: {broken}, after {event}"

    def take_interrupts(self) -> None:
        """Let an NMI or #MC in, between any two steps. What comes during one is latched: one more."""
        for what, line in self.lines.items():
            if not line.raised:
                continue
            kind = line.event.what
            if core.shuts_down(self.spec, self.state, kind):
                raise ShutDown
            if len(self.state.frames) < INTERRUPT_DEPTH_MAX and core.may_interrupt(self.spec, self.state, kind):
                taken, line.raised = line.raised, []
                line.handled.append(taken)
                self.chronicle.interrupt_begins(what, taken[-1], len(taken) - 1, self.state)
                self.step(core.NMI if what == "nmi" else core.MCE._replace(check=self.rendezvous.taken()))
        if self.irqs.due():
            self.irqs.take()

    # --- actions ------------------------------------------------------------------------------------------

    def perform(self, action: Action) -> bool:
        """Do one action. Return False when it takes time: what comes after it comes after that."""
        do, before = action.do, self.state
        if do is Do.WORK:
            return self._work(action)
        if do is Do.CALL_OUT or do in mce.MEETS:
            event = self.rendezvous.perform(action, before.frames[-1])
            if event is not None:  # a handler has more to do after it
                self.step(event)
            return event is not None
        if do is Do.SET_MODE:
            if action.a is Mode.ENTER and self.vcpu.unfinished and not self.vcpu.handles():
                return False
            ns = self._mode_ns(before.mode, Mode(action.a))  # type: ignore[arg-type]
            if before.mode is Mode.GUEST:
                self._effect(action)
                if ns:
                    self.take(ns, _nothing)
                return not ns
        else:
            ns = self._ns_of(action)
        if do is Do.FLUSH:
            self._flushes = self.core.page.visits()  # what comes after this look is not flushed for certain
        if ns:
            self.take(ns, lambda: self._effect(action))
            return False
        self._effect(action)
        return True

    def _mode_ns(self, old: Mode, new: Mode) -> int:
        costs = self.costs
        ns = costs.vm_exit if old is Mode.GUEST else 0
        if new is Mode.GUEST:
            ns += costs.vm_entry
        if (new is Mode.HOST) is not (old is Mode.HOST) and not self.policy.every_exit_full:
            ns += costs.cr3_write
        return ns

    def _ns_of(self, action: Action) -> int:
        do = action.do
        if do is Do.FLUSH:
            return self.costs.l1d_flush
        if do is Do.IPI or do is Do.ICR or do is Do.ICR2:
            return self.costs.ipi_send
        if do is Do.ICR_IDLE:
            return self.costs.ipi_delivery if self.words.apic.bus else 0
        if do is Do.SEND and action.a is Said.ANSWER:
            return self.core.slow_ns(self.ht)
        return 0

    def _work(self, action: Action) -> bool:
        """A handler's own time: an NMI's, a #MC's, or that of a fast exit."""
        if not self.state.frames:
            if not self.vcpu.handles():
                return False
            self._effect(action)
            return True
        what = self.state.frames[-1].what
        if what is What.IRQ:
            self.take(self.irqs.service_ns(), lambda: self._effect(action))
        else:
            self.take(self.costs.mce if what is What.MCE else self.costs.nmi, lambda: self._effect(action))
        return False

    def _effect(self, action: Action) -> None:
        """What an action does to what is shared; then the step, and what is told of it."""
        do, before, words = action.do, self.state, self.words
        event, left_ns = core.PERFORMED, 0
        if do is Do.SET_MODE:
            mode = Mode(action.a)  # type: ignore[arg-type]
            if before.mode is Mode.HOST:
                left_ns = self.agenda.now_ns
            if core.taints(before.mode, mode):
                self.core.disturb_all()
                words.taint += 1
            words.mode = mode
        elif do is Do.LOOK:
            event = core.Event(What.PERFORMED, seen=self.look())
        elif do is Do.SEND:
            report = core.report(self.spec, before, Said(action.a))  # type: ignore[arg-type]
            self.core.tell_gate(report, self.notebook.last)
        elif do is Do.IPI:
            self.core.deliver(int(action.a), self, before)  # type: ignore[arg-type]
        elif do is Do.WAKE:
            self.core.wake(int(action.a))  # type: ignore[arg-type]
        elif do is Do.CLEAR_PENDING:
            words.pending = False
        elif do is Do.SET_FLAG:
            self.core.disturb_all()
            words.flag = int(action.a)  # type: ignore[arg-type]
        elif do is Do.SET_DEPTH:
            self.core.disturb_all()
            words.depth = int(action.a)  # type: ignore[arg-type]
        elif do is Do.FLUSH:
            self.chronicle.flushed(self.costs.l1d_flush, before.round)
            words.clean = self._flushes
        elif do is Do.FAIL:
            self.core.disturb_all()
            self.core.page.failed = True
        elif do is Do.ARRIVE:
            words.arrived = max(words.arrived, int(action.a))  # type: ignore[arg-type]
        elif do is Do.ICR2 or do is Do.ICR:
            words.apic = apic.written(words.apic, action, self.ht, self.siblings)
            if do is Do.ICR:
                self.core.on_bus(self, before)
        else:
            assert do in (Do.WORK, Do.ICR_IDLE), f"nobody simulates {do.name}"
        self.step(event)
        self._tell(do, before, left_ns)

    def _tell(self, do: Do, before: HyperthreadState, left_ns: int) -> None:
        after = self.state
        if do is Do.SET_MODE:
            self.chronicle.mode_set(before, after, self.spec, left_ns)
        elif do is Do.LOOK:
            self.chronicle.looked(before, after, self)
        if len(after.frames) < len(before.frames):
            what = before.frames[-1].what
            self.chronicle.interrupt_ends(before, after, self.rendezvous)
            self.irqs.frame_ended(before)
            if what is not What.IRQ:
                *merged, last = self.lines[what.name.lower()].handled.pop()
                for number in merged:
                    self.core.injection_done(self.ht, number, "merged")
                self.core.injection_done(self.ht, last, "handled")
            if not after.frames:
                self.rendezvous.handlers_over(after)

    def look(self) -> Seen:
        """Read the words of the entry check."""
        page = self.core.page
        holders = bool(self._holders()) or self._awaits()
        tainted = self.spec.flush and page.tainted()
        return Seen(self.words.pending, self.words.request, holders, tainted, page.failed)

    def _holders(self) -> list[int]:
        hts = self.core.page.hts
        return [other for other in self.siblings if hts[other].flag or hts[other].depth]

    def _awaits(self) -> bool:
        """Whether anybody of the party has not arrived, or one that a machine check missed is still there."""
        party, round_ = self.state.party, self.state.round
        to_come = any(party >> other & 1 and self.core.page.hts[other].arrived < round_ for other in self.siblings)
        return to_come or self.rendezvous.missed()

    def kicked(self) -> bool:
        return self.words.request != self.state.answered

    @property
    def held_back_ns(self) -> int | None:
        """Stamp of a record that may still come, older than now; None when none does."""
        return self.chronicle.held_back_ns if self.vcpu.run is None else self.vcpu.out_ns

    # --- what the chronicle may look at --------------------------------------------------------------------

    def blocker(self) -> int:
        return next(iter(self._holders()), -1)

    def insns_since(self, number: int) -> int | None:
        """None: instructions are not counted here."""
        return None

    # --- events -------------------------------------------------------------------------------------------

    def bring_event(self) -> bool:
        """Bring what the vCPU is up to, or look at the page. Return False when there is nothing but to wait."""
        phase = self.state.phase
        if phase is Phase.GUEST:
            return self.vcpu.in_guest()
        if phase is Phase.HOSTING:
            return self.vcpu.in_host()
        kicked = self.kicked()
        if phase is Phase.HELD:
            kicked = kicked or not (self._holders() or self._awaits() or self.core.page.failed)
        if kicked:
            self.step(core.DOORBELL)
            return True
        return self.vcpu.halted() if phase is Phase.HALTED else False

    def on_order(self, order: Order, cause: int) -> None:
        before = self.state
        self.step(core.Event(What.ORDER, order=order))
        after = self.state
        if after.vm != before.vm:
            self.vcpu.attach(after.vm)
        elif order.bid is Bid.DETACH and not after.vm:
            self.vcpu.attach(0)
        self.chronicle.ordered(before, after, order, cause)


def _nothing() -> None:
    """What takes time and has had its effect."""
