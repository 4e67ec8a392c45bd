"""What a vCPU does with exits that clients inject, and what it answers when they are to be refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from one_hyperthread import OneHyperthread

from asid.core.events import Bid, Kick
from asid.core.hyperthread import Phase
from asid.core.policies.asi import Asi
from asid.guest.base import Exit
from asid.live.node import Node
from asid.live.page import TAINT, WATCHED, base_of

FAST = Exit(0, "CPUID", "vmx", 0, False, 0)
SLOW = Exit(0, "EPT_VIOLATION", "vmx", 0, True, 0)


@pytest.fixture
def one(monkeypatch):
    monkeypatch.setattr(Node, "watch_parent", lambda self: None)
    with tempfile.TemporaryDirectory(prefix="asid-") as root:
        made = OneHyperthread(Path(root))
        made.told = []
        made.ht.link = SimpleNamespace(tell=made.told.append)
        yield made
        made.close()


def detach(one):
    """As a gate takes a vCPU away: kicked out of guest, and then ordered."""
    one.kick(one.ht.state.answered + 1)
    one.ht.vcpu.in_guest()
    one.settle()
    one.order(Bid.DETACH)


def answers(one):
    return {message["id"]: message["left"] for message in one.told if message["op"] == "done"}


def test_what_was_injected_is_done_and_answered_for(one):
    one.enter()
    one.ht.vcpu.inject(7, FAST, 500)
    while not answers(one):
        one.ht.vcpu.in_guest()
        one.settle()
    assert answers(one) == {7: 0}


def test_what_was_refused_never_runs_and_each_message_is_answered_once(one):
    one.enter()
    one.ht.vcpu.inject(7, FAST, 500)
    one.ht.vcpu.in_guest()
    one.settle()
    [(_, _, left, _)] = one.ht.vcpu.injected
    assert 0 < left < 500
    one.ht.vcpu.inject(8, SLOW, 3)
    detach(one)
    assert one.told[-1] == {"op": "idle"}
    one.ht.on_link({"op": "refuse"})
    assert answers(one) == {7: left, 8: 3}
    one.ht.on_link({"op": "refuse"})
    assert len(one.told) == 3, "answered once"
    insns = one.insns
    one.order(Bid.ATTACH, vm=1)
    one.order(Bid.ADMIT, vm=1)
    one.ht.vcpu.in_guest()
    assert not one.ht.vcpu.injected and one.insns == insns + 1


def test_the_exit_under_way_ends_and_only_the_rest_is_refused(one):
    one.enter()
    one.ht.vcpu.inject(7, SLOW, 3)
    one.ht.vcpu.in_guest()
    one.settle()
    one.ht.on_link({"op": "refuse"})
    assert answers(one) == {}, "one of them is on its way into HOST"
    one.order(Bid.GRANT)
    one.ht.vcpu.in_host()
    assert answers(one) == {7: 2}
    assert not one.ht.vcpu.injected


def has_injected(one, event, n):
    """Until n injected exits are done, those that leave being granted at once."""
    one.ht.vcpu.inject(7, event, n)
    while not answers(one):
        if one.ht.state.phase is Phase.LEAVING:
            one.order(Bid.GRANT)
        elif one.ht.state.phase is Phase.HOSTING:
            one.ht.vcpu.in_host()
        elif one.ht.state.phase is Phase.ASKING:
            one.order(Bid.ADMIT, vm=1)
        else:
            one.ht.vcpu.in_guest()
        one.settle()
    assert answers(one) == {7: 0}


@pytest.mark.parametrize("watched", [0, 1])
@pytest.mark.parametrize("event", [FAST, SLOW])
def test_an_injected_exit_takes_none_from_the_source(one, event, watched):
    """Nor does a reader of every change of mode: what the guest plays does not depend on who looks."""
    one.enter()
    own, due_ns = Exit(5, "MSR_WRITE", "vmx", 0, False, 0), one.ht.node.now_ns() + 10**12
    one.ht.vcpu.exit, one.ht.vcpu.until_ns = own, due_ns
    one.words[WATCHED] = watched
    has_injected(one, event, 3)
    assert (one.ht.vcpu.exit, one.ht.vcpu.until_ns) == (own, due_ns)


@pytest.mark.parametrize("watched", [0, 1])
def test_orders_are_heard_between_injected_exits(one, watched):
    one.enter()
    one.words[WATCHED] = watched
    one.ht.vcpu.inject(7, FAST, 10**6)
    one.ht.orders.append((None, 0))
    insns = one.insns
    one.ht.vcpu.in_guest()
    assert one.insns == insns, "the order comes first"
    one.ht.orders.clear()


def test_what_was_injected_before_an_attach_that_is_taken_back_runs_later(one):
    one.enter()
    one.ht.vcpu.inject(7, FAST, 5)
    detach(one)
    one.order(Bid.ATTACH, vm=1)
    one.order(Bid.ADMIT, vm=1)
    while not answers(one):
        one.ht.vcpu.in_guest()
        one.settle()
    assert answers(one) == {7: 0}


class Unheeded(Asi):
    """Fast exits, flushes, and leaves for idling that tell nobody."""

    name = "unheeded"
    about = "of this test"
    idle_kick = Kick.BARE


@pytest.mark.parametrize("injected", [False, True], ids=["of the source", "injected"])
@pytest.mark.parametrize(("policy", "flushes"), [("asi", 0), ("test_vcpu:Unheeded", 1)])
def test_an_entry_after_a_fast_exit_flushes_what_a_sibling_left_without_a_word(one, policy, flushes, injected):
    """Under `asi` nobody is in HOST without a word, and fast exits look at no more than they must."""
    one.ht.set_policy(policy, "ack")
    one.enter()
    one.records()
    one.words[base_of(1) + TAINT] += 2
    if injected:
        one.ht.vcpu.inject(7, FAST, 1)
    else:
        one.ht.vcpu.exit = FAST
    one.ht.vcpu.in_guest()
    one.settle()
    one.ht.vcpu.in_guest()
    assert one.ht.state.phase is Phase.GUEST
    assert [kind for kind, _ in one.records()].count("flush") == flushes
