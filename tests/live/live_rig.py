"""What tests of the live machine share: daemons in directories of their own, and a look at what they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from asid.client import Client, Daemon, Run
from asid.live import instance

ROOT = Path(__file__).parent.parent.parent
TABLES = Path(__file__).parent / "configs"
GONE_S = 10.0  # children of a dead daemon: at once, or never

_pause = threading.Event()


def machine(
    smt: int = 2,
    cores: int = 1,
    *,
    table: str = "leaves.toml",
    rate: str = "2000/s",
    deadline: str = "400ms",
    **more: Any,
) -> dict[str, Any]:
    """A configuration: one VM on everything, half of whose exits leave. The kick deadline is that of a busy host."""
    guest = {"source": "mix", "table": str(TABLES / table), "rate": rate} if table else {"source": "idle"}
    policy = {"name": "asi", "kick": "ack", "kick_deadline": deadline} | more.pop("policy", {})
    vm = more.pop("vm", [{"name": "tenant", "on": ["c*"], "guest": guest}])
    return {"name": "live", "machine": {"cores": cores, "smt": smt}, "policy": policy, "vm": vm, **more}


IDLE = machine(table="")


def wait_until(condition: Callable[[], Any], within_s: float = 20.0, what: str = "") -> Any:
    """Wait until the condition is true and return what it gave. Fail loudly when that takes too long.

    How soon it must be is for the audit to say. What comes late on a busy machine is no failure of the test.
    """
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what or condition}"
        _pause.wait(0.005)


def pass_time(seconds: float) -> None:
    """Let the machine run for a while."""
    _pause.wait(seconds)


class Rig:
    """Starts daemons for one test. `check_nothing_left` is what every test ends with."""

    def __init__(self, runtime: Path, state: Path) -> None:
        self.runtime, self.state = runtime, state
        self.daemons: list[Daemon] = []
        self.others: list[subprocess.Popen[str]] = []
        self.fds_before = open_fds()

    def start(self, config: str | Path | Mapping[str, Any] = IDLE, **options: Any) -> Daemon:
        # With a name of its own the directory and its log stay after the end.
        daemon = Daemon.start(config, **{"instance": f"t{len(self.daemons)}", **options})
        self.daemons.append(daemon)
        return daemon

    def spawn(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a process that is no daemon of ours, its talk in pipes. It does not outlive the test either."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, start_new_session=True, **{**pipes, **options})
        self.others.append(process)
        return process

    def run(self, config: str | Path | Mapping[str, Any], seconds: float, **options: Any) -> Run:
        """A run of so many seconds, stopped by itself."""
        daemon = self.start(config, duration_ns=int(seconds * 1e9), **options)
        assert daemon.process.wait(30) == 0, self.log(daemon)
        return daemon.stop()

    def log(self, daemon: Daemon) -> str:
        return daemon.paths.log.read_text(errors="replace")

    def check_nothing_left(self) -> None:
        """No process, no socket file, no lock, no temporary file, no descriptor. What is left is ended first, so that
        no other test fails for it, and told then."""
        left = [process.args for process in self.others if process.poll() is None]
        for process in self.others:
            end(process)
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    daemon.process.send_signal(signal.SIGCONT)
            daemon.kill()
        try:
            for daemon in self.daemons:
                wait_until(lambda d=daemon: not family(d), GONE_S, f"no process of {daemon.paths.name}")
        finally:
            for pid in [pid for daemon in self.daemons for pid in family(daemon).values()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert not left, f"processes were left: {left}"
        for daemon in self.daemons:
            assert not daemon.paths.sockets(), "socket files were left, or the fork server's"
            assert not instance.is_locked(daemon.paths)
            assert Path(daemon.paths.root).stat().st_mode & 0o777 == 0o700
            assert "Traceback" not in self.log(daemon), self.log(daemon)
        assert not list((self.runtime.parent / "t").iterdir()), "something was left in the temporary directory"
        wait_until(lambda: open_fds() <= self.fds_before, GONE_S, "descriptors of the test's own process")


def end(process: subprocess.Popen[str]) -> None:
    """Nothing of a process is left: not itself, not the pipes to it."""
    process.kill()
    process.wait(GONE_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def family(daemon: Daemon) -> dict[str, int]:
    """Living processes of a daemon's session by title: children, fork server and all."""
    found = {}
    for pid in psutil.pids():
        try:
            if os.getsid(pid) != daemon.process.pid or pid == daemon.process.pid:
                continue
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found[" ".join(process.cmdline())[:40]] = pid
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def stopped(daemon: Daemon) -> list[int]:
    """Processes of a daemon that are stopped (SIGSTOP)."""
    found = []
    for pid in family(daemon).values():
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                found.append(pid)
    return found


def pid_of(client: Client, place: str) -> int:
    """Process of `c0h1`, or of the coordinator `c0`; 0 when it is not there."""
    core, _, ht = place.removeprefix("c").partition("h")
    cores = client.status()["cores"]
    if ht:
        return int(cores[int(core)]["hts"][int(ht)]["pid"])
    coordinator = cores[int(core)]["coordinator"]
    return int(coordinator["pid"]) if coordinator else 0


