"""What a hyperthread tells the journal: states before and after a step become records. It decides nothing.

ENTER is not recorded, and neither are the short visits to ISOLATED of fast exits: a recorded GUEST interval spans
them. One that does not lead back to guest is recorded when that shows, with the stamp of its beginning. Every change of
mode has the stamp of when it was performed, so the order of causes is the order of stamps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from asid.core.events import Bid, Kick, Mode, Order
from asid.core.hyperthread import WORK, Frame, HyperthreadState, Phase, Spec, What, set_mode
from asid.core.record import bucket_of
from asid.core.tally import Notes, Tally, exit_data
from asid.mm.isolated import Entry

TO_GUEST = (set_mode(Mode.GUEST),)
_NAMES = tuple(mode.name for mode in Mode)
_VIA = {kick: kick.name.lower() for kick in Kick} | {Kick.ACK: "grant", Kick.RENDEZVOUS: "grant"}
_KIND = {kick: kick.name.lower() for kick in Kick}


class Exited(Protocol):
    """What the chronicle asks of an exit. wake_ns: how long a vCPU that halts sleeps, 0 for every other exit."""

    @property
    def reason(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def wake_ns(self) -> int: ...


class Meets(Protocol):
    """What the chronicle asks of the rendezvous of #MC handlers."""

    def record(self, frame: Frame) -> dict[str, Any]: ...


class Eyes(Protocol):
    """What the chronicle may look at on the page."""

    def blocker(self) -> int: ...
    def insns_since(self, number: int) -> int | None: ...


