"""G2 and G10 against hyperthreads whose own word for how they came to be in HOST is not true; changes of policy."""

from __future__ import annotations

import pytest
from audit_tale import Tale

from asid.audit import FAIL, PASS

SECOND = 1_000_000  # us


def texts(verdict, guarantee: str = "G2") -> list[str]:
    return [violation.text for violation in verdict.finding(guarantee).violations]


def both_in_guest(**more) -> Tale:
    tale = Tale(**more)
    tale.enter(10, 0)
    tale.enter(20, 1)
    return tale


def hand_back(tale: Tale, us: float, ht: int) -> None:
    """A kick, and its answer: takes 2 us."""
    tale.gate(us, "kick", ht, number=1, for_ht=1 - ht)
    tale.goes(us + 1, ht, "PARKED")
    tale.say(us + 1, "kick.seen", 0, ht, 1, number=1, was="GUEST", avoidable=False, insns=0)
    tale.gate(us + 2, "answer", ht, number=1, was="GUEST")


# --- what the gate says of a granted HOST ------------------------------------------------------------------------


def test_a_granted_host_that_nobody_granted(tale):
    tale.gate(10, "leave", 0, req=1, reason="HLT")
    tale.goes(20, 0, "HOST", via="grant")
    tale.goes(30, 0, "PARKED")
    assert texts(tale.end(100)) == ["c0h0 went HOST by a grant, but nobody had granted what it asked"]


def test_the_grant_of_another_hyperthread_is_none(tale):
    tale.gate(10, "leave", 0, req=1, reason="HLT")
    tale.grant(12, 1)
    tale.goes(20, 0, "HOST", via="grant")
    assert len(texts(tale.end(100))) == 1


def test_a_grant_that_was_never_asked_for(tale):
    tale.gate(10, "grant", 0, req=1)
    tale.goes(20, 0, "HOST", via="grant")
    assert len(texts(tale.end(100))) == 1


def test_a_grant_is_used_once(tale):
    tale.leave(10, 0)
    tale.goes(50, 0, "HOST", via="grant")
    assert len(texts(tale.end(100))) == 1


@pytest.mark.parametrize("between", ["ask", "admit", "dead", "idle", "resync", "ready", "leave"])
def test_what_makes_a_grant_void(tale, between):
    data = {"ask": {"vm": 1, "req": 3}, "admit": {"vm": 1, "req": 3, "inc": 1}, "dead": {"inc": 1}, "idle": {},
            "resync": {"inc": 1}, "ready": {"inc": 1, "mode": "PARKED"}, "leave": {"req": 3, "reason": ""}}  # fmt: skip
    tale.grant(10, 0)
    tale.gate(12, between, 0, **data[between])
    tale.goes(20, 0, "HOST", via="grant")
    assert len(texts(tale.end(100))) == 1


def test_a_grant_of_an_older_request_is_not_the_answer_to_a_later_one(tale):
    tale.gate(10, "leave", 0, req=5, reason="HLT")
    tale.gate(11, "grant", 0, req=4)
    tale.goes(20, 0, "HOST", via="grant")
    assert "in request 5, but was granted request 4" in texts(tale.end(100))[0]


def test_a_grant_is_for_one_incarnation(tale):
    tale.gate(5, "ready", 0, inc=2, mode="PARKED")
    tale.grant(10, 0)
    tale.goes(20, 0, "HOST", via="grant")
    assert "incarnation 1" in texts(tale.end(100))[0]


def test_a_new_coordinator_grants_what_the_dead_one_was_asked(tale):
    tale.gate(10, "leave", 0, req=1, reason="HLT")
    tale.say(20, "death", 0, -1, what="coordinator", pid=100, inc=1, status=-9)
    tale.say(21, "spawn", 0, -1, what="coordinator", pid=110, inc=2)
    for ht in (0, 1):
        tale.gate(30 + ht, "resync", ht, inc=1)
    tale.gate(32, "grant", 0, req=1)
    tale.goes(33, 0, "HOST", via="grant")
    assert texts(tale.end(100)) == []


def test_a_grant_that_outlived_its_coordinator(tale):
    """It died after it had written the grant down and sent it; the leaver used it before it heard of the next one."""
    tale.grant(10, 0)
    tale.say(12, "death", 0, -1, what="coordinator", pid=100, inc=1, status=-9)
    tale.goes(13, 0, "HOST", via="grant")
    tale.say(14, "spawn", 0, -1, what="coordinator", pid=110, inc=2)
    for ht in (0, 1):
        tale.gate(30 + ht, "resync", ht, inc=1)
    assert texts(tale.end(100)) == []


