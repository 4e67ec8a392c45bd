"""Seeds in processes of their own, each with another order of sets and dicts; one stream of outcomes, in seed order.

Rule 1. What is run, and what comes of it, is the same with one process and with many; only the time is not.
Rule 2. To compare, each seed is run by two processes with different PYTHONHASHSEED. One of the two judges, in turn, so
        that both have the same work.
Rule 3. A process is `asid sim` with a hidden option. It writes a line a seed and ends when nobody reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from asid.errors import HostUnsuitable, InputError
from asid.interpreter import words_of
from asid.seeds import Failed, Outcome

HASHES: Final = ("161803", "271828")  # PYTHONHASHSEED of the first runs and of the second
PART: Final = "--part"
RECORDS: Final = "--records"


class Part(NamedTuple):
    """Which seeds a process runs: every `step`-th from the one at `offset` on; and of those, which it judges: all
    (judges -1), else the even ones (0) or the odd ones (1)."""

    offset: int = 0
    step: int = 1
    judges: int = -1

    def as_word(self) -> str:
        return ",".join(map(str, self))

    @classmethod
    def of_word(cls, word: str) -> Part:
        return cls(*map(int, word.split(",")))

    def seeds(self, first: int, last: int) -> Iterator[tuple[int, bool]]:
        """Yield (seed, whether this process judges it)."""
        for at, seed in enumerate(range(first + self.offset, last + 1, self.step)):
            yield seed, self.judges < 0 or at % 2 == self.judges


def as_line(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a process writes it."""
    return {**outcome._asdict(), "failed": None if outcome.failed is None else list(outcome.failed)}


class Seeds:
    """A command line of `asid sim`, without its seeds: to be run in other processes."""

    def __init__(self, config: str, options: Mapping[str, Any]) -> None:
        self._words = [*words_of("asid"), "sim", config, "--json"]
        for key in ("duration", "policy", "kick", "space", "costs"):
            if options[key]:
                self._words += [f"--{key}", options[key]]
        self._words += ["--no-faults"] if options["no_faults"] else []

    @contextlib.contextmanager
    def _process(self, hashes: str, *words: str) -> Iterator[Iterator[dict[str, Any]]]:
        """A process, and what it writes line by line; ended at the end of the block."""
        process = subprocess.Popen(
            [*self._words, *words], env={**os.environ, "PYTHONHASHSEED": hashes}, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # ^C is for who reads: that ends it
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield (json.loads(line) for line in process.stdout)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def outcomes(self, first: int, last: int, processes: int, *, twice: bool) -> Iterator[tuple[Outcome, Outcome]]:
        """Yield for each seed, in order, what came of it in two processes; without `twice`, of one, and that again.

        Raise HostUnsuitable when a process has ended before its time, InputError when it says why.
        """
        groups = max(1, processes // 2 if twice else processes)
        with contextlib.ExitStack() as stack:

            def lines(group: int, run: int) -> Iterator[dict[str, Any]]:
                part = Part(group, groups, run if twice else -1)
                words = ("--seeds", f"{first}..{last}", PART, part.as_word())
                return stack.enter_context(self._process(HASHES[run], *words))

            runs = [[lines(group, run) for run in range(1 + twice)] for group in range(groups)]
            for seed in range(first, last + 1):
                found = [_outcome(next(each, None), seed) for each in runs[(seed - first) % groups]]
                one, other = found[0], found[-1]
                yield one._replace(failed=one.failed or other.failed), other

    def records(self, seed: int) -> Iterator[tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]]:
        """Yield once: the records of a seed, as each of two processes writes them."""
        words = ("--seeds", str(seed), RECORDS)
        with self._process(HASHES[0], *words) as one, self._process(HASHES[1], *words) as other:
            yield one, other


def _outcome(line: dict[str, Any] | None, seed: int) -> Outcome:
    if line is None or line.get("seed") != seed:
        refused = InputError if line else HostUnsuitable  # it said why it could not; or it was killed
        raise refused(
            "a process that runs seeds has ended before its time", where=f"seed {seed}",
            state=str((line or {}).get("error", {}).get("msg", "nothing came of it")), allowed="a line for each seed",
            hint=f"Was it killed for its memory? Try fewer --jobs, or this seed alone: asid sim CONFIG --seeds {seed}",
        )  # fmt: skip
    failed = line["failed"]
    return Outcome(seed, line["digest"], line["exits"], None if failed is None else Failed(*failed))
