"""The Parquet of a sweep: one row a run, in the order of the matrix, the same bytes for the same rows."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from asid.errors import Conflict, InputError, refused_by_os
from asid.extras import needed
from asid.sweep.matrix import Matrix
from asid.sweep.plan import KICK, POLICY, Plan
from asid.sweep.play import REFUSED

WHERE: Final = "asid sweep"
GROUP: Final = 65_536  # rows of a row group
LEVEL: Final = 3  # of zstd
FINGERPRINT: Final = b"asid.sweep"
# Column -> type of Arrow. First come the number, the axes, the policy, its kick in force, costs and seed.
FIGURES: Final = {
    "status": "string", "words": "string", "digest": "string", "verdict": "string", "kept": "bool_", "broken": "string",
    "records": "int64", "exits": "int64", "exits_per_s": "float64", "guest_percent": "float64",
    "forced_idle_percent": "float64", "leaves": "int64", "kicks_per_s": "float64", "full_percent": "float64",
    "gate_waits": "int64", "gate_wait_p50_ns": "int64", "gate_wait_p99_ns": "int64", "exposure_count": "int64",
    "exposure_sum_ns": "int64", "exposure_p99_ns": "int64", "exposure_max_ns": "int64", "leaks_concurrent": "int64",
    "leaks_residual": "int64",
}  # fmt: skip
KINDS: Final = {bool: "bool_", int: "int64", float: "float64", str: "string"}

Row = dict[str, Any]


def rows_of_plan(plan: Plan, kept: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """Return every row in order. kept: figures of those that were played, by number; all of them."""
    keys = [axis.key for axis in plan.matrix.axes]
    rows = []
    for number in range(plan.runs):
        combination, level, seed = plan.place(number)
        figures = kept[number] if combination.config else {"status": REFUSED, "words": combination.words}
        axes = dict(zip(keys, combination.values, strict=True))
        own = {POLICY: combination.policy, KICK: combination.kick, "costs": level, "seed": seed}
        rows.append({"run": number, **axes, **own, **{name: figures.get(name) for name in FIGURES}})
    return rows


def write(path: Path, plan: Plan, rows: list[Row]) -> None:
    """Write the file, whole or not at all. Raise Conflict when another has got its name, else as refused_by_os does."""
    arrow = needed("pyarrow", "sweep", WHERE)
    parquet = needed("pyarrow.parquet", "sweep", WHERE)
    schema = _schema(arrow, plan.matrix).with_metadata({FINGERPRINT: plan.fingerprint.encode()})
    columns = [arrow.array([row[name] for row in rows], schema.field(name).type) for name in schema.names]
    table = arrow.Table.from_arrays(columns, schema=schema)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with new.open("wb") as file:
                parquet.write_table(table, file, compression="zstd", compression_level=LEVEL, row_group_size=GROUP)
                file.flush()
                os.fsync(file.fileno())
            _name(new, path, plan)
        finally:
            new.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise refused_by_os(
            error, "the Parquet cannot be written", where=str(path),
            allowed="a file in a directory with room that you may write",
            hint="Make room, then go on with --resume: every row is kept.",
        ) from error  # fmt: skip


def _name(new: Path, path: Path, plan: Plan) -> None:
    """Give the file its name. Raise Conflict when another file has it: it came while the runs were played."""
    with contextlib.suppress(OSError):  # it is taken, or this file system has no hard links
        os.link(new, path)
        return
    try:
        ours = not path.exists() or read(path)[0] == plan.fingerprint
    except InputError:
        ours = False
    if not ours:
        raise Conflict(
            "another file has come there meanwhile", where=str(path), state="it is as it was; every row is kept",
            allowed="no file, or one of this very sweep", hint="Move it away, then go on with --resume.",
        )  # fmt: skip
    os.replace(new, path)


def read(path: Path) -> tuple[str, list[Row]]:
    """Return the fingerprint and the rows of a file that a sweep has written. Raise InputError for any other."""
    arrow = needed("pyarrow", "sweep", WHERE)
    parquet = needed("pyarrow.parquet", "sweep", WHERE)
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(
            "is no Parquet of a sweep", where=str(path), state=str(error)[:120],
            allowed="one that asid sweep has written", hint="Choose another file for --output.",
        ) from error  # fmt: skip
    return (table.schema.metadata or {}).get(FINGERPRINT, b"").decode(), table.to_pylist()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _schema(arrow: Any, matrix: Matrix) -> Any:
    kinds = {axis.key: KINDS.get(axis.kind) for axis in matrix.axes}
    types = {
        key: arrow.list_(arrow.string()) if kind is None else getattr(arrow, kind)() for key, kind in kinds.items()
    }
    types |= {POLICY: arrow.string(), KICK: arrow.string(), "costs": arrow.string(), "seed": arrow.int64()}
    types |= {name: getattr(arrow, kind)() for name, kind in FIGURES.items()}
    return arrow.schema([("run", arrow.int64()), *types.items()])


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
