"""The search itself: limits, checks, progress. One that cannot see proves nothing, so each part is shown a fault."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.core import gate, hyperthread
from asid.core.apic import Apic
from asid.core.events import Kick, Mode
from asid.core.guarantees import GUARANTEES
from asid.core.hyperthread import Phase
from asid.core.policy import make_policy
from asid.errors import ProtocolFault
from asid.explore import meetings, numbers, progress, schedule, siblings
from asid.explore.checks import SOMETIMES, Checks, leak_of, sight
from asid.explore.models import build, of_policy
from asid.explore.parts import Budget, Dead, Model, Sibling, Who, Words, actor
from asid.explore.search import search, waits_for_ever
from asid.explore.world import FAIR, World

PLAIN = build("n2v1")


# --- limits


def test_a_limit_of_worlds_proves_nothing():
    result = search(PLAIN, states_max=100)
    assert 100 < result.states < 110
    assert not result.complete
    assert not result.passed


def test_a_limit_of_depth_proves_nothing():
    result = search(PLAIN, depth_max=10)
    assert not result.complete
    assert result.states < 736


def test_whoever_is_told_can_stop_the_search():
    told = []
    result = search(build("n2v1-nmi"), tell=lambda states: told.append(states) or len(told) < 1)
    assert len(told) == 1
    assert not result.complete


# --- what a search sees


def test_a_broken_guarantee_stops_the_search_at_a_shortest_story(monkeypatch):
    monkeypatch.setitem(
        GUARANTEES, "G3", lambda core: "one is in guest" if any(h and h.mode is Mode.GUEST for h in core[0]) else None
    )
    result = search(PLAIN)
    assert result.violation.guarantee == "G3"
    # ready, attach, ask, admit, enter, look, guest: nothing shorter leads into guest
    assert len(result.violation.moves) == 7
    assert not result.passed


def test_a_guarantee_that_reads_more_than_it_is_shown_fails_at_once(monkeypatch):
    monkeypatch.setitem(GUARANTEES, "G3", lambda core: core.hyperthreads[0].todo and None)
    with pytest.raises(AttributeError, match="todo"):
        search(PLAIN)


def test_a_search_to_the_end_finds_the_shortest_story_of_each_guarantee():
    """The first one that a plain search finds is among them, and each breaks what it says at its last step."""
    first, result = search(BARE), search(BARE, to_the_end=True)
    assert result.complete
    assert set(result.violations) == {"G2", "G3", "G9"}
    assert result.violation.moves == first.violation.moves
    assert not first.complete
    assert [len(result.violations[name].moves) for name in ("G9", "G3", "G2")] == [7, 11, 16]
    w, checks = result.world, Checks(result.world)
    for name, violation in result.violations.items():
        before = {n for world in violation.worlds[:-1] for n, _ in checks(world)}
        assert name not in before
        assert name in {n for n, _ in checks(violation.worlds[-1])}
        _, again = schedule.replayed(schedule.scheduled(w, violation))
        assert (again.guarantee, len(again.moves)) == (name, len(violation.moves))


def test_a_rejected_cell_is_a_violation(monkeypatch):
    def reject(spec, s, order):
        raise ProtocolFault("does not allow that")

    monkeypatch.setattr(hyperthread, "on_admit", reject)
    result = search(PLAIN)
    assert (result.violation.guarantee, result.violation.sentence) == ("table", "does not allow that")


def test_a_failed_assertion_is_a_violation(monkeypatch):
    def fail(spec, g, ht):
        raise AssertionError("never")

    monkeypatch.setattr(gate, "admit", fail)
    result = search(PLAIN)
    assert (result.violation.guarantee, result.violation.sentence) == ("assertion", "never")


def test_what_never_happens_fails_the_search(monkeypatch):
    monkeypatch.setitem(SOMETIMES, "pigs fly", (lambda m: True, lambda seen: False))
    result = search(PLAIN)
    assert result.complete
    assert result.violation is None
    assert not result.sometimes["pigs fly"]
    assert not result.passed


@pytest.mark.parametrize(
    "model",
    [
        Model((1, 0), budget=Budget(timer=1)),
        Model((0, 0), halts=True, budget=Budget(nmi=1)),
        Model((0, 0), budget=Budget(coordinator=1)),
        Model((0, 0), budget=Budget(kill=1, restart=1)),
        Model((0, 0), Kick.SEND, apic=Apic.XAPIC, budget=Budget(nmi=1)),
    ],
    ids=["nobody wants another's lease", "no vCPU to sleep", "no lease", "no guest", "no leave"],
)
def test_nothing_is_asked_for_where_it_cannot_happen(model):
    result = search(model)
    assert result.passed, result.sometimes


def test_queues_without_end_are_a_violation(monkeypatch):
    """A guest that reports each instruction: nothing bounds what is under way to the coordinator."""
    chatty = {**hyperthread._PLAIN, hyperthread.What.RETIRED: lambda spec, s: s._replace(todo=(*s.todo, SENT))}
    monkeypatch.setattr(hyperthread, "_PLAIN", chatty)
    result = search(PLAIN)
    assert result.violation.guarantee == "I10"


SENT = hyperthread.send(hyperthread.Said.ENTERED)


def test_a_world_without_a_next_step_is_a_deadlock_unless_it_may_rest(monkeypatch):
    assert search(Model((0, 0))).passed  # no vCPU anywhere: all idle, and that is the end
    monkeypatch.setattr(
        gate, "admit", lambda spec, g, ht: (gate.put(g, ht, want=gate.Want.NONE)._replace(queue=()), ())
    )
    result = search(PLAIN)
    assert result.violation.guarantee == "L3"
    assert "waits for ever, asking" in result.violation.sentence


def test_a_stopped_process_waits_for_nothing_by_itself():
    """On a core of its own nobody misses it, so nobody has it fenced; the machine stands, and that is no deadlock."""
    result = search(Model((1,), budget=Budget(broadcast=1, stop=1)))
    assert any(s.stopped for s in result.world.siblings.things)
    assert result.passed, result.violation


def test_who_waits_for_a_stopped_process_without_end_is_found(monkeypatch):
    monkeypatch.setattr(meetings, "awaits", lambda *_: iter(()))  # no time-out
    result = search(Model((0, 0), budget=Budget(broadcast=1, stop=1)))
    assert (result.violation.guarantee, "inside a handler" in result.violation.sentence) == ("L3", True)


def test_a_step_that_changes_nothing_is_no_step(monkeypatch):
    """A doorbell that is heard again and again and does nothing hides no deadlock."""
    row = hyperthread.TABLE[Phase.LEAVING]
    monkeypatch.setitem(hyperthread.TABLE, Phase.LEAVING, (row[0], hyperthread.IGNORE, *row[2:]))
    assert search(PLAIN).violation.guarantee == "L3"


def test_a_guest_that_may_never_exit_is_no_reason_to_wait(monkeypatch):
    """The gate forgets to kick: the leaver waits for an exit that the sibling never owes."""
    monkeypatch.setattr(gate, "evict", lambda spec, g, targets: (g, ()))
    result = search(PLAIN)
    assert result.violation.guarantee == "L3"
    assert "leaving" in result.violation.sentence


def test_a_hyperthread_that_is_shut_out_is_found(monkeypatch):
    """The gate never looks at h0's requests. Even without the question about fair runs the search sees it."""
    real = gate.pick
    monkeypatch.setattr(gate, "pick", lambda spec, g: real(spec, g._replace(queue=tuple(ht for ht in g.queue if ht))))
    monkeypatch.setattr(progress, "unfair_cycles", lambda graph: iter(()))
    result = search(PLAIN, waiting=False)
    assert result.violation.sentence == "h0 can never get into guest again"


