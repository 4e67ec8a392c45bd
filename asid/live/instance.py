"""The directory of a running instance: who owns it, and where its sockets are.

    $XDG_RUNTIME_DIR/asid/INSTANCE/     mode 0700; without that variable: asid-<uid>/ in the temporary directory
        lock             flock, held by the daemon for its whole life: the only proof that it lives
        ctl.sock urgent.sock tel.sock
        endpoints.json   written last and atomically: whoever can read it can connect
        run              link to the directory of the last run
        daemon.log       stderr of a detached daemon
        listener-*       the fork server's socket, named by multiprocessing

An ipc bind steals the path of a living socket without an error, so nothing here is bound or removed without the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from asid.errors import AsidError, Busy, ConfigError, HostUnsuitable, NoAnswer, PermissionRefused
from asid.live.sockets import make_private_dir

DEFAULT_INSTANCE = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
LOCK_PATIENCE_NS = 200_000_000  # a reader that looks whether the lock is held has it for a moment
ENDPOINTS_BYTES_MAX = 65_536
ROOM_BYTES_MIN = 256 << 10  # for what is written there: endpoints, a configuration, a script, a log


class Endpoints(msgspec.Struct, frozen=True):
    """Contents of endpoints.json. started_ns: CLOCK_MONOTONIC. v: version of this file."""

    v: int
    boot_id: str
    pid: int
    instance: str
    ctl: str
    urgent: str
    tel: str
    run_dir: str
    started_ns: int


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """Files of one instance."""

    name: str
    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def ctl(self) -> Path:
        return self.root / "ctl.sock"

    @property
    def urgent(self) -> Path:
        return self.root / "urgent.sock"

    @property
    def tel(self) -> Path:
        return self.root / "tel.sock"

    @property
    def endpoints(self) -> Path:
        return self.root / "endpoints.json"

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"

    def sockets(self) -> list[Path]:
        """Every socket file that is there: the daemon's, its children's, its fork server's."""
        return sorted(path for pattern in ("*.sock", "listener-*") for path in self.root.glob(pattern))

    @property
    def run(self) -> Path:
        """A link to the last run. It stays: who comes late to a daemon's end finds what it left."""
        return self.root / "run"


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as found: running, stale (its daemon was killed, or the host went down) or ended in order."""

    paths: InstancePaths
    running: bool
    endpoints: Endpoints | None

    @property
    def name(self) -> str:
        return self.paths.name

    @property
    def stale(self) -> bool:
        """Whether something is left that a daemon removes when it ends."""
        return not self.running and (self.paths.endpoints.exists() or any(self.paths.sockets()))

    @property
    def state(self) -> str:
        return "running" if self.running else "stale" if self.stale else "ended"


def runtime_root() -> Path:
    """Return the directory of all instances of this user; it need not exist."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and os.path.isabs(given) and os.access(given, os.W_OK | os.X_OK):
        return Path(given) / "asid"
    return Path(tempfile.gettempdir()) / f"asid-{os.geteuid()}"


def instance_paths(name: str) -> InstancePaths:
    """Return the files of an instance; nothing is made. Raise ConfigError for a name that is no file name."""
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f"instance {name[:40]!r}",
            allowed="1 to 32 letters, digits, '_', '.' or '-', beginning with a letter or digit",
            hint=f"Try {DEFAULT_INSTANCE}.",
        )
    return InstancePaths(name, runtime_root() / name)


def make_instance_dir(name: str) -> InstancePaths:
    """Make the directory (0700) or check that it is ours. Raise PermissionRefused, ConfigError, HostUnsuitable."""
    paths = instance_paths(name)
    make_private_dir(paths.root.parent)
    make_private_dir(paths.root)
    room = os.statvfs(paths.root)
    if room.f_bavail * room.f_frsize < ROOM_BYTES_MIN:  # else a daemon dies of it, and cannot even log why
        with contextlib.suppress(OSError):  # it is kept when anything is in it
            paths.root.rmdir()
        raise HostUnsuitable(
            "no room for the files of an instance", where=str(paths.root),
            state=f"{room.f_bavail * room.f_frsize} bytes free", allowed=f"at least {ROOM_BYTES_MIN} bytes",
            hint="Make room there, or set XDG_RUNTIME_DIR to another directory of yours.",
        )  # fmt: skip
    return paths


