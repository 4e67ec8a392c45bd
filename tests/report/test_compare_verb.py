"""`asid compare` as a user types it; the machines are played, so that it takes no time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asid import drive as driving
from asid.commands import invoke
from asid.errors import NoAnswer
from asid.running import Run

CONFIG = "configs/noisy-neighbour.toml"
SOME = ["--policies", "none,asi", "--kicks", "ack,send"]


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Runs that end at once. Their verdicts: `words` by policy; `ends` after so many runs with an exception."""
    monkeypatch.chdir(Path(__file__).parents[2])
    machine = SimpleNamespace(calls=[], words={"none": "FAIL"}, broken={"none": ("G2",)}, ends={})

    def drive(config: str, *, on_wait: Any, **options: Any) -> driving.Outcome:
        number = len(machine.calls)
        if number in machine.ends:
            raise machine.ends[number]
        on_wait(None, 1)
        machine.calls.append((options["policy"], options["kick"], options["seed"]))
        policy = options["policy"]
        figures = {"exits": 1000 if policy == "none" else 900, "served_ns": options["duration_ns"]}
        broken = {name: {"broken": 1, "allowed": int(policy == "none")} for name in machine.broken.get(policy, ())}
        verdict = {"verdict": machine.words.get(policy, "PASS"), "figures": figures, "guarantees": broken}
        return driving.Outcome(Run(tmp_path / f"run{number}"), verdict)

    monkeypatch.setattr(driving, "drive", drive)
    return machine


def test_every_repeat_runs_every_variant_with_the_same_load(played, capsys):
    assert invoke(["compare", CONFIG, *SOME, "--repeats", "4", "--duration", "1s", "--seed", "7", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    turns = [played.calls[at : at + 3] for at in range(0, 12, 3)]
    for repeat, turn in enumerate(turns):
        assert {(policy, kick) for policy, kick, _ in turn} == {("none", ""), ("asi", "ack"), ("asi", "send")}
        assert {seed for _, _, seed in turn} == {7 + repeat}
    assert len({tuple(call[:2] for call in turn) for turn in turns}) > 1, "not always in the same order"
    assert [row["label"] for row in document["rows"]] == ["none", "asi/ack", "asi/send"], "and shown in that given"
    assert document["schema"] == "compare/1" and document["ok"] and document["complete"]
    assert (document["seed"], document["repeats"], document["duration_ns"]) == (7, 4, 1_000_000_000)
    assert document["rows"][1]["vs_none"]["ratio"] == pytest.approx(0.9)
    assert [Path(run["run_dir"]).name for run in document["runs"]] == [f"run{number}" for number in range(12)]
    assert document["runs"][0]["seed"] == 7 and document["runs"][0]["repeat"] == 1
    assert "repeat 4 of 4" in err and "left" in err


def test_the_table_is_what_a_person_gets(played, capsys):
    assert invoke(["compare", CONFIG, *SOME, "--repeats", "2"]) == 0
    out = capsys.readouterr().out
    assert "0.90x [0.90, 0.90]" in out and "negative control" in out
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["none", "asi/ack", "asi/send"]


@pytest.mark.parametrize(
    ("words", "broken", "code"),
    [
        ({"none": "FAIL"}, {"none": ("G2", "G3")}, 0),
        ({"none": "FAIL", "asi": "FAIL"}, {"none": ("G2",), "asi": ("G2",)}, 1),
        ({"asi": "UNKNOWN"}, {}, 3),
    ],
)
def test_the_exit_code(played, capsys, words, broken, code):
    played.words, played.broken = words, broken
    assert invoke(["compare", CONFIG, *SOME, "--repeats", "1", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


def test_interrupted_it_shows_what_is_complete(played, capsys):
    played.ends = {4: KeyboardInterrupt()}
    assert invoke(["compare", CONFIG, *SOME, "--json"]) == 130
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert not document["complete"] and not document["ok"] and document["stopped"] == "interrupted"
    assert len(document["runs"]) == 4
    assert sorted(row["runs"] for row in document["rows"]) == [1, 1, 2]
    assert "asid: interrupted" in err


def test_interrupted_in_its_first_run_it_has_nothing_to_show(played, capsys):
    played.ends = {0: KeyboardInterrupt()}
    assert invoke(["compare", CONFIG, *SOME]) == 130
    assert capsys.readouterr().out == ""


def test_a_run_that_cannot_be_had_ends_it_with_what_there_is(played, capsys):
    played.ends = {3: NoAnswer("the daemon was not ready after 20 s", hint="asid doctor")}
    assert invoke(["compare", CONFIG, *SOME]) == NoAnswer.exit_code
    out, err = capsys.readouterr()
    assert out.startswith("Not complete (NoAnswer: the daemon was not ready after 20 s): 3 of 9 runs are")
    assert "asid: NoAnswer:" in err and "hint: asid doctor" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["configs/nope.toml"], "no such file"),
        ([CONFIG, "--policies", "non"], "policy 'non'"),
        ([CONFIG, "--kicks", "acc"], "kick 'acc'"),
        ([CONFIG, "--duration", "0s"], "--duration 0s"),
        ([CONFIG, "--repeats", "0"], "--repeats"),
        ([CONFIG, "--repeats", "2", "--seed", str(2**63 - 1)], f"must be at most {2**63 - 2}"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_does(played, capsys, args, says):
    assert invoke(["compare", *args]) == 2
    assert says in capsys.readouterr().err
    assert not played.calls
