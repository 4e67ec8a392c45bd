"""The matrix of policies and kicks: what a cell says, that the page is not stale, and that all of it is found anew."""

from __future__ import annotations

import json
import os

import explore_matrix_page as matrix_page
import pytest

from asid.commands import invoke
from asid.core.events import Kick
from asid.core.policy import POLICIES
from asid.errors import EXIT_UNKNOWN, EXIT_USAGE
from asid.explore import matrix
from asid.explore.matrix import Cell, Row, cell
from asid.explore.models import build
from asid.explore.pool import Outcome, outcome
from asid.explore.search import search

PINS = matrix_page.pins()
ONE, OTHER = build("n2v1"), build("n2v2")


def came(model, complete=True, broken=(), exercised=()) -> Outcome:
    return Outcome("", model, 1, 1, 1, 0.0, complete, (), broken=broken, exercised=exercised)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"exercised": ("G2",)}, {}, Cell("held")),
        ({}, {}, Cell("n.a.")),
        ({"exercised": ("G2",), "complete": False}, {"exercised": ("G2",)}, Cell("unknown")),
        ({"broken": (("G2", 9),)}, {"broken": (("G2", 7), ("G9", 3))}, Cell("broken", 7, "nmi")),
        ({"broken": (("G2", 9),), "complete": False}, {"complete": False}, Cell("broken", 9, "irq")),
    ],
)
def test_a_cell_is_the_worst_of_its_searches(one, other, expected):
    row = Row("asi", Kick.ACK, (1, 1), "", {"irq": ONE, "nmi": OTHER})
    assert cell("G2", row, {ONE: came(ONE, **one), OTHER: came(OTHER, **other)}) == expected


def test_every_policy_with_every_kick_that_it_may_have_is_there():
    rows = {(row.policy, row.kick, row.vms) for row in matrix.policies()}
    assert rows == {(p.name, kick, vms) for p in POLICIES.values() for kick in p.kicks for vms in ((1, 1), (1, 2))}
    assert len(PINS) == len(matrix.policies()) + len(matrix.apics())


def test_a_model_is_searched_once_however_many_rows_ask_for_it():
    rows = matrix.policies()
    asked = [model for row in rows for model in row.searches.values()]
    searched = [model for _, model in matrix.models_of(rows)]
    assert len(searched) == len(set(searched)) < len(asked)
    assert set(searched) == set(asked)


def test_every_search_of_a_policy_idles_as_the_policy_does():
    for row in matrix.policies():
        idle_kick = POLICIES[row.policy].idle_kick
        for word, model in row.searches.items():
            assert (model.idle_kick, model.idle_exits) == (idle_kick, idle_kick is not None), (row.policy, word)


def test_who_breaks_what_it_promised_is_told_from_who_never_promised_it():
    none = next(row for row in matrix.policies() if row.policy == "none")
    asi = next(row for row in matrix.policies() if row.policy == "asi")
    broken = {"G1": Cell("held"), "G2": Cell("broken", 9, "nmi")}
    assert matrix.kept(none, broken) is True
    assert matrix.kept(asi, broken) is False
    assert matrix.kept(asi, {"G1": Cell("unknown"), "G2": Cell("held")}) is None


def test_the_page_has_no_broken_promise():
    """One would be in bold; who promises nothing of G2 shows that the searches see."""
    text = matrix_page.page(PINS)
    assert "**broken" not in text
    assert "unknown" not in text
    for policy, names in {name: matrix.unpromised(found) for name, found in POLICIES.items()}.items():
        shown = {name for row in PINS if row["policy"] == policy for name in names if "steps" in row["cells"][name]}
        assert shown == names, f"{policy}: what is not promised is broken somewhere"


@pytest.mark.slow
def test_the_negative_control_is_found_anew():
    rows = [row for row in matrix.policies() if row.policy == "none"]
    outcomes = {m: outcome("", search(m, to_the_end=True), 0.0) for row in rows for m in row.searches.values()}
    assert [matrix.document(matrix.found(row, outcomes)) for row in rows] == PINS[: len(rows)]


@pytest.mark.explore
@pytest.mark.timeout(1800)
def test_it_is_found_anew():
    """The first row of each policy, and each APIC with `send`; all rows with ASID_EXPLORE_ALL."""
    rows = dict(enumerate(matrix_page.all_rows()))
    if not os.environ.get("ASID_EXPLORE_ALL"):
        first = {row.policy: at for at, row in sorted(rows.items(), reverse=True)}
        rows = {at: row for at, row in rows.items() if at in first.values() or (row.apic and row.kick is Kick.SEND)}
    assert len({row.policy for row in rows.values()}) == len(POLICIES)
    assert matrix_page.found(list(rows.values())) == [PINS[at] for at in rows]


def test_the_verb_takes_no_model_beside_the_matrix(capsys):
    assert invoke(["explore", "--matrix", "n2v1"]) == EXIT_USAGE
    assert "[MODEL]... with --matrix (it would change nothing)" in capsys.readouterr().err


@pytest.mark.live
def test_a_limit_is_never_held(capsys):
    """Both tables, as text of 100 columns at most, and as JSON."""
    assert invoke(["explore", "--matrix", "--states-max", "1000"]) == EXIT_UNKNOWN
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100
    assert "kick-except-idle  rendezvous  2" in told
    assert invoke(["explore", "--matrix", "--states-max", "1000", "--json"]) == EXIT_UNKNOWN
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"]
    assert document["rows"][0]["cells"]["G2"] == {"verdict": "broken", "steps": 9, "by": "irq", "promised": False}
    assert {c["verdict"] for row in document["rows"] for c in row["cells"].values()} == {"broken", "unknown"}