def take_lock(paths: InstancePaths) -> int:
    """Return the descriptor of the instance's lock, held until it is closed. Raise Busy when a daemon holds it."""
    try:
        lock_fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise PermissionRefused(f"cannot open: {error.strerror}", where=str(paths.lock), hint="asid doctor") from None
    deadline_ns = time.monotonic_ns() + LOCK_PATIENCE_NS
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic_ns() < deadline_ns:
                pause.wait(0.01)
                continue
            os.close(lock_fd)
            found = read_endpoints(paths)
            raise Busy(
                f"instance {paths.name!r} is running already" + (f" (pid {found.pid})" if found else ""),
                hint=f"asid down --instance {paths.name}, or choose another --instance.",
                data={"instance": paths.name},
            ) from None
        return lock_fd


def is_locked(paths: InstancePaths) -> bool:
    """Return whether a daemon lives in this instance."""
    try:
        lock_fd = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock_fd)
    return False


def lock_holder(paths: InstancePaths) -> int:
    """Return the process that holds the lock, 0 when none is found. That it has the file open is looked at too."""
    try:
        wanted = paths.lock.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return 0
    found = read_endpoints(paths)
    candidates = [found.pid] if found is not None else []
    for line in lines:
        fields = line.split()  # 1: FLOCK ADVISORY WRITE 4711 08:01:131 0 EOF
        if fields[1:4:2] == ["FLOCK", "WRITE"] and fields[5].rpartition(":")[2] == str(wanted.st_ino):
            candidates.append(int(fields[4]))
    for pid in candidates:
        with contextlib.suppress(OSError):
            if any(_is_open(f"/proc/{pid}/fd/{fd}", wanted) for fd in os.listdir(f"/proc/{pid}/fd")):
                return pid
    return 0


def _is_open(descriptor: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(descriptor), wanted)
    except OSError:  # closed meanwhile
        return False


def point_to_run(paths: InstancePaths, run_dir: Path) -> None:
    """Make the link to the run. The caller holds the lock."""
    fresh = paths.root / f".run.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(run_dir)
    fresh.replace(paths.run)


def last_run(paths: InstancePaths) -> Path | None:
    """Return the directory of the instance's last run, None when it had none."""
    found = read_endpoints(paths)
    try:
        return Path(found.run_dir) if found is not None and found.run_dir else paths.run.readlink()
    except OSError:
        return None


def clear_leftovers(paths: InstancePaths) -> list[str]:
    """Remove what a client would look for, sockets of children too; return the names. The caller holds the lock."""
    removed = []
    for path in (paths.endpoints, *paths.sockets()):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed.append(path.name)
    return removed


def clear_after(paths: InstancePaths) -> None:
    """Remove what a killed daemon left, unless a new one has the name already (it has cleared it) or it is gone."""
    with contextlib.suppress(AsidError, OSError):
        lock = take_lock(paths)
        try:
            clear_leftovers(paths)
        finally:
            os.close(lock)


def write_endpoints(paths: InstancePaths, endpoints: Endpoints) -> None:
    """Write endpoints.json so that a reader sees all of it or nothing. The caller holds the lock."""
    fresh = paths.root / f".endpoints.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(endpoints) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, paths.endpoints)


def read_endpoints(paths: InstancePaths) -> Endpoints | None:
    """Return what a daemon wrote, None when it is not there, cut or foreign."""
    try:
        with paths.endpoints.open("rb") as file:
            return msgspec.json.decode(file.read(ENDPOINTS_BYTES_MAX), type=Endpoints)
    except (OSError, msgspec.MsgspecError):
        return None


def find_instances() -> list[Instance]:
    """Return the instances of this user, by name, stale and ended ones included."""
    try:
        entries = sorted(runtime_root().iterdir())
    except OSError:
        return []
    found = []
    for root in entries:
        if NAME.fullmatch(root.name) is None or not root.is_dir():
            continue
        paths = InstancePaths(root.name, root)
        running = is_locked(paths)
        if running or paths.lock.exists():
            found.append(Instance(paths, running, read_endpoints(paths)))
    return found


def wait_unlocked(paths: InstancePaths, timeout_s: float) -> None:
    """Wait until no daemon lives in this instance. Raise NoAnswer."""
    deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    pause = threading.Event()
    while is_locked(paths):
        if time.monotonic_ns() >= deadline_ns:
            state = f"after {timeout_s:g} s"
            raise NoAnswer(f"instance {paths.name!r} still runs", state=state, hint="asid down --force")
        pause.wait(0.02)
