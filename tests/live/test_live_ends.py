"""How a daemon ends, seen by those who wait for it: a reader of events, who stops it, who starts it in vain."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
from live_rig import GONE_S, ROOT, check_passes, family, machine, wait_progress, wait_until

from asid import running
from asid.audit import audit
from asid.errors import Busy, Crash, HostUnsuitable, NotRunning
from asid.live import instance
from asid.running import Daemon

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]

# An audit that never ends, then the module's own main: what a journal of many minutes looks like to a test.
ENDLESS = "import asid.audit, sys, threading\nasid.audit.audit = lambda _: threading.Event().wait()\n"


def finish(process: subprocess.Popen[str], within_s: float = 30) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=within_s)
    return process.returncode, out, err


# --- readers of events ------------------------------------------------------------------------------------


def test_events_of_a_killed_daemon_end_and_say_so(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    with client.events() as events, client.events("run") as quiet, client.events() as waiting:
        wait_progress(client)
        counts: Counter[str] = Counter()
        killer = threading.Timer(0.2, daemon.process.kill)
        killer.start()
        with pytest.raises(NotRunning, match="without goodbye"):
            counts.update(event.type for event in events)
        killer.join()
        assert counts["gate.admit"] > 0
        with pytest.raises(NotRunning, match="without goodbye") as caught:
            quiet.next(20)
        error = caught.value
        assert error.exit_code == 7
        assert all((error.what, error.where, error.state, error.allowed, error.hint))
        with pytest.raises(NotRunning):
            waiting.wait_seq(1 << 40, timeout_s=20)
        assert not events.ended, "nobody said bye"


WATCHER = str(ROOT / "clients" / "watcher.py")


@pytest.mark.parametrize("line", [["-m", "asid", "watch", "run"], [WATCHER, "0.2"], [WATCHER, "-s"]])
def test_who_watches_a_killed_daemon_ends_with_it(rig, line):
    daemon = rig.start(machine(2))
    client = daemon.client()
    before = client.status()["counters"].get("clients", 0)
    watcher = rig.spawn(sys.executable, *line, "--instance", daemon.paths.name)
    wait_until(lambda: client.status()["counters"].get("clients", 0) > before, what="it is connected")
    wait_progress(client)
    daemon.process.kill()
    code, _, err = finish(watcher)
    assert code == 7, err
    assert "the daemon has ended without goodbye" in err
    assert "Traceback" not in err


def test_a_stream_of_json_lines_ends_with_a_line(rig):
    daemon = rig.start(machine(2))
    watcher = rig.spawn(sys.executable, "-m", "asid", "watch", "--json", "--instance", daemon.paths.name)
    assert watcher.stdout is not None
    first = watcher.stdout.readline()
    daemon.process.kill()
    rest = watcher.stdout.read()  # not `communicate`, which knows nothing of what was read with that line already
    documents = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert (watcher.wait(30), documents[-1]["error"]["class"], documents[-1]["ok"]) == (7, "NotRunning", False)
    assert all(document["schema"] == "event/1" for document in documents[:-1])


# --- who stops it -----------------------------------------------------------------------------------------


def test_the_verdict_is_made_when_nothing_of_the_daemon_is_left(rig, monkeypatch):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    found = []

    def looked(path):
        wait_until(lambda: not family(daemon), GONE_S, "the fork server goes with it")
        found.append((daemon.process.poll(), instance.is_locked(daemon.paths)))
        found.append((sorted(daemon.paths.root.glob("*.sock")), daemon.paths.endpoints.exists()))
        return audit(path)

    monkeypatch.setattr("asid.audit.audit", looked)
    run = daemon.stop()
    check_passes(run, "G1", "G2")
    assert found == [(0, False), ([], False)]
    assert run.manifest["verdict"] == "PASS"
    assert (run.root / "stats.json").exists()


def test_down_that_is_interrupted_leaves_no_process_and_a_run_to_be_judged(rig):
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    daemon.detach()
    down = rig.spawn(sys.executable, "-c", ENDLESS + "sys.argv[1:] = ['down', '--instance', 't0']\n"
                 "from asid.commands import main; main()")  # fmt: skip
    wait_until(lambda: not instance.is_locked(daemon.paths), what="the daemon has ended")
    wait_until(lambda: not family(daemon), GONE_S)
    wait_until(lambda: down.stderr is not None and "takes a while" in down.stderr.readline())
    down.send_signal(signal.SIGINT)
    code, _, err = finish(down)
    assert code == 130
    assert f"asid audit {daemon.run_dir.name}" in err
    assert not (daemon.run_dir / "verdict.json").exists()
    listed = subprocess.run([sys.executable, "-m", "asid", "runs", "ls", "--json"], capture_output=True, timeout=30)
    assert [(run["status"], run["verdict"]) for run in json.loads(listed.stdout)["runs"]] == [("ended", "-")]
    audited = subprocess.run([sys.executable, "-m", "asid", "audit", str(daemon.run_dir)], timeout=30)
    assert audited.returncode == 0


def test_a_daemon_stopped_by_a_signal_judges_last_and_a_second_signal_ends_that(rig, tmp_path):
    config = tmp_path / "idle.toml"
    config.write_text('[[vm]]\non = ["c0h0"]\nguest = { source = "idle" }\n')
    daemon = rig.spawn(sys.executable, "-c", ENDLESS + "from asid.live.serve import main\n"
                   f"sys.exit(main([{str(config)!r}, '--instance', 'slow']))")  # fmt: skip
    paths = instance.instance_paths("slow")
    endpoints = wait_until(lambda: instance.read_endpoints(paths), 20, "it is ready")
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: not instance.is_locked(paths), what="the name is free while it judges")
    assert daemon.poll() is None
    assert not list(paths.root.glob("*.sock"))
    again = rig.start(config, instance="slow")
    again.stop()
    daemon.send_signal(signal.SIGTERM)
    code, _, err = finish(daemon)
    assert code == 143, err
    assert "asid audit" in err
    assert audit(endpoints.run_dir).as_map()["verdict"] == "PASS"


def test_a_daemon_that_is_killed_while_it_judges_leaves_a_run_to_be_judged(rig, monkeypatch):
    monkeypatch.setattr("asid.running.LAST_S", 0.5)
    daemon = rig.start(machine(2))
    wait_progress(daemon.client())
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not instance.is_locked(daemon.paths))
    daemon.process.kill()
    check_passes(daemon.stop(), "G1", "G2")


# --- who starts it in vain --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [10, 24, 40, 48, 86])
def test_too_few_open_files_are_named(rig, limit):
    line = f"ulimit -n {limit}; exec {sys.executable} -m asid up {ROOT}/configs/smt8.toml --detach --instance few"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30)
    assert done.returncode == 6, done.stderr
    assert "HostUnsuitable" in done.stderr and "ulimit -n" in done.stderr and str(limit) in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(instance.instance_paths("few").root.glob("*.sock"))


def test_descriptors_that_run_out_while_it_starts_are_named_too(rig, monkeypatch, caplog):
    """The look before the start knows of no other use of descriptors; what fails later must be named as well."""
    from asid.live import room, serve

    monkeypatch.setattr(room, "check_descriptors", lambda config: None)
    monkeypatch.setattr("asid.live.hardware.make_page", lambda *_: os.open("/dev/null/no", 0))
    monkeypatch.setattr(serve.Daemon, "start", lambda self: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    monkeypatch.setattr("setproctitle.setproctitle", lambda title: None)
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        assert serve.main([str(ROOT / "configs/smt1.toml"), "--instance", "late"]) == HostUnsuitable.exit_code
        assert "ulimit -n" in caplog.text
        monkeypatch.setattr(serve.Daemon, "start", lambda self: 1 // 0)
        assert serve.main([str(ROOT / "configs/smt1.toml"), "--instance", "late"]) == Crash.exit_code
        assert "a fault of asid's own at test_live_ends.py" in caplog.text
    finally:
        for signum, handler in kept.items():
            signal.signal(signum, handler)
    assert not list(instance.instance_paths("late").root.glob("*.sock"))


@pytest.mark.parametrize(("code", "expected"), [(1, 70), (70, 70), (2, 2), (6, 6), (4, 4), (-9, 7), (0, 7), (10, 10)])
def test_a_start_that_failed_is_never_a_fail(rig, code, expected):
    from asid.running import _failed_to_start

    paths = instance.make_instance_dir("dead")
    paths.log.write_text("asid: SomeError: it is so\nasid: hint: do that\n")
    error = _failed_to_start(paths, f"ended with exit code {code}", code)
    assert error.exit_code == expected
    assert (str(error), error.hint) == ("it is so", "do that")
    paths.log.write_text("Fatal Python error\n")
    error = _failed_to_start(paths, f"ended with exit code {code}", code)
    assert "Fatal Python error" in error.state and error.where and error.what


def test_a_start_in_vain_has_its_five_parts_once(rig, monkeypatch):
    """Two starters at a time: each looks at the lock, and the second daemon finds it held."""
    rig.start(machine(2), instance="one")
    monkeypatch.setattr(instance, "is_locked", lambda _: False)
    with pytest.raises(Busy) as caught:
        rig.start(machine(2), instance="one")
    monkeypatch.undo()
    said = f"{caught.value}\nhint: {caught.value.hint}"
    assert said.count("hint:") == said.count("asid down") == said.count("running already") == 1
    assert said.count("(") == said.count(")")


def test_a_limit_of_the_length_of_files_is_named(rig):
    line = f"ulimit -f 300; exec {sys.executable} -m asid up {ROOT}/configs/smt2.toml --detach --instance short"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30)
    assert done.returncode == HostUnsuitable.exit_code, done.stderr
    assert "ulimit -f" in done.stderr and "hint: " in done.stderr
    looked = subprocess.run(
        ["bash", "-c", f"ulimit -f 300; {sys.executable} -m asid doctor"], capture_output=True, text=True, timeout=30
    )
    assert "file length" in looked.stdout and looked.returncode == HostUnsuitable.exit_code


def test_no_room_for_an_instance_is_said_before_its_start(rig, monkeypatch):
    monkeypatch.setattr(instance, "ROOM_BYTES_MIN", 1 << 62)
    with pytest.raises(HostUnsuitable, match="no room for the files of an instance"):
        rig.start(machine(2), instance="full")
    assert not instance.instance_paths("full").root.exists()


def test_what_a_daemon_starts_from_must_be_written(rig, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(running, "write_scripts", full)
    with pytest.raises(HostUnsuitable, match="cannot be written"):
        Daemon.start(machine(2), scripts=[object()])  # type: ignore[list-item]


def test_directories_that_nobody_needs_any_more_go_with_the_next_start(rig):
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone, bench, kept, named = (
        instance.make_instance_dir(name)
        for name in (f"p{dead.pid}-0a1b2c", f"bench-{dead.pid}-0a1b", f"p{os.getpid()}-0a1b2c", "p-of-mine")
    )
    for paths in (gone, bench, kept, named):
        paths.lock.touch()
    held = instance.make_instance_dir(f"p{dead.pid}-ffffff")
    lock_fd = instance.take_lock(held)
    with Daemon.start(machine(2)):
        assert [paths.root.exists() for paths in (gone, bench, kept, named, held)] == [False, False, True, True, True]
    os.close(lock_fd)
