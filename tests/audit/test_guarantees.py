"""Each guarantee on a run that keeps it and on runs that break it, each in one way."""

from __future__ import annotations

import pytest
from audit_tale import MS, S, Tale

from asid.audit import FAIL, PASS

ORDINARY = 1_000_000  # us: long enough that nothing is "still open at the end"


def broken(verdict) -> set[str]:
    return {finding.guarantee for finding in verdict.findings if finding.broken}


def ordinary(tale: Tale) -> None:
    """Both siblings enter, one leaves and kicks the other, both enter again; an NMI, a death and a restart."""
    tale.enter(10, 0)
    tale.enter(20, 1)
    tale.leave(100, 0, kicked=(1,))
    tale.enter(200, 0)
    tale.enter(210, 1)
    tale.say(290, "inject", 0, 0, id=7, what="nmi", target="c0h0")
    tale.nmi(300, 0, id_=7)
    tale.say(306, "inject.done", 0, 0, id=7, result="handled")
    tale.goes(304, 1, "ISOLATED")
    tale.flush(306, 1)
    tale.goes(307, 1, "GUEST")
    tale.goes(308, 0, "GUEST")
    tale.say(400, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.gate(401, "dead", 1, inc=1)
    tale.say(402, "spawn", 0, 1, what="ht", pid=103, inc=2)
    tale.mode[1] = "PARKED"
    tale.gate(403, "ready", 1, inc=2, mode="PARKED")
    tale.enter(410, 1, inc=2)


def test_an_ordinary_run_passes_and_exercises_nearly_everything(tale):
    ordinary(tale)
    verdict = tale.end(1000)
    assert broken(verdict) == set(), verdict.first
    assert verdict.verdict == PASS
    assert {f.guarantee for f in verdict.findings if not f.checked} == {"G3", "G6"}
    assert verdict.reasons == []


def test_the_exposure_of_an_nmi_is_measured_and_breaks_nothing(tale):
    ordinary(tale)
    verdict = tale.end(1000)
    assert [(w.ts, w.ns, w.ht, w.sibling, w.cause) for w in verdict.windows] == [(300_000, 4_000, 0, 1, "nmi")]
    exposure = verdict.exposure()
    assert exposure["count"] == 1 and exposure["max_ns"] == exposure["p50_ns"] == exposure["p99_ns"] == 4_000
    assert exposure["by_cause"]["nmi"]["count"] == 1


@pytest.mark.parametrize("via", ["nmi", "mce", "send"])
def test_involuntary_and_send_hosts_are_exposure(via):
    tale = Tale(kick="send" if via == "send" else "ack")
    tale.enter(10, 0)
    tale.enter(20, 1)
    tale.ipis(99, 0, via)
    tale.goes(100, 0, "HOST", via=via)
    tale.goes(130, 0, "ISOLATED")
    if via != "send":
        tale.intr(131, 0, what=via)
    verdict = tale.end(200)
    assert broken(verdict) == set(), verdict.first
    assert [(w.ns, w.cause) for w in verdict.windows] == [(30_000, via)]


# --- G1 ---------------------------------------------------------------------------------------------------------


def test_g1_guest_without_admission(tale):
    tale.goes(10, 0, "GUEST")
    verdict = tale.end(100)
    assert broken(verdict) == {"G1"}
    assert "never admitted" in verdict.first[1].text
    assert verdict.verdict == FAIL


@pytest.mark.parametrize("ending", ["grant", "answer", "dead", "leave"])
def test_g1_guest_after_the_lease_ended(tale, ending):
    tale.enter(10, 0)
    tale.goes(20, 0, "ISOLATED")
    data = {"grant": {"req": 2}, "answer": {"number": 1, "was": "GUEST"}, "dead": {"inc": 1},
            "leave": {"req": 2, "reason": "HLT"}}[ending]  # fmt: skip
    tale.gate(30, ending, 0, **data)
    tale.goes(40, 0, "GUEST")
    finding = tale.end(100).finding("G1")
    assert finding.broken == 1
    assert "ended" in finding.first.text


def test_g1_equal_stamps_get_the_benefit_of_the_doubt(tale):
    tale.gate(10, "admit", 0, vm=1, req=1, inc=1)
    tale.goes(10, 0, "GUEST")
    tale.goes(11, 0, "ISOLATED")
    tale.goes(12, 0, "GUEST")
    tale.gate(12, "answer", 0, number=1, was="GUEST")
    tale.gate(12, "admit", 0, vm=1, req=2, inc=1)
    tale.goes(13, 0, "ISOLATED")
    assert tale.end(100).finding("G1").state == "held"


def test_g1_lease_of_another_round_or_incarnation(tale):
    tale.gate(10, "admit", 0, vm=1, req=1, inc=1)
    tale.round = 2
    tale.goes(20, 0, "GUEST")
    tale.round = 1
    tale.goes(30, 0, "ISOLATED")
    tale.goes(40, 0, "GUEST", inc=2)
    finding = tale.end(100).finding("G1")
    assert finding.broken == 2
    assert "round 1 incarnation 1" in finding.violations[0].text


def test_g1_admission_beside_a_granted_host_or_another_vm(tale):
    tale.gate(10, "grant", 0, req=1)
    tale.gate(20, "admit", 1, vm=1, req=1, inc=1)
    tale.gate(30, "done", 0)
    tale.gate(40, "admit", 0, vm=2, req=2, inc=1)
    finding = tale.end(100).finding("G1")
    assert [v.ts for v in finding.violations] == [20_000, 40_000]
    assert "HOST" in finding.violations[0].text and "vm1" in finding.violations[1].text


def test_g1_a_death_that_only_the_daemon_wrote_down_ends_a_granted_host(tale):
    """The coordinator died with it: the next one is born knowing, and has nothing to say about it."""
    tale.gate(10, "grant", 0, req=1)
    tale.say(20, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    tale.gate(30, "admit", 1, vm=1, req=1, inc=1)
    assert tale.end(100).finding("G1").broken == 0


def test_g1_a_grant_that_crossed_a_repeated_leave_is_not_used(tale):
    tale.gate(10, "leave", 0, req=1, reason="")
    tale.gate(11, "grant", 0, req=1)
    tale.gate(12, "leave", 0, req=2, reason="")
    tale.gate(13, "admit", 1, vm=1, req=1, inc=1)
    assert tale.end(100).finding("G1").broken == 0


def test_g1_does_not_apply_to_a_policy_without_a_gate():
    tale = Tale(policy="none", kick="send")
    tale.goes(10, 0, "GUEST")
    finding = tale.end(100).finding("G1")
    assert finding.state == "not exercised" and "none" in finding.note


# --- G2, G3 (every cell is in test_matrix) ----------------------------------------------------------------------


def test_g2_the_negative_control_fails():
    """Policy none goes HOST without a word: that must be seen, whoever promised nothing."""
    tale = Tale(policy="none")
    tale.goes(10, 0, "GUEST")
    tale.goes(20, 1, "HOST", via="bare")
    tale.goes(50, 1, "ISOLATED")
    verdict = tale.end(100)
    assert verdict.verdict == FAIL
    assert broken(verdict) == {"G2", "G9"}
    assert "for 30000 ns" in verdict.first[1].text


def test_g2_a_killed_guest_is_out_when_it_answered(tale):
    """Its PARKED died with it, but the gate had its answer; what is left is a suspect, not a violation."""
    tale.enter(10, 0)
    tale.enter(20, 1)
    tale.gate(101, "leave", 0, req=2, reason="HLT")
    tale.gate(102, "kick", 1, number=1, for_ht=0)
    tale.gate(103, "answer", 1, number=1, was="GUEST")
    tale.gate(104, "grant", 0, req=2)
    tale.goes(100, 0, "ISOLATED")
    tale.goes(105, 0, "HOST", via="grant")
    tale.say(120, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    verdict = tale.end(200)
    assert verdict.finding("G2").broken == 0
    assert verdict.finding("G2").suspects == 1


def test_g2_a_killed_guest_that_never_answered_was_in_guest(tale):
    tale.enter(10, 0)
    tale.enter(20, 1)
    tale.goes(100, 0, "ISOLATED")
    tale.gate(101, "leave", 0, req=2, reason="HLT")
    tale.gate(104, "grant", 0, req=2)
    tale.goes(105, 0, "HOST", via="grant")
    tale.say(120, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    texts = [violation.text for violation in tale.end(200).finding("G2").violations]
    assert len(texts) == 2
    assert "never kicked" in texts[0]
    assert "for 15000 ns" in texts[1], "until the death, not longer"


def test_g3_two_vms_in_turn_are_fine(tale):
    tale.enter(10, 0, vm=1)
    tale.gate(30, "kick", 0, number=1, for_ht=-1)
    tale.goes(31, 0, "PARKED")
    tale.say(31, "kick.seen", 0, 0, 1, number=1, was="GUEST", avoidable=False, insns=0)
    tale.gate(32, "answer", 0, number=1, was="GUEST")
    tale.enter(40, 1, vm=2)
    finding = tale.end(100).finding("G3")
    assert finding.state == "held" and finding.checked == 2


# --- G4 ---------------------------------------------------------------------------------------------------------


def test_g4_instructions_after_the_pending_bit(tale):
    tale.gate(9, "kick", 0, number=3, for_ht=1)
    tale.say(10, "kick.seen", 0, 0, 1, number=3, was="GUEST", avoidable=False, insns=2)
    verdict = tale.end(100)
    assert broken(verdict) == {"G4"}
    assert "retired 2 instructions" in verdict.first[1].text


def test_g4_the_instruction_in_flight_is_in_the_kickers_count_so_one_more_is_one_too_many(tale):
    tale.gate(9, "kick", 0, number=3, for_ht=1)
    tale.say(10, "kick.seen", 0, 0, 1, number=3, was="GUEST", avoidable=False, insns=1)
    finding = tale.end(100).finding("G4")
    assert finding.broken == 1 and "retired 1 instruction after" in finding.first.text


def test_g4_a_kick_whose_instructions_were_not_measured_is_not_checked(tale):
    tale.gate(9, "kick", 0, number=3, for_ht=1)
    tale.say(10, "kick.seen", 0, 0, 1, number=3, was="GUEST", avoidable=False)
    finding = tale.end(100).finding("G4")
    assert (finding.checked, finding.broken, finding.suspects) == (0, 0, 0)


def test_g4_guest_after_a_kick_was_seen(tale):
    tale.enter(10, 0)
    tale.gate(20, "kick", 0, number=1, for_ht=1)
    tale.goes(21, 0, "PARKED")
    tale.say(21, "kick.seen", 0, 0, 1, number=1, was="GUEST", avoidable=False, insns=0)
    tale.goes(22, 0, "GUEST")
    verdict = tale.end(100)
    assert broken(verdict) == {"G4"}  # the gate has no answer yet, so to G1 the lease lasts
    assert "had seen a kick" in verdict.first[1].text


def test_g4_one_entry_may_be_under_way_when_the_kick_is_sent_and_a_second_may_not():
    for again in (False, True):
        tale = Tale()
        tale.enter(10, 0)
        tale.goes(15, 0, "ISOLATED")
        tale.gate(20, "kick", 0, number=1, for_ht=1)
        tale.goes(21, 0, "GUEST")
        tale.goes(22, 0, "ISOLATED")
        if again:
            tale.goes(23, 0, "GUEST")
        verdict = tale.end(100)
        assert verdict.finding("G4").suspects == 1
        assert broken(verdict) == ({"G4"} if again else set())
    assert "twice" in verdict.first[1].text


def test_g4_a_later_admission_makes_it_good(tale):
    tale.enter(10, 0)
    tale.leave(20, 1, kicked=(0,))
    tale.enter(50, 0)
    assert tale.end(100).finding("G4").state == "held"


# --- G5 ---------------------------------------------------------------------------------------------------------


def test_g5_a_round_that_goes_back(tale):
    tale.round = 5
    tale.gate(10, "open")
    tale.round = 4
    tale.gate(20, "close")
    assert "from round 5 to 4" in tale.end(100).first[1].text


def test_g5_a_hyperthread_ahead_of_its_gate(tale):
    tale.gate(10, "open")
    tale.round = 2
    tale.goes(20, 0, "ISOLATED")
    verdict = tale.end(100)
    assert broken(verdict) == {"G5"}
    assert "in round 2, its gate in round 1" in verdict.first[1].text


def test_g5_incarnations_are_never_used_twice(tale):
    tale.say(10, "death", 0, 0, what="ht", pid=101, inc=1, status=0)
    tale.say(20, "spawn", 0, 0, what="ht", pid=103, inc=1)
    assert broken(tale.end(100)) == {"G5"}


def test_g5_the_dead_do_nothing(tale):
    tale.say(10, "death", 0, 0, what="ht", pid=101, inc=1, status=0)
    tale.goes(20, 0, "ISOLATED")
    verdict = tale.end(100)
    assert broken(verdict) == {"G5"}
    assert "after its death" in verdict.first[1].text


# --- G8 ---------------------------------------------------------------------------------------------------------


def inject(tale, us, id_, what="exit"):
    tale.say(us, "inject", 0, 0, id=id_, what=what, target="c0h0")


def done(tale, us, id_, result="handled"):
    tale.say(us, "inject.done", 0, 0, id=id_, result=result)


def exits(tale, us, n, reason="CPUID", ht=0):
    tale.say(us, "exit", 0, ht, 1, reason=reason, isa="vmx", full=False, n=n, sum_ns=n, min_ns=1, max_ns=1, hist=[])


def test_g8_done_once_whatever_the_result(tale):
    inject(tale, 10, 1)
    exits(tale, 12, 1)
    done(tale, 15, 1)
    inject(tale, 20, 2, "nmi")
    inject(tale, 21, 3, "nmi")
    tale.nmi(22, 0, id_=3, merged=1)
    done(tale, 28, 2, "merged")
    done(tale, 28, 3)
    inject(tale, 30, 4)
    tale.gate(33, "idle", 0)
    done(tale, 35, 4, "refused")
    finding = tale.end(100).finding("G8")
    assert finding.state == "held" and finding.checked == 4


@pytest.mark.parametrize(("n", "had", "fails"), [(1, 0, True), (100, 99, True), (100, 100, False), (100, 130, False)])
def test_g8_exits_called_handled_are_counted(tale, n, had, fails):
    tale.say(10, "inject", 0, 0, id=1, what="exit", target="c0h0", reason="CPUID", **({"n": n} if n > 1 else {}))
    if had:
        exits(tale, 12, had)
    exits(tale, 13, 500, reason="HLT")
    exits(tale, 14, 500, ht=1)
    done(tale, 20, 1)
    exits(tale, 21, 500)
    finding = tale.end(100).finding("G8")
    assert bool(finding.broken) is fails
    assert not fails or f"had {had} of its {n} exits" in finding.first.text


def test_g8_exits_of_a_hyperthread_that_died_may_have_died_with_it(tale):
    tale.say(10, "inject", 0, 0, id=1, what="exit", target="c0h0", reason="CPUID", n=9)
    done(tale, 20, 1)
    tale.say(21, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    assert tale.end(100).finding("G8").broken == 0


@pytest.mark.parametrize(("what", "handler_id"), [("exit", 2), ("nmi", 0), ("nmi", 1), ("mce", 2)])
def test_g8_merged_needs_a_later_handler_of_its_kind(tale, what, handler_id):
    """A handler of its own id would have handled it, one of another kind took nothing along."""
    inject(tale, 10, 1, what)
    if handler_id:
        inject(tale, 11, 2, "nmi")
        tale.nmi(12, 0, id_=handler_id)
        done(tale, 19, 2)
    done(tale, 20, 1, "merged")
    assert any("counts as merged" in v.text for v in tale.end(100).finding("G8").violations)


def test_g8_refused_while_everything_runs(tale):
    inject(tale, 10, 1, "nmi")
    done(tale, 15, 1, "refused")
    finding = tale.end(100).finding("G8")
    assert finding.broken == 1 and "nothing kept" in finding.first.text


def test_g8_refused_by_a_hyperthread_that_had_been_idle_for_long(tale):
    tale.gate(10, "idle", 0)
    inject(tale, 50 * ORDINARY, 1)
    done(tale, 50 * ORDINARY + 5, 1, "refused")
    assert tale.end(51 * ORDINARY).finding("G8").broken == 0
    inject(tale, 52 * ORDINARY, 2)
    tale.gate(52 * ORDINARY, "ask", 0, vm=1, req=9)
    done(tale, 54 * ORDINARY, 2, "refused")
    assert tale.end(55 * ORDINARY).finding("G8").broken == 1


@pytest.mark.parametrize(("end_s", "fails"), [(1, False), (60, True)])
def test_g8_refused_because_the_machine_stops(tale, end_s, fails):
    inject(tale, 10, 1, "nmi")
    done(tale, 15, 1, "refused")
    tale.gate(end_s * ORDINARY - 20, "bye", 0)
    tale.say(end_s * ORDINARY - 10, "death", 0, 0, what="ht", pid=101, inc=1, status=0)
    assert bool(tale.end(end_s * ORDINARY).finding("G8").broken) is fails


def test_g8_never_done(tale):
    inject(tale, 10, 1)
    assert tale.audit().finding("G8").broken == 0, "it may still come"
    assert "never done" in tale.end(100).first[1].text


def test_g8_done_twice(tale):
    inject(tale, 10, 1)
    done(tale, 20, 1)
    done(tale, 30, 1, "merged")
    assert "2 times" in tale.end(100).first[1].text


def test_g8_done_and_never_accepted(tale):
    done(tale, 20, 9)
    assert "never accepted" in tale.end(100).first[1].text


def test_g8_handled_and_never_accepted(tale):
    tale.nmi(10, 0, id_=9)
    assert "which was never accepted" in tale.end(100).first[1].text


def test_g8_accepted_twice(tale):
    inject(tale, 10, 1)
    inject(tale, 11, 1)
    done(tale, 20, 1)
    assert "accepted twice" in tale.end(100).first[1].text


def test_g8_lost_needs_a_death(tale):
    inject(tale, 10, 1)
    done(tale, 30, 1, "lost")
    assert "lived" in tale.end(100).first[1].text


def test_g8_lost_with_the_hyperthread_that_died(tale):
    inject(tale, 10, 1)
    tale.say(20, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    done(tale, 30, 1, "lost")
    assert tale.end(100).finding("G8").state == "held"


def test_g8_a_death_before_the_injection_does_not_excuse_the_new_incarnation(tale):
    tale.say(5, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    tale.say(6, "spawn", 0, 0, what="ht", pid=103, inc=2)
    inject(tale, 10, 1)
    done(tale, 30, 1, "lost")
    assert tale.end(100).finding("G8").broken == 1


def test_g8_lost_with_a_hyperthread_that_died_in_the_nanosecond_of_its_birth(tale):
    tale.say(0, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    inject(tale, 10, 1)
    done(tale, 10, 1, "lost")
    assert tale.end(100).finding("G8").state == "held"


def test_g8_an_nmi_handled_twice_or_by_nobody(tale):
    inject(tale, 10, 1, "nmi")
    tale.nmi(20, 0, id_=1)
    tale.nmi(40, 0, id_=1)
    done(tale, 50, 1)
    inject(tale, 60, 2, "nmi")
    done(tale, 70, 2)
    texts = [v.text for v in tale.end(100).finding("G8").violations]
    assert len(texts) == 2
    assert "handled twice" in texts[0] and "no handler ran" in texts[1]


# --- G10 --------------------------------------------------------------------------------------------------------


def intr(tale, us, depth, what="nmi"):
    tale.say(us, "intr", 0, 0, 0, what=what, id=0, depth=depth, merged=0, host_ns=1, from_="ISOLATED")


@pytest.mark.parametrize(
    ("ends", "fault"),
    [
        ([(1, "nmi")], None),
        ([(2, "mce"), (1, "nmi")], None),
        ([(2, "nmi"), (1, "mce")], None),
        ([(2, "mce"), (2, "mce"), (1, "nmi")], None),
        ([(0, "nmi")], "depth 1"),
        ([(3, "mce"), (1, "nmi")], "ended before"),
        ([(2, "nmi"), (1, "nmi")], "blocks NMIs"),
        ([(2, "mce")], "never ended"),
    ],
)
def test_g10_nesting(tale, ends, fault):
    for at, (depth, what) in enumerate(ends):
        intr(tale, 10 * (at + 1), depth, what)
    finding = tale.end(100).finding("G10")
    if fault is None:
        assert finding.state == "held" and finding.checked == len(ends)
    else:
        assert finding.broken == 1 and fault in finding.first.text


@pytest.mark.parametrize("was", ["PARKED", "ISOLATED", "GUEST"])
@pytest.mark.parametrize("back", ["PARKED", "ISOLATED", "GUEST"])
def test_g10_the_interrupted_mode_comes_back(tale, was, back):
    tale.mode[0] = was
    tale.goes(10, 0, "HOST", via="nmi")
    tale.goes(11, 0, "HOST", via="mce")  # on top: still HOST, and nothing to restore in between
    tale.intr(19, 0, what="mce", depth=2)
    tale.goes(20, 0, back)
    tale.intr(20, 0)
    finding = tale.end(100).finding("G10")
    assert bool(finding.broken) is (back != {"GUEST": "ISOLATED"}.get(was, was))


def test_g10_nobody_waits_in_a_handler(tale):
    tale.goes(10, 0, "HOST", via="nmi")
    tale.say(15, "held", 0, 0, 0, by=1, held_ns=3)
    tale.goes(20, 0, "PARKED")
    tale.intr(20, 0)
    tale.say(25, "held", 0, 0, 0, by=1, held_ns=3)
    finding = tale.end(100).finding("G10")
    assert finding.broken == 1 and "waited (held)" in finding.first.text


def test_g10_a_death_inside_a_handler_ends_it(tale):
    tale.goes(10, 0, "HOST", via="mce")
    intr(tale, 12, 2, "mce")
    tale.say(20, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    tale.say(30, "spawn", 0, 0, what="ht", pid=103, inc=2)
    tale.goes(40, 0, "ISOLATED", inc=2)
    assert tale.end(100).finding("G10").broken == 0


# --- G11 --------------------------------------------------------------------------------------------------------


def test_g11_death_by_hearsay(tale):
    tale.gate(10, "fence", 1, inc=1)
    tale.gate(20, "dead", 1, inc=1)
    tale.say(30, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    assert "without a confirmed death" in tale.end(100).first[1].text


@pytest.mark.parametrize(("kind", "data"), [("admit", {"vm": 1, "req": 1, "inc": 1}), ("grant", {"req": 1})])
def test_g11_nothing_opens_while_a_sibling_is_fenced(tale, kind, data):
    tale.gate(10, "fence", 1, inc=1)
    tale.gate(15, kind, 0, **data)
    tale.say(20, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.gate(21, "dead", 1, inc=1)
    tale.gate(25, kind, 0, **data)
    finding = tale.end(100).finding("G11")
    assert finding.broken == 1 and finding.first.ts == 15_000


@pytest.mark.parametrize(("kind", "data"), [("answer", {"number": 1, "was": "PARKED"}), ("resync", {"inc": 1})])
def test_g11_what_is_said_after_the_fence_ends_the_doubt(tale, kind, data):
    tale.gate(10, "fence", 1, inc=1)
    tale.gate(15, kind, 1, **data)
    tale.gate(16, "grant", 0, req=1)
    tale.say(20, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.gate(21, "dead", 1, inc=1)
    assert tale.end(100).finding("G11").broken == 0


def test_g11_a_death_the_gate_has_not_heard_of_yet_is_no_doubt(tale):
    tale.say(20, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.gate(21, "admit", 0, vm=1, req=1, inc=1)
    tale.gate(22, "dead", 1, inc=1)
    tale.gate(23, "admit", 0, vm=1, req=2, inc=1)
    assert tale.end(100).finding("G11").broken == 0


def test_g11_the_dead_are_admitted_only_when_ready_again(tale):
    tale.say(20, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.gate(21, "dead", 1, inc=1)
    tale.gate(22, "admit", 1, vm=1, req=1, inc=2)
    finding = tale.end(100).finding("G11")
    assert finding.broken == 1 and "not ready again" in finding.first.text


def restarted(tale):
    tale.say(20, "death", 0, -1, what="coordinator", pid=100, inc=1, status=-9)
    tale.say(21, "spawn", 0, -1, what="coordinator", pid=110, inc=2)


def test_g11_a_new_coordinator_believes_nothing(tale):
    restarted(tale)
    tale.gate(30, "resync", 0, inc=1)
    tale.gate(31, "admit", 0, vm=1, req=1, inc=1)
    tale.gate(32, "resync", 1, inc=1)
    tale.gate(33, "admit", 0, vm=1, req=2, inc=1)
    finding = tale.end(100).finding("G11")
    assert [v.ts for v in finding.violations] == [31_000]
    assert "told its state" in finding.first.text


def test_g11_a_confirmed_death_tells_as_much_as_a_resync(tale):
    restarted(tale)
    tale.gate(30, "resync", 0, inc=1)
    tale.say(31, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.gate(32, "admit", 0, vm=1, req=1, inc=1)
    assert tale.end(100).finding("G11").broken == 0


def test_g11_a_held_gate_admits_nobody(tale):
    tale.gate(10, "hold", by="top@pts/3")
    tale.gate(20, "admit", 0, vm=1, req=1, inc=1)
    tale.gate(30, "release", by="top@pts/3")
    tale.gate(40, "admit", 0, vm=1, req=2, inc=1)
    finding = tale.end(100).finding("G11")
    assert finding.broken == 1 and finding.first.ts == 20_000


# --- L1 to L4 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "data", "guarantee"), [
    ("leave", {"req": 1, "reason": "HLT"}, "L1"),
    ("ask", {"req": 1, "vm": 1}, "L2"),
])  # fmt: skip
def test_l1_l2_an_unanswered_request(kind, data, guarantee):
    for end_us, expected in ((ORDINARY - 10, 0), (ORDINARY + 20, 1)):
        tale = Tale()
        tale.gate(10, kind, 0, **data)
        finding = tale.end(end_us).finding(guarantee)
        assert finding.checked == 1
        assert finding.broken == expected, f"after {end_us} us"


@pytest.mark.parametrize("how", ["answered", "dead", "died", "idle", "bye", "reborn", "no end"])
def test_l2_what_ends_an_ask(tale, how):
    tale.gate(10, "ask", 0, req=1, vm=1)
    if how == "answered":
        tale.gate(20, "admit", 0, vm=1, req=1, inc=1)
    elif how == "dead":
        tale.gate(20, "dead", 0, inc=1)
    elif how == "died":
        tale.say(20, "death", 0, 0, what="ht", pid=101, inc=1, status=0)
    elif how == "reborn":
        tale.gate(20, "ready", 0, inc=2, mode="PARKED")
    elif how != "no end":
        tale.gate(20, how, 0)
    tale.say(3 * ORDINARY, "mark", -1, -1, text="later")
    verdict = tale.audit() if how == "no end" else tale.end(3 * ORDINARY)
    assert verdict.finding("L2").broken == 0


def test_l1_a_repeated_leave_is_as_old_as_the_first(tale):
    tale.gate(10, "leave", 0, req=1, reason="HLT")
    tale.gate(ORDINARY, "leave", 0, req=2, reason="HLT")
    assert tale.end(ORDINARY + 500_000).finding("L1").broken == 1


def test_l2_behind_a_host_visit_or_a_hold_it_may_stay_open(tale):
    tale.gate(10, "ask", 0, req=1, vm=1)
    tale.goes(11, 1, "HOST", via="grant")
    finding = tale.end(3 * ORDINARY).finding("L2")
    assert finding.state == "held" and "host visit" in finding.note
    other = Tale()
    other.gate(10, "ask", 0, req=1, vm=1)
    other.gate(11, "hold", by="me")
    assert other.end(3 * ORDINARY).finding("L2").state == "held"


def test_l3_silence_while_somebody_waits(tale):
    tale.gate(10, "ask", 0, req=1, vm=1)
    tale.gate(2_500_000, "admit", 0, vm=1, req=1, inc=1)
    verdict = tale.end(2_600_000)
    assert broken(verdict) == {"L3"}
    assert "silent for 2.5 s" in verdict.first[1].text


def test_l3_a_long_wait_with_life_on_the_core_is_no_silence(tale):
    tale.gate(10, "ask", 0, req=1, vm=1)
    for us in range(1_000_000, 6_000_000, 1_000_000):
        tale.gate(us, "turn", vm=2)
    tale.gate(6_000_000, "admit", 0, vm=1, req=1, inc=1)
    assert broken(tale.end(6_000_010)) == set()


def test_l3_silence_with_nobody_waiting_is_peace(tale):
    tale.enter(10, 0)
    verdict = tale.end(60_000_000)
    assert broken(verdict) == set()


def test_l3_silence_under_a_hold_was_asked_for(tale):
    tale.gate(9, "hold", by="me")
    tale.gate(10, "ask", 0, req=1, vm=1)
    tale.gate(4_000_000, "release", by="me")
    tale.gate(4_000_001, "admit", 0, vm=1, req=1, inc=1)
    assert broken(tale.end(4_000_010)) == set()


@pytest.mark.parametrize(("status", "back_us", "fails"), [(-9, 100, False), (-9, None, True), (0, None, False),
                                                          (-9, 5_500_000, True)])  # fmt: skip
def test_l4_recovery(tale, status, back_us, fails):
    tale.say(20, "death", 0, 1, what="ht", pid=102, inc=1, status=status)
    if back_us is not None:
        tale.say(back_us, "spawn", 0, 1, what="ht", pid=103, inc=2)
        tale.gate(back_us + 10, "ready", 1, inc=2, mode="PARKED")
    assert (tale.end(6_000_000).finding("L4").broken == 1) is fails


def test_l4_a_spawn_alone_is_no_recovery(tale):
    tale.say(20, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.say(30, "spawn", 0, 1, what="ht", pid=103, inc=2)
    assert tale.end(6_000_000).finding("L4").broken == 1


def test_l4_a_coordinator_is_back_when_it_writes(tale):
    restarted(tale)
    early = tale.audit().finding("L4")
    assert (early.broken, early.checked) == (0, 0), "five seconds are not over"
    tale.say(6_000_000, "mark", -1, -1, text="later")
    assert tale.audit().finding("L4").broken == 1
    other = Tale()
    restarted(other)
    other.gate(30, "resync", 0, inc=1)
    assert other.end(6_000_000).finding("L4").broken == 0


def test_l4_killed_again_is_judged_at_the_next_death(tale):
    for inc in (1, 2, 3):
        tale.say(20 * inc, "death", 0, 1, what="ht", pid=102, inc=inc, status=-9)
        tale.say(20 * inc + 1, "spawn", 0, 1, what="ht", pid=102, inc=inc + 1)
    tale.gate(90, "ready", 1, inc=4, mode="PARKED")
    finding = tale.end(6_000_000).finding("L4")
    assert finding.checked == 3 and finding.broken == 0


def test_the_first_violation_tells_its_story(tale):
    ordinary(tale)
    tale.gate(495, "leave", 0, req=3, reason="HLT")
    tale.gate(496, "kick", 1, number=2, for_ht=0)
    tale.gate(497, "answer", 1, number=2, was="GUEST")  # and stays in guest
    tale.gate(498, "grant", 0, req=3)
    tale.goes(500, 0, "HOST", via="grant")
    tale.goes(600, 1, "PARKED")
    verdict = tale.end(1000)
    guarantee, violation = verdict.first
    assert guarantee == "G2" and violation.hts == (0, 1)
    assert [record.seq for record in verdict.story if record.seq in violation.seqs] == sorted(violation.seqs)
    assert all(a.ts <= b.ts for a, b in zip(verdict.story, verdict.story[1:], strict=False))
    assert len(verdict.story) >= 10


def test_figures_of_a_small_run(tale):
    ordinary(tale)
    tale.say(500, "exit", 0, 0, 1, reason="CPUID", isa="vmx", full=False, n=9, sum_ns=90, min_ns=1, max_ns=20, hist=[])
    tale.say(501, "exit", 0, 0, 1, reason="HLT", isa="vmx", full=True, n=1, sum_ns=90, min_ns=90, max_ns=90, hist=[])
    tale.say(5000, "gate.wait", 0, 0, 1, wait_ns=3 * MS, vm=1)
    figures = tale.end(1_000_000).figures
    assert (figures["exits"], figures["full"], figures["full_percent"]) == (10, 1, 10.0)
    assert figures["exits_per_s"] == pytest.approx(10.0)
    assert figures["duration_ns"] == S
    assert figures["gate_waits"] == {"count": 1, "p50_ns": 3 * MS, "p99_ns": 3 * MS, "max_ns": 3 * MS}
    assert (figures["kicks"], figures["deaths"], figures["nmis"], figures["admits"]) == (1, 1, 1, 5)
    assert figures["grants_void"] == 0


def test_a_grant_that_crossed_a_kick_counts_as_void(tale):
    tale.gate(10, "admit", 0, vm=1, req=1, inc=1)
    tale.gate(11, "kick", 0, number=1, for_ht=1)
    tale.gate(12, "answer", 0, number=1, was="PARKED")
    tale.enter(20, 0)
    assert tale.end(100).figures["grants_void"] == 1


def test_g1_the_last_entry_at_the_stamp_of_the_answer(tale):
    tale.gate(10, "admit", 0, vm=1, req=1, inc=1)
    tale.goes(12, 0, "GUEST")
    tale.goes(13, 0, "PARKED")
    tale.gate(12, "answer", 0, number=1, was="GUEST")
    assert tale.end(100).finding("G1").state == "held"


def test_g2_a_spawn_noted_after_the_child_began_ends_nothing_of_it(tale):
    """The child may stamp its first mode before its parent has noted that it was started."""
    tale.say(10, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.gate(15, "ready", 1, inc=2, mode="PARKED")
    tale.grant(16, 1)
    tale.goes(20, 1, "HOST", via="grant", inc=2)
    tale.say(25, "spawn", 0, 1, what="ht", pid=103, inc=2)
    tale.goes(40, 0, "GUEST")
    finding = tale.end(100).finding("G2")
    assert finding.broken == 1 and finding.first.ts == 40_000


def test_l3_a_silence_that_was_over_when_the_waiting_began(tale):
    tale.gate(10, "open")
    tale.gate(3_000_000, "ask", 0, req=1, vm=1)
    for us in (3_900_000, 4_800_000, 5_700_000):
        tale.gate(us, "turn", vm=2)
    tale.gate(6_000_000, "admit", 0, vm=1, req=1, inc=1)
    assert broken(tale.end(6_000_010)) == set()


def test_l4_records_without_a_successor_are_no_recovery(tale):
    tale.say(20, "death", 0, -1, what="coordinator", pid=100, inc=1, status=-9)
    tale.gate(30, "open")
    assert tale.end(6_000_000).finding("L4").broken == 1
