"""Real guests under the live engine: what their own counters say of the gate, and what is left of them when all dies.

A counter in guest memory is an oracle: the guest counts there itself, and no report of a hyperthread has a part in it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from live_rig import check_passes, family, machine, pass_time, pid_of, wait_ready, wait_until

from asid.audit import audit
from asid.client import Client
from asid.commands import invoke
from asid.core.events import Mode
from asid.errors import AsidError
from asid.guest.kvm import check_kvm
from asid.guest.kvm_programs import COUNTER, GuestMemory
from asid.live.page import MODE, TAINT, CorePage, base_of

try:
    check_kvm()
    WHY_NOT = ""
except AsidError as refused:
    WHY_NOT = f"no real guests here: {refused}"

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.timeout(120, method="signal"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "never"),
]


def real(program: str = "mix", rate: str = "2000/s", **more: Any) -> dict[str, Any]:
    """A machine whose only VM is real."""
    guest = {"source": "kvm", "program": program} | ({"rate": rate} if program in ("mix", "halt") else {})
    return machine(**{"vm": [{"name": "tenant", "on": ["c*"], "guest": guest}], **more})


@contextmanager
def memories(pid: int) -> Iterator[tuple[GuestMemory, CorePage]]:
    """The memory of vm1 and the page of core 0, out of a process that has them open."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        name = os.readlink(f"/proc/{pid}/fd/{fd}")
        for wanted in ("memfd:asid-vm1", "memfd:asid-core-0"):
            if wanted in name and wanted not in found:
                found[wanted] = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    memory, page = GuestMemory(found["memfd:asid-vm1"]), CorePage(found["memfd:asid-core-0"], 2)
    for fd in found.values():
        os.close(fd)
    try:
        yield memory, page
    finally:
        memory.close()
        page.close()


def seen(client: Client) -> Callable[..., int]:
    """How often something was told so far: the sum of a field of a type of record, of those for which `which` holds."""
    records: list[dict[str, Any]] = []

    def told(type_: str, field: str, **which: Any) -> int:
        since = records[-1]["seq"] + 1 if records else 0
        records.extend(client.fetch(since, client.ping().seq, []))
        found = (r["data"] | {"ht": r["ht"]} for r in records if r["type"] == type_)
        return sum(data[field] for data in found if which.items() <= data.items())

    return told


def run_until(rig: Any, config: dict[str, Any], enough: Callable[[Callable[..., int]], bool], what: str) -> Any:
    """A run that lasts until enough was seen, however fast this host is."""
    daemon = rig.start(config)
    told = seen(daemon.client())
    wait_until(lambda: enough(told), 60, what)
    return daemon.stop()


def stood(run: Any) -> dict[str, dict[str, int]]:
    """What the guests' own counts say of a run, by how HOST was reached."""
    return audit(run.root).as_map()["figures"]["standstill"]


@pytest.mark.parametrize(("policy", "kick"), [("asi", "ack"), ("kick-every-exit", "ack"), ("asi", "rendezvous")])
def test_no_real_guest_moves_while_a_sibling_is_in_host_after_a_grant(rig, policy, kick):
    config = real(policy={"name": policy, "kick": kick})
    run = run_until(rig, config, lambda told: told("standstill", "visits", via="grant") > 50, "50 visits to HOST")
    check_passes(run)
    assert stood(run)["grant"]["moved"] == 0


def test_without_a_gate_real_guests_do_move_beside_host_and_both_ways_to_see_it_say_so(rig):
    config = real(policy={"name": "none"})
    run = run_until(rig, config, lambda told: told("standstill", "moved", via="bare") > 3, "guests that move")
    assert stood(run)["bare"]["moved"] > 3
    finding = audit(run.root).finding("G2")
    told = sum(record.type == "standstill" and record.data["moved"] > 0 for record in run.records())
    assert told > 0
    assert finding.broken > 2 * told, "the intervals say so too"
    assert finding.broken == finding.allowed, "and none of it was promised"


def test_from_outside_the_counter_of_a_guest_stands_still_while_its_sibling_is_in_host(rig):
    """Nobody of the machine is asked: another process reads counter and page, the page before and after."""
    daemon = rig.start(real(policy={"name": "kick-every-exit"}))
    looks = moved = 0
    with memories(daemon.process.pid) as (memory, page):
        words = page.words

        def look(ht: int) -> tuple[int, int]:
            return words[base_of(ht) + MODE] & 0xFF, words[base_of(ht) + TAINT]

        def sample() -> bool:
            nonlocal looks, moved
            for ht in (0, 1):
                at = memory.word(1 - ht, COUNTER)
                before, count = look(ht), memory.words[at]
                if before[0] != Mode.HOST:
                    continue
                for _ in range(20):
                    again, after = memory.words[at], look(ht)
                    if after != before:
                        break  # it has left meanwhile; what was read last proves nothing
                    looks += 1
                    moved += again != count
            return looks >= 500

        wait_until(lambda: any(sample() for _ in range(1000)), 60, "500 looks beside a HOST")
        assert moved == 0
        counts = [memory.words[memory.word(ht, COUNTER)] for ht in (0, 1)]
        wait_until(
            lambda: all(memory.words[memory.word(ht, COUNTER)] > counts[ht] for ht in (0, 1)), 20, "both guests go on"
        )
    check_passes(daemon.stop())


