"""A core in memory: the step functions, a page, two queues a hyperthread, and nothing else.

A test moves it by hand, one step at a time where that matters. The guarantees are checked after every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest

from asid.core import gate, hyperthread
from asid.core.events import Action, Bid, Do, Kick, Mode, Order, Report, Said, Seen, Timer
from asid.core.gate import Belief, Ev
from asid.core.guarantees import GUARANTEES, CoreView
from asid.core.hyperthread import Event, HyperthreadState, Phase, What


class Core:
    """Siblings and their gate, joined by queues. `vms`: the VM of each sibling's vCPU, 0 for none."""

    def __init__(self, vms: tuple[int, ...], kick: Kick = Kick.ACK, gate_spec: gate.Spec | None = None) -> None:
        n = len(vms)
        self.specs = [hyperthread.Spec(ht, tuple(o for o in range(n) if o != ht), kick) for ht in range(n)]
        self.gate_spec = gate_spec or gate.Spec(together=kick is Kick.RENDEZVOUS)
        self.s: list[HyperthreadState | None] = [hyperthread.born(1, 1, 0) for _ in range(n)]
        self.g: gate.GateState | None = gate.opened(self.gate_spec, 1, n, vms)
        self.pending, self.request = [False] * n, [0] * n
        self.flag, self.depth = [False] * n, [0] * n
        self.arrived = [0] * n
        self.up: list[deque[Report]] = [deque() for _ in range(n)]
        self.down: list[deque[Order]] = [deque() for _ in range(n)]
        self.timers: list[tuple[Timer, int]] = []
        self.fenced: list[tuple[int, int]] = []
        self.buried: list[tuple[int, int]] = []
        self.ipis: list[tuple[int, int]] = []

    # --- what is --------------------------------------------------------------------------------------

    def at(self, ht: int) -> HyperthreadState:
        s = self.s[ht]
        assert s is not None, f"h{ht} is dead"
        return s

    def mode(self, ht: int) -> Mode:
        return self.at(ht).mode

    def phase(self, ht: int) -> Phase:
        return self.at(ht).phase

    def belief(self, ht: int) -> Belief:
        assert self.g is not None
        return self.g.members[ht].belief

    def kicked(self, ht: int) -> bool:
        """Whether a kick of the gate waits in the page."""
        return self.request[ht] != self.at(ht).answered

    def check(self) -> None:
        for name, holds in GUARANTEES.items():
            sentence = holds(CoreView(tuple(self.s), tuple(self.pending), self.g))
            assert sentence is None, f"{name}: {sentence}"

    # --- a hyperthread --------------------------------------------------------------------------------

    def happen(self, ht: int, event: Event) -> None:
        """An event, and nothing performed yet."""
        self.s[ht] = hyperthread.step(self.specs[ht], self.at(ht), event)
        self.check()

    def perform(self, ht: int) -> Action:
        """The next action alone."""
        s = self.at(ht)
        action = hyperthread.next_action(s)
        assert action is not None, f"h{ht} has nothing to do"
        event = hyperthread.PERFORMED
        do = action.do
        if do is Do.LOOK:
            others = self.specs[ht].siblings
            holders = any(self.flag[o] or self.depth[o] for o in others)
            holders = holders or any(s.party >> o & 1 and self.arrived[o] < s.round for o in others)
            event = Event(What.PERFORMED, seen=Seen(self.pending[ht], self.request[ht], holders))
        elif do is Do.IPI:
            self.pending[int(action.a)] = True  # type: ignore[call-overload]
            self.ipis.append((ht, int(action.a)))  # type: ignore[call-overload]
        elif do is Do.SET_FLAG:
            self.flag[ht] = bool(action.a)
        elif do is Do.SET_DEPTH:
            self.depth[ht] = int(action.a)  # type: ignore[call-overload]
        elif do is Do.ARRIVE:
            self.arrived[ht] = max(self.arrived[ht], int(action.a))  # type: ignore[call-overload]
        elif do is Do.CLEAR_PENDING:
            self.pending[ht] = False
        elif do is Do.SEND:
            assert isinstance(action.a, Said)
            self.up[ht].append(hyperthread.report(self.specs[ht], s, action.a))
        self.happen(ht, event)
        return action

    def go(self, ht: int, *, until: Do | None = None) -> None:
        """Perform all there is to do, or up to, and without, the first action of a kind."""
        while (action := hyperthread.next_action(self.at(ht))) is not None and action.do is not until:
            self.perform(ht)

    def does(self, ht: int, event: Event) -> None:
        """An event and everything that follows from it at once."""
        self.happen(ht, event)
        self.go(ht)

    def takes(self, ht: int, bid: Bid | None = None) -> Order:
        """Take the oldest order; its bid is checked when given."""
        order = self.down[ht].popleft()
        assert bid is None or order.bid is bid, f"h{ht} was ordered {order.bid.name}"
        self.does(ht, Event(What.ORDER, order=order))
        return order

    def leaves(self, ht: int) -> None:
        """A full exit, its report heard."""
        self.does(ht, hyperthread.FULL_EXIT)
        self.hear(ht)

    # --- the gate -------------------------------------------------------------------------------------

    def step_gate(self, event: gate.Event) -> tuple[Action, ...]:
        assert self.g is not None
        self.g, actions = gate.step(self.gate_spec, self.g, event)
        self.carry_out(actions)
        return actions

    def carry_out(self, actions: tuple[Action, ...]) -> None:
        for a in actions:
            if a.do is Do.ORDER:
                assert isinstance(a.a, Order)
                self.down[a.a.ht].append(a.a)
                continue
            ht = int(a.a)  # type: ignore[call-overload]
            if a.do is Do.REQUEST:
                self.request[ht] = a.b
            elif a.do is Do.PEND:
                self.pending[ht] = True
            elif a.do is Do.WIPE:
                self.pending[ht], self.flag[ht], self.depth[ht] = False, False, 0
                self.arrived[ht] = max(self.arrived[ht], a.b)
            elif a.do is Do.FENCE:
                self.fenced.append((ht, a.b))
            elif a.do is Do.BURIED:
                self.buried.append((ht, a.b))
            elif a.do is Do.TIMER:
                self.timers.append((Timer(ht), a.b))
            self.check()

    def hear(self, ht: int, said: Said | None = None) -> tuple[Action, ...]:
        """The gate reads everything that a hyperthread sent; the first report's kind is checked when given."""
        actions: tuple[Action, ...] = ()
        assert self.up[ht], f"h{ht} has sent nothing"
        assert said is None or self.up[ht][0].said is said, f"h{ht} said {self.up[ht][0].said.name}"
        while self.up[ht]:
            actions += self.step_gate(gate.Event(Ev.REPORT, report=self.up[ht].popleft()))
        return actions

    def timeout(self, timer: Timer) -> tuple[Action, ...]:
        """The timer of that kind that was set last goes off."""
        key = next(key for which, key in reversed(self.timers) if which is timer)
        return self.step_gate(gate.Event(Ev.TIMER, timer=timer, ht=key & 0xFF, key=key >> 8))

    # --- longer stretches -----------------------------------------------------------------------------

    def attach(self, *hts: int) -> None:
        """The processes say that they are ready, get their vCPUs and ask; the gate has not read that yet."""
        for ht in hts:
            self.go(ht)
            self.hear(ht, Said.READY)
            self.takes(ht, Bid.ATTACH)

    def enter(self, *hts: int) -> None:
        """Into guest, one after the other, each with a first instruction that the gate knows of."""
        for ht in hts:
            if self.phase(ht) is Phase.IDLE:
                self.attach(ht)
            if self.up[ht]:
                self.hear(ht)
            self.takes(ht, Bid.ADMIT)
            self.does(ht, hyperthread.RETIRED)
            self.hear(ht, Said.ENTERED)

    def answers(self, ht: int) -> None:
        """A kicked sibling finds out, hands its lease back, and the gate hears of it."""
        event = hyperthread.INTERRUPTED if self.phase(ht) is Phase.GUEST else hyperthread.DOORBELL
        self.does(ht, event)
        self.hear(ht, Said.ANSWER)

    def to_host(self, ht: int) -> None:
        """Out of guest and into HOST by a grant; every other lease holder answers its kick."""
        self.leaves(ht)
        for other in self.specs[ht].siblings:
            if self.s[other] is not None and self.kicked(other):
                self.answers(other)
        self.takes(ht, Bid.GRANT)
        assert self.mode(ht) is Mode.HOST

    def kill(self, ht: int) -> int:
        """SIGKILL: gone between two steps, its words left as they are. Return its incarnation."""
        inc = self.at(ht).inc
        self.s[ht] = None
        self.down[ht].clear()
        return inc

    def hear_of_death(self, ht: int, inc: int = 1) -> tuple[Action, ...]:
        return self.step_gate(gate.Event(Ev.DEAD, ht=ht, inc=inc))

    def bear(self, ht: int, inc: int) -> None:
        assert self.g is not None
        self.s[ht] = hyperthread.born(inc, self.g.coord, self.request[ht])


@pytest.fixture
def make_core() -> type[Core]:
    return Core


@pytest.fixture
def core() -> Iterator[Core]:
    """Two siblings of one VM and their gate, `ack` kicks. The guarantees are checked at the end, too."""
    c = Core((1, 1))
    yield c
    c.check()


@pytest.fixture
def send_core() -> Iterator[Core]:
    """The same with `send` kicks."""
    c = Core((1, 1), Kick.SEND)
    yield c
    c.check()


@pytest.fixture
def two_vms() -> Iterator[Core]:
    """Two siblings, each with a vCPU of a VM of its own."""
    c = Core((1, 2))
    yield c
    c.check()
