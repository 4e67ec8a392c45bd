"""The hyperthread's rules as small stories. R- and I-numbers are those of the protocol's rules and invariants."""

from __future__ import annotations

import pytest

from asid.core import hyperthread
from asid.core.events import Bid, Do, Kick, Mode, Order, Said, Want
from asid.core.hyperthread import ORDERS, TABLE, Event, HyperthreadState, Phase, What
from asid.errors import ProtocolFault

# --- tables


def test_every_phase_has_a_cell_for_every_event_and_every_order():
    assert set(TABLE) == set(ORDERS) == set(Phase)
    cells = {hyperthread.DO, hyperthread.IGNORE, hyperthread.REJECT}
    assert all(len(row) == len(What) - 4 and set(row) <= cells for row in TABLE.values())
    assert all(len(row) == len(Bid) and set(row) <= cells for row in ORDERS.values())


def test_a_rejected_event_changes_nothing_and_says_where_it_stands():
    spec, s = hyperthread.Spec(0, (1,)), HyperthreadState()
    with pytest.raises(ProtocolFault, match="retired in phase IDLE") as caught:
        hyperthread.step(spec, s, hyperthread.RETIRED)
    assert "mode PARKED" in caught.value.state


@pytest.mark.parametrize("phase", list(Phase))
def test_ignored_events_leave_the_state_as_it_is(phase):
    spec, s = hyperthread.Spec(0, (1,)), HyperthreadState(phase=phase)
    events = [What.DOORBELL, What.RETIRED, What.INTERRUPTED, What.EXIT, What.WORKED, What.RUNNABLE, What.TIMEOUT]
    for what in events:
        if TABLE[phase][what - 1] is hyperthread.IGNORE:
            assert hyperthread.step(spec, s, Event(what)) is s


# --- birth and the way in


def test_a_new_process_is_parked_without_a_lease_and_says_so(core):
    """I18. Never HOST, and kicks of an earlier life are not for it."""
    core.request[0] = 7
    core.bear(0, 2)
    assert core.mode(0) is Mode.PARKED
    assert not core.at(0).session
    assert not core.kicked(0)
    core.go(0)
    assert [r.said for r in core.up[0]] == [Said.READY]


def test_entry_publishes_then_looks_then_goes(core):
    """I5. The order is the guarantee: ENTER is public before the first word of a sibling is read."""
    core.attach(0)
    core.hear(0)
    core.happen(0, Event(What.ORDER, order=core.down[0].popleft()))
    done = []
    while hyperthread.next_action(core.at(0)) is not None:
        done.append(core.perform(0))
    assert done == [
        hyperthread.set_mode(Mode.ISOLATED),
        hyperthread.set_mode(Mode.ENTER),
        hyperthread.LOOK,
        hyperthread.set_mode(Mode.GUEST),
    ]


def test_a_kick_between_the_look_and_guest_stops_the_first_instruction(core):
    """Row 30. The pending bit is looked at again at the boundary: out with nothing retired."""
    core.enter(1)
    core.attach(0)
    core.hear(0)
    core.happen(0, Event(What.ORDER, order=core.down[0].popleft()))
    core.perform(0)
    core.perform(0)
    core.perform(0)  # the look: all clear
    core.pending[0] = True
    core.go(0)
    assert core.mode(0) is Mode.GUEST
    core.does(0, hyperthread.INTERRUPTED)
    assert not core.at(0).used
    assert core.phase(0) is Phase.GUEST  # nobody wanted it: cleared, looked again, back in
    assert not core.pending[0]


def test_only_the_first_instruction_is_reported(core):
    """R13. It ends the stickiness of the lease; all others cost nothing."""
    core.enter(0)
    core.does(0, hyperthread.RETIRED)
    core.does(0, hyperthread.FAST_EXIT)
    core.does(0, hyperthread.RETIRED)
    assert not core.up[0]
    assert core.mode(0) is Mode.GUEST


