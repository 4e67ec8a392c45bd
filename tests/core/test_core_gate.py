"""The gate's rules as small stories. R-numbers are the protocol's rules; "row" is the catalogue of races."""

from __future__ import annotations

import pytest

from asid.core import gate, hyperthread
from asid.core.events import Bid, Do, Kick, Mode, Order, Report, Said, Timer, Want
from asid.core.gate import Belief, Ev, Rooms
from asid.core.hyperthread import Event, Phase, What
from asid.core.limits import SIBLINGS_ALLOWED

# --- admission


def test_nobody_is_admitted_before_it_has_reported(core):
    """Row 13: hyperthreads appear one by one, and the gate knows nothing of those that have not."""
    assert core.belief(0) is core.belief(1) is Belief.OFFLINE
    core.attach(0)
    core.hear(0)
    assert core.belief(0) is Belief.SESSION
    assert core.belief(1) is Belief.OFFLINE


def test_belief_is_set_before_the_grant_is_read(core):
    """R3: the lease is still on its way, and the gate counts on it."""
    core.attach(0)
    core.hear(0)
    assert core.down[0][0].bid is Bid.ADMIT
    assert core.mode(0) is Mode.PARKED
    assert core.belief(0) is Belief.SESSION


def test_siblings_of_one_vm_do_not_wait_for_each_other(make_core):
    """Row 5, concurrent entering: one stays in guest for ever, and seven enter beside it."""
    core = make_core((1,) * 8)
    core.enter(*range(8))
    assert [core.mode(ht) for ht in range(8)] == [Mode.GUEST] * 8
    assert core.g.round == 1


@pytest.mark.parametrize("n", SIBLINGS_ALLOWED)
def test_a_leave_kicks_everybody_else_once_and_waits_for_all(make_core, n):
    """Rows 14 and 15, R4: any number of siblings, no special case."""
    core = make_core((1,) * n)
    core.enter(*range(n))
    core.leaves(0)
    assert [core.kicked(ht) for ht in range(n)] == [False] + [True] * (n - 1)
    for ht in range(1, n):
        assert not core.down[0]
        core.answers(ht)
    core.takes(0, Bid.GRANT)
    assert core.mode(0) is Mode.HOST


def test_a_kick_is_its_request_and_then_its_pending_bit(core):
    """I8."""
    core.enter(0, 1)
    core.does(0, hyperthread.FULL_EXIT)
    actions = core.hear(0)
    assert [a.do for a in actions if a.do is not Do.TIMER] == [Do.REQUEST, Do.PEND]
    assert actions[0].b == core.request[1] == core.g.members[1].kicked


def test_nobody_enters_until_everybody_is_out_of_host(core):
    """I7: from the kick to the end of the visit."""
    core.enter(0, 1)
    core.to_host(0)
    assert core.g.members[1].want is Want.ASK
    assert not core.down[1]
    core.does(0, hyperthread.WORKED)
    core.hear(0, Said.DONE)
    assert core.takes(1, Bid.ADMIT).round == core.takes(0, Bid.ADMIT).round == 2


def test_rounds_grow_by_one_each_time_the_gate_opens(core):
    """G5."""
    rounds = []
    core.enter(0)
    for _ in range(3):
        rounds.append(core.g.round)
        core.to_host(0)
        core.does(0, hyperthread.WORKED)
        core.hear(0)
        core.enter(0)
    assert rounds == [1, 2, 3]


def test_a_leave_during_a_grant_in_flight_waits_for_its_answer(core):
    """Row 2: h1's lease is under way when h0 wants to leave. It is fresh, so it is kicked once it was used."""
    core.enter(0)
    core.attach(1)
    core.hear(1)
    core.leaves(0)
    assert not core.kicked(1)
    core.takes(1, Bid.ADMIT)
    core.does(1, hyperthread.RETIRED)
    core.hear(1, Said.ENTERED)
    assert core.kicked(1)
    core.answers(1)
    core.takes(0, Bid.GRANT)


# --- fairness


