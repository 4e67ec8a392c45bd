"""What the host lets a daemon have: checked before the first process, and named when it runs out all the same."""

from __future__ import annotations

import errno
import resource
from typing import Final

from asid.config import Config
from asid.errors import AsidError, HostUnsuitable, crash_of
from asid.live.fork_server import ForkServerEnded
from asid.live.ring import HEAD_BYTES, RING_BYTES

# Descriptors that a daemon holds, as counted in running ones: for itself and a first client, for each core (its
# coordinator's pidfd, ring and pipe, the core page, a peer of the link), for each hyperthread the same and a doorbell.
FDS_OWN: Final = 24
FDS_CORE: Final = 8
FDS_HYPERTHREAD: Final = 7

FILE_BYTES: Final = HEAD_BYTES + RING_BYTES  # the longest of them is a ring

_LIMITS: Final = {
    errno.EMFILE: "open files of a process: ulimit -n",
    errno.ENFILE: "open files of the host: sysctl fs.file-max",
    errno.ENOMEM: "memory",
    errno.EAGAIN: "processes of this user: ulimit -u",
    errno.EFBIG: "length of a file: ulimit -f",
}


def check_descriptors(config: Config) -> None:
    """Raise HostUnsuitable when a machine of this size certainly does not fit under the limit of open files."""
    machine = config.machine
    hyperthreads = machine.cores * machine.smt
    needed = FDS_OWN + FDS_CORE * machine.cores + FDS_HYPERTHREAD * hyperthreads
    if real := len(config.real_vms):
        needed += real + hyperthreads  # a memory each, and the other end of each doorbell
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    raise HostUnsuitable(
        "too few open files are allowed (ulimit -n)",
        where="start",
        state=f"the limit is {limit}, the machine has {hyperthreads} hyperthreads on {machine.cores} cores",
        allowed=f"{needed} or more",
        hint=f"ulimit -n {needed}, then start again."
        if most == resource.RLIM_INFINITY or most >= needed
        else "Raise the hard limit of open files (ulimit -Hn), or start a smaller machine; asid doctor.",
    )


def check_file_size() -> None:
    """Raise HostUnsuitable when not even the memory between two processes may be as long as it must."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY or limit >= FILE_BYTES:
        return
    raise HostUnsuitable(
        "files may not be long enough (ulimit -f)",
        where="start",
        state=f"the limit is {limit} bytes",
        allowed=f"{FILE_BYTES} bytes or more, and the length of a journal",
        hint="ulimit -f unlimited, then start again."
        if most == resource.RLIM_INFINITY
        else "Raise the hard limit of the length of files (ulimit -Hf); asid doctor.",
    )


def start_failure(fault: Exception) -> AsidError:
    """Return what a user is told when a daemon ends by `fault`: a limit of the host by name, or a fault of ours."""
    if isinstance(fault, AsidError):
        return fault
    if isinstance(fault, ForkServerEnded):
        return HostUnsuitable(
            str(fault.strerror), where="start", state="it was killed, by asid itself if it bore nobody",
            allowed="a fork server that lives", hint="Start again; asid doctor; look at load and memory.",
        )  # fmt: skip
    limit = _LIMITS.get(getattr(fault, "errno", None) or 0)
    if limit is None:
        return crash_of(fault)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HostUnsuitable(
        f"the host gives no more {limit}",
        where="daemon",
        state=f"{fault}; open files: {soft}",
        allowed="what a machine of this size needs",
        hint="Raise that limit, or start a smaller machine; asid doctor shows the limits.",
    )
