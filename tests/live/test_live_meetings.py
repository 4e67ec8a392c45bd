"""Machine checks of all siblings on the live machine: the rendezvous, who does not come to it, who dies in it."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from typing import Any

import psutil
import pytest
from live_rig import (
    check_passes,
    injections,
    machine,
    pass_time,
    pid_of,
    stopped,
    wait_each_progresses,
    wait_ready,
    wait_until,
)

from asid.client import Client, Run

pytestmark = [pytest.mark.live, pytest.mark.slow]

SHORT = {"timeout": "200ms"}


@pytest.fixture
def meeting(rig):
    """Four siblings with guests under load."""
    daemon = rig.start(machine(4))
    wait_each_progresses(daemon.client())
    return daemon


def handlers(run: Run) -> dict[int, list[dict[str, Any]]]:
    """What each handler said of its rendezvous, by number of the machine check."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in run.records():
        if record.type == "intr" and record.data.get("broadcast"):
            found[record.data["broadcast"]].append({**record.data, "ht": record.ht})
    return found


def modes(client: Client) -> list[str]:
    return [ht["mode"] for ht in client.status()["cores"][0]["hts"]]


def checks(client: Client) -> list[int]:
    """Machine checks raised, by hyperthread."""
    return [ht["mces"] for ht in client.status()["cores"][0]["hts"]]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5, "it is stopped")


def test_four_siblings_meet_a_hundred_times_under_load(meeting):
    client = meeting.client()
    for number in range(100):
        reply = client.inject_mce(f"c0h{number % 4}", scope="broadcast", wait=True)
        assert (reply["accepted"], reply["handled"]) == (4, 4)
    wait_each_progresses(client)
    run = meeting.stop()
    check_passes(run, "G2", "G8", "G10")
    met = handlers(run)
    assert len(met) == 100
    for each in met.values():
        assert sorted(data["order"] for data in each) == [1, 2, 3, 4]
        assert [data["order"] for data in each if data["role"] == "monarch"] == [1]
        assert {data["role"] for data in each} == {"monarch", "joined"}


def test_bursts_merge_and_nobody_is_missed(meeting):
    client = meeting.client()
    for _ in range(5):
        reply = client.inject_mce("c0", scope="broadcast", count=20, wait=True)
        assert reply["handled"] + reply["merged"] == reply["accepted"] == 80
        client.inject_mce("c0h1", wait=True)
    wait_each_progresses(client)
    run = meeting.stop()
    counts = check_passes(run, "G8", "G10")
    assert "mce.timeout" not in counts
    assert all(len(results) == 1 for results in injections(run).values())


def test_an_nmi_is_taken_in_the_rendezvous(rig):
    daemon = rig.start(machine(2, table=""))
    client = daemon.client()
    wait_until(lambda: modes(client) == ["GUEST"] * 2, 20, "all are in guest")
    pid = pid_of(client, "c0h1")
    stop(pid)
    client.inject_mce("c0h0", scope="broadcast")
    wait_until(lambda: modes(client)[0] == "HOST", 5, "it waits in its handler")
    assert client.inject_nmi("c0h0", wait=True)["handled"] == 1
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: modes(client) == ["GUEST"] * 2, 20, "all are in guest again")
    run = daemon.stop()
    counts = check_passes(run, "G8", "G10")
    assert "mce.timeout" not in counts
    depths = [(r.data["what"], r.data["depth"]) for r in run.records() if r.type == "intr" and r.ht == 0]
    assert depths == [("nmi", 2), ("mce", 1)]


def test_a_storm_of_nmis_keeps_nobody_from_the_rendezvous(meeting):
    client = meeting.client()
    client.inject_nmi("c0", count=2_000, rate_hz=2_000)
    for _ in range(50):
        assert client.inject_mce("c0h0", scope="broadcast", wait=True)["handled"] == 4
    wait_each_progresses(client)
    run = meeting.stop()
    check_passes(run, "G8", "G10")
    assert len(handlers(run)) == 50


