"""The named models: every one holds, and each has exactly its pinned size. A change there is a change of behaviour."""

from __future__ import annotations

import pytest

from asid.core.apic import Apic
from asid.core.events import Kick
from asid.core.gate import GateState, Rooms
from asid.core.guarantees import of_gate, of_hyperthread
from asid.core.hyperthread import HyperthreadState
from asid.explore import models
from asid.explore.checks import SOMETIMES
from asid.explore.models import DEFAULT, MODELS, Named, build
from asid.explore.parts import Budget, Model
from asid.explore.search import Result, search

QUICK = 1_500  # worlds, well below a quarter of a second
MODERATE = 20_000


def of_size(least: int, most: int) -> list[Named]:
    return [named for named in MODELS.values() if named.default and least <= named.states < most]


def holds(named: Named) -> None:
    result = search(named.model)
    assert result.violation is None
    assert result.complete
    assert result.sometimes
    assert all(result.sometimes.values()), result.sometimes
    assert (result.states, result.transitions, result.depth) == (named.states, named.transitions, named.depth)
    what_a_process_asserts_holds(result)


def what_a_process_asserts_holds(result: Result) -> None:
    """What the live machine's processes assert of themselves, in everything that they were found in."""
    gates = [desk.gate for desk in result.world.desks.things if isinstance(desk.gate, GateState)]
    assert gates and {of_gate(g) for g in gates} == {None}
    alive = [s.process for s in result.world.siblings.things if isinstance(s.process, HyperthreadState)]
    assert alive and {of_hyperthread(s) for s in alive} == {None}


def named_by(named: Named) -> str:
    return named.name


@pytest.mark.parametrize("named", of_size(0, QUICK), ids=named_by)
def test_a_quick_model_holds(named):
    holds(named)


@pytest.mark.slow
@pytest.mark.parametrize("named", of_size(QUICK, MODERATE), ids=named_by)
def test_a_moderate_model_holds(named):
    holds(named)


@pytest.mark.explore
@pytest.mark.timeout(300)
@pytest.mark.parametrize("named", of_size(MODERATE, 1 << 40), ids=named_by)
def test_a_large_model_of_the_default_set_holds(named):
    holds(named)


def test_a_name_says_what_is_in_the_model():
    assert build("n3v2-nmi-mce-send") == Model((1, 1, 2), Kick.SEND, budget=Budget(nmi=1, mce=1))
    assert build("n2v1-nosmt") == Model((1, 1), rooms=Rooms.HYPERTHREAD)
    assert build("n2v1-halts-send") == Model((1, 1), Kick.SEND, halts=True)
    assert build("n2v1-nmi-torn").torn
    with pytest.raises(KeyError):
        build("n2v1-flood")


def test_the_default_set_covers_what_was_asked_of_it():
    """Two siblings, one VM and two, with each kind of fault; three without any and with one kill."""
    for vms in ("n2v1", "n2v2"):
        for faults in ("", "-nmi", "-nmi-mce", "-kill", "-coordinator", "-loss", "-timers", "-hotplug", "-halts"):
            assert vms + faults in DEFAULT
    assert {"n3v1", "n3v2", "n3v1-death", "n3v2-death", "n1", "n2v1-send", "n2v2-send"} <= set(DEFAULT)


def test_the_default_set_covers_every_kick_every_apic_and_the_buffers():
    chosen = [named.model for named in MODELS.values() if named.default]
    assert {m.kick for m in chosen} == set(Kick) - {Kick.BARE}  # which the matrix of the policies has
    for apic in Apic:
        assert any(m.apic is apic and m.kick is Kick.SEND and m.budget.nmi for m in chosen)
    assert any(m.flush and m.kick is Kick.STUN and m.budget.nmi for m in chosen)
    assert any(m.flush and m.budget.coordinator for m in chosen)
    assert {m.kick for m in chosen if m.budget.irq} == {m.kick for m in chosen}
    assert any(m.nmi_isolated and m.budget.nmi for m in chosen)


def test_what_must_happen_is_asked_of_some_model_that_is_searched():
    for applies, _ in SOMETIMES.values():
        assert any(named.default and applies(named.model) for named in MODELS.values())


def test_every_model_has_a_counted_size():
    assert all(named.states and named.transitions and named.depth for named in MODELS.values())
    assert not set(models.DEFAULT) & set(models.LARGE)


# --- more siblings than can be searched out: no code is special to two


def bounded(model: Model, states_max: int) -> Result:
    result = search(model, states_max=states_max)
    assert result.violation is None
    return result


@pytest.mark.parametrize("kick", [Kick.ACK, Kick.SEND])
@pytest.mark.parametrize("n", [4, 8])
def test_wide_cores_hold_as_far_as_one_looks(n, kick):
    result = bounded(Model((1,) * n, kick, budget=Budget(nmi=1)), 1_000)
    assert not result.complete
    assert not result.passed  # a limit was hit: nothing is proved


@pytest.mark.slow
@pytest.mark.parametrize("vms", [(1, 2, 1, 2), (1, 2, 3, 4), (1, 1, 1, 1, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("kick", [Kick.ACK, Kick.SEND])
def test_wide_cores_with_several_vms_hold_as_far_as_one_looks(vms, kick):
    bounded(Model(vms, kick, budget=Budget(nmi=1, mce=1, kill=1, restart=1, coordinator=1)), 15_000)
