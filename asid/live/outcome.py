"""Answers of a daemon as a client sees them: the other end of `requests`.

Not to be confused with the daemon's side, which builds them; the two ends share only asid.ops and asid.errors.
"""

from __future__ import annotations

from typing import Any

import msgpack

from asid import ops
from asid.errors import CONTROL_ERRORS, EXIT_NO_ANSWER, ControlError, Internal


def decode_answer(frames: list[bytes]) -> dict[str, Any] | None:
    """Return the map of an answer, None when these frames are none."""
    if len(frames) != 2 or frames[0] != ops.MAGIC or len(frames[1]) > 2 * ops.REPLY_BYTES_MAX:
        return None
    try:
        answer = msgpack.unpackb(frames[1], raw=False)
    except Exception:  # whatever it is, it is no answer
        return None
    return answer if isinstance(answer, dict) else None


def as_error(err: dict[str, Any], idem: str = "") -> ControlError:
    """Return the exception that an `err` map stands for; a class that we do not know is an Internal."""
    data = dict(err.get("data", {}))
    parts = {name: str(data.pop(name, "")) for name in ("where", "state", "allowed")}
    what = str(data.pop("what", "") or err.get("msg", "an error without a message"))
    if idem and err.get("applied") != "no":
        data["idem"] = idem
    error = CONTROL_ERRORS.get(str(err.get("class")), Internal)(what, **parts, hint=str(err.get("hint", "")), data=data)
    told = {"applied": str(err.get("applied", "unknown")), "retry": str(err.get("retry", "never"))}
    if told["applied"] == "unknown" and error.applied == "no":
        vars(error)["exit_code"] = EXIT_NO_ANSWER
    vars(error).update(told)  # what the daemon said about this one counts more than the class
    return error
