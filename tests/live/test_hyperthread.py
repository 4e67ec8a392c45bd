"""One hyperthread of the live engine, the test playing everybody else: what it does, when, and what it writes down."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from one_hyperthread import OneHyperthread

from asid.core import hyperthread as core
from asid.core.events import Action, Bid, Do, Kick, Mode, Order, Said, Want
from asid.core.hyperthread import Phase
from asid.core.limits import MESSAGES_IN_FLIGHT_MAX
from asid.core.record import Record, fault_of
from asid.guest.base import Exit
from asid.live import hyperthread as hyperthread_
from asid.live.node import Node
from asid.live.page import CLEAN, DEPTH, FLAG, ICR, INSNS, KICK_NUMBER, MCE, MODE, NMI, PENDING, TAINT, WATCHED, base_of

FAST = Exit(0, "MSR_WRITE", "vmx", 0, False)
LONG_NS = 20_000_000
LONG_FAST = Exit(0, "APIC_WRITE", "vmx", LONG_NS, False)
SLOW_FAST = Exit(0, "CPUID", "vmx", 2_000, False)
FULL = Exit(0, "IO_INSTRUCTION", "vmx", 1_000, True)
IRQ = Exit(0, "EXTERNAL_INTERRUPT", "vmx", 1_000, False)
HLT = Exit(0, "HLT", "vmx", 0, True, 1_000)


@pytest.fixture
def make(monkeypatch):
    """Makes hyperthreads; their sockets' paths are short, as the kernel wants them."""
    monkeypatch.setattr(Node, "watch_parent", lambda self: None)
    made = []
    with tempfile.TemporaryDirectory(prefix="asid-") as root:

        def start(**options: Any) -> OneHyperthread:
            path = Path(root) / str(len(made))
            path.mkdir(mode=0o700)
            made.append(OneHyperthread(path, **options))
            return made[-1]

        yield start
        for one in made:
            one.close()


@pytest.fixture
def one(make):
    return make()


def leaves(one: OneHyperthread, event: Exit = FULL) -> None:
    """Guest to HOST through a granted leave."""
    one.ht.vcpu.exit = event
    one.ht.vcpu.exits(event)
    one.settle()
    one.order(Bid.GRANT)


def works(one: OneHyperthread) -> None:
    while one.ht.state.phase is Phase.HOSTING:
        one.ht.vcpu.in_host()
        one.settle()


# --- its life, as the coordinator sees it -----------------------------------------------------------------


def test_a_new_hyperthread_is_parked_and_says_so(one):
    one.settle()
    assert one.words[one.own + MODE] & 0xFF == Mode.PARKED
    [report] = one.reports()
    assert (report.said, report.mode, report.session, report.want) == (Said.READY, Mode.PARKED, False, Want.NONE)
    assert one.modes() == ["OFFLINE-PARKED"]


def test_nothing_is_heard_of_fast_exits(one):
    one.enter()
    one.reports()
    one.records()
    for event in [FAST] * 50 + [SLOW_FAST] * 3:
        one.ht.vcpu.exit = event
        one.ht.vcpu.exits(event)
        one.settle()
    assert one.ht.state.phase is Phase.GUEST
    assert one.reports() == []
    assert one.records() == [], "and nothing is noted until the tally is"
    one.ht.chronicle.flush(1)
    rows = {data["reason"]: (data["n"], data["full"]) for _, data in one.records()}
    assert rows == {"MSR_WRITE": (50, False), "CPUID": (3, False)}


def test_a_full_exit_waits_isolated_for_its_grant(one):
    one.enter()
    one.ht.vcpu.exit = FULL
    one.ht.vcpu.exits(FULL)
    one.settle()
    assert (one.ht.state.phase, one.ht.state.mode) == (Phase.LEAVING, Mode.ISOLATED)
    one.order(Bid.GRANT, req=one.ht.state.req - 1)
    assert one.ht.state.mode is Mode.ISOLATED, "the answer to an older request is none"
    one.order(Bid.GRANT, coord=2)
    assert one.ht.state.mode is Mode.ISOLATED, "nor is a coordinator's that it does not know"
    one.order(Bid.GRANT)
    assert one.ht.state.mode is Mode.HOST
    works(one)
    assert (one.ht.state.phase, one.ht.state.mode) == (Phase.ASKING, Mode.PARKED)
    assert [report.said for report in one.reports()] == [
        Said.READY, Said.ASK, Said.ENTERED, Said.LEAVE, Said.DONE,
    ]  # fmt: skip


