"""L1 to L3: every wait is judged by its own length, whatever its waiter repeats meanwhile."""

from __future__ import annotations

import pytest
from audit_tale import S, Tale

SECOND = 1_000_000  # us
LONG_US = 8 * SECOND
KINDS = [("leave", "L1", {"reason": "HLT"}, "grant", {}), ("ask", "L2", {"vm": 1}, "admit", {"vm": 1, "inc": 1})]
EACH_KIND = pytest.mark.parametrize(("kind", "guarantee", "data", "answer", "more"), KINDS)


def retried(tale: Tale, kind: str, data: dict, *, until_us: float = LONG_US) -> int:
    """Ask for something twice a second, under a new number each time; return the last."""
    req, us = 1, 10.0
    while us < until_us:
        tale.gate(us, kind, 0, req=req, **data)
        req, us = req + 1, us + SECOND / 2
    return req - 1


@EACH_KIND
@pytest.mark.parametrize("answered", [False, True])
def test_a_waiter_that_asks_again_waits_all_the_same(tale, kind, guarantee, data, answer, more, answered):
    req = retried(tale, kind, data)
    if answered:
        tale.gate(LONG_US, answer, 0, req=req, **more)
    verdict = tale.end(LONG_US + 10)
    assert verdict.finding(guarantee).broken == 1
    assert "8.0 s" in verdict.finding(guarantee).first.text
    assert verdict.finding("L3").broken == 1, "asking again is no progress"


@EACH_KIND
def test_two_and_a_half_seconds_are_a_machine_short_of_cpu(tale, kind, guarantee, data, answer, more):
    req = retried(tale, kind, data, until_us=2.4 * SECOND)
    tale.gate(2.5 * SECOND, answer, 0, req=req, **more)
    assert tale.end(LONG_US).finding(guarantee).broken == 0


@EACH_KIND
def test_life_on_the_core_is_no_excuse(tale, kind, guarantee, data, answer, more):
    for tenth in range(80):
        tale.goes(tenth * SECOND / 10 + 5, 1, "ISOLATED" if tenth % 2 else "GUEST")
        if tenth == 0:
            tale.gate(10, kind, 0, req=1, **data)
    tale.gate(LONG_US, answer, 0, req=1, **more)
    verdict = tale.end(LONG_US + 10)
    assert verdict.finding(guarantee).broken == 1 and verdict.finding("L3").broken == 0


def excuse(tale: Tale, why: str, start: float, end: float) -> None:
    if why == "coordinator":
        tale.say(start, "death", 0, -1, what="coordinator", pid=100, inc=1, status=-9)
        tale.say(end - 100, "spawn", 0, -1, what="coordinator", pid=110, inc=2)
        for ht in (0, 1):
            tale.gate(end - 2, "resync", ht, inc=1)
    elif why == "fence":
        tale.gate(start, "fence", 1, inc=1)
        tale.say(end - 1, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
        tale.gate(end, "dead", 1, inc=1)
    elif why == "stall":
        tale.say(start, "inject", 0, 1, id=1, what="stall", target="c0h1")
        tale.say(end, "inject.done", 0, 1, id=1, result="handled")
    elif why == "hold":
        tale.gate(start, "hold", by="me")
        tale.gate(end, "release", by="me")
    elif why == "host visit":
        tale.goes(start, 1, "HOST", via="grant")
        tale.goes(end, 1, "PARKED")
    elif why == "turn":
        tale.gate(start, "turn", vm=2)
        tale.gate(end, "turn", vm=1)


@EACH_KIND
@pytest.mark.parametrize("why", ["nothing", "coordinator", "fence", "stall", "hold", "host visit", "turn"])
@pytest.mark.parametrize("spare_s", [2.5, 3.5])
def test_what_excuses_a_wait_and_for_how_long(tale, kind, guarantee, data, answer, more, why, spare_s):
    tale.gate(10, kind, 0, req=1, **data)
    excuse(tale, why, 20, 4.5 * SECOND)
    us = (4.5 + spare_s) * SECOND
    tale.gate(us, answer, 0, req=1, **more)
    found = tale.end(us + 10).finding(guarantee)
    of_asks_only = kind == "leave" and why in ("hold", "host visit", "turn")
    assert found.broken == (why == "nothing" or of_asks_only or spare_s > 3)
    assert ("excused" in found.note) is not found.broken


def test_a_dead_coordinator_excuses_no_more_than_the_time_it_has_to_come_back(tale):
    tale.gate(10, "leave", 0, req=1, reason="HLT")
    excuse(tale, "coordinator", 20, 20 * SECOND)
    tale.gate(20 * SECOND, "grant", 0, req=1)
    assert tale.end(21 * SECOND).finding("L1").broken == 1


def test_another_vm_has_the_core_once_before_it_is_ones_own_turn(tale):
    """vm1 waits while vm2 and vm3 pass the core to each other: the first turn of each is theirs, the others are not."""
    tale.gate(10, "ask", 0, req=1, vm=1)
    for at in range(8):
        tale.gate(20 + at * SECOND, "turn", vm=2 + at % 2)
    tale.gate(LONG_US, "admit", 0, vm=1, req=1, inc=1)
    found = tale.end(LONG_US + 10).finding("L2")
    assert found.broken == 1 and "6.0 s of it without an excuse" in found.first.text


def test_with_nosmt_the_turns_are_those_of_hyperthreads():
    tale = Tale(policy="nosmt")
    tale.gate(10, "ask", 0, req=1, vm=1)
    tale.gate(20, "turn", vm=1, room=2)  # of c0h1, which is of the same VM
    tale.gate(6 * SECOND, "admit", 0, vm=1, req=1, inc=1)
    assert tale.end(6 * SECOND + 10).finding("L2").broken == 0


@pytest.mark.parametrize(("kind", "guarantee", "data", "answer", "more"), KINDS)
@pytest.mark.parametrize(("felt_s", "broken"), [(2, 0), (25, 1)])
def test_a_coordinator_that_was_stopped_read_of_it_late(tale, kind, guarantee, data, answer, more, felt_s, broken):
    """Its own records say that the wait took microseconds; who waited says how long it did."""
    end = 30_000_000
    tale.gate(end, kind, 0, req=1, **data)
    tale.gate(end + 1, answer, 0, req=1, **more)
    told = {"ask": ("gate.wait", {"vm": 1}), "leave": ("leave", {"kind_": "ack", "reason": "HLT"})}[kind]
    tale.say(end + 2, told[0], 0, 0, 1, wait_ns=felt_s * S, **told[1])
    tale.say(end + 3, "exit", 0, 1, 1, reason="HLT", isa="vmx", full=False, n=1, sum_ns=1, min_ns=1, max_ns=1, hist=[])
    assert tale.end(end + 10).finding(guarantee).broken == broken


def test_what_a_hyperthread_does_after_it_was_served_is_its_own_time(tale):
    tale.gate(10, "ask", 0, req=1, vm=1)
    tale.gate(11, "admit", 0, req=1, vm=1, inc=1)
    tale.say(25_000_000, "gate.wait", 0, 0, 1, wait_ns=24 * S, vm=1)
    assert tale.end(25_000_010).finding("L2").state == "held"
