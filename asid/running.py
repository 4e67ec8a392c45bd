"""A daemon started from a program, and the run that it leaves behind.

with asid.Daemon.start("configs/smt2.toml", policy="asi") as daemon:
    daemon.client().inject_nmi("c0h1", wait=True)
    assert daemon.stop().verdict.passed
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from asid import client as client_
from asid import signals
from asid.errors import (
    AsidError,
    Busy,
    InputError,
    NoAnswer,
    NotRunning,
    refused_by_os,
)
from asid.interpreter import words_of
from asid.judging import judge_run
from asid.live import instance as instances_
from asid.live.leash import Leash
from asid.script import Script
from asid.script import write as write_scripts
from asid.start_failure import start_failure
from asid.start_files import config_file

POLL_SLICE_S = 0.02
DRAIN_S = 30.0  # from the request to stop to the end of the process; the verdict comes after it
LAST_S = 5.0  # a process that has said its last word, or was killed
LOG_TAIL_LINES = 12
OWN_PREFIX = "p"  # instances nobody named; their directories go with them
OWN_NAME = re.compile(rf"(?:{OWN_PREFIX}|bench-)(\d+)-[0-9a-f]{{4,6}}")  # with the process that named it


@dataclass(frozen=True, slots=True)
class Verdict:
    """verdict.json: verdict is PASS, FAIL or UNKNOWN; guarantees as the audit wrote them."""

    verdict: str
    guarantees: dict[str, Any]
    document: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.verdict == "PASS"


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory."""

    root: Path

    @classmethod
    def open(cls, run: str | Path = "latest") -> Run:
        """Return a run by path, or by name in the directory of runs. Raise InputError."""
        from asid.live.rundir import find_run

        return cls(find_run(str(run)))

    @property
    def name(self) -> str:
        return self.root.name

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.root / name
        try:
            document: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict)
        except (OSError, msgspec.MsgspecError) as error:
            raise InputError(f"cannot read it: {error}", where=str(path), hint="asid runs ls") from None
        return document

    @property
    def manifest(self) -> dict[str, Any]:
        return self._read_json("manifest.json")

    @property
    def verdict(self) -> Verdict:
        """What the audit said. Raise InputError when the run was not audited."""
        document = self._read_json("verdict.json")
        return Verdict(str(document.get("verdict", "UNKNOWN")), dict(document.get("guarantees", {})), document)

    def records(self) -> Iterator[Any]:
        """Yield the records of the journal."""
        from asid.live.journal import JournalReader

        with JournalReader(self.root / "journal.asid") as reader:
            yield from reader


