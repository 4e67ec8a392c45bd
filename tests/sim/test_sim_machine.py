"""A simulated machine keeps what its policy promises, costs what the table says, and does the same thing twice."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import CONFIGS, IDLE_PAIR, MS, TYPICAL, exit_at, judged, of, played

from asid import seeds
from asid.audit.finding import BROKEN
from asid.config import load
from asid.core.policy import KICKS, POLICIES
from asid.core.rebirth import YOUNG_DEATHS_MAX
from asid.core.record import fault_of
from asid.guest import make_source
from asid.seeds import plan_for
from asid.sim.costs import LEVELS, TABLE, costs_of
from asid.simulating import machine_of

ROOT = Path(__file__).parent.parent.parent


def variants() -> list[tuple[str, str]]:
    return [
        (name, kick)
        for name, policy in POLICIES.items()
        for kick in (KICKS if len(policy.kicks) > 1 else [policy.kicks[0].name.lower()])
        if kick != "bare" or len(policy.kicks) == 1
    ]


def broken_of(records) -> set[str]:
    return {finding.guarantee for finding in judged(records).findings if finding.state == BROKEN}


@pytest.mark.parametrize("config", ["smt2.toml", "two-vms.toml", "noisy-neighbour.toml", "smt4.toml"])
@pytest.mark.parametrize(("policy", "kick"), variants())
def test_every_policy_keeps_what_it_promises(config: str, policy: str, kick: str):
    records = played(config, 40 * MS, policy=policy, **({} if kick == "bare" else {"kick": kick}))
    verdict = judged(records)
    assert broken_of(records) <= POLICIES[policy].unpromised(), verdict.first
    assert not verdict.reasons
    assert verdict.figures["exits"] > 0
    assert [fault for record in records if (fault := fault_of(record))] == []


def test_none_leaks_both_ways_and_asi_not_at_all():
    leaks = {
        policy: judged(played("smt2.toml", 200 * MS, policy=policy)).figures["leaks"] for policy in ("none", "asi")
    }
    assert leaks["none"]["concurrent"] > 0 and leaks["none"]["residual"] > 0
    assert leaks["asi"]["concurrent"] == leaks["asi"]["residual"] == 0


def test_a_leave_beside_a_guest_costs_the_sum_of_its_steps():
    records = played({**IDLE_PAIR, "inject": [exit_at(500)]}, 1 * MS)
    c = TYPICAL
    (leave,) = of(records, "leave")
    whole = 2 * c.vm_exit + 3 * c.message + c.ipi_send + c.ipi_delivery + c.cr3_write
    assert leave.data["wait_ns"] == whole
    assert (leave.data["kind"], leave.data["reason"]) == ("ack", "EPT_VIOLATION")
    seen = of(records, "kick.seen")[0]
    assert (seen.ht, seen.data["was"]) == (1, "GUEST")


def test_a_leave_beside_nobody_costs_no_kick():
    alone = {"name": "alone", "machine": {"smt": 2}, "vm": [{"on": ["c0h0"]}], "inject": [exit_at(500)]}
    records = played(alone, 1 * MS)
    c = TYPICAL
    (leave,) = of(records, "leave")
    assert leave.data["wait_ns"] == c.vm_exit + 2 * c.message + c.cr3_write
    assert [record for record in of(records, "gate.kick") if record.ts < MS] == []


def test_a_send_leave_waits_for_nobody_and_exposes_until_the_ipi_is_there():
    records = played({**IDLE_PAIR, "inject": [exit_at(500)]}, 1 * MS, kick="send")
    c = TYPICAL
    (leave,) = of(records, "leave")
    assert leave.data["wait_ns"] == c.vm_exit + c.ipi_send + c.cr3_write
    (window,) = judged(records).windows
    assert window.cause == "send"
    assert 0 < window.ns <= c.ipi_delivery


def test_a_fast_exit_tells_nobody():
    table = 'isa = "vmx"\n[[exit]]\nreason = "CPUID"\nshare = 1\nservice = "1us"\n'
    records = played_mix(table, "10000/s")
    assert of(records, "leave") == []
    assert [record for record in of(records, "gate.kick") if record.ts < 20 * MS] == []
    assert sum(record.data["n"] for record in of(records, "exit")) > 100
    assert not any(record.data["full"] for record in of(records, "exit"))


def mix_pair(table: str, rate: str):
    """Return a pair whose exits are drawn from a table."""
    path = Path(os.environ["ASID_TEST_DIR"]) / "mix.toml"
    path.write_text(table)
    guest = {"source": "mix", "table": str(path), "rate": rate}
    return {**IDLE_PAIR, "vm": [{"name": "a", "on": ["c0h0", "c0h1"], "guest": guest}]}


def played_mix(table: str, rate: str, **overrides: object):
    return played(mix_pair(table, rate), 20 * MS, **overrides)


@pytest.fixture(autouse=True)
def a_place_for_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("ASID_TEST_DIR", str(tmp_path))


def test_kicks_swallow_no_guest_time():
    """However often a guest is kicked out, it runs as long between two of its exits as its source says."""
    table = 'isa = "vmx"\n[[exit]]\nreason = "CPUID"\nshare = 1\nservice = "1us"\n'
    records = played_mix(table, "2000/s", policy="kick-every-exit")
    assert len(of(records, "gate.kick")) > 20
    loaded = load(mix_pair(table, "2000/s"))
    source = make_source(loaded.config.vm[0].guest, vm=1, vcpu=0, seed=loaded.config.seed, base_dir=loaded.base_dir)
    ends = [record.ts - TYPICAL.message for record in of(records, "exit", 0)]
    wanted_ns = accumulate(source.next().after_ns for _ in ends)
    assert [guest_ns(records, 0, end_ns) for end_ns in ends] == list(wanted_ns)


def guest_ns(records, ht: int, until_ns: int) -> int:
    """Return the time that a hyperthread was in GUEST before a moment."""
    total, since = 0, None
    for record in of(records, "ht.mode", ht):
        if record.ts > until_ns:
            break
        if since is not None:
            total, since = total + record.ts - since, None
        if record.data["new"] == "GUEST":
            since = record.ts
    return total + (until_ns - since if since is not None else 0)


def test_an_nmi_is_handled_and_kicks():
    nmi = {"what": "nmi", "target": "c0h1", "at": "500us"}
    records = played({**IDLE_PAIR, "inject": [nmi]}, 1 * MS)
    (done,) = of(records, "inject.done")
    assert done.data["result"] == "handled"
    (intr,) = of(records, "intr")
    assert intr.ht == 1 and intr.data["from"] == "GUEST"
    assert [record.data["to"] for record in of(records, "ipi")] == [0]
    assert judged(records).passed


def test_an_ipi_on_the_bus_dies_with_its_sender():
    injected = [{"what": "nmi", "target": "c0h1", "at": "500us"}, {"what": "kill", "target": "c0h1", "at": "501us"}]
    records = played({**IDLE_PAIR, "apic": {"mode": "xapic"}, "inject": injected}, 1 * MS)
    assert of(records, "ipi", 1) == []
    assert [record.ts for record in of(records, "death", 1)] == [501_000]


def test_a_visit_to_host_within_a_siblings_flush_is_flushed_once_more():
    alone = {"name": "alone", "machine": {"smt": 2}, "vm": [{"on": ["c0h0"]}]}
    nmi = {"what": "nmi", "target": "c0h1", "at": "505us"}
    machine = machine_of(load({**alone, "inject": [exit_at(500), nmi]}), TYPICAL)
    machine.costs = TYPICAL._replace(l1d_flush=10_000)
    records = machine.play(1 * MS).records
    *_, visit_over = [record for record in of(records, "ht.mode", 1) if record.data["old"] == "HOST"]
    cut_short, whole = (record.ts for record in of(records, "flush", 0) if record.ts > 500_000)
    assert cut_short - 10_000 < visit_over.ts < cut_short
    assert whole - 10_000 >= visit_over.ts


def test_of_nmis_that_come_together_one_is_taken_and_one_is_latched():
    nmi = {"what": "nmi", "target": "c0h1", "at": "500us", "count": 3}
    records = played({**IDLE_PAIR, "inject": [nmi]}, 1 * MS)
    assert sorted(record.data["result"] for record in of(records, "inject.done")) == ["handled", "handled", "merged"]
    assert [record.data["merged"] for record in of(records, "intr")] == [0, 1]


def test_whoever_answers_too_late_is_fenced_and_comes_back():
    slow = {"slow": [{"target": "c0h1", "delay": "80ms"}]}
    records = played({**IDLE_PAIR, "faults": slow, "inject": [exit_at(500)]}, 400 * MS)
    assert of(records, "gate.fence")[0].ht == 1
    assert of(records, "death", 1)[0].data["status"] == -9
    assert [record.data["inc"] for record in of(records, "spawn", 1)] == [1, 2]
    assert of(records, "leave")[0].data["wait_ns"] > 50 * MS
    assert judged(records).passed


def test_a_killed_hyperthread_comes_back_and_what_it_had_is_lost():
    injected = [
        {"what": "kill", "target": "c0h1", "at": "5ms"},
        {"what": "nmi", "target": "c0h1", "at": "6ms"},
    ]
    records = played({**IDLE_PAIR, "inject": injected}, 300 * MS)
    results = {record.data["id"]: record.data["result"] for record in of(records, "inject.done")}
    assert results == {1: "handled", 2: "lost"}
    verdict = judged(records)
    assert verdict.passed and verdict.finding("L4").state == "held"


def test_who_is_killed_often_comes_back_each_time_and_who_ends_young_again_and_again_does_not(tmp_path):
    kills = {"what": "kill", "target": "c0h1", "at": "5ms", "count": 8, "rate": "20/s"}
    records = played({**IDLE_PAIR, "inject": [kills]}, 500 * MS)
    assert [record.data["inc"] for record in of(records, "spawn", 1)] == [*range(1, 10)]
    mapping = tmp_path / "without-entry.toml"
    mapping.write_text('[[vm]]\nname = "a"\nmap = [{ object = "kernel text", level = "PMD" }]\n')
    exits = exit_at(500, count=20, rate="10/s")
    records = played({**IDLE_PAIR, "inject": [exits]}, 2_000 * MS, space__mapping=str(mapping))
    assert [record.data["status"] for record in of(records, "death", 0)] == [86] * (YOUNG_DEATHS_MAX + 1)
    assert of(records, "inject.done")[-1].data["result"] == "lost"
    (warning,) = of(records, "warn")
    assert (warning.ht, warning.data["text"]) == (0, "c0h0 died too often; it stays OFFLINE")
    assert warning.ts == of(records, "death", 0)[-1].ts


def test_a_stalled_hyperthread_is_waited_for():
    injected = [{"what": "stall", "target": "c0h1", "at": "1ms", "duration": "3ms"}, exit_at(1_500)]
    records = played({**IDLE_PAIR, "inject": injected}, 10 * MS)
    (leave,) = of(records, "leave")
    assert 2 * MS < leave.data["wait_ns"] < 3 * MS
    assert judged(records).passed


def checks_of_all(*at_us: int, **more):
    checks = [{"what": "mce", "target": "c0h1", "at": f"{at}us"} for at in at_us]
    return {**IDLE_PAIR, "machine": {"cores": 1, "smt": 4}, "mce": {"mode": "broadcast", **more}, "inject": checks}


def test_handlers_of_a_machine_check_of_all_siblings_meet():
    records = played(checks_of_all(500, 900), 5 * MS)
    handlers = of(records, "intr")
    assert len(handlers) == 8
    for number in (1, 2):
        met = [record for record in handlers if record.data["broadcast"] == number]
        assert sorted(record.data["order"] for record in met) == [1, 2, 3, 4]
        assert [record.data["role"] for record in sorted(met, key=lambda r: r.data["order"])] == [
            "monarch", "joined", "joined", "joined",
        ]  # fmt: skip
        assert max(record.ts for record in met) - min(record.ts for record in met) < TYPICAL.mce
        assert all(record.data["host_ns"] > 4 * TYPICAL.mce for record in met)  # one works after the other
    injected = of(records, "inject")
    assert [record.data["broadcast"] for record in injected] == [1] * 4 + [2] * 4
    assert [record.data["result"] for record in of(records, "inject.done")] == ["handled"] * 8
    assert of(records, "mce.timeout") == []
    assert judged(records).passed


def test_who_does_not_come_to_a_machine_check_is_missed_and_fenced():
    stall = {"what": "stall", "target": "c0h1", "at": "400us", "duration": "80ms"}
    source = checks_of_all(500, timeout="10ms")
    records = played({**source, "inject": [stall, *source["inject"]]}, 200 * MS)
    missed = of(records, "mce.timeout")
    assert {record.data["missing"] for record in missed} == {"h1"}
    assert [record.ht for record in missed] != []
    (warning,) = of(records, "warn")
    assert warning.data["text"].startswith("c0h1 is killed: it did not come to an end with machine check 1")
    assert of(records, "death", 1)[0].data["status"] == -9
    assert of(records, "spawn", 1)[-1].data["inc"] == 2
    verdict = judged(records)
    assert verdict.passed, [str(finding.first) for finding in verdict.findings if finding.first]


def test_a_machine_check_of_all_siblings_reaches_who_lives_and_who_dies_in_it_is_waited_for_by_nobody():
    kills = [{"what": "kill", "target": "c0h0", "at": at} for at in ("499us", "902us")]
    source = checks_of_all(500, 900, timeout="10ms")
    records = played({**source, "inject": [*source["inject"], *kills]}, 100 * MS)
    assert [record.ht for record in of(records, "inject") if record.data.get("broadcast") == 1] == [1, 2, 3]
    assert of(records, "mce.timeout") == []
    assert judged(records).passed


@pytest.mark.parametrize("policy", ["asi", "none", "kick-every-exit"])
def test_seeds_with_machine_checks_of_all_siblings_break_nothing(policy: str):
    for seed in range(1, 5):
        job = seeds.Job(str(CONFIGS / "smt4.toml"), {"mce.mode": "broadcast", "policy.name": policy}, TYPICAL, 16 * MS)
        plan = tuple({**table, "what": "mce"} if table["what"] == "nmi" else table for table in plan_for(job, seed))
        assert seeds.run(job, seed, plan).failed is None


@pytest.mark.parametrize(("nested", "fate"), [("hold", ["handled", "handled"]), ("shutdown", ["lost", "lost"])])
def test_a_machine_check_within_another_waits_for_its_end_or_shuts_down(nested: str, fate: list[str]):
    checks = [{"what": "mce", "target": "c0h1", "at": at} for at in ("500us", "501us")]
    records = played({**IDLE_PAIR, "mce": {"mode": "local", "nested": nested}, "inject": checks}, 5 * MS)
    assert [record.data["result"] for record in of(records, "inject.done")] == fate
    assert of(records, "death", 1)[0].data["status"] == (86 if nested == "shutdown" else 0)
    assert judged(records).passed


def test_what_is_not_mapped_is_reported_once_and_makes_a_leave_each_time():
    records = played("smt2.toml", 60 * MS, space__mapping="minimal")
    faults, leaves = of(records, "fault"), of(records, "leave")
    assert len({(f.ht, f.data["ip"], f.data["address"]) for f in faults}) == len(faults) > 0
    assert {leave.data["object"] for leave in leaves} >= {fault.data["object"] for fault in faults}
    assert len(leaves) > 2 * len(faults)
    assert all(record.data["full"] for record in of(records, "exit"))
    verdict = judged(records)
    assert verdict.passed
    assert verdict.finding("G6").checked >= len(faults)


def test_a_fault_whose_handlers_cannot_run_is_the_end_of_its_hyperthread(tmp_path):
    mapping = tmp_path / "without-entry.toml"
    mapping.write_text('[[vm]]\nname = "a"\nmap = [{ object = "kernel text", level = "PMD" }]\n')
    records = played({**IDLE_PAIR, "inject": [exit_at(500)]}, 300 * MS, space__mapping=str(mapping))
    assert of(records, "fault")[0].data["ending"] == "stopped"
    assert of(records, "death", 0)[0].data["status"] == 86
    assert of(records, "spawn", 0)[-1].data["inc"] == 2
    assert judged(records).passed


# --- the same thing twice -----------------------------------------------------------------------------------

DIGEST = """
import hashlib, msgpack, sys
from asid import seeds
from asid.seeds import plan_for
from asid.config import load
from asid.sim.costs import costs_of
from asid.simulating import machine_of
records = machine_of(load(sys.argv[1]), costs_of("typical")).play(30_000_000).records
print(hashlib.sha256(b"".join(map(msgpack.packb, records))).hexdigest())
"""


def test_another_process_and_another_hash_seed_play_the_same():
    config = ROOT / "configs/noisy-neighbour.toml"
    here = played("noisy-neighbour.toml", 30 * MS)
    digest = hashlib.sha256(b"".join(map(msgpack.packb, here))).hexdigest()
    for seed in ("0", "12345"):
        found = subprocess.run(
            [sys.executable, "-c", DIGEST, str(config)], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert found.stdout.strip() == digest


def test_another_seed_plays_something_else():
    assert played("smt2.toml", seed=1) != played("smt2.toml", seed=2)


@pytest.mark.parametrize("level", LEVELS)
def test_every_column_of_costs_passes(level: str):
    loaded = load(ROOT / "configs/smt2.toml")
    assert judged(machine_of(loaded, costs_of(level)).play(30 * MS).records).passed


def test_every_cost_has_a_source_and_grows_from_low_to_high():
    assert all(row.source and row.what and 0 < row.low <= row.typical <= row.high for row in TABLE)


kinds = st.sampled_from(["exit", "nmi", "mce", "irq", "stall", "kill"])


@settings(max_examples=int(os.environ.get("ASID_SIM_EXAMPLES", "25")))
@given(
    injected=st.lists(
        st.tuples(kinds, st.integers(0, 3), st.integers(1, 20_000), st.integers(1, 3)), min_size=1, max_size=12
    ),
    policy=st.sampled_from(["asi", "asi-stun", "kick-every-exit", "nosmt"]),
    kick=st.sampled_from(sorted(KICKS)),
    apic=st.sampled_from(["x2apic", "xapic", "shorthand"]),
)
def test_whatever_is_injected_no_promise_is_broken(injected, policy: str, kick: str, apic: str):
    tables = [
        {"what": what, "target": f"c0h{ht}", "at": f"{us}us", "count": n if what != "kill" else 1, "duration": "300us"}
        for what, ht, us, n in injected
    ]
    kicks = {} if len(POLICIES[policy].kicks) == 1 else {"kick": kick}
    records = played("smt4.toml", 40 * MS, policy=policy, **kicks, inject=tables, apic__mode=apic)
    verdict = judged(records)
    assert broken_of(records) <= POLICIES[policy].unpromised(), verdict.first
    assert len(of(records, "inject.done")) == len(of(records, "inject"))
