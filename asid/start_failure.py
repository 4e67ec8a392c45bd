"""What a daemon that did not come up is told to have died of: from the last lines of its log, and how it ended."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from asid.errors import (
    AsidError,
    Busy,
    ConfigError,
    Crash,
    HostUnsuitable,
    NoAnswer,
    NotRunning,
    PermissionRefused,
)

TRACEBACK: Final = "Traceback (most recent call last):"
RAISED: Final = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Fault)\b")  # its last line
SAID: Final = re.compile(r"asid: (?:hint: (?P<hint>.*)|(?P<kind>[A-Z]\w+): (?P<what>.*))")
KINDS: Final[Mapping[int, type[AsidError]]] = {
    kind.exit_code: kind for kind in (ConfigError, PermissionRefused, HostUnsuitable, NotRunning, NoAnswer, Busy)
} | {0: NotRunning}


def start_failure(lines: Sequence[str], instance: str, happened: str, code: int) -> AsidError:
    """Return the error of a start that failed.

    lines: the end of the daemon's log. happened: what its starter saw of it. code: with which it ended, minus the
    signal. A sentence of the daemon's own is taken for the reason; a traceback beside it is that of a child of it.
    """
    kind = KINDS.get(code, NotRunning if code < 0 else Crash)  # 1 is a FAIL, which no start can be
    said = [found for line in lines if (found := SAID.fullmatch(line))]
    hint = next((found["hint"] for found in reversed(said) if found["hint"]), "asid doctor")
    what = next((found["what"] for found in reversed(said) if found["what"]), "")
    raised = [line for line in lines if RAISED.match(line)]
    if what and (TRACEBACK not in lines or (raised and SAID.fullmatch(lines[-1]))):  # five parts, in a sentence
        return kind(f"{what} ({raised[-1]})" if raised else what, hint=hint)
    state = "it said:\n" + "\n".join(lines) if lines else "it said nothing"
    return kind(f"the daemon {happened}", where=f"instance {instance}", state=state, hint=hint)
