"""A coordinator whose steps come in an order that a script imposes; the counterpart of `directed_hyperthread`.

What comes to it is kept until the script says that it reads it, and what its gate decides is performed an action at a
time, when the script says so. Numbers of kicks, requests and rounds are its own: a report is known by its sender and
by what it says.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from asid.core import gate
from asid.core.events import Action, Do, Report, Timer
from asid.core.gate import Ev
from asid.live.birth import Birth
from asid.live.coordinator import Coordinator, identity
from asid.live.node import ring_doorbell
from asid.live.page import ICR, PENDING, base_of
from asid.live.turns import POLL_NS, Turns, step_at, told_where_astray
from asid.script import BORN, COORDINATOR, DELIVERS, DOES, GETS, KILLED, LOST, STALE, Astray, Step, named

AT_ONCE: Final = (Do.ORDER, Do.BURIED)  # what is said and comes first is said at once
BY: Final = "schedule"  # who holds the gate
ANSWERED: Final = ("gate",)  # what the daemon asks and changes nothing


class DirectedCoordinator(Coordinator):
    """Plays its steps, then lives on."""

    def __init__(self, birth: Birth) -> None:
        script = birth.script
        assert script is not None
        self.playing = True
        self.todo: deque[Action] = deque()  # decided, and not performed yet
        self.inbox: dict[tuple[int, int], deque[tuple[Report, int]]] = {}  # by hyperthread and life: report and cause
        self.connected: set[bytes] = set()
        self.kept: list[dict[str, Any]] = []  # messages of the daemon for later
        self.script = script
        super().__init__(birth)
        self.spec = msgspec.convert(script.gate_spec, gate.Spec)
        self.ahead.forget()
        bells = tuple(bell.fd for bell in birth.doorbells)
        self.turns = Turns(script, COORDINATOR, self.node, self.page, bells, POLL_NS)
        self.events: dict[str, Callable[[Step], object]] = {
            DOES: lambda step: self.do_next(),
            BORN: self.meet,
            LOST: self.lose,
            GETS: self.get,
            STALE: self.hear_stale,
            DELIVERS: self.deliver_bus,
            Ev.REPORT.name: self.hear_report,
            Ev.DEAD.name: self.hear_death,
            Ev.TIMER.name: self.time_out,
            Ev.HOLD.name: lambda step: self.hold(BY, BY),
            Ev.RELEASE.name: lambda step: self.release(BY, BY),
        }

    def run(self) -> None:
        told_where_astray(self.play, self.link)
        self.go_on()
        super().run()

    def play(self) -> None:
        """Take every turn of this process."""
        while (step := self.turns.wait()) is not None:
            if step.event == KILLED:
                self.notebook.flush()
                self.turns.next()
                os.kill(os.getpid(), signal.SIGKILL)
            self.events.get(step.event, self.happens)(step)
            while self.todo and self.todo[0].do in AT_ONCE and step.event != GETS:
                self.do_next()
            left = tuple(named(action) for action in self.todo)
            if left != step.left:
                raise Astray(f"to do: {', '.join(step.left) or 'nothing'}", f"to do: {', '.join(left) or 'nothing'}")
            self.notebook.flush()
            self.turns.check(step)
            self.turns.next()

    def go_on(self) -> None:
        """Behind the last step: do what was left, hear what was kept, and be as any other coordinator."""
        self.playing = False
        while self.todo:
            self.do_next()
        for reports in self.inbox.values():
            for report, self.cause in reports:
                self.hear(report)
        for message in self.kept:
            self.on_link(message)

    # --- what comes is kept -------------------------------------------------------------------------------

    def perform(self, actions: tuple[Action, ...]) -> None:
        if self.playing:
            self.todo.extend(
                action for action in actions if action.do is not Do.TIMER and not self.is_of_nobody(action)
            )
        else:
            super().perform(actions)

    def is_of_nobody(self, action: Action) -> bool:
        """Whether it is about the dead where the script has nobody: its core may be narrower than any that there is."""
        return action.do in (Do.WIPE, Do.BURIED) and int(action.a) >= self.script.siblings  # type: ignore[arg-type]

    def do_next(self) -> None:
        if not self.todo:
            raise Astray("something to do", "nothing")
        super().perform((self.todo.popleft(),))

    def hear(self, report: Report) -> None:
        if self.playing:
            self.inbox.setdefault((report.ht, report.inc), deque()).append((report, self.cause))
        else:
            super().hear(report)

    def ask_again(self, sender: bytes) -> None:
        self.connected.add(sender)
        if not self.playing:
            super().ask_again(sender)

    def on_link(self, message: dict[str, Any]) -> None:
        if not self.playing or message["op"] in ANSWERED:
            super().on_link(message)
        else:
            self.kept.append(message)

    def resume(self, attached: tuple[int, ...]) -> None:
        """Come back in the turn that the script has for it, knowing of the vCPUs that the script has detached."""
        step = step_at(self.script, self.words)
        if step is not None and step.who == COORDINATOR and step.event == BORN:
            attached = (*step.vms, *attached[len(step.vms) :])
        super().resume(attached)

    # --- events -------------------------------------------------------------------------------------------

    def happens(self, step: Step) -> None:
        """What a client or the daemon tells it: DETACH, ATTACH, STOP."""
        vm = step.vms[step.ht] if step.event == Ev.ATTACH.name else 0
        self.cause = 0
        self.step(gate.Event(Ev[step.event], ht=step.ht, vm=vm))

    def meet(self, step: Step) -> None:
        """Orders reach only who is connected again."""
        peers = {identity(ht, inc) for ht, inc in enumerate(self.birth.living) if inc}
        self.turns.until(lambda: peers <= self.connected, "every hyperthread that lives, connected again")

    def lose(self, step: Step) -> Report:
        """Take the oldest report of a sender off the line. What it said to a dead coordinator is none."""
        reports = self.inbox.setdefault((step.ht, step.inc), deque())

        def came() -> bool:
            while reports and reports[0][0].coord < step.coord:
                reports.popleft()
            return bool(reports)

        self.turns.until(came, f"a report of h{step.ht}, {step.word}")
        report, self.cause = reports.popleft()
        if report.said.name != step.word:
            raise Astray(f"the report {step.word} of h{step.ht}", f"the report {report.said.name}")
        return report

    def get(self, step: Step) -> None:
        def came() -> bool:
            reports = self.inbox.get((step.ht, step.inc), ())
            return sum(report.coord == step.coord for report, _ in reports) >= step.number

        self.turns.until(came, f"{step.number} reports of h{step.ht}")

    def hear_report(self, step: Step) -> None:
        super().hear(self.lose(step))

    def deliver_bus(self, step: Step) -> None:
        """The bus, for a sender that is dead: it needs no process, and the live one's stands for it."""
        targets = self.words[base_of(step.ht) + ICR]
        for target in range(self.birth.siblings):
            if targets >> target & 1:
                self.words[base_of(target) + PENDING] = 1
                ring_doorbell(self.birth.doorbells[target].fd)
        self.words[base_of(step.ht) + ICR] = 0

    def hear_stale(self, step: Step) -> None:
        """A report to the coordinator before. It may have died with that one; what it says counts for nothing."""
        self.drop("of another life")
        self.perform(gate.resync_again(self.state, step.ht, step.inc, step.coord))

    def hear_death(self, step: Step) -> None:
        def told() -> list[dict[str, Any]]:
            return [message for message in self.kept if message["op"] == "dead" and message["ht"] == step.ht]

        self.turns.until(lambda: bool(told()), f"the death of h{step.ht}")
        message = told()[0]
        self.kept.remove(message)
        super().on_link(message)

    def time_out(self, step: Step) -> None:
        timer = Timer[step.word]
        m = self.state.members[step.ht]
        key = {Timer.STICKY: m.granted, Timer.RESYNC: m.inc, Timer.TURN: 0}.get(timer, m.kicked)
        self.cause = 0
        self.step(gate.Event(Ev.TIMER, timer=timer, ht=step.ht, key=key))