def test_a_halted_vcpu_asks_again_when_it_wakes(one):
    one.enter()
    leaves(one, HLT)
    works(one)
    assert one.ht.state.phase is Phase.HALTED
    while one.ht.state.phase is Phase.HALTED:
        one.ht.waiting()
    one.settle()
    assert (one.ht.state.phase, one.ht.state.want) == (Phase.ASKING, Want.ASK)


def test_the_sleep_of_a_halted_vcpu_is_no_wait_for_the_gate(one):
    one.enter()
    leaves(one, Exit(0, "HLT", "vmx", 0, True, 30_000_000))
    works(one)
    woken_ns = 0
    while one.ht.state.phase is Phase.HALTED:
        woken_ns = time.monotonic_ns()
        one.ht.waiting()
    one.settle()
    one.records()
    one.order(Bid.ADMIT, vm=1)
    [wait_ns] = [data["wait_ns"] for kind, data in one.records() if kind == "gate.wait"]
    assert 0 < wait_ns <= time.monotonic_ns() - woken_ns


def test_asking_again_begins_no_new_wait_for_the_gate(one):
    """A grant that crossed a kick is dropped, and a coordinator that comes back is told: the wait goes on."""
    one.settle()
    one.order(Bid.ATTACH, vm=1)
    asked_ns = time.monotonic_ns()
    one.kick(1)
    one.ht.waiting()
    one.settle()
    one.order(Bid.ADMIT, vm=1)
    assert one.ht.state.phase is Phase.ASKING, "that grant was void"
    one.order(Bid.RESYNC, coord=2)
    told_ns = time.monotonic_ns()
    one.order(Bid.ADMIT, vm=1, coord=2)
    assert one.ht.state.phase is Phase.GUEST
    [wait_ns] = [data["wait_ns"] for kind, data in one.records() if kind == "gate.wait"]
    assert wait_ns >= told_ns - asked_ns


def handles(one: OneHyperthread, meanwhile: Any) -> None:
    """A long fast exit, from guest on; `meanwhile` is called once, in front of its handler."""
    pending = [meanwhile]
    one.between = lambda action: pending.pop()() if action == core.WORK and pending else None
    one.ht.vcpu.exit = LONG_FAST
    one.ht.vcpu.exits(LONG_FAST)
    one.settle()
    one.between = None


def test_a_kick_ends_the_handler_of_a_fast_exit_and_the_rest_comes_before_the_guest(one):
    """In isolated mode a lease is just handed back; who waits for it need not wait for the handler."""
    one.enter()
    one.reports()
    handles(one, lambda: one.kick(1))
    [report] = one.reports()
    assert (report.said, report.answered, report.mode, report.want) == (Said.ANSWER, 1, Mode.PARKED, Want.ASK)
    one.ht.chronicle.flush(1)
    assert [kind for kind, _ in one.records() if kind == "exit"] == [], "it is not over"
    insns = one.insns
    one.order(Bid.ADMIT, vm=1)
    assert (one.ht.state.phase, one.insns) == (Phase.GUEST, insns)
    one.ht.chronicle.flush(1)
    [exit_] = [data for kind, data in one.records() if kind == "exit"]
    assert (exit_["reason"], exit_["n"], exit_["full"]) == ("APIC_WRITE", 1, False)
    assert exit_["sum_ns"] >= LONG_NS, "all of its service time has passed, in two parts"


@pytest.mark.parametrize("field", [NMI, MCE])
def test_an_interrupt_is_let_into_the_handler_of_a_fast_exit_and_nothing_of_it_is_lost(one, field):
    one.enter()
    one.records()
    node, turn = one.ht.node, one.ht.node.turn

    def interrupted(due: int | None = None) -> bool:
        node.turn = turn
        one.interrupt(field)
        return False

    handles(one, lambda: setattr(node, "turn", interrupted))
    assert one.ht.state.phase is Phase.GUEST
    one.ht.chronicle.flush(1)
    records = one.records()
    assert [kind for kind, _ in records].count("intr") == 1
    [exit_] = [data for kind, data in records if kind == "exit"]
    assert exit_["n"] == 1 and exit_["sum_ns"] >= LONG_NS