def test_a_stopped_sibling_is_given_up_and_fenced_and_the_run_goes_on(rig):
    daemon = rig.start(machine(4, mce=SHORT, table=""))
    client = daemon.client()
    wait_until(lambda: modes(client) == ["GUEST"] * 4, 20, "all are in guest")
    pid = pid_of(client, "c0h2")
    stop(pid)
    reply = client.inject_mce("c0h0", scope="broadcast", wait=True)
    assert (reply["handled"], reply["lost"]) == (3, 1)
    assert pid_of(client, "c0h2") != pid
    wait_ready(client)
    wait_until(lambda: modes(client) == ["GUEST"] * 4, 20, "all are in guest again")
    assert client.inject_mce("c0h0", scope="broadcast", wait=True)["handled"] == 4
    run = daemon.stop()
    check_passes(run, "G8", "G10")
    told = [record.data for record in run.records() if record.type == "mce.timeout"]
    assert {data["missing"] for data in told} == {"h2"}
    assert len(told) == 3
    met = handlers(run)
    assert sorted(data["role"] for data in met[1]) == ["alone", "alone", "monarch"]
    assert all(data["wait_ns"] >= 150_000_000 for data in met[1])
    assert sorted(data["order"] for data in met[2]) == [1, 2, 3, 4]
    [death] = [r for r in run.records() if r.type == "death" and r.data["pid"] == pid]
    entered = [
        r for r in run.records()
        if r.type == "ht.mode" and r.data["new"] == "GUEST" and told and r.ts < death.ts
        and r.ts > min(r2.ts for r2 in run.records() if r2.type == "intr")
    ]  # fmt: skip
    assert not entered, "nobody goes back into guest before the one who was missed is dead"


@pytest.mark.parametrize("waits", ["before", "after"])
def test_a_monarch_that_is_killed_in_the_rendezvous_leaves_nothing_behind(rig, waits):
    """The others are stopped, so it is the first in; then it dies, before or after they come."""
    daemon = rig.start(machine(4, table=""))
    client = daemon.client()
    wait_until(lambda: modes(client) == ["GUEST"] * 4, 20, "all are in guest")
    pids = [pid_of(client, f"c0h{ht}") for ht in range(4)]
    for pid in pids[1:]:
        stop(pid)
    client.inject_mce("c0h0", scope="broadcast")
    wait_until(lambda: modes(client)[0] == "HOST", 5, "it waits in its handler")
    if waits == "before":
        os.kill(pids[0], signal.SIGKILL)
    for pid in pids[1:]:
        os.kill(pid, signal.SIGCONT)
    if waits == "after":
        os.kill(pids[0], signal.SIGKILL)
    wait_ready(client)
    wait_until(lambda: modes(client) == ["GUEST"] * 4, 20, "all are in guest again")
    assert client.inject_mce("c0h3", scope="broadcast", wait=True)["handled"] == 4
    run = daemon.stop()
    counts = check_passes(run, "G8", "G10")
    assert "mce.timeout" not in counts, "a confirmed death ends the waiting, not the time-out"
    met = handlers(run)
    assert len([data for data in met[1] if data["role"] == "monarch" and data["ht"]]) <= 1
    assert sorted(data["order"] for data in met[2]) == [1, 2, 3, 4]
    assert sum(data["role"] == "monarch" for data in met[2]) == 1


STEPS = ("CALL_IN", "AWAIT_ALL", "AWAIT_TURN", "WORK", "CALL_OUT", "AWAIT_OUT", "SET_DEPTH_0")
BEFORE_ITS_PART_IS_DONE = STEPS[: STEPS.index("CALL_OUT") + 1]


@pytest.mark.parametrize(
    ("step", "how"), [(step, "KILL") for step in STEPS] + [(step, "STOP") for step in BEFORE_ITS_PART_IS_DONE]
)
def test_a_death_or_a_stop_at_each_step_of_the_rendezvous(rig, monkeypatch, step, how):
    monkeypatch.setenv("ASID_TEST_TRAPS", f"c0h1.1:MCE_{step}:1:{how}")
    daemon = rig.start(machine(4, mce=SHORT if how == "STOP" else {}))
    client = daemon.client()
    wait_each_progresses(client)
    first = client.inject_mce("c0h0", scope="broadcast")
    wait_until(lambda: client.status()["cores"][0]["hts"][1]["inc"] == 2, 20, "c0h1 is born again")
    wait_ready(client)
    assert not stopped(daemon)
    wait_each_progresses(client)
    assert client.inject_mce("c0h0", scope="broadcast", wait=True)["handled"] == 4
    wait_each_progresses(client)
    run = daemon.stop()
    counts = check_passes(run, "G8", "G10")
    if how == "KILL":
        assert "mce.timeout" not in counts
    assert first["accepted"] == 4
    met = handlers(run)
    assert sum(data["role"] == "monarch" for data in met[2]) == 1
    assert sorted(data["order"] for data in met[2]) == [1, 2, 3, 4]


