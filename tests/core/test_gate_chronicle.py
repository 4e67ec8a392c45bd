"""What a coordinator tells the journal: each decision of a gate by hand, and records that the catalogue knows."""

from __future__ import annotations

import pytest

from asid.core import gate
from asid.core.events import Bid, Mode, Report, Said, Want
from asid.core.gate import Belief, Ev, Event, GateState, Member, Rooms, Spec
from asid.core.gate_chronicle import Note, notes_of, vm_of
from asid.core.record import Record, fault_of

SPEC = Spec()
LEASE = Member(inc=1, belief=Belief.SESSION, attached=1, room=1, req=2, vm=1, granted=-1, kicks=7)
OPEN = GateState(coord=1, round=4, open=True, members=(LEASE, LEASE), turn=1)


def report(
    said: Said, ht: int, want: Want, mode: Mode, *, req: int = 3, answered: int = 7, lease: bool = False
) -> Report:
    return Report(said, ht, 1, 1, 4 if lease else 0, req, want, False, mode, 1, lease, lease, answered)


def told(state: GateState, event: Event, spec: Spec = SPEC) -> tuple[GateState, list[Note]]:
    after, actions = gate.step(spec, state, event)
    return after, notes_of(state, event, after, actions)


def test_a_leave_from_its_report_to_the_next_round():
    state, notes = told(OPEN, Event(Ev.REPORT, report(Said.LEAVE, 0, Want.LEAVE, Mode.ISOLATED, lease=True)))
    assert notes == [Note("gate.leave", {"req": 3, "reason": ""}, 4, 0), Note("gate.close", {}, 4)]
    state, notes = told(state, Event(Ev.REPORT, report(Said.ANSWER, 1, Want.ASK, Mode.PARKED, answered=8)))
    assert notes == [
        Note("gate.answer", {"number": 8, "was": "PARKED"}, 4, 1),
        Note("gate.ask", {"vm": 1, "req": 3}, 4, 1),
        Note("gate.grant", {"req": 3}, 4, 0),
    ]
    state, notes = told(state, Event(Ev.REPORT, report(Said.DONE, 0, Want.ASK, Mode.PARKED, req=4)))
    assert notes == [
        Note("gate.done", {}, 5, 0),
        Note("gate.ask", {"vm": 1, "req": 4}, 5, 0),
        Note("gate.open", {}, 5),
        Note("gate.admit", {"vm": 1, "req": 3, "inc": 1}, 5, 1),
        Note("gate.admit", {"vm": 1, "req": 4, "inc": 1}, 5, 0),
    ]


def test_a_leave_that_is_first_heard_of_in_another_report_is_told():
    """The report LEAVE was lost, or went to a coordinator that is dead: what is granted was asked for all the same."""
    kicked = OPEN._replace(members=(LEASE._replace(kicked=8, kicks=8), LEASE._replace(belief=Belief.PARKED)))
    answer = report(Said.ANSWER, 0, Want.LEAVE, Mode.PARKED, answered=8)
    assert [note.kind for note in told(kicked, Event(Ev.REPORT, answer))[1]][:2] == ["gate.answer", "gate.leave"]
    unknown = OPEN._replace(members=(Member(inc=1, belief=Belief.UNKNOWN, attached=1), LEASE))
    ready = report(Said.READY, 0, Want.LEAVE, Mode.ISOLATED, lease=True)
    assert [note.kind for note in told(unknown, Event(Ev.REPORT, ready))[1]][:2] == ["gate.resync", "gate.leave"]


def test_a_leave_is_told_once():
    leave = report(Said.LEAVE, 0, Want.LEAVE, Mode.ISOLATED, lease=True)
    waits, _ = told(OPEN, Event(Ev.REPORT, leave))
    answer = report(Said.ANSWER, 0, Want.LEAVE, Mode.PARKED, answered=9)
    assert [note.kind for note in told(waits, Event(Ev.REPORT, answer))[1]] == ["gate.answer"]
    granted = OPEN._replace(members=(LEASE._replace(belief=Belief.HOST, want=Want.NONE, req=3, granted=3), LEASE))
    assert [note.kind for note in told(granted, Event(Ev.REPORT, answer))[1]] == ["gate.answer"]


def test_an_ask_that_is_repeated_is_told_once():
    first = report(Said.ASK, 0, Want.ASK, Mode.PARKED)
    held, _ = told(OPEN._replace(held=True), Event(Ev.REPORT, first))
    _, notes = told(held, Event(Ev.REPORT, first))
    assert [note.kind for note in notes] == []


