"""The simulated coordinator of one core: performs what `asid.core.gate` decides, in virtual time.

A decision takes no time of its own: what it costs is in the words that siblings write and read, see `costs.message`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asid.core import gate, mce
from asid.core.events import Action, Do, Mode, Order, Report, Timer
from asid.core.gate import Belief, Ev
from asid.core.gate_chronicle import notes_of
from asid.core.guarantees import of_gate
from asid.core.limits import REKICK_PART, RESYNC_DEADLINE_NS, STICKY_DEADLINE_NS
from asid.sim.notes import Notebook

if TYPE_CHECKING:
    from asid.sim.core import Core


class Gate:
    """The gate of a core."""

    def __init__(self, of: Core, spec: gate.Spec, attached: tuple[int, ...]) -> None:
        self.core = of
        self.agenda = of.agenda
        self.spec = spec
        self.state = gate.opened(spec, 1, of.siblings, attached)
        self.notebook = Notebook(of.noted, of.keys, of.number, -1, of.agenda.now)
        policy = of.config.policy
        self._after_ns = {
            Timer.TURN: policy.turn_ns,
            Timer.STICKY: STICKY_DEADLINE_NS,
            Timer.KICK: policy.kick_deadline_ns,
            Timer.REKICK: int(policy.kick_deadline_ns * REKICK_PART),
            Timer.RESYNC: RESYNC_DEADLINE_NS,
        }
        self._cause = 0

    def hear(self, report: Report, cause: int) -> None:
        """A report has arrived. One of another life changes nothing."""
        if not gate.of_this_life(self.state, report):
            self.notebook.note("gate.drop", {"why": "of another life"}, self.state.round)
            return
        self._cause = cause
        self.step(gate.Event(Ev.REPORT, report=report))

    def step(self, event: gate.Event) -> None:
        before = self.state
        self.state, actions = gate.step(self.spec, before, event)
        broken = of_gate(self.state, self.spec.host_alone) if self.spec.exclusive else None
        assert broken is None, f"c{self.core.number}: {broken}, after {event}"
        for kind, data, round_, ht in notes_of(before, event, self.state, actions):
            self.notebook.note(kind, data, round_, self._cause, ht=ht)
        for action in actions:
            self._perform(action)
        self._drop_timers(before)

    def _perform(self, action: Action) -> None:
        do = action.do
        if do is Do.ORDER:
            assert isinstance(action.a, Order)
            self.core.order(action.a, self.notebook.last)
        elif do is Do.TIMER:
            self._set_timer(Timer(action.a), action.b)  # type: ignore[arg-type]
        else:
            self._perform_on(do, int(action.a), action.b)  # type: ignore[arg-type]

    def _perform_on(self, do: Do, ht: int, number: int) -> None:
        words = self.core.page.hts[ht]
        if do is Do.REQUEST:
            self.core.disturb(ht)
            words.request = number
        elif do is Do.PEND:
            self.core.pend(ht)
            for_ht = next((other for other in self.state.queue if other != ht), ht)
            data = {"number": words.request, "for_ht": for_ht}
            self.notebook.note("gate.kick", data, self.state.round, self._cause, ht=ht)
        elif do is Do.WIPE:
            self.core.disturb_all()
            words.pending, words.flag, words.depth = False, 0, 0
            words.arrived = max(words.arrived, number)
            words.callin = mce.closed(mce.broadcast_parts(words.broadcast)[0])
            words.taint += words.mode is Mode.HOST
            words.mode = Mode.OFFLINE
            self.core.wake_all()
        elif do is Do.FENCE:
            self.notebook.note("gate.fence", {"inc": number}, self.state.round, ht=ht)
            self.core.fence(ht, number)
        else:
            assert do is Do.BURIED, f"nobody simulates {do.name}"
            self.core.buried(ht)

    def _set_timer(self, timer: Timer, key: int) -> None:
        if timer is not Timer.TURN and self.agenda.has_timer((timer, key)):
            return
        ht, number = key & 0xFF, key >> 8

        def fire() -> None:
            self._cause = 0
            self.step(gate.Event(Ev.TIMER, timer=timer, ht=ht, key=number))

        self.agenda.set_timer((timer, key), self._after_ns[timer], fire)

    def _drop_timers(self, before: gate.GateState) -> None:
        """Forget the timers of kicks that were answered and of leases that were used."""
        if self.state.members is before.members:
            return
        for ht, (old, new) in enumerate(zip(before.members, self.state.members, strict=True)):
            if old.kicked and old.kicked != new.kicked:
                self.agenda.drop_timer((Timer.KICK, gate.key_of(ht, old.kicked)))
                self.agenda.drop_timer((Timer.REKICK, gate.key_of(ht, old.kicked)))
            if old.belief is Belief.UNKNOWN and new.belief is not Belief.UNKNOWN:
                self.agenda.drop_timer((Timer.RESYNC, gate.key_of(ht, old.inc)))
            if old.fresh and not new.fresh:
                self.agenda.drop_timer((Timer.STICKY, gate.key_of(ht, old.granted)))
