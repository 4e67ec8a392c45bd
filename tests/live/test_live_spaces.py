"""What is mapped, changed while a machine runs: exits follow it, whoever is born has it, and the audit agrees."""

from __future__ import annotations

import pytest
from live_rig import IDLE, check_passes, machine, pid_of, wait_each_progresses, wait_ready, wait_until

from asid.client import Client
from asid.errors import BadArgument, Conflict

pytestmark = [pytest.mark.live, pytest.mark.slow]

FAST = {"reason": "MSR_WRITE", "full": "no", "count": 3, "wait": True}


def full_share(client: Client, place: str) -> float:
    """Make exits that touch the vCPU happen, and return which part of them was full."""

    def counts() -> tuple[int, int]:
        (ht,) = client.call("ht.list", {"target": place}).ret["hts"]
        return ht["exits"], ht["full"]

    before = counts()
    client.inject_exit(place, **FAST)
    # Fast exits are counted when their hyperthread tells of them.
    after = wait_until(lambda: (now := counts())[0] >= before[0] + 3 and now, what="three exits more")
    return (after[1] - before[1]) / (after[0] - before[0])


def change(client: Client, op: str, *objects: str, **more: object) -> dict[str, object]:
    return client.call(op, {"vm": "vm1", "objects": list(objects), **more}).ret


def test_exits_follow_what_is_mapped_and_whoever_is_born_has_it(rig):
    daemon = rig.start(IDLE)
    client = daemon.client()
    assert [full_share(client, place) for place in ("c0h0", "c0h1")] == [0.0, 0.0]
    assert change(client, "space.unmap", "vcpu")["generation"] == 1
    assert [full_share(client, place) for place in ("c0h0", "c0h1")] == [1.0, 1.0]
    old = pid_of(client, "c0h1")
    client.inject("kill", "c0h1")
    wait_until(lambda: pid_of(client, "c0h1") not in (0, old), what="its successor")
    wait_ready(client)
    assert full_share(client, "c0h1") == 1.0, "as the mapping was when it was born"
    change(client, "space.map", "vcpu")
    assert [full_share(client, place) for place in ("c0h0", "c0h1")] == [0.0, 0.0]
    (space,) = client.call("space.get").ret["spaces"]
    assert space["totals"]["generation"] == 2 and space["objects"][-1]["step"] == "live"
    run = daemon.stop()
    counts = check_passes(run, "G6")
    assert (counts["space.change"], counts["space.unmap"], counts["space.map"]) == (2, 2, 2)
    faults = [record for record in run.records() if record.type == "fault"]
    assert {record.data["object"] for record in faults} == {"vcpu"} and {record.ht for record in faults} == {0, 1}


def test_a_change_while_nobody_runs_the_vm_is_in_the_journal_all_the_same(rig):
    """1. The only hyperthread of the VM is away. 2. The mapping changes. 3. It comes back, with the new one."""
    daemon = rig.start(machine(1, table=""))
    client = daemon.client()
    assert full_share(client, "c0h0") == 0.0
    client.unplug("c0h0")
    change(client, "space.unmap", "vcpu")
    client.plug("c0h0")
    wait_ready(client)
    assert full_share(client, "c0h0") == 1.0
    check_passes(daemon.stop(), "G6")


def test_under_load_changes_are_made_and_the_run_passes(rig):
    daemon = rig.start(machine(2))
    client = daemon.client()
    wait_each_progresses(client)
    for turn in range(5):
        assert change(client, "space.unmap", "vcpu", "kvm_run")["changed"] == ["vcpu", "kvm_run"]
        wait_each_progresses(client)
        done = change(client, "space.map", "vcpu", "kvm_run")
        assert done["generation"] == 2 * turn + 2
        wait_each_progresses(client)
    check_passes(daemon.stop(), "G6")


def test_what_is_refused_reaches_the_client_with_its_reason(rig):
    client = rig.start(IDLE).client()
    with pytest.raises(Conflict, match="EBUSY: it is mapped") as caught:
        change(client, "space.map", "vcpu")
    assert caught.value.data["errno"] == "EBUSY" and caught.value.hint == "Unmap it first."
    with pytest.raises(BadArgument, match="secret to a VM: random pool"):
        change(client, "space.map", "random pool")
    assert change(client, "space.map", "random pool", allow_secrets=True)["secret"][1] > 0
