"""The rows of a sweep that is not finished, on disk: one line a row, added at the end and never changed.

    1f0c9a77 {"schema":"sweep.ledger/1","fingerprint":"...","runs":300}
    a2b64e10 {"run":0,"row":{"status":"done",...}}

Each line begins with the CRC32 of the rest. What a process wrote survives its death; what `fsync` has seen survives the
machine's, and it is called every FLUSH_S. From the first line on that cannot be read nothing is believed: those rows
are played again and come out the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from asid.errors import AsidError, Busy, Conflict, refused_by_os

SCHEMA: Final = "sweep.ledger/1"
FLUSH_S: Final = 1.0


def ledger_of(output: Path) -> Path:
    """Return the file of the rows that are not in their Parquet yet."""
    return output.with_name(f"{output.name}.unfinished")


class Ledger:
    """The rows so far. rows: by number. cut: lines at the end that could not be read, and were removed."""

    def __init__(self, output: Path, fingerprint: str, runs: int, *, resume: bool) -> None:
        """Open the ledger of an output, or begin one. Raise Conflict when there is one and resume is False, or when it
        is of another matrix; Busy when another process writes to it; as refused_by_os does."""
        self.path = ledger_of(output)
        self.rows: dict[int, dict[str, Any]] = {}
        self.cut = 0
        self._header = {"schema": SCHEMA, "fingerprint": fingerprint, "runs": runs}
        self._flushed = time.monotonic()
        try:
            self._file: IO[bytes] = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._begin(resume)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, resume: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                raise OSError("removed meanwhile")
        except OSError:
            raise Busy(
                "another asid sweep is writing these rows", where=str(self.path), state="it is locked",
                allowed="one at a time", hint="Wait for it, or choose another file for --output.",
            ) from None  # fmt: skip
        self._file.seek(0)
        data = self._file.read()
        lines = list(_lines(data))
        size = lines[-1][0] if lines else 0
        if data and not (lines and lines[0][1].get("schema") == SCHEMA):
            raise Conflict(
                "is no list of a sweep's rows", where=str(self.path), state="its first line is another one",
                allowed="what asid sweep has written, or no such file", hint="Remove it, or choose another --output.",
            )  # fmt: skip
        if lines and not resume:
            raise Conflict(
                "a sweep that is not finished", where=str(self.path),
                state=f"{len(lines) - 1:,} of {lines[0][1].get('runs', 0):,} rows are in it",
                allowed="no such file, or --resume", hint=f"Go on with --resume, or remove {self.path} to begin anew.",
            )  # fmt: skip
        if lines and lines[0][1] != self._header:
            raise Conflict(
                "the unfinished sweep is another one", where=str(self.path),
                state="its matrix, its configuration, a file that this names, or asid itself was another",
                allowed="a resume of the same", hint=f"Go back to what it was, or remove {self.path} to begin anew.",
            )  # fmt: skip
        self.cut = len(data) - size
        if self.cut:
            self._file.truncate(size)
        if lines:
            self.rows = {document["run"]: document["row"] for _, document in lines[1:]}
        else:
            try:
                self._write(self._header)
                self.flush()
            except BaseException:
                self.path.unlink(missing_ok=True)
                raise

    def keep(self, run: int, row: dict[str, Any]) -> None:
        """Keep one row. Raise HostUnsuitable when there is no room for it."""
        assert run not in self.rows, "a run is kept once"
        self._write({"run": run, "row": row})
        self.rows[run] = row
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Have all rows on the disk itself."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Leave it for a resume."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def remove(self) -> None:
        """Remove it: its rows are in their Parquet."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, document: dict[str, Any]) -> None:
        text = json.dumps(document, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> AsidError:
        return refused_by_os(
            error, "the rows of the sweep cannot be kept", where=str(self.path),
            allowed="a file in a directory with room that you may write",
            hint="Choose another --output; or make room, then go on with --resume.",
        )  # fmt: skip


def _lines(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset of its end, document) of each line, up to the first that is torn or damaged."""
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        check, _, text = data[at:end].partition(b" ")
        if check != b"%08x" % zlib.crc32(text):
            return
        at = end + 1
        yield at, json.loads(text)
