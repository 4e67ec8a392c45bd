"""asid up in the foreground: what a person reads on stderr, and with --json what a script reads on stdout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from live_rig import ROOT, wait_until

from asid.live import instance
from asid.running import Run

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(60, method="signal")]

UP = ["up", "configs/smt1.toml", "--instance", "front"]


@pytest.fixture
def spawn(rig) -> Callable[..., subprocess.Popen[str]]:
    """Starts foreground daemons; the rig sees to it that none outlives the test."""
    return lambda *arguments: rig.spawn(sys.executable, "-m", "asid", *arguments, cwd=ROOT)


def first_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_a_ready_machine_and_its_verdict_are_two_lines_of_json(spawn):
    process = spawn(*UP, "--json")
    ready = first_line(process)
    assert (ready["schema"], ready["ok"], ready["instance"], ready["pid"]) == ("up/1", True, "front", process.pid)
    assert ready["status"]["state"] in ("ready", "degraded") and ready["status"]["run_dir"] == ready["run_dir"]
    assert instance.is_locked(instance.instance_paths("front"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    (last,) = map(json.loads, out.splitlines())
    assert (last["schema"], last["instance"], last["run_dir"]) == ("down/1", "front", ready["run_dir"])
    assert last["verdict"] in ("PASS", "UNKNOWN"), "it was stopped at once: perhaps before any guest ran"
    assert last["guarantees"]["G1"]["state"] in ("held", "not exercised")


def test_who_was_stopped_by_another_leaves_the_verdict_to_that_one(spawn):
    process = spawn(*UP, "--json")
    ready = first_line(process)
    down = subprocess.run(
        [sys.executable, "-m", "asid", "down", "--instance", "front", "--json"], capture_output=True, timeout=30
    )
    out, err = process.communicate(timeout=30)
    assert (process.returncode, down.returncode) == (0, 0), err
    (last,) = map(json.loads, out.splitlines())
    assert (last["run_dir"], last["verdict"]) == (ready["run_dir"], None)
    assert json.loads(down.stdout)["verdict"] == "PASS"


def test_a_second_one_is_busy_in_json_too(spawn):
    process = spawn(*UP)
    wait_until(lambda: instance.read_endpoints(instance.instance_paths("front")), 20)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "asid", *UP, "--json"], capture_output=True, text=True, timeout=30, cwd=ROOT
        )
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["class"], done.stderr) == (10, "Busy", "")
        assert "asid down --instance front" in error["hint"]
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert out == "", "what a person reads is talk"
    assert "ready: instance front" in err and "PASS: run " in err


def test_a_reader_that_leaves_at_once_ends_it_and_all_of_it(spawn):
    process = spawn(*UP, "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 141
    wait_until(lambda: not instance.is_locked(instance.instance_paths("front")), 5)
    *_, last = Run.open("latest").records()
    assert (last.type, last.data["reason"]) == ("run.end", "nobody reads what it says"), "its run ended in order"
