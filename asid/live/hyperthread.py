"""The hyperthread process: performs what `asid.core.hyperthread` decides, on the page, the sockets and the clock.

One loop. While an action is to be done, do it, and between any two let an NMI or #MC in. Else bring the next event:
what the vCPU is up to (`asid.live.vcpu`), an order, a doorbell, a time-out. This file decides nothing of the protocol.
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import zmq

from asid import policies, wire
from asid.core import apic, mce
from asid.core import hyperthread as core
from asid.core.chronicle import Chronicle
from asid.core.events import Action, Bid, Do, Mode, Order, Said, Seen
from asid.core.guarantees import of_hyperthread
from asid.core.hyperthread import HyperthreadState, Phase, What
from asid.core.limits import INTERRUPT_DEPTH_MAX, MESSAGES_IN_FLIGHT_MAX, RETRY_NS
from asid.core.policies.base import Policy
from asid.errors import AsidError
from asid.guest.base import Exit
from asid.isolated_exits import ShutDown
from asid.live import sockets
from asid.live.ahead import Ahead, likely_of_hyperthread
from asid.live.birth import Birth
from asid.live.fast import sees_all
from asid.live.irqs import Irqs
from asid.live.isolation import Isolation
from asid.live.link import Link
from asid.live.node import Frames, Node, ParentGone, hush_doorbell, prepare_child, ring_doorbell
from asid.live.notebook import Notebook
from asid.live.page import (
    ARRIVED,
    CLEAN,
    COUNT_BITS,
    DEPTH,
    FAILED,
    FLAG,
    ICR,
    ICR2,
    INSNS,
    KICK_INSNS,
    KICK_NUMBER,
    MCE,
    MODE,
    NMI,
    PENDING,
    REQUEST,
    TAINT,
    WATCHED,
    CorePage,
    base_of,
    interrupt_parts,
)
from asid.live.rendezvous import Rendezvous
from asid.live.ring import Ring
from asid.live.standstill import Standstill
from asid.live.traps import step_name, trap_of
from asid.live.vcpu import Vcpu
from asid.mm.parts import Part
from asid.targets import resolve

# Clearing the buffers of a core. What is known of a flush of the L1D is its theory, 512 to 768 cycles for a writeback
# of all of it, up to twice that; nobody has published a measured figure.
FLUSH_NS = 400
TALLY_NS = 100_000_000  # fast exits are noted at least this often
READY_NS = 50_000_000  # a new hyperthread that hears nothing says again that it is there, ever more seldom
READY_NS_MAX = 10_000_000_000
HANDLER_NS = 2_000  # own work of an NMI or #MC handler
SHUTDOWN_STATUS = 86  # of a process that a #MC inside a #MC has ended


class Hyperthread:
    """One sibling. `run` returns when the process is to end."""

    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.node = Node()
        self.page = CorePage(birth.page.fd, birth.siblings)
        self.words = self.page.words
        self.own = base_of(birth.ht)
        self.bell = (birth.bell or birth.doorbells[birth.ht]).fd
        others = tuple(other for other in range(birth.siblings) if other != birth.ht)
        self.siblings = others
        self.holds = tuple(base_of(other) + field for other in others for field in (FLAG, DEPTH))
        self.policy: Policy
        self.spec: core.Spec
        self.ahead = Ahead(
            self.decide,
            lambda state: likely_of_hyperthread(birth.ht, state),
            lambda state: state,
        )
        self.isolation = Isolation(self)
        self.set_policy(birth.policy, birth.kick)
        self.state = core.born(birth.inc, birth.coord, self.words[self.own + REQUEST])
        self.icr_by = self.state  # when it wrote the ICR: a handler may come before the bus has delivered
        self.notebook = Notebook(Ring(birth.ring.fd), birth.core, birth.ht, birth.inc)
        self.chronicle = Chronicle(self.notebook, birth.inc, time.monotonic_ns)
        self.nmis, self.mces = birth.interrupts  # the interrupt lines as last taken
        self.rendezvous = Rendezvous(self)
        self.orders: deque[tuple[Order, int]] = deque()
        self.outbox: deque[bytes] = deque()
        self.asked_ns = time.monotonic_ns()
        self.ready_ns = READY_NS
        self.trap = trap_of(f"{birth.name}.{birth.inc}")
        place, topology = (birth.core, birth.ht), birth.config.topology
        slow = [each for each in birth.config.faults.slow if place in resolve(each.target, topology)]
        self.slow_ns = sum(each.delay_ns for each in slow)
        self.signal_ns = sum(each.signal_ns for each in slow)
        self.vcpu = Vcpu(self)
        self.standstill: Standstill | None = None
        if birth.memories and others:
            first = birth.core * birth.config.machine.smt
            self.standstill = Standstill([fd.fd for _, fd in birth.memories], [first + other for other in others])
        self.irqs = Irqs(self)
        context = sockets.new_context()
        name = f"ht{birth.ht}.{birth.inc}".encode()
        self.gate = sockets.gate_dealer(context, Path(birth.gate_path), name)
        self.node.watch_parent()
        self.node.add_socket(self.gate, self.on_gate)
        self.link = Link(self.node, context, birth.link_path, f"{birth.name}.{birth.inc}", self.on_link)
        self.node.add_reader(self.bell, lambda: hush_doorbell(self.bell))
        self.node.set_timer("tally", TALLY_NS, self.on_tally)
        self.words[self.own + MODE] = Mode.PARKED
        self.link.tell({"op": "up"})

    def set_policy(self, name: str, kick: str) -> None:
        config = self.birth.config
        self.policy = policies.make(name, kick)
        self.ahead.forget()
        self.spec = self.policy.hyperthread_spec(
            self.birth.ht, self.siblings, apic=apic.BY_NAME[config.apic.mode], icr_fix=config.apic.icr_fix,
            nmi_isolated=config.policy.nmi == "isolated", mcip=config.mce.nested == "shutdown",
        )  # fmt: skip
        self.hot_loop = sees_all(self.spec)
        self.isolation.begin()

    # --- the loop -----------------------------------------------------------------------------------------

    def run(self) -> None:
        while True:
            self.take_interrupts()
            action = core.next_action(self.state)
            if action is not None:
                self.perform(action)
            elif self.isolation.changes:
                self.isolation.change()
            elif self.state.phase is Phase.STOPPED:
                break
            elif self.orders:
                order, cause = self.orders.popleft()
                self.on_order(order, cause)
            else:
                self.bring_event()
        self.finish()

    def finish(self) -> None:
        """Everything noted is in the ring and the goodbye is on its way; wait for neither longer than a moment."""
        self.flush()
        deadline_ns = time.monotonic_ns() + 200_000_000
        while (self.outbox or not self.notebook.flush()) and time.monotonic_ns() < deadline_ns:
            self.node.turn(deadline_ns)
            self.send_outbox()

    def step(self, event: core.Event) -> None:
        self.state = self.ahead.step(self.state, event)

    def decide(self, state: HyperthreadState, event: core.Event) -> HyperthreadState:
        after = core.step(self.spec, state, event)
        broken = of_hyperthread(after)
        assert broken is None, f"{self.birth.name}: {broken}, after {event}"
        return after

    def take_interrupts(self) -> None:
        """Let an injected NMI or #MC in, between any two actions. What comes during one is latched: one more."""
        words, own = self.words, self.own
        if words[own + NMI] != self.nmis and core.may_interrupt(self.spec, self.state, What.NMI):
            self.nmis = self.deliver("nmi", words[own + NMI], self.nmis, core.NMI)
        if words[own + MCE] != self.mces:
            if core.may_interrupt(self.spec, self.state, What.MCE):
                self.mces = self.deliver("mce", words[own + MCE], self.mces, core.MCE)
            elif core.shuts_down(self.spec, self.state, What.MCE):
                raise ShutDown
        if self.irqs.lines and self.irqs.due():
            self.irqs.take()

    def deliver(self, what: str, word: int, before: int, event: core.Event) -> int:
        """Take an interrupt line's word; return what was taken. All that came since the last one are one."""
        if len(self.state.frames) >= INTERRUPT_DEPTH_MAX:
            return before
        number, count = interrupt_parts(word)
        merged = (count - interrupt_parts(before)[1] - 1) % (1 << COUNT_BITS)
        self.chronicle.interrupt_begins(what, number, merged, self.state)
        self.step(event if event is core.NMI else event._replace(check=self.rendezvous.taken()))
        return word

    # --- actions ------------------------------------------------------------------------------------------

    def perform(self, action: Action) -> None:
        do = action.do
        before = self.state
        if self.trap is not None:
            self.trap(step_name(action, before.frames[-1].what.name if before.frames else ""))
        event = core.PERFORMED
        at_ns = 0
        if do is core.DO_SET_MODE:
            if before.mode is core.MODE_HOST:
                at_ns = time.monotonic_ns()  # before a sibling can know of it, and flush
                if self.standstill is not None and action.a is not core.MODE_HOST:
                    self.standstill.end()
            elif self.standstill is not None and action.a is core.MODE_HOST:
                at_ns = time.monotonic_ns()  # what guests count from here on is beside HOST, for the journal too
            if action.a is core.MODE_ENTER and self.vcpu.unfinished and not self.vcpu.handles():
                return
            if core.taints(before.mode, action.a):  # type: ignore[arg-type]
                self.words[self.own + TAINT] += 1
            self.words[self.own + MODE] = int(action.a) | before.vm << 8  # type: ignore[arg-type]
            if action.a is core.MODE_ENTER:
                self.page.fence()
            elif self.standstill is not None and action.a is core.MODE_HOST and before.mode is not core.MODE_HOST:
                self.standstill.begin(self.chronicle.via(before, self.spec))
        elif do is core.DO_LOOK:
            event = core.Event(core.WHAT_PERFORMED, None, self.look())
        elif do is Do.SEND:
            self.send(action.a)  # type: ignore[arg-type]
        elif do is Do.IPI:
            self.interrupt(int(action.a), before)  # type: ignore[arg-type]
        elif do is Do.WAKE:
            ring_doorbell(self.birth.doorbells[int(action.a)].fd)  # type: ignore[arg-type]
        elif do is Do.CLEAR_PENDING:
            self.words[self.own + PENDING] = 0
            self.page.fence()
        elif do is Do.SET_FLAG:
            self.words[self.own + FLAG] = int(action.a)  # type: ignore[arg-type]
            self.page.fence()
        elif do is Do.SET_DEPTH:
            self.words[self.own + DEPTH] = int(action.a)  # type: ignore[arg-type]
            self.page.fence()
        elif do is Do.WORK:
            if not self.work(before):
                return
        elif do is Do.CALL_OUT or do in mce.MEETS:
            came = self.rendezvous.perform(action, before.frames[-1])
            if came is None:
                return
            event = came
        else:
            self.perform_rare(action)
        self.step(event)
        if do is core.DO_SET_MODE:
            self.chronicle.mode_set(before, self.state, self.spec, at_ns)
            if self.words[WATCHED]:
                self.chronicle.moved(before, self.state)
        elif do is core.DO_LOOK:
            self.chronicle.looked(before, self.state, self)
        if before.frames and len(self.state.frames) < len(before.frames):
            self.chronicle.interrupt_ends(before, self.state, self.rendezvous)
            self.irqs.frame_ended(before)
            if not self.state.frames:
                self.rendezvous.handlers_over(self.state)

    def perform_rare(self, action: Action) -> None:
        """What belongs to one kind of APIC, of kick or of policy."""
        do, words, own = action.do, self.words, self.own
        if do is Do.FLUSH:
            visits = self.page.visits()  # what comes after this look is not flushed for certain
            self.spin(FLUSH_NS)
            self.chronicle.flushed(FLUSH_NS, self.state.round)  # before a sibling can rely on it
            words[own + CLEAN] = visits
            self.page.fence()
        elif do is Do.FAIL:
            words[FAILED] = 1
            self.page.fence()
        elif do is Do.ARRIVE:
            words[own + ARRIVED] = max(words[own + ARRIVED], int(action.a))  # type: ignore[arg-type]
            self.page.fence()
        elif do is Do.ICR2 or do is Do.ICR:
            found = apic.Registers(words[own + ICR2], words[own + ICR])
            words[own + ICR2], words[own + ICR] = apic.written(found, action, self.birth.ht, self.siblings)
            self.icr_by = self.state if do is Do.ICR else self.icr_by
        else:
            assert do is Do.ICR_IDLE, f"nobody performs {do.name}"
            self.deliver_bus()

    def deliver_bus(self) -> None:
        """The IPI on the bus arrives: at the latest when its sender waits for that."""
        targets = self.words[self.own + ICR]
        for target in range(self.birth.siblings):
            if targets >> target & 1:
                self.interrupt(target, self.icr_by)
        self.words[self.own + ICR] = 0

    def interrupt(self, target: int, by: HyperthreadState) -> None:
        """Set a pending bit, a sibling's or our own, and wake its owner. by: the state in which it was sent."""
        self.words[base_of(target) + PENDING] = 1
        ring_doorbell(self.birth.doorbells[target].fd)
        self.chronicle.ipi(target, by, self.spec)

    def look(self) -> Seen:
        """Read the words of the entry check, in the order that the explorer's torn looks have them."""
        words, own = self.words, self.own
        pending, request = words[own + PENDING] != 0, words[own + REQUEST]
        if request != self.state.answered:
            return Seen(pending, request, False)  # a kick comes before all else: a sibling waits for its answer
        holders = False
        for at in self.holds:
            if words[at]:
                holders = True
                break
        if not holders and (self.state.party or self.state.absent):
            holders = self.awaits()
        tainted = self.spec.flush and self.state.mode is Mode.ENTER and self.page.tainted()
        return Seen(pending, request, holders, tainted, words[FAILED] != 0)

    def awaits(self) -> bool:
        """Whether anybody of the party has not arrived, or one that a machine check missed is still there."""
        return any(self.is_to_come(other) for other in self.siblings) or self.rendezvous.missed()

    def is_to_come(self, other: int) -> bool:
        """Whether a sibling is to meet this one and has not arrived."""
        party, round_ = self.state.party, self.state.round
        return party >> other & 1 > 0 and self.words[base_of(other) + ARRIVED] < round_

    def blocker(self) -> int:
        """The first sibling whose flag or depth is raised, for the record; -1 for none."""
        return next((o for o in self.siblings if self.page.holders((o,))), -1)

    def insns_since(self, number: int) -> int | None:
        """Guest instructions retired since kick `number` was visible; None when its sender has not counted yet."""
        words, own = self.words, self.own
        if words[own + KICK_NUMBER] != number:
            return None
        return max(0, words[own + INSNS] - words[own + KICK_INSNS])  # below 0: the one in flight was taken back

    def work(self, state: HyperthreadState) -> bool:
        """A handler's own time: an NMI's, a #MC's, or that of a fast exit. Return whether it has passed."""
        if not state.frames:
            return self.vcpu.handles()
        self.spin(HANDLER_NS)
        return True

    def spin(self, ns: int) -> None:
        until = time.monotonic_ns() + ns
        while time.monotonic_ns() < until:
            pass

    def send(self, said: Said) -> None:
        if said is Said.ANSWER:
            if self.slow_ns:
                self.pause(self.slow_ns)
        elif said is not Said.ENTERED:
            self.asked_ns = time.monotonic_ns()
        report = core.report(self.spec, self.state, said)
        self.outbox.append(wire.encode_report(self.birth.core, report, self.notebook.last))
        self.send_outbox()

    def pause(self, ns: int) -> None:
        """A host that is slow: nothing happens here for a while."""
        until = time.monotonic_ns() + ns
        while time.monotonic_ns() < until:
            self.node.turn(until)

    def send_outbox(self) -> None:
        """Send what waits, oldest first. Without a coordinator it waits; a resync makes it void anyway."""
        while self.outbox:
            try:
                self.gate.send(self.outbox[0], sockets.NOBLOCK)
            except zmq.Again:
                while len(self.outbox) > MESSAGES_IN_FLIGHT_MAX:
                    self.outbox.popleft()
                return
            self.outbox.popleft()

    # --- events -------------------------------------------------------------------------------------------

    def bring_event(self) -> None:
        phase = self.state.phase
        if phase is Phase.GUEST:
            self.vcpu.in_guest()
        elif phase is Phase.HOSTING:
            self.vcpu.in_host()
        else:
            self.waiting()

    def kicked(self) -> bool:
        """Whether a kick of the gate is not answered yet."""
        return bool(self.words[self.own + REQUEST] != self.state.answered)

    def interrupted(self) -> bool:
        """Whether an interrupt waits to be taken."""
        words, own = self.words, self.own
        return words[own + NMI] != self.nmis or words[own + MCE] != self.mces or self.irqs.due()

    def waiting(self) -> None:
        """Nothing to do but to be told: orders, doorbells, time-outs."""
        phase, kicked = self.state.phase, self.kicked()
        if phase is Phase.HELD:
            if kicked or not (self.page.holders(self.siblings) or self.awaits() or self.words[FAILED]):
                self.step(core.DOORBELL)
                return
        elif kicked:
            self.step(core.DOORBELL)
            return
        now = self.node.now_ns()
        due = None
        if phase is Phase.HALTED:
            if self.vcpu.wakes(now):
                self.chronicle.wants_guest()
                self.step(core.RUNNABLE)
                return
            due = self.vcpu.until_ns
        elif phase in (Phase.ASKING, Phase.LEAVING, Phase.IDLE):
            due = self.asked_ns + (self.ready_ns if phase is Phase.IDLE else RETRY_NS)
            if now >= due:
                self.asked_ns = now
                self.ready_ns = min(2 * self.ready_ns, READY_NS_MAX)
                self.step(core.TIMEOUT)
                return
        if self.outbox:
            self.send_outbox()
            due = now + 1_000_000 if self.outbox else due
        self.node.turn(due)

    # --- messages -----------------------------------------------------------------------------------------

    def on_gate(self, frames: Frames) -> None:
        if len(frames) != 1:
            self.chronicle.dropped += 1
            return
        try:
            order, cause = wire.decode_order(frames[0], self.birth.core)
        except wire.WireFault:
            self.chronicle.dropped += 1
            return
        self.orders.append((order, cause))

    def on_order(self, order: Order, cause: int) -> None:
        before = self.state
        if order.coord > before.coord:
            self.outbox.clear()  # said to the coordinator that is dead
        self.step(core.Event(What.ORDER, order=order))
        after = self.state
        if after.vm != before.vm:
            self.vcpu.attach(after.vm)
        elif order.bid is Bid.DETACH and not after.vm:
            self.vcpu.attach(0)  # born without one meanwhile: whoever wants it gone is to hear that it is
        self.chronicle.ordered(before, after, order, cause)

    def on_link(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "exit":
            self.vcpu.inject(message["id"], exit_of(message), message["n"])
        elif op == "irq":
            self.irqs.raise_line(message["id"], exit_of(message), message["n"], mapped=message["mapped"])
        elif op == "refuse":
            self.vcpu.refuse()
        elif op == "vcpu":
            self.vcpu.number = message["vcpu"]
            self.link.tell({"op": "done", "id": message["id"]})
        elif op == "space":
            self.isolation.changes.append(message)
        elif op == "policy":
            self.flush()  # what was seen under the old one is judged by it
            self.set_policy(message["name"], message["kick"])
            self.link.tell({"op": "done", "id": message["id"]})
        elif op == "flush":
            self.flush()
            self.link.tell({"op": "done", "id": message["id"]})

    def flush(self) -> None:
        """Note what is counted and not noted yet."""
        self.chronicle.flush(self.state.round)
        if self.standstill is not None:
            self.standstill.note(self.notebook, self.state.round)

    def on_tally(self) -> None:
        self.flush()
        self.notebook.flush()
        self.node.set_timer("tally", TALLY_NS, self.on_tally)


def exit_of(message: dict[str, Any]) -> Exit:
    """Return the exit that a message injects."""
    parts = frozenset(map(Part, message["parts"]))
    return Exit(0, message["reason"], message["isa"], message["service_ns"], message["full"], parts=parts)


def made_for(birth: Birth) -> Hyperthread:
    """Return the hyperthread of a birth: one with a script takes its steps from that."""
    if birth.script is None:
        return Hyperthread(birth)
    from asid.live.directed_hyperthread import DirectedHyperthread

    return DirectedHyperthread(birth)


def hyperthread_main(birth: Birth) -> None:
    """Entry of a hyperthread process. Ends without clean-up: the ring and the page are the daemon's."""
    prepare_child(f"asid: {birth.name} hyperthread")
    try:
        made_for(birth).run()
    except ParentGone:
        os._exit(0)
    except ShutDown:
        os._exit(SHUTDOWN_STATUS)
    except AsidError as refused:
        # Its guest's file was good when the machine started (asid.guest.check), and is not now.
        os.write(2, f"asid: {birth.name} has no guest: {type(refused).__name__}: {refused}\n".encode())
        os._exit(refused.exit_code)
    os._exit(0)
