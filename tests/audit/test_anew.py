"""Who asks under a new number holds no lease: a grant that crossed a kick is dropped without a change of mode."""

from __future__ import annotations

import pytest
from audit_tale import Tale


def crossed(kick: str, *, req: int) -> Tale:
    """c0h2 asks for vm2, the kick of an older lease crosses it, and its grant comes; it asks with `req` next."""
    tale = Tale(smt=4, kick=kick)
    tale.gate(10, "ask", 2, vm=2, req=20)
    tale.gate(11, "turn", vm=2)
    tale.gate(12, "admit", 2, vm=2, req=20, inc=1)
    tale.gate(20, "close")
    tale.gate(21, "ask", 2, vm=2, req=req)
    tale.gate(22, "ask", 1, vm=1, req=7)
    tale.gate(23, "open")
    tale.gate(24, "turn", vm=1)
    tale.gate(25, "admit", 1, vm=1, req=7, inc=1)
    return tale


@pytest.mark.parametrize("kick", ["ack", "send"])
def test_an_ask_under_a_new_number_ends_the_lease(kick):
    verdict = crossed(kick, req=21).end(100)
    assert verdict.finding("G1").state == "held"


@pytest.mark.parametrize("kick", ["ack", "send"])
def test_a_repeated_ask_does_not(kick):
    verdict = crossed(kick, req=20).end(100)
    assert verdict.finding("G1").state == "broken"
    assert "c0h1 was admitted for vm1 while c0h2 held a lease of vm2" in verdict.finding("G1").first.text


def test_who_asked_anew_may_not_use_the_old_lease():
    tale = crossed("ack", req=21)
    tale.goes(30, 2, "ISOLATED", vm=2)
    tale.goes(31, 2, "GUEST", vm=2)
    verdict = tale.end(100)
    assert verdict.finding("G1").state == "broken"
    assert "its lease had ended" in verdict.finding("G1").first.text


def test_a_repeated_ask_that_crossed_the_lease_leaves_it_whole():
    tale = Tale()
    tale.gate(10, "ask", 0, vm=1, req=1)
    tale.gate(11, "admit", 0, vm=1, req=1, inc=1)
    tale.gate(12, "ask", 0, vm=1, req=1)
    tale.goes(13, 0, "ISOLATED")
    tale.goes(14, 0, "GUEST")
    assert tale.end(100).finding("G1").state == "held"


@pytest.mark.parametrize(("req", "state"), [(1, "broken"), (2, "held")])
def test_a_grant_beside_a_lease_whose_ask_was_repeated(req, state):
    tale = Tale()
    tale.gate(10, "ask", 1, vm=1, req=1)
    tale.gate(11, "admit", 1, vm=1, req=1, inc=1)
    tale.gate(12, "ask", 1, vm=1, req=req)
    tale.grant(20, 0)
    tale.goes(22, 0, "HOST", via="grant")
    assert tale.end(100).finding("G2").state == state
