"""The matrix of a sweep: what is wrong with it is said with its line, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from swept import ROOT, SMT2

from asid.sweep.matrix import read
from asid.sweep.plan import plan_of

HEAD = f'config = "{SMT2}"\nduration = "1ms"\n'


def nobody(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 0, "[axes]"),
        ("[axes]\n", 3, "[axes]"),
        ("axes = 1\n", 3, "axes"),
        ('cofnig = "x"\n[axes]\nseed = 1\n', 3, "cofnig"),
        ("[axes]\nmachine.smt = []\n", 4, "it is empty"),
        ("[axes]\nmachine.smt = 2\n", 4, "a list"),
        ('[axes]\n"machine.smt" = [2, "4"]\n', 4, "whole numbers"),
        ('[axes]\n"machine.smt" = ["2", "4"]\n', 4, "machine.smt"),
        ('[axes]\n"machine.smt" = [2, 2]\n', 4, "twice"),
        ('[axes]\n"machine.smt" = [2, 3]\n', 4, "machine.smt = 3"),
        ('[axes]\n"machine.mst" = [2]\n', 4, "Did you mean"),
        ('[axes]\n"vm.7.guest.rate" = ["1/s"]\n', 4, "vm.7.guest.rate"),
        ('[axes]\n"policy.name" = ["asi", "asii"]\n', 4, "asii"),
        ('[axes]\n"policy.kick" = ["ack", "akc"]\n', 4, "akc"),
        ("[axes]\nvm = [{ name = 'a' }]\n", 4, "axis vm"),
        ('[axes]\nseed = "20..1"\n', 4, "20..1"),
        ("[axes]\nseed = [1, 1]\n", 4, "seed"),
        ("[axes]\nseed = [-1]\n", 4, "seed"),
        ("[axes]\nseed = [true]\n", 4, "seed"),
        ('[axes]\nseed = "0..249999"\n"machine.smt" = [1, 2]\n', 3, "500,000 runs"),
        ("[set]\nmachine.smt = 3\n[axes]\nseed = 1\n", 4, "machine.smt = 3"),
        ("[set]\nmachine.smt = 2\n[axes]\nmachine.smt = [2]\n", 4, "under [set] and under [axes]"),
        ('costs = "cheap"\n[axes]\nseed = 1\n', 3, "cheap"),
        ("costs = []\n[axes]\nseed = 1\n", 3, "costs"),
        ('costs = ["low", "low"]\n[axes]\nseed = 1\n', 3, "costs"),
        ("[axes]\nmachine.smt = [1]\n", 3, "no combination can be run"),
        ("[axes\n", 3, "TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_nothing_starts(run, tmp_path, matrix, text, line, says):
    matrix.write_text(HEAD + text)
    found = run("small.toml", "--json")
    error = found.json()["error"]
    assert found.code == 2
    assert error["where"] == (f"small.toml:{line}" if line else "small.toml")
    assert says in error["msg"] + error["hint"]
    assert error["hint"]
    assert found.pool.played == []
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ('duration = "1ms"\n', "config"),
        (f'config = "{SMT2}"\n', "duration"),
        (f'config = "{SMT2}"\nduration = 5\n', "duration"),
        (f'config = "{SMT2}"\nduration = "0s"\n', "longer than 0"),
        (f'config = "{SMT2}"\nduration = "soon"\n', "soon"),
        ('config = "nowhere.toml"\nduration = "1ms"\n', "nowhere.toml"),
    ],
)
def test_a_head_that_is_wrong(run, matrix, head, says):
    matrix.write_text(f"{head}[axes]\nseed = 1\n")
    found = run("small.toml")
    assert found.code == 2
    assert says in found.err


def test_keys_may_be_quoted_or_bare_and_costs_and_seeds_lists(tmp_path):
    quoted, bare = tmp_path / "q.toml", tmp_path / "b.toml"
    quoted.write_text(HEAD + 'costs = ["low", "high"]\n[axes]\n"policy.kick" = ["ack"]\nseed = [4, 9]\n')
    bare.write_text(HEAD + 'costs = ["low", "high"]\n[axes]\npolicy.kick = ["ack"]\nseed = [4, 9]\n')
    plans = [plan_of(read(path), nobody) for path in (quoted, bare)]
    assert plans[0].fingerprint == plans[1].fingerprint
    assert [(plans[0].place(n).level, plans[0].place(n).seed) for n in range(plans[0].runs)] == [
        ("low", 4), ("low", 9), ("high", 4), ("high", 9)
    ]  # fmt: skip


def test_a_configuration_is_counted_from_the_matrix_and_its_files_from_itself():
    plan = plan_of(read(ROOT / "configs/matrices/kicks.toml"), nobody)
    assert (plan.runs, plan.refused, plan.left_out) == (300, 0, 180)
    tables = {each.config["vm"][0]["guest"]["table"] for each in plan.combinations}
    assert tables == {str(ROOT / "configs/tables/web.toml")}


def test_a_changed_table_of_a_guest_is_another_sweep(tmp_path: Path):
    table = tmp_path / "web.toml"
    table.write_text((ROOT / "configs/tables/web.toml").read_text())
    path = tmp_path / "m.toml"
    path.write_text(HEAD + f'[set]\nvm.0.guest.table = "{table}"\n[axes]\nseed = 1\nmachine.smt = [2]\n')
    before = plan_of(read(path), nobody).fingerprint
    assert plan_of(read(path), nobody).fingerprint == before
    table.write_text(table.read_text() + "# another\n")
    assert plan_of(read(path), nobody).fingerprint != before