# --- and of the leases beside a grant ----------------------------------------------------------------------------


def test_a_grant_beside_a_lease_that_was_never_called_back():
    tale = both_in_guest()
    tale.goes(90, 1, "ISOLATED")  # out of guest, so that no interval shows it
    tale.goes(100, 0, "ISOLATED")
    tale.grant(101, 0)
    tale.goes(105, 0, "HOST", via="grant")
    assert "held a lease and was never kicked" in texts(tale.end(200))[0]


def test_a_grant_with_a_kick_unanswered():
    tale = both_in_guest()
    tale.goes(100, 0, "ISOLATED")
    tale.gate(101, "kick", 1, number=7, for_ht=0)
    tale.goes(102, 1, "PARKED")
    tale.grant(103, 0)
    tale.gate(105, "answer", 1, number=7, was="GUEST")
    tale.goes(106, 0, "HOST", via="grant")
    assert "had not answered kick 7" in texts(tale.end(200))[0]


@pytest.mark.parametrize("how", ["answered", "dead", "said with a later report"])
def test_what_ends_a_lease_before_a_grant(how):
    tale = both_in_guest()
    tale.goes(100, 0, "ISOLATED")
    if how == "answered":
        hand_back(tale, 101, 1)
    elif how == "dead":
        tale.gate(101, "kick", 1, number=1, for_ht=0)
        tale.say(102, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    else:
        tale.gate(101, "kick", 1, number=1, for_ht=0)
        tale.goes(102, 1, "PARKED")
        tale.say(102, "kick.seen", 0, 1, 1, number=1, was="GUEST", avoidable=False, insns=0)
        tale.gate(103, "ask", 1, vm=1, req=9)
    tale.grant(104, 0)
    tale.goes(106, 0, "HOST", via="grant")
    assert texts(tale.end(200)) == []


def test_a_lease_that_outlived_its_coordinator_is_called_back_by_the_next():
    for kicks in (False, True):
        tale = both_in_guest()
        tale.say(50, "death", 0, -1, what="coordinator", pid=100, inc=1, status=-9)
        tale.say(51, "spawn", 0, -1, what="coordinator", pid=110, inc=2)
        for ht in (0, 1):
            tale.gate(60 + ht, "resync", ht, inc=1)
        tale.goes(99, 1, "ISOLATED")
        if kicks:
            hand_back(tale, 100, 1)
        tale.goes(105, 0, "ISOLATED")
        tale.grant(106, 0)
        assert len(texts(tale.end(200))) == (0 if kicks else 1)


# --- send, bare ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "kick", "via", "fails"), [
    ("asi", "ack", "send", True), ("asi", "ack", "bare", True), ("asi", "send", "send", False),
    ("asi", "send", "bare", True), ("asi", "send", "grant", True), ("kick-every-exit", "ack", "send", True),
    ("none", "ack", "bare", False), ("none", "ack", "send", True), ("nosmt", "ack", "bare", False),
    ("nosmt", "send", "send", True), ("nosmt", "ack", "grant", False),
])  # fmt: skip
def test_the_kick_in_force_says_how_host_is_reached(policy, kick, via, fails):
    tale = Tale(policy=policy, kick=kick)
    if via == "send":
        tale.ipis(9, 0, "send")
    tale.goes(10, 0, "HOST", via=via)
    assert any(f"by {via}, but policy {policy}" in text for text in texts(tale.end(100))) is fails


def test_a_send_leave_beside_a_guest_in_a_run_of_ack():
    tale = both_in_guest()
    tale.ipis(99, 0, "send")
    tale.goes(100, 0, "HOST", via="send")
    tale.goes(130, 0, "ISOLATED")
    verdict = tale.end(200)
    assert verdict.verdict == FAIL
    assert any("beside c0h0 in HOST (send)" in text for text in texts(verdict))


# --- nmi, mce -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["nmi", "mce", "send"])
def test_each_living_sibling_gets_its_ipi_before_host(via):
    tale = Tale(smt=4, kick="send" if via == "send" else "ack")
    tale.say(5, "death", 0, 3, what="ht", pid=104, inc=1, status=-9)
    tale.ipis(9, 0, via, to=(1,))
    tale.ipis(9, 0, "mce" if via == "nmi" else "nmi", to=(2,))
    tale.goes(10, 0, "HOST", via=via)
    tale.goes(12, 0, "PARKED")
    if via != "send":
        tale.intr(12, 0, what=via)
    assert texts(tale.end(100)) == [f"c0h0 went HOST by {via} without an IPI to c0h2"]


