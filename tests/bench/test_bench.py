"""asid bench: shapes, and the checks that are part of a benchmark. Never a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from asid.bench import NAMES, sim
from asid.bench.exits import rate_of
from asid.bench.figures import Result, Row, lines, percentile, ratio_of
from asid.bench.kick import kicked_leaves
from asid.bench.machine import gate_messages, idle_machine, records_since
from asid.bench.simpy_pair import Pair
from asid.commands import invoke
from asid.errors import HostUnsuitable
from asid.guest.base import Exit
from asid.sim.costs import costs_of


def event(kind: str, ts: int, **data: object) -> dict[str, object]:
    return {"type": kind, "ts": ts, "core": 0, "ht": 0, "data": data}


def test_a_percentile_is_a_sample():
    assert percentile([5, 1, 3], 50) == 3
    assert percentile([5, 1, 3], 99) == 5
    assert percentile([], 50) == 0


def test_the_ratio_is_that_of_medians_round_by_round():
    ours, bare = Row("asid", "us", (2.0, 4.0, 9.0, 9.0)), Row("bare", "us", (1.0, 2.0, 3.0, 3.0))
    found = ratio_of(ours, bare, [((2.0, 4.0), (1.0, 2.0)), ((9.0, 9.0), (3.0, 3.0))])
    assert found.rounds == (2.0, 3.0)
    assert found.middle == 2.5


def test_gate_messages_during_the_exits_are_found():
    records = [event("gate.kick", 5), event("gate.wait", 6), event("exit", 7), event("gate.ask", 20)]
    assert [found["type"] for found in gate_messages(records, 0, 1, 10)] == ["gate.kick"]


def test_a_warning_is_shown():
    shown = "\n".join(lines(Result("exits", "x", (), (), {}, ("3 gate messages during the exits",))))
    assert "warning: 3 gate messages" in shown


def test_the_rate_is_of_fast_exits_only_and_by_the_wall():
    records = [
        event("inject", 1_000),
        event("exit", 1_500, full=False, n=100, sum_ns=300, min_ns=1, max_ns=1, hist=[]),
        event("exit", 2_000, full=False, n=100, sum_ns=300, min_ns=1, max_ns=1, hist=[]),
        event("exit", 9_000, full=True, n=1, sum_ns=10**9, min_ns=1, max_ns=1, hist=[]),
    ]
    assert rate_of(records) == (2e8, 1_000, 2_000)


def test_a_leave_that_kicked_nobody_is_told_apart():
    records = [
        event("kick.seen", 80, was="GUEST"),
        event("leave", 100, wait_ns=50),
        event("leave", 300, wait_ns=50),
    ]
    assert kicked_leaves(records) == ([50], 1)


def test_a_sibling_that_only_came_into_guest_is_not_what_is_measured():
    records = [
        event("ht.mode", 10, new="GUEST"),
        event("kick.seen", 80, was="GUEST"),
        event("leave", 100, wait_ns=50),
        event("ht.mode", 260, new="GUEST"),
        event("kick.seen", 280, was="GUEST"),
        event("leave", 300, wait_ns=50),
        event("kick.seen", 480, was="ISOLATED"),
        event("leave", 500, wait_ns=50),
    ]
    assert kicked_leaves(records) == ([50], 2)


@pytest.mark.live
@pytest.mark.timeout(60)
def test_the_coordinator_is_heard_when_an_exit_is_not_fast(tmp_path, monkeypatch):
    """The zero of `asid bench exits` is a measurement: one full exit among the fast ones, and it is not zero."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with idle_machine() as daemon:
        client = daemon.client(name="test")
        for full in ("no", "yes"):
            client.inject_exit("c0h0", reason="CPUID", full="no", count=500, wait=True)
            begin = client.ping().seq
            client.inject_exit("c0h0", reason="CPUID", full="no", count=500, wait=True)
            if full == "yes":
                client.inject_exit("c0h0", full="yes", wait=True)
                client.inject_exit("c0h0", reason="CPUID", full="no", count=500, wait=True)
            records = records_since(client, begin)
            _, begin_ns, end_ns = rate_of(records)
            heard = {found["type"] for found in gate_messages(records, 0, begin_ns, end_ns)}
            assert ({"gate.leave", "gate.kick", "gate.grant"} <= heard) is (full == "yes")
            assert bool(heard) is (full == "yes")


@pytest.mark.live
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_runs(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert invoke(["bench", name, "--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = document["benchmarks"]
    assert found["name"] == name
    assert all(row["n"] > 0 and row["p50"] > 0 for row in found["rows"])
    assert all(ratio["median"] > 0 for ratio in found["ratios"])
    if name == "exits":
        assert found["facts"]["gate_messages"] == 0
        assert found["warnings"] == []


def test_without_numpy_the_simulator_is_not_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(HostUnsuitable, match="numpy is not installed"):
        sim.measure(True, lambda _: None)


@pytest.mark.slow
def test_the_simulator_and_its_model_play_the_same_guests():
    found = sim.measure(True, lambda _: None)
    assert [row.who for row in found.rows] == ["asid", "SimPy"]
    assert all(rate > 0 for row in found.rows for rate in row.samples)
    ours, theirs = (float(words.split()[-1]) for words in found.facts["leaves in a thousand exits"].split(";"))
    assert theirs == pytest.approx(ours, rel=0.5)
    leaves = [int(found.facts[f"{share:.2%} full"].split()[0].replace(",", "")) for share in sim.SHARES]
    assert leaves == sorted(leaves)
    assert leaves[-1] > 100 * leaves[0]
    assert " us a leave and " in found.facts["fit"]


def test_the_model_kicks_a_guest_and_goes_on_with_it():
    events = [
        iter([Exit(5_000, "IO_INSTRUCTION", "vmx", 4_000, True)]),
        iter([Exit(50_000, "CPUID", "vmx", 100, False)]),
    ]
    pair = Pair((_Given(events[0]), _Given(events[1])), costs_of("typical"))
    pair.run(50_000)
    assert (pair.exits, pair.leaves) == (1, 1)
    pair.run(70_000)
    assert (pair.exits, pair.leaves) == (2, 1)


class _Given:
    def __init__(self, exits: Iterator[Exit]) -> None:
        self._exits = exits

    def next(self) -> Exit | None:
        return next(self._exits, None)
