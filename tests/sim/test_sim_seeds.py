"""asid sim: seeds make plans, a broken promise is found and made small, and the same seed does the same thing twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import IDLE_PAIR, MS, TYPICAL, exit_at

from asid import seeds
from asid.commands import invoke
from asid.config import load
from asid.core import apic
from asid.difference import first_difference
from asid.errors import EXIT_HOST_UNSUITABLE
from asid.failing import failing_text
from asid.seed_processes import Part
from asid.seeds import Job, plan_for, shrink
from asid.sim.faults import BREAKS, KINDS, SLOW, plan_of, tables_of
from asid.simulating import machine_of

ROOT = Path(__file__).parent.parent.parent
TWO = str(ROOT / "configs/two-vms.toml")
PAIR = Job(IDLE_PAIR, {}, TYPICAL, 20 * MS)


@pytest.fixture
def run(capsys):
    def once(*args: str) -> SimpleNamespace:
        code = invoke(["sim", *args])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out))

    return once


@pytest.fixture
def no_kick_of_handlers(monkeypatch):
    """The bug: handlers of NMI and #MC kick nobody."""
    monkeypatch.setattr(apic, "kicks", lambda apic, siblings: ())


@given(st.integers(0, 2**40), st.integers(1, 3), st.sampled_from([1, 2, 4, 8]))
def test_a_plan_is_its_seeds_and_breaks_nothing_late(seed: int, cores: int, smt: int):
    plan = plan_of(seed, cores, smt, 40 * MS)
    assert plan == plan_of(seed, cores, smt, 40 * MS)
    assert plan
    inject, slow = tables_of(plan)
    assert len(inject) + len(slow) == len(plan)
    at = [int(table["at"].removesuffix("ns")) for table in inject]
    assert at == sorted(at)
    assert 0 < at[0] <= at[-1] < 40 * MS * BREAKS
    load({"machine": {"cores": cores, "smt": smt}, "inject": inject, "faults": {"slow": slow}})


def test_seeds_make_every_kind_of_fault():
    kinds = {table["what"] for seed in range(60) for table in plan_of(seed, 1, 2, 40 * MS)}
    assert kinds == {SLOW, *(kind for kind, _ in KINDS)}


def test_a_slow_sibling_answers_later_and_is_kept_in_what_is_saved():
    job = Job(IDLE_PAIR | {"inject": [exit_at(500)]}, {}, TYPICAL, 1 * MS)
    late = ({"what": SLOW, "target": "c0h1", "delay": "70us"},)
    waits = [
        next(record.data["wait_ns"] for record in machine_of(job.loaded(1, plan), TYPICAL).play(1 * MS).records
             if record.type == "leave")
        for plan in ((), late)
    ]  # fmt: skip
    assert waits[1] == waits[0] + 70_000
    saved = json.loads(failing_text(job, 1, late))
    assert [(each["target"], each["delay"]) for each in saved["faults"]["slow"]] == [("c0h1", "70us")]
    assert len(saved["inject"]) == 1


@pytest.mark.parametrize("config", ["smt2.toml", "smt4.toml", "two-vms.toml", "nmi-heavy.toml"])
def test_seeds_break_nothing(run, config: str):
    found = run(str(ROOT / "configs" / config), "--seeds", "1..6", "--duration", "25ms", "--json")
    assert found.code == 0, found.out
    assert found.json()["seeds"] == 6
    assert found.json()["failed"] is None


def test_a_bug_is_found_and_made_as_small_as_one_fault(no_kick_of_handlers):
    failing = next(outcome for seed in range(1, 50) if (outcome := seeds.run(PAIR, seed)).failed)
    assert failing.failed is not None
    assert failing.failed.guarantee == "G2"
    assert len(plan_for(PAIR, failing.seed)) > 1
    tried = []
    (fault,) = shrink(PAIR, failing.seed, failing.failed, tried.append)
    assert fault["what"] in ("nmi", "mce")
    assert tried