def test_a_fresh_lease_is_sticky_until_its_first_instruction(core):
    """R13, row 10."""
    core.enter(0)
    core.attach(1)
    core.hear(1)
    core.takes(1, Bid.ADMIT)
    core.leaves(0)
    assert not core.kicked(1)
    assert core.timers[-1][0] is Timer.STICKY
    core.does(1, hyperthread.RETIRED)
    core.hear(1, Said.ENTERED)
    assert core.kicked(1)


def test_a_lease_that_nobody_uses_is_taken_back_in_the_end(core):
    core.enter(0)
    core.attach(1)
    core.hear(1)
    core.leaves(0)
    core.timeout(Timer.STICKY)
    assert core.kicked(1)
    core.does(1, hyperthread.DOORBELL)
    assert core.at(1).void
    core.hear(1, Said.ANSWER)
    core.takes(0, Bid.GRANT)
    core.takes(1, Bid.ADMIT)  # dropped: the kick had crossed it
    assert core.mode(1) is Mode.PARKED


def test_a_leave_overtakes_a_waiting_ask_once(make_core):
    """R14, row 9: h0 is in HOST, h2 asks; h1's leave may go first, the next one may not."""
    core = make_core((1, 1, 2))
    core.enter(0, 1)
    core.attach(2)
    core.hear(2)
    core.leaves(0)
    core.answers(1)
    core.takes(0, Bid.GRANT)
    assert core.g.overtaken == 1
    assert core.g.queue[0] == 2


def test_two_vms_take_turns(two_vms):
    """Rows 6 and 7: the other VM waits PARKED until the slice is over, then the first one is kicked out."""
    core = two_vms
    core.enter(0)
    core.attach(1)
    core.hear(1)
    assert core.phase(1) is Phase.ASKING
    assert not core.kicked(0)
    core.timeout(Timer.TURN)
    assert core.kicked(0)
    core.answers(0)
    core.takes(1, Bid.ADMIT)
    assert core.mode(1) is Mode.GUEST
    assert core.mode(0) is Mode.PARKED
    assert core.g.turn == 2


def test_the_turn_changes_at_once_when_its_vm_goes_idle(two_vms):
    core = two_vms
    core.enter(0)
    core.attach(1)
    core.hear(1)
    core.to_host(0)
    core.does(0, hyperthread.HALT)
    core.hear(0)
    core.takes(1, Bid.ADMIT)
    assert core.mode(1) is Mode.GUEST


def test_nosmt_runs_one_vcpu_of_the_core_at_a_time(make_core):
    core = make_core((1, 1), Kick.ACK, gate.Spec(rooms=Rooms.HYPERTHREAD))
    core.enter(0)
    core.attach(1)
    core.hear(1)
    assert not core.down[1]
    core.timeout(Timer.TURN)
    core.answers(0)
    core.takes(1, Bid.ADMIT)
    assert [core.mode(ht) for ht in (0, 1)] == [Mode.PARKED, Mode.GUEST]


def test_policy_none_excludes_nobody(make_core):
    core = make_core((1, 2), Kick.BARE, gate.Spec(rooms=Rooms.ALL, host_alone=False))
    core.attach(0, 1)
    core.hear(0)
    core.hear(1)
    assert [core.down[ht][0].bid for ht in (0, 1)] == [Bid.ADMIT, Bid.ADMIT]


# --- reports


def test_a_repeated_ask_replaces_what_was_believed(core):
    """R16, row 76: the lease was lost; the same hyperthread asks again and gets another."""
    core.attach(0)
    core.hear(0)
    core.down[0].clear()
    core.does(0, hyperthread.TIMEOUT)
    core.hear(0, Said.ASK)
    core.takes(0, Bid.ADMIT)
    assert core.mode(0) is Mode.GUEST


def test_a_report_that_crossed_a_grant_lowers_no_belief(core):
    """R3: the ask is sent twice with one number; the second copy arrives after the lease was given."""
    core.attach(0)
    twice = core.up[0][0]
    core.hear(0)
    core.step_gate(gate.Event(Ev.REPORT, report=twice))
    assert core.belief(0) is Belief.SESSION
    assert len(core.down[0]) == 1


