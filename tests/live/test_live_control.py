"""A live machine and its clients: changes under load, injections that add up, and clients that misbehave."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import msgpack
import pytest
import zmq
from live_rig import (
    IDLE,
    check_passes,
    injections,
    machine,
    overlaps_since,
    pass_time,
    pid_of,
    policies,
    wait_each_progresses,
    wait_progress,
    wait_ready,
    wait_until,
)

from asid import ops
from asid.errors import Busy, Conflict, NoSuchObject
from asid.live import sockets

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]


@pytest.fixture
def peer():
    """Makes sockets of a program that is none of ours."""
    context = zmq.Context()
    made = []

    def make(kind: int, endpoint: str, **options: object) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        made.append(socket)
        for name, value in {"LINGER": 0, **options}.items():
            socket.setsockopt(getattr(zmq, name), value)
        socket.connect(endpoint)
        return socket

    yield make
    for socket in made:
        socket.close()
    context.term()


# --- policy, gate, hotplug --------------------------------------------------------------------------------


@pytest.mark.parametrize("smt", [2, 4])
def test_the_policy_changes_under_load_and_no_guarantee_breaks_on_the_way(rig, smt):
    daemon = rig.start(machine(smt, cores=2))
    client = daemon.client()
    ways = [("kick-every-exit", "ack"), ("asi", "send"), ("nosmt", "bare"), ("asi", "ack"), ("kick-every-exit", "send")]
    for name, kick in ways:
        wait_progress(client, leaves=10)
        reply = client.policy_set(name, kick=kick)
        assert (reply["new"], reply["kick"]) == (name, kick)
        status = client.status()
        assert (status["policy"], status["kick"]) == (name, kick)
    wait_each_progresses(client)
    run = daemon.stop()
    counts = check_passes(run, "G1", "G2", "L1", "L2")
    assert counts["gate.hold"] == counts["gate.release"] == 2 * len(ways)
    words = [record.type for record in run.records() if record.type in ("gate.hold", "policy", "gate.release")]
    assert words == ["gate.hold", "gate.hold", "policy", "gate.release", "gate.release"] * len(ways)


def test_under_nosmt_a_turn_is_a_hyperthreads_and_its_vm_is_a_vm(rig):
    daemon = rig.start(machine(2, policy={"name": "nosmt"}))
    client = daemon.client()
    seen = set()
    for _ in range(10):
        wait_progress(client, leaves=5)
        seen.add(client.call("gate.get")["gates"][0]["vm"])
    run = daemon.stop()
    check_passes(run, "G1", "G2", "L2")
    assert seen in ({1}, {0, 1}), "between two turns it is nobody's"
    turns = [record.data for record in run.records() if record.type == "gate.turn"]
    assert {turn["vm"] for turn in turns} == {1} and {turn["room"] for turn in turns} == {1, 2}


def test_the_way_to_none_and_back_ends(rig):
    """Under `none` nobody tells the gate anything; it must still find out when nobody holds a lease. And back means
    back: what `none` may do is over with the record of the next change."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    for name in ("none", "asi", "none", "nosmt"):
        assert client.policy_set(name)["new"] == name
        wait_each_progresses(client)
        wait_progress(client)
    run = daemon.stop()
    assert {n for n, g in run.verdict.guarantees.items() if g["state"] == "broken"} <= {"G2", "G9"}
    assert run.verdict.document["figures"]["leaks"]["promised"] == 0
    changes = policies(run)
    assert [name for name, _ in changes] == ["none", "asi", "none", "nosmt"]
    last = changes[-1][1]
    assert overlaps_since(run, last) == [], "nothing is exposed after `none`"
    beside = [int(text.partition(":")[0]) for text in overlaps_since(run, changes[0][1])]
    assert not [seq for seq in beside if changes[1][1] <= seq < changes[2][1]], "nor between two times of `none`"
    told = run.verdict.guarantees["G2"]["note"]
    assert not told or told.endswith("that policy none does not promise against; 0 others")
    assert [change["new"] for change in run.verdict.document["policies"]] == ["none", "asi", "none", "nosmt"]


