"""What is checked of every world: the guarantees, bounded queues, and what must happen somewhere.

A guarantee is a function of the whole core, but none reads all of it. Each is called once for each combination of
what it reads, on a view that holds nothing else; a guarantee that reads more fails at once, by AttributeError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

from asid.core.apic import Apic
from asid.core.events import Kick, Mode
from asid.core.gate import Belief
from asid.core.guarantees import GUARANTEES, CoreView
from asid.core.hyperthread import HyperthreadState, Phase, What
from asid.core.limits import MESSAGES_IN_FLIGHT_MAX
from asid.core.mce import Meeting, Role
from asid.explore.interner import MASK
from asid.explore.meetings import meeting
from asid.explore.parts import Dead, Down, Model, Sibling
from asid.explore.world import World


class Sight(NamedTuple):
    """What the guarantees about several siblings at once may read of one. `frames` keeps its length only."""

    mode: Mode
    vm: int
    flag: bool
    depth: int
    frames: tuple[None, ...]
    session: bool
    round: int
    # For SOMETIMES only.
    phase: Phase
    void: bool
    inc: int
    coord: int
    tainted: bool
    party: bool  # it was admitted with others, and has not met them yet
    bus: bool  # an IPI of its own is on the bus
    meeting: Meeting


EACH: Final = ("G1",)  # of one sibling after the other, and of the gate
GATE: Final = ("G11",)  # of the gate alone
TOGETHER: Final = tuple(name for name in GUARANTEES if name not in EACH + GATE)  # of every Sight and pending bit

AT_WORK: Final = frozenset({Mode.ISOLATED, Mode.GUEST})  # on its VM's data

Broken = tuple[tuple[str, str], ...]  # guarantees, and how each is broken
Seen = tuple[Sight | None, bool]  # of one sibling: what is seen of its process, its pending bit


def sight(s: Sibling) -> Sight:
    h, words = s.process, s.words
    assert isinstance(h, HyperthreadState)
    frames = (None,) * len(h.frames)
    return Sight(
        h.mode, h.vm, h.flag, h.depth, frames, h.session, h.round if h.session else 0, h.phase, h.void, h.inc, h.coord,
        words.tainted, h.party > 0, words.apic.bus > 0, meeting(s),
    )  # fmt: skip


class Checks:
    """The checks of one search, with everything they were already asked. only: the guarantees to look at, None: all."""

    def __init__(self, world: World, only: frozenset[str] | None = None) -> None:
        self.world = world
        names = (EACH, GATE, TOGETHER)
        self.each, self.gate, self.together = (
            tuple(name for name in some if only is None or name in only) for some in names
        )
        self.seen: dict[tuple[int, ...], Broken] = {}  # together: by numbers of Seen
        self._sights: list[int] = []  # by sibling part
        self._ids: dict[Seen, int] = {}
        self.sights: list[Seen] = []
        self._one: dict[int, Broken] = {}
        self._desks: dict[int, Broken] = {}

    def __call__(self, world: int) -> Broken:
        """Return what is broken, most telling first; nothing when all hold."""
        w = self.world
        n = w.n
        d = world >> w.desk_at & MASK
        sights = self._sights
        key = []
        broken: Broken = ()
        for ht in range(n):
            part = world >> w.at[ht] & MASK
            if part >= len(sights):
                self._look_at_new_parts()
            key.append(sights[part])
            one = ((ht << 20 | part) << 20) | d
            if one not in self._one:
                self._one[one] = self._of_one(ht, part, d)
            broken += self._one[one]
        if d not in self._desks:
            self._desks[d] = self._of_gate(d)
        together = tuple(key)
        if together not in self.seen:
            self.seen[together] = self._of_all(together)
        return broken + self._desks[d] + self.seen[together]

    def _look_at_new_parts(self) -> None:
        things = self.world.siblings.things
        while len(self._sights) < len(things):
            s = things[len(self._sights)]
            seen: Seen = (None if isinstance(s.process, Dead) else sight(s), s.words.pending)
            number = self._ids.setdefault(seen, len(self.sights))
            if number == len(self.sights):
                self.sights.append(seen)
            self._sights.append(number)

    def _of_all(self, together: tuple[int, ...]) -> Broken:
        seen = [self.sights[number] for number in together]
        processes = cast(tuple[HyperthreadState | None, ...], tuple(s for s, _ in seen))
        tainted = tuple(s is not None and s.tainted for s, _ in seen)
        met = tuple(None if s is None else s.meeting for s, _ in seen)
        pending = tuple(pending for _, pending in seen)
        return broken_in(self.together, CoreView(processes, pending, None, tainted, met))

    def leak(self, world: int) -> str:
        """Return how a guest leaks in a world in which G9 is broken: see `leak_of`."""
        w = self.world
        return leak_of([self.sights[self._sights[world >> at & MASK]] for at in w.at[: w.n]])

    def _of_one(self, ht: int, part: int, d: int) -> Broken:
        s = self.world.siblings.things[part]
        queued = sum(len(reports) for _, reports in s.up)
        if queued > MESSAGES_IN_FLIGHT_MAX or len(s.down) > MESSAGES_IN_FLIGHT_MAX:
            return (("I10", f"h{ht} has {queued} reports and {len(s.down)} orders under way"),)
        if isinstance(s.process, Dead):
            return ()
        gate = self.world.desks.things[d].gate
        processes = [None] * self.world.n
        processes[ht] = s.process  # type: ignore[call-overload]
        view = CoreView(tuple(processes), (False,) * self.world.n, None if isinstance(gate, Down) else gate)
        return broken_in(self.each, view)

    def _of_gate(self, d: int) -> Broken:
        gate = self.world.desks.things[d].gate
        return () if isinstance(gate, Down) else broken_in(self.gate, CoreView((), (), gate))

    def reached(self) -> Iterator[tuple[Seen, ...]]:
        """Yield every combination of sights that was checked."""
        for together in self.seen:
            yield tuple(self.sights[number] for number in together)


def leak_of(seen: Sequence[Seen]) -> str:
    """Return "concurrent" when a guest instruction can run on a sibling whose buffers hold what is not its guest's, and
    whose owner is at work beside it; "residual" when it was only left behind; "" when there is no such guest."""
    found = ""
    for s, pending in seen:
        if s is None or pending or s.mode is not Mode.GUEST or not s.tainted:
            continue
        if any(o is not None and (o.mode is Mode.HOST or (o.mode in AT_WORK and o.vm != s.vm)) for o, _ in seen):
            return "concurrent"
        found = "residual"
    return found


def broken_in(names: tuple[str, ...], view: CoreView) -> Broken:
    told = ((name, GUARANTEES[name](view)) for name in names)
    return tuple((name, sentence) for name, sentence in told if sentence is not None)


def exercised(w: World) -> tuple[str, ...]:
    """Return the guarantees that had anything to say in the worlds that were found; of others nothing is proved."""
    alive = [s.process for s in w.siblings.things if not isinstance(s.process, Dead)]
    gates = [d.gate for d in w.desks.things if not isinstance(d.gate, Down)]
    leased, host = any(h.session for h in alive), any(h.mode is Mode.HOST for h in alive)
    happened = {
        "G1": leased,
        "G2": host and w.n > 1,
        "G3": len({*w.model.vms} - {0}) > 1,
        "G4": any(s.words.pending for s in w.siblings.things),
        "G5": leased,
        "G9": host and w.model.taints,
        "G10": any(frame.what is not What.IRQ for h in alive for frame in h.frames),
        "G11": any(m.belief is Belief.UNKNOWN for g in gates for m in g.members),
        "L1": any(h.phase is Phase.LEAVING for h in alive),
        "L2": any(h.phase is Phase.ASKING for h in alive),
        "L3": bool(alive),
    }
    return tuple(name for name, has in happened.items() if has)


# --- what must happen somewhere, else a search proves nothing ---------------------------------------------

Happens = Callable[[tuple[Seen, ...]], bool]
Applies = Callable[[Model], bool]


ASYNC: Final = (Kick.SEND, Kick.STUN)


def some(test: Callable[[Sight], Any]) -> Happens:
    return lambda seen: any(s is not None and bool(test(s)) for s, _ in seen)


def together_possible(m: Model) -> bool:
    one_room = len(set(m.vms)) == 1 or m.rooms is m.rooms.ALL
    return m.siblings > 1 and one_room and all(m.vms) and m.rooms is not m.rooms.HYPERTHREAD


def leaves(m: Model) -> bool:
    """Say whether anybody may leave for HOST: a guest, or a parked hyperthread that an interrupt hits."""
    return any(m.vms) or bool(m.budget.irq)


def kicks_cross_asks(m: Model) -> bool:
    """Say whether somebody may be kicked before it knows of its lease: another wants what the lease keeps from it."""
    rivals = sum(vm > 0 for vm in m.vms) > 1 or (any(m.vms) and m.siblings > 1 and m.budget.irq > 0)
    return rivals and m.rooms is not m.rooms.ALL and m.budget.timer > 0 and m.kick is Kick.ACK


def nobody_waits(m: Model) -> bool:
    """Say whether a sibling may be in HOST that did not wait for the others: by its kick, or by NMI or #MC."""
    return m.kick in ASYNC or (m.guarded and not m.nmi_isolated and bool(m.budget.nmi or m.budget.mce))


