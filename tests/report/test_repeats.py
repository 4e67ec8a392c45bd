"""What repeats say together: rows, ratios with their intervals, the table, the exit code."""

from __future__ import annotations

import json

import pytest

from asid.report.repeats import Ratio, Sample, exit_code_of, ratio_of, rows_of, table_lines
from asid.report.variants import Variant

NONE = Variant("none")
ASI = Variant("asi", "ack")


def verdict(
    exits: int, *, word: str = "PASS", broken: tuple[str, ...] = (), promised: int = 0, leaks=None, **figures
) -> dict:
    own = {"exits": exits, "full": exits // 10, "served_ns": 2_000_000_000, "duration_ns": 3_000_000_000, "kicks": 20,
           "kicks_sent": 0, "guest_percent": 50.0, "forced_idle_percent": 12.5, "gate_closed_percent": 2.25,
           "gate_waits": {"count": 3, "p99_ns": 4_000}, **figures}  # fmt: skip
    if leaks is not None:
        own["leaks"] = {"concurrent": leaks[0], "residual": leaks[1]}
    guarantees = {
        name: {"broken": 7, "allowed": 7 - promised} if name in broken else {"broken": 0, "allowed": 0}
        for name in ("G1", "G2", "G3", "G5")
    }
    exposure = {"count": 2, "sum_ns": 70_000, "p99_ns": 61_000, "max_ns": 61_000}
    return {"verdict": word, "guarantees": guarantees, "figures": own, "exposure": exposure}


FAILS = {"word": "FAIL", "broken": ("G2", "G3")}


# --- ratios


def test_the_ratio_is_of_the_sums_and_its_interval_contains_it():
    pairs = [(70.0, 100.0), (72.0, 101.0), (69.0, 99.0), (71.0, 100.0), (68.0, 100.0)]
    found = ratio_of(pairs, seed=1)
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(350 / 500)
    assert 0.68 <= found.low < found.value < found.high <= 0.72
    assert not found.undecided
    assert ratio_of(pairs, seed=1) == found, "the same seed draws the same"


def test_an_interval_that_covers_one_detects_nothing():
    found = ratio_of([(95.0, 100.0), (104.0, 100.0), (101.0, 100.0)], seed=1)
    assert found is not None and found.undecided
    assert (found.low, found.high) == (0.95, 1.04), "of three it is the range that was seen"


def test_pairs_stay_together_so_that_what_slows_both_down_cancels():
    found = ratio_of([(50.0, 100.0), (5.0, 10.0), (500.0, 1000.0)], seed=1)
    assert found == Ratio(0.5, 0.5, 0.5)


def test_one_repeat_has_no_interval_and_nothing_has_no_ratio():
    assert ratio_of([(7.0, 10.0)], seed=1) == Ratio(0.7)
    assert not Ratio(1.0).undecided
    assert ratio_of([], seed=1) is None
    assert ratio_of([(7.0, 0.0)], seed=1) is None
    assert ratio_of([(0.0, 10.0), (0.0, 9.0)], seed=1) == Ratio(0.0, 0.0, 0.0)


# --- rows


def test_a_row_means_rates_and_adds_counts():
    samples = [
        Sample(NONE, 1, verdict(1000)),
        Sample(ASI, 1, verdict(800, leaks=(0, 1), kicks_sent=60)),
        Sample(NONE, 2, verdict(1100)),
        Sample(ASI, 2, verdict(900, leaks=(2, 3), guest_percent=60.0)),
    ]
    none, asi = rows_of(samples, seed=1)
    assert json.loads(json.dumps([none, asi])) == [none, asi]
    assert (asi["label"], asi["runs"], asi["exits_per_s"], asi["guest_percent"]) == ("asi/ack", 2, 425.0, 55.0)
    assert (asi["forced_idle_percent"], asi["gate_closed_percent"]) == (12.5, 2.25)
    assert asi["kicks_per_s"] == (80 / 2 + 20 / 2) / 2, "those that were sent without the gate are kicks, too"
    assert asi["leaks"] == {"concurrent": 2, "residual": 4}
    assert asi["exposure"] == {"count": 4, "sum_ns": 140_000, "p99_ns": 61_000, "max_ns": 61_000}
    assert asi["vs_none"]["ratio"] == pytest.approx(1700 / 2100)
    assert asi["vs_none"]["low"] == 0.8 and not asi["vs_none"]["undecided"]
    assert none["vs_none"]["ratio"] == none["vs_none"]["low"] == 1.0
    assert none["leaks"] is None, "a run that was not looked at for leaks has no number of them"


def test_only_repeats_in_which_both_were_completed_are_compared():
    samples = [Sample(NONE, 1, verdict(1000)), Sample(ASI, 1, verdict(500)), Sample(ASI, 2, verdict(9000))]
    _, asi = rows_of(samples, seed=1)
    assert asi["vs_none"] == {"ratio": 0.5, "low": None, "high": None, "undecided": False, "doubtful": False}
    assert "runs" in table_lines(rows_of(samples, 1))[1], "rows of unequal worth say so"


