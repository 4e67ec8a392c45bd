"""A hyperthread whose steps come in an order that a script imposes: the same process, page, sockets and step functions.

Nothing happens to it but what the script says: its guest exits, its work ends and its NMIs come at their steps, and no
timer fires. It checks at each step that the step functions want what the script says. Behind the last step it goes on
as any other hyperthread does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

import msgspec

from asid.core import hyperthread as core
from asid.core.events import Action, Mode, Order, Seen
from asid.core.hyperthread import Phase, What
from asid.guest.base import Exit
from asid.live.birth import Birth
from asid.live.hyperthread import Hyperthread
from asid.live.node import NEVER_NS
from asid.live.page import PENDING, REQUEST
from asid.live.turns import POLL_NS, SLEEP_NS, Turns, told_where_astray
from asid.live.vcpu import HOST_BEGINS
from asid.script import BORN, DELIVERS, DOES, ENDS, GETS, KILLED, LOST, READS, RETIRES, Astray, Step, named

FAST: Final = Exit(0, "CPUID", "vmx", 0, False)
FULL: Final = Exit(0, "IO_INSTRUCTION", "vmx", 0, True)
IRQ: Final = Exit(0, "EXTERNAL_INTERRUPT", "vmx", 0, True)
TIMER: Final = Exit(0, "PREEMPTION_TIMER", "vmx", 0, False)  # an interrupt whose handler is mapped
HALTS: Final = Exit(0, "HLT", "vmx", 0, True)


class DirectedHyperthread(Hyperthread):
    """Plays its steps, then lives on."""

    def __init__(self, birth: Birth) -> None:
        super().__init__(birth)
        script = birth.script
        assert script is not None
        self.script = script
        own = {"ht": birth.ht, "siblings": tuple(o for o in range(script.siblings) if o != birth.ht)}
        self.spec = msgspec.convert({**script.ht_spec, **own}, core.Spec)
        self.ahead.forget()
        bells = tuple(bell.fd for bell in birth.doorbells)
        self.turns = Turns(script, birth.ht, self.node, self.page, bells, SLEEP_NS)
        self.glimpse: dict[str, int] = {}  # what was read of a look that is under way, by word
        self.events: dict[str, Callable[[Step], object]] = {
            DOES: lambda step: None,
            BORN: lambda step: None,
            LOST: self.lose,
            GETS: self.get,
            READS: self.read,
            RETIRES: lambda step: self.retire(),
            DELIVERS: lambda step: self.deliver_bus(),
            What.ORDER.name: self.take_order,
            What.RETIRED.name: self.first_instruction,
            What.EXIT.name: self.exit,
            What.WORKED.name: self.worked,
            What.RUNNABLE.name: self.woken,
            What.NMI.name: self.interrupted_by,
            What.MCE.name: self.interrupted_by,
            What.IRQ.name: self.irq,
        }

    def run(self) -> None:
        if self.birth.ht >= self.script.siblings:
            self.finish()  # the script's core is narrower than any that there is: it has no such sibling
            return
        told_where_astray(self.play, self.link)
        self.glimpse = {}  # a look that the script has left half way begins anew
        self.asked_ns = self.node.now_ns()  # its patience begins here: who would ask anew misses the answer
        super().run()

    def send_outbox(self) -> None:
        """What could not be sent yet is tried again, for the loop that would do so does not run."""
        super().send_outbox()
        if self.outbox:
            self.node.set_timer("outbox", POLL_NS, self.send_outbox)

    def play(self) -> None:
        """Take every turn of this process."""
        if self.birth.inc == 1:  # a later one is born in its turn
            self.perform(self.next_of("SEND READY"))
        while (step := self.turns.wait()) is not None:
            if step.event in (KILLED, ENDS):
                self.go(step)
                return
            self.events.get(step.event, self.happens)(step)
            for name in step.actions:
                self.perform(self.next_of(name))
            self.turns.check(step)
            self.turns.next()

    def next_of(self, name: str) -> Action:
        """Return the next action. Raise Astray when it is not the one of that name."""
        action = core.next_action(self.state)
        if action is None or named(action) != name:
            raise Astray(f"the action {name}", f"the action {named(action)}" if action else "nothing to be done")
        return action

    def go(self, step: Step) -> None:
        """The last step of this process. The next one's turn may come before it is gone: it takes none any more."""
        if step.event == ENDS:
            self.turns.next()
            return  # its own loop ends it
        self.chronicle.flush(self.state.round)
        self.notebook.flush()
        self.turns.next()
        os.kill(os.getpid(), signal.SIGKILL)

    # --- events -------------------------------------------------------------------------------------------

    def happens(self, step: Step) -> None:
        """Whatever has no more to it than the event."""
        self.step(core.Event(What[step.event], full=step.full, idle=step.idle))

    def take_order(self, step: Step) -> None:
        order, cause = self.lose(step)
        if order.bid.name != step.word:
            raise Astray(f"the order {step.word}", f"the order {order.bid.name}")
        self.on_order(order, cause)

    def lose(self, step: Step) -> tuple[Order, int]:
        """Take the oldest order off the line. Those that a dead coordinator had not sent any more are none."""

        def came() -> bool:
            while self.orders and self.orders[0][0].coord < step.coord:
                self.orders.popleft()
            return bool(self.orders)

        self.turns.until(came, f"an order, {step.word}")
        return self.orders.popleft()

    def get(self, step: Step) -> None:
        def came() -> bool:
            return sum(order.coord == step.coord for order, _ in self.orders) >= step.number

        self.turns.until(came, f"{step.number} orders of coordinator {step.coord}")

    def read(self, step: Step) -> None:
        """One word of a look. With the last the look is performed: see `look`."""
        words, own = self.words, self.own
        if step.word.startswith("h"):
            other = int(step.word[1:])
            self.glimpse[step.word] = self.page.holders((other,)) or self.is_to_come(other)
        else:
            self.glimpse[step.word] = words[own + (PENDING if "pending" in step.word else REQUEST)]

    def look(self) -> Seen:
        seen = super().look()
        read, self.glimpse = self.glimpse, {}
        if not read:
            return seen
        holders = any(value for word, value in read.items() if word.startswith("h")) or self.rendezvous.missed()
        return seen._replace(pending=read["its pending bit"] != 0, request=read["its request word"], holders=holders)

    def retire(self) -> None:
        if self.state.mode is not Mode.GUEST:
            raise Astray("a guest instruction", f"another mode: {self.state.mode.name}")
        if not self.vcpu.retire():
            raise Astray("a guest instruction", "the pending bit in its way")

    def first_instruction(self, step: Step) -> None:
        self.retire()
        self.step(core.RETIRED)

    def exit(self, step: Step) -> None:
        self.vcpu.retire()  # an exit needs no instruction to retire: with the pending bit set, none does
        if step.full:
            self.vcpu.exit, self.vcpu.until_ns = HALTS if step.idle else FULL, HOST_BEGINS
            self.chronicle.wants_host(self.vcpu.exit.reason)
        else:
            self.vcpu.exit = FAST
        self.happens(step)

    def worked(self, step: Step) -> None:
        if self.vcpu.between is not None:
            exit_, _, _ = self.vcpu.between
            self.vcpu.between = (exit_, NEVER_NS, step.full)  # it sleeps on if the script says so, whatever the clock
            self.vcpu.interrupt_over()
            return
        self.chronicle.full_exit(HALTS if step.full else self.vcpu.exit or FULL, self.state.round)
        self.vcpu.exit, self.vcpu.until_ns = None, self.node.now_ns()
        self.step(core.HALT if step.full else core.WORKED)

    def woken(self, step: Step) -> None:
        self.chronicle.wants_guest()
        self.step(core.RUNNABLE)

    def irq(self, step: Step) -> None:
        """An external interrupt: a leave, or a frame of its own where it hits. The script says which."""
        state = self.state
        self.irqs.raise_line(0, IRQ if step.full else TIMER, 1)
        self.irqs.begun = (self.node.now_ns(), state.mode)
        if state.phase is Phase.HOSTING:
            self.happens(step)
            self.irqs.handled(full=False)
            return
        if step.full:
            self.chronicle.wants_host(IRQ.reason)
            self.vcpu.interrupted(IRQ, halted=state.phase is Phase.HALTED)
        self.happens(step)

    def interrupted_by(self, step: Step) -> None:
        """The hardware's own NMI or #MC: nobody has injected it."""
        self.chronicle.interrupt_begins(step.event.lower(), 0, 0, self.state)
        self.step(core.Event(What[step.event]))
