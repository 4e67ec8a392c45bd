"""asid run --engine sim: a run directory as a live run leaves one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from asid.commands import invoke
from asid.live.journal import JournalReader

ROOT = Path(__file__).parent.parent.parent
SMT2 = str(ROOT / "configs/smt2.toml")
SHORT = ("--engine", "sim", "--duration", "30ms")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def once(*args: str) -> SimpleNamespace:
        code = invoke(list(args))
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out))

    return once


def test_a_run_leaves_what_every_run_leaves_and_can_be_judged_again(run):
    first = run("run", SMT2, *SHORT, "--json")
    assert first.code == 0
    verdict = first.json()
    root = Path(verdict["run_dir"])
    names = {path.name for path in root.iterdir()}
    assert names >= {
        "manifest.json", "config.toml", "config.resolved.json", "journal.asid", "stats.json", "verdict.json",
        "repro.sh", "space.toml",
    }  # fmt: skip
    assert (verdict["verdict"], verdict["run"]["engine"]) == ("PASS", "sim")
    assert json.loads((root / "manifest.json").read_text())["status"] == "ended"
    again = run("audit", str(root), "--json")
    assert again.code == 0
    assert again.json()["figures"]["exits"] == verdict["figures"]["exits"] > 0
    stats = run("stat", str(root), "--json").json()
    assert stats["totals"]["exits"] == verdict["figures"]["exits"]


def test_the_same_seed_leaves_the_same_journal(run, tmp_path):
    journals = []
    for name in ("one", "two"):
        assert run("run", SMT2, *SHORT, "--seed", "5", "--run-dir", str(tmp_path / name)).code == 0
        journals.append((tmp_path / name / "journal.asid").read_bytes())
    assert journals[0] == journals[1]


def test_the_command_of_a_run_makes_the_same_run_again(run, tmp_path):
    assert (
        run("run", SMT2, *SHORT, "--policy", "asi-stun", "--costs", "high", "--run-dir", str(tmp_path / "one")).code
        == 0
    )
    words = json.loads((tmp_path / "one/manifest.json").read_text())["command"]
    known = {"CONFIG": str(tmp_path / "one/config.resolved.json"), "SPACE": str(tmp_path / "one/space.toml")}
    command = [known.get(word, word) for word in words[1:]]
    assert run(*command, "--run-dir", str(tmp_path / "two")).code == 0
    one, two = (_records(tmp_path / name) for name in ("one", "two"))
    assert one == two


def _records(root: Path):
    with JournalReader(root / "journal.asid") as reader:
        return list(reader)


def test_none_fails_and_says_what_leaked(run):
    found = run("run", SMT2, "--engine", "sim", "--duration", "100ms", "--policy", "none")
    assert found.code == 1
    assert "FAIL" in found.out
    assert "Leaks: " in found.out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--engine", "sim", "--duration", "0s"), 2, "--duration"),
        (("--engine", "sim", "--policy", "nosuch"), 2, "nosuch"),
        (("--engine", "sim", "--policy", "nosmt", "--kick", "send"), 2, "kick"),
        (("--engine", "sim", "--space", "nowhere.toml"), 2, "nowhere.toml"),
        (("--costs", "high"), 2, "--costs"),
    ],
)
def test_what_cannot_be_simulated_is_refused_and_leaves_nothing(run, tmp_path, args, code, says):
    found = run("run", SMT2, *args)
    assert found.code == code
    assert says in found.err
    assert not list(tmp_path.rglob("journal.asid"))


def test_a_broadcast_machine_check_is_refused_with_what_to_do(run, tmp_path):
    config = tmp_path / "mce.toml"
    config.write_text(
        '[mce]\nmode = "broadcast"\n[[vm]]\non = ["c0h0"]\n[[inject]]\nwhat = "mce"\ntarget = "c0h0"\nat = "1ms"\n'
    )
    found = run("run", str(config), "--engine", "sim")
    assert found.code == 2
    assert "--engine live" in found.err
