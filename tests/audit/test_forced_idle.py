"""Forced idle: the time in which a vCPU could have run on a core that was another's, apart from visits to the host."""

from __future__ import annotations

import pytest
from audit_tale import Tale


def waited(tale: Tale, us: float) -> tuple[int, int]:
    """The two kinds of waiting, in microseconds, when the run ends then."""
    figures = tale.end(us).figures
    return figures["forced_idle_ns"] // 1000, figures["gate_closed_ns"] // 1000


def two_vms(*, policy: str = "asi", vcpus: int = 2) -> Tale:
    """c0h0 runs vm1 from 1,002 on, whose turn it is."""
    tale = Tale(policy=policy, vcpus=vcpus)
    tale.gate(1_001, "turn", vm=1)
    tale.enter(1_000, 0, vm=1)
    return tale


def gone(tale: Tale, us: float, ht: int) -> None:
    """A hyperthread that is kicked out: its last stay ends here, and with it the time that is served."""
    tale.goes(us, ht, "PARKED")


def test_the_turn_of_another_vm_is_forced_idle():
    tale = two_vms()
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    tale.gate(1_400, "turn", vm=2)
    gone(tale, 1_400, 0)
    tale.gate(1_400, "admit", 1, vm=2, req=1, inc=1)
    tale.goes(1_401, 1, "ISOLATED", vm=2)
    gone(tale, 2_002, 1)
    figures = tale.end(9_000).figures
    assert (figures["forced_idle_ns"], figures["gate_closed_ns"]) == (300_000, 0)
    assert figures["forced_idle_percent"] == 15.0, "of two vCPUs, from 1,002 to 2,002"
    assert figures["gate_closed_percent"] == 0.0


def test_the_turn_of_the_own_vm_is_none():
    tale = two_vms()
    tale.gate(1_100, "ask", 1, vm=1, req=1)
    tale.gate(1_400, "admit", 1, vm=1, req=1, inc=1)
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (0, 300), "whatever kept it out, it was not another's turn"


def test_a_host_visit_in_anothers_turn_is_a_closed_gate():
    tale = two_vms()
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    tale.gate(1_200, "leave", 0, req=2, reason="HLT")
    tale.gate(1_210, "grant", 0, req=2)
    tale.goes(1_211, 0, "HOST", via="grant")
    tale.goes(1_259, 0, "PARKED")
    tale.gate(1_260, "done", 0)
    tale.gate(1_260, "ask", 0, vm=1, req=3)
    tale.gate(1_260, "admit", 0, vm=1, req=3, inc=1)  # its turn is not over
    tale.goes(1_262, 0, "ISOLATED", vm=1)
    tale.gate(1_300, "turn", vm=2)
    gone(tale, 1_302, 0)
    tale.gate(1_300, "admit", 1, vm=2, req=1, inc=1)
    assert waited(tale, 9_000) == (140, 60)


def test_visits_that_overlap_count_once():
    tale = Tale(smt=4, vcpus=4)
    tale.gate(1_001, "turn", vm=1)
    tale.enter(1_000, 0)
    tale.gate(1_100, "ask", 3, vm=2, req=1)
    for us, kind, ht in ((1_200, "leave", 0), (1_220, "leave", 1), (1_250, "done", 0), (1_280, "done", 1),
                         (1_310, "leave", 0), (1_320, "done", 0)):  # fmt: skip
        tale.gate(us, kind, ht, **({"req": us, "reason": ""} if kind == "leave" else {}))
    tale.gate(1_400, "turn", vm=2)
    tale.gate(1_400, "admit", 3, vm=2, req=1, inc=1)
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (210, 90)


@pytest.mark.parametrize("ends", ["ask", "admit", "bye", "idle", "dead", "ready"])
def test_a_visit_ends_with_whatever_the_gate_hears_last(ends):
    tale = Tale(smt=4, vcpus=4)
    tale.gate(1_001, "turn", vm=1)
    tale.enter(1_000, 2)
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    tale.gate(1_200, "leave", 0, req=2, reason="")
    data = {"ask": {"vm": 1, "req": 3}, "admit": {"vm": 1, "req": 3, "inc": 1}, "dead": {"inc": 1},
            "ready": {"inc": 2, "mode": "PARKED"}}.get(ends, {})  # fmt: skip
    tale.say(1_230, f"gate.{ends}", 0, 0, **data)
    if ends == "ask":
        tale.gate(1_230, "admit", 0, vm=1, req=3, inc=1)
    tale.gate(1_300, "admit", 1, vm=2, req=1, inc=1)
    gone(tale, 2_000, 2)
    assert waited(tale, 9_000) == (170, 30)


def test_a_hold_is_a_closed_gate():
    tale = two_vms()
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    tale.gate(1_150, "hold", by="me")
    tale.gate(1_250, "release", by="me")
    tale.gate(1_300, "turn", vm=2)
    tale.gate(1_300, "admit", 1, vm=2, req=1, inc=1)
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (100, 100)


def test_with_nosmt_the_core_is_one_hyperthreads():
    tale = Tale(policy="nosmt", vcpus=2)
    tale.gate(1_001, "turn", vm=1, room=1)
    tale.enter(1_000, 0)
    tale.gate(1_100, "ask", 1, vm=1, req=1)
    tale.gate(1_400, "turn", vm=1, room=2)
    tale.gate(1_400, "admit", 1, vm=1, req=1, inc=1)
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (300, 0)


def test_with_no_policy_the_core_is_everybodys():
    tale = Tale(policy="none", vcpus=2)
    tale.gate(1_001, "turn", vm=1, room=1)
    tale.enter(1_000, 0)
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    tale.gate(1_130, "admit", 1, vm=2, req=1, inc=1)
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (0, 30)


def test_after_a_coordinators_death_it_is_nobodys_turn_until_the_next_says_so():
    tale = two_vms()
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    tale.say(1_200, "death", 0, -1, what="coordinator", pid=100, inc=1, status=-9)
    tale.say(1_300, "spawn", 0, -1, what="coordinator", pid=110, inc=2)
    tale.gate(1_350, "turn", vm=1)
    tale.gate(1_400, "turn", vm=2)
    tale.gate(1_400, "admit", 1, vm=2, req=1, inc=1)
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (150, 150)


def test_a_wait_counts_as_far_as_it_is_inside_of_the_time_served():
    tale = two_vms()
    tale.gate(1_500, "ask", 1, vm=2, req=1)  # never answered
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (500, 0)


def test_asking_again_is_the_same_wait_and_a_withdrawn_ask_ends_it():
    tale = two_vms()
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    tale.gate(1_150, "ask", 1, vm=2, req=2)
    tale.gate(1_200, "idle", 1)
    gone(tale, 2_000, 0)
    assert waited(tale, 9_000) == (100, 0)


def test_of_a_run_in_which_nobody_ran_there_is_none():
    tale = Tale(vcpus=2)
    tale.gate(1_100, "ask", 1, vm=2, req=1)
    figures = tale.end(9_000).figures
    assert (figures["forced_idle_percent"], figures["gate_closed_percent"], figures["forced_idle_ns"]) == (0.0, 0.0, 0)
