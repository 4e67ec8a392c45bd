"""The vCPU on a hyperthread: its guest's exits, one after another, and the work that each of them causes.

The exits come from the guest's source and from clients who inject some. When a guest exits and for how long the host
works is decided here; what an exit means for the core is decided by `asid.core.hyperthread`, which hears of each.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asid.core import hyperthread as core
from asid.core.events import Mode
from asid.guest.base import Exit, Source
from asid.live.ahead import QUIET_NS
from asid.live.fast import Left, run_fast
from asid.live.page import INSNS, PENDING, REQUEST, WATCHED

if TYPE_CHECKING:
    from asid.live.hyperthread import Hyperthread
    from asid.live.real_guest import RealGuest

FAST_BATCH: Final = 256  # fast exits between two looks at the clock
LOOK_NS: Final = 1_000_000  # a busy guest looks at its sockets at least this often
SPIN_NS_MAX: Final = 30_000  # a wait shorter than this is spun: a sleep costs more
HOST_BEGINS: Final = -1  # until_ns of work in HOST whose clock has not started


class Vcpu:
    """What runs on hyperthread `ht`, whoever is attached."""

    def __init__(self, ht: Hyperthread) -> None:
        self.ht = ht
        self.words = ht.words
        self.own = ht.own
        self.now_ns = ht.node.now_ns
        self.number = ht.birth.vcpu[1]  # among the vCPUs of its VM
        self.source: Source | None = None
        self.real: RealGuest | None = None  # a guest on /dev/kvm, which has no source
        self.poll_ns = 0  # a halt that ends within this is polled for
        self.exit: Exit | None = None  # the next exit of the source, or the one being handled
        self.unfinished = False  # the handler of a fast exit has begun: `left_ns` of it are still to come
        self.counted = False  # and the exit is in the tally already
        self.left_ns = 0
        self.took_ns = 0  # of the handler, so far
        self.awake_ns = 0  # when the halt that it polls for ends
        self.exhausted = False  # the source has no more exits
        self.injected: deque[list[Any]] = deque()  # [id, Exit, to be done, refused]
        self.from_injection = False
        self.aside: tuple[Exit | None, int] = (None, 0)  # the source's exit and its time, while an injected one is had
        # While an interrupt is handled in HOST: the exit and the time it came in between, and whether the vCPU sleeps.
        self.between: tuple[Exit | None, int, bool] | None = None
        self.until_ns = 0  # when the guest's next exit, the work in HOST or a halt's wake-up is due
        self.looked_ns = 0  # when the sockets were last looked at from a busy guest

    def attach(self, vm: int) -> None:
        """Begin with another VM's guest; 0 for none. What was injected stays, until it is refused or runs here."""
        self.begin_guest(vm)
        self.poll_ns = self.ht.birth.config.vm[vm - 1].guest.halt_poll_ns if vm else 0
        self.exit = None
        self.aside = (None, 0)
        self.unfinished = False
        self.from_injection = False
        self.exhausted = False
        self.ht.isolation.attach(vm)
        if not vm:
            self.ht.link.tell({"op": "idle"})

    def begin_guest(self, vm: int) -> None:
        """Let whatever ran here be gone, and the guest of a VM be there: a source of exits, or a real one."""
        if self.real is not None:
            self.real.close()
        self.source = self.real = None
        if vm and self.ht.birth.config.vm[vm - 1].guest.source == "kvm":
            from asid.live.real_guest import RealGuest

            self.real = RealGuest(self, vm)
        elif vm:
            self.source = self.make_source(vm)

    def make_source(self, vm: int) -> Source:
        from asid.guest import make_source

        config = self.ht.birth.config
        return make_source(
            config.vm[vm - 1].guest,
            vm=vm,
            vcpu=self.number,
            seed=config.seed,
            base_dir=Path(self.ht.birth.base_dir),
            pace=config.pace.mode,
            scale=1.0 / config.pace.scale,  # a speed-up here, a factor of durations there
        )

    # --- in guest -----------------------------------------------------------------------------------------

    def in_guest(self) -> None:
        """Guest instructions, until something ends them."""
        ht = self.ht
        if self.words[self.own + PENDING]:
            ht.step(core.INTERRUPTED)
        elif self.real is not None and not self.injected:
            self.real.in_guest()
        elif not ht.state.used:
            if self.retire():
                ht.step(core.RETIRED)
        elif self.injected:
            self.injected_exit()
        else:
            if self.exit is None:
                self.next_exit()
            if ht.notebook.full:
                ht.notebook.flush()
                ht.node.turn(self.now_ns() + 1_000_000)
            elif self.exit is not None and self.now_ns() >= self.until_ns:
                if self.exit.after_ns == 0 and self.look_around():
                    return
                if self.retire():
                    self.exits(self.exit)
            else:
                self.run_on()

    def run_on(self) -> None:
        """Guest instructions that need nothing, until the next exit is due or something comes."""
        ht, words, own = self.ht, self.words, self.own
        until = self.until_ns if self.exit is not None else None
        quiet = self.now_ns() + QUIET_NS
        if ht.ahead.ready(ht.state) or (until is not None and until <= quiet):
            ht.node.turn(until)
        elif not ht.node.turn(quiet):
            while not words[own + PENDING] and ht.ahead.think(ht.state):
                pass
        if words[own + PENDING]:
            ht.step(core.INTERRUPTED)
        else:
            self.retire()

    def look_around(self) -> bool:
        """What a guest that never pauses must still do, once in a while: sockets, timers, the parent's life.

        Return whether an order waits. A kick needs none of this: it is on the page.
        """
        now = self.now_ns()
        if now - self.looked_ns >= LOOK_NS:
            self.looked_ns = now
            self.ht.node.turn(now)
        return bool(self.ht.orders)

    def retire(self) -> bool:
        """Run one guest instruction, unless its boundary finds the pending bit set.

        It is announced before the look, and taken back if it may not run: whoever sets the bit and then reads the
        count has counted the one in flight, so what is counted after that ran behind a visible bit.
        """
        words, own = self.words, self.own
        words[own + INSNS] += 1
        self.ht.page.fence()
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
            self.until_ns = self.now_ns() + self.exit.after_ns
            return
        self.exhausted = True
        ht = self.ht
        if ht.birth.config.vm[ht.state.vm - 1].guest.source == "trace":
            ht.chronicle.flush(ht.state.round)
            ht.link.tell({"op": "exhausted"})

    # --- exits --------------------------------------------------------------------------------------------

    def exits(self, event: Exit) -> None:
        """One VM exit. A fast one that needs no time may be done here (see `loops`); the rest in steps."""
        ht, polled = self.ht, self.polls(event)
        missed = ht.isolation.missed(event, polled=polled)
        if missed is not None:
            ht.chronicle.wants_host(event.reason, missed)
            self.until_ns = HOST_BEGINS
            ht.step(core.IDLE_EXIT if event.wake_ns else core.FULL_EXIT)
        elif event.service_ns or polled or self.real is not None or not self.loops():
            ht.step(core.FAST_EXIT)
        else:
            self.fast(event, 1)

    def polls(self, event: Exit) -> bool:
        """Whether the exit is a halt whose wake-up its handler waits for: what nobody is scheduled out for needs no
        more than the isolated address space maps.

        How long a halt will be is known here. KVM goes by those before, and stops polling where halts are long.
        """
        return 0 < event.wake_ns <= self.poll_ns

    def loops(self) -> bool:
        """Whether fast exits may go round the hot loop: nobody watches, and it looks at all that the policy does."""
        return self.ht.hot_loop and not self.words[WATCHED]

    def fast(self, event: Exit, n: int) -> int:
        """Up to n fast exits in the hot loop; return how many."""
        ht = self.ht
        begin_ns = self.now_ns()
        done, left = run_fast(
            self.words,
            self.own,
            ht.siblings,
            ht.page.fence,
            vm=ht.state.vm,
            answered=ht.state.answered,
            interrupts=(ht.nmis, ht.mces),
            n=n,
        )
        if done:
            ht.chronicle.tally.add(event.reason, event.isa, done, self.now_ns() - begin_ns)
        if left is Left.LOOKING:
            # The page is where the step functions are after publishing ENTER: bring the state there, and look.
            ht.step(core.FAST_EXIT)
            for _ in range(3):
                ht.step(core.PERFORMED)
        if self.exit is event and done:
            self.exit = None
        return done

    def handles(self) -> bool:
        """The handler of a fast exit: its service time passes here, in the isolated address space.

        Return False when an NMI or #MC is to be let in first. A kick of the gate ends it, too: then the lease goes
        back, and the rest of the handler comes after the next admission, in front of the guest.
        """
        event = self.exit
        if event is None:
            return True
        ht, begin_ns, polled = self.ht, self.now_ns(), self.polls(event)
        if not self.unfinished:
            self.unfinished, self.counted = True, False
            self.left_ns, self.took_ns = event.service_ns, 0
            self.awake_ns = begin_ns + event.service_ns + event.wake_ns
        if polled:
            self.left_ns = max(0, self.awake_ns - begin_ns)  # time asleep passes wherever the vCPU is
        until = begin_ns + self.left_ns
        if self.left_ns <= SPIN_NS_MAX:
            ht.spin(self.left_ns)
        else:
            while self.now_ns() < until and not ht.interrupted() and not ht.kicked():
                ht.node.turn(until)
        now = self.now_ns()
        self.took_ns += now - begin_ns
        self.left_ns = max(0, until - now)
        if self.left_ns:
            return ht.kicked()
        if not self.counted:
            ht.chronicle.tally.add(event.reason, event.isa, 1, max(1, self.took_ns), "polled" if polled else "")
        self.unfinished = False
        self.exit_over()
        return True

    def count(self) -> None:
        """The fast exit under way, if any, goes into the tally now: what it was decided by is to change."""
        event = self.exit
        if self.unfinished and not self.counted and event is not None:
            halt = "polled" if self.polls(event) else ""
            self.ht.chronicle.tally.add(event.reason, event.isa, 1, max(1, self.took_ns), halt)
            self.counted = True

    def exit_over(self) -> None:
        """The exit is done. An injected one makes way for that of the source, which was on its way and still comes."""
        self.exit = None
        if self.from_injection:
            self.from_injection = False
            self.exit, self.until_ns = self.aside
            self.injection_done(1)

    # --- injected exits -----------------------------------------------------------------------------------

    def inject(self, id_: int, event: Exit, n: int) -> None:
        """n exits that a client asked for; they come before those of the source."""
        self.injected.append([id_, event, n, 0])

    def refuse(self) -> None:
        """Do nothing more of what was injected, and answer how many of each were not done.

        The one exit that is under way ends first.
        """
        under_way = self.injected.popleft() if self.from_injection else None
        for id_, _, left, refused in self.injected:
            self.ht.link.tell({"op": "done", "id": id_, "left": left + refused})
        self.injected.clear()
        if under_way is not None:
            under_way[3] += under_way[2] - 1
            under_way[2] = 1
            self.injected.append(under_way)

    def injected_exit(self) -> None:
        _, event, left, _ = self.injected[0]
        ht = self.ht
        if self.look_around():
            return
        if ht.notebook.full:
            ht.notebook.flush()
        if event.service_ns or not self.loops() or ht.isolation.misses(event):
            if self.retire():
                self.aside = (self.exit, self.until_ns)
                self.exit = event
                self.from_injection = True
                self.exits(event)
            return
        done = self.fast(event, min(left, FAST_BATCH))
        if done:
            self.injection_done(done)

    def injection_done(self, n: int) -> None:
        self.injected[0][2] -= n
        if self.injected[0][2] <= 0:
            done = self.injected.popleft()
            self.ht.chronicle.flush(self.ht.state.round)
            self.ht.link.tell({"op": "done", "id": done[0], "left": done[3]})

    # --- in HOST, and halted ------------------------------------------------------------------------------

    def interrupted(self, event: Exit, *, halted: bool) -> None:
        """An external interrupt is about to be handled in HOST; what it came in between goes on afterwards."""
        self.between = (self.exit, self.until_ns, halted)
        self.exit, self.until_ns = event, HOST_BEGINS

    def interrupt_over(self) -> None:
        """The interrupt was handled. A guest that it hit has had an exit; one that sleeps goes on, unless it is due."""
        assert self.between is not None
        ht, event = self.ht, self.exit
        self.exit, self.until_ns, halted = self.between
        self.between = None
        if event is not None and ht.irqs.begun is not None and ht.irqs.begun[1] is Mode.GUEST:
            ht.chronicle.full_exit(event, ht.state.round)
        ht.irqs.handled(full=True)
        ht.chronicle.wants_guest()
        ht.step(core.HALT if halted and not self.wakes(self.now_ns()) else core.WORKED)

    def in_host(self) -> None:
        """Work in the full address space. A kick is answered meanwhile; the lease is not needed here."""
        ht, event = self.ht, self.exit
        if self.words[self.own + REQUEST] != ht.state.answered:
            ht.step(core.DOORBELL)
            return
        polled = event is not None and self.polls(event)
        if self.until_ns == HOST_BEGINS:
            self.until_ns = self.now_ns()
            if event is not None:
                self.until_ns += event.service_ns + (event.wake_ns if polled else 0)
        left_ns = self.until_ns - self.now_ns()
        if left_ns > SPIN_NS_MAX:
            ht.node.turn(self.until_ns)
            return
        if left_ns > 0:
            ht.spin(left_ns)
        if self.between is not None:
            self.interrupt_over()
            return
        halts = event is not None and event.wake_ns > 0 and not polled
        if event is not None:
            ht.chronicle.full_exit(event, ht.state.round, polled=polled)
            self.until_ns = self.now_ns() + event.wake_ns
            self.exit_over()
        ht.step(core.HALT if halts else core.WORKED)

    def wakes(self, now_ns: int) -> bool:
        """Whether a halted vCPU is runnable again: its time has come, or somebody wants an exit of it."""
        return now_ns >= self.until_ns or bool(self.injected)