def test_without_none_there_is_nothing_to_compare_with():
    rows = rows_of([Sample(ASI, 1, verdict(500))], seed=1)
    assert rows[0]["vs_none"] is None
    lines = table_lines(rows)
    assert "vs none: none was not run." in lines


def test_a_baseline_that_did_nothing_was_run_all_the_same():
    rows = rows_of([Sample(NONE, 1, verdict(0)), Sample(ASI, 1, verdict(500))], seed=1)
    assert "vs none: none was run, and made no exit that could be counted." in table_lines(rows)


def test_what_is_told_of_a_run_that_is_unknown_has_a_mark():
    rows = rows_of([Sample(NONE, 1, verdict(500)), Sample(ASI, 1, verdict(45, word="UNKNOWN"))], seed=1)
    assert [row["doubtful"] for row in rows] == [False, True] and rows[1]["vs_none"]["doubtful"]
    lines = table_lines(rows)
    assert "?22" in lines[3].split() and "0.09x ?" in lines[3] and "?" not in lines[2]
    assert any(line.startswith("? Of a run that is UNKNOWN") for line in lines)
    rows = rows_of([Sample(NONE, 1, verdict(500, word="UNKNOWN")), Sample(ASI, 1, verdict(450))], seed=1)
    assert "0.90x ?" in table_lines(rows)[3], "what it is compared with is in doubt"


def test_a_run_without_figures_has_a_row_too():
    rows = rows_of([Sample(ASI, 1, {})], seed=1)
    assert rows[0]["verdict"] == "UNKNOWN" and rows[0]["guest_percent"] is None
    assert table_lines(rows)[2].endswith("UNKNOWN")


# --- the table


def test_the_table():
    samples = [
        *(Sample(NONE, n, verdict(1000 + n, leaks=(30, 400), **FAILS)) for n in (1, 2, 3)),
        *(Sample(ASI, n, verdict(900 + n, leaks=(0, 0), guest_percent=40.0)) for n in (1, 2, 3)),
        *(Sample(Variant("asi", "send"), n, verdict(1000 + 2 * n - 2)) for n in (1, 2, 3)),
    ]
    assert (
        table_lines(rows_of(samples, seed=1))
        == """\
                    guest  forced                    gate  leaks (conc./                        exposed
policy    exits/s    time    idle  kicks/s   full%    p99      residual)  vs none                 count     p99     max  verdict
none          501  50.0 %  12.5 %       10  10.0 %  4.0us     90 / 1,200  1.00x                       6  61.0us  61.0us  FAIL *
asi/ack       451  40.0 %  12.5 %       10  10.0 %  4.0us          0 / 0  0.90x [0.90, 0.90]          6  61.0us  61.0us  PASS
asi/send      501  50.0 %  12.5 %       10  10.0 %  4.0us              -  1.00x [1.00, 1.00] ~        6  61.0us  61.0us  PASS

vs none: exits/s over those of none in the same repeat.
[low, high]: 95 % bootstrap interval over the repeats; of fewer than 6 it is too narrow.
~ no difference detected: the interval covers 1.00.
* A negative control: what is broken was never promised (G2, G3 by none).""".splitlines()  # noqa: E501
    )


def test_a_broken_promise_is_named_in_its_row():
    rows = rows_of(
        [Sample(ASI, 1, verdict(9, word="FAIL", broken=("G5",), promised=2)), Sample(ASI, 2, verdict(9))], seed=1
    )
    lines = table_lines(rows)
    assert lines[2].endswith("FAIL 1 of 2: G5")
    assert not any("negative control" in line for line in lines)


# --- the exit code


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        ([(NONE, FAILS), (ASI, {})], 0),
        ([(NONE, {}), (ASI, {})], 0),
        ([(NONE, FAILS), (ASI, {"word": "UNKNOWN"})], 3),
        ([(NONE, {"word": "UNKNOWN", "broken": ("G2",)}), (ASI, {})], 3),
        ([(NONE, FAILS), (ASI, {"word": "FAIL", "broken": ("G2",), "promised": 7})], 1),
        ([(NONE, {"word": "FAIL", "broken": ("G2", "G5"), "promised": 1}), (ASI, {})], 1),
        ([(NONE, {"word": "FAIL"}), (ASI, {})], 1),
        ([(ASI, {"word": "UNKNOWN"}), (ASI, {"word": "FAIL", "broken": ("G1",), "promised": 1})], 1),
        ([], 0),
    ],
)
def test_the_exit_code_is_that_of_broken_promises(samples, code):
    assert exit_code_of([Sample(variant, 1, verdict(9, **how)) for variant, how in samples]) == code
