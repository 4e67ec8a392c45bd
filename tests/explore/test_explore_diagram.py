"""The state diagrams of docs/ are what the step functions do."""

from __future__ import annotations

from pathlib import Path

import pytest

from asid.explore import diagram

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_page_of_states_is_not_stale():
    assert (ROOT / "docs/states.md").read_text() == diagram.page(), "run make docs"


def test_the_smallest_machine_enters_leaves_and_comes_back():
    phases, beliefs = diagram.arrows(("n1",))
    assert ("ASKING", "ENTERING", "admit") in phases
    assert ("LEAVING", "HOSTING", "grant") in phases
    assert ("PARKED", "SESSION", "ask") in beliefs
    assert not any(old == "HELD" for old, _, _ in phases), "one sibling is held by nobody"
