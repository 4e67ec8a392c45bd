"""What the daemon answers about its records: of the hyperthreads that were named, and of no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from asid import optypes as t
from asid.config import load_config
from asid.core.record import Record
from asid.errors import BadArgument
from asid.live.queries import Queries
from asid.report.stat import StatFold, row_name

US = 1_000


def queries(fold: StatFold, cores: int = 2, smt: int = 2) -> Queries:
    config = load_config({"machine": {"cores": cores, "smt": smt}, "vm": [{"on": ["c*"]}]})
    merge = SimpleNamespace(stats=fold)
    daemon: Any = SimpleNamespace(config=config, topology=config.topology, merge=merge, drain=lambda: None)
    return Queries(daemon)


def told(*records: tuple[int, str, int, int, dict[str, Any]]) -> StatFold:
    fold = StatFold()
    for ts, kind, core, ht, data in records:
        fold.add(Record(1, 1, ts, kind, core, ht, 1, 0, data))
    return fold


def mode(ts: int, core: int, ht: int, old: str, new: str, **via: str) -> tuple[int, str, int, int, dict[str, Any]]:
    return ts, "ht.mode", core, ht, {"inc": 1, "old": old, "new": new, "vm": 1, **via}


def an_exit(core: int, ht: int, n: int) -> tuple[int, str, int, int, dict[str, Any]]:
    data = {
        "reason": "HLT",
        "isa": "vmx",
        "full": True,
        "n": n,
        "sum_ns": n,
        "min_ns": 1,
        "max_ns": 1,
        "hist": [[0, n]],
    }
    return 5, "exit", core, ht, data


RUN = told(
    mode(10, 0, 0, "ISOLATED", "GUEST"),
    mode(20, 0, 1, "PARKED", "HOST", via="nmi"),
    mode(27, 0, 0, "GUEST", "ISOLATED"),  # c0h0 exposed for 7 ns
    mode(30, 0, 1, "HOST", "PARKED"),
    an_exit(0, 0, 1),
    an_exit(0, 1, 2),
    an_exit(1, 0, 4),
    (40, "leave", 0, 0, {"kind": "ack", "reason": "HLT", "wait_ns": 9 * US}),
    (41, "leave", 1, 1, {"kind": "ack", "reason": "HLT", "wait_ns": 2 * US}),
    (42, "gate.wait", 0, 1, {"wait_ns": 4 * US, "vm": 1}),
    (43, "gate.admit", 1, 1, {"vm": 1, "req": 1, "inc": 1}),
    (44, "gate.kick", 0, 1, {"number": 1, "for_ht": 0}),
    (45, "kick.seen", 0, 1, {"number": 1, "was": "ISOLATED", "avoidable": True}),
    (46, "intr", 0, 1, {"what": "nmi", "id": 1, "depth": 1, "merged": 0, "host_ns": 1, "from": "PARKED"}),
    (47, "death", 0, -1, {"what": "coordinator", "pid": 1, "inc": 1, "status": -9}),
    (48, "death", 1, 0, {"what": "ht", "pid": 2, "inc": 1, "status": -9}),
)
COUNTED = ("exits", "full", "kicks", "kicks_seen", "avoidable", "admits", "deaths", "nmis")


@pytest.mark.parametrize(
    ("target", "counts", "leaves", "waits", "exposed"),
    [
        ("c*", (7, 7, 1, 1, 1, 1, 2, 1), 2, 1, 1),
        ("c0", (3, 3, 1, 1, 1, 0, 1, 1), 1, 1, 1),
        ("c1", (4, 4, 0, 0, 0, 1, 1, 0), 1, 0, 0),
        ("c0h0", (1, 1, 0, 0, 0, 0, 0, 0), 1, 0, 1),
        ("c0h1", (2, 2, 1, 1, 1, 0, 0, 1), 0, 1, 0),
        ("c0h1,c1h0", (6, 6, 1, 1, 1, 0, 1, 1), 0, 1, 0),
    ],
)
def test_totals_and_distributions_are_of_the_target(target, counts, leaves, waits, exposed):
    """A coordinator's death is of its core as a whole; an exposure is of the hyperthread that was in guest."""
    asked = queries(RUN)
    totals = asked.query_stats_get(t.StatsGetArgs(target))["totals"]
    assert tuple(totals[name] for name in COUNTED) == counts
    assert (totals["leaves"]["count"], totals["gate_waits"]["count"]) == (leaves, waits)
    assert totals["exposure"]["count"] == exposed
    found = {
        what: asked.query_hist_get(t.HistGetArgs(what, target)) for what in ("exit", "leave", "gate.wait", "exposure")
    }
    assert {what: hist["n"] for what, hist in found.items()} == {
        "exit": counts[0], "leave": leaves, "gate.wait": waits, "exposure": exposed,
    }  # fmt: skip
    assert all(sum(n for _, n in hist["buckets"]) == hist["n"] for hist in found.values())


def test_a_distribution_has_its_ends():
    asked = queries(RUN)
    leaves = asked.query_hist_get(t.HistGetArgs("leave"))
    assert (leaves["min_ns"], leaves["max_ns"]) == (2 * US, 9 * US)
    exposure = asked.query_hist_get(t.HistGetArgs("exposure"))
    assert (exposure["min_ns"], exposure["max_ns"], exposure["buckets"]) == (7, 7, [[11, 1]])


@pytest.mark.parametrize("what", ["leave", "gate.wait", "exposure"])
def test_a_reason_means_something_for_exits_only(what):
    with pytest.raises(BadArgument, match="reason"):
        queries(RUN).query_hist_get(t.HistGetArgs(what, reason="HLT"))


def test_a_table_is_told_from_any_row_on():
    asked = queries(RUN)
    rows = asked.query_stats_get(t.StatsGetArgs())["rows"]
    assert len(rows) == 3
    for at, row in enumerate(rows):
        assert asked.query_stats_get(t.StatsGetArgs(after=row_name(row)))["rows"] == rows[at + 1 :]
    assert asked.query_stats_get(t.StatsGetArgs("c0", row_name(rows[0])))["rows"] == rows[1:2]
    assert asked.query_stats_get(t.StatsGetArgs(after="c0h0.vm1.CPUID.vmx"))["rows"] == rows, (
        "of a row that is not there"
    )
    page = asked.query_stats_get(t.StatsGetArgs(limit=2))
    assert (page["rows"], page["next"]) == (rows[:2], row_name(rows[1]))
    assert asked.query_stats_get(t.StatsGetArgs(limit=3))["next"] == "", "that was all"


@pytest.mark.parametrize("after", ["c0", "c0h0.vm1..vmx", "c0h0.vm1.HLT", "c0h0.vm1.HLT.vmx\n", "c0h1.vm-1.HLT.vmx"])
def test_what_names_no_row_is_refused(after):
    with pytest.raises(BadArgument, match="after"):
        queries(RUN).query_stats_get(t.StatsGetArgs(after=after))
