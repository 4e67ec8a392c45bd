"""Levels, addresses and entries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.mm.entry import (
    ADDRESS_END,
    FIVE_LEVELS,
    FLAGS,
    FOUR_LEVELS,
    FRAME,
    KERNEL,
    PAGE,
    PSE,
    Level,
    bytes_text,
    ceil_to,
    flag_words,
    floor_to,
    pieces,
)


def test_what_an_entry_of_each_level_stands_for():
    assert [bytes_text(FOUR_LEVELS.span(level)) for level in FOUR_LEVELS.levels] == [
        "512 GiB",
        "1 GiB",
        "2 MiB",
        "4 KiB",
    ]
    assert [bytes_text(FIVE_LEVELS.span(level)) for level in FIVE_LEVELS.levels] == [
        "256 TiB",
        "512 GiB",
        "1 GiB",
        "2 MiB",
        "4 KiB",
    ]


def test_four_levels_have_no_p4d_of_their_own():
    assert FOUR_LEVELS.level(Level.P4D) is Level.PGD
    assert FIVE_LEVELS.level(Level.P4D) is Level.P4D


@pytest.mark.parametrize(
    ("paging", "inside", "outside"),
    [
        (FOUR_LEVELS, (0, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000), (0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF)),
        (FIVE_LEVELS, (0xFF_FFFF_FFFF_FFFF, 0xFF00_0000_0000_0000), (1 << 56, 0xFEFF_FFFF_FFFF_FFFF)),
    ],
)
def test_the_hole_between_the_halves_is_not_canonical(paging, inside, outside):
    assert all(paging.is_canonical(address) for address in (*inside, ADDRESS_END - 1))
    assert not any(paging.is_canonical(address) for address in (*outside, ADDRESS_END, -1))


def test_an_address_is_cut_into_its_places():
    assert FOUR_LEVELS.indices(0xFFFF_FFFF_8100_0000) == (511, 510, 8, 0)
    assert FIVE_LEVELS.indices(0xFFFF_FFFF_8100_0000) == (511, 511, 510, 8, 0)
    assert FIVE_LEVELS.indices(0xFF11_0000_0000_0000) == (273, 0, 0, 0, 0)


@given(st.sampled_from([FOUR_LEVELS, FIVE_LEVELS]), st.integers(0, ADDRESS_END - 1))
def test_places_lead_back_to_the_address(paging, number):
    address = paging.canonical(paging.low(number))
    assert paging.is_canonical(address)
    assert paging.address(paging.indices(address)) == floor_to(address, PAGE)


@given(st.integers(0, ADDRESS_END - 1), st.sampled_from([1 << 12, 1 << 21, 1 << 39, 1 << 48]))
def test_rounding_goes_outwards_and_not_further(address, span):
    assert floor_to(address, span) <= address <= ceil_to(address, span)
    assert ceil_to(address, span) - floor_to(address, span) in (0, span)


def test_the_parts_of_a_large_entry_map_the_same():
    parts = pieces(0x40000000 | KERNEL | PSE, Level.PUD)
    assert [part & FRAME for part in parts] == [0x40000000 + place * (2 << 20) for place in range(512)]
    assert {part & FLAGS for part in parts} == {KERNEL | PSE}, "2 MiB are mapped by a PMD that points at nothing"
    parts = pieces(parts[3], Level.PMD)
    assert parts[511] == 0x40000000 + 4 * (2 << 20) - PAGE | KERNEL


def test_flags_have_names():
    assert flag_words(KERNEL) == "present writable accessed dirty global NX"
    assert flag_words(0) == "none"
