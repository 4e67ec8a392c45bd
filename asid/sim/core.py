"""One simulated core: its siblings, their gate, the words they share, and what comes from outside.

Cores do not know of each other: no word, IPI or message goes from one to another, so each is simulated by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from asid.core import apic, gate, mce
from asid.core.events import Order, Report
from asid.core.gate import Ev
from asid.core.hyperthread import HyperthreadState, Phase, Spec
from asid.core.policies.base import Policy
from asid.core.rebirth import YOUNG_NS, Rebirth, too_often
from asid.guest.base import Exit, Source
from asid.sim.agenda import Agenda
from asid.sim.costs import Costs
from asid.sim.figures import Teller, Told
from asid.sim.gate import Gate
from asid.sim.hyperthread import Hyperthread
from asid.sim.notes import CORE_SHIFT, Notebook, Noted
from asid.sim.seen import Seen
from asid.sim.vcpu import Injected
from asid.sim.words import Page, Words
from asid.targets import resolve

if TYPE_CHECKING:
    from asid.config import Config
    from asid.mm.isolated import Isolated

TALLY_NS: Final = 100_000_000  # fast exits are noted at least this often
FIGURES_NS_MAX: Final = 1_000_000_000_000  # between two, where only figures are wanted
FIGURES_TAKEN: Final = 4_096  # happenings: fewer between two, and the next one comes later, if there were
FIGURES_COUNTED: Final = 1 << 18  # fewer leaves as well that were only counted
BIRTH_NS: Final = 10_000_000  # what starting a process takes, about
KILLED: Final = -9
SHUTDOWN_STATUS: Final = 86
STOP_NS: Final = 10_000_000_000  # for everybody to say goodbye

GuestOf = Callable[[int, int], tuple[Source, int]]  # (hyperthread, VM) -> its exits, and its halt_poll in ns


class Standing(NamedTuple):
    """In which phase a hyperthread that lives was, and since when."""

    core: int
    ht: int
    phase: Phase
    since_ns: int


class Injection(NamedTuple):
    """One [[inject]] at one hyperthread: n of a kind at one time. event: of an exit or an interrupt. broadcast: number
    of the machine check of all siblings that it is part of, 0 for none."""

    at_ns: int
    id: int
    what: str
    ht: int
    n: int = 1
    event: Exit | None = None
    for_ns: int = 0
    broadcast: int = 0


class Core:
    """A core from its switching on to its end."""

    def __init__(
        self, config: Config, policy: Policy, number: int, costs: Costs, guest_of: GuestOf,
        isolated: Mapping[int, Isolated], *, runs: bool, figures: bool,
    ) -> None:  # fmt: skip
        """runs: play fast exits as one. figures: nobody wants records, see `asid.sim.seen`; needs runs."""
        self.config = config
        self.number = number
        self.runs = runs
        self.costs = costs
        self.siblings = config.machine.smt
        self.guest_of = guest_of
        self.isolated = isolated
        self.vcpus = [config.vcpu_at(number, ht) or (0, 0) for ht in range(self.siblings)]  # (VM, number in it)
        attached = tuple(vm for vm, _ in self.vcpus)
        self.agenda = Agenda()
        self.noted: list[Noted] = []
        self._tally_ns = TALLY_NS
        self.keys = count((number + 1) << CORE_SHIFT)
        self.daemon = Notebook(self.noted, self.keys, number, -1, self.agenda.now)
        self.page = Page(tuple(Words() for _ in range(self.siblings)))
        self.policy = policy
        self._sources = sum(vm > 0 for vm in attached)  # that have not come to their end
        self._until_exhausted = False
        self.standing: tuple[Standing, ...] = ()  # when the stop began
        self.gate = Gate(self, policy.gate_spec(), attached)
        self._incs = [0] * self.siblings
        self._born_ns = [0] * self.siblings
        self._rebirths = [Rebirth() for _ in range(self.siblings)]
        self._stopping = False  # in order, whatever for
        self._ending = False  # before its time
        self.over = False
        self.end_ns = 0  # when it was stopped, or of its last record
        self._heard_ns = -1
        self._broadcast = 0  # number of the last machine check of all siblings
        topology = config.topology
        self._slow = [
            sum(slow.delay_ns for slow in config.faults.slow if (number, ht) in resolve(slow.target, topology))
            for ht in range(self.siblings)
        ]
        self.hts: list[Hyperthread | None] = [None] * self.siblings
        self.seen = Seen(self) if figures else None

    # --- a whole life ---------------------------------------------------------------------------------------

    def play(
        self, duration_ns: int, injections: tuple[Injection, ...], *, until_exhausted: bool = False
    ) -> Iterator[int]:  # fmt: skip
        """Play the core for `duration_ns`, then stop it in order. Yield now and then how far it is.

        `taken` gives what was noted until then. until_exhausted: stop before, when every guest's recording has come to
        its end.
        """
        self._until_exhausted = until_exhausted
        self.daemon.note("spawn", {"what": "coordinator", "pid": 0, "inc": 1}, ht=-1)
        for ht in range(self.siblings):
            self._bear(ht)
        self.agenda.appoint([each.at_ns for each in injections], [partial(self._inject, each) for each in injections])
        goes_on = not (until_exhausted and not self._sources)
        while goes_on and not self._ending and self.agenda.now_ns < duration_ns:
            taken = self.agenda.taken
            goes_on = self.agenda.run(min(duration_ns, self.agenda.now_ns + self._tally_ns))
            self._tally()
            few = self.agenda.taken - taken < FIGURES_TAKEN
            if self.seen is not None and self.seen.settle() < FIGURES_COUNTED and few:
                self._tally_ns = min(FIGURES_NS_MAX, 2 * self._tally_ns)
            yield self.agenda.now_ns
        yield from self._stop()

    def _stop(self) -> Iterator[int]:
        """Stop in order: everybody goes out through the gate. Yield as `play` does."""
        self._stopping = True
        self.end_ns = self.agenda.now_ns
        self.disturb_all()
        living = [ht for ht in self.hts if ht is not None]
        self.standing = tuple(Standing(self.number, ht.ht, ht.state.phase, ht.since_ns) for ht in living)
        for ht in range(self.siblings):
            self.gate.step(gate.Event(Ev.STOP, ht=ht))
        until_ns = self.end_ns + STOP_NS
        while any(self.hts) and self.agenda.now_ns < until_ns:
            self.agenda.run(min(until_ns, self.agenda.now_ns + TALLY_NS))
            self._tally()
            yield self.agenda.now_ns
        self.over = True

    def end(self) -> None:
        """Let the play end here: stop in order. May be called at any moment, by a signal's handler too."""
        self._ending = True
        if not self._stopping:
            self.agenda.halt()

    def known_ns(self) -> int | None:
        """Return before which time nothing will be noted any more; None when nothing will be at all."""
        if self.over:
            return None
        held_back = (ht.held_back_ns for ht in self.hts if ht is not None)
        return min((ns for ns in held_back if ns is not None), default=self.agenda.now_ns)

    def taken(self, before_ns: int | None) -> list[Noted]:
        """Take out what was noted of before a time (None: all of it), by stamp."""
        self.noted.sort(key=attrgetter("ts"))
        at = len(self.noted) if before_ns is None else bisect_left(self.noted, before_ns, key=attrgetter("ts"))
        taken = self.noted[:at]
        del self.noted[:at]
        if taken:
            self.end_ns = max(self.end_ns, taken[-1].ts)
        return taken

    def told(self, teller: Teller) -> Told:
        """Take out all that was noted until now, and tell it."""
        noted, self.noted[:] = list(self.noted), []
        if self.seen is not None:
            self.seen.taken += len(noted)
        if noted:
            self.end_ns = max(self.end_ns, max(note.ts for note in noted))
        return teller.tell(noted)

    def _tally(self) -> None:
        for ht in self.hts:
            if ht is not None:
                ht.chronicle.flush(ht.state.round)

    def _bear(self, ht: int) -> None:
        self._incs[ht] += 1
        self._born_ns[ht] = self.agenda.now_ns
        self.daemon.note("spawn", {"what": "ht", "pid": 0, "inc": self._incs[ht]}, ht=ht)
        born = self.hts[ht] = self.new_hyperthread(ht)
        born.go()

    def new_hyperthread(self, ht: int) -> Hyperthread:
        return Hyperthread(self, ht, self._incs[ht], self.policy)

    def spec_of(self, ht: int, policy: Policy) -> Spec:
        others = tuple(other for other in range(self.siblings) if other != ht)
        config = self.config
        return policy.hyperthread_spec(
            ht, others, apic=apic.BY_NAME[config.apic.mode], icr_fix=config.apic.icr_fix,
            nmi_isolated=config.policy.nmi == "isolated", mcip=config.mce.nested == "shutdown",
        )  # fmt: skip

    def source_ended(self) -> None:
        """A guest's recording has come to its end, and the guest spins on."""
        self._sources -= 1
        if self._until_exhausted and not self._sources:
            self.agenda.halt()

    # --- messages and IPIs ----------------------------------------------------------------------------------

    def tell_gate(self, report: Report, cause: int) -> None:
        self._to_gate(lambda: self.gate.hear(report, cause))

    def _to_gate(self, what: Callable[[], object]) -> None:
        """One after the other: each decision of the gate has a nanosecond of its own, so stamps tell their order."""
        self._heard_ns = max(self.agenda.now_ns + self.costs.message, self._heard_ns + 1)
        self.agenda.after(self._heard_ns - self.agenda.now_ns, what)

    def order(self, order: Order, cause: int) -> None:
        def arrives() -> None:
            target = self.hts[order.ht]
            if target is not None and target.state.inc == order.inc:
                target.disturb()
                target.orders.append((order, cause))
                target.go()

        self.agenda.after(self.costs.message, arrives)

    def wake(self, ht: int) -> None:
        self.agenda.after(self.costs.message, lambda: self._go(ht))

    def wake_all(self) -> None:
        for ht in range(self.siblings):
            self.wake(ht)

    def pend(self, ht: int) -> None:
        """The gate's kick: an IPI, which is on its way for a while."""
        self.agenda.after(self.costs.ipi_send + self.costs.ipi_delivery, lambda: self._pending(ht))

    def deliver(self, target: int, by: Hyperthread, state: HyperthreadState) -> None:
        """An IPI was written; it is on its way for a while."""
        by.chronicle.ipi(target, state, by.spec)
        self.agenda.after(self.costs.ipi_delivery, lambda: self._pending(target))

    def on_bus(self, by: Hyperthread, state: HyperthreadState) -> None:
        """A command was written to the ICR: what is on the bus when it arrives goes out."""
        self.agenda.after(self.costs.ipi_delivery, lambda: self.off_bus(by, state), by.ht)  # its ICR is busy until then

    def off_bus(self, by: Hyperthread, state: HyperthreadState) -> None:
        targets, by.words.apic = by.words.apic.bus, by.words.apic._replace(bus=0)
        for target in range(self.siblings):
            if targets >> target & 1:
                by.chronicle.ipi(target, state, by.spec)
                self._pending(target)

    def _pending(self, ht: int) -> None:
        self.disturb(ht)
        self.page.hts[ht].pending = True
        self._go(ht)

    def disturb(self, ht: int) -> None:
        """Something is about to change that one hyperthread alone looks at."""
        target = self.hts[ht]
        if target is not None:
            target.disturb()

    def disturb_all(self) -> None:
        """Something is about to change that any of them may look at."""
        for target in self.hts:
            if target is not None:
                target.disturb()

    def _go(self, ht: int) -> None:
        target = self.hts[ht]
        if target is not None:
            target.go()

    # --- exits ----------------------------------------------------------------------------------------------

    def host_ns(self, event: Exit, *, polled: bool) -> int:
        """The time of a full exit's work: what its guest's own table or recording says; and of a vCPU that goes to
        sleep, that of scheduling it out, which no table has: the time of a HLT there is its sleep."""
        return event.service_ns + (self.costs.schedule if event.wake_ns and not polled else 0)

    def slow_ns(self, ht: int) -> int:
        return self._slow[ht]

    # --- injections -----------------------------------------------------------------------------------------

    def _inject(self, injection: Injection) -> None:
        ht = injection.ht
        if injection.broadcast and self.hts[ht] is None and any(self.hts):
            return  # it reaches whoever lives
        data: dict[str, object] = {"id": injection.id, "what": injection.what, "target": f"c{self.number}h{ht}"}
        if injection.event is not None:
            data["reason"] = injection.event.reason
        if injection.n > 1:
            data["n"] = injection.n
        if injection.broadcast:
            data["broadcast"] = injection.broadcast
            self._raise(injection.broadcast)
        self.daemon.note("inject", data, ht=ht)
        self.disturb(ht)
        target = self.hts[ht]
        if target is None:
            self.injection_done(ht, injection.id, "lost", "the hyperthread died")
        elif injection.what in ("nmi", "mce"):
            target.lines[injection.what].raised.append(injection.id)
            target.go()
        elif injection.what == "kill":
            self._dies(ht, KILLED)
            self.injection_done(ht, injection.id, "handled")
        elif injection.what == "stall":
            target.stalls.append((injection.for_ns, injection.id))
            target.go()
        else:
            assert injection.event is not None
            if injection.what == "exit" and not target.state.vm:
                self.injection_done(ht, injection.id, "refused", "the vCPU was taken away")
                return
            into = target.vcpu.injected if injection.what == "exit" else target.irqs.waiting
            into.append(Injected(injection.id, injection.event, injection.n))
            target.go()

    def _raise(self, broadcast: int) -> None:
        """A machine check reaches all siblings that live; the first of its injections raises it for all of them."""
        if broadcast <= self._broadcast:
            return
        self._broadcast = broadcast
        living = [ht for ht, target in enumerate(self.hts) if target is not None]
        word = mce.broadcast_word(broadcast, sum(1 << ht for ht in living))
        for ht in living:
            self.page.hts[ht].broadcast = word

    def missing(self, broadcast: int, hts: list[int]) -> None:
        """A #MC handler gave up waiting for these. Whoever has handled it by now, or died, is no longer meant."""
        for ht in hts:
            if self.hts[ht] is not None and not mce.is_done(self.page.hts[ht].callin, broadcast):
                why = f"it did not come to an end with machine check {broadcast} of all siblings"
                self.daemon.note("warn", {"text": f"c{self.number}h{ht} is killed: {why}"}, ht=ht)
                self._dies(ht, KILLED)

    def injection_done(self, ht: int, id_: int, result: str, why: str = "") -> None:
        self.daemon.note("inject.done", {"id": id_, "result": result, **({"why": why} if why else {})}, ht=ht)

    # --- deaths ---------------------------------------------------------------------------------------------

    def fence(self, ht: int, inc: int) -> None:
        """Kill a hyperthread that does not answer; its death is confirmed a moment later."""
        target = self.hts[ht]
        if target is not None and target.state.inc == inc:
            self._dies(ht, KILLED)

    def shut_down(self, ht: int) -> None:
        """A fault whose handlers could not run, or a #MC while the last one was in progress."""
        self._dies(ht, SHUTDOWN_STATUS)

    def ended(self, ht: int) -> None:
        """A hyperthread has said goodbye."""
        self._dies(ht, 0)

    def _dies(self, ht: int, status: int) -> None:
        dead = self.hts[ht]
        assert dead is not None
        if status == 0:
            dead.chronicle.flush(dead.state.round)
        self.hts[ht] = None
        dead.bury()
        dead.words.apic = apic.IDLE  # nobody waits for its bus any more
        for id_ in dead.open_injections():
            self.injection_done(ht, id_, "lost", "the hyperthread died")
        self.daemon.note("death", {"what": "ht", "pid": 0, "inc": dead.state.inc, "status": status}, ht=ht)
        killed = status == KILLED  # on purpose, by an injection or a fence: no sign of a crash loop
        delay_ns = self._rebirths[ht].after(YOUNG_NS if killed else self.agenda.now_ns - self._born_ns[ht])
        if delay_ns is None and not self._stopping:
            self.daemon.note("warn", {"text": too_often(f"c{self.number}h{ht}")}, ht=ht)
        self.tell_death(ht, dead.state.inc)

    def tell_death(self, ht: int, inc: int) -> None:
        event = gate.Event(Ev.DEAD, ht=ht, inc=inc)
        self._to_gate(lambda: self.gate.step(event))

    def buried(self, ht: int) -> None:
        """The gate has done with the dead: it may be born again, ever later, and not for ever."""
        rebirth = self._rebirths[ht]
        if self._stopping or rebirth.given_up:
            return
        self.agenda.after(rebirth.delay_ns + BIRTH_NS, lambda: None if self._stopping else self._bear(ht))
