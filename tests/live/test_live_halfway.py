"""Operations of a live machine that meet a process which does not answer: finished or undone, never in between."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from live_rig import (
    check_passes,
    injections,
    machine,
    overlaps_since,
    pass_time,
    pid_of,
    policies,
    story,
    wait_each_progresses,
    wait_progress,
    wait_ready,
    wait_until,
)

from asid.errors import ControlError

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]


def later(seconds: float, pid: int, signum: int) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (pid, signum))
    timer.start()
    return timer


def refused_without_effect(call, *arguments):
    with pytest.raises(ControlError, match="undone") as caught:
        call(*arguments)
    assert caught.value.applied == "no"


def sleeping_at_the_gate(client) -> int:
    """Hold the gate and stop c0h1 when all are PARKED: nobody needs its answer, so nobody fences it."""
    client.gate_hold("c0")
    wait_until(lambda: all(h["mode"] == "PARKED" for h in client.status()["cores"][0]["hts"]))
    stopped = pid_of(client, "c0h1")
    os.kill(stopped, signal.SIGSTOP)
    return stopped


def check_safe(run, *exercised):
    """Every G is kept, and these were put to the test. A process stopped for seconds may well be waited for (L3)."""
    assert [n for n, g in run.verdict.guarantees.items() if n[0] == "G" and g["state"] == "broken"] == [], story(run)
    for name in exercised:
        assert run.verdict.guarantees[name]["state"] == "held", story(run)


def test_a_parked_hyperthread_that_sleeps_through_a_change_of_policy_has_it_when_it_runs(rig):
    """Nobody waits for its lease, so no kick and no fence finds it; it must not come back as it was."""
    daemon = rig.start(machine(2, policy={"name": "none"}))
    client = daemon.client()
    client.detach("c0h1")
    before = pid_of(client, "c0h1")
    client.inject("stall", "c0h1", for_ms=20_000)
    assert client.policy_set("asi")["new"] == "asi"
    assert client.status()["policy"] == "asi"
    wait_until(lambda: pid_of(client, "c0h1") not in (0, before), what="another in its place")
    wait_ready(client)
    client.attach("vm1/1", "c0h1")
    wait_each_progresses(client)
    wait_progress(client, leaves=100)
    run = daemon.stop()
    [(name, seq)] = policies(run)
    assert name == "asi"
    assert overlaps_since(run, seq) == []
    assert any("did not answer" in r.data["text"] for r in run.records() if r.type == "warn")
    assert run.verdict.guarantees["G11"]["state"] != "broken", story(run)
    assert run.verdict.guarantees["G8"]["state"] == "held", story(run)


def test_a_change_of_policy_that_cannot_begin_changes_nothing(rig):
    daemon = rig.start(machine(2, cores=2))
    client = daemon.client()
    wait_progress(client)
    stopped = pid_of(client, "c1")
    os.kill(stopped, signal.SIGSTOP)
    refused_without_effect(client.policy_set, "none")
    assert client.status()["policy"] == "asi"
    os.kill(stopped, signal.SIGCONT)
    wait_each_progresses(client)
    wait_progress(client, leaves=50)
    run = daemon.stop()
    check_safe(run, "G1", "G2")
    assert policies(run) == []


@pytest.mark.parametrize("after_ms", [0, 1, 2, 4, 8])
def test_a_coordinator_that_dies_somewhere_in_a_change_of_policy(rig, after_ms):
    daemon = rig.start(machine(2, cores=2))
    client = daemon.client()
    for name in ("kick-every-exit", "asi"):
        wait_progress(client)
        killer = later(after_ms / 1000, pid_of(client, "c0"), signal.SIGKILL)
        assert client.policy_set(name)["new"] == name
        killer.join()
        wait_ready(client)
        wait_each_progresses(client)
    run = daemon.stop()
    check_passes(run, "G1", "G2", "G11")
    assert [name for name, _ in policies(run)] == ["kick-every-exit", "asi"]


def test_a_daemon_that_is_stopped_in_the_middle_finishes_what_it_began(rig):
    daemon = rig.start(machine(2))
    client = daemon.client(timeout_s=12)
    wait_progress(client)
    for step_ms in (1, 3):
        for call, arguments in (
            (client.policy_set, ("kick-every-exit",)), (client.detach, ("c0h1",)), (client.attach, ("vm1/1", "c0h1")),
            (client.unplug, ("c0h1",)), (client.plug, ("c0h1",)), (client.policy_set, ("asi",)),
        ):  # fmt: skip
            pause = later(step_ms / 1000, daemon.process.pid, signal.SIGSTOP)
            go_on = later(step_ms / 1000 + 0.3, daemon.process.pid, signal.SIGCONT)
            call(*arguments)
            pause.join()
            go_on.join()
        wait_ready(client)
        wait_each_progresses(client)
    run = daemon.stop()
    check_safe(run, "G1", "G2")
    assert len(policies(run)) == 4


def test_a_vcpu_that_nobody_takes_goes_nowhere_and_can_be_given_again(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    client.detach("c0h1")
    os.kill(pid_of(client, "c0h1"), signal.SIGSTOP)
    refused_without_effect(client.attach, "vm1/1", "c0h1")
    os.kill(pid_of(client, "c0h1"), signal.SIGCONT)
    assert client.attach("vm1/1", "c0h1")["changed"]
    wait_each_progresses(client)
    check_safe(daemon.stop(), "G1")


@pytest.mark.parametrize("take", ["detach", "unplug"])
def test_what_is_taken_from_two_is_taken_from_both_or_none(rig, take):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    stopped = sleeping_at_the_gate(client)
    refused_without_effect(getattr(client, take), "c0")
    os.kill(stopped, signal.SIGCONT)
    client.gate_release("c0")
    wait_ready(client)
    assert [h["vm"] for h in client.status()["cores"][0]["hts"]] == [1, 1]
    wait_each_progresses(client)
    check_safe(daemon.stop(), "G1")


def test_a_hold_of_two_cores_is_of_both_or_of_none(rig):
    daemon = rig.start(machine(2, cores=2))
    client = daemon.client()
    wait_progress(client)
    stopped = pid_of(client, "c1")
    os.kill(stopped, signal.SIGSTOP)
    refused_without_effect(client.gate_hold, "c*")
    os.kill(stopped, signal.SIGCONT)
    wait_each_progresses(client)
    assert [gate["holder"] for gate in client.call("gate.get").ret["gates"]] == ["", ""]
    check_safe(daemon.stop(), "G11")


def test_refused_exits_are_not_executed_later(rig):
    daemon = rig.start(machine(2, table=""))
    client = daemon.client()
    wait_each_progresses(client)
    client.gate_hold("c0")  # nobody takes exits
    wait_until(lambda: client.call("gate.get").ret["gates"][0]["phase"] == "held")
    client.inject_exit("c0h1", reason="WBINVD", full="no", count=500)
    assert client.detach("c0h1")["changed"]
    client.gate_release("c0")
    client.attach("vm1/1", "c0h1")
    wait_each_progresses(client)
    assert client.inject_exit("c0h1", reason="CPUID", full="no", count=3, wait=True)["handled"] == 3
    pass_time(0.2)
    run = daemon.stop()
    check_passes(run, "G8")
    assert sorted(injections(run).values()) == [["handled"], ["refused"]]
    ran = [r.data["n"] for r in run.records() if r.type == "exit" and r.data["reason"] == "WBINVD"]
    assert ran == [], "what was refused never ran"
