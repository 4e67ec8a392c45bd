"""Each guarantee as a function, on one core that keeps it and one that does not."""

from __future__ import annotations

import pytest

from asid.core import guarantees
from asid.core.events import Mode, Want
from asid.core.gate import Belief, GateState, Member
from asid.core.guarantees import GUARANTEES, CoreView
from asid.core.hyperthread import LOOK, Frame, HyperthreadState, Phase, What
from asid.core.mce import Meeting


def leased(mode=Mode.GUEST, **more):
    return HyperthreadState(mode=mode, phase=Phase.GUEST, vm=1, session=True, used=True, round=1)._replace(**more)


PARKED = HyperthreadState(vm=1, phase=Phase.ASKING)
HOST = HyperthreadState(mode=Mode.HOST, phase=Phase.HOSTING, vm=1)
ISOLATED_2 = leased(Mode.ISOLATED, vm=2)
NMI = Frame(What.NMI, (LOOK,), Mode.ISOLATED)


def core(*hts, pending=(), beliefs=(), coord=1, tainted=(), **gate):
    """A core of these hyperthreads; `beliefs`: the gate's, in order; without, no coordinator runs."""
    bits = tuple(ht in pending for ht in range(len(hts)))
    members = tuple(Member(inc=1, belief=belief) for belief in beliefs)
    state = GateState(coord=coord, members=members)._replace(**gate) if beliefs else None
    return CoreView(hts, bits, state, tuple(ht in tainted for ht in range(len(hts))))


SESSION, IS_PARKED, UNKNOWN = Belief.SESSION, Belief.PARKED, Belief.UNKNOWN
GOOD_AND_BAD = {
    "G1": (
        core(leased(), PARKED, beliefs=(SESSION, IS_PARKED)),
        core(leased(), PARKED, beliefs=(IS_PARKED, IS_PARKED)),
        "h0 holds a lease while the gate believes PARKED",
    ),
    "G2": (
        core(leased(), PARKED),
        core(leased(), HOST),
        "h0 may run guest instructions beside h1 in HOST",
    ),
    "G3": (
        core(leased(), leased(Mode.ISOLATED)),
        core(leased(), ISOLATED_2),
        "h0 is in guest of vm 1 beside h1, ISOLATED of vm 2",
    ),
    "G4": (
        core(leased(Mode.ENTER, session=False)),
        core(leased(session=False)),
        "h0 is in guest after it handed its lease back",
    ),
    "G5": (
        core(leased(), leased()),
        core(leased(), leased(round=2)),
        "leases of rounds [1, 2] side by side",
    ),
    "G10": (
        core(leased(Mode.HOST, depth=1, frames=(NMI,))),
        core(leased(Mode.HOST, depth=1)),
        "h0 publishes depth 1 with 0 handlers under way",
    ),
    "G9": (
        core(leased(), PARKED, pending=(0,), tainted=(0, 1)),
        core(leased(), PARKED, tainted=(0, 1)),
        "h0 may run guest instructions while the buffers hold what was loaded in HOST or by another lease",
    ),
    "G11": (
        core(None, None, beliefs=(SESSION, UNKNOWN)),
        core(None, None, members=(Member(1, SESSION, granted=3, fresh=True), Member(1, UNKNOWN)), beliefs=(UNKNOWN,)),
        "h0 was admitted while a sibling was unknown",
    ),
}


def test_every_guarantee_has_its_two_cores():
    assert set(GOOD_AND_BAD) == set(GUARANTEES)


@pytest.mark.parametrize("name", GUARANTEES)
def test_a_good_core_and_a_bad_one(name):
    good, bad, sentence = GOOD_AND_BAD[name]
    assert GUARANTEES[name](good) is None
    assert GUARANTEES[name](bad) == sentence


@pytest.mark.parametrize(
    ("guest", "other", "pending", "failed", "broken"),
    [
        (leased(), PARKED, (), False, False),
        (leased(), PARKED, (), True, True),
        (leased(), None, (), True, True),
        (leased(), PARKED, (0,), True, False),  # it is kicked: no instruction retires
        (leased(), leased(Mode.HOST, depth=1, frames=(NMI,)), (), True, False),  # its kicks are still to come
        (leased(Mode.ENTER), PARKED, (), True, False),
    ],
)
def test_no_guest_runs_on_a_failed_core_once_the_handler_is_over(guest, other, pending, failed, broken):
    """G10."""
    meetings = (Meeting(failed=failed), None if other is None else Meeting(failed=failed))
    view = core(guest, other, pending=pending)._replace(meetings=meetings)
    assert (GUARANTEES["G10"](view) is not None) is broken


