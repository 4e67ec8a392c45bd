"""Idle siblings take interrupts: one that needs the full address space must kick the guest beside it, and goes back."""

from __future__ import annotations

import pytest

from asid.core import hyperthread
from asid.core.events import Bid, Kick, Mode, Said
from asid.core.gate import Belief
from asid.core.hyperthread import Phase

ASKS = (Kick.ACK, Kick.RENDEZVOUS)
TELLS = (Kick.SEND, Kick.STUN)
REST = pytest.mark.parametrize("rest", [Phase.HALTED, Phase.IDLE], ids=["halted", "without a vCPU"])


def beside(make_core, kick, rest, *, vms=(1, 1), guests=(0,)):
    """A core whose last sibling rests, and the `guests` are in guest."""
    idle = len(vms) - 1
    c = make_core(vms if rest is Phase.HALTED else (*vms[:-1], 0), kick)
    if rest is Phase.HALTED:
        c.enter(idle)
        c.does(idle, hyperthread.FULL_EXIT)
        if kick in ASKS:
            c.hear(idle, Said.LEAVE)
            c.takes(idle, Bid.GRANT)
        c.does(idle, hyperthread.HALT)
        c.hear(idle, Said.DONE)
    else:
        c.go(idle)
        c.hear(idle, Said.READY)
    assert c.phase(idle) is rest
    c.attach(*guests)
    c.enter(*guests)
    c.ipis.clear()
    return c


def over(c, ht, rest):
    """The interrupt's work is done; whoever slept sleeps on."""
    c.does(ht, hyperthread.HALT if rest is Phase.HALTED else hyperthread.WORKED)


@REST
@pytest.mark.parametrize("kick", ASKS)
def test_its_leave_is_asked_for_and_waits_for_the_guest(make_core, kick, rest):
    c = beside(make_core, kick, rest)
    c.does(1, hyperthread.FULL_IRQ)
    assert (c.phase(1), c.mode(1)) == (Phase.LEAVING, Mode.PARKED)
    assert not c.ipis, "the gate kicks, nobody else"
    c.hear(1, Said.LEAVE)
    assert c.kicked(0) and c.pending[0], "the guest beside it is kicked"
    assert not c.down[1], "and nothing is granted before it is out"
    c.answers(0)
    assert (c.phase(0), c.mode(0)) == (Phase.ASKING, Mode.PARKED)
    c.takes(1, Bid.GRANT)
    assert (c.phase(1), c.mode(1)) == (Phase.HOSTING, Mode.HOST)
    assert not c.down[0], "nobody is admitted beside it"
    over(c, 1, rest)
    assert (c.phase(1), c.mode(1)) == (rest, Mode.PARKED)
    assert c.at(1).want.name == "NONE", "it asks for nothing"
    c.hear(1, Said.DONE)
    assert c.belief(1) is Belief.PARKED
    order = c.takes(0, Bid.ADMIT)
    assert order.party in (0, 1), "there is nobody to meet"
    assert c.mode(0) is Mode.GUEST
    assert c.phase(1) is rest


@REST
@pytest.mark.parametrize("kick", TELLS)
def test_its_leave_is_told_and_the_guest_keeps_its_lease(make_core, kick, rest):
    c = beside(make_core, kick, rest)
    c.happen(1, hyperthread.FULL_IRQ)
    c.go(1)
    assert c.ipis == [(1, 0)] and c.pending[0] and c.flag[1]
    assert (c.phase(1), c.mode(1)) == (Phase.HOSTING, Mode.HOST), "it waits for nobody"
    assert not c.up[1], "and asks nobody"
    c.does(0, hyperthread.INTERRUPTED)
    assert (c.phase(0), c.mode(0)) == (Phase.HELD, Mode.ISOLATED)
    c.does(0, hyperthread.DOORBELL)
    assert c.phase(0) is Phase.HELD, "as long as the flag is up"
    over(c, 1, rest)
    assert not c.flag[1] and (c.phase(1), c.mode(1)) == (rest, Mode.PARKED)
    c.hear(1, Said.DONE)
    c.does(0, hyperthread.DOORBELL)
    assert c.mode(0) is Mode.GUEST and c.belief(0) is Belief.SESSION


@REST
@pytest.mark.parametrize("kick", TELLS)
def test_the_flag_is_up_before_the_guest_is_told_and_before_host(make_core, kick, rest):
    c = beside(make_core, kick, rest)
    c.happen(1, hyperthread.FULL_IRQ)
    done = [(action.do.name, action.a) for action in c.at(1).todo]
    assert done == [("SET_FLAG", 1), ("IPI", 0), ("SET_MODE", Mode.HOST)]


@REST
@pytest.mark.parametrize("kick", [*ASKS, *TELLS])
def test_one_whose_handler_is_mapped_leaves_nothing_and_kicks_nobody(make_core, kick, rest):
    c = beside(make_core, kick, rest)
    c.does(1, hyperthread.FAST_IRQ)
    assert (c.phase(1), c.mode(1)) == (rest, Mode.PARKED)
    assert not c.ipis and not c.up[1] and not c.pending[0]
    assert c.mode(0) is Mode.GUEST


@pytest.mark.parametrize("kick", [*ASKS, *TELLS])
def test_a_vcpu_that_the_interrupt_woke_asks_when_it_is_over(make_core, kick):
    c = beside(make_core, kick, Phase.HALTED)
    c.does(1, hyperthread.FULL_IRQ)
    if kick in ASKS:
        c.hear(1, Said.LEAVE)
        c.answers(0)
        c.takes(1, Bid.GRANT)
    c.does(1, hyperthread.WORKED)
    assert c.phase(1) is Phase.ASKING
    c.hear(1, Said.DONE)
    c.takes(1, Bid.ADMIT)
    assert c.at(1).session


@REST
@pytest.mark.parametrize("kick", ASKS)
def test_every_guest_of_the_core_is_kicked_and_no_other_idle_sibling(make_core, kick, rest):
    c = beside(make_core, kick, rest, vms=(1, 1, 0, 1), guests=(0, 1))
    c.go(2)
    c.hear(2, Said.READY)
    c.does(3, hyperthread.FULL_IRQ)
    c.hear(3, Said.LEAVE)
    assert [c.kicked(ht) for ht in range(4)] == [True, True, False, False]
    c.answers(0)
    assert not c.down[3], "one is still in guest"
    c.answers(1)
    c.takes(3, Bid.GRANT)
    assert c.mode(3) is Mode.HOST
    over(c, 3, rest)
    c.hear(3, Said.DONE)
    c.takes(0, Bid.ADMIT)
    c.takes(1, Bid.ADMIT)
    if kick is Kick.RENDEZVOUS:
        c.does(0, hyperthread.DOORBELL)
    assert (c.mode(0), c.mode(1), c.phase(3)) == (Mode.GUEST, Mode.GUEST, rest)


@pytest.mark.parametrize("kick", ASKS)
def test_one_that_halted_for_another_vm_kicks_it_all_the_same(make_core, kick):
    c = beside(make_core, kick, Phase.HALTED, vms=(1, 2))
    c.does(1, hyperthread.FULL_IRQ)
    c.hear(1, Said.LEAVE)
    assert c.kicked(0)


@REST
def test_with_no_guest_beside_it_nobody_is_kicked(make_core, rest):
    c = beside(make_core, Kick.ACK, rest, guests=())
    c.does(1, hyperthread.FULL_IRQ)
    c.hear(1, Said.LEAVE)
    c.takes(1, Bid.GRANT)
    assert c.mode(1) is Mode.HOST
    over(c, 1, rest)
    assert c.phase(1) is rest
