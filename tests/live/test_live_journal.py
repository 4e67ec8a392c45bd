"""The evidence of a live run when the run is cut short, or the disk is full: never a PASS that was not seen."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from live_rig import machine, wait_each_progresses, wait_progress, wait_until

from asid.audit import audit
from asid.live.journal import JournalReader

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]


def test_a_run_whose_daemon_was_killed_is_unknown_never_a_pass(rig):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client(), leaves=100)
    run_dir = daemon.run_dir
    daemon.kill()
    verdict = audit(run_dir).as_map()
    assert verdict["verdict"] == "UNKNOWN"
    assert not [name for name, found in verdict["guarantees"].items() if found["state"] == "broken"]
    done = subprocess.run(
        [sys.executable, "-m", "asid", "audit", str(run_dir)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 3, done.stdout + done.stderr
    listed = subprocess.run([sys.executable, "-m", "asid", "runs", "ls"], capture_output=True, text=True, timeout=30)
    assert "crashed" in listed.stdout


@pytest.mark.parametrize("cut", [1, 5, 8, 30])
def test_a_torn_tail_is_cut_and_the_rest_is_read(rig, cut):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    run_dir = daemon.run_dir
    daemon.kill()
    journal = run_dir / "journal.asid"
    with JournalReader(journal) as reader:
        whole = [record.seq for record in reader]
        assert reader.damage is None
    os.truncate(journal, journal.stat().st_size - cut)
    with JournalReader(journal) as reader:
        left = [record.seq for record in reader]
        assert reader.damage is not None and reader.damage.tail
    assert left == whole[: len(left)] and len(left) < len(whole)
    assert audit(run_dir).as_map()["verdict"] == "UNKNOWN"


def test_a_full_disk_is_said_the_machine_goes_on_and_the_verdict_is_unknown(rig):
    """A limit on the size of the daemon's files is what a full disk looks like to it."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    size = (daemon.run_dir / "journal.asid").stat().st_size
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
    wait_until(lambda: client.status()["state"] == "failed", what="it says that the journal is broken")
    assert "journal" in client.status()["warnings"][-1]
    for _ in range(2):
        wait_each_progresses(client)
    assert client.inject_nmi("c0h0", wait=True)["handled"] == 1, "it serves, without evidence"
    run = daemon.stop()
    assert run.verdict.verdict == "UNKNOWN"
    assert audit(run.root).as_map()["verdict"] == "UNKNOWN"


def test_a_run_directory_that_cannot_be_made_is_said_before_anything_is_started(rig):
    rig.state.joinpath("asid").write_text("a file where the directory should be")
    from asid.errors import AsidError

    with pytest.raises(AsidError) as caught:
        rig.start(machine(2))
    assert str(rig.state) in str(caught.value) or "it said" in str(caught.value)


def test_the_journal_is_on_disk_while_the_machine_runs(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    mark = client.mark("now").seq

    def on_disk() -> bool:
        with JournalReader(daemon.run_dir / "journal.asid") as reader:
            return any(record.seq == mark for record in reader)

    wait_until(on_disk)
    assert daemon.process.poll() is None
    daemon.stop()