# --- the parts of a step


BARE = of_policy(make_policy("none", "ack"), (1, 2))


@pytest.mark.parametrize(("model", "breaks"), [(build("n2v1-nmi-send"), set()), (BARE, {"G2", "G3", "G9"})])
def test_checks_say_what_the_guarantees_say_on_the_whole_core(model, breaks):
    """They are asked part by part and remember; the answer must be that of the function on the full view."""
    w = World(model)
    checks = Checks(w)
    here, seen = [w.initial()], {w.initial()}
    broken = set()
    while here and len(seen) < 1500:
        world = here.pop(0)
        full = {name for name, holds in GUARANTEES.items() if holds(w.view(world)) is not None}
        assert {name for name, _ in checks(world)} == full
        broken |= full
        for _, there in w.successors(world):
            if there not in seen:
                seen.add(there)
                here.append(there)
    assert broken == breaks
    assert len(checks.seen) < len(seen) / 2  # it does remember


def test_a_killed_process_may_not_have_sent_its_newest_reports():
    w = World(Model((1,), budget=Budget(kill=1)))
    kills = [w.label(move) for move, _ in w.successors(w.initial()) if w.label(move).what == "is killed"]
    assert sorted(label.detail for label in kills) == [0, 1]


def test_messages_of_the_dead_may_arrive_after_those_of_the_next_life():
    s = siblings.born(Model((1,)), hyperthread.Spec(0, ()), 1, 1, EMPTY)
    s = siblings.killed(s, 0)
    s = siblings.born(Model((1,)), hyperthread.Spec(0, ()), 2, 1, s)
    assert [inc for inc, _ in s.up] == [1, 2]
    assert [inc for inc, _ in siblings.taken(s.up, 2)] == [1]