def test_a_repeated_leave_of_one_in_host_is_what_it_says(two_vms):
    """Row 78, R2: the grant is slow and the leaver asks again, still ISOLATED. It is not taken for parked."""
    core = two_vms
    core.enter(0)
    core.attach(1)
    core.hear(1)
    core.leaves(0)
    core.does(0, hyperthread.TIMEOUT)
    core.hear(0, Said.LEAVE)
    assert core.belief(0) in (Belief.SESSION, Belief.HOST)
    assert not core.down[1]


@pytest.mark.parametrize("heard", [False, True], ids=["the READY was lost", "the READY was heard"])
def test_an_interrupt_of_one_that_may_not_have_been_heard_of_gets_its_leave(make_core, heard):
    """L1: what it says next is of a life that the gate does not know, so it says again that it is there."""
    core = make_core((0,))
    core.go(0)
    if heard:
        core.hear(0, Said.READY)
    core.up[0].clear()
    core.does(0, hyperthread.FULL_IRQ)
    core.hear(0, Said.LEAVE)
    assert len(core.down[0]) == heard
    core.down[0].clear()  # and the grant, if there was one, gets lost as well
    core.does(0, hyperthread.TIMEOUT)
    core.hear(0, Said.READY)
    core.takes(0, Bid.GRANT)
    assert core.mode(0) is Mode.HOST
    core.does(0, hyperthread.WORKED)
    core.hear(0, Said.DONE)
    assert core.belief(0) is Belief.PARKED


@pytest.mark.parametrize(("inc", "coord"), [(2, 1), (0, 1), (1, 0), (1, 2)])
def test_a_report_of_another_life_changes_nothing(core, inc, coord):
    """I11, row 59."""
    core.enter(0)
    before = core.g
    report = Report(Said.ASK, 0, inc, coord, 0, 9, Want.ASK, False, Mode.PARKED, 1, False, False, 0)
    assert core.step_gate(gate.Event(Ev.REPORT, report=report)) == ()
    assert core.g == before


# --- death


def test_a_confirmed_death_is_an_answer(core):
    """R15, rows 52 and 53."""
    core.enter(0, 1)
    core.leaves(0)
    inc = core.kill(1)
    assert not core.down[0]
    core.hear_of_death(1, inc)
    assert core.buried == [(1, inc)]
    core.takes(0, Bid.GRANT)
    assert core.mode(0) is Mode.HOST


def test_the_words_of_the_dead_are_wiped_before_anybody_looks_again(core):
    """Row 52: h1 dies in an NMI with its depth raised; h0 was kept out by it."""
    core.enter(0, 1)
    core.happen(1, hyperthread.NMI)
    while core.mode(1) is not Mode.HOST:
        core.perform(1)
    core.does(0, hyperthread.INTERRUPTED)
    assert core.phase(0) is Phase.HELD
    core.hear_of_death(1, core.kill(1))
    assert core.depth[1] == 0
    core.does(0, hyperthread.DOORBELL)
    assert core.mode(0) is Mode.GUEST


def test_a_death_told_twice_or_of_an_earlier_life_changes_nothing(core):
    core.enter(0, 1)
    core.hear_of_death(1, core.kill(1))
    before = core.g
    assert core.hear_of_death(1, 1) == ()
    core.bear(1, 2)
    core.go(1)
    core.hear(1, Said.READY)
    assert core.hear_of_death(1, 1) == ()
    assert core.belief(1) is Belief.PARKED
    assert before.members[1].belief is Belief.OFFLINE


def test_a_new_life_is_not_let_in_before_the_old_one_is_buried(core):
    """Row 60."""
    core.enter(0, 1)
    core.kill(1)
    core.bear(1, 2)
    core.go(1)
    core.hear(1, Said.READY)
    assert core.g.members[1].inc == 1
    assert core.belief(1) is Belief.SESSION