def test_a_kick_is_answered_in_guest_and_the_lease_is_gone(one):
    one.enter()
    one.reports()
    one.kick(1)
    one.ht.vcpu.in_guest()
    one.settle()
    [report] = one.reports()
    assert (report.said, report.answered, report.session, report.mode) == (Said.ANSWER, 1, False, Mode.PARKED)
    assert report.want is Want.ASK
    assert one.words[one.own + PENDING] == 0


def test_a_kick_while_it_waits_for_a_grant_is_answered(one):
    one.enter()
    one.ht.vcpu.exit = FULL
    one.ht.vcpu.exits(FULL)
    one.settle()
    one.reports()
    one.kick(1)
    one.ht.waiting()
    one.settle()
    [report] = one.reports()
    assert (report.said, report.want, report.mode) == (Said.ANSWER, Want.LEAVE, Mode.PARKED)
    one.order(Bid.GRANT)
    assert one.ht.state.mode is Mode.HOST


def test_a_grant_that_crossed_a_kick_is_dropped(one):
    one.settle()
    one.order(Bid.ATTACH, vm=1)
    one.kick(1)
    one.ht.waiting()
    one.settle()
    asked = one.ht.state.req
    one.order(Bid.ADMIT, vm=1)
    assert one.ht.state.mode is Mode.PARKED
    assert (one.ht.state.want, one.ht.state.req) == (Want.ASK, asked + 1)
    one.order(Bid.ADMIT, vm=1, req=asked)
    assert one.ht.state.mode is Mode.PARKED, "the one it dropped cannot be used later"


def test_a_new_coordinator_hears_everything_and_the_old_ones_mail_is_thrown_away(one):
    one.enter()
    one.reports()
    one.ht.outbox.append(b"said to the dead")
    one.order(Bid.RESYNC, coord=2)
    [report] = one.reports()
    assert (report.said, report.coord, report.session, report.round) == (Said.READY, 2, True, 1)
    one.order(Bid.RESYNC, coord=2)
    assert one.reports() == [], "told once"


# --- guest instructions -----------------------------------------------------------------------------------


def test_no_instruction_runs_behind_a_visible_bit(one):
    one.enter()
    before = one.insns
    one.words[one.own + PENDING] = 1
    assert not one.ht.vcpu.retire()
    assert one.insns == before
    one.words[one.own + PENDING] = 0
    assert one.ht.vcpu.retire()
    assert one.insns == before + 1


def test_an_exit_that_is_due_behind_a_visible_bit_waits(one):
    one.enter()
    one.ht.vcpu.exit, one.ht.vcpu.until_ns = FULL, 0
    one.ht.vcpu.looked_ns = 2**62  # no look at the sockets in between
    one.ht.node.now_ns = lambda: 2**62
    before = one.insns

    def kicked_before_it_runs() -> bool:
        one.kick(1)
        return False

    one.ht.vcpu.look_around = kicked_before_it_runs
    one.ht.vcpu.in_guest()
    assert (one.ht.state.phase, one.insns) == (Phase.GUEST, before), "neither the instruction nor its exit happened"
    assert one.ht.vcpu.exit is FULL, "it comes with the next admission"


def test_the_first_instruction_of_a_lease_is_reported_and_no_other(one):
    one.enter()
    assert [report.said for report in one.reports()] == [Said.READY, Said.ASK, Said.ENTERED]
    for _ in range(5):
        assert one.ht.vcpu.retire()
        one.settle()
    assert one.reports() == []


def test_insns_behind_a_kick_count_from_when_the_kicker_looked(one):
    one.enter()
    one.kick(1)
    one.words[one.own + INSNS] += 2  # what may never happen
    one.ht.vcpu.in_guest()
    one.settle()
    [seen] = [data for kind, data in one.records() if kind == "kick.seen"]
    assert seen == {"number": 1, "was": "GUEST", "avoidable": False, "insns": 2}


