"""A counterexample in words, and as a schedule that runs again."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from explore_planting import planted
from explore_table import MUTANTS

from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.errors import InputError
from asid.explore import schedule, story
from asid.explore.models import build
from asid.explore.parts import Arrivals, Budget, Model
from asid.explore.search import search

BARE = Model((1, 1), Kick.BARE, Rooms.ALL)
TALE = """\
G2 is broken after 16 steps of model none: h1 may run guest instructions beside h0 in HOST
  step  who   what                                       h0           h1           the gate believes
     1  gate  hears that h0 is ready                     PARKED       PARKED       parked, offline
     2  h0    takes order: the vCPU of vm 1              PARKED       PARKED       parked, offline
     3  gate  hears that h0 asks for guest #4            PARKED       PARKED       lease, offline
     4  h0    takes order: the lease for #4              ISOLATED(1)  PARKED       lease, offline
     5  h0    publishes ENTER                            ENTER(1)     PARKED       lease, offline
     6  h0    looks at its line and its siblings' flags  ENTER(1)     PARKED       lease, offline
     7  h0    goes GUEST                                 GUEST(1)     PARKED       lease, offline
     8  h0    runs an instruction                        GUEST(1)     PARKED       lease, offline
     9  h0    full exit                                  HOST         PARKED       lease, offline
    10  gate  hears that h1 is ready                     HOST         PARKED       lease, parked
    11  h1    takes order: the vCPU of vm 1              HOST         PARKED       lease, parked
    12  gate  hears that h1 asks for guest #4            HOST         PARKED       lease, lease
    13  h1    takes order: the lease for #4              HOST         ISOLATED(1)  lease, lease
    14  h1    publishes ENTER                            HOST         ENTER(1)     lease, lease
    15  h1    looks at its line and its siblings' flags  HOST         ENTER(1)     lease, lease
    16  h1    goes GUEST                                 HOST         GUEST(1)     lease, lease"""


def test_the_story_of_policy_none():
    result = search(BARE)
    assert story.told(result.world, result.violation, "none") == TALE


def test_a_cycle_is_told_once_and_said_to_go_on():
    model = Model((1, 1), arrivals=Arrivals.ANY)
    result = search(model)
    told = story.told(result.world, result.violation).splitlines()
    assert "while the others go round (steps 6 to 16, again and again)" in told[0]
    assert told[7] == "  from here on, for ever:"


def test_pending_bits_flags_and_handlers_show():
    result = search(build("n2v1-nmi-send"), states_max=3000)
    shown = {story.mode(s) for s in result.world.siblings.things}
    assert {"GUEST(1)!", "HOST^", "HOST+", "dead"} - shown == {"dead"}
    shown = {story.mode(s) for s in search(build("n2v1-send-flush")).world.siblings.things}
    assert {"HOST^*", "ENTER(1)*", "GUEST(1)"} <= shown


def test_writes_of_the_apic_meetings_and_interrupts_show():
    labels = []
    for name in ("n2v1-xapic-send", "n2v1-irq-rendezvous", "n2v1-shorthand-send", "n2v1-flush"):
        w = search(build(name), states_max=3000).world
        labels += [story.words(label) for label, _ in w.moves.things]
    assert {
        "writes h1 into ICR2",
        "writes the ICR: to whom ICR2 says",
        "writes the ICR: all but itself",
        "finds the ICR idle",
        "its IPI is delivered h1",
        "arrives at the meeting",
        "takes an interrupt that needs HOST",
        "flushes the buffers",
    } <= set(labels)


# --- schedules


def test_a_schedule_survives_its_file_and_breaks_the_same_thing_again():
    result = search(BARE)
    made = schedule.scheduled(result.world, result.violation)
    read = schedule.parse(json.dumps(schedule.as_document(made)))
    assert read == made
    _, again = schedule.replayed(read)
    assert (again.guarantee, again.sentence, len(again.moves)) == ("G2", result.violation.sentence, 16)


@pytest.mark.parametrize("name", ["V09", "V29", "V02", "V24", "V25"])
def test_the_schedule_of_a_variant_holds_without_the_variant(name):
    """Planted, it breaks again; taken out, the steps break nothing or cannot be taken."""
    mutant = next(m for m in MUTANTS if m.name == name)
    with planted(mutant):
        result = search(mutant.model)
        made = schedule.scheduled(result.world, result.violation)
        assert schedule.replayed(made)[1].guarantee == result.violation.guarantee
    broken, refused = None, None
    try:
        broken = schedule.replayed(made)[1]
    except InputError as error:
        refused = error
    assert broken is None
    assert refused is None or ("cannot be taken" in refused.what and refused.allowed)


def test_a_model_survives_its_document():
    for model in (build("n3v2-nmi-mce-send"), Model((1, 0), arrivals=Arrivals.ANY, budget=Budget(kill=2), torn=True)):
        assert schedule.model_of(json.loads(json.dumps(schedule.model_as_document(model)))) == model


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"asid_schedule": 2}',
        '{"asid_schedule": 1, "model": {"vms": [1], "wings": 2}, "expect": {}, "steps": [], "cycle": -1}',
        '{"asid_schedule": 1, "model": {"vms": [1], "kick": "soft"}, "expect": {}, "steps": [], "cycle": -1}',
        '{"asid_schedule": 1, "model": {"vms": [1], "budget": {"luck": 1}}, "expect": {}, "steps": [], "cycle": -1}',
    ],
)
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(InputError) as caught:
        schedule.parse(text, "hit.json")
    assert caught.value.where == "hit.json"
    assert caught.value.hint


def test_a_step_that_cannot_be_taken_is_named_with_what_could_be():
    made = schedule.Schedule(BARE, (schedule.Planned("h0", "goes on holiday", ""),))
    with pytest.raises(InputError, match="step 1: cannot be taken: h0 goes on holiday") as caught:
        schedule.replayed(made)
    assert "gate receives h0 is ready" in caught.value.allowed


def _document():
    result = search(BARE)
    return schedule.as_document(schedule.scheduled(result.world, result.violation))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (("asid_schedule",), True, "Expected int, got bool - at $.asid_schedule"),
        (("wings",), 2, "unknown field wings"),
        (("steps",), None, "Expected array, got null - at $.steps"),
        (("cycle",), "x", "Expected int, got str - at $.cycle"),
        (("cycle",), None, "Expected int, got null - at $.cycle"),
        (("cycle",), 500, "a cycle from step 500 on, of 16 - at $.cycle"),
        (("model", "vms"), "11", "Expected array, got str - at $.model.vms"),
        (("model", "vms"), [1.5, 1], "Expected int, got float - at $.model.vms[0]"),
        (("model", "vms"), [[1], 1], "Expected int, got array - at $.model.vms[0]"),
        (("model", "vms"), [1] * 200_000, "Expected array of length <= 8 - at $.model.vms"),
        (("model", "budget"), {"nmi": "x"}, "Expected int, got str - at $.model.budget.nmi"),
        (("model", "budget"), {"nmi": -1}, "Expected int >= 0 - at $.model.budget.nmi"),
        (("model", "kick"), None, "Expected str, got null - at $.model.kick"),
        (("model", "rooms"), "", "'' is none of 'vm', 'hyperthread', 'all' - at $.model.rooms"),
        (("model", "apic"), "pic", "'pic' is none of 'x2apic', 'xapic', 'shorthand' - at $.model.apic"),
        (("model", "halts"), "yes", "Expected bool, got str - at $.model.halts"),
        (("model", "overtakes_max"), 10**30, "- at $.model.overtakes_max"),
        (("expect", "guarantee"), ["G2"], "Expected str, got array - at $.expect.guarantee"),
        (("expect", "guarantee"), "G99", "'G99' is none of '', 'G1', 'G2'"),
        (("expect", "sentence"), "\x1b[2J", "cannot be printed"),
    ],
)  # fmt: skip
def test_the_form_of_a_schedule_is_checked_field_by_field(at, value, says):
    document = _document()
    inner = document
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    with pytest.raises(InputError) as caught:
        schedule.parse(json.dumps(document), "hit.json")
    assert caught.value.what.startswith("not a schedule of version 1: ") and says in caught.value.what


@pytest.mark.parametrize(
    "text", [DEEP, '{"asid_schedule": 1, "model": ' + DEEP, '{"asid_schedule": 1' + "0" * 5000 + "}"]
)
def test_a_nest_or_a_number_without_end_is_no_schedule(text):
    with pytest.raises(InputError, match="not a schedule of version 1"):
        schedule.parse(text)


def test_a_file_has_a_form_for_every_field_of_a_model():
    assert set(schedule.ModelForm.__struct_fields__) == {f.name for f in fields(Model)}