def test_a_fast_exit_looks_again_before_guest(core):
    """R6. Back in without a message, but never without the look."""
    core.enter(0)
    core.happen(0, hyperthread.FAST_EXIT)
    done = []
    while hyperthread.next_action(core.at(0)) is not None:
        done.append(core.perform(0).do)
    assert done == [Do.SET_MODE, Do.WORK, Do.SET_MODE, Do.LOOK, Do.SET_MODE]
    assert not core.up[0]


# --- leaves


def test_a_leave_stays_isolated_until_it_is_granted(core):
    core.enter(0, 1)
    core.does(0, hyperthread.FULL_EXIT)
    assert core.mode(0) is Mode.ISOLATED
    assert core.up[0][0].said is Said.LEAVE
    core.hear(0)
    assert not core.down[0]  # h1 is still in guest
    core.answers(1)
    core.takes(0, Bid.GRANT)
    assert core.mode(0) is Mode.HOST
    assert core.mode(1) is Mode.PARKED


def test_back_from_host_is_parked_done_and_the_next_ask_in_one_report(core):
    """Row 12."""
    core.enter(0)
    core.to_host(0)
    core.does(0, hyperthread.WORKED)
    (report,) = core.up[0]
    assert (report.said, report.want, report.mode) == (Said.DONE, Want.ASK, Mode.PARKED)


def test_a_halt_asks_only_when_the_vcpu_wakes(core):
    core.enter(0)
    core.to_host(0)
    core.does(0, hyperthread.HALT)
    assert core.up[0][-1].want is Want.NONE
    core.hear(0)
    core.does(0, hyperthread.RUNNABLE)
    assert core.up[0][-1].want is Want.ASK


def test_a_send_leave_raises_its_flag_before_the_first_ipi_and_lowers_it_after_the_mode(send_core):
    """R10, I6."""
    core = send_core
    core.enter(0, 1)
    core.happen(0, hyperthread.FULL_EXIT)
    done = []
    while hyperthread.next_action(core.at(0)) is not None:
        done.append(core.perform(0))
    assert [a.do for a in done] == [Do.SET_MODE, Do.SET_FLAG, Do.IPI, Do.SET_MODE]
    assert core.mode(0) is Mode.HOST
    assert core.pending[1]
    core.does(1, hyperthread.INTERRUPTED)
    assert core.phase(1) is Phase.HELD  # the flag keeps it out
    core.happen(0, hyperthread.WORKED)
    core.perform(0)
    assert core.mode(0) is Mode.ISOLATED
    assert core.flag[0]
    core.go(0)
    core.does(1, hyperthread.DOORBELL)
    assert core.mode(0) is core.mode(1) is Mode.GUEST


def test_a_bare_leave_tells_nobody(make_core):
    """The negative control."""
    core = make_core((1,), Kick.BARE)
    core.enter(0)
    core.does(0, hyperthread.FULL_EXIT)
    assert core.mode(0) is Mode.HOST
    assert not core.up[0]
    assert not core.ipis


# --- kicks


def test_a_kicked_guest_parks_then_answers_with_what_it_wants_next(core):
    """R7, R9."""
    core.enter(0, 1)
    core.leaves(0)
    core.happen(1, hyperthread.INTERRUPTED)
    core.go(1, until=Do.SEND)
    assert core.mode(1) is Mode.PARKED
    core.go(1)
    (answer,) = core.up[1]
    assert (answer.said, answer.want, answer.session, answer.answered) == (Said.ANSWER, Want.ASK, False, 1)


def test_a_kick_is_answered_while_waiting_for_host(core):
    """R8, row 8: both ask for HOST at once; one is kicked while it waits, and both get in."""
    core.enter(0, 1)
    core.does(0, hyperthread.FULL_EXIT)
    core.does(1, hyperthread.FULL_EXIT)
    core.hear(0)
    core.hear(1)
    assert core.kicked(1)
    core.answers(1)
    assert core.phase(1) is Phase.LEAVING
    core.takes(0, Bid.GRANT)
    core.takes(1, Bid.GRANT)
    assert core.mode(0) is core.mode(1) is Mode.HOST