def test_an_instruction_taken_back_is_not_counted_below_zero(one):
    one.enter()
    one.words[one.own + INSNS] += 1  # announced
    one.kick(1)
    one.words[one.own + INSNS] -= 1  # the boundary found the bit
    one.ht.vcpu.in_guest()
    one.settle()
    [seen] = [data for kind, data in one.records() if kind == "kick.seen"]
    assert seen["insns"] == 0


def test_a_kick_whose_sender_has_not_counted_yet_is_told_from_one_without_instructions(one):
    one.enter()
    one.kick(1)
    one.words[one.own + KICK_NUMBER] = 0  # the coordinator is between the bit and its count
    one.ht.vcpu.in_guest()
    one.settle()
    [seen] = [data for kind, data in one.records() if kind == "kick.seen"]
    assert "insns" not in seen


# --- patience ---------------------------------------------------------------------------------------------


def test_an_unheard_hyperthread_repeats_itself_ever_more_seldom(one):
    one.settle()
    clock = [one.ht.node.now_ns()]
    one.ht.node.now_ns = lambda: clock[0]
    one.ht.node.turn = lambda due=None: clock.__setitem__(0, due)
    waits = []
    for _ in range(12):
        begin = clock[0]
        one.ht.waiting()  # waits
        one.ht.waiting()  # is due
        one.settle()
        one.ht.asked_ns = clock[0]
        waits.append(round((clock[0] - begin) / 1e6))
    assert waits[0] in range(40, 52)
    assert waits[1:5] == [100, 200, 400, 800]
    assert waits[-1] == 10_000


@pytest.mark.parametrize("phase", [Phase.ASKING, Phase.LEAVING])
def test_a_request_without_an_answer_is_made_again_under_a_new_number(one, phase):
    one.enter()
    if phase is Phase.ASKING:
        one.kick(1)
        one.ht.vcpu.in_guest()
    else:
        one.ht.vcpu.exit = FULL
        one.ht.vcpu.exits(FULL)
    one.settle()
    one.reports()
    asked = one.ht.state.req
    one.ht.asked_ns -= hyperthread_.RETRY_NS
    one.ht.waiting()
    one.settle()
    [report] = one.reports()
    assert (report.req, report.want) == (asked + 1, one.ht.state.want)


# --- what is written down ---------------------------------------------------------------------------------


def test_who_watches_sees_every_change_of_mode_and_the_journal_stays_as_it_was(one):
    one.words[WATCHED] = 1
    one.enter()
    one.records()
    for event in (FAST, SLOW_FAST):
        one.ht.vcpu.exit = event
        one.ht.vcpu.exits(event)
        one.settle()
    stays = [(kind, data["old"], data["new"]) for kind, data in one.records()]
    assert stays == 2 * [("raw", "GUEST", "ISOLATED"), ("raw", "ISOLATED", "ENTER"), ("raw", "ENTER", "GUEST")]
    one.words[WATCHED] = 0
    one.ht.vcpu.exit = FAST
    one.ht.vcpu.exits(FAST)
    one.settle()
    assert one.records() == []


@pytest.mark.parametrize("why", ["held", "kicked", "nmi", "brief"])
def test_a_fast_exit_that_does_not_lead_back_to_guest_ends_guest_when_it_began(one, why):
    """Else its handler would count as time in guest, beside a sibling in HOST as exposure."""
    one.enter()
    one.records()
    seen_ns = []

    def meanwhile() -> None:
        seen_ns.append(time.monotonic_ns())
        if why == "held":
            one.words[base_of(2) + DEPTH] = 1
        elif why == "kicked":
            one.kick(1)
        elif why == "brief":  # an NMI of a sibling that is over before the look
            one.words[one.own + PENDING] = 1
        else:
            one.interrupt()

    handles(one, meanwhile)
    changes = [(ts, data["old"], data["new"]) for ts, kind, data in one.stamped() if kind == "ht.mode"]
    assert changes[0][1:] == ("GUEST", "ISOLATED")
    assert changes[0][0] <= seen_ns[0]
    assert changes[-1][2] == {"held": "ISOLATED", "kicked": "PARKED", "nmi": "GUEST", "brief": "GUEST"}[why]
    assert [ts for ts, _, _ in changes] == sorted(ts for ts, _, _ in changes)