@pytest.mark.parametrize("program", ["spin", "prober"])
def test_kicks_throw_a_guest_out_that_never_exits(rig, program):
    daemon = rig.start(real(program))
    client = daemon.client()
    client.inject_exit("c0h0", reason="IO_INSTRUCTION", full="yes", count=200, wait=True, timeout_s=60)
    run = daemon.stop()
    check_passes(run)
    verdict = audit(run.root)
    assert verdict.figures["kicks_seen"] >= 100
    assert verdict.figures["kicks_avoidable"] < verdict.figures["kicks_seen"]
    assert stood(run)["grant"] == {"visits": verdict.figures["full"], "moved": 0, "turns": 0}


def test_a_guest_moves_beside_an_nmi_only_where_the_audit_has_an_exposure(rig):
    daemon = rig.start(real("spin"))
    client = daemon.client()
    for _ in range(50):
        client.inject_nmi("c0h0", wait=True, timeout_s=30)
    run = daemon.stop()
    check_passes(run)
    stood_by_nmi = stood(run)["nmi"]
    windows = [window for window in audit(run.root).windows if window.cause == "nmi"]
    assert stood_by_nmi["visits"] == 50
    assert stood_by_nmi["moved"] <= len(windows)


def test_a_guest_moves_beside_a_leave_that_only_sends_no_oftener_than_the_audit_has_exposures(rig):
    config = real(policy={"name": "asi", "kick": "send"})
    run = run_until(rig, config, lambda told: told("standstill", "visits", via="send") > 50, "50 visits to HOST")
    check_passes(run)
    windows = [window for window in audit(run.root).windows if window.cause == "send"]
    assert len(windows) > 0
    assert stood(run)["send"]["moved"] <= len(windows)


@pytest.mark.parametrize(("kick", "via"), [("ack", "grant"), ("send", "send")])
def test_where_signals_come_late_a_guest_moves_beside_whoever_does_not_wait_for_it(rig, kick, via):
    """And beside nobody else: a leave by `ack` waits for the answer, a handler never does."""
    late = {"slow": [{"target": "c0h1", "delay": "0ns", "signal": "1ms"}]}
    nmis = [{"what": "nmi", "target": "c0h0", "at": "100ms", "count": 10_000, "rate": "300/s"}]
    config = real(policy={"name": "asi", "kick": kick}, faults=late, inject=nmis)

    def enough(told: Callable[..., int]) -> bool:
        beside_leaves = told("standstill", "moved" if kick == "send" else "visits", via=via)
        return beside_leaves > 50 and told("standstill", "moved", via="nmi") > 20

    run = run_until(rig, config, enough, "guests that move, and leaves")
    check_passes(run)  # so they moved beside no more visits than the intervals have exposures
    assert bool(stood(run)[via]["moved"]) is (kick == "send")
    moved = stood(run)["nmi"]["moved"]
    assert moved <= sum(window.cause == "nmi" for window in audit(run.root).windows)


def test_a_real_vm_and_an_emulated_one_take_turns_on_a_core(rig):
    from live_rig import TABLES

    mix = {"source": "mix", "table": str(TABLES / "leaves.toml"), "rate": "500/s"}
    vms = [
        {"name": "real", "on": ["c0h0"], "guest": {"source": "kvm", "rate": "500/s"}},
        {"name": "emulated", "on": ["c0h1"], "guest": mix},
    ]
    run = run_until(rig, real(vm=vms), lambda told: all(told("exit", "n", ht=ht) > 5 for ht in (0, 1)), "exits of both")
    check_passes(run)
    assert audit(run.root).finding("G3").checked > 0


def test_a_vcpu_that_is_taken_away_and_given_back_runs_on(rig):
    daemon = rig.start(real("spin"))
    client = daemon.client()
    with memories(daemon.process.pid) as (memory, _):
        at = memory.word(1, COUNTER)
        wait_until(lambda: memory.words[at] > 0, 20, "the guest runs")
        client.call("vcpu.detach", {"target": "c0h1"}, timeout_s=20)
        count = memory.words[at]
        pass_time(0.1)
        assert memory.words[at] == count, "the guest ran on without its vCPU"
        client.call("vcpu.attach", {"target": "vm1/1", "to": "c0h1"}, timeout_s=20)
        wait_until(lambda: memory.words[at] != count, 20, "the guest runs again")
    check_passes(daemon.stop())


