"""A daemon or a coordinator that stands still: who waits for it is told so, and can put an end to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import NoReturn

import pytest
from live_rig import GONE_S, IDLE, Rig, family, machine, pid_of, wait_progress, wait_ready, wait_until

from asid.client import connect
from asid.commands import down
from asid.commands.session import Session
from asid.errors import NoAnswer, NotRunning
from asid.live import instance

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]


def begin(rig: Rig, *arguments: str) -> subprocess.Popen[str]:
    return rig.spawn(sys.executable, "-m", "asid", *arguments)


def asid(rig: Rig, *arguments: str) -> tuple[int, str, str]:
    process = begin(rig, *arguments)
    out, err = process.communicate(timeout=40)
    return process.returncode, out, err


def watches_a_process(pid: int) -> bool:
    """Whether a process has a pidfd: a client that knows its daemon."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return any("pidfd" in name for name in found)


# --- a daemon that stands still ---------------------------------------------------------------------------


def test_down_by_force_ends_a_daemon_that_does_not_answer_and_judges_its_run(rig):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    os.kill(pid_of(daemon.client(), "c0h1"), signal.SIGSTOP)  # its children may stand still too
    daemon.process.send_signal(signal.SIGSTOP)
    code, out, err = asid(rig, "down", "--force", "--instance", "t0", "--json")
    document = json.loads(out)
    assert (code, document["verdict"]) == (3, "UNKNOWN"), (out, err)
    assert document["run_dir"] == str(daemon.run_dir)
    assert daemon.process.wait(10) == -signal.SIGKILL
    wait_until(lambda: not family(daemon), GONE_S)
    assert not list(daemon.paths.root.glob("*.sock"))
    assert not daemon.paths.endpoints.exists()


def test_down_by_force_kills_nobody_but_the_holder_of_the_lock(rig):
    daemon = rig.start(IDLE)
    bystander = rig.spawn(sys.executable, "-c", "input()", stdin=subprocess.PIPE)
    try:
        text = daemon.paths.endpoints.read_text().replace(f'"pid":{daemon.process.pid}', f'"pid":{bystander.pid}')
        daemon.process.send_signal(signal.SIGSTOP)
        daemon.paths.endpoints.write_text(text)
        assert instance.lock_holder(daemon.paths) == daemon.process.pid
        code, out, err = asid(rig, "down", "--force", "--instance", "t0")
        assert code == 3, (out, err)
        assert daemon.process.wait(10) == -signal.SIGKILL
        assert bystander.poll() is None
    finally:
        bystander.communicate("\n", timeout=20)


def test_a_daemon_that_stands_still_does_not_answer_and_is_not_called_gone(rig):
    daemon = rig.start(IDLE)
    daemon.process.send_signal(signal.SIGSTOP)
    lines = ["status"], ["stat"], ["inject", "nmi", "c0h0"], ["policy", "set", "none"], ["down"]
    waiting = [begin(rig, *line, "--instance", "t0") for line in lines]
    for process in waiting:
        _, err = process.communicate(timeout=40)
        assert process.returncode == 8, err
        assert f"pid {daemon.process.pid}" in err
        assert "asid down --force --instance t0" in err
    daemon.process.send_signal(signal.SIGCONT)
    daemon.stop()


# --- two who stop it --------------------------------------------------------------------------------------


def test_everyone_who_stops_a_daemon_is_told_the_verdict(rig):
    daemon = rig.start(machine(2, cores=2))
    wait_progress(daemon.client())
    daemon.process.send_signal(signal.SIGSTOP)
    downs = [begin(rig, "down", "--instance", "t0", "--json") for _ in range(3)]
    for process in downs:
        wait_until(lambda pid=process.pid: watches_a_process(pid), what="it is about to ask")
    daemon.process.send_signal(signal.SIGCONT)
    for process in downs:
        out, err = process.communicate(timeout=40)
        document = json.loads(out)
        assert (process.returncode, document.get("verdict")) == (0, "PASS"), (out, err)
        assert document["run_dir"] == str(daemon.run_dir)


