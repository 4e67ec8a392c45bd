"""A real guest on a hyperthread: KVM_RUN between the steps of the protocol, and a hot loop for its fast exits.

Rule 1. KVM_RUN stands for "guest instructions". It is announced as one instruction and begins behind the same boundary:
        the pending bit is looked at last (see `Vcpu.retire`). Whoever sets that bit then rings the doorbell, and the
        signal ends KVM_RUN, or does not let it begin (see `asid.guest.kvm_kick`).
Rule 2. What ended KVM_RUN is looked for in the words of the page. A signal that is no kick is nothing of the guest's:
        no exit, no record.
Rule 3. A lease is used when the guest's own counter has moved, or it has exited.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from asid.core import hyperthread as core
from asid.core.events import Mode
from asid.guest.base import Exit
from asid.guest.kvm import DETAIL_WORD, RATE_HZ_DEFAULT, REASON_WORD, Key, RealVcpu, find_program
from asid.guest.kvm_kick import Kick
from asid.live.page import DEPTH, FLAG, INSNS, MCE, MODE, NMI, PENDING, REQUEST, base_of

if TYPE_CHECKING:
    from asid.live.vcpu import Vcpu

FIRST_NS: Final = 100_000  # a lease's first look at whether its guest has run
SAMPLE: Final = 16  # of so many exits in a row one is timed
TICK_NS: Final = 2_000_000  # a guest that never exits is thrown out this often, for its process to look around


class FastKind:
    """Exits that are alike and handled isolated. n: had, and not in the tally yet."""

    __slots__ = ("event", "n")

    def __init__(self, event: Exit) -> None:
        self.event = event
        self.n = 0


class Left(IntEnum):
    """Why the hot loop ended, and so where the hyperthread stands."""

    DONE = 0  # in guest, it is time to look around
    INTERRUPTED = 1  # in guest, a boundary found the pending bit or an injected NMI or #MC
    LOOKING = 2  # ENTER is published, the look was not clear
    THROWN_OUT = 3  # in guest, a signal has ended KVM_RUN
    EXIT = 4  # in guest, an exit has come that is not known to be fast


class RealGuest:
    """The guest of VM `vm` on the hyperthread of `vcpu`, from its attach on."""

    def __init__(self, vcpu: Vcpu, vm: int) -> None:
        ht = vcpu.ht
        birth = ht.birth
        self.vcpu = vcpu
        self.ht = ht
        guest, pace = birth.config.vm[vm - 1].guest, birth.config.pace
        rate_hz = 0.0 if pace.mode == "max" else (guest.rate_hz or RATE_HZ_DEFAULT) * pace.scale
        self.kick = Kick(ht.bell, late_ns=ht.signal_ns)
        try:
            self.real = RealVcpu(
                birth.memory_of(vm), find_program(guest.program), birth.core * birth.config.machine.smt + birth.ht,
                self.kick, rate_hz=rate_hz,
            )  # fmt: skip
        except BaseException:
            self.kick.close()
            raise
        self._holds = tuple(base_of(other) + field for other in ht.siblings for field in (FLAG, DEPTH))

    def close(self) -> None:
        """The guest is gone."""
        self.real.close()
        self.kick.close()

    def in_guest(self) -> None:
        """Guest instructions, until something ends them. Nothing was pending a moment ago."""
        vcpu, ht = self.vcpu, self.ht
        if vcpu.exit is not None:
            self._go_on()
        elif ht.notebook.full:
            ht.notebook.flush()
            ht.node.turn(vcpu.now_ns() + 1_000_000)
        elif vcpu.look_around():
            return
        elif not ht.state.used:
            self._first()
        elif vcpu.loops():
            self._loop()
        elif vcpu.retire():
            if self.real.enter():
                self._exits()
            else:
                self._thrown_out()

    def _thrown_out(self) -> None:
        """A signal has ended KVM_RUN. When it was the tick, there is time to think ahead."""
        ht, pending = self.ht, self.vcpu.own + PENDING
        self.kick.hush()
        if not ht.ahead.ready(ht.state):
            while not ht.words[pending] and ht.ahead.think(ht.state):
                pass

    def _go_on(self) -> None:
        """An exit came with the first instructions of a lease, or was put aside for an injected one."""
        vcpu, ht = self.vcpu, self.ht
        assert vcpu.exit is not None
        if not vcpu.retire():
            return
        if not ht.state.used:
            ht.step(core.RETIRED)
        else:
            vcpu.exits(vcpu.exit)

    def _first(self) -> None:
        """The first instructions of a lease, and the tick that goes with it."""
        vcpu, real = self.vcpu, self.real
        self.kick.arm(FIRST_NS, TICK_NS)
        before = real.count
        if not vcpu.retire():
            return
        exited = real.enter()
        if exited:
            vcpu.exit, vcpu.until_ns = real.take_exit(), 0
        else:
            self.kick.hush()
        if exited or real.count != before:
            self.ht.step(core.RETIRED)

    def _exits(self) -> None:
        """KVM_RUN has ended with an exit."""
        vcpu, real, isolation = self.vcpu, self.real, self.ht.isolation
        event = vcpu.exit = real.take_exit()
        vcpu.until_ns = 0
        if event.wake_ns == 0 and not isolation.misses(event):
            isolation.fast_kinds[real.key()] = FastKind(event)
        vcpu.exits(event)

    # --- the hot loop -------------------------------------------------------------------------------------

    def _loop(self) -> None:
        """Go round with fast exits for a while, and bring the state to where the page is."""
        vcpu, ht = self.vcpu, self.ht
        kinds = ht.isolation.fast_kinds
        left, mean_ns = self._run(vcpu.looked_ns + TICK_NS, kinds)
        for kind in kinds.values():
            if kind.n:
                ht.chronicle.tally.add(kind.event.reason, kind.event.isa, kind.n, kind.n * mean_ns)
                kind.n = 0
        if left is Left.EXIT:
            self._exits()
        elif left is Left.THROWN_OUT:
            self._thrown_out()
        elif left is Left.LOOKING:
            ht.step(core.FAST_EXIT)
            for _ in range(3):
                ht.step(core.PERFORMED)

    def _run(self, until_ns: int, kinds: dict[Key, FastKind]) -> tuple[Left, int]:
        """KVM_RUN, again and again, while its exits are known to be fast; they are counted in `kinds`.

        Return why it ended, and how long the handling of an exit took: one in SAMPLE is timed, for a look at the clock
        is not cheap beside it. To the page it does what `asid.live.fast` does, with KVM_RUN for the instruction.
        """
        ht, words, own = self.ht, self.ht.words, self.ht.own
        fence, now_ns = ht.page.fence, self.vcpu.now_ns
        enter, run32, run64 = self.real.enter, self.real.run32, self.real.run64
        mode, pending, request, insns = own + MODE, own + PENDING, own + REQUEST, own + INSNS
        nmi, mce, nmis, mces = own + NMI, own + MCE, ht.nmis, ht.mces
        vm, answered, holds = ht.state.vm << 8, ht.state.answered, self._holds
        isolated, entering, guest = Mode.ISOLATED | vm, Mode.ENTER | vm, Mode.GUEST | vm
        mean_ns, exits, begun_ns = 1, 0, 0
        announced = words[insns] + 1
        words[insns] = announced
        fence()
        while True:
            if words[pending] or words[nmi] != nmis or words[mce] != mces:
                words[insns] = announced - 1
                return Left.INTERRUPTED, mean_ns
            if begun_ns:
                now = now_ns()
                mean_ns = max(1, now - begun_ns)
                begun_ns = 0
                if now >= until_ns:
                    words[insns] = announced - 1
                    return Left.DONE, mean_ns
            if not enter():
                return Left.THROWN_OUT, mean_ns
            kind = kinds.get((run32[REASON_WORD], run64[DETAIL_WORD]))
            if kind is None:
                return Left.EXIT, mean_ns
            if not exits % SAMPLE:
                begun_ns = now_ns()
            exits += 1
            kind.n += 1
            words[mode] = isolated
            words[mode] = entering
            announced += 1
            words[insns] = announced
            fence()
            if words[pending] or words[request] != answered:
                words[insns] = announced - 1
                return Left.LOOKING, mean_ns
            for at in holds:
                if words[at]:
                    words[insns] = announced - 1
                    return Left.LOOKING, mean_ns
            words[mode] = guest