def test_a_leave_in_records(one):
    one.enter()
    one.records()
    leaves(one)
    works(one)
    records = one.records()
    assert [kind for kind, _ in records] == ["ht.mode", "ht.mode", "leave", "exit", "ht.mode"]
    assert [(data["new"], data.get("via", "")) for kind, data in records if kind == "ht.mode"] == [
        ("ISOLATED", ""), ("HOST", "grant"), ("PARKED", ""),
    ]  # fmt: skip
    assert records[2][1]["reason"] == "IO_INSTRUCTION" and records[2][1]["wait_ns"] > 0
    assert records[3][1]["full"] and records[3][1]["n"] == 1


@pytest.mark.parametrize(("policy", "kick", "via"), [("asi", "send", "send"), ("none", "ack", "bare")])
def test_leaves_that_ask_nobody_say_so(make, policy, kick, via):
    one = make(policy=policy, kick=kick)
    one.enter()
    one.records()
    one.ht.vcpu.exit = FULL
    one.ht.vcpu.exits(FULL)
    one.settle()
    records = one.records()
    assert [data["via"] for kind, data in records if kind == "ht.mode" and data["new"] == "HOST"] == [via]
    assert [data["to"] for kind, data in records if kind == "ipi"] == ([1, 2, 3] if via == "send" else [])
    assert one.words[one.own + FLAG] == (1 if via == "send" else 0)


def test_of_several_kicks_each_leave_says_its_own(one):
    """A policy may send for an interrupt that finds a parked hyperthread, and ask for every other leave."""
    one.ht.spec = replace(one.ht.spec, irq_kick=Kick.SEND)
    one.settle()
    one.ht.step(core.FULL_IRQ)
    one.settle()
    works(one)
    one.enter()
    leaves(one)
    assert [data["via"] for kind, data in one.records() if kind == "ht.mode" and data["new"] == "HOST"] == [
        "send",
        "grant",
    ]


@pytest.mark.parametrize("field", [FLAG, DEPTH])
def test_a_sibling_in_host_holds_the_entry_and_is_named(one, field):
    one.settle()
    one.order(Bid.ATTACH, vm=1)
    one.words[base_of(2) + field] = 1
    one.order(Bid.ADMIT, vm=1)
    assert one.ht.state.phase is Phase.HELD
    one.ht.node.turn = lambda due=None: False
    one.ht.waiting()
    assert one.ht.state.phase is Phase.HELD
    one.words[base_of(2) + field] = 0
    one.ht.waiting()
    one.settle()
    assert one.ht.state.phase is Phase.GUEST
    [held] = [data for kind, data in one.records() if kind == "held"]
    assert held["by"] == 2 and held["held_ns"] > 0


def a_life(one: OneHyperthread) -> None:
    """Everything that can happen to a hyperthread in order, kicks included."""
    one.enter()
    one.ht.vcpu.exit = SLOW_FAST
    one.ht.vcpu.exits(SLOW_FAST)
    one.settle()
    one.kick(1)
    one.ht.vcpu.in_guest()
    one.settle()
    one.order(Bid.ADMIT, vm=1)
    one.ht.vcpu.in_guest()
    one.settle()
    leaves(one)
    works(one)


def actions_of_a_life(make: Any) -> int:
    count = [0]
    one = make()
    one.between = lambda action: count.__setitem__(0, count[0] + 1)
    a_life(one)
    return count[0]


# An NMI before every action, a #MC before every action, and a #MC after an NMI so that it comes inside its handler.
class Watched:
    """A page's words, and when one of them was last written."""

    def __init__(self, words: Any, at: int) -> None:
        self.words, self.at, self.written_ns = words, at, 0

    def __getitem__(self, at: int) -> int:
        return int(self.words[at])

    def __setitem__(self, at: int, value: int) -> None:
        if at == self.at:
            self.written_ns = time.monotonic_ns()
        self.words[at] = value