EMPTY = siblings.Sibling(Dead(0), siblings.Words(request=numbers.BASE), (), ())


def test_a_torn_look_reads_one_word_after_the_other():
    atomic, torn = search(build("n2v1-send")), search(build("n2v1-torn-send"))
    assert atomic.passed
    assert torn.passed
    assert torn.states > atomic.states


# --- strongly connected parts, against the definition


def graph_of(steps, actors=None):
    """A graph of worlds by number alone."""
    starts, targets = array("L"), array("I")
    for there in steps:
        starts.append(len(targets))
        targets.extend(there)
    starts.append(len(targets))
    count = len(targets)
    w = SimpleNamespace(counted=lambda bits: bits, able=lambda world, moved: moved)
    return progress.Graph(w, list(range(len(steps))), starts, targets, array("B", actors or [FAIR] * count))


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 9))
    node = st.integers(0, count - 1)
    steps = [sorted(set(draw(st.lists(node, max_size=4))) - {at}) for at in range(count)]
    return steps, [draw(st.booleans()) for _ in range(count)]


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_components_are_those_of_the_definition(drawn):
    """Two worlds are in one part iff each can be reached from the other inside."""
    steps, inside = drawn
    reach = {at: {at} for at, is_in in enumerate(inside) if is_in}
    for _ in steps:
        for at in reach:
            reach[at] |= {to for mid in reach[at] for to in steps[mid] if inside[to]}
    expected = {frozenset(b for b in reach[a] if a in reach[b]) for a in reach}
    found = {frozenset(part) for part in progress.components(graph_of(steps), bytearray(inside))}
    assert found == {part for part in expected if len(part) > 1}


def test_a_cycle_is_fair_when_nobody_is_left_out_for_ever():
    one, two = actor(Who.PROCESS, 0), actor(Who.PROCESS, 1)
    ring = [[1], [0]]
    assert progress.is_fair(graph_of(ring, [one, two]), [0, 1])
    # h1 can always move, out of the ring, and never does in it
    leak = graph_of([[1, 2], [0, 2], []], [one, two, one, two])
    assert not progress.is_fair(leak, [0, 1])
    # h1 can move from one of the two worlds only: it is not kept waiting while being able
    assert progress.is_fair(graph_of([[1, 2], [0], []], [one, two, one]), [0, 1])


# --- walks at random


