"""asid run --engine sim: a run directory as a live run leaves one, and what is refused."""

from __future__ import annotations

import json
import signal
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated import TYPICAL

from asid.commands import invoke
from asid.errors import HostUnsuitable
from asid.live.journal import JournalReader
from asid.running import Run
from asid.signals import ENDINGS
from asid.simulating import load_for, machine_of, simulate

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


def test_a_machine_check_of_all_siblings_is_played(run, tmp_path):
    config = tmp_path / "mce.toml"
    config.write_text(
        '[mce]\nmode = "broadcast"\n[[vm]]\non = ["c0h0"]\n[[inject]]\nwhat = "mce"\ntarget = "c0h0"\nat = "1ms"\n'
    )
    found = run("run", str(config), "--engine", "sim", "--duration", "5ms", "--json")
    assert found.code == 0, found.err
    assert found.json()["guarantees"]["G10"]["state"] == "held"


TRACE = """\
# tracer: nop
           <...>-101   [000] ....   1.000100: kvm_exit: reason MSR_WRITE rip 0x1 info 0 0
           <...>-101   [000] ....   1.000102: kvm_entry: vcpu 0
           <...>-102   [001] ....   1.000150: kvm_exit: reason EPT_VIOLATION rip 0x1 info 0 0
           <...>-102   [001] ....   1.000160: kvm_entry: vcpu 1
           <...>-101   [000] ....   1.000300: kvm_exit: reason CPUID rip 0x1 info 0 0
           <...>-101   [000] ....   1.000301: kvm_entry: vcpu 0
"""


def test_a_recording_is_replayed_in_virtual_time_and_ends_with_it(run, tmp_path):
    (tmp_path / "t.txt").write_text(TRACE)
    found = run("replay", str(tmp_path / "t.txt"), "--engine", "sim", "--json")
    assert found.code == 0, found.err
    verdict = found.json()
    assert verdict["run"]["engine"] == "sim"
    assert verdict["figures"]["exits"] == 3
    assert verdict["figures"]["duration_ns"] < 1_000_000


def test_policies_are_compared_in_virtual_time(run):
    given = ("--policies", "none,kick-every-exit,asi", "--kicks", "ack", "--repeats", "2", "--duration", "60ms")
    found = run("compare", SMT2, "--engine", "sim", *given, "--json")
    assert found.code == 0, found.err
    none, every, asi = found.json()["rows"]
    assert none["leaks"]["concurrent"] > 0
    assert asi["leaks"]["concurrent"] == every["leaks"]["concurrent"] == 0
    assert asi["kicks_per_s"] < every["kicks_per_s"] / 2
    assert run("compare", SMT2, "--engine", "sim", *given, "--json").json()["rows"] == found.json()["rows"]


@pytest.mark.parametrize("verb", [("compare", SMT2), ("replay", "t.txt")])
def test_costs_are_those_of_the_host_where_the_machine_is_live(run, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(TRACE)
    found = run(*verb, "--costs", "low")
    assert found.code == 2
    assert "--costs" in found.err


# --- a run that does not come to its end ---------------------------------------------------------------------


def ending(number: int):
    """Return an on_progress to which a signal comes in its third call."""
    calls = iter(range(1_000))
    return lambda done_ns, total_ns: signal.raise_signal(number) if next(calls) == 2 else None


@pytest.fixture
def interruptible():
    """^C means KeyboardInterrupt, also where whoever started the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_stops_in_order_and_is_kept(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulate(
            load_for(SMT2, {}), duration_ns=60_000_000_000, run_dir=tmp_path / "it", on_progress=ending(signal.SIGINT)
        )
    kept = Run(tmp_path / "it")
    assert json.loads((kept.root / "manifest.json").read_text())["ended"]["reason"] == "interrupted"
    verdict = json.loads((kept.root / "verdict.json").read_text())
    assert verdict["verdict"] == "PASS"
    assert verdict["figures"]["exits"] > 0
    assert run("stat", str(kept.root), "--json").json()["totals"]["exits"] == verdict["figures"]["exits"]


def test_after_a_run_signals_do_what_they_did_before(tmp_path):
    before = [signal.getsignal(number) for number in ENDINGS]
    simulate(load_for(SMT2, {}), duration_ns=1_000_000, run_dir=tmp_path / "it")
    assert [signal.getsignal(number) for number in ENDINGS] == before


def test_a_disk_without_room_ends_the_run_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("asid.simulating.JournalWriter.append", lambda *_: False)
    with pytest.raises(HostUnsuitable, match="no room for the journal"):
        simulate(load_for(SMT2, {}), duration_ns=1_000_000, run_dir=tmp_path / "it")


def test_records_come_while_the_machine_goes_on():
    played_ns = 0

    def progressed(done_ns: int, total_ns: int) -> None:
        nonlocal played_ns
        played_ns = done_ns

    records = machine_of(load_for(SMT2, {}), TYPICAL).stream(2_000_000_000, progressed)
    for record in takewhile(lambda record: record.ts < 500_000_000, records):
        assert record.ts <= played_ns < record.ts + 300_000_000


def test_a_run_lasts_as_long_as_it_was_played_though_nobody_lives(tmp_path):
    mapping = tmp_path / "nothing.toml"
    mapping.write_text('[[vm]]\nname = "tenant"\nmap = []\n')
    records = list(machine_of(load_for(SMT2, {"space.mapping": str(mapping)}), TYPICAL).stream(50_000_000))
    assert records[-2].ts < 50_000_000 == records[-1].ts
