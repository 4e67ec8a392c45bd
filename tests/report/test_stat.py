"""`asid stat`: the fold, the groups, the screen."""

from __future__ import annotations

import json

import pytest

from asid.core.record import Record, bucket_of
from asid.report.stat import StatFold, fold, group_rows, relative_error, stat_lines

US = 1000


def record(ts: int, kind: str, ht: int = 0, core: int = 0, /, **data) -> Record:
    data = {name.rstrip("_"): value for name, value in data.items()}
    return Record(1, 1, ts, kind, core, ht, 1, 0, data)


def mode(ts: int, ht: int, old: str, new: str, vm: int = 1, via: str = "", core: int = 0) -> Record:
    return record(ts, "ht.mode", ht, core, inc=1, old=old, new=new, vm=vm, **({"via": via} if via else {}))


def exits(reason: str, times_ns: list[int], *, full: bool = False, ht: int = 0, core: int = 0) -> Record:
    hist: dict[int, int] = {}
    for ns in times_ns:
        hist[bucket_of(ns)] = hist.get(bucket_of(ns), 0) + 1
    pairs = [[bucket, count] for bucket, count in sorted(hist.items())]
    return record(5, "exit", ht, core, reason=reason, isa="vmx", full=full, n=len(times_ns), sum_ns=sum(times_ns),
                  min_ns=min(times_ns), max_ns=max(times_ns), hist=pairs)  # fmt: skip


RUN = [
    mode(1, 0, "PARKED", "GUEST", vm=1),
    mode(1, 1, "PARKED", "GUEST", vm=2),
    exits("MSR_WRITE", [1 * US] * 90),
    exits("MSR_WRITE", [2 * US] * 10, ht=1),
    exits("EPT_VIOLATION", [70 * US], full=True),
    exits("EPT_VIOLATION", [30 * US] * 2),
    record(6, "gate.kick", 1, number=1, for_ht=0),
    record(7, "kick.seen", 1, number=1, was="ISOLATED", avoidable=True, insns=0),
    record(8, "gate.wait", 1, wait_ns=4 * US, vm=2),
    record(9, "leave", 0, kind="ack", reason="EPT_VIOLATION", wait_ns=9 * US),
    record(10, "intr", 0, what="nmi", id=1, depth=1, merged=0, host_ns=5, from_="GUEST"),
]


def test_rows_and_totals():
    document = fold(RUN).as_map()
    assert json.loads(json.dumps(document)) == document
    first = next(row for row in document["rows"] if row["reason"] == "EPT_VIOLATION")
    assert (first["core"], first["ht"], first["vm"], first["isa"]) == (0, 0, 1, "vmx")
    assert (first["n"], first["full"], first["sum_ns"]) == (3, 1, 130 * US)
    assert (first["min_ns"], first["max_ns"]) == (30 * US, 70 * US)
    totals = document["totals"]
    assert (totals["exits"], totals["full"], totals["kicks"], totals["avoidable"], totals["nmis"]) == (103, 1, 1, 1, 1)
    waits = totals["gate_waits"]
    assert (waits["count"], waits["max_ns"]) == (1, 4 * US)
    assert waits["p50_ns"] == waits["p99_ns"] == pytest.approx(4 * US, rel=0.09)
    assert totals["leaves"]["max_ns"] == 9 * US


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("reason", [("MSR_WRITE", 100), ("EPT_VIOLATION", 3)]),
        ("core", [("c0", 103)]),
        ("ht", [("c0h0", 93), ("c0h1", 10)]),
        ("vm", [("tenant-a", 93), ("vm2", 10)]),
    ],
)
def test_groups(by, keys):
    rows = group_rows(fold(RUN).rows(), by, ["tenant-a"])
    assert [(row["key"], row["n"]) for row in rows] == keys


def test_the_screen():
    assert stat_lines(fold(RUN).as_map()) == [
        "              VM-EXIT  Samples  Samples%   Time%   Full%    Min us    p50 us    p99 us    Max us   Mean us",
        "            MSR_WRITE      100    97.09%   45.8%   0.00%      1.00      1.00      1.88      2.00      1.10"
        " (+- 2.7%)",
        "        EPT_VIOLATION        3     2.91%   54.2%  33.33%     30.00     30.05     70.00     70.00     43.33"
        " (+- 31.5%)",
        "Total 103 exits, full 1 (0.97%), kicks 1 (avoidable 1), gate waits 1, exposure 0 x",
    ]


def test_columns_line_up_whatever_the_numbers():
    big = [exits("EPT_VIOLATION", [10**12] * 3), exits("A_VERY_LONG_NAME_FOR_A_REASON_TO_EXIT", [1] * 2_000)]
    lines = stat_lines(fold(big).as_map())
    end = len(lines[0])
    assert all(line[end - 1].isdigit() and line[end : end + 2] in ("", " (") for line in lines[1:-1])
    assert all("  " in line for line in lines[1:-1]), "columns never run into each other"


def test_nothing_yet():
    lines = stat_lines(StatFold().as_map())
    assert lines[1] == "no exits yet"
    assert lines[-1].startswith("Total 0 exits, full 0 (-)")


def test_relative_error():
    assert relative_error([]) is None
    assert relative_error([[40, 1]]) is None
    assert relative_error([[40, 100]]) == 0.0
    assert relative_error([[40, 2], [48, 2]]) == pytest.approx(0.6 / 3**0.5, rel=0.01)  # values 1 and 4


def test_exposure_is_what_the_audit_says():
    told = [
        mode(10, 0, "ISOLATED", "GUEST"),
        mode(10, 1, "ISOLATED", "GUEST"),
        mode(20, 1, "GUEST", "HOST", via="nmi"),
        mode(24, 0, "GUEST", "ISOLATED"),  # 4 ns beside
        mode(30, 1, "HOST", "ISOLATED"),
        mode(40, 0, "ISOLATED", "GUEST"),
        mode(41, 1, "ISOLATED", "HOST", via="grant"),  # promised not to be beside a guest: no exposure
        mode(42, 1, "HOST", "PARKED"),
        mode(50, 1, "PARKED", "HOST", via="mce"),
        mode(57, 1, "HOST", "PARKED"),
        mode(60, 1, "PARKED", "HOST", via="send", core=1),
        record(60, "death", 0, what="ht", pid=1, inc=1, status=-9),  # ends the guest: 7 ns beside the mce
    ]
    exposure = fold(told).totals()["exposure"]
    assert exposure["count"] == 2
    assert exposure["max_ns"] == 7


def test_exposure_with_the_streams_merged_out_of_order():
    """What counts are the stamps: the guest's end may be written long before the handler's."""
    told = [
        mode(10, 0, "ISOLATED", "GUEST"),
        mode(24, 0, "GUEST", "ISOLATED"),
        mode(30, 0, "ISOLATED", "GUEST"),
        mode(50, 0, "GUEST", "ISOLATED"),
        mode(20, 1, "PARKED", "HOST", via="nmi"),
        mode(35, 1, "HOST", "PARKED"),
    ]
    exposure = fold(told).totals()["exposure"]
    assert (exposure["count"], exposure["max_ns"]) == (2, 5)


def test_distributions():
    sums = fold(RUN)
    assert sums.distribution("exit").n == 103
    assert sums.distribution("exit", "EPT_VIOLATION").n == 3
    assert sums.distribution("exit", places=frozenset({(0, 1)})).n == 10
    assert sums.distribution("leave").max_ns == 9 * US
    assert sums.distribution("gate.wait").n == 1
    assert sums.distribution("exposure").n == 0
