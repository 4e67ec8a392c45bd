"""asid sweep: rows in the order of the matrix, kept as they come; whatever stops it, a resume makes the same file."""

from __future__ import annotations

from collections import Counter

import pyarrow.parquet
import pytest
from swept import ROOT, RUNS, SMT2, Inline

from asid.audit import audit
from asid.seeds import digest_of
from asid.sim.costs import costs_of
from asid.simulating import load_for, machine_of
from asid.sweep import going, play
from asid.sweep.ledger import ledger_of

MS = 1_000_000


def rows_in(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def test_one_row_a_run_in_the_order_of_the_matrix(run, matrix, tmp_path):
    found = run("small.toml")
    assert found.code == 0, found.err
    rows = rows_in(tmp_path / "small.parquet")
    assert [row["run"] for row in rows] == list(range(RUNS))
    assert [(row["policy.name"], row["policy.kick"], row["seed"]) for row in rows[::3]] == [
        ("none", "bare", 1), ("asi", "ack", 1), ("asi", "send", 1), ("asi-stun", "stun", 1)
    ]  # fmt: skip
    assert [row["seed"] for row in rows[:3]] == [1, 2, 3]
    assert {row["status"] for row in rows} == {"done"}
    assert not ledger_of(tmp_path / "small.parquet").exists()
    assert "asi-stun" in found.out
    assert "6 left out that would repeat another" in found.err


def test_a_row_is_what_the_audit_says_of_that_run(run, matrix, tmp_path):
    run("small.toml")
    row = rows_in(tmp_path / "small.parquet")[4]
    loaded = load_for(SMT2, {"policy.name": "asi", "policy.kick": "ack", "seed": 2})
    records = machine_of(loaded, costs_of("typical")).play(2 * MS).records
    verdict = audit(records).as_map()
    assert row["digest"] == digest_of(records)
    assert row["verdict"] == verdict["verdict"]
    assert row["exits"] == verdict["figures"]["exits"] > 0
    assert row["gate_wait_p50_ns"] == verdict["figures"]["gate_waits"]["p50_ns"]
    assert row["exposure_count"] == verdict["exposure"]["count"]
    assert row["leaks_concurrent"] == verdict["figures"]["leaks"]["concurrent"]


@pytest.mark.parametrize("after", [1, 5, RUNS - 1])
def test_an_interrupted_sweep_says_how_it_goes_on_and_comes_to_the_same_file(run, matrix, tmp_path, after):
    run("small.toml", "-o", "whole.parquet")
    cut = run("small.toml", "-o", "cut.parquet", pool=Inline(ends_after=after))
    assert cut.code == 130
    assert cut.pool.closed
    assert f"{after} of {RUNS} runs are kept" in cut.err
    assert "asid sweep small.toml -o cut.parquet --resume" in cut.err
    assert not (tmp_path / "cut.parquet").exists()
    rest = run("small.toml", "-o", "cut.parquet", "--resume")
    assert rest.code == 0, rest.err
    assert f"{after} of them kept from before" in rest.err
    assert sorted(cut.pool.played + rest.pool.played) == list(range(RUNS))
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_lost_run_is_played_again_and_none_is_there_twice(run, matrix, tmp_path):
    run("small.toml", "-o", "whole.parquet")
    found = run("small.toml", "-o", "lost.parquet", pool=Inline(loses=4))
    assert found.code == 0, found.err
    assert Counter(found.pool.played) == Counter(range(RUNS))
    assert (tmp_path / "lost.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_run_that_kills_everybody_ends_the_sweep(run, matrix):
    found = run("small.toml", pool=Inline(loses=1_000))
    assert found.code == 6
    assert f"{going.LOSSES_MAX} times" in found.err


def test_no_run_ended_is_no_wait_for_ever(run, matrix):
    class Hung(Inline):
        def ended(self, futures, seconds):
            return set()

    found = run("small.toml", "--deadline", "1ms", pool=Hung())
    assert found.code == 8
    assert "no run has ended" in found.err
    assert found.pool.closed


def test_an_unfinished_sweep_is_not_begun_anew_without_a_word(run, matrix, tmp_path):
    run("small.toml", pool=Inline(ends_after=2))
    again = run("small.toml")
    assert again.code == 10
    assert "2 of 12 rows" in again.err
    assert "--resume" in again.err
    assert again.pool.played == []


def test_a_resume_of_another_matrix_is_refused(run, matrix):
    run("small.toml", pool=Inline(ends_after=2))
    matrix.write_text(matrix.read_text().replace("2ms", "3ms"))
    again = run("small.toml", "--resume")
    assert again.code == 10
    assert "another one" in again.err
    assert again.pool.played == []


def test_a_finished_sweep_is_shown_again_and_no_file_is_overwritten(run, matrix, tmp_path):
    first = run("small.toml", "--resume")
    before = (tmp_path / "small.parquet").read_bytes()
    again = run("small.toml", "--resume")
    assert (again.code, again.out, again.pool.played) == (0, first.out, [])
    refused = run("small.toml")
    assert refused.code == 10
    matrix.write_text(matrix.read_text().replace("2ms", "3ms"))
    assert run("small.toml", "--resume").code == 2
    assert (tmp_path / "small.parquet").read_bytes() == before


def test_killed_after_the_file_was_there_it_ends_as_if_nothing_had_been(run, matrix, tmp_path):
    output = tmp_path / "small.parquet"
    run("small.toml", pool=Inline(ends_after=RUNS - 1))
    rows = ledger_of(output).read_bytes()
    run("small.toml", "--resume")
    whole = output.read_bytes()
    ledger_of(output).write_bytes(rows)
    assert run("small.toml", "--resume").code == 0
    assert output.read_bytes() == whole
    assert not ledger_of(output).exists()


def test_a_foreign_file_that_came_meanwhile_is_not_overwritten(run, matrix, tmp_path):
    run("small.toml", pool=Inline(ends_after=3))
    (tmp_path / "small.parquet").write_text("mine")
    found = run("small.toml", "--resume")
    assert found.code == 2
    assert "no Parquet of a sweep" in found.err
    assert (tmp_path / "small.parquet").read_text() == "mine"


def test_a_foreign_file_that_came_while_runs_were_played_is_not_overwritten(run, matrix, tmp_path, monkeypatch):
    output = tmp_path / "small.parquet"

    class Meanwhile(Inline):
        def close(self):
            output.write_text("mine")

    found = run("small.toml", pool=Meanwhile())
    assert (found.code, output.read_text()) == (10, "mine")
    assert "another file has come there meanwhile" in found.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "small.parquet", "small.parquet.unfinished", "small.toml"
    ]  # fmt: skip
    output.unlink()
    again = run("small.toml", "--resume")
    assert (again.code, again.pool.played, len(rows_in(output))) == (0, [], RUNS)


def test_a_policy_that_nobody_has_tested_is_not_even_imported(run, matrix, tmp_path, monkeypatch):
    (tmp_path / "lazy_policy.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for place in ('[set]\npolicy.name = "lazy_policy:Lazy"\n[axes]\n', '[axes]\npolicy.name = ["lazy_policy:Lazy"]\n'):
        matrix.write_text(f'config = "{SMT2}"\nduration = "1ms"\n{place}machine.smt = [2]\n')
        found = run("small.toml")
        assert found.code == 10
        assert "asid policy test lazy_policy:Lazy" in found.err


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry"])
def test_a_sweep_of_real_guests_does_not_begin(run, matrix, more):
    matrix.write_text(f'config = "{ROOT / "configs/kvm-smt2.toml"}"\nduration = "1ms"\n[axes]\nmachine.smt = [2, 4]\n')
    found = run("small.toml", *more)
    assert found.code == 2
    assert "no combination can be run" in found.err
    assert 'vm.0.guest.source = "kvm"' in found.err
    assert found.pool.played == []


def test_what_no_machine_can_be_is_a_row_that_says_so(run, matrix, tmp_path):
    matrix.write_text(f'config = "{SMT2}"\nduration = "1ms"\n[axes]\nmachine.smt = [1, 2]\nseed = [7, 5]\n')
    dry = run("small.toml", "--dry-run")
    assert "2 runs would be played" in dry.out
    assert "2 are refused" in dry.out
    found = run("small.toml")
    assert found.code == 0, found.err
    rows = rows_in(tmp_path / "small.parquet")
    assert [(row["machine.smt"], row["seed"], row["status"]) for row in rows] == [
        (1, 7, "refused"), (1, 5, "refused"), (2, 7, "done"), (2, 5, "done")
    ]  # fmt: skip
    assert "c0h1" in rows[0]["words"]
    assert rows[0]["exits"] is None
    assert found.pool.played == [3, 2]


def test_a_fault_of_the_machine_is_a_row_and_a_failure(run, matrix, tmp_path, monkeypatch):
    def breaks(loaded, costs):
        machine = machine_of(loaded, costs)
        if loaded.config.seed == 2:
            machine.play = lambda duration_ns: (_ for _ in ()).throw(AssertionError("a check of its own"))
        return machine

    monkeypatch.setattr(play, "machine_of", breaks)
    found = run("small.toml")
    assert found.code == 1
    rows = rows_in(tmp_path / "small.parquet")
    assert [row["status"] for row in rows[:3]] == ["done", "fault", "done"]
    assert rows[1]["words"] == "AssertionError: a check of its own"
    assert "1 fault" in found.out


def test_a_dry_run_leaves_nothing(run, matrix, tmp_path):
    found = run("small.toml", "--dry-run", "--json")
    assert found.code == 0
    assert (found.json()["runs"], found.json()["left_out"], found.json()["refused"]) == (RUNS, 6, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_json_has_the_medians_and_the_digest_of_the_file(run, matrix):
    document = run("small.toml", "--json").json()
    assert document["schema"] == "sweep/1"
    assert len(document["sha256"]) == 64
    assert [(row["policy"], row["kick"], row["runs"]) for row in document["medians"]] == [
        ("none", "bare", 3), ("asi", "ack", 3), ("asi", "send", 3), ("asi-stun", "stun", 3)
    ]  # fmt: skip


def test_without_its_libraries_the_verb_says_how_to_get_them(run, matrix, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    found = run("small.toml")
    assert found.code == 6
    assert "pip install 'asid[sweep]'" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_another_asid_on_a_worker_is_no_row(matrix):
    job = play.Job(0, {}, "ack", 1, "typical", MS, "another")
    with pytest.raises(play.WireVersion, match="another asid"):
        play.play(job)
