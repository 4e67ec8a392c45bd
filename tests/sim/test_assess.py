"""asid assess: the table, what the kicks are for, and how far the answer moves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated import MS

from asid.assessing import Cause, Workload, assess, runs_of
from asid.commands import invoke
from asid.report.assessed import paragraph
from asid.report.variants import Variant
from asid.sensitivity import swings

ROOT = Path(__file__).parent.parent.parent
SMT2 = ROOT / "configs/smt2.toml"
PERF = ROOT.parent / "shared/data/perf_kvm_stat/p03_intel_report_sysbench.txt"
SHORT = ("--duration", "40ms", "--policies", "none,kick-every-exit,asi")
BUSY = """\
[[vm]]
on = ["c0h0", "c0h1"]
guest = { source = "mix", table = "busy.toml", rate = "20000/s" }
"""
BUSY_TABLE = """\
isa = "vmx"
[[exit]]
reason = "EPT_VIOLATION"
share = 1
service = "1us"
"""
TRACE = """\
# tracer: nop
           <...>-101   [000] ....   1.000100: kvm_exit: reason MSR_WRITE rip 0x1 info 0 0
           <...>-101   [000] ....   1.000102: kvm_entry: vcpu 0
           <...>-102   [001] ....   1.000150: kvm_exit: reason EPT_VIOLATION rip 0x1 info 0 0
           <...>-102   [001] ....   1.000160: kvm_entry: vcpu 1
"""


@pytest.fixture
def run(capsys):
    def once(*args: str) -> SimpleNamespace:
        code = invoke(["assess", *args])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out))

    return once


def nobody(*_: object) -> None:
    """Nobody watches."""


def test_every_policy_beside_none_with_its_kicks_and_leaks(run):
    found = run(str(SMT2), *SHORT, "--json")
    assert found.code == 0
    (of,) = found.json()["files"]
    none, every, asi = of["rows"]
    assert (none["vs_none"]["ratio"], none["label"]) == (1.0, "none")
    assert asi["kicks_per_s"] < every["kicks_per_s"] / 2
    assert none["leaks"]["concurrent"] > 0 == asi["leaks"]["concurrent"]
    for row in of["rows"]:
        assert row["vs_none"]["low"] <= row["vs_none"]["ratio"] <= row["vs_none"]["high"]
    assert of["about"] == "asi/ack"
    assert sum(cause["kicks_hz"] for cause in asi["leaves_for"]) == pytest.approx(asi["kicks_per_s"], rel=0.05)


def test_the_same_words_twice(run):
    first = run(str(SMT2), *SHORT)
    assert first.out == run(str(SMT2), *SHORT).out
    assert "VS NONE" in first.out
    assert "of the kicks" in first.out


def test_whoever_leaves_out_none_gets_it_all_the_same(run):
    rows = run(str(SMT2), "--policies", "asi", "--duration", "20ms", "--no-sensitivity", "--json").json()["files"][0][
        "rows"
    ]
    assert [row["label"] for row in rows] == ["none", "asi/ack"]


def test_what_must_stay_unmapped_and_what_need_not_are_told_apart():
    told = paragraph("asi/ack", [
        Cause("HLT", "other task", 60.0, 60.0), Cause("CPUID", "buses", 30.0, 30.0), Cause("NMI", "", 10.0, 10.0)
    ])  # fmt: skip
    assert told[0] == "asi/ack: 100 leaves/s and 100 kicks/s."
    assert "other task (host secret): to map it would expose it" in told[1]
    assert "60% of the kicks" in told[1]
    assert "mapped, it would be fast" in told[2]
    assert told[3] == "  1 further kinds make the rest."
    assert paragraph("none", []) == ["none: nobody left the isolated address space."]


def test_a_slower_switch_costs_asi_more_and_none_nothing(tmp_path):
    (tmp_path / "busy.toml").write_text(BUSY_TABLE)
    config = tmp_path / "machine.toml"
    config.write_text(BUSY)
    moved = swings(Workload(config, 20 * MS, rate_hz=20_000.0), Variant("asi", "ack"), seed=1, on_run=nobody)
    by_name = {swing.what: swing for swing in moved}
    switch = by_name["switch of address spaces"]
    assert switch.low > switch.high > 0
    assert switch.words == ("33 ns", "3,333 ns")
    assert by_name["kick"].low > by_name["kick"].high
    assert by_name["exits a second of a vCPU"].low > by_name["exits a second of a vCPU"].high
    assert [swing.width for swing in moved] == sorted((swing.width for swing in moved), reverse=True)


def test_seeds_add_typical_runs_and_the_ends_are_of_the_first():
    assert runs_of(5, 2) == [("typical", 5), ("typical", 6), ("low", 5), ("high", 5)]
    done = []
    assess(
        Workload(SMT2, 5 * MS), [Variant("none"), Variant("asi", "ack")], seed=1, seeds=2,
        on_run=lambda variant, at, of: done.append((variant.label, at, of)),
    )  # fmt: skip
    assert done == [(label, at, 8) for at, label in enumerate(["none"] * 4 + ["asi/ack"] * 4)]


def test_a_recording_is_played_to_its_end_and_its_rate_is_no_assumption(run, tmp_path):
    (tmp_path / "t.txt").write_text(TRACE)
    (of,) = run(str(tmp_path / "t.txt"), "--policies", "none,asi", "--json").json()["files"]
    moves = {move["what"] for move in of["moves"]}
    assert "where vCPUs run" in moves
    assert "exits a second of a vCPU" not in moves
    assert any("side by side" in word for word in of["assumed"])


@pytest.mark.skipif(not PERF.is_file(), reason=f"recording p03 is not here: {PERF.parent}")
def test_a_table_of_counts_says_that_its_rate_was_assumed(run):
    (of,) = run(str(PERF), "--policies", "none,asi", "--duration", "50ms", "--json").json()["files"]
    assert {"exits a second of a vCPU", "where vCPUs run"} <= {move["what"] for move in of["moves"]}
    assert any("2000/s" in word for word in of["assumed"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nowhere.txt",), "nowhere.txt"),
        ((str(SMT2), "--siblings", "2"), "--siblings"),
        ((str(SMT2), "--duration", "0s"), "--duration"),
        ((str(SMT2), "--policies", "nosuch"), "nosuch"),
        ((), "FILE"),
    ],
)
def test_what_cannot_be_assessed_is_refused(run, args, says):
    found = run(*args)
    assert found.code == 2
    assert says in found.err
