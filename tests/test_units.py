"""Durations, rates, sizes, cpulists: what is read is what was meant, what is printed can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.errors import ConfigError
from asid.units import (
    CPU_MAX,
    format_cpulist,
    format_ns,
    format_size,
    parse_cpulist,
    parse_duration_ns,
    parse_range,
    parse_rate_hz,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [("0s", 0), ("1ns", 1), ("250us", 250_000), ("250µs", 250_000), ("1.5ms", 1_500_000), ("2s", 2_000_000_000),
     ("1m", 60_000_000_000), ("1h", 3_600_000_000_000), (" 10 ms ", 10_000_000), ("0.000000001s", 1)],
)  # fmt: skip
def test_durations(text, ns):
    assert parse_duration_ns(text) == ns


@pytest.mark.parametrize(
    "text", ["", "5", "ms", "-1s", "1d", "1 s s", "1e3s", "1,5s", "٣s", "nan s", "1.s", "9" * 16 + "s"]
)
def test_what_is_no_duration_is_refused_with_a_way_out(text):
    with pytest.raises(ConfigError) as caught:
        parse_duration_ns(text, "policy.turn")
    assert "policy.turn" in str(caught.value) and "must be a duration" in str(caught.value)
    assert "10ms" in caught.value.hint


def test_a_duration_is_exact_where_a_float_would_not_be():
    assert parse_duration_ns("999999999999.999999999s") == 999_999_999_999_999_999_999


@pytest.mark.parametrize(("text", "hz"), [("500/s", 500.0), ("2/ms", 2000.0), ("30/m", 0.5), ("0.5/s", 0.5)])
def test_rates(text, hz):
    assert parse_rate_hz(text) == hz


@pytest.mark.parametrize("text", ["500", "0/s", "0.0/s", "-1/s", "500/h", "/s", "500Hz"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ConfigError, match="must be a rate"):
        parse_rate_hz(text, "rate")


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0ns"), (999, "999ns"), (1000, "1.0us"), (61_000, "61.0us"), (999_949, "999.9us"), (999_951, "1.0ms"),
     (4_100_000_000, "4.1s"), (-61_000, "-61.0us")],
)  # fmt: skip
def test_printed_durations(ns, text):
    assert format_ns(ns) == text


@given(st.integers(0, 10**13))
def test_a_printed_duration_reads_back_within_its_last_digit(ns):
    again = parse_duration_ns(format_ns(ns))
    assert abs(again - ns) <= max(ns * 0.051, 0.5)


@pytest.mark.parametrize(("text", "first_and_last"), [("7", (7, 7)), (" 1..20 ", (1, 20)), ("0..9", (0, 9))])
def test_ranges(text, first_and_last):
    assert parse_range(text, "--seeds", 20) == first_and_last


@pytest.mark.parametrize("text", ["", "..", "1..", "..3", "-1", "1..-1", "5..1", "1..21", "1_0", "٣", "9" * 5000])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ConfigError, match=r"must be a number, or the first and the last of at most 20"):
        parse_range(text, "--seeds", 20)


def test_printed_sizes():
    assert (format_size(5), format_size(1 << 26), format_size((1 << 30) - 1)) == ("5B", "64.0MiB", "1024.0MiB")


def test_cpulists():
    assert parse_cpulist("0-3,8") == (0, 1, 2, 3, 8)
    assert parse_cpulist("8, 0-1,1") == (0, 1, 8)
    assert parse_cpulist("") == ()
    assert format_cpulist([8, 3, 2, 1, 0, 2]) == "0-3,8"
    assert format_cpulist([]) == ""


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1", "1,,2", "0-999999999", str(CPU_MAX + 1)])
def test_what_is_no_cpulist_is_refused(text):
    with pytest.raises(ConfigError, match="must be a cpulist"):
        parse_cpulist(text, "cpus")


@given(st.sets(st.integers(0, 300)))
def test_cpulists_read_back(cpus):
    assert parse_cpulist(format_cpulist(cpus)) == tuple(sorted(cpus))