class Daemon:
    """A daemon that this process started. As a context manager it is stopped, or killed if it must be, at the end.

    However this process ends, the daemon ends with it, unless it was detached.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        paths: instances_.InstancePaths,
        endpoints: instances_.Endpoints,
        leash: Leash,
    ):
        self.process = process
        self.paths = paths
        self.endpoints = endpoints
        self._leash = leash
        self._asked = False  # to stop, once already
        self._clients: list[client_.Client] = []

    @classmethod
    def start(
        cls,
        config: str | Path | Mapping[str, Any],
        *,
        instance: str = "",
        policy: str = "",
        kick: str = "",
        space: str = "",
        seed: int | None = None,
        run_dir: str | Path = "",
        duration_ns: int | None = None,
        until_exhausted: bool = False,
        scripts: Sequence[Script] = (),
        timeout_s: float = 20.0,
    ) -> Daemon:
        """Start a daemon of its own session and return when it answers. Raise what it said when it does not come up.

        config: a TOML file, or a map as one would be. instance: a fresh name by default. scripts: what its cores play,
        each one; it stops behind the last step. space: allowed, rfc, minimal or a file, instead of `space.mapping`.
        """
        from asid.config import mapping_given

        check_config(config, policy, kick, seed, space)
        if not instance:
            _clear_stale()
        paths = instances_.make_instance_dir(instance or f"{OWN_PREFIX}{os.getpid()}-{secrets.token_hex(3)}")
        if instances_.is_locked(paths):
            raise Busy(f"instance {paths.name!r} is running already", hint=f"asid down --instance {paths.name}")
        with contextlib.suppress(FileNotFoundError):
            paths.endpoints.unlink()  # of a daemon that was killed: not to be taken for the new one's
        config_file, script_file = _input_files(config, scripts, paths)
        command = [*words_of("asid.live.serve"), str(config_file), "--instance", paths.name]
        command += ["--checked"]  # a long recording is not read twice before the start
        for option, value in (
            ("--policy", policy),
            ("--kick", kick),
            ("--space", mapping_given(space)),
            ("--seed", "" if seed is None else str(seed)),
            ("--run-dir", str(run_dir)),
            ("--duration", "" if duration_ns is None else str(duration_ns)),
        ):
            command += [option, value] if value else []
        command += ["--until-exhausted"] if until_exhausted else []
        command += ["--script", str(script_file)] if script_file is not None else []
        waited_for = until_exhausted or duration_ns is not None or scripts  # its end is
        command += ["--no-verdict"] if waited_for else []
        leash = Leash()
        process: subprocess.Popen[bytes] | None = None
        try:
            with paths.log.open("wb") as log, signals.later():
                process = subprocess.Popen(
                    [*command, "--leash", str(leash.theirs)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, close_fds=True, pass_fds=[leash.theirs],
                )  # fmt: skip
            leash.passed()
            endpoints = cls._wait_ready(process, paths, time.monotonic() + timeout_s, timeout_s)
            return cls(process, paths, endpoints, leash)
        except BaseException:
            if process is not None:
                _bury(process, paths)
            leash.close()
            raise

    @staticmethod
    def _wait_ready(
        process: subprocess.Popen[bytes], paths: instances_.InstancePaths, deadline: float, timeout_s: float
    ) -> instances_.Endpoints:
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_SLICE_S)
                raise _failed_to_start(paths, f"ended with exit code {code}", code)
            endpoints = instances_.read_endpoints(paths)
            if endpoints is None or endpoints.pid != process.pid:
                continue
            with (
                contextlib.suppress(AsidError),
                client_.Client(endpoints, timeout_s=max(0.1, deadline - time.monotonic())) as caller,
            ):
                caller.hello()
                return endpoints
        process.kill()
        process.wait(LAST_S)
        raise _failed_to_start(paths, f"was not ready after {timeout_s:g} s, and was killed", NoAnswer.exit_code)

    def client(self, *, name: str = "", timeout_s: float = client_.TIMEOUT_S) -> client_.Client:
        """Return a client of this daemon, closed with it."""
        made = client_.Client(self.endpoints, name=name, timeout_s=timeout_s)
        self._clients.append(made)
        made.hello()
        return made

    @property
    def run_dir(self) -> Path:
        return Path(self.endpoints.run_dir)

    def stop(self, *, timeout_s: float = DRAIN_S, force: bool = False) -> Run:
        """Stop in order, judge, and return the run. Raise NoAnswer when it does not end in time; it then still runs.

        The verdict is made here, in this process, and takes what a journal of that length takes.
        """
        run = self.end(timeout_s=timeout_s, force=force)
        with contextlib.suppress(InputError):  # no journal to judge by: `Run.verdict` will say so
            judge_run(run.root)
        return run

    def end(self, *, timeout_s: float = DRAIN_S, force: bool = False) -> Run:
        """Stop in order and return the run, which has no verdict yet. Raise NoAnswer as `stop` does."""
        if self.process.poll() is None and instances_.is_locked(self.paths):
            self._asked = True
            with client_.Client(self.endpoints, name="stop", timeout_s=timeout_s) as stopper:
                with contextlib.suppress(NotRunning):
                    stopper.stop(force=force)
                stopper.wait_ended(timeout_s)
        self._close_clients()
        try:
            self.process.wait(LAST_S)
        except subprocess.TimeoutExpired:  # a signal had stopped it, and it judges: nothing of its work is lost
            self.process.kill()
            self.process.wait(LAST_S)
        self._leash.close()
        self._clear()
        return Run(self.run_dir)

    def detach(self) -> None:
        """Leave the daemon running; this object is of no more use."""
        self._close_clients()
        self._leash.release()
        self.process.returncode = 0  # else Popen warns, when it is collected, that its process still runs

    def kill(self) -> None:
        """SIGKILL the daemon; its children end with it."""
        self._close_clients()
        self._leash.close()
        self.process.kill()
        self.process.wait(LAST_S)

    def _clear(self) -> None:
        """Remove the directory of an instance that nobody named and nobody uses any more."""
        if self.process.returncode == 0:  # else its log is still wanted
            _remove_own(self.paths)

    def _close_clients(self) -> None:
        for made in self._clients:
            made.close()
        self._clients.clear()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if self.process.poll() is None:
                # Who leaves in a hurry waits for no verdict; who is interrupted again, not even for the gates.
                self.stop() if kind is None else self.end(force=self._asked)
        finally:
            if self.process.poll() is None:
                self.kill()
            self._leash.close()
            self._close_clients()
            self._clear()


def check_config(
    config: str | Path | Mapping[str, Any], policy: str, kick: str, seed: int | None, space: str = ""
) -> None:
    """Raise what is wrong with a configuration here, where its words reach the user, and not in the daemon's log."""
    from asid.config import load, mapping_given
    from asid.guest.check import check_guests, check_real_guests
    from asid.policies import require_kick, require_tested
    from asid.space_build import check_mapping

    given = (
        ("policy.name", policy), ("policy.kick", kick), ("seed", "" if seed is None else seed),
        ("space.mapping", mapping_given(space)),
    )  # fmt: skip
    loaded = load(config, {key: value for key, value in given if value != ""})
    check_guests(loaded)
    check_real_guests(loaded)
    check_mapping(loaded)
    require_tested(loaded.config.policy.name)
    require_kick(loaded.config.policy.name, kick)


