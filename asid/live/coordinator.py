"""The coordinator process of one core: performs what `asid.core.gate` decides.

One loop, one event at a time; all actions of a decision are performed before the next event is looked at. No send
blocks. What the gate believes comes from messages alone; the page is written here, and read only for records.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from asid import policies, wire
from asid.core import gate, mce
from asid.core.events import Action, Do, Mode, Order, Report, Timer
from asid.core.gate import Belief, Ev
from asid.core.gate_chronicle import Note, notes_of, vm_of
from asid.core.guarantees import of_gate
from asid.core.limits import REKICK_PART, RESYNC_DEADLINE_NS, STICKY_DEADLINE_NS
from asid.live import sockets
from asid.live.ahead import QUIET_NS, Ahead, likely_of_gate
from asid.live.birth import Birth
from asid.live.link import Link
from asid.live.node import Frames, Node, ParentGone, prepare_child, ring_doorbell
from asid.live.notebook import Notebook
from asid.live.page import (
    ARRIVED,
    BROADCAST,
    CALLIN,
    DEPTH,
    FLAG,
    ICR,
    ICR2,
    INSNS,
    KICK_INSNS,
    KICK_NUMBER,
    KICKS,
    MODE,
    PENDING,
    REQUEST,
    ROUND,
    TAINT,
    CorePage,
    base_of,
)
from asid.live.ring import Ring
from asid.live.traps import RECEIVE, step_name, trap_of

LATE_NS = 10_000_000  # a timer that fires this much too late says that the process was not running
LATE_TIMES_MAX = 2  # in a row and for one kick; a process that is always late has to judge all the same
KICKS_A_LIFE = 1 << 32  # kick numbers of one coordinator; the next begins above

Decision = tuple[gate.GateState, tuple[Action, ...], list[Note]]

DO_ORDER = Do.ORDER  # an attribute of an enum costs several times what a name of the module does


class Coordinator:
    """The gate of one core."""

    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.node = Node()
        self.page = CorePage(birth.page.fd, birth.siblings)
        self.words = self.page.words
        self.notebook = Notebook(Ring(birth.ring.fd), birth.core, -1, birth.inc)
        self.cause = 0
        self.dropped = 0
        kick_ns = birth.config.policy.kick_deadline_ns
        self.after_ns = [0] * len(Timer)
        self.after_ns[Timer.TURN] = birth.config.policy.turn_ns
        self.after_ns[Timer.STICKY] = STICKY_DEADLINE_NS
        self.after_ns[Timer.KICK] = kick_ns
        self.after_ns[Timer.REKICK] = int(kick_ns * REKICK_PART)
        self.after_ns[Timer.RESYNC] = RESYNC_DEADLINE_NS
        self.spec = policies.make(birth.policy, birth.kick).gate_spec()
        self.state = gate.opened(self.spec, birth.inc, birth.siblings, birth.attached)
        self.quiet: list[dict[str, Any]] = []  # policy changes that wait until nobody holds a lease
        self.holders: set[str] = set()  # what holds the gate closed
        self.ahead = Ahead(self.decide, lambda state: likely_of_gate(self.spec, state), lambda decision: decision[0])
        self.trap = trap_of(f"{birth.name}.{birth.inc}")
        self.context = sockets.new_context()
        self.router = sockets.gate_router(self.context, Path(birth.gate_path))
        self.node.watch_parent()
        self.node.add_socket(self.router, self.on_gate)
        self.link = Link(self.node, self.context, birth.link_path, f"{birth.name}.{birth.inc}", self.on_link)
        if not birth.fresh:
            self.resume(birth.attached)
        for what in birth.held:
            self.hold(what, "the coordinator before")
        self.link.tell({"op": "up"})

    def resume(self, attached: tuple[int, ...]) -> None:
        """Come back after a death: know who lives, believe nothing of them, number above the dead one's numbers."""
        kicks = max(self.words[KICKS], self.birth.inc * KICKS_A_LIFE)
        self.words[KICKS] = kicks
        self.state, actions = gate.resumed(
            self.spec, self.birth.inc, self.words[ROUND], self.birth.living, attached, kicks
        )
        self.perform(actions)

    def run(self) -> None:
        while True:
            if self.ahead.ready(self.state):
                self.node.turn()
            elif not self.node.turn(self.node.now_ns() + QUIET_NS):
                while self.ahead.think(self.state) and not self.node.turn(0):
                    pass  # between two thoughts it looks whether there is something to do
            self.notebook.flush()
            if self.quiet:
                self.try_quiet()

    # --- events -------------------------------------------------------------------------------------------

    def step(self, event: gate.Event) -> None:
        before = self.state
        self.state, actions, notes = self.ahead.step(before, event)
        if self.state.round != before.round:
            self.words[ROUND] = self.state.round  # before anybody is told: a successor must not give it out again
        for kind, data, round_, ht in notes:
            self.notebook.note(kind, data, round_, self.cause, ht=ht)
        self.perform(actions)
        if self.state.members is not before.members:
            self.drop_timers(before)

    def decide(self, state: gate.GateState, event: gate.Event) -> Decision:
        after, actions = gate.step(self.spec, state, event)
        broken = of_gate(after, self.spec.host_alone) if self.spec.exclusive else None
        assert broken is None, f"{self.birth.name}: {broken}, after {event}"
        return after, actions, notes_of(state, event, after, actions)

    def on_gate(self, frames: Frames) -> None:
        """A report. An empty frame is a probe: a hyperthread is connected, again if the coordinator came back."""
        if len(frames) != 2:
            self.drop("frames")
            return
        try:
            report, self.cause = wire.decode_report(frames[1], self.birth.core)
        except wire.WireFault:
            if not frames[1]:
                self.ask_again(frames[0])
                return
            self.drop("malformed")
            return
        if report.ht >= self.birth.siblings or frames[0] != identity(report.ht, report.inc):
            self.drop("of another sender")
            return
        self.hear(report)

    def hear(self, report: Report) -> None:
        """Take a report that is what it says it is. One of another life changes nothing (I11)."""
        if not gate.of_this_life(self.state, report):
            self.drop("of another life")
            self.perform(gate.resync_again(self.state, report.ht, report.inc, report.coord))
            return
        if self.trap is not None:
            self.trap(RECEIVE)
        self.step(gate.Event(Ev.REPORT, report=report))

    def ask_again(self, sender: bytes) -> None:
        """Repeat RESYNC to a hyperthread that is connected again and has not been heard."""
        for ht, m in enumerate(self.state.members):
            if sender == identity(ht, m.inc):
                self.perform(gate.resync_again(self.state, ht, m.inc))

    def drop(self, why: str) -> None:
        self.dropped += 1
        self.notebook.note("gate.drop", {"why": why}, self.state.round)

    def on_link(self, message: dict[str, Any]) -> None:
        op = message["op"]
        self.cause = 0
        if op == "dead":
            self.step(gate.Event(Ev.DEAD, ht=message["ht"], inc=message["inc"]))
        elif op == "attach":
            self.step(gate.Event(Ev.ATTACH, ht=message["ht"], vm=message["vm"]))
        elif op == "detach":
            self.step(gate.Event(Ev.DETACH, ht=message["ht"]))
        elif op == "stop":
            self.step(gate.Event(Ev.STOP, ht=message["ht"]))
        elif op == "hold":
            self.hold(message["what"], message["by"])
        elif op == "release":
            self.release(message["what"], message["by"])
        elif op == "quiet":
            self.quiet.append(message)
            return
        elif op == "policy":
            self.spec = policies.make(message["name"], message["kick"]).gate_spec()
            self.state = self.state._replace(turn=0)
            self.ahead.forget()
        if op == "gate":
            self.link.tell({"op": "done", "id": message["id"], "gate": self.describe()})
        elif "id" in message:
            self.link.tell({"op": "done", "id": message["id"]})

    def hold(self, what: str, by: str) -> None:
        """Close the gate for `what`; it stays closed until everything that holds it has let go."""
        self.holders.add(what)
        self.notebook.note("gate.hold", {"by": by}, self.state.round)
        self.step(gate.Event(Ev.HOLD))

    def release(self, what: str, by: str) -> None:
        self.holders.discard(what)
        if self.state.held and not self.holders:
            self.notebook.note("gate.release", {"by": by}, self.state.round)
            self.step(gate.Event(Ev.RELEASE))

    def try_quiet(self) -> None:
        """Tell the daemon once nobody holds a lease, is in HOST, or has a grant under way."""
        if all(m.belief in (Belief.PARKED, Belief.OFFLINE) and not m.kicked for m in self.state.members):
            for message in self.quiet:
                self.link.tell({"op": "done", "id": message["id"]})
            self.quiet.clear()

    def describe(self) -> dict[str, Any]:
        g = self.state
        return {
            "core": self.birth.core,
            "round": g.round,
            "open": g.open,
            "held": g.held,
            "vm": vm_of(self.spec, g),
            "members": [
                {"ht": ht, "belief": m.belief.name, "want": m.want.name, "kicked": m.kicked, "vm": m.attached}
                for ht, m in enumerate(g.members)
            ],
            "dropped": self.dropped,
        }

    # --- actions ------------------------------------------------------------------------------------------

    def perform(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            do = action.do
            if self.trap is not None:
                self.trap(step_name(action))
            if do is DO_ORDER:
                order = action.a
                assert isinstance(order, Order)
                frame = wire.encode_order(self.birth.core, order, self.notebook.last)
                if not sockets.send_nonblocking(self.router, [identity(order.ht, order.inc), frame]):
                    self.drop("undeliverable")  # its death is on the way, or it asks again
            elif do is Do.TIMER:
                self.set_timer(Timer(action.a), action.b)  # type: ignore[arg-type]
            else:
                self.perform_on(do, int(action.a), action.b)  # type: ignore[arg-type]

    def perform_on(self, do: Do, ht: int, number: int) -> None:
        base = base_of(ht)
        words = self.words
        if do is Do.REQUEST:
            if number > words[KICKS]:
                words[KICKS] = number
            words[base + REQUEST] = number
        elif do is Do.PEND:
            self.page.fence()
            words[base + PENDING] = 1
            self.page.fence()
            if words[base + KICK_NUMBER] != words[base + REQUEST]:  # a kick sent again was visible from the first
                words[base + KICK_INSNS] = words[base + INSNS]
                words[base + KICK_NUMBER] = words[base + REQUEST]
            ring_doorbell(self.birth.doorbells[ht].fd)
            for_ht = next((o for o in self.state.queue if o != ht), ht)
            data = {"number": words[base + REQUEST], "for_ht": for_ht}
            self.notebook.note("gate.kick", data, self.state.round, self.cause, ht=ht)
        elif do is Do.WIPE:
            for field in (PENDING, FLAG, DEPTH, ICR2, ICR):
                words[base + field] = 0
            words[base + ARRIVED] = max(words[base + ARRIVED], number)
            words[base + CALLIN] = mce.packed(mce.closed(mce.broadcast_parts(words[base + BROADCAST])[0]))
            words[base + TAINT] += words[base + MODE] & 0xFF == Mode.HOST  # what it loaded until it died
            words[base + MODE] = Mode.OFFLINE
            self.page.fence()
            for other in range(self.birth.siblings):
                ring_doorbell(self.birth.doorbells[other].fd)
        elif do is Do.FENCE:
            self.notebook.note("gate.fence", {"inc": number}, self.state.round, ht=ht)
            self.link.tell({"op": "fence", "ht": ht, "inc": number})
        elif do is Do.BURIED:
            self.link.tell({"op": "buried", "ht": ht, "inc": number})

    def drop_timers(self, before: gate.GateState) -> None:
        """Forget the timers of kicks that were answered and of leases that were used: they would change nothing."""
        for ht, (old, new) in enumerate(zip(before.members, self.state.members, strict=True)):
            if old.kicked and old.kicked != new.kicked:
                self.node.drop_timer((Timer.KICK, gate.key_of(ht, old.kicked)))
                self.node.drop_timer((Timer.REKICK, gate.key_of(ht, old.kicked)))
            if old.belief is Belief.UNKNOWN and new.belief is not Belief.UNKNOWN:
                self.node.drop_timer((Timer.RESYNC, gate.key_of(ht, old.inc)))
            if old.fresh and not new.fresh:
                self.node.drop_timer((Timer.STICKY, gate.key_of(ht, old.granted)))

    def meets(self, ht: int) -> bool:
        """Whether a hyperthread is in a rendezvous of #MC handlers: it hears nobody for as long as that may take."""
        words, base = self.words, base_of(ht)
        callin = mce.unpacked(words[base + CALLIN])
        return callin.order > 0 and not (callin.done and words[base + DEPTH] == 0)

    def set_timer(self, timer: Timer, key: int, late: int = 0, put_off_ns: int = 0) -> None:
        ht, number = key & 0xFF, key >> 8
        after_ns = put_off_ns or self.after_ns[timer]
        if timer is not Timer.TURN and self.node.has_timer((timer, key)):
            return

        due_ns = self.node.now_ns() + after_ns

        def fire() -> None:
            judges = timer in (Timer.KICK, Timer.RESYNC)
            if judges and late < LATE_TIMES_MAX and self.node.now_ns() - due_ns > LATE_NS:
                # It was this process that did not run (stopped, suspended, starved): it judges nobody's silence.
                self.set_timer(timer, key, late + 1)
                return
            if judges and not put_off_ns and self.meets(ht):
                # Once. Whoever is stopped in it is fenced after that, or for its siblings, who missed it.
                self.set_timer(timer, key, late, self.birth.config.mce.timeout_ns)
                return
            self.cause = 0
            self.step(gate.Event(Ev.TIMER, timer=timer, ht=ht, key=number))

        self.node.set_timer((timer, key), after_ns, fire)


def identity(ht: int, inc: int) -> bytes:
    """The routing id of a hyperthread: it names the incarnation, so an order never reaches the next one."""
    return b"ht%d.%d" % (ht, inc)


def made_for(birth: Birth) -> Coordinator:
    """Return the coordinator of a birth: one with a script takes its steps from that."""
    if birth.script is None:
        return Coordinator(birth)
    from asid.live.directed_coordinator import DirectedCoordinator

    return DirectedCoordinator(birth)


def coordinator_main(birth: Birth) -> None:
    """Entry of a coordinator process. When the daemon is dead it also removes what the daemon would have."""
    # Not SIGKILL: it removes what the daemon would have. SIGCONT, so that a stopped one sees that its parent is gone.
    prepare_child(f"asid: {birth.name} coordinator", signal.SIGCONT)
    try:
        made_for(birth).run()
    except ParentGone:
        if birth.instance_root:
            from asid.live.instance import InstancePaths, clear_after

            root = Path(birth.instance_root)
            clear_after(InstancePaths(root.name, root))
        os._exit(0)
