"""A journal that contradicts its own beginning, or lacks what must be there, is believed in nothing."""

from __future__ import annotations

import pytest
from audit_tale import Tale

from asid.audit import FAIL, PASS, UNKNOWN, audit

VAST = 1 << 63


def ordinary(tale: Tale) -> Tale:
    tale.enter(10, 0)
    tale.enter(20, 1)
    tale.leave(100, 0, kicked=(1,))
    tale.policy(500, "asi", kick="send")
    tale.say(600, "gate.wait", 0, 0, 1, wait_ns=5, vm=1)
    tale.say(900, "run.end", -1, -1, reason="stop")
    return tale


def with_data(records, kind, **changes):
    """Change the data of the first record of a kind."""
    at = next(at for at, record in enumerate(records) if record.type == kind)
    return [*records[:at], records[at]._replace(data={**records[at].data, **changes}), *records[at + 1 :]]


def without(records, kind):
    """Take out every record of a kind, and number the rest anew."""
    return [r._replace(seq=seq) for seq, r in enumerate((r for r in records if r.type != kind), 1)]


def test_the_run_that_is_spoilt_below_passes(tale):
    verdict = ordinary(tale).audit()
    assert verdict.verdict == PASS, verdict.reasons


@pytest.mark.parametrize(("policy", "verdict"), [("none", PASS), ("nosmt", PASS), ("asi", UNKNOWN)])
def test_only_a_policy_that_kicks_nobody_has_the_kick_bare(policy, verdict):
    tale = Tale(policy=policy, kick="bare")
    tale.enter(10, 0)
    assert tale.end(900).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"smt": 1}, "of hyperthread 1, but a core has 1"),
        ({"smt": 4}, "of the start of c0h2 there is no record"),
        ({"smt": 3}, "no machine of 1 cores with 3 hyperthreads"),
        ({"smt": 10**9}, "no machine of 1 cores"),
        ({"cores": 0}, "no machine of 0 cores"),
        ({"cores": 10**9}, "no machine of 1000000000 cores"),
        ({"policy": "zzz"}, "policy 'zzz'"),
        ({"policy": "nosmt"}, "'nosmt' was in force"),
        ({"kick": "zzz"}, "kick 'zzz'"),
        ({"kick": "bare"}, "kick 'bare'"),
        ({"seed": -1}, "seed = -1 cannot be"),
    ],
)
def test_a_beginning_that_the_records_contradict(tale, changes, why):
    verdict = audit(with_data(ordinary(tale).records, "run.begin", **changes))
    assert verdict.verdict == UNKNOWN
    assert any(why in reason for reason in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("gate.wait", {"wait_ns": -1}, "wait_ns = -1 cannot be"),
        ("gate.wait", {"wait_ns": VAST}, "cannot be"),
        ("gate.wait", {"wait_ns": VAST - 1}, "longer than the run"),
        ("ht.mode", {"vm": -1}, "vm = -1 cannot be"),
        ("ht.mode", {"vm": 65}, "vm = 65, at most 64"),
        ("gate.ready", {"inc": VAST}, "cannot be"),
        ("gate.kick", {"for_ht": 2}, "for_ht = 2, but a core has 2 hyperthreads"),
        ("policy", {"new": "zzz"}, "policy 'zzz'"),
        ("policy", {"kick": "zzz"}, "kick 'zzz'"),
    ],
)
def test_numbers_and_names_that_cannot_be(tale, kind, changes, why):
    verdict = audit(with_data(ordinary(tale).records, kind, **changes))
    assert verdict.verdict == UNKNOWN
    assert any(why in reason for reason in verdict.reasons), verdict.reasons


FAULT = {
    "vm": 1, "ip": 0xFFFFFFFF81E45600, "address": 0xFFFF888100000000, "error": 2, "at": "do_IRQ+0x7/0xd0",
    "on": "0xffff888100000000", "object": "irq_desc", "reason": "EXTERNAL_INTERRUPT", "ending": "stopped", "trace": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"address": 2 * VAST - 1}, ""),
        ({"address": 2 * VAST}, "address = 18446744073709551616 cannot be"),
        ({"ip": -1}, "ip = -1 cannot be"),
        ({"error": VAST}, "cannot be"),
        ({"vm": 65}, "vm = 65, at most 64"),
        ({"ending": "right"}, "ending 'right'"),
        ({"ending": ""}, "ending ''"),
    ],
)
def test_a_fault_is_at_an_address_of_64_bits_and_ends_as_faults_do(tale, changes, why):
    tale.say(5, "fault", 0, 0, 1, **{**FAULT, **changes})
    reasons = ordinary(tale).audit().reasons
    assert any(why in reason for reason in reasons) if why else not reasons


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ({"core": 1}, "core 1, but the machine has 1"),
        ({"ht": 2}, "hyperthread 2, but a core has 2"),
        ({"ht": -1}, "does not say where"),
        ({"core": -1}, "does not say where"),
        ({"core": -2}, "core -2"),
        ({"round": VAST}, "cannot be"),
        ({"ts": VAST}, "cannot be"),
        ({"ts": -1}, "cannot be"),
        ({"tseq": 2}, "has tseq 2 after 0"),
    ],
)
def test_places_and_stamps_that_cannot_be(tale, place, why):
    records = ordinary(tale).records
    at = next(at for at, record in enumerate(records) if record.type == "gate.wait")
    records[at] = records[at]._replace(**place)
    verdict = audit(records)
    assert verdict.verdict == UNKNOWN
    assert any(why in reason for reason in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("spawn", UNKNOWN), ("ht.mode", UNKNOWN), ("run.begin", UNKNOWN), ("kick.seen", UNKNOWN),
        ("gate.ask", FAIL), ("gate.admit", FAIL), ("gate.kick", FAIL), ("gate.answer", FAIL), ("gate.grant", FAIL),
    ],
)  # fmt: skip
def test_a_kind_of_record_that_is_not_there_at_all(tale, kind, word):
    verdict = audit(without(ordinary(tale).records, kind))
    assert verdict.verdict == word, verdict.reasons


def test_an_admission_that_answers_another_ask(tale):
    tale.gate(10, "ask", 0, vm=1, req=4)
    tale.say(11, "gate.admit", 0, 0, 1, vm=1, req=5, inc=1)
    finding = tale.end(100).finding("G1")
    assert "was admitted in request 5, but it had asked in request 4" in finding.first.text


def test_a_new_coordinator_may_admit_what_it_was_told_of(tale):
    tale.gate(10, "ask", 0, vm=1, req=4)
    tale.gate(20, "resync", 0, inc=1)
    tale.say(21, "gate.admit", 0, 0, 1, vm=1, req=5, inc=1)
    assert tale.end(100).finding("G1").state == "held"


def test_the_modes_of_one_that_was_killed_may_have_died_with_it(tale):
    tale.say(20, "spawn", 0, 0, what="ht", pid=103, inc=2)
    tale.gate(21, "ready", 0, inc=2, mode="PARKED")
    assert tale.end(100).verdict == UNKNOWN
    tale.records.pop()
    tale.say(30, "death", 0, 0, what="ht", pid=103, inc=2, status=-9)
    tale.records.append(tale.records[-1]._replace(seq=len(tale.records) + 1, type="run.end", core=-1, ht=-1,
                                                  ts=100_000, tseq=1, data={"reason": "stop"}))  # fmt: skip
    assert not any("no mode of it" in reason for reason in tale.audit().reasons)
