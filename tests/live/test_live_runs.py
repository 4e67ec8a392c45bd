"""Whole runs of real processes: every configuration we ship passes, and the negative control does not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from live_rig import (
    IDLE,
    ROOT,
    TABLES,
    check_passes,
    family,
    leaves_of,
    machine,
    pid_of,
    story,
    wait_each_progresses,
    wait_progress,
    wait_until,
)

from asid.config import load_config
from asid.errors import AsidError
from asid.guest.kvm import check_kvm
from asid.live.hyperthread import TALLY_NS

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]

CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_passes(rig, path: Path):
    if load_config(path).real_vms:
        try:
            check_kvm()
        except AsidError as refused:
            pytest.skip(f"no real guests here: {refused}")
    run = rig.run(path, 0.8)
    counts = check_passes(run, "G1", "G5", "L2")
    assert counts["exit"] > 0
    assert run.manifest["status"] == "ended"


@pytest.mark.parametrize(
    ("smt", "policy", "kick"),
    [
        (2, "asi", "send"), (4, "asi", "send"), (4, "kick-every-exit", "ack"), (2, "kick-every-exit", "send"),
        (4, "nosmt", ""),
    ],
)  # fmt: skip
def test_every_guarded_policy_passes_under_load(rig, policy, kick, smt):
    run = rig.run(machine(smt), 0.7, policy=policy, kick=kick)
    counts = check_passes(run, "G1", "L2")
    assert counts["leave"] > 10
    kinds = {record.data["kind"] for record in run.records() if record.type == "leave"}
    assert kinds == {kick or "bare"}
    if kick == "send":
        assert counts["ipi"] >= counts["leave"]
        exposure = run.verdict.document["exposure"]
        assert exposure["count"] > 0, "a send kick waits for nobody, and what that costs is measured"
        assert 0 < exposure["p50_ns"] <= exposure["max_ns"]


def test_without_a_policy_siblings_are_exposed_and_the_audit_says_so(rig):
    run = rig.run(machine(), 0.8, policy="none")
    assert run.verdict.verdict == "FAIL"
    assert run.verdict.guarantees["G2"]["state"] == "broken", story(run)
    broken = [name for name, found in run.verdict.guarantees.items() if found["state"] == "broken"]
    assert broken == ["G2", "G9"]
    leaks = run.verdict.document["figures"]["leaks"]
    assert leaks["concurrent"] and leaks["residual"] and not leaks["promised"]


def test_asi_leaks_nothing_and_flushes(rig):
    run = rig.run(machine(), 0.8)
    check_passes(run, "G9")
    assert run.verdict.document["figures"]["leaks"] == {"concurrent": 0, "residual": 0, "promised": 0}
    assert any(record.type == "flush" for record in run.records())


@pytest.mark.parametrize("smt", [1, 2, 4, 8])
def test_every_width_starts_serves_and_stops(rig, smt):
    daemon = rig.start(machine(smt))
    client = daemon.client()
    names = set(family(daemon))
    expected = {f"asid: c0h{ht} hyperthread" for ht in range(smt)} | {"asid: c0 coordinator"}
    assert expected <= {name.strip() for name in names}, "everybody is named in ps"
    wait_until(lambda: leaves_of(client) >= 30, what="leaves")
    wait_each_progresses(client)
    check_passes(daemon.stop(), "G1", "G5", "L1", "L2", *(["G2", "G4"] if smt > 1 else []))


def test_two_vms_on_one_core_take_turns_and_both_progress(rig):
    guest = machine()["vm"][0]["guest"]
    vms = [{"name": "a", "on": ["c0h0", "c0h1"], "guest": guest}, {"name": "b", "on": ["c0h2", "c0h3"], "guest": guest}]
    daemon = rig.start(machine(4, vm=vms))
    client = daemon.client()
    for _ in range(3):
        wait_each_progresses(client)
    counts = check_passes(daemon.stop(), "G1", "G3", "L2")
    assert counts["gate.turn"] >= 4


def test_a_run_may_be_shorter_than_its_starter_needs_to_meet_it(rig):
    for _ in range(3):
        run = rig.run(machine(1), 1e-6)
        assert run.manifest["status"] == "ended"


def test_files_of_a_configuration_made_by_a_program_are_found_from_where_it_stands(rig, tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text((ROOT / "configs" / "tables" / "web.toml").read_text())
    monkeypatch.chdir(tmp_path)
    guest = {"source": "mix", "table": "own.toml", "rate": "500/s"}
    daemon = rig.start(machine(1, vm=[{"on": ["c0h0"], "guest": guest}]))
    wait_each_progresses(daemon.client())
    check_passes(daemon.stop())


def test_an_idle_machine_is_quiet(rig):
    """Nothing happens, so nothing is written and hardly any processor time is spent."""
    daemon = rig.start(IDLE)
    client = daemon.client()
    wait_each_progresses(client)
    before = client.ping().ret["seq"]
    run = daemon.stop()
    quiet = [record.type for record in run.records() if record.seq > before]
    assert set(quiet) <= {
        "ht.mode", "gate.kick", "gate.answer", "kick.seen", "gate.close", "gate.bye", "gate.dead", "gate.ask",
        "gate.drop", "death", "job", "run.end", "gate.turn",
    }, quiet  # fmt: skip
    check_passes(run)


def test_a_fast_exit_costs_no_message(rig):
    """300,000 exits of one lease: the gate hears of its admission and of nothing else."""
    daemon = rig.start(machine(1, table=""))
    client = daemon.client()
    wait_each_progresses(client)
    reply = client.inject_exit("c0h0", reason="CPUID", full="no", count=300_000, timeout_s=30)
    done = client.wait_job(reply["job"], timeout_s=30) if reply["job"] else reply
    assert done.seq > 0
    run = daemon.stop()
    counts = check_passes(run, "G8")
    exits = [record for record in run.records() if record.type == "exit"]
    assert sum(record.data["n"] for record in exits) == 300_000
    assert counts["gate.admit"] == 1 and counts.get("gate.leave", 0) == 0
    tallies = (exits[-1].ts - exits[0].ts) // TALLY_NS  # that were due meanwhile
    assert len(exits) <= 10 + 2 * tallies, "they are counted, not listed"


def test_a_guest_that_cannot_be_read_any_more_is_named_in_the_log(rig, tmp_path):
    """It was good when the machine started. Its hyperthread ends with one line, and the other one goes on."""
    table = tmp_path / "changing.toml"
    table.write_bytes((TABLES / "leaves.toml").read_bytes())
    daemon = rig.start(machine(vm=[{"on": ["c0"], "guest": {"source": "mix", "table": str(table)}}]))
    client = daemon.client()
    wait_each_progresses(client)
    table.write_text("[[exit]]\n")
    os.kill(pid_of(client, "c0h0"), signal.SIGKILL)
    wait_until(lambda: "c0h0 has no guest: InputError: " in rig.log(daemon), 10)
    wait_progress(client)
    table.write_bytes((TABLES / "leaves.toml").read_bytes())
    daemon.stop()
    said = next(line for line in rig.log(daemon).splitlines() if "has no guest" in line)
    assert str(table) in said and "must be" in said
