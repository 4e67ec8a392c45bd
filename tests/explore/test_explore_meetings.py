"""Machine checks that reach all siblings, where a search says more than that a model holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from explore_planting import planted
from explore_table_checks import MACHINE_CHECKS

from asid.core import hyperthread, mce
from asid.core.hyperthread import HyperthreadState, Phase
from asid.core.policy import make_policy
from asid.errors import InputError
from asid.explore import desk, meetings
from asid.explore.models import build, of_policy
from asid.explore.parts import Budget, Dead, Touched
from asid.explore.script import script_of
from asid.explore.search import Result, search


@pytest.mark.slow
@pytest.mark.parametrize("name", ["n2i1-broadcast-fatal", "n2v1-mce-fatal"])
def test_a_failed_core_takes_no_guest_and_the_gate_still_serves_leaves(name):
    """Asks wait for ever by design. Leaves do not: L1 is asked for as on every other core."""
    result = search(build(name))
    assert result.passed, result.violation
    w = result.world
    assert Touched.FAILED in {touch.what for touch in w.touches.things}
    failed = [s for s in w.siblings.things if s.words.failed and isinstance(s.process, HyperthreadState)]
    assert {Phase.HELD, Phase.LEAVING, Phase.HOSTING} <= {s.process.phase for s in failed}


def with_fatal_checks(policy: str, vms: tuple[int, ...]) -> Result:
    model = of_policy(make_policy(policy, "ack"), vms, budget=Budget(mce=1, fatal=1))
    return search(model, only=frozenset({"G10"}))


@pytest.mark.parametrize("vms", [(1,), (1, 1)], ids=str)
def test_a_failed_core_takes_no_guest_under_the_policy_that_heeds_nobody_either(vms):
    result = with_fatal_checks("none", vms)
    assert result.complete
    assert result.violation is None


def test_a_fatal_machine_check_that_kicks_nobody_is_found(monkeypatch):
    monkeypatch.setattr(hyperthread, "fails", lambda spec, s: (hyperthread.FAIL,))
    result = with_fatal_checks("none", (1, 1))
    assert result.violation is not None
    assert (result.violation.guarantee, "has failed" in result.violation.sentence) == ("G10", True)


def test_an_entry_that_does_not_look_again_behind_its_own_fatal_machine_check_is_found(monkeypatch):
    monkeypatch.setattr(hyperthread, "DO_FAIL", None)
    result = with_fatal_checks("none", (1,))
    assert result.violation is not None
    assert result.violation.guarantee == "G10"


def test_a_leave_that_waits_for_a_guest_that_is_kept_out_for_good_needs_the_time_out(monkeypatch):
    """The lease is fresh and stays so: it is taken back for its time alone, or the leaver waits for ever."""
    monkeypatch.setattr(desk, "overdue", lambda s, g, ht: None)
    result = search(build("n2v1-mce-fatal"))
    assert result.violation is not None
    assert (result.violation.guarantee, "leaving" in result.violation.sentence) == ("L3", True)


def test_one_hyperthread_alone_is_its_own_monarch():
    result = search(build("n1-broadcast"))
    assert result.passed
    roles = {meetings.meeting(s).role for s in result.world.siblings.things if not isinstance(s.process, Dead)}
    assert mce.Role.MONARCH in roles
    assert mce.Role.JOINED not in roles


@pytest.mark.slow
def test_handlers_that_run_isolated_meet_as_well():
    model = replace(build("n2v2-isolated"), budget=Budget(broadcast=1))
    assert search(model).passed


def test_a_schedule_with_such_a_machine_check_is_not_for_the_live_machine():
    """It would have to stop the clock of the time-out. The first of its steps is named, and nothing is started."""
    with planted(MACHINE_CHECKS[0]):
        result = search(MACHINE_CHECKS[0].model)
        assert result.violation is not None
        with pytest.raises(InputError, match="is in a machine check") as refused:
            script_of(result.world, result.violation)
    assert "no such step" in refused.value.state
