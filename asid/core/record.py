"""The record: one shape for the journal, the telemetry, the audit and every report.

Rule 1. A record is nine values in a fixed order; nothing reads a journal but through this shape.
Rule 2. The catalogue below is data. The schema, the manual and the check of a record come from it, so a field that
        is not in it does not exist.
Rule 3. Integers are integers (never bool), times are nanoseconds of CLOCK_MONOTONIC (virtual ones in a simulation).
Rule 4. Latencies travel as a log histogram: four buckets to the octave, so that histograms of many processes add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from asid.core.catalogue import CATALOGUE

NO_CORE = -1
NO_HT = -1


class Record(NamedTuple):
    """One event of a run.

    seq: number in the run, from 1, without holes (given when the streams are merged). tseq: number within its topic,
    from 1. ts: nanoseconds, monotonic, stamped by the process that saw it, so records of two processes are ordered by
    ts and not by seq. core, ht: -1 when none. round: the gate's, 0 when none. cause: seq of the causing record or 0.
    """

    seq: int
    tseq: int
    ts: int
    type: str
    core: int
    ht: int
    round: int
    cause: int
    data: dict[str, Any]


FIELDS = Record._fields


class Field(NamedTuple):
    """One value of a record's data. kind: int, str, bool, hist, or one of `choices` when those are given."""

    name: str
    kind: str
    optional: bool
    choices: tuple[str, ...]


class RecordType(NamedTuple):
    """A row of the catalogue: who writes it and what it says."""

    name: str
    writer: str  # daemon, hyperthread or coordinator
    fields: tuple[Field, ...]
    meaning: str


def _fields(spec: str) -> tuple[Field, ...]:
    """Read `name:kind` words; `name?:kind` is optional, a kind with `|` lists the allowed words."""
    out = []
    for word in spec.split():
        name, kind = word.split(":")
        choices = tuple(kind.split("|")) if "|" in kind else ()
        out.append(Field(name.rstrip("?"), "str" if choices else kind, name.endswith("?"), choices))
    return tuple(out)


RECORD_TYPES: dict[str, RecordType] = {
    name: RecordType(name, writer, _fields(spec), meaning) for name, writer, spec, meaning in CATALOGUE
}
assert len(RECORD_TYPES) == len(CATALOGUE), "a record type is listed twice"

_PYTHON_TYPE: dict[str, type] = {"int": int, "str": str, "bool": bool, "hist": list}
# For the check, which runs once a record: (name, exact type, optional, choices, is histogram).
_CHECKS: dict[str, tuple[tuple[str, type, bool, frozenset[str], bool], ...]] = {
    t.name: tuple((f.name, _PYTHON_TYPE[f.kind], f.optional, frozenset(f.choices), f.kind == "hist") for f in t.fields)
    for t in RECORD_TYPES.values()
}


class _Form(NamedTuple):
    """Data whose fields are in the order of the catalogue: their names, exact types, and what is left to look at."""

    names: tuple[str, ...]
    types: tuple[type, ...]
    rest: tuple[tuple[str, frozenset[str], bool], ...]  # (name, choices, is histogram)


def _forms(kind: str) -> dict[int, _Form]:
    """Return the two forms that our own writers use, by number of fields: without the optional ones, and with all."""
    every = _CHECKS[kind]
    out = {}
    for checks in (tuple(check for check in every if not check[2]), every):
        rest = tuple((name, choices, is_hist) for name, _, _, choices, is_hist in checks if choices or is_hist)
        out[len(checks)] = _Form(tuple(check[0] for check in checks), tuple(check[1] for check in checks), rest)
    return out


# One look instead of one a field: the audit checks every record of a run.
_FORMS: dict[str, dict[int, _Form]] = {kind: _forms(kind) for kind in _CHECKS}


def fault_of(record: Record) -> str | None:
    """Return what is wrong with the type or the data of a record, or None. Types are exact: a bool is no int."""
    forms = _FORMS.get(record.type)
    if forms is None:
        return f"unknown record type {record.type!r:.40}"
    data: dict[str, Any] = record.data
    form = forms.get(len(data))
    if form is not None and tuple(data) == form.names and tuple(map(type, data.values())) == form.types:
        for name, choices, is_hist in form.rest:
            if (choices and data[name] not in choices) or (is_hist and not _is_hist(data[name])):
                break
        else:
            return None
    return _first_fault(record, data)


def _first_fault(record: Record, data: dict[str, Any]) -> str | None:
    """Look at one field after the other and say which is wrong."""
    seen = 0
    for name, kind, optional, choices, is_hist in _CHECKS[record.type]:
        if name not in data:
            if optional:
                continue
            return f"{record.type}: {name} is missing"
        seen += 1
        value = data[name]
        if type(value) is not kind:
            return f"{record.type}: {name} is {type(value).__name__}, must be {kind.__name__}"
        if choices and value not in choices:
            return f"{record.type}: {name} = {value!r:.40}, must be one of {', '.join(sorted(choices))}"
        if is_hist and not _is_hist(value):
            return f"{record.type}: {name} is not a list of [bucket, count] pairs"
    if seen != len(data):
        known = {name for name, *_ in _CHECKS[record.type]}
        return f"{record.type}: unknown field {next(k for k in data if k not in known)!r:.40}"
    return None


