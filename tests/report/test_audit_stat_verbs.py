"""`asid audit` and `asid stat` as a user types them, on runs on disk."""

from __future__ import annotations

import json

import pytest

from asid.audit import audit
from asid.commands import invoke
from asid.core.record import Record
from asid.live.journal import JournalWriter
from asid.live.rundir import create_run
from asid.report.stat import fold

BEGIN = {"name": "smt2", "policy": "asi", "kick": "ack", "seed": 42, "cores": 1, "smt": 2, "engine": "live"}
ASK = {"vm": 1, "req": 1}
EXIT = {"reason": "CPUID", "isa": "vmx", "full": False, "n": 3, "sum_ns": 300, "min_ns": 90, "max_ns": 110,
        "hist": [[26, 3]]}  # fmt: skip

STARTS = [
    ("spawn", -1, {"what": "coordinator", "pid": 100, "inc": 1}),
    *(("spawn", ht, {"what": "ht", "pid": 101 + ht, "inc": 1}) for ht in range(2)),
]


def records(*, leak: bool = False, end: bool = True) -> list[Record]:
    told: list[tuple[str, int, dict]] = [("run.begin", -1, BEGIN), *STARTS, ("exit", 0, EXIT), ("gate.ask", 0, ASK)]
    if leak:
        for ht, new, via in ((0, "GUEST", {}), (1, "HOST", {"via": "grant"}), (1, "PARKED", {})):
            told.append(("ht.mode", ht, {"inc": 1, "old": "PARKED", "new": new, "vm": 1, **via}))
    if end:
        told.append(("run.end", -1, {"reason": "stop"}))
    return [
        Record(seq, 0, 1_000 * seq, kind, -1 if kind.startswith("run.") else 0, ht, 0, 0, data)
        for seq, (kind, ht, data) in enumerate(told, 1)
    ]


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ASID_INSTANCE", raising=False)

    def make(told: list[Record], name: str = "smt2"):
        resolved = {"vm": [{"name": "tenant-a"}]}
        run = create_run(name, config_text="", resolved=resolved, seed=42)
        writer = JournalWriter(run.journal)
        writer.append(told)
        writer.close()
        return run

    return make


@pytest.mark.parametrize(
    ("how", "code", "word"),
    [({}, 0, "PASS"), ({"leak": True}, 1, "FAIL"), ({"end": False}, 3, "UNKNOWN")],
)
def test_audit_says_it_and_exits_with_it(make_run, capsys, how, code, word):
    run = make_run(records(**how))
    assert invoke(["audit", run.name]) == code
    assert capsys.readouterr().out.startswith(f"{word}: {run.name}")
    assert invoke(["audit", str(run.path), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == word and document["schema"] == "audit/1"
    assert document["guarantees"] == json.loads(json.dumps(audit(run.journal).as_map()["guarantees"]))


def test_audit_takes_the_latest(make_run, capsys):
    make_run(records(leak=True))
    make_run(records())
    assert invoke(["audit"]) == 0
    assert capsys.readouterr().out.startswith("PASS")


def test_audit_of_a_run_that_is_still_going_says_so(make_run, capsys):
    run = make_run(records(end=False))
    assert invoke(["audit"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("UNKNOWN") and "is still going; its end is missing" in err
    run.end("stop")
    assert invoke(["audit"]) == 3
    assert "still going" not in capsys.readouterr().err


def test_audit_of_nothing(make_run, capsys):
    assert invoke(["audit"]) == 2
    assert "no run yet" in capsys.readouterr().err
    make_run(records())
    assert invoke(["audit", "nosuchrun"]) == 2
    captured = capsys.readouterr()
    assert "nosuchrun" in captured.err and "hint:" in captured.err and captured.out == ""


def test_audit_changes_nothing(make_run, capsys):
    run = make_run(records(leak=True))
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    invoke(["audit", run.name])
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_stat_of_a_run(make_run, capsys):
    run = make_run(records())
    assert invoke(["stat", run.name]) == 0
    out = capsys.readouterr().out
    assert "CPUID        3   100.00%" in out and "Total 3 exits" in out
    assert invoke(["stat", "latest", "--by", "ht", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["key"], row["n"]) for row in document["groups"]] == [("c0h0", 3)]
    assert document["totals"]["exits"] == 3 and document["source"] == str(run.path)


def test_stat_without_a_daemon_shows_the_latest_run(make_run, capsys):
    run = make_run(records())
    assert invoke(["stat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == str(run.path)


def test_stat_of_an_instance_that_does_not_run_is_no_other_runs_numbers(make_run, capsys):
    make_run(records())
    assert invoke(["stat", "--instance", "mine"]) == 7
    assert capsys.readouterr().out == ""


def test_stat_of_an_ended_run_reads_its_stats(make_run, capsys):
    run = make_run(records())
    stats = fold(records()).as_map()
    stats["totals"]["kicks"] = 77
    run.write_json("stats.json", stats)
    assert invoke(["stat", run.name]) == 0
    assert "kicks 0" in capsys.readouterr().out, "while the run goes on the journal knows better"
    run.end("stop")
    assert invoke(["stat", run.name]) == 0
    assert "kicks 77" in capsys.readouterr().out