@pytest.mark.parametrize("why", ["leave", "nmi"])
def test_host_is_left_by_its_stamp_before_a_sibling_can_know_and_flush(one, why):
    """A flush that covers a visit has a later stamp than its end, whenever its hyperthread loses the CPU."""
    one.enter()
    one.records()
    one.ht.words = Watched(one.words, one.own + TAINT)
    if why == "leave":
        leaves(one)
        one.ht.vcpu.in_host()
    else:
        one.interrupt(NMI)
    one.settle()
    [left_ns] = [ts for ts, kind, data in one.stamped() if kind == "ht.mode" and data["old"] == "HOST"]
    assert 0 < left_ns <= one.ht.words.written_ns


def test_every_begin_and_end_of_a_visit_to_host_taints_wherever_the_interrupt_hit(make):
    """Also one that hit an entry, whose mode to come back to is ENTER."""
    for at in range(actions_of_a_life(make)):
        one = make()
        count = [0]

        def between(action: core.Action, one: OneHyperthread = one, count: list[int] = count, at: int = at) -> None:
            if count[0] == at:
                one.interrupt(NMI)
            count[0] += 1

        one.between = between
        a_life(one)
        changes = [data for kind, data in one.records() if kind == "ht.mode"]
        visits = sum(data["old"] == "HOST" for data in changes) + sum(data["new"] == "HOST" for data in changes)
        assert one.words[one.own + TAINT] == visits, f"at action {at}"


def test_a_flush_is_stamped_before_a_sibling_can_rely_on_it(one):
    one.settle()
    one.order(Bid.ATTACH, vm=1)
    one.ht.words = Watched(one.words, one.own + CLEAN)
    one.order(Bid.ADMIT, vm=1)
    assert [ts <= one.ht.words.written_ns for ts, kind, _ in one.stamped() if kind == "flush"] == [True]


def test_a_handler_that_comes_back_to_an_entry_has_left_host_too(one):
    """A sibling's flush while the handler is in HOST does not cover what it loads after that."""
    one.enter()
    one.ht.vcpu.exit = SLOW_FAST
    hit = []

    def between(action: Action) -> None:
        if one.ht.state.mode is Mode.ENTER and not one.ht.state.frames and not hit:
            hit.append(action)
            one.interrupt(NMI)

    before = one.words[one.own + TAINT]
    one.between = between
    one.ht.vcpu.exits(SLOW_FAST)
    one.settle()
    assert hit
    assert one.words[one.own + TAINT] == before + 2


@pytest.mark.parametrize("fields", [(NMI,), (MCE,), (NMI, MCE)], ids=["nmi", "mce", "nmi+mce"])
def test_an_interrupt_before_any_action_restores_the_mode_and_the_records_show_it(make, fields):
    steps = actions_of_a_life(make)
    assert steps > 25
    for at in range(steps):
        one = make()
        count = [0]

        def between(action: core.Action, one: OneHyperthread = one, count: list[int] = count, at: int = at) -> None:
            if count[0] == at:
                one.interrupt(fields[0])
            elif count[0] > at and len(fields) > 1 and one.ht.state.frames and not one.words[one.own + fields[1]]:
                one.interrupt(fields[1])
            count[0] += 1

        one.between = between
        a_life(one)
        check_records(one, expected=len(fields), at=at)
        assert one.words[one.own + DEPTH] == 0
        assert one.ht.state.phase is Phase.ASKING, "its life went on as without"


def check_records(one: OneHyperthread, *, expected: int, at: int) -> None:
    """Modes chain, none is skipped that matters, and each handler says what it interrupted and what it restored."""
    mode, handlers = "OFFLINE", 0
    before_host = ""
    for number, (kind, data) in enumerate(one.records(), start=1):
        assert fault_of(Record(number, 1, 1, kind, 0, 0, 1, 0, data)) is None, (at, kind, data)
        if kind == "ht.mode":
            assert data["old"] == mode, (at, data)
            mode = data["new"]
            if mode == "HOST":
                before_host = data["old"]
            elif data["old"] == "HOST" and before_host in ("GUEST", "ISOLATED", "PARKED") and handlers < expected:
                restored = "ISOLATED" if before_host == "GUEST" else before_host
                assert mode in (restored, "PARKED"), (at, data)
        elif kind == "intr":
            handlers += 1
            assert data["merged"] == 0
    assert handlers == expected, f"an interrupt before action {at} was not handled"


