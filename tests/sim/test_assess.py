"""asid assess: the table, what the kicks are for, and how far the answer moves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated import MS

from asid.assessing import Cause, Workload, assess, runs_of
from asid.commands import invoke
from asid.missing import missing_of
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
    assert told[3] == "  1 further kind makes the rest."
    assert told[4] == "  To map what holds no secret would save 30% of the kicks."
    assert paragraph("none", []) == ["none: nobody left the isolated address space."]


def test_what_the_handler_would_miss_next_is_told_too():
    whole = paragraph("asi/ack", [Cause("CPUID", "buses", 10.0, 5.0, ("other task",))])
    assert "misses buses (this VM's), other task (host secret): to map them would expose secrets" in whole[1]
    assert whole[2] == "  To map what holds no secret would save 0% of the kicks."
    behind = missing_of(SMT2).behind("EXTERNAL_INTERRUPT", "IRQ stack")
    assert "irq_desc" in behind and "IRQ stack" not in behind
    assert missing_of(SMT2).behind("EXTERNAL_INTERRUPT", "other task") == ()


def test_the_kicks_of_the_stop_are_nobodys(run):
    (of,) = run(str(SMT2), "--policies", "none", "--duration", "20ms", "--no-sensitivity", "--json").json()["files"]
    assert of["rows"][0]["kicks_per_s"] == 0
    assert (of["vcpus"], of["duration_ns"]) == (2, 20 * MS)


def test_a_slower_switch_costs_asi_more_and_none_nothing(tmp_path):
    (tmp_path / "busy.toml").write_text(BUSY_TABLE)
    config = tmp_path / "machine.toml"
    config.write_text(BUSY)
    moved = swings(Workload(config, 8 * MS, rate_hz=20_000.0), Variant("asi", "ack"), seed=1, on_run=nobody)
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
    assert of["rows"][0]["exits_per_s"] > 10_000  # two threads of a few us and one exit, again and again
    assert of["duration_ns"] > 100_000


KVMEXIT = """\
Display kvm exit reasons and statistics for all threads after sleeping 2 secs.
PID      TID      KVM_EXIT_REASON                     COUNT
7        71       EXIT_REASON_HLT                     1000
7        71       EXIT_REASON_MSR_WRITE               3000
7        72       EXIT_REASON_MSR_WRITE               4000
"""


def test_counts_that_say_their_time_come_at_their_own_rate(run, tmp_path):
    (tmp_path / "k.txt").write_text(KVMEXIT)
    shown = run(str(tmp_path / "k.txt"), "--policies", "asi", "--duration", "1s", "--json")
    (of,) = shown.json()["files"]
    assert of["rows"][0]["exits_per_s"] == pytest.approx(8000 / 2, rel=0.15)
    moves = {move["what"] for move in of["moves"]}
    assert "time asleep of a vCPU" in moves
    assert "exits a second of a vCPU" not in moves
    assert any(word.startswith("as the text says: counted over 2.0s of 2 vCPUs") for word in of["assumed"])
    assert any("sleeps 50%" in word for word in of["assumed"])


def test_over_what_time_a_table_was_counted_can_be_told(run, tmp_path):
    (tmp_path / "k.txt").write_text(KVMEXIT.replace(" after sleeping 2 secs", ""))
    few = ("--policies", "none", "--no-sensitivity", "--duration", "1s", "--json")
    (of,) = run(str(tmp_path / "k.txt"), "--over", "4s", "--vcpus", "1", *few).json()["files"]
    assert of["rows"][0]["exits_per_s"] == pytest.approx(2 * 8000 / 4, rel=0.15)  # two vCPUs, each as the one counted
    (of,) = run(str(tmp_path / "k.txt"), *few).json()["files"]
    assert any(word.startswith("assumed: 2,000 exits a second") for word in of["assumed"])


def test_several_files_are_a_table_each(run, tmp_path):
    (tmp_path / "k.txt").write_text(KVMEXIT)
    (tmp_path / "t.txt").write_text(TRACE)
    few = ("--policies", "none", "--no-sensitivity")
    shown = run(str(tmp_path / "k.txt"), str(tmp_path / "t.txt"), *few).out
    assert shown.count("VS NONE") == 2
    assert shown.index("k.txt:") < shown.index("t.txt:")
    refused = run(str(tmp_path / "k.txt"), str(tmp_path / "nowhere.txt"), *few)
    assert (refused.code, refused.out) == (2, "")


def test_a_recording_of_years_is_cut(run, tmp_path):
    long = TRACE.replace("MSR_WRITE", "HLT").replace("1.000102", "900000000.000000").splitlines()[:3]
    (tmp_path / "t.txt").write_text("\n".join(long) + "\n")
    found = run(str(tmp_path / "t.txt"), "--policies", "none", "--no-sensitivity", "--json")
    assert found.code == 0
    assert found.json()["files"][0]["duration_ns"] == 3_600_000_000_000


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--over", "1us"), "leaves some to the guests"),
        (("--over", "0s"), "longer than 0"),
        (("--over", "1s", "--rate", "5/s"), "one of them"),
        (("--rate", "5/s", "--vcpus", "2"), "one of them"),
        (("--siblings", "3"), "1, 2, 4 or 8"),
    ],
)
def test_times_that_do_not_fit_a_table_are_refused(run, tmp_path, args, says):
    (tmp_path / "k.txt").write_text(KVMEXIT)
    found = run(str(tmp_path / "k.txt"), *args)
    assert found.code == 2
    assert says in found.err


@pytest.mark.skipif(not PERF.is_file(), reason=f"recording p03 is not here: {PERF.parent}")
def test_a_table_of_counts_says_that_its_rate_was_assumed(run):
    (of,) = run(str(PERF), "--policies", "none,asi", "--duration", "50ms", "--json").json()["files"]
    assert {"exits a second of a vCPU", "where vCPUs run"} <= {move["what"] for move in of["moves"]}
    assert any(word.startswith("assumed: 2,000 exits a second of guest time") for word in of["assumed"])


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