def _is_hist(value: Any) -> bool:
    return all(
        type(pair) in (list, tuple)
        and len(pair) == 2
        and type(pair[0]) is int
        and type(pair[1]) is int
        and 0 <= pair[0] < BUCKETS
        and pair[1] >= 0
        for pair in value
    )


def topic_of(record: Record) -> str:
    """Return the telemetry topic: `e.c000.h0.exit.`; core-wide `h-`; of the daemon `e.c---.h-.run.begin.`.

    The first ten characters have a fixed width and every word ends with a dot, so a prefix cannot match by accident.
    """
    return f"{place_topic('e', record.core, record.ht)}{record.type}."


@lru_cache(maxsize=4096)
def place_topic(kind: str, core: int, ht: int) -> str:
    """Return the fixed-width head of a topic: class letter (s, e, m, r), core and hyperthread; -1 prints as dashes."""
    assert len(kind) == 1
    return f"{kind}.c{_number(core, 3)}.h{_number(ht, 1)}."


def _number(value: int, width: int) -> str:
    assert -1 <= value < 10**width, value
    return "-" * width if value < 0 else f"{value:0{width}d}"


def as_map(record: Record) -> dict[str, Any]:
    """Return the record as a map with its keys in the fixed order, as it goes over telemetry and into JSON lines."""
    return record._asdict()


def events_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a record: the nine keys, and the data of each type."""
    integer = {"type": "integer"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "asid event",
        "type": "object",
        "required": list(FIELDS),
        "additionalProperties": False,
        "properties": {
            "seq": {"type": "integer", "minimum": 1, "description": "number in the run, without holes"},
            "tseq": {"type": "integer", "minimum": 0, "description": "number within the topic, without holes"},
            "ts": {"type": "integer", "minimum": 0, "description": "monotonic nanoseconds"},
            "type": {"enum": list(RECORD_TYPES)},
            "core": {"type": "integer", "minimum": -1, "description": "-1: none"},
            "ht": {"type": "integer", "minimum": -1, "description": "-1: none"},
            "round": {"type": "integer", "minimum": 0, "description": "the gate's; 0: none"},
            "cause": {**integer, "minimum": 0, "description": "seq of the causing event; 0: none"},
            "data": {"type": "object"},
        },
        "oneOf": [_type_schema(t) for t in RECORD_TYPES.values()],
    }


def _type_schema(kind: RecordType) -> dict[str, Any]:
    pair = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "integer"}], "minItems": 2, "maxItems": 2}
    words: dict[str, dict[str, Any]] = {
        "int": {"type": "integer"},
        "str": {"type": "string"},
        "bool": {"type": "boolean"},
        "hist": {"type": "array", "items": pair},
    }
    return {
        "title": kind.name,
        "description": f"{kind.meaning} (written by the {kind.writer})",
        "properties": {
            "type": {"const": kind.name},
            "data": {
                "type": "object",
                "required": [f.name for f in kind.fields if not f.optional],
                "additionalProperties": False,
                "properties": {f.name: {"enum": list(f.choices)} if f.choices else words[f.kind] for f in kind.fields},
            },
        },
    }


# --- The log histogram -------------------------------------------------------------------------------------------

BUCKETS_PER_OCTAVE = 4
BUCKETS = 64 * BUCKETS_PER_OCTAVE  # holds every 63-bit duration, 292 years


def bucket_of(ns: int) -> int:
    """Return the bucket of a duration: int(4 * log2(ns)); 0 and negative durations go where 1 ns goes."""
    return int(BUCKETS_PER_OCTAVE * math.log2(ns)) if ns > 1 else 0


def percentile(hist: Iterable[Sequence[int]], q: float) -> int:
    """Return the q-th percentile (0 to 100) of [bucket, count] pairs in ns; 0 for an empty histogram.

    The answer is the geometric middle of its bucket, so it is at most 9 % off; clamp it to min and max if known.
    """
    assert 0.0 <= q <= 100.0
    counts: dict[int, int] = {}
    for bucket, count in hist:
        counts[bucket] = counts.get(bucket, 0) + count
    total = sum(counts.values())
    if total == 0:
        return 0
    rank = max(1, math.ceil(total * q / 100.0))
    bucket = 0
    for bucket in sorted(counts):
        rank -= counts[bucket]
        if rank <= 0:
            break
    return round(2.0 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE)) if bucket else 1


def add_hist(into: dict[int, int], hist: Iterable[Sequence[int]]) -> None:
    """Add [bucket, count] pairs to a histogram kept as a map."""
    for bucket, count in hist:
        into[bucket] = into.get(bucket, 0) + count


def hist_pairs(counts: dict[int, int]) -> list[list[int]]:
    """Return a histogram kept as a map as sorted [bucket, count] pairs, the form that travels."""
    return [[bucket, counts[bucket]] for bucket in sorted(counts)]