def test_a_kick_that_finds_an_ask_under_way_makes_its_grant_void(core):
    """R7, row 3: it answers, waits for that grant, drops it and asks again under a new number."""
    core.attach(0)
    before = core.at(0).req
    core.request[0] = 5
    core.does(0, hyperthread.DOORBELL)
    assert core.at(0).void
    late = Order(Bid.ADMIT, 0, 1, 1, 1, before, 1)
    core.up[0].clear()
    core.does(0, Event(What.ORDER, order=late))
    assert core.mode(0) is Mode.PARKED
    assert core.up[0][0].req == before + 1


def test_a_doorbell_for_a_kick_already_answered_changes_nothing(core):
    """Row 25."""
    core.enter(0, 1)
    core.to_host(0)
    before = core.at(1)
    core.does(1, hyperthread.DOORBELL)
    assert core.at(1)._replace(todo=()) == before
    assert not core.up[1]


# --- orders of other lives


@pytest.mark.parametrize(("inc", "coord", "req"), [(2, 1, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)])
def test_a_grant_of_another_life_or_number_changes_nothing(core, inc, coord, req):
    """I11."""
    core.attach(0)
    before = core.at(0)
    core.does(0, Event(What.ORDER, order=Order(Bid.ADMIT, 0, inc, coord, 1, req, 1)))
    assert core.at(0) == before


def test_a_retry_has_a_new_number_so_the_old_grant_is_dropped(core):
    """R16, rows 76 and 77."""
    core.attach(0)
    core.hear(0)
    lost = core.down[0].popleft()
    core.does(0, hyperthread.TIMEOUT)
    core.does(0, Event(What.ORDER, order=lost))
    assert core.phase(0) is Phase.ASKING
    core.hear(0)
    core.takes(0, Bid.ADMIT)
    assert core.mode(0) is Mode.GUEST


def test_a_resync_is_answered_with_everything(core):
    """I19. The lease goes on, and the new coordinator is told of it."""
    core.enter(0)
    core.does(0, Event(What.ORDER, order=Order(Bid.RESYNC, 0, 1, 2, 0, 0, 0)))
    (report,) = core.up[0]
    assert (report.said, report.coord, report.session, report.mode) == (Said.READY, 2, True, Mode.GUEST)
    assert core.at(0).coord == 2


def test_an_order_that_cannot_be_is_rejected(core):
    """A stop of a lease holder: the gate would have to believe what is not."""
    core.enter(0)
    with pytest.raises(ProtocolFault, match="ordered to stop in phase GUEST"):
        core.happen(0, Event(What.ORDER, order=Order(Bid.STOP, 0, 1, 1, 1, 1, 0)))


# --- NMI and #MC


def test_an_nmi_in_guest_exits_first_kicks_then_host_then_back_through_the_look(core):
    """R10, I12, row 32."""
    core.enter(0, 1)
    core.happen(0, hyperthread.NMI)
    done = []
    while hyperthread.next_action(core.at(0)) is not None:
        done.append(core.perform(0))
    doing = [a.do for a in done]
    assert doing[:5] == [Do.SET_MODE, Do.SET_DEPTH, Do.IPI, Do.SET_MODE, Do.WORK]
    assert done[0].a is Mode.ISOLATED
    assert done[3].a is Mode.HOST
    assert doing[5:8] == [Do.SET_MODE, Do.SET_DEPTH, Do.WAKE]
    assert done[5].a is Mode.ISOLATED
    assert [a.a for a in done[8:]] == [Mode.ENTER, 0, Mode.GUEST]
    assert core.ipis == [(0, 1)]


