"""A simulated machine whose cores each play a script; the counterpart of `asid.live.directed_daemon`.

Rule 1. Virtual time follows the order of the script: one step after another, whoever takes it. Costs decide the stamps
        and nothing else.
Rule 2. An IPI and a message are there as soon as they were sent; when they are taken is a step of its own.
Rule 3. After each step the words that the siblings share are compared with the script. A core that goes another way
        says so, takes no more steps, and is stopped in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asid import policies
from asid.core import gate
from asid.core import hyperthread as core
from asid.core.events import Order, Report
from asid.core.hyperthread import HyperthreadState
from asid.core.policies.base import Policy
from asid.errors import ProtocolFault
from asid.script import BORN, COORDINATOR, Astray, Line, Script, Step, beside, line_words, named
from asid.sim.core import KILLED, Core, GuestOf, Injection
from asid.sim.costs import Costs
from asid.sim.directed_gate import DirectedGate
from asid.sim.directed_hyperthread import DirectedHyperthread
from asid.sim.hyperthread import Hyperthread
from asid.sim.machine import Machine
from asid.sim.words import Page, Words

if TYPE_CHECKING:
    from asid.config import Config, Loaded
    from asid.mm.isolated import Isolated

STEP_NS: Final = 1  # a step that takes no time by itself: stamps tell the order
ROUNDS: Final = 100  # of a circle, within the time for which it is kept going

READY: Final = named(core.send(core.SAID_READY))


class DirectedCore(Core):
    """Plays its script, then stops in order."""

    def __init__(
        self, script: Script, config: Config, policy: Policy, number: int, costs: Costs, guest_of: GuestOf,
        isolated: Mapping[int, Isolated],
    ) -> None:  # fmt: skip
        super().__init__(config, policy, number, costs, guest_of, isolated, runs=False, figures=False)
        self.script = script
        self.playing = True
        self.found: dict[str, Any] = {}  # what it came to: a core of played.json
        self.siblings = script.siblings
        self.page = Page(tuple(Words() for _ in range(script.siblings)))
        self.hts = [None] * script.siblings
        self.vcpus = self.vcpus[: script.siblings]
        self.gate: DirectedGate = DirectedGate(self, msgspec.convert(script.gate_spec, gate.Spec), script.vms)

    def play(
        self, duration_ns: int, injections: tuple[Injection, ...], *, until_exhausted: bool = False
    ) -> Iterator[int]:  # fmt: skip
        """Play the script. Nothing else decides when it ends."""
        self.daemon.note("spawn", {"what": "coordinator", "pid": 0, "inc": 1}, ht=-1)
        for ht in range(self.siblings):
            self._bear(ht)
            born = self._living(ht)
            born.do(born.next_of(READY))
        taken = 0
        astray: dict[str, Any] | None = None
        for number in self._order():
            step = self.script.steps[number]
            if self._ending:
                break
            try:
                self._take(step)
            except Astray as found:
                astray = {"expected": found.expected, "found": found.found}
            except (ProtocolFault, AssertionError) as refused:
                found_words = f"{type(refused).__name__}: {refused}"
                astray = {"expected": "a step that the protocol allows", "found": found_words}
            if astray is not None:
                astray = {"step": step.at, "text": step.text, **astray}
                break
            taken = max(taken, step.at)
            yield self.agenda.now_ns
        if self.script.cycle < 0 and astray is None:
            self.passes(self.script.keeps_ns)
        self._look(taken, astray)
        self.playing = False
        self.gate.go_on()
        for ht, living in enumerate(self.hts):
            if living is not None:
                self.on_bus(living, living.state)
            self._go(ht)
        yield from self._stop()

    def _order(self) -> Iterator[int]:
        """Yield the steps as they come; a circle goes round until what it keeps waiting has waited too long."""
        count, cycle = len(self.script.steps), self.script.cycle
        yield from range(count)
        if cycle >= 0:
            for _ in range(ROUNDS):
                self.passes(self.script.keeps_ns // ROUNDS)
                yield from range(cycle, count)

    def passes(self, ns: int) -> None:
        """Time passes; nothing happens meanwhile."""
        self.agenda.now_ns += max(ns, STEP_NS)

    def tick(self) -> int:
        """Return a time that is nobody else's: what the gate tells in one step it tells one after another."""
        if self.playing:
            self.passes(STEP_NS)
        return self.agenda.now_ns

    def _take(self, step: Step) -> None:
        self.passes(STEP_NS)
        if step.who == COORDINATOR:
            self.gate.play(step)
        elif step.event == BORN:
            self._again(step)
        else:
            self._living(step.who).play(step)
        for ht, line in enumerate(step.after):
            found = self.line(ht)
            if not line.mode:
                found = msgspec.structs.replace(found, mode="")
            if found != line:
                raise Astray(f"h{ht} {line_words(line)}", f"h{ht} {line_words(found)}")

    def _again(self, step: Step) -> None:
        if self.hts[step.who] is not None:
            raise Astray(f"h{step.who} dead", "it lives")
        self._bear(step.who)
        born = self._living(step.who)
        for name in step.actions:
            born.do(born.next_of(name))

    def _living(self, ht: int) -> DirectedHyperthread:
        found = self.hts[ht]
        if found is None:
            raise Astray(f"h{ht} alive", "it is dead")
        assert isinstance(found, DirectedHyperthread)
        return found

    def _look(self, taken: int, astray: dict[str, Any] | None) -> None:
        """Note where everybody stands after the last step."""
        hts = []
        for ht in range(self.siblings):
            line, living = self.line(ht), self.hts[ht]
            vm = 0 if living is None else living.state.vm
            insns = living.insns if isinstance(living, DirectedHyperthread) else 0
            hts.append({"name": f"c{self.number}h{ht}", "vm": vm, "insns": insns, **msgspec.structs.asdict(line)})
        together = beside([(row["mode"], row["vm"], row["pending"]) for row in hts])
        self.found = {
            "core": self.number, "steps": taken, "of": self.script.length, "hts": hts, "beside": together,
        }  # fmt: skip
        said = "; ".join(together) or "nobody is beside whom it must not be beside"
        if astray is not None:
            self.found["astray"] = astray
            said = f"cannot go on: expected {astray['expected']}, found {astray['found']}"
        self.daemon.note("mark", {"text": f"step {taken} of {self.script.length}: {said}"}, ht=-1)

    def line(self, ht: int) -> Line:
        """Return what the words show of a hyperthread."""
        words = self.page.hts[ht]
        return Line(words.mode.name, words.pending, bool(words.flag), words.depth)

    # --- what the script says, instead of the configuration -------------------------------------------------

    def new_hyperthread(self, ht: int) -> Hyperthread:
        return DirectedHyperthread(self, ht, self._incs[ht], self.policy)

    def spec_of(self, ht: int, policy: Policy) -> core.Spec:
        others = tuple(other for other in range(self.script.siblings) if other != ht)
        return msgspec.convert({**self.script.ht_spec, "ht": ht, "siblings": others}, core.Spec)

    # --- what is under way is there at once ------------------------------------------------------------------

    def tell_gate(self, report: Report, cause: int) -> None:
        if not self.playing:
            super().tell_gate(report, cause)
            return
        self.gate.keep(report, cause)

    def order(self, order: Order, cause: int) -> None:
        if not self.playing:
            super().order(order, cause)
            return
        target = self.hts[order.ht]
        if target is not None and target.state.inc == order.inc:
            target.orders.append((order, cause))

    def wake(self, ht: int) -> None:
        if not self.playing:
            super().wake(ht)

    def pend(self, ht: int) -> None:
        if self.playing:
            self._pending(ht)
        else:
            super().pend(ht)

    def deliver(self, target: int, by: Hyperthread, state: HyperthreadState) -> None:
        if not self.playing:
            super().deliver(target, by, state)
            return
        by.chronicle.ipi(target, state, by.spec)
        self._pending(target)

    def on_bus(self, by: Hyperthread, state: HyperthreadState) -> None:
        if not self.playing:
            super().on_bus(by, state)

    def off_bus_of_dead(self, ht: int) -> None:
        """The bus needs no process: what a dead hyperthread has sent is delivered all the same."""
        words = self.page.hts[ht]
        targets, words.apic = words.apic.bus, words.apic._replace(bus=0)
        for target in range(self.siblings):
            if targets >> target & 1:
                self._pending(target)

    def _go(self, ht: int) -> None:
        if not self.playing:
            super()._go(ht)

    # --- deaths -----------------------------------------------------------------------------------------------

    def kill(self, ht: int) -> None:
        self._dies(ht, KILLED)

    def _dies(self, ht: int, status: int) -> None:
        words = self.page.hts[ht]
        bus = words.apic
        super()._dies(ht, status)
        if self.playing:
            words.apic = bus

    def tell_death(self, ht: int, inc: int) -> None:
        if self.playing:
            self.gate.deaths.append((ht, inc))
        else:
            super().tell_death(ht, inc)

    def buried(self, ht: int) -> None:
        if not self.playing:
            super().buried(ht)

    def injection_done(self, ht: int, id_: int, result: str, why: str = "") -> None:
        """Nobody has injected anything: what comes from outside is the script's."""


class DirectedMachine(Machine):
    """A machine with a script for each of its cores."""

    def __init__(
        self, scripts: Sequence[Script], loaded: Loaded, costs: Costs, policy: Policy, said: Mapping[str, str],
        isolated: Mapping[int, Isolated],
    ) -> None:  # fmt: skip
        super().__init__(loaded, costs, policy, said, isolated)
        assert len(scripts) == loaded.config.machine.cores, "a script a core"
        self.scripts = tuple(scripts)

    @property
    def found(self) -> list[dict[str, Any]]:
        """What each core came to, as in played.json; of those that were played to their end."""
        return [core.found for core in self.cores if isinstance(core, DirectedCore) and core.found]

    def new_core(self, number: int, guest_of: GuestOf) -> Core:
        script = self.scripts[number]
        return DirectedCore(script, self.config, self.policy, number, self.costs, guest_of, self.isolated)

    def _begin(self) -> dict[str, Any]:
        policy = self.config.policy
        would = policies.make(policy.name, policy.kick).flush
        unflushed = would and not all(script.ht_spec["flush"] for script in self.scripts)
        return {**super()._begin(), **({"flushes": False} if unflushed else {})}
