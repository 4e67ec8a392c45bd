"""Deaths of real processes: whoever is killed or stopped, the rest goes on, and nothing is left behind (L4)."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from live_rig import (
    GONE_S,
    IDLE,
    check_passes,
    family,
    fences,
    hasty_fences,
    machine,
    pass_time,
    pid_of,
    stopped,
    story,
    wait_each_progresses,
    wait_progress,
    wait_ready,
    wait_until,
)

from asid.audit import audit
from asid.client import connect
from asid.core.rebirth import YOUNG_DEATHS_MAX, YOUNG_NS, Rebirth
from asid.errors import Busy, HostUnsuitable
from asid.live import instance
from asid.live.traps import VARIABLE

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]

MS = 1_000_000


def killed(client, place: str) -> int:
    """SIGKILL from outside; return when the successor is there."""
    before = pid_of(client, place)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pid_of(client, place) not in (0, before), 20, f"a successor of {place}")
    wait_ready(client)
    return before


# --- the daemon -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [IDLE, machine(4)], ids=["idle", "busy"])
def test_when_the_daemon_is_killed_everybody_ends_and_nothing_is_left(rig, config):
    daemon = rig.start(config)
    wait_each_progresses(daemon.client())
    assert len(family(daemon)) >= 4
    daemon.kill()
    wait_until(lambda: not family(daemon), GONE_S, "its children end")
    wait_until(lambda: not list(daemon.paths.root.glob("*.sock")), GONE_S, "no socket file")
    again = rig.start(config, instance=daemon.paths.name)
    wait_each_progresses(again.client())
    check_passes(again.stop())


def test_stopped_children_end_with_their_daemon_too(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    for place in ("c0h0", "c0"):
        os.kill(pid_of(client, place), signal.SIGSTOP)
    daemon.kill()
    wait_until(lambda: not family(daemon), GONE_S, "its children end, stopped or not")
    wait_until(lambda: not list(daemon.paths.root.glob("*.sock")), GONE_S, "no socket file")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_in_order(rig, signum):
    daemon = rig.start(machine(4))
    wait_progress(daemon.client())
    daemon.process.send_signal(signum)
    assert daemon.process.wait(30) == 0  # its verdict included
    run = daemon.stop()
    check_passes(run, "G1", "L2")
    assert run.manifest["ended"]["reason"] == signum.name
    wait_until(lambda: not family(daemon), GONE_S, "the fork server ends with it")


def test_a_signal_while_it_starts_stops_it_too(rig):
    """The loop acts upon a signal, so one that comes before the machine is ready is not forgotten."""
    daemon = rig.start(IDLE)
    daemon.stop()
    config = daemon.paths.root / "config.toml"
    second = rig.spawn(sys.executable, "-m", "asid.live.serve", str(config), "--instance", "early")
    wait_until(lambda: instance.is_locked(instance.instance_paths("early")))
    wait_until(lambda: psutil.Process(second.pid).children())
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=30)
    assert second.returncode == 0, err
    assert not list(instance.instance_paths("early").root.glob("*.sock"))


def test_a_stop_ends_soon_whatever_is_under_way(rig):
    daemon = rig.start(machine(4))
    client = daemon.client()
    wait_progress(client)
    client.inject_nmi("c0", count=5_000, rate_hz=1_000)
    client.inject_exit("c0h1", reason="CPUID", count=1_000_000, rate_hz=100_000)
    client.inject("stall", "c0h2", for_ms=30_000)
    client.gate_hold("c0")
    os.kill(pid_of(client, "c0h3"), signal.SIGKILL)
    os.kill(pid_of(client, "c0"), signal.SIGKILL)
    run = daemon.stop(timeout_s=20.0)  # long before the stall is over
    assert run.verdict.passed, story(run)


def test_a_second_stop_with_force_does_not_wait(rig):
    """The patience of a stop is two seconds; this daemon's is without end, so only the second signal can end it."""
    config = rig.start(IDLE, instance="first").paths.root / "config.toml"
    code = (
        "import sys, asid.live.daemon\n"
        "asid.live.daemon.STOP_NS = 1 << 62\n"
        "from asid.live.serve import main\n"
        f"sys.exit(main([{str(config)!r}, '--instance', 'patient']))"
    )
    daemon = rig.spawn(sys.executable, "-c", code)
    endpoints = wait_until(lambda: instance.read_endpoints(instance.instance_paths("patient")))
    with connect("patient") as client:
        client.gate_hold("c0")
        wait_until(lambda: all(ht["mode"] == "PARKED" for ht in client.status()["cores"][0]["hts"]))
        # It will never leave in order; and it has no lease, so nobody waits for its answer and fences it.
        os.kill(pid_of(client, "c0h0"), signal.SIGSTOP)
        daemon.send_signal(signal.SIGTERM)
        wait_until(lambda: client.status()["state"] == "draining")
        wait_until(lambda: pid_of(client, "c0h1") == 0, what="who can leave in order has left")
        assert pid_of(client, "c0h0") != 0
        daemon.send_signal(signal.SIGTERM)
        _, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert audit(endpoints.run_dir).as_map()["verdict"] == "PASS"