@pytest.mark.parametrize("kick", [Kick.ACK, Kick.SEND])
@pytest.mark.parametrize("what", [hyperthread.NMI, hyperthread.MCE])
def test_an_nmi_at_every_step_of_a_life_restores_the_mode(make_core, kick, what):
    """Rows 31 and 33: between any two actions, in every phase; the mode after it is the one before, or ISOLATED."""
    hits = 0
    for at in range(60):
        core = make_core((1, 1), kick)
        steps = 0

        def strike(c, ht=0, at=at):
            nonlocal steps, hits
            if steps == at:
                before, depth = c.mode(ht), c.depth[ht]
                c.happen(ht, what)
                while c.at(ht).frames:
                    c.perform(ht)
                assert c.mode(ht) is (Mode.ISOLATED if before is Mode.GUEST else before)
                assert c.depth[ht] == depth
                hits += 1
            steps += 1

        def run(c, ht, event=None):
            strike(c, ht)
            if event is not None:
                c.go(ht)
                c.happen(ht, event)
            while hyperthread.next_action(c.at(ht)) is not None:
                strike(c, ht)
                c.perform(ht)

        run(core, 0)
        core.hear(0)
        run(core, 0, Event(What.ORDER, order=core.down[0].popleft()))
        core.hear(0)
        run(core, 0, Event(What.ORDER, order=core.down[0].popleft()))
        strike(core)
        run(core, 0)
        run(core, 0, hyperthread.RETIRED)
        run(core, 0)
        run(core, 0, hyperthread.FULL_EXIT)
        core.hear(0)
        if kick is Kick.ACK:
            run(core, 0, Event(What.ORDER, order=core.down[0].popleft()))
        run(core, 0, hyperthread.WORKED)
        if steps <= at:
            break
    assert hits > 15
    assert hits == at


def test_a_guest_kicked_by_an_nmi_keeps_its_lease_and_waits_for_it_to_end(core):
    core.enter(0, 1)
    core.happen(0, hyperthread.NMI)
    while core.mode(0) is not Mode.HOST:
        core.perform(0)
    core.does(1, hyperthread.INTERRUPTED)
    assert core.phase(1) is Phase.HELD
    assert core.at(1).session
    assert not core.up[1]  # no message: NMIs need no coordinator
    core.go(0)
    core.does(1, hyperthread.DOORBELL)
    assert core.mode(1) is Mode.GUEST


def test_an_nmi_eats_no_pending_kick(core):
    """Row 34: the kick arrives, an NMI runs, the kick is still there."""
    core.enter(0, 1)
    core.leaves(1)
    assert core.pending[0]
    core.does(0, hyperthread.NMI)
    assert core.phase(0) is Phase.ASKING  # its way back in looked, and found the request
    core.hear(0, Said.ANSWER)
    core.takes(1, Bid.GRANT)


def test_a_machine_check_inside_an_nmi_leaves_the_depth_of_the_nmi(core):
    """Row 38, I12."""
    core.enter(0)
    core.happen(0, hyperthread.NMI)
    while core.mode(0) is not Mode.HOST:
        core.perform(0)
    core.happen(0, hyperthread.MCE)
    while len(core.at(0).frames) == 2:
        core.perform(0)
    assert core.depth[0] == 1
    assert core.mode(0) is Mode.HOST
    core.go(0)
    assert core.depth[0] == 0


def test_a_machine_check_in_host_kicks_nobody_and_restores_nothing(core):
    """Row 39."""
    core.enter(0)
    core.to_host(0)
    core.happen(0, hyperthread.MCE)
    done = []
    while core.at(0).frames:
        done.append(core.perform(0).do)
    assert done == [Do.SET_DEPTH, Do.WORK, Do.SET_DEPTH]
    assert core.mode(0) is Mode.HOST


def test_a_second_nmi_is_latched_by_the_hardware(core):
    """Row 36: not on top of the first."""
    core.enter(0)
    core.happen(0, hyperthread.NMI)
    assert not hyperthread.may_interrupt(core.specs[0], core.at(0), What.NMI)
    assert hyperthread.may_interrupt(core.specs[0], core.at(0), What.MCE)


def test_nmis_on_all_siblings_at_once_all_return(make_core):
    """Row 40: nobody waits for anybody."""
    core = make_core((1, 1, 1, 1))
    core.enter(0, 1, 2, 3)
    for ht in range(4):
        core.happen(ht, hyperthread.NMI)
    for _ in range(12):
        for ht in range(4):
            if core.at(ht).frames:
                core.perform(ht)
    assert not any(core.at(ht).frames for ht in range(4))
    for ht in range(4):
        core.go(ht)
        if core.phase(ht) is Phase.HELD:
            core.does(ht, hyperthread.DOORBELL)
    assert [core.mode(ht) for ht in range(4)] == [Mode.GUEST] * 4
    assert len(core.ipis) == 12
