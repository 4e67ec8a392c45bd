"""KVM's own events of a run, from the tracefs of this host, where there is one and it may be read.

`mount -t tracefs none DIR` and ASID_TRACEFS=DIR is enough; nothing here mounts anything.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from live_rig import check_passes, machine, pass_time, wait_until

from asid.audit import audit
from asid.commands import invoke
from asid.errors import AsidError
from asid.guest.kvm import check_kvm
from asid.trace.record import check_thread_numbers, find_tracefs, instance, places

try:
    check_kvm()
    check_thread_numbers()
    TRACEFS = find_tracefs(places())
    with instance(TRACEFS):
        WHY_NOT = ""
except AsidError as refused:
    WHY_NOT = f"KVM's events cannot be recorded here: {refused}"

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.timeout(120, method="signal"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "never"),
]

REAL = machine(vm=[{"name": "tenant", "on": ["c*"], "guest": {"source": "kvm", "program": "mix", "rate": "2000/s"}}])


def recorder_of(daemon) -> psutil.Process:
    children = psutil.Process(daemon.process.pid).children()
    return next(child for child in children if "asid.trace.run_recorder" in child.cmdline())


def left(pid: int) -> bool:
    return (TRACEFS / "instances" / f"asid-{pid}").exists()


def size(daemon) -> int:
    return (daemon.run_dir / "kvm-events.txt").stat().st_size


def test_what_kvm_handed_over_is_what_the_hyperthreads_reported(rig):
    daemon = rig.start(REAL)
    pid = recorder_of(daemon).pid
    assert left(pid), "it records, in an instance of its own"
    wait_until(lambda: size(daemon) > 50_000, 60, "some events")
    run = daemon.stop()
    check_passes(run)
    assert [r.type for r in run.records()][:2] == ["run.begin", "kvm.recording"], "nothing was reported before"
    found = audit(run.root).figures["kvm"]
    assert (found["recorded"], found["why"], found["lost"], found["text_cut"]) == (True, "", 0, "")
    for of in ("c0h0", "c0h1"):
        row = found["agreement"][of]
        assert row["handed"] > 100
        assert abs(row["handed"] - row["reported"]) <= row["bound"]
    assert not left(pid)
    assert not psutil.pid_exists(pid)


def test_a_hyperthread_that_is_born_again_is_recorded_again(rig, capsys):
    daemon = rig.start(REAL)
    client = daemon.client()
    wait_until(lambda: size(daemon) > 5_000, 60, "some events")
    client.inject("kill", "c0h0", wait=True)
    at = size(daemon)
    wait_until(lambda: size(daemon) > at + 50_000, 60, "more events")
    run = daemon.stop()
    pids = {r.data["pid"] for r in run.records() if r.type == "spawn" and r.ht == 0}
    told = {r.data["pid"] for r in run.records() if r.type == "kvm.events" and r.data["of"] == "c0h0"}
    assert len(pids) == 2
    assert told == pids
    assert invoke(["trace", "show", str(run.root), "--at", "c0h0"]) == 0
    shown = capsys.readouterr().out
    assert " kvm " in shown and "kvm_userspace_exit" in shown and "ht.mode" in shown


def test_a_daemon_that_is_killed_leaves_no_recorder_and_nothing_in_tracefs(rig):
    daemon = rig.start(REAL)
    recorder = recorder_of(daemon)
    wait_until(lambda: size(daemon) > 5_000, 60, "some events")
    daemon.kill()
    wait_until(lambda: not recorder.is_running(), 20, "the end of the recorder")
    assert not left(recorder.pid)
    assert b"kvm_" in Path(daemon.run_dir, "kvm-events.txt").read_bytes()


def test_a_recorder_that_is_killed_costs_the_run_nothing_but_its_events(rig):
    daemon = rig.start(REAL)
    pid = recorder_of(daemon).pid
    wait_until(lambda: size(daemon) > 5_000, 60, "some events")
    os.kill(pid, signal.SIGKILL)
    pass_time(0.2)
    run = daemon.stop()
    check_passes(run)
    found = audit(run.root).figures["kvm"]
    assert "its recorder was killed" in found["why"]
    assert not left(pid), "the daemon has removed what it could not"