def test_the_ipis_of_the_last_handler_are_not_those_of_the_next(tale):
    tale.nmi(10, 0)
    tale.goes(30, 0, "HOST", via="nmi")
    tale.goes(35, 0, "PARKED")
    tale.intr(35, 0)
    assert len(texts(tale.end(100))) == 1


def test_an_nmi_without_the_end_of_a_handler():
    tale = both_in_guest()
    for us in (100, 200):
        tale.ipis(us - 1, 0, "nmi")
        tale.goes(us, 0, "HOST", via="nmi")
        tale.goes(us + 5, 0, "ISOLATED")
    verdict = tale.end(300)
    assert texts(verdict, "G10") == ["c0h0 went HOST by nmi, and no handler ended"] * 2


def test_the_main_line_does_not_go_on_inside_a_handler():
    tale = both_in_guest()
    tale.ipis(99, 0, "nmi")
    tale.goes(100, 0, "HOST", via="nmi")
    tale.goes(105, 0, "ISOLATED")
    tale.goes(106, 0, "GUEST")
    tale.intr(107, 0)
    assert len(texts(tale.end(300), "G10")) == 1


def test_a_handler_inside_another_that_has_not_reached_host_yet(tale):
    """A #MC between an NMI's IPIs and its HOST: each goes HOST and comes back, and the inner one ends first."""
    tale.ipis(10, 0, "nmi")
    tale.ipis(11, 0, "mce")
    for us, via, depth in ((12, "mce", 2), (16, "nmi", 1)):
        tale.goes(us, 0, "HOST", via=via)
        tale.goes(us + 1, 0, "PARKED")
        tale.intr(us + 2, 0, what=via, depth=depth, was="PARKED")
    verdict = tale.end(100)
    assert verdict.verdict == PASS, verdict.first