def test_down_judges_the_run_of_a_daemon_that_dies_before_it_can_answer(rig):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    daemon.process.send_signal(signal.SIGSTOP)
    down = begin(rig, "down", "--instance", "t0", "--json")
    wait_until(lambda: watches_a_process(down.pid), what="it is about to ask")
    daemon.process.kill()
    out, err = down.communicate(timeout=40)
    document = json.loads(out)
    assert (down.returncode, document.get("verdict")) == (3, "UNKNOWN"), (out, err)
    assert document["run_dir"] == str(daemon.run_dir)


def test_down_is_not_misled_by_who_clears_up_after_a_dead_daemon(monkeypatch, tmp_path):
    """The lock as down finds it: the daemon's, then its coordinator's for a moment, then nobody's."""

    def dies_meanwhile() -> NoReturn:
        raise NotRunning("hello: cannot be sent", state="the daemon has ended")

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    paths = instance.make_instance_dir("t0")
    instance.write_endpoints(paths, instance.Endpoints(1, "", os.getpid(), "t0", "", "", "", str(tmp_path), 0))
    locked = iter([True, True, True])
    monkeypatch.setattr(instance, "is_locked", lambda _: next(locked, False))
    session = Session()
    session.instance = "t0"
    monkeypatch.setattr(session, "client", dies_meanwhile)
    assert down._stop(session, force=False, timeout_s=5.0) == str(tmp_path)
    assert next(locked, None) is None


def test_down_waits_for_a_daemon_that_is_ending_already(rig):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    run_dir = daemon.run_dir
    daemon.process.send_signal(signal.SIGSTOP)
    daemon.paths.endpoints.unlink()  # as at its end, when nobody new is to come
    down = begin(rig, "down", "--instance", "t0", "--json")
    assert down.stderr is not None
    assert "waiting" in down.stderr.readline()
    with pytest.raises(NoAnswer, match="takes no clients") as caught:
        connect("t0")
    assert caught.value.data["pid"] == daemon.process.pid
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGCONT)
    out, err = down.communicate(timeout=40)
    assert (down.returncode, json.loads(out)["run_dir"]) == (0, str(run_dir)), (out, err)


def test_a_daemon_that_was_waited_for_is_gone(rig):
    daemon = rig.start(IDLE)
    client = daemon.client()
    client.stop()
    client.wait_ended(10)
    assert daemon.process.poll() is not None


# --- a coordinator that stands still ----------------------------------------------------------------------


def test_a_coordinator_that_stands_still_is_noticed_and_forgiven(rig):
    daemon = rig.start(IDLE)
    client = daemon.client()
    coordinator = pid_of(client, "c0")
    for time in (1, 2):
        os.kill(coordinator, signal.SIGSTOP)
        wait_until(lambda: client.status()["state"] == "degraded", what="it is noticed")
        found = client.status()["warnings"]
        assert [f"c0 (pid {coordinator}) has not answered for" in text for text in found] == [True], found
        assert client.call("gate.get").ret["gates"][0]["phase"] == "silent"
        if time == 1:
            code, out, err = asid(rig, "status", "--instance", "t0", "--expect", "healthy")
            assert (code, "silent" in out) == (1, True), (out, err)
            assert asid(rig, "status", "--instance", "t0", "--expect", "ready")[0] == 0
        os.kill(coordinator, signal.SIGCONT)
        wait_ready(client)
        assert client.status()["warnings"] == []
    run = daemon.stop()
    told = [r for r in run.records() if r.type == "warn" and "does not answer" in r.data["text"]]
    assert [record.core for record in told] == [0, 0]


def test_a_daemon_that_was_stopped_holds_its_pause_against_no_coordinator(rig):
    daemon = rig.start(IDLE)
    client = daemon.client()
    daemon.process.send_signal(signal.SIGSTOP)
    with pytest.raises(NoAnswer):
        client.ping(timeout_s=3)
    daemon.process.send_signal(signal.SIGCONT)
    assert client.status()["state"] == "ready"
    assert not [r for r in daemon.stop().records() if r.type == "warn"]
