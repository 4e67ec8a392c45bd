"""Processes of a sweep are killed: its own, those that play for it, and workers of a cluster. No run is lost, none is
there twice, and the file is that of an undisturbed sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from swept import ASID, ROOT, always_dies, assert_within, dies_at_first, lives, never_ends, words_of

from asid.commands import invoke
from asid.errors import HostUnsuitable, NoAnswer
from asid.sweep.going import go
from asid.sweep.ledger import ledger_of
from asid.sweep.play import Job
from asid.sweep.pools import Local

pytestmark = [pytest.mark.slow, pytest.mark.live, pytest.mark.timeout(120)]

MATRIX = f"""
config   = "{ROOT / "configs/smt4.toml"}"
duration = "4ms"

[set]
"vm.0.on" = ["c0"]

[axes]
"policy.name" = ["none", "kick-every-exit", "asi"]
"policy.kick" = ["ack", "send"]
"machine.smt" = [2, 4]
seed          = "1..5"
"""
RUNS = 50
CLUSTER = """
import sys
from distributed import LocalCluster

def main():
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        print(cluster.scheduler_address, *(nanny.pid for nanny in cluster.workers.values()), flush=True)
        sys.stdin.read()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.toml").write_text(MATRIX)
    return tmp_path


@contextmanager
def sweeping(*args: str):
    """A sweep in a process of its own; ended when the block is left."""
    line = [*ASID, "sweep", "m.toml", *args]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def kept(output: str) -> list[bytes]:
    """Lines of rows that are whole."""
    path = ledger_of(Path(output))
    return path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []


def wait_until_kept(output: str, rows: int, process: subprocess.Popen[str]) -> None:
    assert_within(40, lambda: len(kept(output)) >= rows or process.poll() is not None, "rows are kept")
    assert process.poll() is None, process.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    """The file of a sweep that nothing disturbs."""
    there = tmp_path_factory.mktemp("whole")
    (there / "m.toml").write_text(MATRIX)
    assert invoke(["sweep", str(there / "m.toml"), "-o", str(there / "whole.parquet"), "--jobs", "2"]) == 0
    return (there / "whole.parquet").read_bytes()


def test_killed_in_the_middle_and_resumed_it_is_the_same_file(there, capsys, undisturbed):
    with sweeping("-o", "cut.parquet", "--jobs", "2") as process:
        wait_until_kept("cut.parquet", 10, process)
        players = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    assert_within(10, lambda: not any(lives(player) for player in players), "its processes end with it")
    before = len(kept("cut.parquet"))
    assert 10 <= before < RUNS
    assert invoke(["sweep", "m.toml", "-o", "cut.parquet", "--resume", "--jobs", "2"]) == 0
    assert Path("cut.parquet").read_bytes() == undisturbed
    assert " of them kept from before" in capsys.readouterr().err


def test_a_player_killed_in_the_middle_is_replaced(there, undisturbed):
    with sweeping("-o", "cut.parquet", "--jobs", "2") as process:
        for rows in (5, 20):
            wait_until_kept("cut.parquet", rows, process)
            players = [one for one in psutil.Process(process.pid).children() if "spawn_main" in words_of(one)]
            players[0].kill()
        said = process.communicate(timeout=40)
        assert process.returncode == 0, said
    assert Path("cut.parquet").read_bytes() == undisturbed


def test_an_interrupted_one_ends_its_processes_and_says_how_it_goes_on(there):
    with sweeping("-o", "cut.parquet", "--jobs", "2") as process:
        wait_until_kept("cut.parquet", 5, process)
        players = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "asid sweep m.toml -o cut.parquet --resume --jobs 2" in said
    assert "Traceback" not in said
    assert_within(10, lambda: not any(lives(player) for player in players), "its processes end with it")


# --- the loop and the processes that play


def jobs(count: int, **config: str) -> list[Job]:
    return [Job(number, dict(config), "", 1, "typical", 1, "") for number in range(count)]


@contextmanager
def local(processes: int):
    pool = Local(processes)
    try:
        yield pool
    finally:
        pool.close()


def nobody() -> None:
    """Nobody watches."""


def test_what_a_killed_process_had_is_done_by_another(tmp_path):
    found: list[int] = []
    with local(2) as pool:
        go(pool, jobs(8, mark=str(tmp_path / "died")), keep=lambda number, row: found.append(row["number"]),
           tell=nobody, deadline_s=30, how=dies_at_first)  # fmt: skip
    assert (tmp_path / "died").exists()
    assert Counter(found) == Counter(range(8))


def test_what_kills_every_process_ends_the_sweep():
    with local(1) as pool, pytest.raises(HostUnsuitable, match="killed"):
        go(pool, jobs(1), keep=lambda number, row: None, tell=nobody, deadline_s=30, how=always_dies)


def test_a_run_without_an_end_is_given_up_and_its_process_ends():
    with pytest.raises(NoAnswer, match="no run has ended"), local(1) as pool:
        go(pool, jobs(1), keep=lambda number, row: None, tell=nobody, deadline_s=2, how=never_ends)
    assert not [one for one in psutil.Process().children() if "spawn_main" in words_of(one)]


# --- a Dask cluster


@contextmanager
def cluster(there: Path):
    """A cluster of two workers: its address, and the pids of the workers."""
    (there / "cluster.py").write_text(CLUSTER)
    with (there / "cluster.err").open("w") as err, subprocess.Popen(
        [sys.executable, "cluster.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            address, *pids = process.stdout.readline().split()
            yield address, [int(pid) for pid in pids]
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                if lives(child):
                    child.kill()
            process.kill()


def test_a_cluster_makes_the_same_file_though_its_workers_are_killed(there, undisturbed):
    with cluster(there) as (address, workers):
        assert len(workers) == 2
        with sweeping("-o", "far.parquet", "--scheduler", address) as process:
            wait_until_kept("far.parquet", 8, process)
            os.kill(workers[0], signal.SIGKILL)
            wait_until_kept("far.parquet", 16, process)
            os.kill(workers[1], signal.SIGKILL)
            said = process.communicate(timeout=50)
            assert process.returncode == 0, said
    assert Path("far.parquet").read_bytes() == undisturbed


def test_a_scheduler_that_dies_is_said_and_the_rows_are_kept(there):
    with cluster(there) as (address, _), sweeping("-o", "far.parquet", "--scheduler", address) as process:
        wait_until_kept("far.parquet", 8, process)
        for one in psutil.Process().children():
            if "cluster.py" in words_of(one):
                one.kill()
        said = process.communicate(timeout=50)[1]
        assert process.returncode == 8, said
    assert "--resume" in said
    assert len(kept("far.parquet")) >= 8


def test_a_scheduler_that_is_not_there_is_an_error_of_seconds_and_leaves_nothing(there, capsys):
    assert invoke(["sweep", "m.toml", "-o", "far.parquet", "--scheduler", "tcp://127.0.0.1:9"]) == 7
    assert "no Dask scheduler answers" in capsys.readouterr().err
    assert [path.name for path in there.iterdir()] == ["m.toml"]


def test_what_is_no_address_is_a_usage_error(there, capsys):
    assert invoke(["sweep", "m.toml", "--scheduler", "localhost"]) == 2
    assert invoke(["sweep", "m.toml", "--scheduler", "tcp://127.0.0.1:9", "--jobs", "2"]) == 2
    assert "Leave --jobs out" in capsys.readouterr().err