def test_a_handler_that_was_killed_has_no_end(tale):
    tale.ipis(9, 0, "nmi")
    tale.goes(10, 0, "HOST", via="nmi")
    tale.say(20, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    assert texts(tale.end(100), "G10") == []


def test_one_entry_may_be_in_flight_when_a_sibling_goes_host_and_no_other():
    for again in (False, True):
        tale = both_in_guest()
        tale.goes(90, 1, "ISOLATED")
        tale.ipis(99, 0, "nmi")
        tale.goes(100, 0, "HOST", via="nmi")
        tale.goes(101, 1, "GUEST")  # looked before the depth was raised
        for us in range(102, 110, 2) if again else ():
            tale.goes(us, 1, "ISOLATED")
            tale.goes(us + 1, 1, "GUEST")
        tale.goes(120, 0, "ISOLATED")
        tale.intr(121, 0)
        assert len(texts(tale.end(200))) == (4 if again else 0)


@pytest.mark.parametrize("handlers", [1, 2])
def test_the_entry_in_flight_may_be_interrupted_by_an_nmi_of_its_own(handlers):
    """The look, then an NMI, and meanwhile the sibling goes HOST: the entry goes on behind the handler."""
    for looked_us, broken in ((90, 0), (101, 1)):
        tale = both_in_guest()
        tale.goes(looked_us, 1, "ISOLATED")
        tale.ipis(99, 0, "nmi")
        tale.goes(100, 0, "HOST", via="nmi")
        for handler in range(handlers):
            tale.nmi(102 + 6 * handler, 1)
        tale.goes(115, 1, "GUEST")
        tale.goes(120, 0, "ISOLATED")
        tale.intr(121, 0)
        assert len(texts(tale.end(200))) == broken


@pytest.mark.parametrize(("why", "fails"), [("nothing", True), ("a stall", False), ("a kill", False)])
def test_an_exposure_has_an_end_if_the_guest_runs_at_all(why, fails):
    tale = both_in_guest()
    if why == "a stall":
        tale.say(50, "inject", 0, 1, id=1, what="stall", target="c0h1")
        tale.say(100 * SECOND, "inject.done", 0, 1, id=1, result="handled")
    tale.ipis(99, 0, "nmi")
    tale.goes(100, 0, "HOST", via="nmi")
    if why == "a kill":
        tale.say(100 * SECOND, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.goes(120 * SECOND, 0, "ISOLATED")
    tale.intr(120 * SECOND, 0)
    found = texts(tale.end(121 * SECOND))
    assert any("nobody had stopped it" in text for text in found) is fails


# --- a change of policy -------------------------------------------------------------------------------------------


def changed(*, broken_after: bool) -> Tale:
    """asi, none with an overlap, and asi again."""
    tale = Tale()
    tale.enter(10, 0)
    tale.gate(20, "hold", by="policy")
    hand_back(tale, 21, 0)
    tale.policy(30, "none")
    tale.gate(31, "release", by="policy")
    tale.enter(40, 0, req=2)
    tale.enter(50, 1)
    tale.goes(60, 1, "HOST", via="bare")
    tale.goes(70, 1, "ISOLATED")
    tale.gate(80, "hold", by="policy")
    hand_back(tale, 81, 0)
    hand_back(tale, 84, 1)
    tale.policy(90, "asi", old="none")
    tale.gate(91, "release", by="policy")
    tale.enter(100, 0, req=3)
    if broken_after:
        tale.grant(110, 1)
        tale.goes(112, 1, "HOST", via="grant")
        tale.goes(115, 1, "PARKED")
    return tale


def test_what_policy_none_allows_is_told_apart_from_what_is_broken_under_asi():
    verdict = changed(broken_after=False).end(200)
    assert verdict.verdict == FAIL, "as a run that began with none"
    finding = verdict.finding("G2")
    assert "policy none does not promise otherwise" in finding.first.text
    assert finding.note == "1 that policy none does not promise against; 0 others"
    assert [(change["old"], change["new"]) for change in verdict.policies] == [("asi", "none"), ("none", "asi")]
    verdict = changed(broken_after=True).end(200)
    finding = verdict.finding("G2")
    assert finding.broken == 3  # the grant beside a lease, the overlap, and what none allows
    assert finding.note.startswith("1 that policy none does not promise against; 2 others, the first: c0h1 was granted")
    assert (finding.as_map()["allowed"], "does not promise" in finding.violations[-1].text) == (1, True), "it is last"


def test_the_kick_in_force_changes_with_the_policy():
    tale = Tale(kick="send")
    tale.ipis(9, 0, "send")
    tale.goes(10, 0, "HOST", via="send")
    tale.goes(12, 0, "PARKED")
    tale.policy(20, "asi", kick="ack")
    tale.ipis(29, 0, "send")
    tale.goes(30, 0, "HOST", via="send")
    assert [text.split(",")[0] for text in texts(tale.end(100))] == ["c0h0 went HOST by send"]


def test_a_policy_changes_while_nobody_holds_a_lease(tale):
    tale.enter(10, 0)
    tale.policy(30, "nosmt")
    assert "the policy became nosmt while c0h0 held a lease" in texts(tale.end(100))[0]


def test_g1_does_not_apply_while_there_is_no_gate():
    tale = Tale(policy="none")
    tale.gate(10, "admit", 0, vm=1, req=1, inc=1)
    tale.gate(11, "admit", 1, vm=2, req=1, inc=1)
    assert tale.end(100).finding("G1").broken == 0
    tale = Tale(policy="none")
    tale.policy(5, "asi", old="none")
    tale.gate(10, "admit", 0, vm=1, req=1, inc=1)
    tale.gate(11, "admit", 1, vm=2, req=1, inc=1)
    assert tale.end(100).finding("G1").broken == 1


def test_an_nmi_of_one_that_has_heard_of_none_before_it_is_in_force():
    """Everybody is told while the gates are held; the change is stamped when the last one has answered."""
    for held in (False, True):
        tale = Tale()
        tale.gate(5, "admit", 1, vm=1, req=1, inc=1)
        tale.gate(6, "answer", 1, number=1, was="PARKED")
        if held:
            tale.gate(7, "hold", by="policy")
        tale.goes(10, 0, "HOST", via="nmi")
        tale.goes(11, 0, "PARKED")
        tale.intr(12, 0, was="PARKED")
        tale.policy(15, "none")
        assert tale.end(100).finding("G2").broken == (0 if held else 1)


def test_an_nmi_of_one_that_has_not_heard_of_the_new_policy_is_no_violation():
    """It was told `none` and sends no IPI; nobody is admitted before everybody has been told of asi."""
    tale = Tale(policy="none")
    tale.policy(5, "asi", old="none")
    for us, bad in ((10, 0), (30, 1)):
        tale.goes(us, 0, "HOST", via="nmi")
        tale.goes(us + 1, 0, "PARKED")
        tale.intr(us + 2, 0, was="PARKED")
        assert tale.audit().finding("G2").broken == bad
        tale.gate(us + 5, "admit", 1, vm=1, req=1, inc=1)


@pytest.mark.parametrize(
    ("us", "via", "broken"), [(25, "send", False), (25, "grant", True), (60, "send", False), (60, "bare", True)]
)
def test_a_change_of_policy_finds_some_told_and_some_not(us, via, broken):
    """Up to the first admission under the new one both ways into HOST are right; a grant is to be had all the same."""
    tale = Tale()
    tale.enter(10, 0)
    tale.gate(20, "hold", by="policy")
    hand_back(tale, 21, 0)
    tale.policy(30 if us > 25 else 28, "asi", kick="send")
    tale.gate(31, "release", by="policy")
    tale.enter(40, 0, req=2)
    hand_back(tale, 50, 0)
    tale.ipis(us, 1, via)
    tale.goes(us, 1, "HOST", via=via)
    tale.goes(us + 1, 1, "PARKED")
    found = texts(tale.end(100))
    assert bool(found) is broken
    assert not any("was in force" in text for text in found) or via == "bare"


@pytest.mark.parametrize(("policy", "allowed"), [("asi", 0), ("core-sched", 0), ("nosmt", 0), ("none", 1)])
def test_two_vms_at_once_are_what_none_alone_allows(policy, allowed):
    tale = Tale(policy=policy)
    tale.enter(10, 0, vm=1)
    tale.enter(20, 1, vm=2)
    verdict = tale.end(100)
    finding = verdict.finding("G3")
    assert finding.broken > 0 and finding.allowed == allowed * finding.broken
    told = any("held a lease of vm1" in violation.text for violation in verdict.finding("G1").violations)
    assert told is not bool(allowed), "the gate lets nobody in beside another VM"


@pytest.mark.parametrize(("via", "allowed"), [("bare", 1), ("grant", 0)])
def test_kick_except_idle_does_not_promise_what_is_beside_idling(via, allowed):
    tale = both_in_guest(policy="kick-except-idle")
    if via == "grant":
        tale.grant(90, 0)
    tale.goes(100, 0, "HOST", via=via)
    tale.goes(110, 0, "PARKED")
    finding = tale.end(200).finding("G2")
    assert finding.allowed == allowed
    assert (finding.broken > finding.allowed) is not bool(allowed)


@pytest.mark.parametrize(("ways", "broken"), [("grant,send", False), ("grant", True)])
def test_a_policy_of_ones_own_says_in_which_ways_its_leaves_reach_host(ways, broken):
    """An interrupt of a parked hyperthread may be left by another kick than an exit."""
    tale = Tale(policy="mine:Own")
    begin = tale.records[0]
    tale.records[0] = begin._replace(data={**begin.data, "like": "asi", "ways": ways})
    tale.enter(10, 0)
    tale.ipis(60, 1, "send")
    tale.goes(60, 1, "HOST", via="send")
    tale.goes(65, 1, "PARKED")
    assert bool(texts(tale.end(100))) is broken


# --- what real guests count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "via", "moved", "broken", "allowed"),
    [
        ("asi", "grant", 0, 0, 0),
        ("asi", "grant", 2, 1, 0),
        ("none", "bare", 2, 1, 1),
        ("kick-except-idle", "bare", 2, 1, 1),
    ],
)
def test_a_guest_that_counts_on_beside_host_breaks_what_was_promised(policy, via, moved, broken, allowed):
    tale = both_in_guest(policy=policy)
    tale.say(150, "standstill", 0, 0, via=via, visits=5, moved=moved, turns=10 * moved)
    tale.say(160, "standstill", 0, 1, via=via, visits=3, moved=0, turns=0)
    verdict = tale.end(200)
    finding = verdict.finding("G2")
    assert (finding.broken, finding.allowed) == (broken, allowed)
    assert verdict.as_map()["figures"]["standstill"] == {via: {"visits": 8, "moved": moved, "turns": 10 * moved}}
    if broken:
        assert "moved on by 20 turns in 2 of its 5 visits" in texts(verdict)[0]


@pytest.mark.parametrize(("stays", "moved", "broken"), [(2, 2, 0), (2, 3, 1), (0, 1, 1)])
def test_guests_move_beside_no_more_nmis_than_one_was_beside(stays, moved, broken):
    tale = Tale()
    tale.enter(10, 0)
    for at in range(60, 60 + 10 * stays, 10):
        tale.ipis(at, 1, "nmi")
        tale.goes(at, 1, "HOST", via="nmi")
        tale.goes(at + 5, 1, "PARKED")
    tale.say(150, "standstill", 0, 1, via="nmi", visits=5, moved=1, turns=10)
    tale.say(160, "standstill", 0, 1, via="nmi", visits=5, moved=moved - 1, turns=10)
    verdict = tale.end(200)
    assert verdict.finding("G2").broken == broken
    assert not broken or f"the intervals have {max(0, stays - 1)} with a guest beside it" in texts(verdict)[0]


def test_a_run_without_real_guests_has_no_counts_of_theirs():
    assert "standstill" not in both_in_guest().end(200).as_map()["figures"]
