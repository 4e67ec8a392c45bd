"""The hyperthread process: performs what `asid.core.hyperthread` decides, on the page, the sockets and the clock.

One loop. While an action is to be done, do it, and between any two let an NMI or #MC in. Else bring the next event:
a guest's exit, the end of the work in HOST, an order, a doorbell, a time-out. This file decides nothing of the
protocol; what it chooses is when the guest exits, and that the guest's source says.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

import zmq

from asid import wire
from asid.core import hyperthread as core
from asid.core.events import Action, Do, Mode, Order, Said, Seen
from asid.core.hyperthread import HyperthreadState, Phase, What
from asid.core.limits import INTERRUPT_DEPTH_MAX, MESSAGES_IN_FLIGHT_MAX, RETRY_NS
from asid.core.policy import Policy, make_policy
from asid.guest.base import Exit, Source
from asid.live import sockets
from asid.live.ahead import QUIET_NS, Ahead, likely_of_hyperthread
from asid.live.birth import Birth
from asid.live.chronicle import Chronicle
from asid.live.fast import Left, run_fast
from asid.live.link import Link
from asid.live.node import Frames, Node, ParentGone, hush_doorbell, prepare_child, ring_doorbell
from asid.live.notebook import Notebook
from asid.live.page import (
    COUNT_BITS,
    DEPTH,
    FLAG,
    INSNS,
    KICK_INSNS,
    KICK_NUMBER,
    MCE,
    MODE,
    NMI,
    PENDING,
    REQUEST,
    CorePage,
    base_of,
    interrupt_parts,
)
from asid.live.ring import Ring
from asid.live.traps import step_name, trap_of

FAST_BATCH = 256  # fast exits between two looks at the clock
LOOK_NS = 1_000_000  # a busy guest looks at its sockets at least this often
TALLY_NS = 100_000_000  # fast exits are noted at least this often
SPIN_NS_MAX = 30_000  # a wait shorter than this is spun: a sleep costs more
READY_NS = 50_000_000  # a new hyperthread that hears nothing says again that it is there, ever more seldom
READY_NS_MAX = 10_000_000_000
HANDLER_NS = 2_000  # own work of an NMI or #MC handler
HOST_BEGINS = -1  # until_ns of work in HOST whose clock has not started


class Hyperthread:
    """One sibling. `run` returns when the process is to end."""

    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.node = Node()
        self.page = CorePage(birth.page.fd, birth.siblings)
        self.words = self.page.words
        self.own = base_of(birth.ht)
        self.bell = birth.doorbells[birth.ht].fd
        others = tuple(other for other in range(birth.siblings) if other != birth.ht)
        self.siblings = others
        self.holds = tuple(base_of(other) + field for other in others for field in (FLAG, DEPTH))
        self.policy: Policy
        self.spec: core.Spec
        self.ahead = Ahead(
            lambda state, event: core.step(self.spec, state, event),
            lambda state: likely_of_hyperthread(birth.ht, state),
            lambda state: state,
        )
        self.set_policy(birth.policy, birth.kick)
        self.state = core.born(birth.inc, birth.coord, self.words[self.own + REQUEST])
        self.notebook = Notebook(Ring(birth.ring.fd), birth.core, birth.ht, birth.inc)
        self.chronicle = Chronicle(self.notebook, birth.inc)
        self.nmis, self.mces = birth.interrupts  # the interrupt lines as last taken
        self.orders: deque[tuple[Order, int]] = deque()
        self.outbox: deque[bytes] = deque()
        self.vcpu = birth.vcpu
        self.source: Source | None = None
        self.exit: Exit | None = None  # the next exit of the source, or the one being handled
        self.exhausted = False  # the source has no more exits
        self.injected: deque[list[Any]] = deque()  # [id, Exit, left]
        self.from_injection = False
        self.until_ns = 0  # when what the phase waits for is due
        self.asked_ns = time.monotonic_ns()
        self.ready_ns = READY_NS
        self.looked_ns = 0  # when the sockets were last looked at from a busy guest
        self.trap = trap_of(f"{birth.name}.{birth.inc}")
        self.slow_ns = sum(
            slow.delay_ns for slow in birth.config.faults.slow if (birth.core, birth.ht) in _places(birth, slow.target)
        )
        context = sockets.new_context()
        name = f"ht{birth.ht}.{birth.inc}".encode()
        self.gate = sockets.gate_dealer(context, _path(birth.gate_path), name)
        self.node.watch_parent()
        self.node.add_socket(self.gate, self.on_gate)
        self.link = Link(self.node, context, birth.link_path, f"{birth.name}.{birth.inc}", self.on_link)
        self.node.add_reader(self.bell, lambda: hush_doorbell(self.bell))
        self.node.set_timer("tally", TALLY_NS, self.on_tally)
        self.words[self.own + MODE] = Mode.PARKED
        self.link.tell({"op": "up"})

    def set_policy(self, name: str, kick: str) -> None:
        self.policy = make_policy(name, kick)
        self.ahead.forget()
        self.spec = core.Spec(self.birth.ht, self.siblings, self.policy.kick, self.policy.guarded)

    # --- the loop -----------------------------------------------------------------------------------------

    def run(self) -> None:
        while True:
            self.take_interrupts()
            action = core.next_action(self.state)
            if action is not None:
                self.perform(action)
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
        self.chronicle.flush(self.state.round)
        deadline_ns = time.monotonic_ns() + 200_000_000
        while (self.outbox or not self.notebook.flush()) and time.monotonic_ns() < deadline_ns:
            self.node.turn(deadline_ns)
            self.send_outbox()

    def step(self, event: core.Event) -> None:
        self.state = self.ahead.step(self.state, event)

    def take_interrupts(self) -> None:
        """Let an injected NMI or #MC in, between any two actions. What comes during one is latched: one more."""
        words, own = self.words, self.own
        if words[own + NMI] != self.nmis and core.may_interrupt(self.state, What.NMI):
            self.nmis = self.deliver("nmi", words[own + NMI], self.nmis, core.NMI)
        if words[own + MCE] != self.mces and core.may_interrupt(self.state, What.MCE):
            self.mces = self.deliver("mce", words[own + MCE], self.mces, core.MCE)

    def deliver(self, what: str, word: int, before: int, event: core.Event) -> int:
        """Take an interrupt line's word; return what was taken. All that came since the last one are one."""
        if len(self.state.frames) >= INTERRUPT_DEPTH_MAX:
            return before
        number, count = interrupt_parts(word)
        merged = (count - interrupt_parts(before)[1] - 1) % (1 << COUNT_BITS)
        self.chronicle.interrupt_begins(what, number, merged, self.state)
        self.step(event)
        return word

    # --- actions ------------------------------------------------------------------------------------------

    def perform(self, action: Action) -> None:
        do = action.do
        before = self.state
        if self.trap is not None:
            self.trap(step_name(action, before.frames[-1].what.name if before.frames else ""))
        event = core.PERFORMED
        if do is core.DO_SET_MODE:
            self.words[self.own + MODE] = int(action.a) | before.vm << 8  # type: ignore[arg-type]
            if action.a is core.MODE_ENTER:
                self.page.fence()
        elif do is core.DO_LOOK:
            event = core.Event(core.WHAT_PERFORMED, None, self.look())
        elif do is Do.SEND:
            self.send(action.a)  # type: ignore[arg-type]
        elif do is Do.IPI:
            target = int(action.a)  # type: ignore[arg-type]
            self.words[base_of(target) + PENDING] = 1
            ring_doorbell(self.birth.doorbells[target].fd)
            self.chronicle.ipi(target, before)
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
        else:
            self.work(before)
        self.step(event)
        if do is core.DO_SET_MODE:
            self.chronicle.mode_set(before, self.state, self.spec.kick)
        elif do is core.DO_LOOK:
            self.chronicle.looked(before, self.state, self)
        if before.frames and len(self.state.frames) < len(before.frames):
            self.chronicle.interrupt_ends(before, self.state)

    def look(self) -> Seen:
        words, own = self.words, self.own
        holders = False
        for at in self.holds:
            if words[at]:
                holders = True
                break
        return Seen(words[own + PENDING] != 0, words[own + REQUEST], holders)

    def blocker(self) -> int:
        """The first sibling whose flag or depth is raised, for the record; -1 for none."""
        return next((o for o in self.siblings if self.page.holders((o,))), -1)

    def insns_since(self, number: int) -> int:
        """Guest instructions retired since kick `number` was visible; 0 when its sender's count is not there yet."""
        words, own = self.words, self.own
        if words[own + KICK_NUMBER] != number:
            return 0
        return max(0, words[own + INSNS] - words[own + KICK_INSNS])  # below 0: the one in flight was taken back

    def work(self, state: HyperthreadState) -> None:
        """A handler's own time: an NMI's, a #MC's, or that of a fast exit."""
        if state.frames:
            self.spin(HANDLER_NS)
        elif self.exit is not None:
            self.fast_exit_done(self.exit)

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
            self.in_guest()
        elif phase is Phase.HOSTING:
            self.in_host()
        else:
            self.waiting()

    def in_guest(self) -> None:
        """Guest instructions, until something ends them."""
        words, own = self.words, self.own
        if words[own + PENDING]:
            self.step(core.INTERRUPTED)
            return
        if not self.state.used:
            if self.retire():
                self.step(core.RETIRED)
            return
        if self.injected:
            self.injected_exit()
            return
        if self.exit is None:
            self.next_exit()
        if self.notebook.full:
            self.notebook.flush()
            self.node.turn(self.node.now_ns() + 1_000_000)
            return
        if self.exit is not None and self.node.now_ns() >= self.until_ns:
            if self.exit.after_ns == 0 and self.look_around():
                return
            if self.retire():
                self.exits(self.exit)
            return
        until = self.until_ns if self.exit is not None else None
        quiet = self.node.now_ns() + QUIET_NS
        if self.ahead.ready(self.state) or (until is not None and until <= quiet):
            self.node.turn(until)
        elif not self.node.turn(quiet):
            while not words[own + PENDING] and self.ahead.think(self.state):
                pass
        if words[own + PENDING]:
            self.step(core.INTERRUPTED)
        else:
            self.retire()

    def look_around(self) -> bool:
        """What a guest that never pauses must still do, once in a while: sockets, timers, the parent's life.

        Return whether an order waits. A kick needs none of this: it is on the page.
        """
        now = self.node.now_ns()
        if now - self.looked_ns >= LOOK_NS:
            self.looked_ns = now
            self.node.turn(now)
        return bool(self.orders)

    def retire(self) -> bool:
        """Run one guest instruction, unless its boundary finds the pending bit set.

        It is announced before the look, and taken back if it may not run: whoever sets the bit and then reads the
        count has counted the one in flight, so what is counted after that ran behind a visible bit.
        """
        words, own = self.words, self.own
        words[own + INSNS] += 1
        self.page.fence()
        if words[own + PENDING]:
            words[own + INSNS] -= 1
            return False
        return True

    def next_exit(self) -> None:
        """Take the source's next exit. A recording that has ended is told once; its guest spins on."""
        if self.source is None or self.exhausted:
            return
        self.exit = self.source.next()
        if self.exit is not None:
            self.until_ns = self.node.now_ns() + self.exit.after_ns
            return
        self.exhausted = True
        if self.birth.config.vm[self.state.vm - 1].guest.source == "trace":
            self.chronicle.flush(self.state.round)
            self.link.tell({"op": "exhausted"})

    def exits(self, event: Exit) -> None:
        """One VM exit. A fast one that needs no time is done here; the step functions see all others."""
        if self.policy.needs_full(event.full):
            self.chronicle.wants_host(event.reason)
            self.until_ns = HOST_BEGINS
            self.step(core.FULL_EXIT)
            return
        if event.service_ns:
            self.step(core.FAST_EXIT)
            return
        self.fast(event, 1)

    def fast(self, event: Exit, n: int) -> int:
        """Up to n fast exits in the hot loop; return how many."""
        begin_ns = self.node.now_ns()
        done, left = run_fast(
            self.words,
            self.own,
            self.siblings,
            self.page.fence,
            vm=self.state.vm,
            answered=self.state.answered,
            interrupts=(self.nmis, self.mces),
            n=n,
        )
        if done:
            self.chronicle.tally.add(event.reason, event.isa, done, self.node.now_ns() - begin_ns)
        if left is Left.LOOKING:
            # The page is where the step functions are after publishing ENTER: bring the state there, and look.
            self.step(core.FAST_EXIT)
            for _ in range(3):
                self.step(core.PERFORMED)
        if self.exit is event and done:
            self.exit = None
        return done

    def fast_exit_done(self, event: Exit) -> None:
        """The handler of a fast exit ran: its service time passes here, in the isolated address space."""
        begin_ns = self.node.now_ns()
        until = begin_ns + event.service_ns
        if event.service_ns <= SPIN_NS_MAX:
            self.spin(event.service_ns)
        else:
            while self.node.now_ns() < until and not self.interrupted():
                self.node.turn(until)
        self.chronicle.tally.add(event.reason, event.isa, 1, max(1, self.node.now_ns() - begin_ns))
        self.exit_over()

    def exit_over(self) -> None:
        if self.from_injection:
            self.from_injection = False
            self.injection_done(1)
        self.exit = None

    def interrupted(self) -> bool:
        """Whether an NMI or #MC waits to be taken."""
        return self.words[self.own + NMI] != self.nmis or self.words[self.own + MCE] != self.mces

    def injected_exit(self) -> None:
        """Exits that a client asked for come before those of the source."""
        _, event, left = self.injected[0]
        if self.policy.needs_full(event.full) or event.service_ns:
            if self.retire():
                self.exit = event
                self.from_injection = True
                self.exits(event)
            return
        if self.look_around():
            return
        if self.notebook.full:
            self.notebook.flush()
        done = self.fast(event, min(left, FAST_BATCH))
        if done:
            self.injection_done(done)

    def injection_done(self, n: int) -> None:
        self.injected[0][2] -= n
        if self.injected[0][2] <= 0:
            done = self.injected.popleft()
            self.chronicle.flush(self.state.round)
            self.link.tell({"op": "done", "id": done[0]})

    def in_host(self) -> None:
        """Work in the full address space. A kick is answered meanwhile; the lease is not needed here."""
        if self.words[self.own + REQUEST] != self.state.answered:
            self.step(core.DOORBELL)
            return
        event = self.exit
        if self.until_ns == HOST_BEGINS:
            self.until_ns = self.node.now_ns() + (event.service_ns if event is not None else 0)
        left_ns = self.until_ns - self.node.now_ns()
        if left_ns > SPIN_NS_MAX:
            self.node.turn(self.until_ns)
            return
        if left_ns > 0:
            self.spin(left_ns)
        halts = event is not None and event.wake_ns > 0
        if event is not None:
            self.chronicle.full_exit(event, self.state.round)
            self.until_ns = self.node.now_ns() + event.wake_ns
            self.exit_over()
        self.step(core.HALT if halts else core.WORKED)

    def waiting(self) -> None:
        """Nothing to do but to be told: orders, doorbells, time-outs."""
        phase, state = self.state.phase, self.state
        kicked = self.words[self.own + REQUEST] != state.answered
        if phase is Phase.HELD:
            if kicked or not self.page.holders(self.siblings):
                self.step(core.DOORBELL)
                return
        elif kicked:
            self.step(core.DOORBELL)
            return
        now = self.node.now_ns()
        due = None
        if phase is Phase.HALTED:
            if now >= self.until_ns or self.injected:
                self.step(core.RUNNABLE)
                return
            due = self.until_ns
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
            self.source = self.make_source(after.vm)
            self.exit = None
            self.exhausted = False
        self.chronicle.ordered(before, after, order, cause)

    def make_source(self, vm: int) -> Source | None:
        if vm == 0:
            return None
        from asid.guest import make_source

        config = self.birth.config
        return make_source(
            config.vm[vm - 1].guest,
            vm=vm,
            vcpu=self.vcpu[1],
            seed=config.seed,
            base_dir=_path(self.birth.base_dir),
            pace=config.pace.mode,
            scale=1.0 / config.pace.scale,  # a speed-up here, a factor of durations there
        )

    def on_link(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "exit":
            event = Exit(0, message["reason"], message["isa"], message["service_ns"], message["full"], 0)
            self.injected.append([message["id"], event, message["n"]])
        elif op == "vcpu":
            self.vcpu = (message["vm"], message["vcpu"])
            self.link.tell({"op": "done", "id": message["id"]})
        elif op == "policy":
            self.set_policy(message["name"], message["kick"])
            self.link.tell({"op": "done", "id": message["id"]})
        elif op == "flush":
            self.chronicle.flush(self.state.round)
            self.link.tell({"op": "done", "id": message["id"]})

    def on_tally(self) -> None:
        self.chronicle.flush(self.state.round)
        self.notebook.flush()
        self.node.set_timer("tally", TALLY_NS, self.on_tally)


def _places(birth: Birth, target: str) -> tuple[tuple[int, int], ...]:
    from asid.targets import resolve

    return resolve(target, birth.config.topology)


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


def hyperthread_main(birth: Birth) -> None:
    """Entry of a hyperthread process. Ends without clean-up: the ring and the page are the daemon's."""
    prepare_child(f"asid: {birth.name} hyperthread")
    try:
        Hyperthread(birth).run()
    except ParentGone:
        os._exit(0)
    os._exit(0)
