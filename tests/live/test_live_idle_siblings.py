"""Interrupts of a sibling that sleeps, or has no vCPU, over a real machine: they leave, and kick the guest beside."""

from __future__ import annotations

import pytest
from live_rig import TABLES, check_passes, machine, wait_each_progresses, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]

N = 20
VIAS = {"ack": "grant", "rendezvous": "grant", "send": "send", "stun": "stun"}
SPINS = {"name": "spins", "on": ["c0h0"], "guest": {"source": "idle"}}
SLEEPS = {
    "name": "sleeps",
    "on": ["c0h1"],
    "guest": {"source": "mix", "table": str(TABLES / "sleeps.toml"), "rate": "1000/s"},
}


def modes(client):
    return [ht["mode"] for ht in client.status()["cores"][0]["hts"]]


@pytest.mark.parametrize("kick", VIAS)
@pytest.mark.parametrize("rest", ["halted", "without a vCPU"])
def test_it_kicks_the_guest_beside_it_and_goes_back(rig, kick, rest):
    vms = [SPINS, SLEEPS] if rest == "halted" else [SPINS]
    daemon = rig.start(machine(vm=vms, policy={"kick": kick}))
    client = daemon.client()
    if rest == "halted":  # asleep, in a core that is its own VM's no longer
        wait_until(lambda: client.call("hist.get", {"what": "leave", "target": "c0h1"})["n"] == 1, what="its only halt")
    wait_until(lambda: modes(client) == ["GUEST", "PARKED"], what="the other in guest")
    begin = client.ping().t
    assert client.inject("irq", "c0h1", count=N, wait=True)["handled"] == N
    wait_until(lambda: modes(client) == ["GUEST", "PARKED"], what="as before: the handler says so before it is back")
    end = client.ping().t
    run = daemon.stop()
    check_passes(run, *(["G2"] if VIAS[kick] == "grant" else []), "G8")  # send and stun promise no wall time
    records = [record for record in run.records() if begin < record.ts <= end and record.ht >= 0]
    own = [record for record in records if record.ht == 1]
    irqs = [record.data for record in own if record.type == "irq"]
    assert [(data["from"], data["full"]) for data in irqs] == [("PARKED", True)] * N
    moves = [(record.data["old"], record.data["new"], record.data.get("via")) for record in own
             if record.type == "ht.mode"]  # fmt: skip
    assert moves == [("PARKED", "HOST", VIAS[kick]), ("HOST", "PARKED", None)] * N
    assert not any(record.type in ("gate.ask", "gate.admit") for record in own), "it asks for nothing"
    if VIAS[kick] == "grant":
        assert any(record.type == "gate.kick" and record.ht == 0 for record in records)
        assert any(record.type == "kick.seen" and record.ht == 0 for record in records)
    else:
        assert sum(record.type == "ipi" and record.data["to"] == 0 for record in own) == N
        assert not any(record.type == "gate.kick" for record in records)


def test_one_whose_handler_is_mapped_disturbs_nobody(rig):
    daemon = rig.start(machine(vm=[SPINS]))
    client = daemon.client()
    wait_each_progresses(client)
    begin = client.ping().seq
    assert client.inject("irq", "c0h1", count=N, full="no", wait=True)["handled"] == N
    end = client.ping().seq
    run = daemon.stop()
    check_passes(run, "G8")
    records = [record for record in run.records() if begin < record.seq <= end and record.ht >= 0]
    assert {record.type for record in records if record.type not in ("inject", "inject.done")} == {"irq"}
