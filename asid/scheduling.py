"""A run of the simulator as a schedule of the explorer: the same steps, in the order in which they were taken.

Rule 1. A step of the simulator is looked for among those that the explorer has at that moment, and taken there. So a
        schedule that was written can be taken again: in the explorer, by real processes, in virtual time.
Rule 2. What costs the explorer no step (a report, a handler's time) is left out; a step that changes nothing likewise.
Rule 3. It ends with the first world in which the guarantee that the run broke is broken for the explorer, or with the
        step at which the audit found it.

One thing a schedule cannot say is that an IPI is still on its way, so the run is one in which its sender waits for it
(`asid.sim.traced`). A run that breaks a promise only while one is on its way is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asid.audit import audit
from asid.core import apic, gate
from asid.core import hyperthread as core
from asid.core.events import Action, Do, Report, Timer
from asid.core.gate import Ev
from asid.core.guarantees import GUARANTEES
from asid.core.hyperthread import Event, HyperthreadState, What
from asid.errors import InputError, ProtocolFault
from asid.explore.checks import Checks
from asid.explore.models import of_policy
from asid.explore.parts import COORDINATOR, Budget, Label, Model
from asid.explore.schedule import STEPS_MAX, VM_MAX, Schedule, planned
from asid.explore.search import failed
from asid.explore.siblings import unread
from asid.explore.world import World
from asid.script import counted
from asid.simulating import traced_machine

if TYPE_CHECKING:
    from asid.audit.finding import Violation
    from asid.config import Config
    from asid.core.policies.base import Policy
    from asid.seeds import Job
    from asid.sim.faults import Plan
    from asid.sim.traced import Happened

FREE: Final = (Do.SEND, Do.WORK, Do.WAKE)  # steps of the simulator that are mostly none of the explorer
BUFFERS: Final = (Do.FLUSH, Do.LOOK)  # what is left in the buffers may be known here and not there, or later
EVENTS: Final = {
    What.ORDER: "takes order",
    What.DOORBELL: "hears the doorbell",
    What.RETIRED: "runs an instruction",
    What.INTERRUPTED: "is interrupted",
    What.RUNNABLE: "wakes up",
    What.NMI: "nmi",
    What.MCE: "mce",
}
OTHERS: Final = {
    "delivered": "its IPI is delivered", "dies": "is killed", "ends": "ends", "born": "is born again",
}  # fmt: skip
HINT: Final = "asid sim CONFIG --save FILE.json writes the faults, for asid run --engine sim."


def model_of(config: Config, policy: Policy, number: int, trace: Sequence[Happened]) -> Model:
    """Return the model of one core, with as many events from outside as happened. Raise InputError for one that no
    model is like.

    One NMI more: while one may still come, an event is a step without its first action. One interrupt more: likewise
    for a handler's work.
    """
    hts = range(config.machine.smt)
    vms = counted(tuple((config.vcpu_at(number, ht) or (0, 0))[0] for ht in hts))
    if max(vms) > VM_MAX:
        raise InputError(
            "a core with too many VMs for a schedule", where=f"c{number}", state=f"{max(vms)} VMs",
            allowed=f"{VM_MAX} of them", hint=HINT,
        )  # fmt: skip
    if any(each.event is not None and each.event.check.broadcast for each in trace):
        raise InputError(
            "a machine check of all siblings is no step of a schedule that is played", where=f"c{number}",
            state='mce.mode = "broadcast"', allowed='machine checks of one hyperthread (mce.mode = "local")', hint=HINT,
        )  # fmt: skip
    came = Counter(happened.event.what for happened in trace if happened.event is not None)
    other = Counter(happened.other for happened in trace)
    timers = sum(each.decided is not None and each.decided.timer is not None and not each.idle for each in trace)
    budget = Budget(
        nmi=came[What.NMI] + 1, mce=came[What.MCE], kill=other["dies"], restart=other["born"], timer=timers,
        irq=came[What.IRQ] + 1 if came[What.IRQ] else 0, unplug=0,
    )  # fmt: skip
    return of_policy(
        policy, vms, budget=budget, apic=apic.BY_NAME[config.apic.mode], icr_fix=config.apic.icr_fix,
        nmi_isolated=config.policy.nmi == "isolated",
    )  # fmt: skip


class Made(NamedTuple):
    """A schedule; explored: the guarantee is broken for the explorer, too, which judges worlds and not a journal."""

    schedule: Schedule
    explored: bool


def schedule_for(job: Job, seed: int, plan: Plan, guarantee: str) -> Made:
    """Run a seed with a plan again, and return the schedule of the core on which a guarantee is broken.

    Raise InputError for a run that no schedule says, and as `Job.loaded` and `machine_of` do.
    """
    if not guarantee:
        raise InputError(
            "no guarantee is broken: no schedule", where=f"seed {seed}", state="a fault of its own, or a wait",
            allowed="a broken guarantee", hint=HINT,
        )  # fmt: skip
    loaded = job.loaded(seed, plan)
    machine = traced_machine(loaded, job.costs)
    try:
        records = machine.play(job.duration_ns).records
    except (AssertionError, ProtocolFault) as fault:
        raise InputError(
            "a check of the machine's own ends the run when IPIs arrive at once: no schedule", where=f"seed {seed}",
            state=f"{type(fault).__name__}: {fault}"[:200], allowed="runs that come to their end", hint=HINT,
        ) from fault  # fmt: skip
    broken = next((finding for finding in audit(records).findings if finding.guarantee == guarantee), None)
    first = broken.first if broken is not None else None
    if first is None:
        raise InputError(
            f"{guarantee} is not broken when IPIs arrive at once: no schedule", where=f"seed {seed}",
            state="it is while one is on its way", allowed="runs in which their sender waits for them", hint=HINT,
        )  # fmt: skip
    trace = machine.trace(first.core)
    stop = (at for at, each in enumerate(trace) if each.decided is not None and each.decided.ev is Ev.STOP)
    trace = trace[: next(stop, len(trace))]
    model = model_of(loaded.config, machine.policy, first.core, trace)
    return schedule_of(model, trace, guarantee, first)


def schedule_of(model: Model, trace: Sequence[Happened], guarantee: str, first: Violation) -> Made:
    """Return the schedule of what happened on one core until a guarantee was broken: for the explorer, or where it
    never is, for the audit (`first`).

    Raise InputError at a step before that which the explorer has not, or that is one too many.
    """
    follower = _Follower(model, guarantee)
    steps = STEPS_MAX
    try:
        for happened in trace:
            if happened.ts > first.ts:
                steps = min(steps, len(follower.moves))
            follower.follow(happened)
            if follower.broken:
                break
            if len(follower.moves) >= STEPS_MAX:
                raise InputError(
                    f"more than {STEPS_MAX:,} steps until {guarantee} is broken: no schedule",
                    where=f"record of {happened.ts} ns", state="its first steps alone show nothing",
                    allowed=f"at most {STEPS_MAX:,}", hint=HINT,
                )  # fmt: skip
    except InputError:
        if steps == STEPS_MAX:
            raise
    w = follower.world
    moves = follower.moves if follower.broken else follower.moves[:steps]
    steps_of = tuple(planned(w.label(move)) for move in moves)
    return Made(Schedule(model, steps_of, guarantee, follower.broken or first.text), bool(follower.broken))


class _Follower:
    """The explorer's world, taken along."""

    def __init__(self, model: Model, guarantee: str) -> None:
        self.world = World(model)
        self.here = self.world.initial()
        self.moves: list[int] = []
        self.guarantee = guarantee
        self.broken = ""  # how the guarantee is broken, once it is
        self._checks = Checks(self.world, frozenset({guarantee}) & frozenset(GUARANTEES))
        self._number = 0
        self._under_way = [0] * self.world.n  # reports that a hyperthread has sent, and the gate has not heard

    def follow(self, happened: Happened) -> None:
        self._number += 1
        if happened.idle:
            return
        who = happened.who
        if happened.action is not None:
            self._performs(who, happened.action)
        elif happened.event is not None:
            self._event(who, happened.event)
        elif happened.heard is not None:
            report = happened.heard
            self._under_way[report.ht] -= 1
            self._take(
                lambda label: label.what == "receives" and isinstance(label.detail, Report)
                and (label.detail.said, label.detail.ht, label.detail.inc) == (report.said, report.ht, report.inc),
                f"the gate hears {report.said.name} of h{report.ht}",
            )  # fmt: skip
            self._perform_all()
            if happened.turn_over:
                self._ends_turn()
        elif happened.decided is not None:
            self._decides(happened.decided)
        else:
            word = OTHERS[happened.other]
            unsent = self._unsent(who) if happened.other == "dies" else ""
            self._take(
                lambda label: label.who == who and label.what == word and unsent in ("", label.detail), f"h{who} {word}"
            )

    def _unsent(self, who: int) -> int:
        """Return how many reports the explorer has let a hyperthread send that it has not sent here."""
        s = self.world.parts(self.here)[0][who]
        assert isinstance(s.process, HyperthreadState)
        return max(0, unread(s, s.process.inc) - self._under_way[who])

    # --- hyperthreads -------------------------------------------------------------------------------------

    def _process(self, who: int) -> HyperthreadState | None:
        process = self.world.parts(self.here)[0][who].process
        return process if isinstance(process, HyperthreadState) else None

    def _performs(self, who: int, action: Action) -> None:
        """One action. What the explorer did with the step before is done already."""
        self._under_way[who] += action.do is Do.SEND
        while True:
            process = self._process(who)
            due = core.next_action(process) if process is not None else None
            if due is not None and _alike(due, action):
                self._take(lambda label: label.who == who and label.what == "does", f"h{who} does {action.do.name}")
                return
            if action.do in FREE or (action.do in BUFFERS and (due is None or due.do not in BUFFERS)):
                return
            if due is None or due.do not in BUFFERS:
                found = due.do.name if due is not None else "nothing"
                raise self._astray(f"h{who} does {action.do.name}", f"{found} is to be done")
            self._take(lambda label: label.who == who and label.what == "does", f"h{who} does {due.do.name}")

    def _event(self, who: int, event: Event) -> None:
        self._catch_up(who)
        word = self._word(event)
        self._take(lambda label: label.who == who and label.what == word, f"h{who} {word}")

    def _word(self, event: Event) -> str:
        what = event.what
        if what is What.EXIT:
            if not event.full:
                return "fast exit"
            return "idle exit" if event.idle and self.world.model.idle_exits else "full exit"
        if what is What.WORKED:
            return "halts" if event.full else "has done its work"
        if what is What.IRQ:
            return "full irq" if event.full else "fast irq"
        return EVENTS[what]

    def _catch_up(self, who: int) -> None:
        """Do what the explorer has still to do for its buffers, and the simulator had not."""
        process = self._process(who)
        while process is not None and not process.frames:
            due = core.next_action(process)
            if due is None or due.do not in BUFFERS:
                return
            self._take(lambda label: label.who == who and label.what == "does", f"h{who} does {due.do.name}")
            process = self._process(who)

    # --- the gate -----------------------------------------------------------------------------------------

    def _decides(self, event: gate.Event) -> None:
        ht = event.ht
        if event.ev is Ev.DEAD:
            word, detail = "hears of the death", ht
        elif event.timer is Timer.TURN:
            self._ends_turn()
            return
        elif event.timer is not None:
            word, detail = f"{event.timer.name.lower()} time-out", ht
        else:
            raise self._astray(f"the gate is told {event.ev.name}", "no such step")
        self._take(
            lambda label: label.who == COORDINATOR and label.what == word and label.detail == detail,
            f"the gate {word}, h{ht}",
        )  # fmt: skip
        self._perform_all()

    def _ends_turn(self) -> None:
        """The slice of a room is over: for the explorer, only when another waits for it."""
        if any(self._label(move).what == "ends the turn" for move, _ in self._successors()):
            self._take(lambda label: label.what == "ends the turn", "the gate ends the turn")
            self._perform_all()

    def _perform_all(self) -> None:
        """The simulator's gate performs all that it decides at once."""
        while not self.broken and self.world.parts(self.here)[1].todo:
            self._take(lambda label: label.who == COORDINATOR and label.what == "does", "the gate performs")

    # --- steps --------------------------------------------------------------------------------------------

    def _label(self, move: int) -> Label:
        return self.world.label(move)

    def _successors(self) -> list[tuple[int, int]]:
        try:
            return self.world.successors(self.here)
        except (ProtocolFault, AssertionError) as mistake:
            raise self._astray("goes on", f"{failed(mistake)[1]}") from mistake

    def _take(self, fits: Callable[[Label], Any], words: str) -> None:
        if self.broken:
            return
        found = next(((move, after) for move, after in self._successors() if fits(self._label(move))), None)
        if found is None:
            raise self._astray(words, "the explorer has no such step there")
        self.moves.append(found[0])
        self.here = found[1]
        broken = [how for name, how in self._checks(self.here) if name == self.guarantee]
        if broken:
            self.broken = broken[0]

    def _astray(self, words: str, found: str) -> InputError:
        return InputError(
            f"the run is no schedule: {words}", where=f"step {self._number} of the run",
            state=f"{found}, after {len(self.moves)} steps of the schedule",
            allowed="the steps of asid explore: its own IPIs and flushes, in its order", hint=HINT,
        )  # fmt: skip


def _alike(due: Action, action: Action) -> bool:
    """Say whether two actions are the same but for numbers that are counted from elsewhere."""
    return due.do is action.do and (due.a == action.a or due.do is Do.ARRIVE)