def test_what_fails_is_written_and_fails_again(run, tmp_path, no_kick_of_handlers, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = tmp_path / "pair.toml"
    config.write_text('[[vm]]\non = ["c0h0", "c0h1"]\n')
    saved = tmp_path / "failing.json"
    found = run(str(config), "--seeds", "1..50", "--jobs", "1", "--save", str(saved))
    assert found.code == 1
    assert "G2" in found.out
    assert f"asid run {saved} --engine sim" in found.out
    assert len(load(saved).config.inject) == 1
    assert invoke(["run", str(saved), "--engine", "sim", "--duration", "40ms"]) == 1


def test_whoever_waits_at_the_end_for_what_does_not_come_fails(monkeypatch):
    """The bug: the gate of a core hears nothing any more from some moment on."""
    from asid.sim.gate import Gate

    real = Gate.hear

    def deaf(self, report, cause):
        if self.agenda.now_ns < 5 * MS:
            real(self, report, cause)

    monkeypatch.setattr(Gate, "hear", deaf)
    job = Job(TWO, {}, TYPICAL, 40 * MS)
    failed = seeds.run(job, 1, ()).failed
    assert failed is not None
    assert failed.guarantee == ""
    assert "is LEAVING since" in failed.text or "is ASKING since" in failed.text


def test_every_seed_is_the_same_in_another_process(run):
    found = run(TWO, "--seeds", "3..6", "--duration", "20ms", "--check-determinism", "--json")
    assert found.code == 0, found.out
    assert (found.json()["twice"], found.json()["differs"]) == (4, "")


BY_CHANCE = """
from asid.core.policies.base import Policy

REASONS = {"CPUID", "HLT", "MSR_WRITE", "EPT_VIOLATION", "IO_INSTRUCTION", "CR_ACCESS"}


class ByChance(Policy):
    name = "by-chance"
    about = "as asi, but one kind of exits needs HOST: the first of a set, and what is first there is chance"

    def needs_full(self, full, reason=""):
        return full or reason == next(iter(REASONS))
"""


def test_the_first_record_that_differs_is_shown(run, tmp_path, monkeypatch):
    """The bug: a decision follows the order of a set of words, which is another in each process."""
    (tmp_path / "chance_of_sets.py").write_text(BY_CHANCE)
    monkeypatch.chdir(tmp_path)
    args = (TWO, "--policy", "chance_of_sets:ByChance", "--seeds", "1..2", "--duration", "10ms", "--check-determinism")
    found = run(*args)
    assert found.code == 5
    assert "NOT DETERMINISTIC" in found.out
    told = run(*args, "--json")
    assert told.code == 5
    difference = told.json()["difference"]
    one, other, before = difference["one"], difference["other"], difference["before"]
    assert one["seq"] == other["seq"] == before[-1]["seq"] + 1
    assert one != other
    assert len(before) == 3
    assert f"The first record that differs is number {one['seq']:,}:" in found.out
    for row in (*before, one, other):
        assert f"{row['seq']:,}" in found.out
        assert row["type"] in found.out


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_runs_part_at_the_first_record_that_differs(one: list[int], other: list[int]):
    rows = [[{"seq": at, "of": value} for at, value in enumerate(values)] for values in (one, other)]
    found = first_difference(*rows)
    if one == other:
        assert found is None
        return
    at = next(n for n in range(9) if one[n : n + 1] != other[n : n + 1])
    assert found == (tuple(rows[0][max(0, at - 3) : at]), *(row[at] if at < len(row) else None for row in rows))


@pytest.mark.parametrize("options", [(), ("--check-determinism",)])
def test_in_many_processes_comes_out_what_comes_out_in_one(run, options):
    args = (TWO, "--seeds", "1..5", "--duration", "10ms", "--json", *options)
    one, many = (run(*args, "--jobs", jobs) for jobs in ("1", "4"))
    assert (one.code, many.code) == (0, 0)
    assert one.json() == many.json()


@pytest.mark.parametrize("judges", [-1, 0, 1])
def test_every_seed_has_a_process_and_a_judge(judges: int):
    parts = [
        Part(offset, 3, judge) for offset in range(3) for judge in ({judges, abs(1 - judges)} if judges >= 0 else {-1})
    ]
    run_by = [seed for part in parts for seed, judged in part.seeds(10, 20) if judged]
    assert sorted(run_by) == list(range(10, 21))
    assert [Part.of_word(part.as_word()) for part in parts] == parts


def test_a_process_of_seeds_that_is_killed_is_no_mistake_of_whoever_asked(run, monkeypatch):
    monkeypatch.setattr("asid.interpreter.sys.executable", "/bin/false")
    found = run(TWO, "--seeds", "1..2", "--jobs", "2")
    assert found.code == EXIT_HOST_UNSUITABLE
    assert "ended before its time" in found.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((TWO, "--seeds", "5..2"), "--seeds"),
        ((TWO, "--seeds", "x"), "--seeds"),
        ((TWO, "--duration", "0s"), "--duration"),
        ((TWO, "--save", "failing.toml"), ".json"),
        ((TWO, "--save", "nowhere.json", "--schedule", "./nowhere.json"), "two files"),
        ((TWO, "--policy", "nosuch"), "nosuch"),
        (("nowhere.toml",), "nowhere.toml"),
    ],
)
def test_what_cannot_be_run_is_refused(run, args, says):
    found = run(*args)
    assert found.code == 2
    assert says in found.err