def test_a_silent_sibling_is_kicked_again_then_fenced_and_never_assumed_gone(core):
    """I16, I17, rows 29, 55 and 56."""
    core.enter(0, 1)
    core.leaves(0)
    core.pending[1] = False  # the IPI was lost
    core.timeout(Timer.REKICK)
    assert core.pending[1]
    core.timeout(Timer.KICK)
    assert core.fenced == [(1, 1)]
    assert not core.down[0]
    core.hear_of_death(1, core.kill(1))
    core.takes(0, Bid.GRANT)


def test_a_time_out_of_an_answered_kick_does_nothing(core):
    core.enter(0, 1)
    core.leaves(0)
    core.answers(1)
    assert core.timeout(Timer.KICK) == ()
    assert core.fenced == []


# --- a coordinator that comes back


def resume(core, coord=2):
    """The coordinator dies with everything it believed; the next one is told who lives."""
    living = tuple(s.inc if s is not None else 0 for s in core.s)
    kicks = max(m.kicks for m in core.g.members) + 1
    attached = tuple(m.attached for m in core.g.members)
    for queue in core.up:
        queue.clear()
    core.g, actions = gate.resumed(core.gate_spec, coord, core.g.round, living, attached, kicks)
    core.carry_out(actions)


def test_a_coordinator_that_comes_back_believes_nothing_of_anybody(core):
    """I19, rows 66 and 67: one lease goes on; nobody is admitted until both have reported."""
    core.enter(0)
    core.attach(1)
    resume(core)
    assert core.belief(0) is core.belief(1) is Belief.UNKNOWN
    core.takes(1, Bid.RESYNC)
    core.hear(1, Said.READY)
    assert not core.down[1]
    core.takes(0, Bid.RESYNC)
    core.hear(0, Said.READY)
    assert core.belief(0) is Belief.SESSION
    core.takes(1, Bid.ADMIT)
    assert core.at(1).round == core.at(0).round  # the lease that outlived its coordinator is of the round that goes on


def test_a_report_meant_for_the_dead_coordinator_is_dropped(core):
    """Row 68."""
    core.attach(0)
    late = core.up[0][0]
    resume(core)
    before = core.g
    core.step_gate(gate.Event(Ev.REPORT, report=late))
    assert core.g == before


def test_who_stays_silent_when_a_coordinator_comes_back_is_fenced(core):
    """I17: nobody waits for ever for one that is unknown, and nobody takes its silence for an answer."""
    core.enter(0, 1)
    resume(core)
    core.takes(0, Bid.RESYNC)
    core.hear(0, Said.READY)
    core.leaves(0)
    core.step_gate(gate.Event(Ev.TIMER, timer=Timer.RESYNC, ht=0, key=1))
    assert core.fenced == [], "it has reported"
    core.step_gate(gate.Event(Ev.TIMER, timer=Timer.RESYNC, ht=1, key=7))
    assert core.fenced == [], "another incarnation"
    core.step_gate(gate.Event(Ev.TIMER, timer=Timer.RESYNC, ht=1, key=1))
    assert core.fenced == [(1, 1)]
    assert not core.down[0], "a time-out opens nothing"
    core.hear_of_death(1, core.kill(1))
    core.takes(0, Bid.GRANT)


def test_who_does_not_know_the_new_coordinator_is_told_again(core):
    """Found by the explorer (model n2v1-coordinator-loss, 20 steps): RESYNC was lost, and what its receiver asked for
    again and again was meant for the dead coordinator.
    """
    core.attach(0)
    late = core.up[0][-1]
    resume(core)
    core.down[0].clear()
    core.step_gate(gate.Event(Ev.REPORT, report=late))
    core.takes(0, Bid.RESYNC)
    core.hear(0, Said.READY)
    assert core.belief(0) is Belief.PARKED
    core.step_gate(gate.Event(Ev.REPORT, report=late))
    assert not core.down[0], "it knows by now"


def test_the_dead_are_wiped_when_a_coordinator_comes_back(core):
    core.enter(0, 1)
    core.kill(1)
    core.depth[1] = 1
    resume(core)
    assert core.depth[1] == 0
    assert core.buried == [(1, 0)]  # after the wipe: whoever is born next keeps its own words
    assert core.belief(1) is Belief.OFFLINE