def window(seen: tuple[Seen, ...]) -> bool:
    """A sibling is still in guest, its pending bit set, beside one in HOST that did not wait."""
    out = any(s is not None and s.mode is Mode.HOST for s, _ in seen)
    return out and any(s is not None and s.mode is Mode.GUEST and pending for s, pending in seen)


def forced_idle(seen: tuple[Seen, ...]) -> bool:
    running = {s.vm for s, _ in seen if s is not None and s.mode is Mode.GUEST}
    waiting = {s.vm for s, _ in seen if s is not None and s.phase is Phase.ASKING}
    return bool(running) and bool(waiting - running)


SOMETIMES: Final[dict[str, tuple[Applies, Happens]]] = {
    "every sibling is in guest at once": (
        together_possible,
        lambda seen: all(s is not None and s.mode is Mode.GUEST for s, _ in seen),
    ),
    "one VM is in guest and another waits": (
        lambda m: len({*m.vms} - {0}) > 1 and m.rooms is not m.rooms.ALL,
        forced_idle,
    ),
    "a sibling works in HOST": (lambda m: any(m.vms), some(lambda s: s.mode is Mode.HOST)),
    "a leave waits beside a guest": (
        lambda m: together_possible(m) and m.kick in (Kick.ACK, Kick.RENDEZVOUS),
        lambda seen: some(lambda s: s.phase is Phase.LEAVING)(seen) and some(lambda s: s.mode is Mode.GUEST)(seen),
    ),
    "a guest is beside HOST, its pending bit set": (
        lambda m: together_possible(m) and nobody_waits(m),
        window,
    ),
    "a sibling's handler keeps a guest out": (
        lambda m: together_possible(m) and nobody_waits(m),
        some(lambda s: s.phase is Phase.HELD),
    ),
    "a #MC hits inside an NMI": (
        lambda m: bool(m.budget.nmi and m.budget.mce),
        some(lambda s: len(s.frames) == 2),
    ),
    "a kick finds an ask under way": (
        kicks_cross_asks,
        some(lambda s: s.void),
    ),
    "a hyperthread dies": (
        lambda m: bool(m.budget.kill or m.budget.unplug),
        lambda seen: any(s is None for s, _ in seen),
    ),
    "a reborn hyperthread is in guest": (
        lambda m: bool(m.budget.kill and m.budget.restart and any(m.vms)),
        some(lambda s: s.inc > 1 and s.mode is Mode.GUEST),
    ),
    "a lease of the next coordinator": (
        lambda m: bool(m.budget.coordinator and any(m.vms)),
        some(lambda s: s.coord > 1 and s.session),
    ),
    "a vCPU sleeps": (lambda m: m.halts and any(m.vms), some(lambda s: s.phase is Phase.HALTED)),
    "a hyperthread has no vCPU": (lambda m: bool(m.budget.hotplug), some(lambda s: s.vm == 0)),
    "a sibling waits for its party": (
        lambda m: together_possible(m) and m.kick is Kick.RENDEZVOUS,
        some(lambda s: s.phase is Phase.HELD and s.party),
    ),
    "an interrupt makes a parked hyperthread leave": (  # without a vCPU there is no other way into HOST
        lambda m: bool(m.budget.irq),
        some(lambda s: s.vm == 0 and s.mode is Mode.HOST),
    ),
    "an NMI or #MC finds a leave's IPI on the bus": (
        lambda m: (
            m.siblings > 1
            and m.apic is not Apic.X2APIC
            and leaves(m)
            and m.kick in ASYNC
            and bool(m.budget.nmi or m.budget.mce)
        ),
        some(lambda s: s.bus and s.frames and s.flag and not s.depth and s.mode is not Mode.HOST),
    ),
    "a look finds that a flush is due": (
        lambda m: m.flush and together_possible(m) and nobody_waits(m),
        some(lambda s: s.mode is Mode.ENTER and s.tainted),
    ),
    "a fatal #MC keeps a guest out for good": (
        lambda m: any(m.vms) and bool(m.budget.fatal and (m.budget.mce or m.budget.broadcast)),
        some(lambda s: s.phase is Phase.HELD and s.meeting.failed),
    ),
    "all handlers of a #MC are in HOST, one of them monarch": (
        lambda m: bool(m.budget.broadcast) and not m.nmi_isolated,
        lambda seen: (
            all(s is not None and s.mode is Mode.HOST and s.meeting.broadcast > 0 for s, _ in seen)
            and some(lambda s: s.meeting.role is Role.MONARCH)(seen)
        ),
    ),
    "a #MC handler waits no longer": (
        lambda m: (
            m.siblings > 1 and bool(m.budget.broadcast) and bool(m.budget.timer or m.budget.kill or m.budget.stop)
        ),
        some(lambda s: s.meeting.late),
    ),
}
