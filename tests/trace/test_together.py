"""Records and KVM's events in one order by time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asid.commands import invoke
from asid.config import load, resolved
from asid.core.record import Record
from asid.live.journal import JournalWriter
from asid.trace.together import KernelEvent, by_time, in_order

S = 1_000_000_000


def record(seq: int, ts: int, type_: str = "mark", core: int = -1, ht: int = -1, **data) -> Record:
    return Record(seq, seq, ts, type_, core, ht, 0, 0, data or {"text": "x"})


def born(seq: int, ts: int, pid: int, ht: int) -> Record:
    return record(seq, ts, "spawn", 0, ht, what="ht", pid=pid, inc=1)


def event(us: int, pid: int = 42, cpu: int = 0) -> str:
    return f" asid: c0h0 hype-{pid} [{cpu:03}] ..... {us // 10**6}.{us % 10**6:06}: kvm_entry: vcpu 0, rip 0xfff0\n"


def test_both_come_by_time_and_events_know_their_hyperthread(tmp_path):
    text = tmp_path / "text"
    text.write_text("# tracer: nop\n" + event(300) + event(100) + "CPU:1 [LOST 4 EVENTS]\n" + event(500, pid=43))
    records = [born(1, 50_000, 42, 0), born(2, 60_000, 43, 1), record(3, 400_000), record(4, 200_000)]
    shown = list(by_time(records, text))
    assert [item.ts for item in shown] == [50_000, 60_000, 100_000, 100_000, 200_000, 300_000, 400_000, 500_000]
    events = [item for item in shown if isinstance(item, KernelEvent)]
    assert [(item.event, item.core, item.ht) for item in events] == [
        ("kvm_entry", 0, 0), ("lost", -1, -1), ("kvm_entry", 0, 0), ("kvm_entry", 0, 1)
    ]  # fmt: skip
    assert events[1].said == "4"


def test_an_event_of_a_hyperthread_whose_birth_was_told_a_little_late_is_its_own(tmp_path):
    text = tmp_path / "text"
    text.write_text(event(100))
    shown = list(by_time([record(1, 1), born(2, 110_000, 42, 1)], text))
    assert [(item.ts, item.ht) for item in shown] == [(1, -1), (100_000, 1), (110_000, 1)]


def test_an_event_behind_a_long_silence_is_of_the_hyperthread_that_was_born_meanwhile(tmp_path):
    text = tmp_path / "text"
    text.write_text(event(9_000_000))
    shown = list(by_time([record(1, 1), record(2, 3 * S), record(3, 6 * S), born(4, 8 * S, 42, 1)], text))
    assert [item.ht for item in shown] == [-1, -1, -1, 1, 1]


def test_without_a_recording_the_records_come_by_time():
    assert [item.seq for item in by_time([record(1, 5), record(2, 9), record(3, 7)], None)] == [1, 3, 2]


def test_no_more_is_kept_than_may_still_be_late():
    def endless():
        seq = 0
        while True:
            seq += 1
            yield record(seq, seq * S)

    items = in_order(endless())
    assert [next(items).seq for _ in range(5)] == [1, 2, 3, 4, 5]


def test_equal_stamps_keep_their_order():
    assert [item.seq for item in in_order([record(2, 7), record(1, 7), record(3, 6)])] == [3, 2, 1]


# --- asid trace show ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory of two hyperthreads and a second: births, a mark each, and an event of each half a second on."""
    writer = JournalWriter(tmp_path / "journal.asid")
    marks = [record(4 + ht, 200_000 + ht, "mark", 0, ht, text=f"of {ht}") for ht in (0, 1)]
    assert writer.append([record(1, 1_000), born(2, 2_000, 42, 0), born(3, 3_000, 43, 1), *marks], sync=True)
    writer.close()
    (tmp_path / "kvm-events.txt").write_text(event(500_000) + event(500_001, pid=43) + event(500_002, pid=44))
    loaded = load({"machine": {"cores": 1, "smt": 2}})
    (tmp_path / "config.resolved.json").write_text(json.dumps(resolved(loaded)))
    return tmp_path


def shown(capsys, *argv: object) -> list[str]:
    assert invoke(["trace", "show", *map(str, argv)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_is_shown_with_what_kvm_did(run, capsys):
    lines = shown(capsys, run)
    assert [line.split()[1:3] for line in lines] == [
        ["-", "mark"], ["c0h0", "spawn"], ["c0h1", "spawn"], ["c0h0", "mark"], ["c0h1", "mark"],
        ["c0h0", "kvm"], ["c0h1", "kvm"], ["44", "kvm"],
    ]  # fmt: skip
    assert lines[5].split()[0] == "0.499999", "since the run began"


def test_times_are_those_of_the_run_whatever_the_text_begins_with(run, capsys):
    text = run / "kvm-events.txt"
    text.write_text(event(0) + "half a li\n" + text.read_text())
    lines = shown(capsys, run)
    assert [line.split()[0] for line in (lines[0], lines[5])] == ["0.000000000", "0.499999"]
    assert len(lines) == 8


def test_a_part_of_a_run_and_of_its_hyperthreads_can_be_shown(run, capsys):
    assert [line.split()[1] for line in shown(capsys, run, "--from", "400ms", "--at", "c0h1")] == ["c0h1"]
    assert len(shown(capsys, run, "--from", "1us", "--for", "400ms")) == 4


def test_what_the_kernel_dropped_is_shown_whatever_is_asked_for_as_nobody_knows_whose_it_was(run, capsys):
    text = run / "kvm-events.txt"
    text.write_text(text.read_text() + "CPU:1 [LOST 4 EVENTS]\n" + event(600_000, pid=44))
    for more in ((), ("--at", "c0h1")):
        lost = [line.split() for line in shown(capsys, run, *more) if " lost " in line]
        assert lost == [["0.500001", "-", "kvm", "lost", "4", "events", "of", "CPU", "1"]]


def test_as_json_each_is_a_line(run, capsys):
    documents = [json.loads(line) for line in shown(capsys, run, "--json")]
    assert [document.get("event", document.get("type")) for document in documents[-4:]] == ["mark"] + ["kvm_entry"] * 3


def test_without_a_recording_the_records_are_shown_and_that_is_said(run, capsys):
    (run / "kvm-events.txt").unlink()
    assert invoke(["trace", "show", str(run)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 5
    assert "events of KVM" in said.err


@pytest.mark.parametrize("wrong", [["--for", "0s"], ["--from", "x"], ["--at", "c7"], ["--at", "nobody"]])
def test_what_cannot_be_shown_is_refused(run, wrong):
    assert invoke(["trace", "show", str(run), *wrong]) == 2