@pytest.mark.parametrize("place", ["c0h0", "c0"])
@pytest.mark.parametrize("program", ["spin", "mix"])
def test_a_process_that_is_killed_beside_real_guests_is_born_again_and_they_go_on(rig, program, place):
    daemon = rig.start(real(program))
    client = daemon.client()
    before = pid_of(client, place)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pid_of(client, place) not in (0, before), 20, f"a successor of {place}")
    wait_ready(client)
    with memories(daemon.process.pid) as (memory, _):
        counts = [memory.words[memory.word(ht, COUNTER)] for ht in (0, 1)]
        wait_until(
            lambda: all(memory.words[memory.word(ht, COUNTER)] != counts[ht] for ht in (0, 1)), 20, "both guests run"
        )
    check_passes(daemon.stop())


def test_a_reader_of_every_change_of_mode_sees_those_of_a_real_guests_fast_exits(rig):
    daemon = rig.start(real("timer"))
    client = daemon.client()
    with client.events("r.") as events:
        changes: set[tuple[str, str]] = set()
        wanted = {("GUEST", "ISOLATED"), ("ISOLATED", "ENTER"), ("ENTER", "GUEST")}

        def look() -> bool:
            changes.update((event.data["old"], event.data["new"]) for event in events.drain())
            return wanted <= changes

        wait_until(look, 20, f"{wanted} of fast exits, not only {changes}")
    check_passes(daemon.stop())


def test_a_policy_that_is_set_meanwhile_decides_anew_what_is_fast(rig):
    daemon = rig.start(real("timer"))
    client = daemon.client()
    for policy in ("kick-every-exit", "asi"):
        client.policy_set(policy)
        begin = client.ping().seq
        wait_until(
            lambda begin=begin: sum(e["type"] == "exit" for e in client.fetch(begin, client.ping().seq, [])) > 3,
            20,
            f"exits under {policy}",
        )
    run = daemon.stop()
    check_passes(run)
    told = {(record.data["reason"], record.data["full"]) for record in run.records() if record.type == "exit"}
    assert {full for _, full in told} == {True, False}


def test_what_was_seen_under_a_policy_is_noted_before_the_next_one(rig):
    daemon = rig.start(real(policy={"name": "none"}))
    client = daemon.client()

    told = seen(client)
    for number, (policy, via) in enumerate((("asi", "bare"), ("none", "grant"), ("asi", "bare")), start=1):
        wait_until(
            lambda via=via, number=number: told("standstill", "visits", via=via) >= 10 * number, 20, f"visits by {via}"
        )
        client.policy_set(policy)
    run = daemon.stop()
    late, policy = [], "none"
    for record in run.records():
        if record.type == "policy":
            policy = record.data["new"]
        elif record.type == "standstill" and record.data["via"] != {"none": "bare", "asi": "grant"}[policy]:
            late.append((policy, record.data))
    assert late == []
    finding = audit(run.root).finding("G2")
    assert finding.broken == finding.allowed


def test_when_the_daemon_is_killed_no_guest_runs_on_and_nothing_is_left(rig):
    daemon = rig.start(real("spin"))
    with memories(daemon.process.pid) as (memory, _):
        places = [memory.word(ht, COUNTER) for ht in (0, 1)]
        wait_until(lambda: all(memory.words[at] for at in places), 20, "both guests run")
        daemon.process.kill()
        wait_until(lambda: not family(daemon), 10, "no process is left")
        counts = [memory.words[at] for at in places]
        pass_time(0.1)
        assert [memory.words[at] for at in places] == counts, "a guest ran on without its daemon"


def test_a_hyperthread_that_is_stopped_in_guest_stands_still_and_is_fenced(rig):
    daemon = rig.start(real("spin"))
    client = daemon.client()
    with memories(daemon.process.pid) as (memory, _):
        at = memory.word(1, COUNTER)
        wait_until(lambda: memory.words[at] > 0, 20, "the guest runs")
        before = pid_of(client, "c0h1")
        os.kill(before, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(before).status() == psutil.STATUS_STOPPED, 10, "it is stopped")
        count = memory.words[at]
        pass_time(0.05)
        assert memory.words[at] == count
        client.inject_exit("c0h0", reason="IO_INSTRUCTION", full="yes", wait=True, timeout_s=20)
        wait_until(lambda: pid_of(client, "c0h1") not in (0, before), 20, "a successor")
    run = daemon.stop()
    check_passes(run)
    assert audit(run.root).figures["fences"] >= 1


def test_the_demo_has_real_guests_and_says_so(capsys, monkeypatch):
    from live_rig import directories

    with directories(monkeypatch):
        assert invoke(["demo", "--seconds", "2", "--guest", "kvm"]) == 0
    said = capsys.readouterr()
    assert "Guests are real: VM entry is KVM_RUN" in said.err
    assert "The guests' own counters, policy asi: moved on in 0 of" in said.out


def test_a_configuration_for_a_real_guest_is_refused_by_the_simulator():
    from asid.errors import ConfigError
    from asid.simulating import check_simulated, load_for

    with pytest.raises(ConfigError) as refused:
        check_simulated(load_for(real(), {}))
    assert 'vm.0.guest.source = "kvm"' in str(refused.value)
    assert "--engine live" in refused.value.hint
