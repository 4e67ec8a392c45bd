"""docs/leaks.md is what the data says, and names what there is."""

from __future__ import annotations

from pathlib import Path

from asid.core.buffers import BUFFERS, FLUSHES, NO_FIGURE
from asid.core.policy import NAMES
from asid.report import leaks_page

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_not_stale():
    assert (ROOT / "docs/leaks.md").read_text() == leaks_page.page(), "run make docs"


def test_each_row_of_the_data_is_there():
    page = leaks_page.page()
    for name in (*(row.name for row in (*BUFFERS, *FLUSHES)), *(f"`{name}`" for name in NAMES)):
        assert f"| {name} |" in page
    assert page.count(NO_FIGURE) == sum(row.cost is None for row in FLUSHES)
