"""What is told to a client that gets no answer: whether its daemon has ended, or lives and stands still."""

from __future__ import annotations

from asid.errors import AsidError, NoAnswer, NotRunning
from asid.live.instance import InstancePaths, is_locked, lock_holder


def of(paths: InstancePaths, op: str, *, dead: bool, sent: bool, idem: str = "") -> AsidError:
    """Return the error of a call without an answer. sent: the daemon may have got it; dead: its process has ended."""
    if dead and not sent:
        return NotRunning(f"{op}: cannot be sent", state="the daemon has ended", hint="asid ls")
    if dead or sent:
        return NoAnswer(
            f"{op}: no answer in time",
            state="the daemon has ended" if dead else "it may still happen",
            hint="Ask again with the same idempotency key.",
            data={"idem": idem} if idem else {},
        )
    if not is_locked(paths):
        return NotRunning(f"{op}: cannot be sent", state="nothing was sent", hint="asid ls")
    pid = lock_holder(paths)
    return _not_applied(
        f"{op}: no answer in time",
        state=f"instance {paths.name!r}{_of_pid(pid)} lives and takes nothing; nothing was sent",
        hint=f"asid down --force --instance {paths.name} ends it.",
        pid=pid,
    )


def of_one_between(paths: InstancePaths) -> AsidError:
    """Return the error of a connection to a daemon that lives and has no sockets."""
    pid = lock_holder(paths)
    return _not_applied(
        f"instance {paths.name!r}{_of_pid(pid)} takes no clients now",
        state="it has just begun, or is about to end",
        hint=f"Try again in a moment; asid down --force --instance {paths.name} ends it.",
        pid=pid,
    )


def _of_pid(pid: int) -> str:
    return f" (pid {pid})" if pid else ""


def _not_applied(what: str, *, state: str, hint: str, pid: int) -> NoAnswer:
    error = NoAnswer(what, state=state, hint=hint, data={"pid": pid} if pid else {})
    vars(error)["applied"] = "no"
    return error