def test_a_fatal_one_ends_all_guests_of_its_core_and_of_no_other(rig):
    daemon = rig.start(machine(2, cores=2))
    client = daemon.client()
    wait_each_progresses(client)
    assert client.inject_mce("c0h1", severity="fatal", wait=True)["handled"] == 1
    wait_until(lambda: client.status()["state"] == "degraded", 5, "it says so")
    assert any("c0 has failed" in text for text in client.status()["warnings"])
    wait_until(lambda: modes(client) == ["PARKED"] * 2, 10, "everybody is parked")

    def insns(core: int) -> list[int]:
        return [ht["insns"] for ht in client.status()["cores"][core]["hts"]]

    before, elsewhere = insns(0), insns(1)
    client.inject("kill", "c0", what="coordinator", wait=True)
    client.inject("kill", "c0h0", wait=True)
    wait_until(lambda: client.status()["cores"][0]["hts"][0]["inc"] == 2, 10, "it is born again")
    pass_time(1.2)
    assert insns(0) == before
    assert all(now > then for now, then in zip(insns(1), elsewhere, strict=True))
    run = daemon.stop()
    check_passes(run, "G8", "G10")
    assert [r.data["severity"] for r in run.records() if r.type == "intr"] == ["fatal"]


def test_a_fatal_broadcast_is_fatal_for_whoever_met_it(meeting):
    client = meeting.client()
    assert client.inject_mce("c0h2", scope="broadcast", severity="fatal", wait=True)["handled"] == 4
    wait_until(lambda: modes(client) == ["PARKED"] * 4, 10, "everybody is parked")
    run = meeting.stop()
    check_passes(run, "G10")
    assert {data["severity"] for data in handlers(run)[1]} == {"fatal"}


def test_one_inside_another_shuts_the_hyperthread_down(rig, monkeypatch):
    """It is stopped inside its handler by a trap, so the second one finds it there."""
    monkeypatch.setenv("ASID_TEST_TRAPS", "c0h1.1:MCE_WORK:1:STOP")
    daemon = rig.start(machine(2, mce={"nested": "shutdown"}, table=""))
    client = daemon.client()
    wait_until(lambda: modes(client) == ["GUEST"] * 2, 20, "all are in guest")
    pid = pid_of(client, "c0h1")
    client.inject_mce("c0h1")
    wait_until(lambda: stopped(daemon) == [pid], 10, "it is stopped in its handler")
    client.inject_mce("c0h1")
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: pid_of(client, "c0h1") not in (0, pid), 10, "it is born again")
    wait_until(lambda: modes(client) == ["GUEST"] * 2, 20, "both are in guest again")
    run = daemon.stop()
    check_passes(run, "G8")
    [death] = [r.data for r in run.records() if r.type == "death" and r.data["pid"] == pid]
    assert death["status"] == 86
    assert sorted(results for [results] in injections(run).values()) == ["lost", "lost"]


def test_the_configuration_says_whom_one_reaches(rig):
    daemon = rig.start(machine(2, mce={"mode": "broadcast"}, inject=[{"what": "mce", "target": "c0h0", "at": "100ms"}]))
    client = daemon.client()
    wait_until(lambda: checks(client) == [1, 1], 20, "the one of the configuration is raised on both")
    assert client.inject_mce("c0h0", wait=True)["accepted"] == 2
    assert client.inject_mce("c0h0", scope="local", wait=True)["accepted"] == 1
    run = daemon.stop()
    check_passes(run, "G8", "G10")
    assert [record.ht for record in run.records() if record.type == "inject"] == [0, 1, 0, 1, 0]
