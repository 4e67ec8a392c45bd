"""The fork server, stopped or killed at the wrong moment: the daemon says so, goes on, and leaves nobody behind."""

from __future__ import annotations

import os
import signal

import pytest
from live_rig import (
    family,
    machine,
    pid_of,
    stopped,
    story,
    wait_each_progresses,
    wait_progress,
    wait_ready,
    wait_until,
)

from asid.live import instance

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(40, method="signal")]


def fork_server(daemon) -> int:
    [pid] = [pid for name, pid in family(daemon).items() if "fork server" in name]
    return pid


def warnings(run) -> list[str]:
    return [record.data["text"] for record in run.records() if record.type == "warn"]


def test_a_stopped_fork_server_goes_on_and_a_death_meanwhile_is_what_it_was(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    server, before = fork_server(daemon), pid_of(client, "c0h1")
    os.kill(server, signal.SIGSTOP)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pid_of(client, "c0h1") not in (0, before), 8, "its successor")
    wait_ready(client)
    wait_each_progresses(client)
    assert fork_server(daemon) == server and not stopped(daemon)
    run = daemon.stop()
    assert run.verdict.passed, story(run)
    assert [r.data["status"] for r in run.records() if r.type == "death" and r.data["pid"] == before] == [-9]
    assert any("the fork server" in text and str(server) in text for text in warnings(run))


def test_an_unplug_beside_a_stopped_fork_server_is_done(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    os.kill(fork_server(daemon), signal.SIGSTOP)
    assert client.unplug("c0h1")["changed"] == ["c0h1"]
    wait_progress(client)
    run = daemon.stop()
    assert run.verdict.passed, story(run)


def test_a_machine_with_a_stopped_fork_server_ends_in_order(rig):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    os.kill(fork_server(daemon), signal.SIGSTOP)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0, rig.log(daemon)
    wait_until(lambda: not family(daemon), 1, "nobody is left")
    assert not daemon.paths.sockets()


def test_a_stopped_fork_server_ends_with_a_daemon_that_is_killed(rig):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    os.kill(fork_server(daemon), signal.SIGSTOP)
    daemon.kill()
    wait_until(lambda: not family(daemon), 2, "nobody is left")
    wait_until(lambda: not daemon.paths.sockets(), 2, "no socket file")
    assert not instance.is_locked(daemon.paths)


def test_a_machine_whose_fork_server_is_killed_over_and_over_comes_back(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    for _ in range(5):
        server = fork_server(daemon)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda s=server: [p for n, p in family(daemon).items() if "fork server" in n and p != s], 5)
    wait_ready(client, 15)
    wait_each_progresses(client)
    run = daemon.stop()
    assert run.verdict.passed, story(run)
