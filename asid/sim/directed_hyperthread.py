"""A simulated hyperthread whose steps come in an order that a script imposes: the same step functions and words.

The counterpart of `asid.live.directed_hyperthread`. While the script is played nothing comes by itself: no timer, no
exit, no order; a step that takes time moves the core's clock on, and nobody else moves meanwhile. Behind the last step
it goes on as any other simulated hyperthread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from asid.core import hyperthread as core
from asid.core.events import Action, Do, Mode, Order, Seen
from asid.core.hyperthread import Phase, What
from asid.core.policies.base import Policy
from asid.guest.base import Exit
from asid.script import (
    BORN,
    DELIVERS,
    DOES,
    ENDS,
    GETS,
    KILLED,
    LOST,
    READS,
    RETIRES,
    Astray,
    Step,
    named,
)
from asid.sim.hyperthread import Hyperthread
from asid.sim.vcpu import Injected

if TYPE_CHECKING:
    from asid.sim.directed import DirectedCore

FAST: Final = Exit(0, "CPUID", "vmx", 0, False)
FULL: Final = Exit(0, "IO_INSTRUCTION", "vmx", 0, True)
IRQ: Final = Exit(0, "EXTERNAL_INTERRUPT", "vmx", 0, True)
TIMER: Final = Exit(0, "PREEMPTION_TIMER", "vmx", 0, False)  # an interrupt whose handler is mapped
HALTS: Final = Exit(0, "HLT", "vmx", 0, True)
NOBODY: Final = 0  # number of an injection: the hardware's own


class DirectedHyperthread(Hyperthread):
    """Takes its steps when it is told to, then lives on."""

    def __init__(self, of: DirectedCore, ht: int, inc: int, policy: Policy) -> None:
        super().__init__(of, ht, inc, policy)
        self.directed = of
        self.insns = 0  # guest instructions that the script had it run
        self.glimpse: dict[str, int] = {}  # what was read of a look that is under way, by word
        self.events: dict[str, Callable[[Step], object]] = {
            DOES: lambda step: None,
            BORN: lambda step: None,
            GETS: lambda step: None,  # what was sent is there at once
            LOST: self.lose,
            READS: self.read,
            RETIRES: lambda step: self.retire(),
            DELIVERS: lambda step: of.off_bus(self, self.state),
            What.ORDER.name: self.take_order,
            What.RETIRED.name: self.first_instruction,
            What.EXIT.name: self.exits,
            What.WORKED.name: self.worked,
            What.RUNNABLE.name: self.woken,
            What.NMI.name: self.interrupted_by,
            What.MCE.name: self.interrupted_by,
            What.IRQ.name: self.irq,
        }

    def go(self) -> None:
        if not self.directed.playing:
            super().go()

    def play(self, step: Step) -> None:
        """Take one step. Raise Astray when it cannot be taken as the script has it."""
        if step.event == KILLED:
            self.directed.kill(self.ht)
            return
        if step.event == ENDS:
            if self.state.phase is not Phase.STOPPED:
                raise Astray("its end", f"phase {self.state.phase.name}")
            self.directed.ended(self.ht)
            return
        self.events.get(step.event, self.happens)(step)
        for name in step.actions:
            self.do(self.next_of(name))

    def next_of(self, name: str) -> Action:
        """Return the next action. Raise Astray when it is not the one of that name."""
        action = core.next_action(self.state)
        if action is None or named(action) != name:
            raise Astray(f"the action {name}", f"the action {named(action)}" if action else "nothing to be done")
        return action

    def do(self, action: Action) -> None:
        """Perform an action: its time passes for the whole core."""
        do, mode = action.do, self.state.mode
        if do is Do.FLUSH:
            self._flushes = self.core.page.visits()
        if do is Do.WORK:
            ns = self._handler_ns()
        elif do is Do.SET_MODE:
            ns = self._mode_ns(mode, Mode(action.a))  # type: ignore[arg-type]
        else:
            ns = self._ns_of(action)
        if mode is Mode.GUEST:  # a mode is left when its last instruction has run
            self._effect(action)
            self.directed.passes(ns)
        else:
            self.directed.passes(ns)
            self._effect(action)

    def _handler_ns(self) -> int:
        if self.state.frames:
            return self.costs.mce if self.state.frames[-1].what is What.MCE else self.costs.nmi
        exit_ = self.vcpu.exit or FAST
        self.vcpu.exit = None
        self.chronicle.tally.add(exit_.reason, exit_.isa, 1, self.costs.message)
        return self.costs.message

    # --- events -------------------------------------------------------------------------------------------

    def happens(self, step: Step) -> None:
        """Whatever has no more to it than the event."""
        if step.event not in What.__members__:
            raise Astray(step.text, f"no such event: {step.event}")
        self.step(core.Event(What[step.event], full=step.full, idle=step.idle))

    def lose(self, step: Step) -> tuple[Order, int]:
        """Take the oldest order off the line. Those that a dead coordinator had not sent any more are none."""
        while self.orders and self.orders[0][0].coord < step.coord:
            self.orders.popleft()
        if not self.orders:
            raise Astray(f"an order, {step.word}", "none")
        return self.orders.popleft()

    def take_order(self, step: Step) -> None:
        order, cause = self.lose(step)
        if order.bid.name != step.word:
            raise Astray(f"the order {step.word}", f"the order {order.bid.name}")
        self.on_order(order, cause)

    def read(self, step: Step) -> None:
        """One word of a look. With the last the look is performed: see `look`."""
        if step.word.startswith("h"):
            other = int(step.word[1:])
            words = self.core.page.hts[other]
            to_come = self.state.party >> other & 1 and words.arrived < self.state.round
            self.glimpse[step.word] = bool(words.flag or words.depth or to_come)
        else:
            self.glimpse[step.word] = self.words.pending if "pending" in step.word else self.words.request

    def look(self) -> Seen:
        seen = super().look()
        read, self.glimpse = self.glimpse, {}
        if not read or not self.directed.playing:  # a look that the script has left half way begins anew
            return seen
        holders = any(value for word, value in read.items() if word.startswith("h"))
        return seen._replace(pending=read["its pending bit"] != 0, request=read["its request word"], holders=holders)

    def retire(self) -> None:
        if self.state.mode is not Mode.GUEST:
            raise Astray("a guest instruction", f"another mode: {self.state.mode.name}")
        if self.words.pending:
            raise Astray("a guest instruction", "the pending bit in its way")
        self.insns += 1

    def first_instruction(self, step: Step) -> None:
        self.retire()
        self.step(core.RETIRED)

    def exits(self, step: Step) -> None:
        self.insns += self.state.mode is Mode.GUEST and not self.words.pending
        if step.full:
            self.vcpu.exit, self.vcpu.begun = (HALTS if step.idle else FULL), False
            self.chronicle.wants_host(self.vcpu.exit.reason)
        else:
            self.vcpu.exit = FAST
        self.happens(step)

    def worked(self, step: Step) -> None:
        if self.vcpu.between is not None:
            exit_, left_ns, _ = self.vcpu.between
            self.vcpu.between = (exit_, left_ns, step.full)
            self.vcpu.awake_ns = (
                self.agenda.now_ns + step.full
            )  # it sleeps on if the script says so, whatever the clock
            self.vcpu.interrupt_over()
            return
        self.chronicle.full_exit(HALTS if step.full else self.vcpu.exit or FULL, self.state.round)
        self.vcpu.exit = None
        self.step(core.HALT if step.full else core.WORKED)

    def woken(self, step: Step) -> None:
        self.chronicle.wants_guest()
        self.step(core.RUNNABLE)

    def irq(self, step: Step) -> None:
        """An external interrupt: a leave, or a frame of its own where it hits. The script says which."""
        state = self.state
        self.irqs.waiting.append(Injected(NOBODY, IRQ if step.full else TIMER, 1))
        self.irqs.begun = (self.agenda.now_ns, state.mode)
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
        what = step.event.lower()
        self.chronicle.interrupt_begins(what, NOBODY, 0, self.state)
        self.lines[what].handled.append([NOBODY])
        self.step(self.lines[what].event)
