"""Every naive variant is found, with the verdict and in the steps that are pinned; the pages are not stale."""

from __future__ import annotations

import pytest
from explore_pages import PAGES, ROOT, pins
from explore_planting import Mutant
from explore_table import MUTANTS, found

QUICK = 1_500  # worlds
PINS = pins()


def named_by(mutant: Mutant) -> str:
    return mutant.name


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if PINS[m.name]["states"] < QUICK], ids=named_by)
def test_a_variant_is_seen_for_what_it_is(mutant):
    row = found(mutant)
    assert row["verdict"] == mutant.verdict
    assert row == PINS[mutant.name]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if PINS[m.name]["states"] >= QUICK], ids=named_by)
def test_a_variant_is_seen_for_what_it_is_after_a_longer_search(mutant):
    row = found(mutant)
    assert row["verdict"] == mutant.verdict
    assert row == PINS[mutant.name]


def test_every_variant_of_the_list_is_there():
    """V01 to V29, each by itself or with a letter."""
    numbers = {m.name[1:3] for m in MUTANTS}
    assert {f"{number:02}" for number in range(1, 30)} <= numbers
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert set(PINS) == {m.name for m in MUTANTS}


def test_a_variant_leaves_nothing_behind():
    """The protocol is itself again after a variant was planted: the plain model has its pinned size."""
    from asid.explore.models import MODELS
    from asid.explore.search import search

    for mutant in MUTANTS[:4]:
        found(mutant)
    result = search(MODELS["n2v1"].model)
    assert result.states == MODELS["n2v1"].states
    assert result.passed


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_not_stale(name):
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "python tests/explore/explore_pages.py"
