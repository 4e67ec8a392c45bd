"""Machine checks that reach all siblings, where a search says more than that a model holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from explore_planting import planted
from explore_table_checks import MACHINE_CHECKS

from asid.core import hyperthread, mce
from asid.core.events import Mode
from asid.errors import InputError
from asid.explore import meetings
from asid.explore.models import build
from asid.explore.parts import Budget, Dead
from asid.explore.script import script_of
from asid.explore.search import search


@pytest.fixture
def fatal(monkeypatch):
    """Every #MC is fatal."""
    monkeypatch.setattr(meetings, "Check", lambda number, party: mce.Check(number, party, mce.Severity.FATAL))


@pytest.mark.slow
def test_no_guest_instruction_runs_on_a_core_that_has_failed_and_the_gate_still_serves_leaves(fatal):
    """Asks wait for ever by design, so waiting is not looked at."""
    result = search(build("n2v2-broadcast"), waiting=False, with_progress=False)
    assert result.complete
    assert result.violation is None
    w = result.world
    failed = [s for s in w.siblings.things if s.words.failed and not isinstance(s.process, Dead)]
    assert any(s.process.mode is Mode.PARKED for s in failed)
    for s in failed:
        in_guest = s.process.mode is Mode.GUEST and not s.words.pending
        entered = hyperthread.next_action(s.process) == hyperthread.set_mode(Mode.GUEST) and not s.words.pending
        assert not in_guest and not entered


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
