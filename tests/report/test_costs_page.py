"""docs/costs.md is what the table says."""

from __future__ import annotations

from pathlib import Path

from asid.report import costs_page
from asid.sim.costs import TABLE

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_what_is_generated():
    assert (ROOT / "docs/costs.md").read_text() == costs_page.page(), "run make docs"


def test_every_cost_is_on_it_with_its_source():
    page = costs_page.page()
    assert all(f"| {row.name} |" in page and row.source in page for row in TABLE)
