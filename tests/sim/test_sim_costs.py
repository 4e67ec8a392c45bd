"""[costs]: rows of the cost table that a configuration or a file replaces, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated import MS, TYPICAL, of

from asid.assessing import Workload
from asid.commands import invoke
from asid.config import load, resolved
from asid.config_costs import COST_MAX_NS
from asid.errors import EXIT_USAGE, ConfigError
from asid.report.variants import Variant
from asid.running import check_config
from asid.sensitivity import swings
from asid.sim.costs import BY_NAME, costs_of, replaced
from asid.simulating import given, load_for, machine_of
from asid.start_files import config_file

ROOT = Path(__file__).parent.parent.parent
SMT2 = str(ROOT / "configs/smt2.toml")
PAIR = {
    "machine": {"cores": 1, "smt": 2},
    "vm": [{"name": "a", "on": ["c0h0", "c0h1"]}],
    "inject": [{"what": "exit", "target": "c0h0", "at": "1ms", "reason": "EPT_VIOLATION"}],
}


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def once(*args: str) -> SimpleNamespace:
        code = invoke(list(args))
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out))

    return once


@pytest.fixture
def slow(tmp_path) -> Path:
    path = tmp_path / "slow.toml"
    path.write_text('[costs]\nvm_exit = "3us"\nmessage = "high"\n')
    return path


def test_rows_are_replaced_by_durations_and_by_levels():
    config = load({"costs": {"vm_exit": "1.5us", "message": "high", "nmi": "low"}}).config
    costs = replaced(TYPICAL, {"vm_exit": config.costs.vm_exit, "message": "high", "nmi": "low"})
    assert (costs.vm_exit, costs.message, costs.nmi) == (1_500, BY_NAME["message"].high, BY_NAME["nmi"].low)
    assert costs._replace(vm_exit=250, message=60, nmi=1_000) == TYPICAL


def test_the_machine_goes_by_them_whatever_the_column():
    def leave_ns(level, costs) -> int:
        records = machine_of(load({**PAIR, "costs": costs}), costs_of(level)).play(5 * MS).records
        (left,) = of(records, "leave", 0)
        return left.ts

    assert leave_ns("typical", {"vm_exit": "9us"}) > leave_ns("typical", {}) + 8_000
    every = dict.fromkeys(BY_NAME, "typical")
    assert leave_ns("high", every) == leave_ns("typical", {}) != leave_ns("high", {})


def test_rows_of_a_file_lie_below_those_beside_its_name(tmp_path, slow):
    config = tmp_path / "machine.toml"
    config.write_text('[costs]\nfile = "slow.toml"\nmessage = "5ns"\n')
    loaded = load(config)
    assert (loaded.config.costs.vm_exit, loaded.config.costs.message) == ("3us", "5ns")
    assert loaded.origin["costs.vm_exit"] == str(slow)
    kept = resolved(loaded)
    slow.unlink()
    assert load(kept).config.costs.vm_exit == "3us", "what a run keeps needs no file"


def test_a_file_on_the_command_line_stands_for_the_whole_table(slow):
    loaded = load_for({"costs": {"nmi": "5us"}}, given(costs_file=str(slow)))
    assert (loaded.config.costs.vm_exit, loaded.config.costs.nmi) == ("3us", "")


def test_a_run_keeps_its_costs_and_its_command_makes_it_again(run, tmp_path, slow):
    args = ("run", SMT2, "--engine", "sim", "--duration", "30ms")
    assert run(*args, "--costs", str(slow), "--run-dir", str(tmp_path / "one")).code == 0
    assert run(*args, "--run-dir", str(tmp_path / "plain")).code == 0
    assert json.loads((tmp_path / "one/config.resolved.json").read_text())["costs"]["vm_exit"] == "3us"
    words = json.loads((tmp_path / "one/manifest.json").read_text())["command"]
    slow.unlink()
    known = {"CONFIG": str(tmp_path / "one/config.resolved.json"), "SPACE": str(tmp_path / "one/space.toml")}
    assert run(*(known.get(word, word) for word in words[1:]), "--run-dir", str(tmp_path / "two")).code == 0
    one, two, plain = ((tmp_path / name / "journal.asid").read_bytes() for name in ("one", "two", "plain"))
    assert one == two != plain


@pytest.mark.parametrize("verb", ["compare", "sim", "assess"])
def test_every_verb_of_the_simulator_takes_them(run, slow, verb):
    given_to = {
        "compare": ("--engine", "sim", "--policies", "none,asi", "--repeats", "1", "--duration", "30ms"),
        "sim": ("--seeds", "1", "--check-determinism", "--no-faults"),
        "assess": ("--policies", "asi", "--duration", "20ms", "--no-sensitivity"),
    }[verb]
    plain, slowed = run(verb, SMT2, *given_to, "--json"), run(verb, SMT2, *given_to, "--costs", str(slow), "--json")
    assert (plain.code, slowed.code) == (0, 0), slowed.err
    if verb == "assess":
        assert "vm_exit, message" in slowed.json()["files"][0]["assumed"][0]
    assert verb == "sim" or _figures(plain.json()) != _figures(slowed.json())


def _figures(document):
    return document["rows"] if "rows" in document else document["files"][0]["rows"]


def test_a_recording_is_replayed_with_them(run, tmp_path, slow):
    (tmp_path / "t.txt").write_text(
        "# tracer: nop\n"
        "  <...>-101   [000] ....   1.000100: kvm_exit: reason MSR_WRITE rip 0x1 info 0 0\n"
        "  <...>-101   [000] ....   1.000102: kvm_entry: vcpu 0\n"
        "  <...>-101   [000] ....   1.000300: kvm_exit: reason CPUID rip 0x1 info 0 0\n"
        "  <...>-101   [000] ....   1.000301: kvm_entry: vcpu 0\n"
    )
    args = ("replay", str(tmp_path / "t.txt"), "--engine", "sim", "--json")
    fast, slowed = run(*args).json(), run(*args, "--costs", str(slow)).json()
    assert slowed["figures"]["duration_ns"] > fast["figures"]["duration_ns"] + 2_000


def test_what_is_known_is_no_assumption(tmp_path):
    known = {"vm_exit": "300ns", "vm_entry": "300ns", "ipi_send": "90ns"}
    moved = swings(Workload({**PAIR, "costs": known}, 3 * MS), Variant("asi", "ack"), seed=1, on_run=lambda *_: None)
    by_name = {swing.what: swing for swing in moved}
    assert "exit and entry" not in by_name
    assert by_name["kick"].words == ("1,090 ns", "1,881 ns"), "of the two, one is still assumed"


def test_the_live_machine_takes_the_table_and_finds_its_file_from_elsewhere(tmp_path, slow, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"costs": {"file": "slow.toml", "nmi": "5us"}}
    check_config(config, "", "", None)
    (tmp_path / "instance").mkdir()
    written = config_file(config, tmp_path / "instance")
    monkeypatch.chdir("/")
    assert load(written).config.costs.vm_exit == "3us"


@pytest.mark.parametrize(
    ("row", "says", "hint"),
    [
        ('vm_exit = "0s"', 'costs.vm_exit = "0s" (no step takes no time): must be a duration from 1ns', "Try 1ns."),
        ('vm_exit = "0.4ns"', "no step takes no time", "Try 1ns."),
        ('vm_exit = "-1us"', 'costs.vm_exit = "-1us": must be a duration', "Try 250ns"),
        ('vm_exit = "hihg"', "or low, typical or high", "Did you mean high?"),
        ('vm_exit = "11ms"', "that is no cost but a fault", "stalls"),
        ("vm_exit = 250", 'must be text in "quotes"', ""),
        ('vm_exot = "1us"', "unknown key", "Did you mean vm_exit?"),
        ('file = "nowhere.toml"', "no such file", ""),
    ],
)
def test_what_is_no_cost_is_refused_with_its_line(tmp_path, row, says, hint):
    path = tmp_path / "given.toml"
    path.write_text(f"[costs]\n{row}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == EXIT_USAGE
    assert f"{path}:2: costs." in str(caught.value) and says in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[costs]\nvm_exot = '1us'", "vm_exot: unknown cost", "Did you mean vm_exit?"),
        ("[costs]\nvm_exit = '0s'", "no step takes no time", "Try 1ns."),
        ("[costs]\nvm_exit = 250", "vm_exit = 250", "Try 250ns."),
        ("[costs]\nfile = 'other.toml'", "file: unknown cost", ""),
        ("[machine]\nsmt = 2", "is no table of costs, it has machine", "--calibrate"),
        ("costs = 3", "is no table of costs", "--calibrate"),
        ("not toml", "is no TOML", "--calibrate"),
        ("# " + "x" * 70_000, "is too long", "--calibrate"),
    ],
)
def test_a_file_that_is_no_table_of_costs_is_refused(tmp_path, text, says, hint):
    (tmp_path / "costs.toml").write_text(text)
    path = tmp_path / "given.toml"
    path.write_text('[costs]\nfile = "costs.toml"\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f'{path}:2: costs.file = "costs.toml"' in str(caught.value) and says in str(caught.value)
    assert hint in caught.value.hint


def test_the_longest_cost_is_taken():
    assert load({"costs": {"nmi": f"{COST_MAX_NS}ns"}}).config.costs.nmi == "10000000ns"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", SMT2, "--engine", "sim", "--costs", "hihg"), "Did you mean high?"),
        (("assess", SMT2, "--costs", "high"), "every column is played"),
        (("run", SMT2, "--costs", SMT2), "--engine sim"),
        (("run", SMT2, "--engine", "sim", "--costs", SMT2), "is no table of costs"),
    ],
)
def test_costs_that_are_none_are_refused_on_the_command_line(run, args, says):
    found = run(*args)
    assert found.code == EXIT_USAGE
    assert says in found.err