@st.composite
def models(draw):
    n = draw(st.sampled_from([1, 2, 4, 8]))
    vms = tuple(draw(st.integers(1, 2)) for _ in range(n))
    messages = ("retry", "hotplug", "unplug", "coordinator")  # with more of these, more messages are under way
    counts = {name: draw(st.integers(0, 1 if name in messages else 2)) for name in Budget._fields}
    return Model(
        vms,
        draw(st.sampled_from([Kick.ACK, Kick.SEND])),
        draw(st.sampled_from([gate.Rooms.VM, gate.Rooms.HYPERTHREAD])),
        Budget(**counts),
        halts=draw(st.booleans()),
        torn=draw(st.booleans()),
    )


@given(models(), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
@pytest.mark.slow
def test_a_walk_at_random_keeps_every_guarantee(model, random):
    """Any width, any mix of faults, far deeper than a search gets: 300 steps."""
    w = World(model)
    checks = Checks(w)
    world = w.initial()
    for _ in range(300):
        assert not checks(world)
        steps = w.successors(world)
        if not steps:
            # One that stops in a handler keeps the others out when nobody is left who misses it (limits.md).
            assert waits_for_ever(w, world) is None or any(s.stopped for s in w.parts(world)[0])
            break
        world = random.choice(steps)[1]


@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_numbers_stay_at_their_base(random):
    """After any step the last request, the last kick and the round are where they are counted from."""
    w = World(build("n2v2-timers"))
    world = w.initial()
    for _ in range(100):
        hts, d, _ = w.parts(world)
        assert all(isinstance(s.process, Dead) or s.process.req == numbers.BASE for s in hts)
        assert d.gate.round == numbers.BASE
        assert all(m.kicks == numbers.BASE for m in d.gate.members)
        world = random.choice(w.successors(world))[1]


def test_what_is_seen_of_a_hyperthread_is_what_the_guarantees_may_read():
    s = Sibling(hyperthread.HyperthreadState(mode=Mode.HOST, vm=3, depth=1, round=9), Words(), (), ())
    assert sight(s).vm == 3
    assert sight(s).round == 0  # of no lease
    assert not hasattr(sight(s), "todo")


def seen(mode: Mode, vm: int = 1, *, tainted: bool = False, pending: bool = False):
    state = hyperthread.HyperthreadState(mode=mode, vm=vm)
    return sight(Sibling(state, Words(tainted=tainted), (), ())), pending


@pytest.mark.parametrize(
    ("core", "kind"),
    [
        ([seen(Mode.GUEST, tainted=True), seen(Mode.HOST)], "concurrent"),
        ([seen(Mode.GUEST, tainted=True), seen(Mode.ISOLATED, 2)], "concurrent"),
        ([seen(Mode.GUEST, tainted=True), seen(Mode.ISOLATED, 1)], "residual"),
        ([seen(Mode.GUEST, tainted=True), seen(Mode.PARKED)], "residual"),
        ([seen(Mode.GUEST, tainted=True), (None, False)], "residual"),
        ([seen(Mode.GUEST, tainted=True), seen(Mode.GUEST, tainted=True), seen(Mode.HOST)], "concurrent"),
        ([seen(Mode.GUEST, tainted=True, pending=True), seen(Mode.HOST)], ""),
        ([seen(Mode.GUEST), seen(Mode.HOST, tainted=True)], ""),
        ([seen(Mode.ENTER, tainted=True), seen(Mode.PARKED)], ""),
    ],
)
def test_a_leak_is_concurrent_while_the_owner_is_at_work(core, kind):
    assert leak_of(core) == kind


def test_a_search_to_the_end_counts_the_worlds_that_leak():
    """Each world once, and the first of a kind is at the end of a shortest way."""
    result = search(of_policy(make_policy("none", "ack"), (1, 1)), to_the_end=True)
    assert result.leaks["residual"].steps == result.violations["G9"].steps == 7
    assert result.leaks["concurrent"].steps > 7
    assert sum(leak.worlds for leak in result.leaks.values()) < result.states
    assert not search(of_policy(make_policy("asi", "ack"), (1, 1)), to_the_end=True).leaks
