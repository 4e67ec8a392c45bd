"""The loop of a sweep: submit, keep what has ended, submit again what was lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from asid.errors import HostUnsuitable, NoAnswer
from asid.sweep.play import Job, play
from asid.sweep.pools import Lost, Pool

POLL_S: Final = 1.0
LOSSES_MAX: Final = 5  # of one run; whoever plays it is not killed by chance any more


def go(
    pool: Pool,
    jobs: Iterable[Job],
    *,
    keep: Callable[[int, dict[str, Any]], None],
    tell: Callable[[], None],
    deadline_s: float,
    how: Callable[[Job], dict[str, Any]] = play,
) -> None:
    """Play every job once to its end, and keep(number, row) each as it comes. tell() is called now and then.

    A run whose player dies is played again. Raise NoAnswer when none ends for deadline_s, HostUnsuitable when
    whoever plays a run dies again and again, and what playing raises.
    """
    waiting = iter(jobs)
    again: list[Job] = []
    losses: Counter[int] = Counter()
    under_way: dict[Any, Job] = {}
    last = time.monotonic()
    while True:
        for _ in range(pool.room() - len(under_way)):
            job = again.pop() if again else next(waiting, None)
            if job is None:
                break
            under_way[pool.submit(how, job)] = job
        if not under_way:
            return
        tell()
        ended = pool.ended(set(under_way), POLL_S)
        for future in ended:
            job = under_way.pop(future)
            try:
                row = pool.result(future)
            except Lost as lost:
                losses[job.number] += 1
                if losses[job.number] == LOSSES_MAX:
                    raise _killed(job, lost) from lost
                again.append(job)
            else:
                keep(job.number, row)
                last = time.monotonic()
        if time.monotonic() - last > deadline_s:
            numbers = ", ".join(str(job.number) for job in under_way.values())
            raise NoAnswer(
                f"no run has ended for {deadline_s:.0f} s", where="asid sweep", state=f"under way: {numbers}"[:200],
                allowed="one within --deadline", hint="Give a longer --deadline, or a shorter duration in the matrix.",
            )  # fmt: skip


def _killed(job: Job, lost: Lost) -> HostUnsuitable:
    return HostUnsuitable(
        f"whoever plays run {job.number} is killed", where="asid sweep", state=f"{LOSSES_MAX} times; {lost}",
        allowed="processes that live as long as a run", hint="Was it for their memory? Try fewer --jobs.",
    )  # fmt: skip
