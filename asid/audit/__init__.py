"""The audit: every guarantee checked from the journal alone.

It shares no code with the gate and reads nothing but records, so it can be wrong in its own ways only. `audit` is the
one door: it takes a journal (or a run directory, or records) and returns a Verdict.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from pathlib import Path

from asid.audit.history import gather
from asid.audit.spaces import Spaces
from asid.audit.verdict import FAIL, PASS, UNKNOWN, Verdict, Window, judge, judge_records, story_of
from asid.core.record import Record

__all__ = ["FAIL", "PASS", "UNKNOWN", "Verdict", "Window", "audit"]

JOURNAL = "journal.asid"


def audit(source: Iterable[Record] | Path | str) -> Verdict:
    """Audit a journal file, a run directory, or records in the order of the journal.

    Raises InputError for a file that is no journal or cannot be read.
    """
    with _nothing_collected():
        return _audit(source)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep the collector of cycles from looking at millions of rows again and again: there are no cycles in them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _audit(source: Iterable[Record] | Path | str) -> Verdict:
    if not isinstance(source, Path | str):
        return judge_records(source)
    from asid.live.journal import JournalReader  # the only reader of the format; imports no socket

    path = Path(source)
    if path.is_dir():
        path = path / JOURNAL
    with JournalReader(path) as reader:
        history = gather(reader)
        damage = reader.damage
        text = None
        if damage is not None:
            where = "at its end" if damage.tail else "in the middle"
            text = f"{where}, byte {damage.offset}: {damage.reason}"
        verdict = judge(history, text, Spaces(path.parent))
        if verdict.first is not None:
            verdict.story = story_of(reader, verdict.first[1])
    return verdict
