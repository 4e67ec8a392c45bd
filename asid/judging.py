"""The verdict of a run that has ended: read where it was made, made where it was not.

The daemon ends without one, so that its end takes no longer with a long journal. Whoever stopped it judges, in its own
process and in its own time: `asid down`, `asid run`, `Daemon.stop`; a daemon that was stopped by a signal does so
itself, when everything else of it is gone. Killed half way it leaves the run as it was, and `asid audit` judges it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asid.errors import AsidError
from asid.live.rundir import RunDir

VERDICT = "verdict.json"
TICK_S = 0.25


def judge_run(path: Path, on_wait: Callable[[float], None] | None = None) -> dict[str, Any]:
    """Return the verdict of a run; make it from the journal, and keep it in the run, when there is none yet.

    on_wait(seconds so far) is called a few times a second while it is made, in a thread of its own.
    Raise InputError when there is no journal to judge by.
    """
    run = RunDir(path)
    with contextlib.suppress(AsidError):
        if found := run.read_json(VERDICT):
            return found
    from asid.audit import audit

    with telling(on_wait):
        verdict: dict[str, Any] = audit(path).as_map()
    with contextlib.suppress(OSError):  # a run that cannot be written to has a verdict all the same
        if run.manifest().get("status") == "ended":  # while it is being written it is not over yet
            run.write_json(VERDICT, verdict)
            run.update_manifest(verdict=str(verdict.get("verdict", "")))
    return verdict


@contextlib.contextmanager
def telling(on_wait: Callable[[float], None] | None) -> Iterator[None]:
    """Call on_wait(seconds so far) a few times a second while a block runs, in a thread of its own."""
    if on_wait is None:
        yield
        return
    over = threading.Event()
    begun = time.monotonic()

    def tell() -> None:
        while not over.wait(TICK_S):
            on_wait(time.monotonic() - begun)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
