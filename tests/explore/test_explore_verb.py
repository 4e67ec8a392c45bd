"""`asid explore`: what it searches, what it prints, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from asid.commands import invoke
from asid.errors import EXIT_FAIL, EXIT_HOST_UNSUITABLE, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNKNOWN, EXIT_USAGE
from asid.explore import pool


@pytest.fixture
def explore(capsys):
    """explore("n2v1") -> code, out, err."""

    def once(*args: str) -> SimpleNamespace:
        code = invoke(["explore", *args])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return once


def test_the_list_names_every_model_and_searches_nothing(explore):
    told = explore("--list")
    assert told.code == EXIT_OK
    assert "n2v1-nmi-mce" in told.out
    assert "371,236" in told.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("n2v9",), "there is no model 'n2v9'"),
        (("n2v1", "--all"), "--all is every model"),
        (("n2v1", "--nmi", "1"), "a model of your own goes alone"),
        (("--vms", "1,x"), "is not a list of VMs"),
        (("--vms", "1,1,1,1,1"), "does not fit"),
        (("--siblings", "3", "--vms", "1,1"), "does not fit"),
        (("--nmi", "-1"), "a budget is a count"),
        (("--siblings", "5"), "'5' is not one of"),
        (("--schedule", "/nonexistent.json"), "cannot be read"),
    ],
)
def test_what_cannot_be_searched_is_refused(explore, args, words):
    told = explore(*args)
    assert told.code == EXIT_USAGE
    assert words in told.err
    assert not told.out


@pytest.mark.live
def test_models_that_hold(explore):
    told = explore("n2v1", "n2v2", "--json")
    assert told.code == EXIT_OK
    document = json.loads(told.out)
    assert document["ok"]
    assert [(m["name"], m["states"], m["passed"]) for m in document["models"]] == [
        ("n2v2", 689, True),
        ("n2v1", 736, True),
    ]


@pytest.mark.live
def test_a_counterexample_is_told_saved_and_run_again(explore, tmp_path, capsys):
    file = tmp_path / "hit.json"
    told = explore("--siblings", "2", "--kick", "bare", "--save", str(file))
    assert told.code == EXIT_FAIL
    assert "FAIL: G9 after 7 steps" in told.out
    assert "7  h0    goes GUEST" in told.out
    again = explore("--schedule", str(file))
    assert again.code == EXIT_FAIL
    assert "G9 is broken after 7 steps" in again.out
    capsys.readouterr()
    assert invoke(["replay", str(file), "--engine", "explore", "--json"]) == EXIT_FAIL
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["broken"]) == ("explore/1", "G9")


@pytest.fixture
def cut_short(monkeypatch):
    """A search that finds what it is told to find, and is interrupted then."""

    def after(count: int, policy: str = "") -> None:
        def found(models, **_):
            chosen = [model for model in models if policy in model[0]][:count]
            for name, model in chosen:
                yield pool.Outcome(name, model, 7, 9, 2, 0.1, True, ())
            raise KeyboardInterrupt

        monkeypatch.setattr(pool, "explore", found)

    return after


def test_interrupted_it_shows_the_models_that_are_complete(explore, cut_short):
    cut_short(1)
    told = explore("n2v1", "n2v2", "--json")
    document = json.loads(told.out)
    assert told.code == EXIT_INTERRUPTED and "asid: interrupted" in told.err
    assert not document["complete"] and not document["ok"] and document["stopped"] == "interrupted"
    assert [model["name"] for model in document["models"]] == ["n2v1"]
    assert explore("n2v1", "n2v2").out.startswith("Not complete (interrupted): 1 of 2 models are")
    cut_short(0)
    assert json.loads(explore("n2v1", "--json").out)["models"] == []
    assert explore("n2v1").out == ""


def test_an_interrupted_matrix_shows_the_rows_that_are_complete(explore, cut_short):
    cut_short(6, "nosmt")
    told = explore("--matrix", "--json")
    document = json.loads(told.out)
    assert told.code == EXIT_INTERRUPTED and not document["complete"] and not document["ok"]
    assert {row["policy"] for row in document["rows"]} == {"nosmt"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--siblings", "2", "--unfixed"], "--unfixed (only an xAPIC has an ICR2): must be with --apic xapic"),
        (["--nmi", "1", "--restart", "1"], "--restart (nothing makes it happen): must be with --kill or"),
        (["--siblings", "2", "--stop", "1"], "--stop (nothing makes it happen): must be with --broadcast"),
        (["--siblings", "2", "--schedule", "x.json"], "--siblings with --schedule (it would change nothing)"),
        (["n2v1", "--schedule", "x.json"], "[MODEL]... with --schedule"),
        (["--matrix", "--schedule", "x.json"], "--matrix with --schedule"),
        (["--matrix", "--save", "x.json"], "--save with --matrix"),
        (["--matrix", "--policy", "asi"], "--policy with --matrix"),
        (["--list", "--jobs", "2"], "--jobs with --list"),
    ],
)  # fmt: skip
def test_an_option_that_would_change_nothing_is_refused(explore, args, says):
    told = explore(*args)
    assert told.code == EXIT_USAGE and says in told.err


@pytest.mark.parametrize("option", [["--policy", "none"], ["--siblings", "4"], ["--loop"], ["--rate", "5/s"]])
@pytest.mark.parametrize("engine", ["live", "explore"])
def test_a_schedule_is_replayed_as_it_is(capsys, option, engine):
    assert invoke(["replay", "hit.json", "--engine", engine, *option]) == EXIT_USAGE
    assert f"{option[0]} with a schedule (it would change nothing)" in capsys.readouterr().err


def test_a_recording_has_no_rate_and_a_table_no_end(capsys):
    data = Path(__file__).parents[1] / "data"
    assert invoke(["replay", str(data / "trace/ftrace_two_vcpus.txt"), "--rate", "5/s"]) == EXIT_USAGE
    assert "--rate 5/s (a recording has times of its own)" in capsys.readouterr().err
    assert invoke(["replay", str(data / "tables/perf_arm64.txt"), "--loop", "--duration", "1s"]) == EXIT_USAGE
    assert "--loop (a table of counts has no end)" in capsys.readouterr().err


def test_where_nothing_can_be_saved_is_said_before_the_search(explore, tmp_path):
    told = explore("n2v1", "--save", str(tmp_path / "no" / "hit.json"))
    assert told.code == EXIT_USAGE and told.out == ""
    assert "the counterexample cannot be saved there (No such file or directory)" in told.err


@pytest.mark.live
def test_a_file_of_a_counterexample_that_is_not_needed_stays_away(explore, tmp_path):
    kept, away = tmp_path / "kept.json", tmp_path / "away.json"
    kept.write_text("mine")
    assert explore("n2v2", "--save", str(away)).code == EXIT_OK
    assert explore("n2v2", "--save", str(kept)).code == EXIT_OK
    assert not away.exists() and kept.read_text() == "mine"


@pytest.mark.live
def test_a_limit_is_never_a_pass(explore):
    told = explore("n2v1-nmi", "--states-max", "1000")
    assert told.code == EXIT_UNKNOWN
    assert "UNKNOWN: a limit was hit" in told.out
    assert "0 of 1 models hold" in told.out


@pytest.mark.live
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_pool_ends_with_its_command(how):
    """Killed or asked to end: no process of the pool goes on searching for nobody."""
    command = [sys.executable, "-m", "asid", "explore", "n2v1-nmi-mce", "n2v2-nmi-mce", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        parent.stderr.readline()  # the first figures: the pool is at work
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.send_signal(how)
        parent.wait(30)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


@pytest.mark.live
def test_a_killed_process_of_the_pool_is_told_as_such():
    """Out of memory, most likely: no verdict, no traceback, exit code 6, and the others end."""
    command = [sys.executable, "-m", "asid", "explore", "n2v1-nmi-mce", "n2v2-nmi-mce", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        parent.stderr.readline()
        children = psutil.Process(parent.pid).children()
        max(children, key=lambda child: child.memory_info().rss).kill()
        out, err = parent.communicate(timeout=30)
    assert parent.returncode == EXIT_HOST_UNSUITABLE
    assert "a process of the pool was killed" in err
    assert not out