class Chronicle:
    """The records of one hyperthread. now_ns: the engine's clock, which alone stamps them."""

    def __init__(self, notebook: Notes, inc: int, now_ns: Callable[[], int]) -> None:
        self.notebook = notebook
        self.inc = inc
        self.now_ns = now_ns
        self.tally = Tally()
        self.mode = Mode.PARKED  # last recorded
        self.dropped = 0  # frames that were no orders
        self.cause = 0
        self._was_guest = False  # the last look followed an interrupted guest
        # When and in which round a fast exit left guest, while nothing but a way back to guest has followed.
        self._isolated: tuple[int, int] | None = None
        self._granted = False  # the last order was the grant of a leave
        self._wanted_ns = 0
        self._reason = ""
        self._object = ""
        self._asked_ns = self.now_ns()
        self._held: tuple[int, int] | None = None
        self._interrupts: list[tuple[str, int, int, int, Mode]] = []
        notebook.note("ht.mode", self._change(Mode.OFFLINE, Mode.PARKED, 0))

    def _change(self, old: Mode, new: Mode, vm: int, via: str = "") -> dict[str, object]:
        data: dict[str, object] = {"inc": self.inc, "old": _NAMES[old], "new": _NAMES[new], "vm": vm}
        if via:
            data["via"] = via
        return data

    def mode_set(self, before: HyperthreadState, after: HyperthreadState, spec: Spec, at_ns: int = 0) -> None:
        """A mode was set. at_ns: when, where that is before the page says so: HOST was left, or entered beside real
        guests; else 0."""
        new = after.mode
        if new is Mode.ENTER and self.mode is not Mode.GUEST:
            new = Mode.ISOLATED  # where a handler that interrupted an entry comes back to
        if new is Mode.GUEST:
            self._was_guest = False
            self._isolated = None
        if new is Mode.ENTER or new is self.mode:
            return
        now = at_ns or self.now_ns()
        if new is Mode.ISOLATED and not before.frames:
            if before.todo[1:2] == (WORK,):
                self._isolated = (now, after.round)
                return
            self._was_guest = before.phase is Phase.ENTERING and self.mode is Mode.GUEST and self._isolated is None
        self._leave_guest(before.vm)
        if new is self.mode:
            return
        if new is Mode.HOST:
            self._host(before, after, spec, now)
            return
        self.notebook.note("ht.mode", self._change(self.mode, new, before.vm), after.round, self.cause, ts=now)
        self.mode = new

    def _host(self, before: HyperthreadState, after: HyperthreadState, spec: Spec, now: int) -> None:
        """HOST was entered: by a handler, or by a leave, which has a record of its own."""
        kick = None if before.frames else self._kick_of(before, spec)
        via = self.via(before, spec)
        change = self._change(self.mode, Mode.HOST, before.vm, via)
        key = self.notebook.note("ht.mode", change, after.round, self.cause, ts=now)
        self.mode = Mode.HOST
        if kick is not None:
            self._granted = False
            wait_ns = now - self._wanted_ns
            data = {"kind": _KIND[kick], "reason": self._reason, "wait_ns": wait_ns, "object": self._object}
            self.notebook.note("leave", data, after.round, key, ts=now)  # so that less its wait is when it was wanted

    def via(self, state: HyperthreadState, spec: Spec) -> str:
        """Return how HOST is reached from a state: by a handler, or by a leave of this kind."""
        return state.frames[-1].what.name.lower() if state.frames else _VIA[self._kick_of(state, spec)]

    def _kick_of(self, state: HyperthreadState, spec: Spec) -> Kick:
        """Return how this leave treats its siblings: of what the policy has, what is to be seen of it.

        One that sends raises its flag; one that asks is granted.
        """
        seen = (Kick.SEND, Kick.STUN) if state.flag else (Kick.BARE,)
        if self._granted:
            seen = (Kick.ACK, Kick.RENDEZVOUS)
        irq_kick = None if state.session else spec.irq_kick
        kicks = [kick for kick in (irq_kick, spec.idle_kick, spec.kick) if kick is not None]
        return next((kick for kick in kicks if kick in seen), kicks[0])

    @property
    def held_back_ns(self) -> int | None:
        """Stamp of a record that may still come, older than now; None when none does."""
        return None if self._isolated is None else self._isolated[0]

    def _leave_guest(self, vm: int) -> None:
        """Note the ISOLATED of a fast exit, late: something else than guest comes of it."""
        if self._isolated is None:
            return
        (ts, round_), self._isolated = self._isolated, None
        self.notebook.note("ht.mode", self._change(self.mode, Mode.ISOLATED, vm), round_, ts=ts)
        self.mode = Mode.ISOLATED

    def moved(self, before: HyperthreadState, after: HyperthreadState) -> None:
        """Show every change of mode as it is performed, ENTER and fast exits too: telemetry class `r`."""
        self.notebook.show(self._change(before.mode, after.mode, before.vm), after.round)

    def wants_host(self, reason: str, missed: str = "") -> None:
        """An exit leaves. missed: the object that it missed first, if it is for that."""
        self._reason, self._object = reason, missed
        self._wanted_ns = self.now_ns()
        self.cause = self.notebook.last

    def wants_guest(self) -> None:
        """A halted vCPU was woken: its wait for the gate begins; its sleep was none."""
        self._asked_ns = self.now_ns()

    def looked(self, before: HyperthreadState, after: HyperthreadState, eyes: Eyes) -> None:
        """A look may find a kick, or a sibling that holds us, or that the one that held us is gone."""
        now = self.now_ns()
        if after.todo[:1] != TO_GUEST:
            self._leave_guest(before.vm)
        if after.phase is Phase.HELD:
            if self._held is None:
                self._held = (eyes.blocker(), now)
        elif self._held is not None:
            by, since = self._held
            self._held = None
            self.notebook.note("held", {"by": by, "held_ns": now - since}, before.round)
        if after.answered != before.answered:
            was = Mode.GUEST if self._was_guest else Mode.ISOLATED if before.mode is Mode.ENTER else before.mode
            data = {"number": after.answered, "was": _NAMES[was], "avoidable": was is not Mode.GUEST}
            insns = eyes.insns_since(after.answered)
            if insns is not None:
                data["insns"] = insns
            self.notebook.note("kick.seen", data, before.round)
            if after.phase is Phase.ASKING and before.phase is not Phase.ASKING:
                self._asked_ns = now

    def ordered(self, before: HyperthreadState, after: HyperthreadState, order: Order, cause: int) -> None:
        """An order was taken; its cause becomes that of what follows."""
        if after is before:
            return
        self.cause = cause
        self._granted = order.bid is Bid.GRANT
        if after.session and not before.session:
            wait_ns = max(0, self.now_ns() - self._asked_ns)
            self.notebook.note("gate.wait", {"wait_ns": wait_ns, "vm": after.vm}, after.round, cause)
        elif after.phase is Phase.ASKING and before.phase is not Phase.ASKING:  # asking again begins no new wait
            self._asked_ns = self.now_ns()

    def full_exit(self, event: Exited, round_: int, *, polled: bool = False) -> None:
        """A full exit was handled: from wanting the full address space to the end of the work in it.

        polled: it was a halt, and its end was waited for meanwhile.
        """
        now = self.now_ns()
        took = max(1, now - self._wanted_ns)
        self._asked_ns = now
        halt = "polled" if polled else "slept" if event.wake_ns else ""
        data = exit_data(event.reason, event.isa, True, 1, took, took, took, [(bucket_of(took), 1)], halt)
        self.notebook.note("exit", data, round_)

    def flushed(self, cost_ns: int, round_: int) -> None:
        """The buffers were cleared on the way into guest."""
        self.notebook.note("flush", {"what": "data", "cost_ns": cost_ns}, round_)

    def ipi(self, target: int, state: HyperthreadState, spec: Spec) -> None:
        why = state.frames[-1].what.name.lower() if state.frames else spec.kick.name.lower()
        self.notebook.note("ipi", {"to": target, "why": why}, state.round)

    def interrupt_begins(self, what: str, number: int, merged: int, state: HyperthreadState) -> None:
        mode = Mode.ISOLATED if state.mode is Mode.ENTER else state.mode
        self._interrupts.append((what, number, merged, self.now_ns(), mode))

    def interrupt_ends(self, before: HyperthreadState, after: HyperthreadState, meets: Meets) -> None:
        if before.frames[-1].what is What.IRQ:
            return  # see `interrupt_handled`
        what, number, merged, begin_ns, mode = self._interrupts.pop()
        assert what == before.frames[-1].what.name.lower(), "handlers end innermost first"
        data = {
            "what": what,
            "id": number,
            "depth": sum(frame.what is not What.IRQ for frame in before.frames),
            "merged": merged,
            "host_ns": self.now_ns() - begin_ns,
            "from": mode.name,
        }
        if what == "mce":
            data |= meets.record(before.frames[-1])
        self.notebook.note("intr", data, after.round)

    def missing(self, broadcast: int, hts: list[int], waited_ns: int, round_: int) -> None:
        """A #MC handler gave up waiting for these siblings."""
        names = ",".join(f"h{ht}" for ht in hts)
        self.notebook.note("mce.timeout", {"broadcast": broadcast, "missing": names, "waited_ns": waited_ns}, round_)

    def interrupt_handled(self, number: int, mode: Mode, full: bool, took_ns: int, round_: int) -> None:
        """An external interrupt that did not hit the guest was handled."""
        where = Mode.ISOLATED if mode is Mode.ENTER else mode
        self.notebook.note("irq", {"id": number, "from": where.name, "full": full, "took_ns": took_ns}, round_)

    def fault(self, data: dict[str, Any], round_: int) -> None:
        """The isolated space had no translation for an access, at a place that was not known yet."""
        self.notebook.note("fault", data, round_)

    def faults_full(self, places: int, round_: int) -> None:
        """Places of faults are kept no more."""
        self.notebook.note("fault.full", {"places": places}, round_)

    def mapped(self, vm: int, entry: Entry, generation: int, round_: int) -> None:
        """An object of this VM was mapped, behind all exits that are noted."""
        data = {"vm": vm, "object": entry.object, "generation": generation}
        self.notebook.note("space.map", {**data, "level": entry.level.name, "split": entry.split}, round_)

    def unmapped(self, vm: int, name: str, generation: int, round_: int) -> None:
        """An object of this VM was unmapped, likewise."""
        self.notebook.note("space.unmap", {"vm": vm, "object": name, "generation": generation}, round_)

    def flush(self, round_: int) -> None:
        self.tally.note(self.notebook, round_)
