"""Policies: what each decides, and what it tells the step functions."""

from __future__ import annotations

import pytest

from asid.core import gate, hyperthread
from asid.core.events import Kick, Mode
from asid.core.exits import VMX_FLAGS, canonical
from asid.core.gate import Rooms
from asid.core.hyperthread import HyperthreadState, Phase
from asid.core.policies.asi_irqoff import SHORT
from asid.core.policy import KICKS, NAMES, POLICIES, make_policy
from asid.errors import ConfigError


def test_the_policies_are_those_of_the_field_and_each_says_what_it_does():
    assert NAMES == (
        "none", "nosmt", "core-sched", "kick-every-exit", "kick-except-idle", "asi", "asi-irqoff", "asi-stun",
    )  # fmt: skip
    assert all(POLICIES[name].name == name and POLICIES[name].about for name in NAMES)
    assert len({POLICIES[name].about for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kick", KICKS)
def test_a_policy_takes_the_kick_it_is_given_or_has_its_own(name, kick):
    policy = make_policy(name, kick)
    own = {"none": Kick.BARE, "nosmt": Kick.BARE, "core-sched": Kick.BARE, "asi-stun": Kick.STUN}
    assert policy.kick is own.get(name, KICKS[kick])
    assert policy.gate_spec().together is (policy.kick is Kick.RENDEZVOUS)


def test_where_an_exit_is_handled():
    def where(name: str, full: bool, reason: str) -> bool:
        return make_policy(name, "ack").needs_full(full, reason)

    assert not where("asi", False, "EPT_MISCONFIG")
    assert where("asi", True, "MSR_WRITE")
    assert where("asi-irqoff", False, "EPT_MISCONFIG"), "mapped, but not short"
    assert not where("asi-irqoff", False, "MSR_WRITE")
    for name in ("none", "nosmt", "core-sched", "kick-every-exit", "kick-except-idle"):
        assert where(name, False, "MSR_WRITE")


def test_every_short_exit_is_one_that_the_kernels_print():
    assert VMX_FLAGS, "the tables are there"
    assert all(canonical(name).name == name for name in SHORT)


def test_what_a_hyperthread_is_told():
    spec = make_policy("kick-except-idle", "send").hyperthread_spec(0, (1,))
    assert (spec.kick, spec.idle_kick, spec.flush) == (Kick.SEND, Kick.BARE, True)
    assert not make_policy("none", "ack").hyperthread_spec(0, (1,)).guarded
    assert make_policy("asi-irqoff", "ack").hyperthread_spec(0, (1,)).irqs_off


def test_what_a_gate_is_told():
    assert make_policy("core-sched", "ack").gate_spec() == gate.Spec(Rooms.VM, host_alone=False)
    assert make_policy("none", "ack").gate_spec() == gate.Spec(Rooms.ALL, host_alone=False)
    assert make_policy("nosmt", "ack").gate_spec() == gate.Spec(Rooms.HYPERTHREAD)


@pytest.mark.parametrize(("name", "kick"), [("asj", "ack"), ("asi", "shove")])
def test_what_there_is_not_is_refused(name, kick):
    with pytest.raises(ConfigError, match="one of"):
        make_policy(name, kick)


@pytest.mark.parametrize(
    ("name", "phase"), [("nosmt", Phase.LEAVING), ("core-sched", Phase.HOSTING), ("none", Phase.HOSTING)]
)
def test_an_interrupt_of_a_parked_hyperthread_asks_where_a_lease_may_be_beside_it(name, phase):
    """`nosmt` tells nobody of a leave, for a lease is alone on the core; whoever is parked has none."""
    spec = make_policy(name, "ack").hyperthread_spec(0, (1,))
    parked = HyperthreadState(phase=Phase.HALTED, vm=1)
    assert hyperthread.step(spec, parked, hyperthread.FULL_IRQ).phase is phase
    fresh = HyperthreadState(phase=Phase.GUEST, mode=Mode.GUEST, vm=1, session=True, used=True, round=1)
    assert hyperthread.step(spec, fresh, hyperthread.FULL_IRQ).phase is Phase.HOSTING
