"""The counterexamples: the page is not stale, each schedule is found anew, and breaks what it says, live as well."""

from __future__ import annotations

import json

import explore_tales_page as tales_page
import pytest
from explore_tales import TALES, searched

from asid.commands import invoke
from asid.core.policy import POLICIES
from asid.errors import EXIT_FAIL
from asid.explore import schedule
from asid.explore.matrix import UNFIXED, unpromised
from asid.explore.script import script_of, settings_of, taken


def named_by(tale):
    return tale.name


def test_there_are_ten_and_each_has_its_file():
    assert len(TALES) == 10
    assert {file.stem for file in tales_page.FILES.iterdir()} == {tale.name for tale in TALES}


@pytest.mark.parametrize("tale", TALES, ids=named_by)
def test_a_schedule_breaks_its_guarantee_at_its_last_step(tale):
    kept = tales_page.kept(tale)
    assert (kept.model, kept.guarantee) == (tale.model, tale.guarantee)
    _, violation = schedule.replayed(kept)
    assert (violation.guarantee, len(violation.moves)) == (tale.guarantee, len(kept.steps))


@pytest.mark.parametrize("tale", TALES, ids=named_by)
def test_nothing_that_is_broken_was_promised(tale):
    """And the live machine has such a configuration."""
    w, violation = taken(tales_page.kept(tale))
    policy = settings_of(w)["policy"]["name"]
    assert policy in tale.setup or policy == "asi"
    assert tale.guarantee in (UNFIXED if not tale.model.icr_fix else unpromised(POLICIES[policy]))
    assert policy in POLICIES
    assert script_of(w, violation).steps


@pytest.mark.slow
@pytest.mark.parametrize("tale", TALES, ids=named_by)
def test_a_schedule_is_found_anew(tale):
    assert searched(tale) == tales_page.kept(tale)


@pytest.mark.live
@pytest.mark.parametrize("tale", TALES, ids=named_by)
def test_a_schedule_is_played_live(tale, capsys):
    """Every step is taken by real processes, and the audit finds the same from the journal alone."""
    assert invoke(["replay", str(tales_page.file_of(tale)), "--json"]) == EXIT_FAIL
    played = json.loads(capsys.readouterr().out)["schedule"]
    assert played["steps"] == played["of"]
    assert played["reproduced"]