def test_ready_is_told_once_and_after_a_restart_it_is_a_resync():
    ready = report(Said.READY, 0, Want.NONE, Mode.PARKED)
    new = OPEN._replace(members=(Member(attached=1), LEASE))
    after, notes = told(new, Event(Ev.REPORT, ready))
    assert notes[0] == Note("gate.ready", {"inc": 1, "mode": "PARKED"}, 4, 0)
    assert told(after, Event(Ev.REPORT, ready))[1] == []
    unknown = OPEN._replace(members=(LEASE._replace(belief=Belief.UNKNOWN), LEASE))
    assert told(unknown, Event(Ev.REPORT, ready))[1][0].kind == "gate.resync"


@pytest.mark.parametrize(("said", "want"), [(Said.LEAVE, Want.LEAVE), (Said.ENTERED, Want.NONE), (Said.ASK, Want.ASK)])
def test_after_a_restart_whatever_a_hyperthread_says_first_is_a_resync(said: Said, want: Want):
    """Every report tells the whole state; the one that was for that may have been lost."""
    unknown = OPEN._replace(members=(LEASE._replace(belief=Belief.UNKNOWN), LEASE))
    lease = said is not Said.ASK
    first = report(said, 0, want, Mode.ISOLATED if lease else Mode.PARKED, lease=lease)
    after, notes = told(unknown, Event(Ev.REPORT, first))
    assert notes[0] == Note("gate.resync", {"inc": 1}, 4, 0)
    assert "gate.resync" not in [note.kind for note in told(after, Event(Ev.REPORT, first))[1]]


def test_a_death_is_told_once():
    after, notes = told(OPEN, Event(Ev.DEAD, ht=1, inc=1))
    assert notes[0] == Note("gate.dead", {"inc": 1}, 4, 1)
    assert told(after, Event(Ev.DEAD, ht=1, inc=1))[1] == []


def test_the_core_going_to_another_vm_is_a_turn():
    parked = Member(inc=1, belief=Belief.PARKED, attached=2)
    state = OPEN._replace(open=False, turn=1, members=(parked, parked._replace(attached=0)))
    ask = report(Said.ASK, 0, Want.ASK, Mode.PARKED)._replace(vm=2)
    _, notes = told(state, Event(Ev.REPORT, ask))
    assert Note("gate.turn", {"vm": 2, "room": 2}, 5) in notes
    assert [note.kind for note in notes] == ["gate.ask", "gate.open", "gate.turn", "gate.admit"]


def test_the_turn_of_a_hyperthread_is_told_with_its_vm():
    """One VM under `nosmt`: it is h1's turn, which is room 2. There is no vm2."""
    nosmt = Spec(Rooms.HYPERTHREAD)
    parked = Member(inc=1, belief=Belief.PARKED, attached=1)
    state = OPEN._replace(open=False, turn=1, members=(parked, parked))
    state, notes = told(state, Event(Ev.REPORT, report(Said.ASK, 1, Want.ASK, Mode.PARKED, req=4)), nosmt)
    assert Note("gate.turn", {"vm": 1, "room": 2}, 5) in notes
    assert (state.turn, vm_of(nosmt, state)) == (2, 1)
    state, _ = told(state, Event(Ev.REPORT, report(Said.LEAVE, 1, Want.LEAVE, Mode.ISOLATED, lease=True)), nosmt)
    assert vm_of(nosmt, state) == 1, "it keeps its turn while it is in HOST"


@pytest.mark.parametrize(
    ("rooms", "vms", "turn", "vm"),
    [
        (Rooms.VM, (3, 3), 3, 3),
        (Rooms.HYPERTHREAD, (0, 3), 2, 3),
        (Rooms.ALL, (3, 3), 1, 3),
        (Rooms.ALL, (3, 2), 1, 0),  # everybody's
        (Rooms.VM, (0, 0), 3, 3),
        (Rooms.HYPERTHREAD, (0, 0), 1, 7),
        (Rooms.ALL, (0, 0), 1, 0),
        (Rooms.HYPERTHREAD, (0, 0), 0, 0),
    ],
)
def test_which_vm_has_the_core(rooms, vms, turn, vm):
    """The one that holds leases, 0 for the place of each that holds none; else the one whose turn it is."""
    members = tuple(LEASE._replace(vm=n) if n else Member(inc=1, belief=Belief.PARKED, attached=7) for n in vms)
    assert vm_of(Spec(rooms), OPEN._replace(members=members, turn=turn)) == vm


@pytest.mark.parametrize("said", [said for said in Said if said is not Said.READY])
@pytest.mark.parametrize("mode", list(Mode))
def test_every_note_is_a_record_of_the_catalogue(said, mode):
    event = Event(Ev.REPORT, report(said, 0, Want.ASK, mode))
    notes = notes_of(OPEN, event, OPEN._replace(open=False, turn=2), (gate.order(OPEN, 1, Bid.ADMIT, vm=1),))
    assert len(notes) >= 3
    for kind, data, round_, ht in notes:
        assert fault_of(Record(1, 1, 1, kind, 0, ht, round_, 0, data)) is None