def test_a_policy_change_survives_deaths_on_the_way(rig):
    daemon = rig.start(machine(4))
    client = daemon.client()
    for victim in ("c0h1", "c0", "c0h3"):
        wait_progress(client, leaves=10)
        pid = pid_of(client, victim)
        os.kill(pid, signal.SIGSTOP)  # nobody is quiet while it does not answer
        killer = daemon.client(name="killer")
        timer = threading.Timer(0.15, os.kill, (pid, signal.SIGKILL))
        timer.start()
        client.policy_set("kick-every-exit" if victim == "c0h1" else "asi")
        timer.join()
        wait_until(lambda v=victim, p=pid, k=killer: pid_of(k, v) not in (0, p))
        wait_ready(client)
        wait_each_progresses(client)
    check_passes(daemon.stop(), "G1", "G2", "G11")


def test_a_held_gate_lets_nobody_in_until_it_is_released(rig):
    daemon = rig.start(machine(2))
    client, other = daemon.client(name="holder"), daemon.client(name="other")
    wait_progress(client)
    client.gate_hold("c0")
    wait_until(lambda: client.call("gate.get").ret["gates"][0]["phase"] == "held")
    assert client.call("gate.get").ret["gates"][0]["holder"] == "holder"
    seq = client.ping().ret["seq"]
    with pytest.raises(Busy, match="holder"):
        other.gate_release("c0")
    with pytest.raises(Busy):
        other.policy_set("none")
    client.policy_set("kick-every-exit")  # its own hold outlives the change of policy
    pass_time(0.2)
    assert client.call("gate.get").ret["gates"][0]["holder"] == "holder"
    other.gate_release("c0", force=True)
    wait_each_progresses(client)
    run = daemon.stop()
    check_passes(run, "G11")
    later = [record for record in run.records() if record.seq > seq and record.type in ("gate.admit", "gate.release")]
    assert later[0].type == "gate.release", "nobody was admitted while it was held"


