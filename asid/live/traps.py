"""Traps for tests: a child that kills or stops itself right before a named step.

The environment of the daemon holds them, so nothing that comes over a socket can set one:

    ASID_TEST_TRAPS="c0h1.1:SEND_ANSWER:3:KILL c0.1:ORDER_GRANT:1:STOP"

is: the first incarnation of c0h1 is gone before it sends its third answer; the first coordinator of c0 stops before
its first grant. Steps are those of `step_name`; a coordinator also has RECEIVE, before it acts on a report. With a
fifth part, `:LATE`, steps count only once the file is there that ASID_TEST_TRAPS_LATE names.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from asid.core.events import Action, Bid, Do, Mode, Order, Said

VARIABLE = "ASID_TEST_TRAPS"
LATE_VARIABLE = "ASID_TEST_TRAPS_LATE"
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP}
RECEIVE = "RECEIVE"

Trap = Callable[[str], None]


def step_name(action: Action, within: str = "") -> str:
    """Name an action: SEND_ANSWER, SET_MODE_HOST, ORDER_GRANT, LOOK; within an NMI's handler NMI_SET_MODE_HOST."""
    do, what = action.do, action.a
    name = do.name
    if do is Do.SET_MODE:
        name += f"_{Mode(what).name}"  # type: ignore[arg-type]
    elif do is Do.SEND:
        name += f"_{Said(what).name}"  # type: ignore[arg-type]
    elif do is Do.SET_FLAG or do is Do.SET_DEPTH:
        name += f"_{what}"
    elif isinstance(what, Order):
        name += f"_{Bid(what.bid).name}"
    return f"{within}_{name}" if within else name


def trap_of(child: str) -> Trap | None:
    """Return what a child (`c0h1.1`, `c0.1`) calls with the name of each step, None when nothing is set for it."""
    found: dict[str, tuple[int, signal.Signals]] = {}
    late: set[str] = set()
    late_from = os.environ.get(LATE_VARIABLE, "")
    for entry in os.environ.get(VARIABLE, "").split():
        who, step, nth, signum, *more = entry.split(":")
        if who == child:
            found[step] = int(nth), SIGNALS[signum]
            late.update([step] if more else ())
    if not found:
        return None
    seen = dict.fromkeys(found, 0)

    def trap(step: str) -> None:
        if step in late and os.path.exists(late_from):
            late.discard(step)
        if step in seen and step not in late:
            seen[step] += 1
            nth, signum = found[step]
            if seen[step] == nth:
                os.kill(os.getpid(), signum)

    return trap
