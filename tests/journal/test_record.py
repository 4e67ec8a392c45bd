"""The record: the catalogue, the topics, the schema and the histogram."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.core import record as record_module
from asid.core.record import (
    BUCKETS,
    RECORD_TYPES,
    Record,
    as_map,
    bucket_of,
    events_schema,
    fault_of,
    percentile,
    topic_of,
)

SAMPLES = {"int": 3, "str": "x", "bool": True, "hist": [[8, 2], [9, 1]]}


def sample(kind: str) -> Record:
    data = {f.name: f.choices[0] if f.choices else SAMPLES[f.kind] for f in RECORD_TYPES[kind].fields}
    return Record(1, 1, 5, kind, 0, 1, 2, 0, data)


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_each_type_of_the_catalogue(kind):
    good = sample(kind)
    assert fault_of(good) is None
    assert RECORD_TYPES[kind].writer in ("daemon", "hyperthread", "coordinator")
    assert "unknown field" in fault_of(good._replace(data={**good.data, "invented": 1}))
    for field in RECORD_TYPES[kind].fields:
        without = {name: value for name, value in good.data.items() if name != field.name}
        if field.optional:
            assert fault_of(good._replace(data=without)) is None
        else:
            assert f"{field.name} is missing" in fault_of(good._replace(data=without))
        for wrong in (None, 1.0, b"x", 3 if field.kind != "int" else True):
            assert f"{field.name} is" in fault_of(good._replace(data={**good.data, field.name: wrong}))
        if field.choices:
            assert "must be one of" in fault_of(good._replace(data={**good.data, field.name: "LIMBO"}))


def test_a_type_that_is_not_in_the_catalogue():
    assert "unknown record type" in fault_of(Record(1, 1, 1, "gate.invented", 0, 0, 0, 0, {}))


@pytest.mark.parametrize(
    "hist", [[1], [[1]], [[1, 2, 3]], [[True, 1]], [[-1, 1]], [[BUCKETS, 1]], [[1, -1]], [["1", 1]]]
)
def test_what_is_no_histogram(hist):
    good = sample("exit")
    assert "pairs" in fault_of(good._replace(data={**good.data, "hist": hist}))


def test_the_catalogue_has_the_types_of_the_protocol():
    assert {"run.begin", "run.end", "ht.mode", "exit", "kick.seen", "gate.admit", "gate.fence"} <= set(RECORD_TYPES)
    assert all(kind == kind.lower() and row.meaning for kind, row in RECORD_TYPES.items())


@pytest.mark.parametrize(
    ("core", "ht", "kind", "topic"),
    [
        (0, 0, "exit", "e.c000.h0.exit."),
        (12, 7, "gate.admit", "e.c012.h7.gate.admit."),
        (3, -1, "gate.open", "e.c003.h-.gate.open."),
        (-1, -1, "run.begin", "e.c---.h-.run.begin."),
    ],
)
def test_topics_have_a_fixed_width(core, ht, kind, topic):
    assert topic_of(Record(1, 1, 1, kind, core, ht, 0, 0, {})) == topic


def test_no_topic_of_one_place_is_a_prefix_of_another_place():
    places = [record_module.place_topic("e", core, ht) for core in range(-1, 128) for ht in range(-1, 8)]
    assert len({len(place) for place in places}) == 1
    assert len(set(places)) == len(places)


def test_a_map_keeps_the_order_of_the_keys():
    assert list(as_map(sample("exit"))) == ["seq", "tseq", "ts", "type", "core", "ht", "round", "cause", "data"]


def test_the_schema_is_json_and_lists_every_type():
    schema = json.loads(json.dumps(events_schema()))
    assert [part["title"] for part in schema["oneOf"]] == list(RECORD_TYPES)
    exit_ = next(part for part in schema["oneOf"] if part["title"] == "exit")["properties"]["data"]
    assert exit_["additionalProperties"] is False
    assert set(exit_["required"]) == set(exit_["properties"]) - {"halt"}
    inject = next(part for part in schema["oneOf"] if part["title"] == "inject")["properties"]["data"]
    assert "reason" not in inject["required"]


# --- histogram --------------------------------------------------------------------------------------------------


def test_buckets_at_the_powers_of_two():
    assert [bucket_of(ns) for ns in (-5, 0, 1, 2, 4, 1024, 2**40)] == [0, 0, 0, 4, 8, 40, 160]
    assert bucket_of(2**63 - 1) < BUCKETS


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=50), st.sampled_from([0, 50, 99, 100]))
def test_a_percentile_is_within_nine_percent(values, q):
    hist = [[bucket_of(value), 1] for value in values]
    ordered = sorted(values)
    rank = max(1, -(-len(values) * q // 100))
    exact = ordered[rank - 1]
    assert percentile(hist, q) == pytest.approx(exact, rel=0.095, abs=1)


def test_percentiles_of_little():
    assert percentile([], 50) == 0
    assert percentile([[40, 0]], 50) == 0
    assert percentile([[40, 99], [80, 1]], 99) < 2_000 < percentile([[40, 99], [80, 1]], 100)
    orders = itertools.permutations([[8, 1], [40, 1], [80, 1]])
    assert len({percentile(pairs, 50) for pairs in orders}) == 1, "the order of the pairs does not matter"
