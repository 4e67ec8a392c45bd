"""Who plays the runs: processes of this machine, or the workers of a Dask cluster. A sweep sees no difference.

Whoever dies while a run is under way loses it: `result` raises Lost, and the sweep submits it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

from asid import signals
from asid.errors import ConfigError, NoAnswer, NotRunning
from asid.extras import needed

AHEAD: Final = 2  # runs under way for each that is being played, so that nobody waits for the next one
AHEAD_FAR: Final = 8  # and where the next one has to come by a network
CONNECT_S: Final = 5.0
WORKERS_S: Final = 20.0  # without any worker for so long, a cluster is of no use
LOOK_S: Final = 2.0  # between two looks at who works
RESULT_S: Final = 15.0  # for the row of a run that has ended to come over
ADDRESS: Final = re.compile(r"(?:tcp|tls)://(?:\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d{1,5}")


class Lost(Exception):
    """Whoever played the run is gone; what came of it is unknown, and does not matter."""


class Pool(Protocol):
    """Where runs are played. A future is opaque: it came from submit, and goes to ended and result."""

    def room(self) -> int:
        """Return how many runs it is worth having under way."""

    def submit(self, function: Callable[[Any], Any], job: Any) -> Any:
        """Have function(job) called somewhere, and return its future."""

    def ended(self, futures: set[Any], seconds: float) -> set[Any]:
        """Return those that have ended; wait for the first, at most so long."""

    def result(self, future: Any) -> Any:
        """Return what function returned, or raise what it raised, or Lost."""

    def close(self) -> None:
        """End whatever is under way."""


class Local:
    """Processes of this machine. They end with this one, however it ends, and with `close`."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._told, self._tells = get_context("spawn").Pipe(duplex=False)
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._jobs, get_context("spawn"), _end_with, (self._told,))

    def room(self) -> int:
        return self._jobs * AHEAD

    def submit(self, function: Callable[[Any], Any], job: Any) -> Any:
        with signals.deaf_children():
            try:
                return self._pool.submit(function, job)
            except BrokenProcessPool:
                self._pool.shutdown()
                self._pool = self._started()
                return self._pool.submit(function, job)

    def ended(self, futures: set[Any], seconds: float) -> set[Any]:
        return set(wait(futures, seconds, FIRST_COMPLETED).done)

    def result(self, future: Any) -> Any:
        try:
            return future.result()
        except (BrokenProcessPool, CancelledError) as error:
            raise Lost("a process of the sweep was killed") from error

    def close(self) -> None:
        self._tells.close()
        self._pool.shutdown(cancel_futures=True)
        self._told.close()


def _end_with(told: Connection) -> None:
    """Start a process of the pool: it ends when nobody can write to this pipe any more."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            told.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Cluster:
    """The workers of a Dask scheduler that runs already. Raise ConfigError for what is no address, NotRunning when no
    scheduler answers there, NoAnswer when it has no worker."""

    def __init__(self, address: str) -> None:
        if not ADDRESS.fullmatch(address):
            raise ConfigError(
                f"--scheduler {address}", where="asid sweep", state="no address", allowed="tcp://HOST:PORT, or tls://",
                hint="dask scheduler prints its own.",
            )  # fmt: skip
        self._dask = needed("distributed", "sweep", "asid sweep --scheduler")
        self._address = address
        self._threads = 0
        self._looked = self._seen = time.monotonic()
        with _quiet():
            try:
                self._client = self._dask.Client(address, timeout=CONNECT_S, set_as_default=False, name="asid-sweep")
            except (OSError, TimeoutError, ValueError) as error:
                raise NotRunning(
                    "no Dask scheduler answers", where=address, state=f"{type(error).__name__}: {error}"[:200],
                    allowed="the address of one that runs, and takes this version of distributed",
                    hint="Start one with: dask scheduler; and workers with: dask worker tcp://HOST:PORT",
                ) from error  # fmt: skip
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def room(self) -> int:
        if not self._threads or time.monotonic() - self._looked > LOOK_S:
            self._look()
        return self._threads * AHEAD_FAR

    def submit(self, function: Callable[[Any], Any], job: Any) -> Any:
        return self._client.submit(function, job, pure=False)

    def ended(self, futures: set[Any], seconds: float) -> set[Any]:
        try:
            with self._client.as_current():
                return set(self._dask.wait(futures, seconds, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return set()
        except CancelledError:  # of one of them: it has ended
            return {future for future in futures if future.status != "pending"}

    def result(self, future: Any) -> Any:
        try:
            return future.result(timeout=RESULT_S)
        except TimeoutError as error:
            self._look()  # a scheduler that does not answer has lost them all
            raise Lost(f"its row did not come within {RESULT_S:.0f} s") from error
        except (CancelledError, self._dask.KilledWorker, self._dask.comm.CommClosedError) as error:
            raise Lost(f"a worker was lost: {type(error).__name__}") from error

    def close(self) -> None:
        with _quiet(), contextlib.suppress(TimeoutError, OSError):
            self._client.close(timeout=CONNECT_S)

    def _look(self) -> None:
        """Count who works; wait for the first. Raise NoAnswer when nobody comes."""
        while True:
            try:
                self._threads = sum(self._client.nthreads(callback_timeout=CONNECT_S).values())
            except (OSError, TimeoutError, CancelledError) as error:
                raise self._gone(f"the scheduler does not answer: {type(error).__name__}") from error
            self._looked = time.monotonic()
            if self._threads:
                self._seen = self._looked
                return
            left_s = self._seen + WORKERS_S - self._looked
            if left_s <= 0:
                raise self._gone(f"it has had no worker for {WORKERS_S:.0f} s")
            threading.Event().wait(min(left_s, LOOK_S))

    def _gone(self, state: str) -> NoAnswer:
        return NoAnswer(
            "nobody plays the runs", where=self._address, state=state,
            allowed="a scheduler with one worker or more", hint="Start workers with: dask worker tcp://HOST:PORT",
        )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block in which Dask does not tell by itself what is going to be said in asid's words."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
