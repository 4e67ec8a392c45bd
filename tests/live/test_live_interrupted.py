"""Signals to whoever started a daemon, at any moment: nothing is left running, and the exit code says why."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from live_rig import ROOT, Rig, machine, wait_until

from asid.live import instance
from asid.running import Daemon

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]

RUN = ["run", "configs/smt2.toml", "--duration", "60s"]


def spawn(rig: Rig, *arguments: str) -> subprocess.Popen[str]:
    return rig.spawn(sys.executable, "-m", "asid", *arguments, cwd=ROOT)


sessions: set[int] = set()  # of this test's daemons; whose they are can be seen only while they are young


@pytest.fixture(autouse=True)
def nobody_outlives_the_test(rig: Rig) -> Iterator[None]:
    """What a failed test leaves behind is no other test's: neither its processes nor what is known of them."""
    sessions.clear()
    yield
    for process in daemons(rig.runtime):
        with contextlib.suppress(psutil.Error):
            process.kill()


def daemons(runtime: Path) -> list[psutil.Process]:
    """Living processes of this test's daemons. A title overwrites the environment: then the lock tells whose it is."""
    living = [one for one in psutil.process_iter() if one.pid != os.getpid()]
    for process in living:
        try:
            files = (
                [file.path for file in process.open_files()]
                if " ".join(process.cmdline()).startswith("asid: daemon")
                else []
            )
            named = process.environ().get("XDG_RUNTIME_DIR") == str(runtime)
            if named or any(path.startswith(str(runtime)) for path in files):
                sessions.add(os.getsid(process.pid))
        except (psutil.Error, ProcessLookupError):
            continue
    found = []
    for process in living:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) in sessions:
                found.append(process)
    return found


def serving(runtime: Path) -> list[psutil.Process]:
    """Daemons that have no title yet."""
    found = []
    for one in daemons(runtime):
        with contextlib.suppress(psutil.Error):
            found += [one] if "asid.live.serve" in one.cmdline() else []
    return found


def ready() -> bool:
    return any(one.running and one.endpoints for one in instance.find_instances())


def ended(process: subprocess.Popen[str], runtime: Path) -> tuple[int, str]:
    """Wait for the end. Return its exit code and its talk; it has waited for its daemon, whose children end by then."""
    _, err = process.communicate(timeout=40)
    assert not any(one.running for one in instance.find_instances())
    assert not serving(runtime)
    nobody_is_left(runtime)
    return process.returncode, err


def nobody_is_left(runtime: Path) -> None:
    wait_until(lambda: not daemons(runtime), 20, "nobody is left")
    assert not any(one.running for one in instance.find_instances())


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)  # fmt: skip
@pytest.mark.parametrize("moment", ["born", "locked", "ready"])
@pytest.mark.parametrize("verb", [RUN, ["bench", "exits", "--quick"]])
def test_a_signal_while_a_daemon_comes_up_leaves_none(rig, verb, moment, signum, code):
    process = spawn(rig, *verb)
    condition = {
        "born": lambda: serving(rig.runtime),
        "locked": lambda: any(one.running for one in instance.find_instances()),
        "ready": ready,
    }[moment]
    wait_until(condition, 20)
    os.killpg(process.pid, signum)
    found, err = ended(process, rig.runtime)
    assert (found, "Traceback" in err) == (code, False), err
    assert ("interrupted" if code == 130 else "terminated") in err


def test_interrupted_again_and_again_it_still_leaves_none(rig):
    process = spawn(rig, *RUN)
    wait_until(ready, 20)
    stop = threading.Event()

    def hammer() -> None:
        while not stop.wait(0.02) and process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        found, err = ended(process, rig.runtime)
    finally:
        stop.set()
        thread.join()
    assert (found, "Traceback" in err) == (130, False), err


@pytest.mark.parametrize("moment", ["born", "ready"])
def test_a_daemon_ends_when_its_starter_was_killed(rig, moment):
    process = spawn(rig, *RUN)
    wait_until((lambda: serving(rig.runtime)) if moment == "born" else ready, 20)
    process.kill()
    process.wait(20)
    nobody_is_left(rig.runtime)


def test_a_daemon_that_was_detached_outlives_its_starter(rig):
    process = spawn(rig, "up", "configs/smt1.toml", "--detach", "--instance", "stays", "--json")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    pid = json.loads(out)["pid"]
    try:
        paths = instance.instance_paths("stays")
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(pid).wait(0.5)
        assert instance.is_locked(paths)
    finally:
        os.kill(pid, signal.SIGTERM)
        nobody_is_left(rig.runtime)


def test_a_start_that_is_interrupted_in_a_program_leaves_neither_process_nor_directory(rig, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Daemon, "_wait_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Daemon.start(machine(2))
    assert not daemons(rig.runtime)
    assert not list((rig.runtime / "asid").iterdir())
