"""The run directory: everything that one run leaves behind, under a name that is never used twice.

    <state>/asid/runs/20261104T101530Z-smt2-9f3a/
        manifest.json  config.toml  config.resolved.json  space.toml  journal.asid  stats.json  verdict.json  repro.sh
        kvm-events.txt, of real guests whose KVM's events were recorded
    <state>/asid/runs/latest -> 20261104T101530Z-smt2-9f3a

`manifest.json` says `running` until the daemon ends in order, then `ended`. One that says `running` while its process
is gone was left by a crash, and reads as `crashed`; the file itself stays as the daemon wrote it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asid import __version__
from asid.errors import HostUnsuitable, InputError, PermissionRefused, refused_by_os

JOURNAL = "journal.asid"
MANIFEST = "manifest.json"
RESOLVED = "config.resolved.json"
SPACE = "space.toml"  # what the isolated space of each VM maps at the start; of no VM, no file
LATEST = "latest"
FREE_BYTES_MIN = 16 << 20  # some seconds of journal at full rate; less means the run would be worthless
NAME_LENGTH_MAX = 40
CREATE_TRIES = 16
ENDED = ("Z", "X")  # states of a process that is one no more, in /proc/PID/stat

log = logging.getLogger(__name__)


def runs_root() -> Path:
    """Return `$XDG_STATE_HOME/asid/runs`; a relative or empty value counts as unset, as the XDG text asks."""
    base = os.environ.get("XDG_STATE_HOME", "")
    state = Path(base) if base and os.path.isabs(base) else Path.home() / ".local" / "state"
    return state / "asid" / "runs"


@dataclass(frozen=True)
class RunDir:
    """One run on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    @property
    def resolved(self) -> Path:
        return self.path / RESOLVED

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, with `status` as it is now; an empty map when there is none that can be read."""
        found = self.read_json(MANIFEST) or {}
        if found.get("status") == "running" and not _is_alive(found):
            found["status"] = "crashed"
        return found

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the run; None when it is missing. Raises InputError when it is not JSON."""
        path = self.path / name
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"not JSON: {str(error)[:80]}",
                where=str(path),
                allowed="a file written by asid",
                hint=f"asid audit {self.name} works from the journal alone",
            ) from error
        return found if isinstance(found, dict) else None

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file whole: a reader sees the old one or the new one."""
        write_atomically(self.path / name, json.dumps(document, ensure_ascii=False, indent=2) + "\n")

    def update_manifest(self, **changes: Any) -> None:
        """Change keys of the manifest; the writer is the daemon of the run."""
        self.write_json(MANIFEST, {**(self.read_json(MANIFEST) or {}), **changes})

    def end(self, reason: str, **more: Any) -> None:
        """Mark the run as ended in order."""
        ended = {"wall": _wall(), "monotonic_ns": time.monotonic_ns(), "reason": reason}
        self.update_manifest(status="ended", ended=ended, **more)


def create_run(
    name: str,
    *,
    config_text: str,
    resolved: Mapping[str, Any],
    seed: int,
    repro: Sequence[str] = (),
    root: Path | None = None,
    path: Path | None = None,
    more: Mapping[str, Any] | None = None,
    mapping_text: str = "",
) -> RunDir:
    """Make a new run directory with manifest, configuration and repro.sh, and point `latest` at it.

    config_text: the configuration as given. resolved: the same with every default. repro: the command that does this
    run again, with CONFIG for the copy of the configuration, SPACE for that of the mapping (default: `asid run CONFIG
    --seed N --space SPACE`). path: this very directory instead of a new name under root; it must not exist or be empty.
    mapping_text: of `asid.space_files.mapping_text`, or "" for none.

    Raises HostUnsuitable (no room), PermissionRefused, InputError (path is in use).
    """
    try:
        made = _take(path) if path is not None else _make(root or runs_root(), name)
    except OSError as error:
        raise PermissionRefused(
            f"cannot make the run directory: {error.strerror}",
            where=str(path or root or runs_root()),
            hint="set XDG_STATE_HOME to a directory you may write, or pass --run-dir",
        ) from error
    room = os.statvfs(made)
    if room.f_bavail * room.f_frsize < FREE_BYTES_MIN:
        made.rmdir()
        raise HostUnsuitable(
            "no room for a journal",
            where=str(made.parent),
            state=f"{room.f_bavail * room.f_frsize} bytes free",
            allowed=f"at least {FREE_BYTES_MIN} bytes",
            hint="remove old runs with asid runs rm, or pass --run-dir",
        )
    run = RunDir(made)
    write_atomically(made / "config.toml", config_text)
    run.write_json(RESOLVED, resolved)
    if mapping_text:
        write_atomically(made / SPACE, mapping_text)
    mapped = ["--space", "SPACE"] if mapping_text else []
    command = list(repro) or ["asid", "run", "CONFIG", "--seed", str(seed), *mapped]
    _write_repro(made / "repro.sh", command)
    run.write_json(
        MANIFEST,
        {
            "schema": "run/1",
            "name": name,
            "status": "running",
            "asid": __version__,
            "seed": seed,
            "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
            "started": {"wall": _wall(), "monotonic_ns": time.monotonic_ns()},
            "pid": os.getpid(),
            "pid_started": _pid_started(os.getpid()),
            "host": host_facts(),
            "command": command,
            **(more or {}),
        },
    )
    if path is None:
        _point_latest(made)
    return run


def open_run(which: str | Path = LATEST, *, root: Path | None = None) -> RunDir:
    """Return a run by directory, by journal file, by name, by an unambiguous part of its name, or `latest`.

    Raises InputError when there is none or more than one, or the directory of runs is none; PermissionRefused.
    """
    base = root or runs_root()
    text = str(which)
    direct = Path(text)
    try:
        if direct.is_file() and direct.name == JOURNAL:
            return RunDir(direct.parent.resolve())
        for candidate in (direct, base / text) if text else ():
            if (candidate / JOURNAL).exists() or (candidate / MANIFEST).exists():
                return RunDir(candidate.resolve())
    except OSError as error:
        raise refused_by_os(error, f"the run {text!r} cannot be looked for", where="RUN", hint="asid runs ls") from None
    names = [run.name for run in list_runs(root=base)]
    near = [name for name in names if text and text in name]
    if len(near) == 1:
        return RunDir((base / near[0]).resolve())
    if near:
        raise InputError(
            f"{text!r} is the name of {len(near)} runs",
            where="RUN",
            state=", ".join(near[:4]) + (", ..." if len(near) > 4 else ""),
            hint=f"the newest of them is {near[0]}",
        )
    raise InputError(
        f"there is no run {text!r}" if text != LATEST else "there is no run yet",
        where="RUN",
        state=f"{len(names)} runs in {base}",
        allowed="latest, a run's name or part of it, or a directory with a journal",
        hint="asid runs ls" if names else "asid run configs/smt2.toml --duration 2s makes one",
    )


def find_run(which: str | Path = LATEST) -> Path:
    """Return the directory of a run; what names one is said at `open_run`."""
    return open_run(which).path


def list_runs(*, root: Path | None = None) -> list[RunDir]:
    """Return the runs under root, newest first. Raises an error of `refused_by_os` when it cannot be listed."""
    base = root or runs_root()
    try:
        entries = sorted((entry for entry in os.scandir(base)), key=lambda entry: entry.name, reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refused_by_os(
            error, "the runs cannot be listed", where=str(base), allowed="a directory that you may read",
            hint="Set XDG_STATE_HOME to the directory that has asid/runs, or leave it out.",
        ) from error  # fmt: skip
    return [
        RunDir(Path(entry.path))
        for entry in entries
        if not entry.is_symlink() and entry.is_dir() and (Path(entry.path) / MANIFEST).exists()
    ]


def host_facts() -> dict[str, Any]:
    """Return what a reader must know of the host to trust the numbers."""
    import msgpack
    import zmq

    return {
        "hostname": platform.node(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cpus": os.cpu_count() or 1,
        "cpus_allowed": sorted(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
        "msgpack": ".".join(str(part) for part in msgpack.version),
        "executable": sys.executable,
    }


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    clean = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:NAME_LENGTH_MAX] or "run"
    for _ in range(CREATE_TRIES):
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = root / f"{stamp}-{clean}-{secrets.token_hex(2)}"
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{CREATE_TRIES} names in a row are taken")


def _take(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(path.iterdir()):
        raise InputError(
            "the run directory is not empty",
            where=str(path),
            allowed="a new or empty directory",
            hint="a run is never overwritten; choose another name",
        )
    return path


def _point_latest(run: Path) -> None:
    temporary = run.parent / f".{LATEST}.{secrets.token_hex(4)}"
    try:
        os.symlink(run.name, temporary)
        os.replace(temporary, run.parent / LATEST)
    except OSError as error:  # a convenience: the run itself does not depend on it
        temporary.unlink(missing_ok=True)
        log.warning("cannot point %s at %s: %s", run.parent / LATEST, run.name, error.strerror)


def _write_repro(path: Path, command: Sequence[str]) -> None:
    # The resolved one: its paths are absolute, and what the command line changed is in it.
    copies = {"CONFIG": '"$here/config.resolved.json"', "SPACE": f'"$here/{SPACE}"'}
    words = [copies.get(word) or shlex.quote(word) for word in command]
    if words[0] == "asid":
        words[:1] = [shlex.quote(sys.executable), "-m", "asid"]  # this very asid, on the PATH or not
    script = (
        "#!/bin/sh\n# Runs this run's configuration again, with the same seed, into a new run directory.\nset -eu\n"
        'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)\n'
        f'exec {" ".join(words)} "$@"\n'
    )
    write_atomically(path, script)
    path.chmod(0o700)


def _wall() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _pid_started(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 when there is none, or it has ended and its
    parent has not yet looked. Tells reused pids apart."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
            return 0 if fields[0] in ENDED else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_alive(manifest: Mapping[str, Any]) -> bool:
    pid, started = manifest.get("pid"), manifest.get("pid_started")
    return isinstance(pid, int) and _pid_started(pid) == started and started != 0


def run_schema() -> dict[str, Any]:
    """Return the JSON Schema of the files of a run that programs read: manifest, verdict and stats."""
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}

    def table(required: str, **properties: Any) -> dict[str, Any]:
        return {"type": "object", "required": required.split(), "properties": properties}

    moment = table("wall monotonic_ns", wall=text, monotonic_ns=whole)
    finding = table(
        "state checked broken",
        state={"enum": ["held", "broken", "not exercised"]},
        checked=whole,
        broken=whole,
        suspects=whole,
        note=text,
        violations={"type": "array"},
    )
    row = table("core ht vm reason n full sum_ns min_ns max_ns hist", reason=text, n=whole, full=whole, sum_ns=whole)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "asid run directory",
        "type": "object",
        "properties": {
            "manifest.json": table(
                "schema name status asid seed config_sha256 started pid host command",
                status={"enum": ["running", "ended", "crashed"]},
                seed=whole,
                started=moment,
                ended=moment,
                host={"type": "object"},
                command={"type": "array", "items": text},
            ),
            "verdict.json": table(
                "verdict passed reasons run guarantees exposure figures",
                verdict={"enum": ["PASS", "FAIL", "UNKNOWN"]},
                passed={"type": "boolean"},
                reasons={"type": "array", "items": text},
                guarantees={"type": "object", "additionalProperties": finding},
                exposure=table("count p50_ns p99_ns max_ns windows", count=whole, max_ns=whole),
                figures={"type": "object", "properties": {"exits_per_s": number, "kicks_per_s": number}},
            ),
            "stats.json": table("rows totals", rows={"type": "array", "items": row}, totals={"type": "object"}),
        },
    }