def test_a_hold_ends_by_itself(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    client.gate_hold("c0", ttl_ms=200)
    wait_each_progresses(client)
    assert client.call("gate.get").ret["gates"][0]["holder"] == ""
    check_passes(daemon.stop(), "G11")


def test_a_hyperthread_is_unplugged_and_plugged_under_load(rig):
    daemon = rig.start(machine(4))
    client = daemon.client()
    for _ in range(2):
        assert client.unplug("c0h1,c0h3")["changed"] == ["c0h1", "c0h3"]
        assert pid_of(client, "c0h1") == 0
        wait_progress(client)
        assert client.status()["state"] == "ready", "what was unplugged is not missing"
        assert client.plug("c0h1,c0h3")["changed"] == ["c0h1", "c0h3"]
        wait_each_progresses(client)
    assert client.unplug("c0h2", force=True)["changed"] == ["c0h2"]
    wait_progress(client)
    assert client.unplug("c0h2")["changed"] == [], "twice is once"
    run = daemon.stop()
    check_passes(run, "G1", "G5", "L2")


def test_a_vcpu_is_taken_away_and_given_back_elsewhere(rig):
    vms = machine()["vm"]
    vms = [{**vms[0], "on": ["c0h0", "c0h1"]}]
    daemon = rig.start(machine(4, vm=vms))
    client = daemon.client()
    wait_each_progresses(client)
    assert client.detach("c0h1")["changed"] == [(1, 1, "c0h1")] or client.status()
    with pytest.raises(Conflict):
        client.inject_exit("c0h1", wait=True)
    with pytest.raises(Conflict, match="runs a vCPU"):
        client.attach("vm1/1", "c0h0")
    client.attach("vm1/1", "c0h3")
    with pytest.raises(Conflict, match="elsewhere"):
        client.attach("vm1/1", "c0h2")
    wait_each_progresses(client)
    assert client.inject_exit("c0h3", wait=True)["handled"] == 1, "what moved there takes exits there"
    run = daemon.stop()
    counts = check_passes(run, "G1", "G8", "L2")
    assert counts["gate.idle"] == 1
    assert counts["gate.ready"] == 4, "who has nothing to run does not say so again and again"


def test_an_unplugged_vcpu_can_be_detached(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    client.unplug("c0h1")
    client.detach("c0h1")
    client.plug("c0h1")
    wait_ready(client)
    wait_progress(client)
    [ht] = client.call("ht.list", {"target": "c0h1"}).ret["hts"]
    assert (ht["vm"], ht["mode"]) == (0, "PARKED")
    client.attach("vm1/1", "c0h1")
    wait_each_progresses(client)
    check_passes(daemon.stop())


def test_a_policy_is_changed_while_interrupts_hit_whoever_waits_for_it(rig):
    """Who was told early goes HOST by the new kick milliseconds before the change is written down: that is right."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_each_progresses(client)
    client.inject("irq", "c0", count=400, rate_hz=200)
    client.inject_nmi("c0", count=400, rate_hz=200)
    for _ in range(3):
        for name, kick in (
            ("asi", "send"),
            ("asi", "rendezvous"),
            ("asi-stun", "stun"),
            ("nosmt", ""),
            ("asi", "ack"),
        ):
            client.policy_set(name, kick=kick)
    wait_each_progresses(client)
    check_passes(daemon.stop(), "G2", "G10", "L1")


def test_a_vcpu_is_taken_from_one_that_is_about_to_be_born_again(rig):
    """Its coordinator has forgotten the vCPU by then, and it comes up without: that is done, and not waited for."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_each_progresses(client)
    for _ in range(5):
        assert client.inject("kill", "c0h1", wait=True)["handled"] == 1
        client.detach("c0h1")
        wait_ready(client)
        client.attach("vm1/1", "c0h1")
        wait_each_progresses(client)
    check_passes(daemon.stop(), "L4")


def test_a_machine_check_finds_nobody(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    client.unplug("c0")
    for scope in ("local", "broadcast"):
        with pytest.raises(Conflict):
            client.inject_mce("c0", scope=scope)
    daemon.stop()


# --- injections -------------------------------------------------------------------------------------------


def test_every_kind_of_injection_is_waited_for_and_counts(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    assert client.inject_exit("c0h0", reason="CPUID", full="no", count=500, wait=True)["handled"] == 500
    assert client.inject_exit("c0h1", reason="EPT_VIOLATION", full="yes", count=20, wait=True)["handled"] == 20
    assert client.inject("irq", "c0h0", wait=True)["handled"] == 1
    assert client.inject_nmi("c0h1", wait=True)["handled"] == 1
    assert client.inject_mce("c0h0", wait=True)["handled"] == 1
    assert client.inject_mce("c0h0", scope="broadcast", wait=True)["handled"] == 2
    assert client.inject("stall", "c0h0", for_ms=20, wait=True)["accepted"] == 1
    assert client.inject("kill", "c0h1", wait=True)["handled"] == 1
    wait_ready(client)
    assert client.inject("kill", "c0", what="coordinator", wait=True)["handled"] == 1
    wait_ready(client)
    wait_each_progresses(client)
    run = daemon.stop()
    check_passes(run, "G8", "G10", "L4")
    assert all(len(results) == 1 for results in injections(run).values())


def test_a_burst_of_nmis_merges_and_says_so(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    reply = client.inject_nmi("c0", count=400, wait=True)
    counts = {name: reply[name] for name in ("handled", "merged", "lost", "refused")}
    assert sum(counts.values()) == reply["accepted"] == 800
    assert counts["merged"] > 0 and counts["handled"] >= 2
    run = daemon.stop()
    check_passes(run, "G8", "G10")
    handlers = [record.data for record in run.records() if record.type == "intr"]
    assert len(handlers) == counts["handled"]
    assert sum(data["merged"] for data in handlers) == counts["merged"]


def test_a_paced_injection_is_a_job_that_can_be_cancelled(rig):
    daemon = rig.start(IDLE)
    client = daemon.client()
    reply = client.inject_nmi("c0h0", count=1_000_000, rate_hz=200)
    pass_time(0.5)
    client.call("job.cancel", {"job": reply["job"]})
    done = client.wait_job(reply["job"])
    run = daemon.stop()
    check_passes(run, "G8")
    accepted = len(injections(run))
    assert 5 < accepted < 10_000, "at its pace, and no more once it was cancelled"
    assert done["result"]["accepted"] == accepted


def test_nobody_waits_for_ever_for_an_injection_whose_hyperthread_dies(rig):
    daemon = rig.start(machine(2))
    client, waiting = daemon.client(name="me"), daemon.client(name="me")
    client.gate_hold("c0")  # so that nobody is in guest to take the exits
    pid = pid_of(client, "c0h0")
    timer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    timer.start()
    reply = waiting.inject_exit("c0h0", count=7, wait=True)
    timer.join()
    assert (reply["lost"], reply["handled"]) == (7, 0)
    client.gate_release("c0")
    wait_each_progresses(client)
    check_passes(daemon.stop(), "G8")


def test_interrupts_and_deaths_add_up(rig):
    daemon = rig.start(machine(4))
    client = daemon.client()
    wait_progress(client)
    client.inject_nmi("c0", count=60, rate_hz=100)
    client.inject_mce("c0", count=30, rate_hz=50)
    for place in ("c0h1", "c0h2", "c0h0"):
        pass_time(0.15)
        client.inject("kill", place, wait=True)
    wait_ready(client)
    pass_time(0.2)
    wait_each_progresses(client)
    run = daemon.stop()
    check_passes(run, "G8", "G10", "G11", "L4")
    results = Counter(result for results in injections(run).values() for result in results)
    assert results["handled"] > 50 and results["lost"] >= 0
    assert all(len(results) == 1 for results in injections(run).values())


def test_a_job_says_how_far_it_is_and_whether_a_cancel_cut_it_short(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    job = client.inject_exit("c0", count=1_000, rate_hz=200)["job"]
    dones = [wait_until(lambda: client.call("job.get", {"job": job})["done"])]
    dones.append(wait_until(lambda: found if (found := client.call("job.get", {"job": job})["done"]) > dones[0] else 0))
    cut = client.call("job.cancel", {"job": job})
    told = [record["data"] for record in client.fetch(1, 2**62, []) if record["type"] == "job"]
    assert [data["state"] for data in told] == ["running"] * (len(told) - 1) + ["cancelled"]
    assert sorted(data["done"] for data in told) == [data["done"] for data in told]
    assert (cut["state"], cut["total"]) == ("cancelled", 2_000)
    assert dones[1] <= cut["done"] == cut["result"]["accepted"] < 2_000
    job = client.inject_exit("c0", count=3, rate_hz=1_000)["job"]
    whole = client.wait_job(job)
    assert (whole["state"], whole["done"], whole["total"]) == ("done", 6, 6)
    assert client.call("job.cancel", {"job": job})["state"] == "done"
    check_passes(daemon.stop(), "G8")


def test_every_question_has_an_answer_in_its_declared_form(rig):
    """At the start, when there is little to tell, and under load; a return in another form would be Internal."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    questions = [name for name, op in ops.OPS.items() if op.machine and not op.mutating]
    needed = {"hist.get": {"what": "exit"}, "events.fetch": {"since": 1}}
    for _ in range(2):
        for name in questions:
            reply = client.call(name, needed.get(name, {}))
            assert set(reply.ret) >= set(ops.OPS[name].ret.__struct_fields__), name
        wait_progress(client)
    check_passes(daemon.stop())


def test_class_r_shows_every_change_of_mode_while_somebody_reads_it(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    with client.events("r.") as events:
        seen = {(0, 0): [], (0, 1): []}
        deadline = time.monotonic() + 10
        while min(map(len, seen.values())) < 50:
            assert time.monotonic() < deadline, {place: len(moves) for place, moves in seen.items()}
            event = events.next(1)
            if event is not None:
                assert (event.type, event.seq) == ("mode", 0)
                seen[event.core, event.ht].append((event.data["old"], event.data["new"]))
    for moves in seen.values():
        assert ("ENTER", "GUEST") in moves, "what the journal leaves out"
        assert all(before[1] == after[0] for before, after in itertools.pairwise(moves))
    check_passes(daemon.stop())


def test_what_does_not_exist_is_refused_and_nothing_happens(rig):
    daemon = rig.start(IDLE)
    client = daemon.client()
    for target in ("c7", "c0h9", "vm5"):
        with pytest.raises(NoSuchObject):
            client.inject_nmi(target)
    check = daemon.stop()
    assert injections(check) == {}


# --- events -----------------------------------------------------------------------------------------------


def test_a_late_reader_gets_what_it_missed_from_the_journal(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client, leaves=50)
    with client.events(since=1) as events:
        mark = client.mark("here")
        events.wait_seq(mark.seq)
        seqs = [event.seq for event in events.drain() if event.seq]
    assert seqs[: mark.seq] == list(range(1, mark.seq + 1))


def test_a_reader_that_fell_behind_sees_the_gap_and_can_fill_it(rig, peer):
    """A subscriber with a tiny queue that does not read: telemetry drops, numbers show it, the journal has all."""
    daemon = rig.start(machine(2))
    client = daemon.client()
    slow = peer(zmq.SUB, daemon.endpoints.tel, RCVHWM=5, RCVBUF=4096, SUBSCRIBE=b"e.")
    begin = client.ping().ret["seq"]
    wait_until(lambda: client.ping().ret["seq"] > begin + 14_000, 25, "more events than any queue holds")
    client.gate_hold("c0")  # the machine falls silent, so there is an end to read to
    end = client.mark("end").seq
    seqs = [0]
    while seqs[-1] < end and slow.poll(2_000):
        _, body = slow.recv_multipart()
        seqs.append(msgpack.unpackb(body)["seq"])
    del seqs[0]
    gaps = sum(later != sooner + 1 for sooner, later in itertools.pairwise(seqs))
    assert gaps > 0, "what a queue has no room for is dropped, and the numbers show where"
    assert seqs == sorted(seqs)
    fetched = [event["seq"] for event in client.fetch(seqs[0], seqs[-1], [])]
    assert fetched == list(range(seqs[0], seqs[-1] + 1)), "whatever was dropped is in the journal"
    check_passes(daemon.stop())


def test_stamps_have_a_moment_of_the_wall(rig):
    """`y.clock.` is told to readers, and to nobody else: neither journal nor gate knows of it."""
    daemon = rig.start(IDLE)
    client = daemon.client()
    with client.events("y.clock.") as events:
        clocks = [events.next(5), events.next(5)]
    assert all(clock is not None and clock.type == "clock" for clock in clocks)
    assert clocks[1].ts > clocks[0].ts, "again and again"
    assert all(abs(clock.data["wall_ns"] - time.time_ns()) < 60 * 10**9 for clock in clocks)
    counts = check_passes(daemon.stop())
    assert "clock" not in " ".join(counts)


# --- clients that misbehave -------------------------------------------------------------------------------


def test_a_client_that_never_reads_its_answers_harms_nobody(rig, peer):
    daemon = rig.start(machine(2))
    client = daemon.client()
    stuck = peer(zmq.DEALER, daemon.endpoints.ctl, RCVHWM=1, SNDHWM=100_000)
    body = {"v": 1, "op": "schema", "deadline_ms": 60_000}
    for number in range(1_500):
        stuck.send_multipart([b"ASID1", msgpack.packb({**body, "id": f"s{number}"})])
    for _ in range(20):
        assert client.ping(timeout_s=10)
    wait_progress(client)
    assert client.mark("still here").seq > 0
    check_passes(daemon.stop())


JUNK = [
    [b""],
    [b"ASID1"],
    [b"ASID1", b""],
    [b"ASID1", b"\xc1"],
    [b"ASID0", msgpack.packb({"v": 1, "id": "a", "op": "ping"})],
    [b"ASID1", msgpack.packb({"v": 2, "id": "a", "op": "ping"})],
    [b"ASID1", msgpack.packb({"v": 1, "id": "a", "op": "self.destruct"})],
    [b"ASID1", msgpack.packb({"v": 1, "id": "a", "op": "stop", "args": {"force": 1}, "idem": "x"})],
    [b"ASID1", msgpack.packb({"v": 1, "id": "a", "op": "stop"}), b"tail"],
    [b"ASID1", b"\x91" * 5_000],
    [b"ASID1", b"\xdd\xff\xff\xff\xff" + b"\x90" * 4_000],
    [b"ASID1", b"\x90" * 60_000],
    [b"x" * 1_000] * 50,
    [b"\x00\xff" * 500],
]
LINK_JUNK = [
    msgpack.packb({"op": "fence", "ht": 0, "inc": 1}),
    msgpack.packb({"op": "done", "id": 1 << 40}),
    msgpack.packb([1, 2]), b"\xc1", b"", msgpack.packb({"op": None}), msgpack.packb({}), b"\x91" * 2_000,
]  # fmt: skip


def test_junk_on_every_socket_changes_nothing(rig, peer):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_progress(client)
    before = client.status()
    pids = [pid_of(client, place) for place in ("c0", "c0h0", "c0h1")]
    for name in ("ctl", "urgent", "c0", "link"):
        for identity in (b"c0h0.7", b"c0h9.1", b"ht0.9", b"nobody", b"\x01\xff", b"c0.1.2", b"chchc.h"):
            stranger = peer(zmq.DEALER, sockets.ipc_endpoint(daemon.paths.root / f"{name}.sock"), ROUTING_ID=identity)
            for frames in JUNK:
                stranger.send_multipart(frames)
            for frame in LINK_JUNK:
                stranger.send(frame)
    listener = peer(zmq.XSUB, daemon.endpoints.tel)
    for topic in (b"", b"\x01", b"\x00nothing", b"\x02what", b"\x01" + b"y." * 400, b"\x01s."):
        listener.send(topic)
    wait_until(lambda: client.status()["counters"]["malformed"] > before["counters"]["malformed"] + 20)
    wait_progress(client)
    after = client.status()
    assert [pid_of(client, place) for place in ("c0", "c0h0", "c0h1")] == pids
    assert {k: after[k] for k in ("state", "policy", "kick")} == {k: before[k] for k in ("state", "policy", "kick")}
    assert after["counters"]["internal"] == 0
    counts = check_passes(daemon.stop(), "G1")
    assert counts.get("gate.drop", 0) > 0, "junk at the gate is counted"


def test_a_frame_beyond_the_limit_costs_its_sender_the_connection_and_nobody_else(rig, peer):
    daemon = rig.start(IDLE)
    client = daemon.client()
    for name in ("ctl", "c0", "link"):
        stranger = peer(zmq.DEALER, sockets.ipc_endpoint(daemon.paths.root / f"{name}.sock"))
        stranger.send_multipart([b"ASID1", b"\x91" * 10_000_000])
    assert client.ping(timeout_s=10)
    wait_each_progresses(client)
    check_passes(daemon.stop())


def asid(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asid", *arguments], capture_output=True, text=True, timeout=20, check=False
    )


def test_status_tells_health_checks_how_it_stands(rig):
    daemon = rig.start(IDLE, instance="health")
    client = daemon.client()
    client.unplug("c0h1")
    assert asid("status", "--instance", "health", "--expect", "healthy").returncode == 0, "unplugged is not missing"
    os.kill(pid_of(client, "c0"), signal.SIGSTOP)
    os.kill(pid_of(client, "c0h0"), signal.SIGKILL)  # nobody can bury it, so it does not come back
    wait_until(lambda: client.status()["state"] == "degraded")
    assert asid("status", "--instance", "health", "--expect", "healthy").returncode == 1
    assert asid("status", "--instance", "health", "--expect", "ready").returncode == 0, "it serves all the same"
    os.kill(pid_of(client, "c0"), signal.SIGCONT)
    wait_ready(client)
    daemon.stop()
    assert asid("status", "--instance", "health", "--expect", "ready").returncode == 7