def wait_ready(client: Client, within_s: float = 20.0) -> None:
    wait_until(lambda: client.status()["state"] == "ready", within_s, "ready")


def leaves_of(client: Client) -> int:
    return int(client.call("hist.get", {"what": "leave"})["n"])


def wait_progress(client: Client, leaves: int = 20, within_s: float = 20.0) -> None:
    """Wait until so many more leaves were made: the gate serves."""
    before = leaves_of(client)
    wait_until(lambda: leaves_of(client) >= before + leaves, within_s, f"{leaves} more leaves")


def wait_each_progresses(client: Client, within_s: float = 20.0) -> None:
    """Wait until every hyperthread with a vCPU has run guest instructions and exits since now."""

    def counts() -> dict[str, int]:
        return {h["name"]: h["insns"] for core in client.status()["cores"] for h in core["hts"] if h["vm"]}

    before = counts()

    def moved() -> bool:
        now = counts()
        return all(now[name] != before[name] for name in before)

    wait_until(moved, within_s, "every hyperthread goes on")


def story(run: Run) -> str:
    """The verdict and its violations, for a failing assertion."""
    verdict = run.verdict
    broken = {name: found for name, found in verdict.guarantees.items() if found["state"] == "broken"}
    return f"{verdict.verdict} {run.root}\n" + "\n".join(f"{name}: {found}" for name, found in broken.items())


def check_passes(run: Run, *exercised: str) -> dict[str, Any]:
    """The run passes, these guarantees were put to the test, and its journal has no hole. Return the counts by type."""
    assert run.verdict.passed, story(run)
    for name in exercised:
        assert run.verdict.guarantees[name]["state"] == "held", (name, run.verdict.guarantees[name])
    counts: dict[str, int] = {}
    for number, record in enumerate(run.records(), start=1):
        assert record.seq == number
        counts[record.type] = counts.get(record.type, 0) + 1
    assert counts.get("loss", 0) == 0
    return counts


def fences(run: Run) -> list[tuple[int, int]]:
    """Hyperthread and life of each fence, of all cores together."""
    return [(record.ht, record.data["inc"]) for record in run.records() if record.type == "gate.fence"]


def hasty_fences(run: Run, deadline_ns: int) -> list[int]:
    """Fences of somebody who had answered each kick, or had not had the time: their records' numbers.

    On a busy machine a hyperthread may well get no CPU for as long as a short deadline, and is fenced by design. Only
    for runs whose coordinators live: one that comes back fences who stays silent, and kicks nobody before.
    """
    kicks: dict[tuple[int, int], tuple[int, int]] = {}  # the number of the one that is open, and since when
    found = []
    for record in run.records():
        place = (record.core, record.ht)
        number, since = kicks.get(place, (-1, record.ts))
        if record.type == "gate.kick" and record.data["number"] != number:  # the same again is a reminder
            kicks[place] = (record.data["number"], record.ts)
        elif record.type in ("gate.dead", "gate.ready") or (
            record.type == "gate.answer" and record.data["number"] >= number
        ):
            kicks.pop(place, None)
        elif record.type == "gate.fence" and record.ts - since < deadline_ns:
            found.append(record.seq)
    return found


def overlaps_since(run: Run, seq: int) -> list[str]:
    """Guest beside HOST by a leave (G2), from record `seq` on: where every hyperthread is by then counts too."""
    modes: dict[tuple[int, int], tuple[str, str]] = {}
    found = []
    rows = [record for record in run.records() if record.type in ("ht.mode", "death")]
    for record in sorted(rows, key=lambda record: record.ts):
        place = (record.core, record.ht)
        mode = record.data.get("new", "OFFLINE")
        modes[place] = (mode, record.data.get("via", ""))
        if record.seq < seq or mode not in ("HOST", "GUEST"):
            continue
        for other, (there, via) in modes.items():
            if other[0] != place[0] or other == place or {mode, there} != {"HOST", "GUEST"}:
                continue
            if (via if there == "HOST" else modes[place][1]) in ("grant", "bare", ""):
                found.append(f"{record.seq}: c{place[0]}h{place[1]} {mode} beside h{other[1]} {there}")
    return found


def policies(run: Run) -> list[tuple[str, int]]:
    """Each change of policy that was finished, and its record's number."""
    return [(record.data["new"], record.seq) for record in run.records() if record.type == "policy"]


def injections(run: Run) -> dict[int, list[str]]:
    """Results by injection."""
    found: dict[int, list[str]] = {}
    for record in run.records():
        if record.type == "inject":
            found.setdefault(record.data["id"], [])
        elif record.type == "inject.done":
            found[record.data["id"]].append(record.data["result"])
    return found


@contextlib.contextmanager
def directories(monkeypatch: Any) -> Any:
    """Directories of this test's own. Not pytest's: a socket's path has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="asid-") as top:
        runtime, state, temporary = (Path(top) / name for name in "rst")
        for each in (runtime, state, temporary):
            each.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        monkeypatch.delenv("ASID_INSTANCE", raising=False)
        yield runtime, state