def test_isolated_without_a_lease_is_broken_unless_something_is_to_be_done_about_it():
    idle = leased(Mode.ISOLATED, session=False)
    assert GUARANTEES["G1"](core(idle)) == "h0 is ISOLATED without a lease"
    assert GUARANTEES["G1"](core(idle._replace(todo=(LOOK,)))) is None


def test_a_granted_leaver_on_its_way_is_no_broken_admission():
    leaver = leased(Mode.ISOLATED, phase=Phase.LEAVING)
    assert GUARANTEES["G1"](core(leaver, beliefs=(Belief.HOST,))) is None
    assert GUARANTEES["G1"](core(leaver._replace(phase=Phase.HELD), beliefs=(Belief.HOST,))) is not None


@pytest.mark.parametrize("coord", [1, 2])
def test_the_belief_of_another_coordinator_is_not_compared(coord):
    broken = GUARANTEES["G1"](core(leased(), beliefs=(IS_PARKED,), coord=coord))
    assert (broken is None) == (coord == 2)


@pytest.mark.parametrize(("flag", "depth"), [(True, 0), (False, 1)])
def test_the_window_of_an_nmi_or_a_send_kick_needs_the_pending_bit(flag, depth):
    """I1, I2. The same two modes: allowed with the bit set, since no instruction retires; broken without."""
    host = HOST._replace(flag=flag, depth=depth)
    assert GUARANTEES["G2"](core(leased(), host, pending=(0,))) is None
    assert GUARANTEES["G2"](core(leased(), host)) is not None


def test_no_window_is_allowed_beside_a_granted_visit_to_host():
    sentence = GUARANTEES["G2"](core(leased(), HOST, pending=(0,)))
    assert sentence == "h0 is in guest beside h1, which is in HOST by a grant"


def test_the_dead_break_nothing():
    for holds in GUARANTEES.values():
        assert holds(core(None, leased(), None, beliefs=(Belief.OFFLINE, SESSION, Belief.OFFLINE))) is None


@pytest.mark.parametrize(
    ("phase", "used", "waits"),
    [
        (Phase.ASKING, False, {"ask", "run"}),
        (Phase.LEAVING, True, {"leave"}),
        (Phase.GUEST, False, {"run"}),
        (Phase.GUEST, True, set()),
        (Phase.HOSTING, False, set()),
    ],
)
def test_who_waits_for_what(phase, used, waits):
    s = HyperthreadState(phase=phase, used=used)
    tests = {"leave": guarantees.l1_leave_waits, "ask": guarantees.l2_ask_waits, "run": guarantees.l2_has_not_run}
    assert {name for name, test in tests.items() if test(s)} == waits


def gate_of(*members, **fields):
    return GateState(members=members, **fields)


LEASE = Member(inc=1, belief=Belief.SESSION, attached=1, room=1, granted=3)


@pytest.mark.parametrize(
    ("members", "broken"),
    [
        ((LEASE, LEASE), ""),
        ((LEASE, LEASE._replace(room=2)), "leases of rooms [1, 2] side by side"),
        ((LEASE, Member(inc=1, belief=Belief.HOST, granted=4)), "h1 was granted HOST while h0 holds a lease"),
        ((LEASE._replace(want=Want.LEAVE), Member(inc=1, belief=Belief.HOST, granted=4)), ""),
        ((LEASE, Member(inc=1, belief=Belief.HOST)), ""),  # by a `send` kick or an NMI: nobody granted it
        ((LEASE._replace(fresh=True), Member(inc=1, belief=Belief.UNKNOWN)), "somebody was admitted while h1"),
        ((LEASE._replace(granted=-1, fresh=True), Member(inc=1, belief=Belief.UNKNOWN)), ""),  # it was so when told
        ((Member(inc=1, belief=Belief.HOST, granted=4), Member()), ""),
    ],
)
def test_what_a_gate_may_believe(members, broken):
    found = guarantees.of_gate(gate_of(*members))
    assert (found or "").startswith(broken) and bool(found) is bool(broken)


@pytest.mark.parametrize(
    ("state", "broken"),
    [
        (HyperthreadState(mode=Mode.GUEST, session=True), False),
        (HyperthreadState(mode=Mode.GUEST), True),
        (HyperthreadState(mode=Mode.HOST), False),
        (HyperthreadState(depth=1), True),
        (HyperthreadState(depth=-1), True),
    ],
)
def test_what_a_hyperthread_may_be_in(state, broken):
    assert (guarantees.of_hyperthread(state) is not None) is broken