def test_a_second_daemon_is_refused_and_the_first_is_unharmed(rig):
    daemon = rig.start(machine(2), instance="one")
    client = daemon.client()
    inode = daemon.paths.ctl.stat().st_ino
    with pytest.raises(Busy):
        rig.start(IDLE, instance="one")
    done = subprocess.run(
        [sys.executable, "-m", "asid.live.serve", str(daemon.paths.root / "config.toml"), "--instance", "one"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == Busy.exit_code and "running already" in done.stderr
    assert daemon.paths.ctl.stat().st_ino == inode
    wait_progress(client)
    check_passes(daemon.stop())


def test_a_paused_daemon_loses_nothing_and_nobody_is_fenced(rig):
    daemon = rig.start(machine(2, deadline="50ms"))
    client = daemon.client()
    wait_progress(client)
    os.kill(daemon.process.pid, signal.SIGSTOP)
    pass_time(1.0)
    os.kill(daemon.process.pid, signal.SIGCONT)
    wait_progress(client)
    counts = check_passes(daemon.stop(), "G1", "G2")
    assert counts["leave"] > 50


# --- hyperthreads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("smt", [2, 4])
def test_a_killed_hyperthread_comes_back_and_its_siblings_were_served_meanwhile(rig, smt):
    daemon = rig.start(machine(smt))
    client = daemon.client()
    wait_progress(client)
    for ht in (1, 0, 1):
        killed(client, f"c0h{ht}")
        wait_each_progresses(client)
    status = client.status()
    assert status["counters"]["deaths"] == status["counters"]["respawns"] == 3
    counts = check_passes(daemon.stop(), "G1", "G5", "G11", "L4")
    assert counts["gate.ready"] == smt + 3, "each life is announced once"


def test_a_killed_hyperthread_without_a_vcpu_comes_back_too(rig):
    daemon = rig.start(machine(2, vm=[{"name": "a", "on": ["c0h0"], "guest": {"source": "idle"}}]))
    client = daemon.client()
    killed(client, "c0h1")
    wait_each_progresses(client)
    check_passes(daemon.stop(), "G11")


def test_all_hyperthreads_at_once(rig):
    daemon = rig.start(machine(4))
    client = daemon.client()
    wait_progress(client)
    pids = [pid_of(client, f"c0h{ht}") for ht in range(4)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(pid_of(client, f"c0h{ht}") not in (0, pids[ht]) for ht in range(4)))
    wait_ready(client)
    wait_each_progresses(client)
    check_passes(daemon.stop(), "G11", "L4")


def test_a_stopped_hyperthread_is_fenced_at_the_kick_deadline_and_comes_back(rig):
    daemon = rig.start(machine(2, deadline="400ms"))
    client = daemon.client()
    wait_progress(client)
    before = pid_of(client, "c0h1")
    while pid_of(client, "c0h1") == before:
        # It may be caught without a lease, when nobody needs to wait for it; then let it go and catch it again.
        with contextlib.suppress(ProcessLookupError):
            os.kill(before, signal.SIGSTOP)
            pass_time(1.0)
            os.kill(before, signal.SIGCONT)
            pass_time(0.02)
    wait_until(lambda: pid_of(client, "c0h1") not in (0, before), what="its successor")
    wait_each_progresses(client)
    run = daemon.stop()
    check_passes(run, "G11", "L1", "L4")
    assert fences(run).count((1, 1)) == 1
    assert hasty_fences(run, 400 * MS) == []
    statuses = [r.data["status"] for r in run.records() if r.type == "death" and r.data["inc"] == 1 and r.ht == 1]
    assert statuses == [-signal.SIGKILL]


def test_answered_kicks_fence_nobody(rig):
    """Their timers run out long after the answer; a sibling that answered each kick lives."""
    daemon = rig.start(machine(2, deadline="50ms", rate="500/s"))
    client = daemon.client()
    wait_progress(client, leaves=150)
    run = daemon.stop()
    counts = check_passes(run)
    assert counts["gate.answer"] > 20
    assert hasty_fences(run, 50 * MS) == []


def test_a_crash_loop_ends_with_the_hyperthread_out_and_the_core_goes_on(rig, monkeypatch):
    lives = YOUNG_DEATHS_MAX + 1
    traps = " ".join(f"c0h1.{inc}:SEND_READY:1:KILL" for inc in range(2, lives + 2))
    monkeypatch.setenv(VARIABLE, f"c0h1.1:SEND_ASK:1:KILL {traps}")
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_until(lambda: client.status()["warnings"], 20, "it is given up")
    status = client.status()
    assert status["state"] == "degraded"
    assert "c0h1 died too often" in status["warnings"][0]
    wait_progress(client)
    monkeypatch.delenv(VARIABLE)
    assert client.plug("c0h1")["changed"] == ["c0h1"]
    wait_ready(client)
    assert client.status()["warnings"] == [], "it is back"
    run = daemon.stop()
    assert run.verdict.guarantees["G11"]["state"] == "held", story(run)
    assert not [p for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE]


def test_a_hyperthread_given_up_can_be_plugged_again(rig, monkeypatch):
    traps = " ".join(f"c0h1.{inc}:SEND_READY:1:KILL" for inc in range(2, YOUNG_DEATHS_MAX + 2))
    monkeypatch.setenv(VARIABLE, f"c0h1.1:SEND_ASK:1:KILL {traps}")
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_until(lambda: client.status()["warnings"], 20, "it is given up")
    assert client.plug("c0h1")["changed"] == ["c0h1"]
    wait_ready(client)
    wait_each_progresses(client)


def test_pauses_between_births_grow_and_an_old_death_is_forgiven():
    rebirth = Rebirth()
    delays = [rebirth.after(1) for _ in range(YOUNG_DEATHS_MAX)]
    assert all(later == 2 * sooner for sooner, later in itertools.pairwise(delays))  # type: ignore[operator]
    assert rebirth.after(1) is None
    assert rebirth.after(YOUNG_NS) == 0
    assert rebirth.after(1) == delays[0]


def test_no_descriptor_is_lost_with_a_death(rig):
    daemon = rig.start(machine(2, table=""))
    client = daemon.client()
    wait_each_progresses(client)
    killed(client, "c0h1")
    killed(client, "c0")
    before = psutil.Process(daemon.process.pid).num_fds()
    for place in ("c0h0", "c0h1", "c0h0", "c0h1"):
        killed(client, place)
    wait_until(lambda: psutil.Process(daemon.process.pid).num_fds() <= before, GONE_S, "descriptors of the daemon")


def test_a_host_without_descriptors_keeps_what_runs_and_brings_the_rest_back_later(rig):
    """Whatever step of a birth it is that gets no descriptor: what was begun is undone, and tried again later."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir(f"/proc/{daemon.process.pid}/fd"))) + 1
    for room in (0, 2, 4):
        before = pid_of(client, "c0h1")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (used - 5 + room, limits[1]))
        os.kill(before, signal.SIGKILL)
        wait_until(lambda b=before: pid_of(client, "c0h1") != b)
        wait_progress(client, leaves=5)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
        wait_ready(client)
        wait_each_progresses(client)
    run = daemon.stop()
    assert run.verdict.passed, story(run)


# --- coordinators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("smt", [2, 4])
def test_a_killed_coordinator_comes_back_hears_everybody_and_serves_again(rig, smt):
    daemon = rig.start(machine(smt))
    client = daemon.client()
    wait_progress(client)
    hyperthreads = [pid_of(client, f"c0h{ht}") for ht in range(smt)]
    for _ in range(2):
        killed(client, "c0")
        wait_progress(client)
    assert [pid_of(client, f"c0h{ht}") for ht in range(smt)] == hyperthreads, "nobody else died of it"
    counts = check_passes(daemon.stop(), "G1", "G5", "G11", "L4")
    assert counts["gate.resync"] >= smt


def test_who_stays_silent_when_a_coordinator_comes_back_is_fenced(rig):
    daemon = rig.start(machine(2, table=""))
    client = daemon.client()
    wait_each_progresses(client)
    silent = pid_of(client, "c0h1")
    os.kill(silent, signal.SIGSTOP)
    os.kill(pid_of(client, "c0"), signal.SIGKILL)
    assert client.inject_exit("c0h0", reason="IO_INSTRUCTION", full="yes", wait=True, timeout_s=20.0)["handled"] == 1
    wait_ready(client)
    assert pid_of(client, "c0h1") != silent
    run = daemon.stop()
    check_passes(run, "G1", "G11", "L1")
    assert fences(run).count((1, 1)) == 1


def test_leases_go_on_while_there_is_no_coordinator(rig):
    daemon = rig.start(machine(2, table=""))
    client = daemon.client()
    wait_each_progresses(client)
    os.kill(pid_of(client, "c0"), signal.SIGSTOP)
    for _ in range(3):
        wait_each_progresses(client)
    assert client.inject_exit("c0h0", reason="CPUID", full="no", count=10, wait=True)["handled"] == 10
    assert client.inject_nmi("c0h1", wait=True)["handled"] == 1, "an NMI asks nobody"
    os.kill(pid_of(client, "c0"), signal.SIGCONT)
    assert client.inject_exit("c0h0", reason="IO_INSTRUCTION", full="yes", wait=True)["handled"] == 1
    check_passes(daemon.stop(), "G8")


def test_a_paused_coordinator_fences_nobody_when_it_wakes(rig):
    daemon = rig.start(machine(4, deadline="50ms", rate="200/s"))
    client = daemon.client()
    wait_progress(client)
    coordinator = pid_of(client, "c0")
    os.kill(coordinator, signal.SIGSTOP)
    pass_time(1.0)
    woken_ns = time.monotonic_ns()
    os.kill(coordinator, signal.SIGCONT)
    wait_progress(client)
    run = daemon.stop()
    check_passes(run, "G1", "L1")
    early = [r for r in run.records() if r.type == "gate.fence" and 0 <= woken_ns + 50 * MS - r.ts < 550 * MS]
    assert early == [], "it was it that slept, not they: each has the whole deadline from now on"


def test_a_coordinator_and_its_hyperthreads_at_once(rig):
    daemon = rig.start(machine(4))
    client = daemon.client()
    for victims in (("c0", "c0h0"), ("c0h1", "c0", "c0h2", "c0h3", "c0h0")):
        wait_progress(client)
        pids = {place: pid_of(client, place) for place in victims}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda p=pids: all(pid_of(client, place) not in (0, pid) for place, pid in p.items()))
        wait_ready(client)
        wait_each_progresses(client)
    check_passes(daemon.stop(), "G5", "G11", "L4")


def test_a_hyperthread_that_dies_while_its_coordinator_comes_back(rig, monkeypatch):
    """The new coordinator was born believing it alive; it hears of its death before it hears from it."""
    monkeypatch.setenv(VARIABLE, "c0.2:RECEIVE:1:STOP")
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    os.kill(pid_of(client, "c0"), signal.SIGKILL)
    wait_until(lambda: pid_of(client, "c0") in stopped(daemon), what="the second coordinator's stop")
    before = pid_of(client, "c0h1")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pid_of(client, "c0h1") == 0)
    os.kill(pid_of(client, "c0"), signal.SIGCONT)
    wait_until(lambda: pid_of(client, "c0h1") not in (0, before))
    wait_ready(client)
    wait_each_progresses(client)
    check_passes(daemon.stop(), "G11", "L4")


def test_a_held_gate_stays_held_over_the_death_of_its_coordinator(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    client.gate_hold("c0")
    killed(client, "c0")
    wait_until(lambda: client.call("gate.get").ret["gates"][0]["phase"] == "held")
    seq = client.ping().ret["seq"]
    pass_time(0.3)
    client.gate_release("c0")
    wait_each_progresses(client)
    run = daemon.stop()
    check_passes(run, "G11")
    admitted = [r for r in run.records() if r.seq > seq and r.type in ("gate.admit", "gate.release")]
    assert admitted[0].type == "gate.release", "nobody was let in before"


def test_an_unplug_survives_the_death_of_the_coordinator_that_was_told(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    os.kill(pid_of(client, "c0"), signal.SIGSTOP)
    other = daemon.client(name="other")
    coordinator = pid_of(client, "c0")
    killer = threading.Timer(0.2, os.kill, (coordinator, signal.SIGKILL))
    killer.start()
    assert other.unplug("c0h1")["changed"] == ["c0h1"]
    killer.join()
    assert pid_of(client, "c0h1") == 0
    wait_ready(client)
    wait_progress(client)
    check_passes(daemon.stop(), "L4")


def test_the_fork_server_is_nobody_special(rig):
    """It is the children's parent. Its death takes them along; the daemon starts another and all come back."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    [server] = [pid for name, pid in family(daemon).items() if "fork server" in name]
    before = [pid_of(client, place) for place in ("c0h0", "c0h1")]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: all(pid_of(client, f"c0h{ht}") not in (0, before[ht]) for ht in range(2)))
    wait_ready(client)
    wait_each_progresses(client)
    run = daemon.stop()
    assert run.verdict.passed, story(run)


def test_a_start_in_which_somebody_dies_again_and_again_ends_soon(rig, monkeypatch):
    """Not after the 30 s that a slow host is given: what ails it is no accident."""
    monkeypatch.setenv(VARIABLE, " ".join(f"c0h1.{inc}:SEND_READY:1:KILL" for inc in range(1, YOUNG_DEATHS_MAX + 2)))
    with pytest.raises(HostUnsuitable, match=r"c0h1 did not come up \(c0h1 died again and again\)"):
        rig.start(machine(2))
