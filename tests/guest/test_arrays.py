"""Exits drawn many at a time are those drawn one at a time."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.guest.arrays import Block, arrays_of, drawn
from asid.guest.base import Exit, Paced, Source
from asid.guest.mix import MixSource, read_mix
from asid.guest.spread import Constant, Exponential, fit
from asid.guest.trace import TraceSource

TABLES = Path(__file__).parent.parent.parent / "configs" / "tables"
WEB = read_mix(TABLES / "web.toml")


def exits_of(source: Source, sizes: list[int]) -> list[Exit]:
    arrays = arrays_of(source)
    found: list[Exit] = []
    for n in sizes:
        found += exits_in(arrays.block(n), arrays.kinds)
    return found


def exits_in(block: Block, kinds: list[Exit]) -> list[Exit]:
    rows = zip(*(column.tolist() for column in block), strict=True)
    return [kinds[kind]._replace(after_ns=ns, service_ns=work, wake_ns=wake) for kind, ns, work, wake in rows]


def some_of(source: Source, n: int) -> list[Exit]:
    found = (source.next() for _ in range(n))
    return [each for each in found if each is not None]


@given(st.integers(0, 2**32), st.floats(0.5, 1e8), st.lists(st.integers(0, 60), max_size=4))
def test_a_mix_in_blocks_of_any_size(seed: int, rate_hz: float, sizes: list[int]):
    plain = some_of(MixSource(WEB, rate_hz, Random(seed)), sum(sizes))
    assert exits_of(MixSource(WEB, rate_hz, Random(seed)), sizes) == plain


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=5), st.sampled_from(["mix", "paced", "recording"])
)
def test_what_is_kept_of_a_block_comes_first_in_the_next_one(sizes: list[tuple[int, bool]], kind: str):
    """Also where the next one is drawn in its place."""

    def source() -> Source:
        mix = MixSource(WEB, 2_000.0, Random(9))
        return {"mix": mix, "paced": Paced(mix, "scaled", 0.5), "recording": TraceSource(some_of(mix, 40), False)}[kind]

    arrays, plain = arrays_of(source()), some_of(source(), sum(n for n, _ in sizes))
    kept, before, given_ = None, [], 0
    for n, keeps in sizes:
        block = arrays.block(n, kept)
        exits = exits_in(block, arrays.kinds)
        assert exits == before + plain[given_ : given_ + n]
        given_ += n
        keeps = keeps and bool(exits)
        kept, before = (block.last(), exits[-1:]) if keeps else (None, [])


@pytest.mark.parametrize("table", sorted(TABLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_table_of_the_project_over_many_draws(table: Path):
    read = read_mix(table)
    assert exits_of(MixSource(read, 3_000.0, Random(5)), [20_000]) == some_of(
        MixSource(read, 3_000.0, Random(5)), 20_000
    )


@pytest.mark.parametrize(("mode", "scale"), [("real", 1.0), ("scaled", 0.37), ("scaled", 1e6), ("max", 1.0)])
def test_another_pace(mode: str, scale: float):
    def source() -> Paced:
        return Paced(MixSource(WEB, 2_000.0, Random(9)), mode, scale)

    assert exits_of(source(), [500]) == some_of(source(), 500)


def test_a_mix_without_times():
    def source() -> MixSource:
        return MixSource(WEB, 2_000.0, Random(9), timeless=True)

    assert exits_of(source(), [7, 300]) == some_of(source(), 307)


@pytest.mark.parametrize("loop", [False, True])
def test_a_recording_ends_where_it_ends(loop: bool):
    exits = some_of(MixSource(WEB, 2_000.0, Random(1)), 10)

    assert exits_of(TraceSource(exits, loop), [3, 4, 9, 5]) == some_of(TraceSource(exits, loop), 21)


@settings(max_examples=300)
@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=40),
    st.floats(0, 1e6),
    st.floats(0, 1e9),
    st.one_of(st.none(), st.floats(0, 1e12)),
)
def test_a_spread_of_any_shape(uniform: list[float], low: float, more: float, most: float | None):
    mean = low + more
    spread = fit(mean, low, None if most is None else mean + most)
    assert drawn(spread, np.array(uniform)).tolist() == [spread.draw(u) for u in uniform]


def test_the_longest_durations():
    uniform = np.array([0.0, 0.5, 1 - 2**-53])
    for spread in (Exponential(0.0, 9e17), Constant(10**18), fit(5e17, 0.0, 1e18)):
        assert drawn(spread, uniform).tolist() == [spread.draw(u) for u in uniform.tolist()]