def _input_files(
    config: str | Path | Mapping[str, Any], scripts: Sequence[Script], paths: instances_.InstancePaths
) -> tuple[Path, Path | None]:
    """Return the files that a daemon starts from: its configuration, and its scripts if there are any."""
    try:
        script_file = paths.root / "script.json" if scripts else None
        if script_file is not None:
            write_scripts(script_file, scripts)
        return config_file(config, paths.root), script_file
    except OSError as error:
        _remove_own(paths)
        raise refused_by_os(
            error, "what the daemon starts from cannot be written", where=str(paths.root),
            allowed="a directory with room that you may write", hint="Make room there, or set XDG_RUNTIME_DIR.",
        ) from error  # fmt: skip


def _clear_stale() -> None:
    """Remove directories that programs named for their daemons, when neither program nor daemon lives any more."""
    for found in instances_.find_instances():
        name = OWN_NAME.fullmatch(found.name)
        if name is None or found.running or Path("/proc", name[1]).exists():
            continue
        with contextlib.suppress(AsidError, OSError):
            lock_fd = instances_.take_lock(found.paths)
            shutil.rmtree(found.paths.root, ignore_errors=True)
            os.close(lock_fd)


def _bury(process: subprocess.Popen[bytes], paths: instances_.InstancePaths) -> None:
    """End a daemon whose start was given up: in order if it can, and at once when that is interrupted too."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(LAST_S)
    except subprocess.TimeoutExpired:
        pass  # killed now
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(LAST_S)
        _remove_own(paths)


def _remove_own(paths: instances_.InstancePaths) -> None:
    """Remove the directory of an instance that a program named for its daemon, when no daemon has it."""
    if OWN_NAME.fullmatch(paths.name) and not instances_.is_locked(paths):
        shutil.rmtree(paths.root, ignore_errors=True)


def _failed_to_start(paths: instances_.InstancePaths, happened: str, code: int) -> AsidError:
    try:
        lines = paths.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        lines = []
    _remove_own(paths)  # what its log said is in the error
    return start_failure(lines, paths.name, happened, code)