def test_interrupts_during_a_handler_merge_into_one_more(one):
    one.enter()
    one.records()
    raised = [0]

    def storm(action: core.Action) -> None:
        if one.ht.state.frames and raised[0] < 5:
            one.interrupt()
            raised[0] += 1

    one.interrupt()
    one.between = storm
    one.settle()
    handlers = [(data["id"], data["merged"]) for kind, data in one.records() if kind == "intr"]
    assert handlers == [(1, 0), (6, 4)]


def test_an_nmi_on_top_of_an_interrupts_handler_is_the_outermost_of_its_kind(one):
    """Handlers of interrupts write no `intr`, so they count for no depth either: that would be one that never ends."""
    one.enter()
    one.records()
    one.ht.step(core.FAST_IRQ)
    assert [frame.what for frame in one.ht.state.frames] == [core.What.IRQ]
    one.ht.irqs.raise_line(7, IRQ, 1)
    one.ht.irqs.begun = (0, Mode.ISOLATED)
    one.interrupt()
    one.settle()
    assert [data["depth"] for kind, data in one.records() if kind == "intr"] == [1]


def test_an_interrupt_raised_before_its_first_look_is_taken(one):
    one.interrupt()
    one.settle()
    assert [kind for kind, _ in one.records()].count("intr") == 1, "raised between its birth and its first look"


# --- messages that are none of its own --------------------------------------------------------------------


@pytest.mark.parametrize("frames", [[b""], [b"\xc1"], [b"a", b"b"], [b"\x90" * 100], [b"x" * 5000]])
def test_a_frame_that_is_no_order_changes_nothing(one, frames):
    one.settle()
    state = one.ht.state
    one.ht.on_gate(frames)
    assert one.ht.state is state and not one.ht.orders
    assert one.ht.chronicle.dropped == 1


def test_what_cannot_be_sent_is_kept_and_bounded(one):
    one.settle()
    one.line.down = True
    one.enter()
    for _ in range(30):
        one.ht.step(core.Event(core.What.ORDER, order=one_order(one)))
        one.settle()
    assert 0 < len(one.ht.outbox) <= MESSAGES_IN_FLIGHT_MAX
    one.line.down = False
    one.ht.send_outbox()
    last = one.reports()[-1]
    assert (last.coord, last.session) == (one.ht.state.coord, True), "the newest is what is kept"


def test_an_ipi_is_told_as_of_who_wrote_it_not_as_of_who_waited_for_the_bus(make):
    """An NMI between the write of the last IPI of a leave and its delivery: the handler waits for the bus first."""
    one = make(kick="send", apic="xapic")
    one.enter()
    one.records()
    written = 0

    def between(action: Action) -> None:
        nonlocal written
        written += action.do is Do.ICR and not one.ht.state.frames
        if action.do is Do.ICR_IDLE and written == 3 and not one.ht.state.frames:
            written = 0
            one.interrupt()

    one.between = between
    one.ht.step(core.FULL_EXIT)
    one.settle()
    ipis = [(data["why"], data["to"]) for kind, data in one.records() if kind == "ipi"]
    assert ipis == [(why, to) for why in ("send", "nmi") for to in (1, 2, 3)]


@pytest.mark.parametrize("apic", ["x2apic", "xapic", "shorthand"])
def test_what_a_mapped_handler_puts_off_reaches_its_own_hyperthread(make, apic):
    """The bus delivers when its sender waits for it, so the handler has to: no kick may follow for a long time."""
    one = make(apic=apic, nmi="isolated")
    one.enter()
    one.records()
    one.interrupt()
    one.settle()
    assert [data["to"] for kind, data in one.records() if kind == "ipi"] == [0]
    assert one.words[one.own + ICR] == 0, "the bus is as it was found"


def one_order(one: OneHyperthread) -> Order:
    return Order(Bid.RESYNC, 0, 1, one.ht.state.coord + 1, 1, 0, 0)


def test_a_request_word_found_at_birth_is_not_for_the_newborn(make):
    one = make(request=5, inc=2)
    one.enter()
    assert one.ht.state.phase is Phase.GUEST
    assert all(report.answered == 5 for report in one.reports())
