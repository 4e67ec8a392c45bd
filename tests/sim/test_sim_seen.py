"""Figures of leaves that were counted are those of leaves that were played, to the nanosecond."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import CONFIGS, MS, TYPICAL, VARIANTS

from asid.commands import invoke
from asid.config import load
from asid.sim import core, stream
from asid.sim.figures import Figures, Teller, Told
from asid.sim.known import Known, Pieces, Played
from asid.sim.machine import Measured
from asid.simulating import machine_of

SERVICES = ('"1us"', '"0ns"', '{ min = "200ns", mean = "1us", max = "9us" }', '{ mean = "3us" }')
WORKS = ('"4us"', '"20us"', '{ min = "1us", mean = "4us", max = "30us" }', '{ mean = "2us" }')

HALTS = '[[exit]]\nreason = "HLT"\nshare = 0.2\nwake = { mean = "6us" }\n'
SHORT = {"stall": {"duration": "300us"}}


def table_of(full: float, service: str, work: str, second: str = "EPT_VIOLATION") -> str:
    rows = [
        ("MSR_WRITE", 1.0 - full, service, 0.0),
        ("IO_INSTRUCTION", full / 2, work, 1.0),
        (second, full / 2, work, 1.0),
    ]
    return "\n".join(
        f'[[exit]]\nreason = "{reason}"\nshare = {share}\nservice = {times}\nfull = {share_full}\n'
        for reason, share, times, share_full in rows
    )


def both(machine: Any, duration_ns: int, chosen: dict[str, Any] | None = None) -> tuple[Measured, Measured]:
    loaded = load(machine, chosen or {})
    counted, played = (machine_of(loaded, TYPICAL).measure(duration_ns, seen=seen) for seen in (True, False))
    assert counted.figures == played.figures
    assert counted.duration_ns == played.duration_ns
    assert played.counted == 0
    return counted, played


def in_blocks(n: int) -> AbstractContextManager[object]:
    """All blocks of exits are that long."""
    return patch.multiple(stream, FIRST_BLOCK=n, LARGEST_BLOCK=n)


def busy(table: Path, rate: str = "20000/s", smt: int = 2, **more: Any) -> dict[str, Any]:
    guest = {"source": "mix", "table": str(table), "rate": rate}
    return {"machine": {"smt": smt}, "vm": [{"on": [f"c0h{ht}" for ht in range(smt)], "guest": guest}], **more}


@pytest.mark.parametrize(("policy", "kick"), VARIANTS)
@pytest.mark.parametrize("smt", [1, 2, 4])
def test_every_policy(tmp_path: Path, policy: str, kick: str, smt: int):
    table = tmp_path / "table.toml"
    table.write_text(table_of(0.02, '"1us"', '"4us"'))
    chosen = {"policy.name": policy, **({"policy.kick": kick} if kick else {})}
    both(busy(table, smt=smt), 24 * MS // smt, chosen)


@pytest.mark.parametrize("kick", ["ack", "send", "rendezvous"])
@pytest.mark.parametrize("work", WORKS)
def test_most_leaves_are_counted(tmp_path: Path, kick: str, work: str):
    """Or nothing above would tell anything."""
    table = tmp_path / "table.toml"
    table.write_text(table_of(0.05, '"1us"', work))
    counted, _ = both(busy(table, "5000/s"), 1_000 * MS, {"policy.kick": kick})
    assert counted.figures.leaves > 300
    assert counted.counted > 0.6 * counted.figures.leaves


def test_a_long_play_keeps_no_more_leaves_than_a_short_one(tmp_path: Path):
    """What is kept of each until it is put into figures is its time of work."""
    table = tmp_path / "table.toml"
    table.write_text(table_of(0.05, '"1us"', '{ min = "1us", mean = "4us", max = "30us" }'))
    kept = []

    def count(self: Known, into: Figures) -> None:
        kept.append(self.kept)
        put(self, into)

    put, loaded = Known.count, load(busy(table, "5000/s"), {})
    with patch.object(Known, "count", count), patch.object(core, "FIGURES_COUNTED", 20):
        counted = machine_of(loaded, TYPICAL).measure(4_000 * MS).counted
    assert counted > 1_000
    assert 10 < max(kept) < 100


@settings(
    max_examples=int(os.environ.get("ASID_SIM_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 10_000),
    full=st.sampled_from([0.01, 0.1, 0.5]),
    service=st.sampled_from(SERVICES),
    work=st.sampled_from(WORKS),
    rate=st.sampled_from(["3000/s", "20000/s", "90000/s"]),
    smt=st.sampled_from([1, 2, 2, 4]),
    variant=st.sampled_from(VARIANTS),
    slow=st.booleans(),
    at_once=st.sampled_from([3, 16, 64, 4096]),
    halt_poll=st.sampled_from(["", "0ns", "3us", "1ms"]),
    free=st.booleans(),
    apic=st.sampled_from(["x2apic", "xapic", "shorthand"]),
    mce=st.sampled_from(["local", "broadcast"]),
    injected=st.lists(
        st.tuples(st.sampled_from(["nmi", "mce", "irq", "exit", "stall", "kill"]), st.integers(1, 14_000)), max_size=4
    ),
)
def test_any_machine(tmp_path_factory: pytest.TempPathFactory, variant: tuple[str, str], **drawn: Any):
    table = tmp_path_factory.mktemp("tables") / "table.toml"
    table.write_text(table_of(drawn["full"], drawn["service"], drawn["work"]))
    machine = busy(table, drawn["rate"], drawn["smt"], seed=drawn["seed"])
    if drawn["halt_poll"]:
        table.write_text(table.read_text() + HALTS)
        machine["vm"][0]["guest"]["halt_poll"] = drawn["halt_poll"]
    machine["inject"] = [
        {"what": what, "target": f"c0h{us % drawn['smt']}", "at": f"{us}us", **SHORT.get(what, {})}
        for what, us in drawn["injected"]
    ]
    machine |= {"apic": {"mode": drawn["apic"]}, "mce": {"mode": drawn["mce"], "timeout": "10ms"}}
    if drawn["free"] and drawn["smt"] > 1:  # of any vCPU
        machine["vm"][0]["on"].pop()
    if drawn["slow"]:
        machine["faults"] = {"slow": [{"target": "c0h0", "delay": "3us"}]}
    policy, kick = variant
    with in_blocks(drawn["at_once"]):
        both(machine, 15 * MS, {"policy.name": policy, **({"policy.kick": kick} if kick else {})})


@pytest.mark.parametrize("mapping", ["minimal", "allowed"])
@pytest.mark.parametrize("inject", [[], [{"what": "kill", "target": "c0h1", "at": "5ms"}]])
def test_faults_that_only_the_first_exit_of_a_life_reports(tmp_path: Path, mapping: str, inject: list[dict[str, Any]]):
    table = tmp_path / "table.toml"
    table.write_text(table_of(0.1, '"1us"', '"4us"').replace("full = 0.0\n", "").replace("full = 1.0\n", ""))
    counted, _ = both(busy(table, "5000/s", inject=inject, space={"mapping": mapping}), 60 * MS)
    assert counted.counted > 0.5 * counted.figures.leaves
    assert counted.figures.sums["records", "fault"] > 0


def recording(random: Random, exits: tuple[int, ...], full: float, away: tuple[str, ...] = ("IO_INSTRUCTION",)) -> str:
    """The text of one: so many exits of each vCPU, about one every 50 us, that share of them to the VMM, for these
    reasons, one after another."""
    lines = ["# tracer: nop"]
    for vcpu, n in enumerate(exits):
        at_us = 1_000_000
        for each in range(n):
            at_us += random.randrange(20, 90)
            reason = away[each * len(away) // n] if random.random() < full else "MSR_WRITE"
            head = f"<...>-{101 + vcpu} [{vcpu:03d}] .... {at_us // 10**6}.{at_us % 10**6:06d}:"
            tail = f"<...>-{101 + vcpu} [{vcpu:03d}] .... {(at_us + 3) // 10**6}.{(at_us + 3) % 10**6:06d}:"
            lines += [f"{head} kvm_exit: reason {reason} rip 0x1 info 0 0", f"{tail} kvm_entry: vcpu {vcpu}"]
    return "\n".join(lines) + "\n"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999), full=st.sampled_from([0.0, 0.01, 0.1]), loop=st.booleans(),
    exits=st.tuples(st.integers(1, 700), st.integers(1, 700)), at_once=st.sampled_from([3, 16, 64]),
)  # fmt: skip
def test_recordings_of_any_length_end_where_they_end(
    tmp_path: Path, seed: int, full: float, loop: bool, exits: tuple[int, int], at_once: int
):
    """Also where the last exit is one to the VMM, and where a block of them ends with one."""
    (tmp_path / "t.txt").write_text(recording(Random(seed), exits, full))
    guest = {"source": "trace", "file": str(tmp_path / "t.txt"), "loop": loop}
    machine = {"machine": {"smt": 2}, "vm": [{"on": ["c0h0", "c0h1"], "guest": guest}]}
    with in_blocks(at_once):
        both(machine, 80 * MS)


def test_a_recording_that_begins_again_has_not_come_to_all_of_its_kinds_yet(tmp_path: Path):
    """Of its second life, until a kind comes up that its first life had come to."""
    (tmp_path / "t.txt").write_text(recording(Random(1), (600, 600), 0.2, ("IO_INSTRUCTION", "TASK_SWITCH")))
    guest = {"source": "trace", "file": str(tmp_path / "t.txt"), "loop": True}
    kill = {"what": "kill", "target": "c0h1", "at": "50ms"}
    machine = {"machine": {"smt": 2}, "vm": [{"on": ["c0h0", "c0h1"], "guest": guest}], "inject": [kill]}
    counted, _ = both(machine, 90 * MS)
    assert counted.counted > 0.5 * counted.figures.leaves


def test_a_hyperthread_without_a_vcpu_is_in_no_way(tmp_path: Path):
    table = tmp_path / "table.toml"
    table.write_text(table_of(0.5, '"1us"', '"10us"'))
    guest = {"source": "mix", "table": str(table), "rate": "20000/s"}
    counted, _ = both({"vm": [{"on": ["c0h0"], "guest": guest}]}, 40 * MS)
    assert counted.counted > 0.9 * counted.figures.leaves


def test_an_interrupt_in_the_middle_of_a_leave_is_no_part_of_it(tmp_path: Path):
    """It hits a hyperthread that has no vCPU, and leaves the core as it was."""
    table = tmp_path / "table.toml"
    table.write_text(table_of(1.0, '"1us"', '"10us"').replace("share = 0.0", "share = 0.001"))
    guest = {"source": "mix", "table": str(table), "rate": "20000/s"}
    inject = [{"what": "irq", "target": "c0h1", "at": f"{us}us"} for us in range(50, 4_000, 50)]
    counted, _ = both({"vm": [{"on": ["c0h0"], "guest": guest}], "inject": inject}, 20 * MS)
    assert counted.counted > 100


@pytest.mark.parametrize("config", ["smt2.toml", "smt4.toml", "two-vms.toml", "noisy-neighbour.toml", "nmi-heavy.toml"])
def test_the_machines_of_the_project(config: str):
    both(CONFIGS / config, 40 * MS)


def test_a_leave_into_which_something_is_injected_is_like_no_other(tmp_path):
    table = tmp_path / "table.toml"
    table.write_text(table_of(0.1, '"1us"', '"4us"'))
    nmi = {"what": "nmi", "target": "c0h0", "at": "28us"}
    counted, _ = both(busy(table, "90000/s", 1, inject=[nmi]), 15 * MS)
    assert counted.figures.sums["records", "inject"] == 1


def test_figures_are_those_of_the_records():
    loaded = load(CONFIGS / "smt4.toml", {})
    records = machine_of(loaded, TYPICAL).play(40 * MS).records
    figures = machine_of(loaded, TYPICAL).measure(40 * MS).figures
    leaves = [record for record in records if record.type == "leave"]
    assert figures.leaves == len(leaves)
    assert figures.exits == sum(record.data["n"] for record in records if record.type == "exit")
    waits = sum(record.data["wait_ns"] for record in leaves)
    assert sum(ns for key, ns in figures.sums.items() if key[:2] == ("ns", "leave")) == waits
    assert figures.sums["records", "flush"] == sum(record.type == "flush" for record in records)


def leave(work_ns: int, mode: str = "HOST", way: str = "leave") -> Played:
    """Return a leave that takes as long as its work, and 100 ns."""
    told = Told(Counter({("mode_ns", "c0h0", mode): work_ns}), [])
    return Played(0, ((way, 0),), (work_ns,), 100 + work_ns, 100 + work_ns, (None,), told)


def test_what_lies_between_two_plays_is_known_unless_it_went_another_way():
    pieces, figures = Pieces(), Figures()
    pieces.learn(10, leave(10), figures)
    pieces.learn(20, leave(20, way="held"), figures)
    pieces.learn(30, leave(30), figures)
    pieces.learn(40, leave(40), figures)
    known = {work_ns for work_ns in range(50) if pieces.find(work_ns) is not None}
    assert known == {10, 20, *range(30, 41)}


def test_what_was_told_of_another_mode_is_another_way():
    pieces, figures = Pieces(), Figures()
    pieces.learn(10, leave(10), figures)
    pieces.learn(30, leave(30, mode="PARKED"), figures)
    assert pieces.find(20) is None


def test_figures_by_command(tmp_path, capsys):
    assert (
        invoke(["run", str(CONFIGS / "smt2.toml"), "--engine", "sim", "--figures", "--duration", "20ms", "--json"]) == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["exits"] == sum(row["n"] for row in shown["reasons"])
    assert shown["leaves"] == sum(row["n"] for row in shown["waits"] if row["of"].startswith("leave"))
    for modes in shown["modes_ns"].values():
        assert sum(modes.values()) == shown["duration_ns"]


def test_whoever_is_dead_at_the_end_was_in_no_guest_since(tmp_path: Path):
    table = tmp_path / "table.toml"
    table.write_text(table_of(0.02, '"1us"', '"4us"'))
    machine = busy(table, inject=[{"what": "kill", "target": "c0h1", "at": "10ms"}])
    measured, _ = both(machine, 15 * MS)
    sums = measured.figures.sums
    assert sums["mode_ns", "c0h1", "OFFLINE"] == measured.duration_ns - 10 * MS


@pytest.mark.parametrize("more", [[], ["--engine", "sim", "--run-dir", "x"]])
def test_figures_are_kept_nowhere_and_of_the_simulator_alone(more: list[str]):
    assert invoke(["run", str(CONFIGS / "smt2.toml"), "--figures", *more]) == 2


def test_nothing_told_is_nothing():
    assert Figures().exits == Figures().leaves == 0
    assert Teller(0).tell([]) == (Figures().sums, [])
