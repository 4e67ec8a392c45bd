"""Every error a user can see, and what it means for the exit code and for the control protocol.

An error has five parts: where it happened, what is wrong, the state it met, what was allowed, and what to do
next. `AsidError` holds the five; `str()` gives the sentence and `hint` the last part.

Control-protocol errors are the subclasses with a `wire_class`: clients branch on that name only. Whether the
operation took effect is said in `applied` ("no", "yes" or "unknown"), whether a retry helps in `retry`
("never", "later" or "now"). See docs/protocol.md.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar, Final

# Exit codes of every command. Where several apply, EXIT_PRECEDENCE decides.
EXIT_OK = 0
EXIT_FAIL = 1
EXIT_USAGE = 2
EXIT_UNKNOWN = 3
EXIT_PERMISSION = 4
EXIT_NOT_DETERMINISTIC = 5
EXIT_HOST_UNSUITABLE = 6
EXIT_NOT_RUNNING = 7
EXIT_NO_ANSWER = 8
EXIT_VERSION = 9
EXIT_REFUSED = 10
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_PRECEDENCE = (
    EXIT_INTERNAL,
    EXIT_USAGE,
    EXIT_PERMISSION,
    EXIT_NOT_RUNNING,
    EXIT_VERSION,
    EXIT_NO_ANSWER,
    EXIT_REFUSED,
    EXIT_NOT_DETERMINISTIC,
    EXIT_FAIL,
    EXIT_UNKNOWN,
    EXIT_OK,
)


def gravest(codes: list[int]) -> int:
    """Return the exit code that wins when several apply; EXIT_OK for none."""
    return min(codes, key=EXIT_PRECEDENCE.index, default=EXIT_OK)


class AsidError(Exception):
    """A five-part error: where, what, in which state, what was allowed, what to do next."""

    exit_code: ClassVar[int] = EXIT_FAIL
    wire_class: ClassVar[str | None] = None
    applied: ClassVar[str] = "no"
    retry: ClassVar[str] = "never"

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        state: str = "",
        allowed: str = "",
        hint: str = "",
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.state = state
        self.allowed = allowed
        self.hint = hint
        self.data = data or {}

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.state:
            text += f" ({self.state})"
        if self.allowed:
            text += f": must be {self.allowed}"
        return text


class ConfigError(AsidError):
    """A configuration, a target or an argument is not of the form it must have."""

    exit_code = EXIT_USAGE


class InputError(AsidError):
    """A file given by the user is truncated, foreign, or holds nothing of use."""

    exit_code = EXIT_USAGE


class PermissionRefused(AsidError):
    """The operating system does not let us."""

    exit_code = EXIT_PERMISSION


class HostUnsuitable(AsidError):
    """This host lacks what the run needs (memory, descriptors, a kernel feature)."""

    exit_code = EXIT_HOST_UNSUITABLE


class NotRunning(AsidError):
    """No daemon answers under that instance name."""

    exit_code = EXIT_NOT_RUNNING


class NoAnswer(AsidError):
    """No reply before the deadline. What was asked for may still happen."""

    exit_code = EXIT_NO_ANSWER
    applied = "unknown"
    retry = "now"


_PERMISSION: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NAME: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.EINVAL}
)


def refused_by_os(fault: OSError, what: str, *, where: str, allowed: str = "", hint: str = "") -> AsidError:
    """Return what a user is told when a file or a directory of theirs cannot be used: a name that leads nowhere is a
    usage error, what may not be touched one of permission; all else (no room, no descriptors) is the host's."""
    kind = PermissionRefused if fault.errno in _PERMISSION else InputError if fault.errno in _NAME else HostUnsuitable
    return kind(what, where=where, state=fault.strerror or str(fault), allowed=allowed, hint=hint)


class MappingRefused(AsidError):
    """A rule of page tables stands against a change; nothing was changed. errno: the kernel's name for it."""

    exit_code = EXIT_REFUSED

    def __init__(
        self, errno: str, what: str, *, where: str, state: str = "", allowed: str = "", hint: str = ""
    ) -> None:
        super().__init__(f"{errno}: {what}", where=where, state=state, allowed=allowed, hint=hint)
        self.errno = errno


class ProtocolFault(AsidError):
    """A move that the transition table rejects: its sender is broken. Ours, never the user's."""

    exit_code = EXIT_INTERNAL


class Crash(AsidError):
    """A fault of ours, of which nothing more is known than where it showed."""

    exit_code = EXIT_INTERNAL
    applied = "unknown"


def crash_of(fault: BaseException) -> Crash:
    """Return what a user is told of an exception that nobody foresaw: its kind, its text and its place."""
    place = ""
    trace = fault.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    text = f"{type(fault).__name__}: {fault}"
    return Crash(f"a fault of asid's own at {place}: {text[:300]}", hint="Set ASID_DEBUG=1 to see where it comes from.")


class ControlError(AsidError):
    """Base of the errors that travel over the control socket."""

    exit_code = EXIT_REFUSED
    wire_class = "Internal"


class WireVersion(ControlError):
    """The two ends speak different protocol versions."""

    exit_code = EXIT_VERSION
    wire_class = "WireVersion"


class UnknownOp(ControlError):
    """The daemon has no such operation."""

    exit_code = EXIT_USAGE
    wire_class = "UnknownOp"


class BadArgument(ControlError):
    """An argument is missing, unknown, of the wrong type or out of range."""

    exit_code = EXIT_USAGE
    wire_class = "BadArgument"


class NoSuchObject(ControlError):
    """The core, hyperthread, VM, vCPU, job or event named does not exist."""

    exit_code = EXIT_USAGE
    wire_class = "NoSuchObject"


class Busy(ControlError):
    """Somebody else holds the object; the error names the holder."""

    wire_class = "Busy"
    retry = "later"


class Conflict(ControlError):
    """The object is in a state that does not allow the operation."""

    wire_class = "Conflict"


class PolicyRefused(ControlError):
    """The policy in force does not allow the operation."""

    wire_class = "PolicyRefused"


class IdempotencyConflict(ControlError):
    """The idempotency key was used before with other arguments."""

    wire_class = "IdempotencyConflict"


class Expired(ControlError):
    """Not done in time: not begun, or undone. With `applied` unknown it goes on, and `state` says how it stands."""

    wire_class = "Expired"
    retry = "now"


class Restarted(ControlError):
    """The target was restarted meanwhile; whether the operation took effect is unknown."""

    exit_code = EXIT_NO_ANSWER
    wire_class = "Restarted"
    applied = "unknown"
    retry = "now"


class Forbidden(ControlError):
    """The client's role does not allow the operation."""

    exit_code = EXIT_PERMISSION
    wire_class = "Forbidden"


class LimitExceeded(ControlError):
    """A limit stated in `hello` would be exceeded."""

    wire_class = "LimitExceeded"
    retry = "later"


class ShuttingDown(ControlError):
    """The daemon is draining and takes no new work."""

    wire_class = "ShuttingDown"


class Internal(ControlError):
    """A fault of ours; the effect is unknown."""

    exit_code = EXIT_INTERNAL
    wire_class = "Internal"
    applied = "unknown"


CONTROL_ERRORS: dict[str, type[ControlError]] = {
    cls.wire_class: cls
    for cls in (
        WireVersion,
        UnknownOp,
        BadArgument,
        NoSuchObject,
        Busy,
        Conflict,
        PolicyRefused,
        IdempotencyConflict,
        Expired,
        Restarted,
        Forbidden,
        LimitExceeded,
        ShuttingDown,
        Internal,
    )
    if cls.wire_class is not None
}
