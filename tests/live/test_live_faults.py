"""Isolation faults of a machine that maps the least: told once a place, in the kernel's words, and survived."""

from __future__ import annotations

import re

import pytest
from live_rig import IDLE, check_passes, machine, wait_each_progresses

from asid.drive import drive
from asid.report.faults import FaultLines

pytestmark = [pytest.mark.live, pytest.mark.timeout(120, method="signal")]

LINE = re.compile(
    r"KVM isolation: page fault #(\d+) \(\d+\) at (\w+\+0x[0-9a-f]+/0x[0-9a-f]+)( \[\w+\])? on [0-9a-f]{16} \(.+\)"
)


@pytest.mark.slow
def test_with_the_least_mapped_every_exit_leaves_and_each_place_is_told_once(rig):
    outcome = drive(machine(space={"mapping": "minimal"}), duration_ns=600_000_000)
    assert outcome.word == "PASS", outcome.verdict["reasons"]
    figures = outcome.verdict["figures"]
    assert figures["full"] == figures["exits"] > 50
    records = list(outcome.run.records())
    faults = [record for record in records if record.type == "fault"]
    places = [(record.ht, record.data["ip"], record.data["address"]) for record in faults]
    assert len(places) == len(set(places)) and {ht for ht, *_ in places} == {0, 1}
    assert {record.data["ending"] for record in faults} == {"left"}
    missed = {record.data["object"] for record in faults}
    assert {record.data["object"] for record in records if record.type == "leave"} == missed | {""}
    lines = FaultLines()
    for number, record in enumerate(faults):
        first, trace, *_ = lines.of(record.data)
        told = LINE.fullmatch(first)
        assert told is not None and int(told[1]) == number, first
        assert trace == "Call Trace:"


def test_what_an_injected_exit_missed_is_said_by_its_leave(rig):
    daemon = rig.start(IDLE | {"space": {"mapping": "minimal", "page_fault_stack": False}})
    client = daemon.client()
    wait_each_progresses(client)
    assert client.inject_exit("c0h0", reason="CPUID", full="no", count=20, wait=True)["handled"] == 20
    assert client.inject_exit("c0h0", reason="CPUID", full="yes", count=3, wait=True)["handled"] == 3
    run = daemon.stop()
    check_passes(run, "G8")
    records = list(run.records())
    [fault] = [record for record in records if record.type == "fault"]
    assert (fault.core, fault.ht, fault.data["reason"], fault.data["trace"]) == (0, 0, "CPUID", "")
    leaves = [record for record in records if record.type == "leave"]
    assert [record.data["object"] for record in leaves] == [fault.data["object"]] * 20 + [""] * 3
    assert fault.ts <= leaves[0].ts
