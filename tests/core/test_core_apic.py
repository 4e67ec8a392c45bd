"""The local APIC: what is written, what is on the bus, and what a handler leaves behind."""

from __future__ import annotations

import pytest

from asid.core import apic, hyperthread
from asid.core.apic import ALL_BUT_SELF, BY_ICR2, ICR_IDLE, Apic, Registers
from asid.core.events import Action, Do, Kick, Mode
from asid.core.hyperthread import HyperthreadState, Phase

IN_GUEST = HyperthreadState(phase=Phase.GUEST, mode=Mode.GUEST, vm=1, session=True, used=True, round=1)


def to(target: int) -> Action:
    return Action(Do.ICR2, target)


@pytest.mark.parametrize(
    ("kind", "actions"),
    [
        (Apic.X2APIC, (Action(Do.IPI, 1), Action(Do.IPI, 2))),
        (Apic.XAPIC, (ICR_IDLE, to(1), BY_ICR2, ICR_IDLE, to(2), BY_ICR2, ICR_IDLE)),
        (Apic.SHORTHAND, (ICR_IDLE, ALL_BUT_SELF, ICR_IDLE)),
    ],
)
def test_kicks_end_with_an_idle_bus(kind, actions):
    assert apic.kicks(kind, (1, 2)) == actions


def test_nobody_to_kick_is_no_ipi():
    assert [apic.kicks(kind, ()) for kind in Apic] == [(), (), ()]


def test_a_handler_puts_back_what_it_found_in_icr2():
    assert apic.left_as_found(Apic.XAPIC, 2, apic.ipi(Apic.XAPIC, 0))[-2:] == (ICR_IDLE, to(2))
    kicks = apic.kicks(Apic.XAPIC, (1, 2))
    assert apic.left_as_found(Apic.XAPIC, 1, kicks) == (*kicks, to(1)), "the bus is idle already"
    for kind in (Apic.X2APIC, Apic.SHORTHAND):
        assert apic.left_as_found(kind, 1, apic.kicks(kind, (1, 2))) == apic.kicks(kind, (1, 2)), "ICR2 is not used"
    assert apic.left_as_found(Apic.XAPIC, 1, ()) == ()


@pytest.mark.parametrize("kind", [Apic.XAPIC, Apic.SHORTHAND])
def test_a_handler_that_goes_back_leaves_no_ipi_of_its_own_on_the_bus(kind):
    assert ICR_IDLE in apic.left_as_found(kind, 1, apic.ipi(kind, 0))[3:]


def test_a_command_goes_where_icr2_points_when_it_is_written():
    registers = apic.written(Registers(), to(2), 0, (1, 2))
    registers = apic.written(registers, BY_ICR2, 0, (1, 2))
    assert registers == Registers(icr2=2, bus=0b100)
    assert apic.written(registers, to(0), 0, (1, 2)) == Registers(icr2=0, bus=0b100), "one on the bus keeps its way"
    assert apic.written(Registers(icr2=2), ALL_BUT_SELF, 0, (1, 2)) == Registers(icr2=2, bus=0b110)


def interrupted(kind: Apic, before: Action, *, icr_fix: bool) -> list[int]:
    """An NMI that runs isolated hits a `send` leave before an action of its kick; return whom the IPIs reached."""
    spec = hyperthread.Spec(0, (1,), Kick.SEND, nmi_isolated=True, apic=kind, icr_fix=icr_fix)
    s = hyperthread.step(spec, IN_GUEST, hyperthread.FULL_EXIT)
    registers, reached, hit = Registers(), [], False
    while (action := hyperthread.next_action(s)) is not None:
        if action == before and not hit:
            hit = True
            s = hyperthread.step(spec, s, hyperthread.NMI)
            continue
        if action.do is Do.ICR_IDLE or (action.do is Do.SET_MODE and registers.bus):
            reached += [ht for ht in range(2) if registers.bus >> ht & 1]
            registers = registers._replace(bus=0)
        elif action.do in (Do.ICR2, Do.ICR):
            registers = apic.written(registers, action, 0, (1,))
        s = hyperthread.step(spec, s, hyperthread.PERFORMED)
    assert s.mode is Mode.HOST
    return reached


def test_an_nmi_between_the_two_writes_misdirects_the_kick_unless_it_restores_icr2():
    lost = interrupted(Apic.XAPIC, BY_ICR2, icr_fix=False)
    assert lost == [0], "the kick went to itself, over its own IPI on the bus; the sibling has none"
    assert interrupted(Apic.XAPIC, BY_ICR2, icr_fix=True) == [0, 1]


def test_a_shorthand_kick_does_not_replace_the_ipi_of_the_handler_that_interrupted_it():
    assert interrupted(Apic.SHORTHAND, ALL_BUT_SELF, icr_fix=True) == [0, 1]