# --- hotplug, holds, stops


def test_a_detach_waits_for_the_lease_and_gives_the_turn_away(two_vms):
    core = two_vms
    core.enter(0)
    core.attach(1)
    core.hear(1)
    core.step_gate(gate.Event(Ev.DETACH, ht=0))
    assert core.kicked(0)
    core.answers(0)
    core.takes(0, Bid.DETACH)
    core.hear(0, Said.IDLE)
    assert core.phase(0) is Phase.IDLE
    core.takes(1, Bid.ADMIT)
    core.step_gate(gate.Event(Ev.ATTACH, ht=0, vm=1))
    core.takes(0, Bid.ATTACH)
    assert core.phase(0) is Phase.ASKING


def test_a_detach_that_was_lost_is_ordered_again(core):
    """Found by the explorer (model n2v1-loss-hotplug, 21 steps): the order was lost, the hyperthread asked again under
    a new number for ever, and the gate, which had no vCPU for it any more, ignored it.
    """
    core.attach(0)
    core.step_gate(gate.Event(Ev.DETACH, ht=0))
    assert core.down[0].pop().bid is Bid.DETACH
    core.up[0].clear()
    core.does(0, hyperthread.TIMEOUT)
    core.hear(0, Said.ASK)
    core.takes(0, Bid.DETACH)
    assert core.phase(0) is Phase.IDLE


def test_a_detach_that_died_with_its_coordinator_is_ordered_again(core):
    """Found by the explorer (model n2v1-coordinator-hotplug, 12 steps)."""
    core.attach(0)
    core.step_gate(gate.Event(Ev.DETACH, ht=0))
    core.down[0].clear()
    resume(core)
    core.takes(0, Bid.RESYNC)
    core.hear(0, Said.READY)
    core.takes(0, Bid.DETACH)
    assert core.phase(0) is Phase.IDLE


def test_a_held_gate_kicks_everybody_and_admits_nobody_until_it_is_let_go(core):
    core.enter(0, 1)
    core.step_gate(gate.Event(Ev.HOLD))
    core.answers(0)
    core.answers(1)
    assert not core.down[0]
    assert not core.down[1]
    core.step_gate(gate.Event(Ev.RELEASE))
    core.takes(0, Bid.ADMIT)
    core.takes(1, Bid.ADMIT)


def test_a_leave_is_granted_while_the_gate_is_held(core):
    """A hold keeps guests out, not the host."""
    core.enter(0, 1)
    core.step_gate(gate.Event(Ev.HOLD))
    core.does(0, hyperthread.FULL_EXIT)
    core.hear(0)
    core.answers(1)
    core.does(0, hyperthread.DOORBELL)
    core.hear(0)
    core.takes(0, Bid.GRANT)
    assert core.mode(0) is Mode.HOST


def test_a_stop_is_ordered_once_the_lease_is_back(core):
    core.enter(0, 1)
    core.step_gate(gate.Event(Ev.STOP, ht=1))
    core.answers(1)
    core.takes(1, Bid.STOP)
    assert core.phase(1) is Phase.STOPPED
    assert core.up[1][-1].said is Said.BYE
    assert core.mode(0) is Mode.GUEST


# --- an NMI needs no coordinator


def test_an_nmi_of_a_waiting_leaver_ends_before_its_grant_is_used(core):
    """Row 33: the grant arrives while the handler runs; the mode of the main line changes after it."""
    core.enter(0, 1)
    core.leaves(0)
    core.answers(1)
    core.happen(0, hyperthread.NMI)
    core.go(0)
    assert core.mode(0) is Mode.ISOLATED
    core.takes(0, Bid.GRANT)
    assert core.mode(0) is Mode.HOST


def test_an_order_for_another_hyperthread_is_a_routing_error(core):
    core.attach(0)
    with pytest.raises(AssertionError, match="routed to the wrong process"):
        core.happen(0, Event(What.ORDER, order=Order(Bid.ADMIT, 1, 1, 1, 1, 1, 1)))
