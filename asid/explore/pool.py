"""A set of models searched by as many processes as there are cores.

Processes are spawned, never forked. They end with their parent, however it ends, and stop at a deadline: a search
that was stopped is not complete and proves nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, NamedTuple

from asid import signals
from asid.errors import HostUnsuitable
from asid.explore import schedule, story
from asid.explore.checks import exercised
from asid.explore.parts import Model
from asid.explore.search import Leak, Result, search

NS = 1_000_000_000


class Outcome(NamedTuple):
    """What came of the search of one model, in plain values."""

    name: str
    model: Model
    states: int
    transitions: int
    depth: int
    seconds: float
    complete: bool
    missing: tuple[str, ...]  # what should happen somewhere and never did
    guarantee: str = ""  # broken; "" for none
    sentence: str = ""
    steps: int = 0
    story: str = ""
    schedule: dict[str, Any] | None = None
    broken: tuple[
        tuple[str, int], ...
    ] = ()  # of a search to the end: each guarantee, and the steps of a shortest story
    exercised: tuple[str, ...] = ()  # ... and which guarantees had anything to say
    leaks: tuple[tuple[str, Leak], ...] = ()  # ... and in how many worlds a guest leaks, by kind

    @property
    def passed(self) -> bool:
        return self.complete and not self.guarantee and not self.missing


def outcome(name: str, result: Result, seconds: float) -> Outcome:
    missing = tuple(what for what, happened in result.sometimes.items() if not happened) if result.complete else ()
    base = Outcome(
        name, result.model, result.states, result.transitions, result.depth, seconds, result.complete, missing
    )
    broken = tuple(sorted((guarantee, v.steps) for guarantee, v in result.violations.items()))
    base = base._replace(broken=broken, exercised=exercised(result.world), leaks=tuple(sorted(result.leaks.items())))
    v = result.violation
    if v is None:
        return base
    return base._replace(
        guarantee=v.guarantee,
        sentence=v.sentence,
        steps=v.steps,
        story=story.told(result.world, v, name),
        schedule=schedule.as_document(schedule.scheduled(result.world, v)),
    )


class _Shared(NamedTuple):
    """Between the pool and its processes: worlds found by each search, and the word to stop."""

    counts: Any
    stop: Any


_shared: list[_Shared] = []  # in a process of the pool: the one thing it was given


def _begin(counts: Any, stop: Any) -> None:
    """Start a process of the pool: end with the parent, whatever becomes of it."""
    _shared.append(_Shared(counts, stop))
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    gc.disable()  # a search makes millions of things that all live to its end


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _explore(at: int, name: str, model: Model, states_max: int, deadline_ns: int, to_the_end: bool) -> Outcome:
    """Search one model in a process of the pool."""
    counts, stop = _shared[0]

    def tell(states: int) -> bool:
        counts[at] = states
        return not stop.is_set() and time.monotonic_ns() < deadline_ns

    begin = time.monotonic_ns()
    if not tell(0):
        return Outcome(name, model, 0, 0, 0, 0.0, False, ())
    result = search(model, states_max=states_max, tell=tell, to_the_end=to_the_end)
    done = outcome(name, result, (time.monotonic_ns() - begin) / NS)
    counts[at] = result.states
    del result
    gc.collect()
    return done


def explore(
    models: Sequence[tuple[str, Model]], *, states_max: int, deadline_ns: int, workers: int, every_s: float = 2.0,
    to_the_end: bool = False,
) -> Generator[Outcome | int]:  # fmt: skip
    """Yield the outcome of each model as it comes, and at least every `every_s` seconds the worlds found by all.

    `deadline_ns` is a time of the monotonic clock. Give the largest models first. `to_the_end`: a violation ends no
    search.
    """
    context = multiprocessing.get_context("spawn")
    counts, stop = context.Array("Q", len(models), lock=False), context.Event()
    with ProcessPoolExecutor(min(workers, len(models)), context, _begin, (counts, stop)) as pool:
        try:
            with signals.deaf_children():
                waiting: set[Future[Outcome]] = {
                    pool.submit(_explore, at, name, model, states_max, deadline_ns, to_the_end)
                    for at, (name, model) in enumerate(models)
                }
            while waiting:
                done, waiting = wait(waiting, every_s, FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                yield sum(counts)
        except BrokenProcessPool as error:
            raise HostUnsuitable(
                "a process of the pool was killed",
                where="asid explore",
                hint="Was it for its memory? A world takes 200 to 400 bytes: try --jobs 1 or a smaller --states-max.",
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
