"""What one hyperthread makes of its VM's mapping: which exits are fast, what is reported, and what a change does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from one_hyperthread import OneHyperthread

from asid import isolated_exits
from asid.core.events import Bid
from asid.core.hyperthread import Phase
from asid.core.record import Record, fault_of
from asid.guest.base import Exit
from asid.isolated_exits import BLOCKS, WHATEVER_IS_MAPPED, ShutDown
from asid.live import isolation
from asid.live.node import Node
from asid.live.page import NMI
from asid.mm.fault import FaultLog
from asid.mm.parts import Part
from asid.report.faults import FaultLines

CPUID = Exit(0, "CPUID", "vmx", 0, False)
PAGE_IN = Exit(0, "EPT_VIOLATION", "vmx", 0, False, parts=frozenset({Part.NEEDS_PAGE}))
HALT = Exit(0, "HLT", "vmx", 0, False, wake_ns=1_000, parts=frozenset({Part.BLOCKS}))
FULL = Exit(0, "CPUID", "vmx", 0, True)


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(Node, "watch_parent", lambda self: None)
    made = []
    with tempfile.TemporaryDirectory(prefix="asid-") as root:

        def one(**how):
            hyperthread = OneHyperthread(Path(root), **how)
            hyperthread.told = []
            hyperthread.ht.link = SimpleNamespace(tell=hyperthread.told.append)
            made.append(hyperthread)
            return hyperthread

        yield one
        for hyperthread in made:
            hyperthread.close()


def told_of(*, vm=1, unmap=(), mapped=(), generation=1):
    """What the daemon tells of a change of what is mapped."""
    entries = [[name, 0, True, "test"] for name in mapped]
    return {"op": "space", "id": 9, "vm": vm, "generation": generation, "map": entries, "unmap": list(unmap)}


def space(one, **what):
    one.ht.on_link(told_of(**what))
    one.ht.isolation.change()


class Stopped(Exception):
    """The test has seen enough."""


def stop():
    raise Stopped


def exits(one, event):
    """The guest exits; a leave is granted, and the hyperthread is back in guest."""
    one.ht.vcpu.exit = event
    one.ht.vcpu.exits(event)
    one.settle()
    left = one.ht.state.phase is Phase.LEAVING
    if left:
        one.order(Bid.GRANT)
        one.ht.vcpu.in_host()
        one.settle()
        one.order(Bid.ADMIT, vm=1)
    one.ht.vcpu.in_guest()
    one.settle()
    assert one.ht.state.phase is Phase.GUEST
    return left


def of_type(one, *kinds):
    return [data for kind, data in one.records() if kind in kinds]


def test_what_all_that_is_allowed_maps_decides_which_exits_are_fast(make):
    missed = make().ht
    missed.isolation.attach(1)
    assert missed.isolation.missed(CPUID) is None
    assert missed.isolation.missed(PAGE_IN) is not None
    assert missed.isolation.missed(FULL) == WHATEVER_IS_MAPPED
    assert missed.isolation.missed(CPUID._replace(reason="cpuid", isa="svm")) is None


def test_with_the_least_mapped_every_exit_leaves_and_says_what_it_missed(make):
    one = make(mapping="minimal")
    one.enter()
    one.records()
    assert exits(one, CPUID)
    [leave] = of_type(one, "leave")
    assert leave["reason"] == "CPUID" and leave["object"] == one.ht.isolation.missed(CPUID)
    assert leave["object"] not in ("", "kernel text", "kvm module")


def test_a_leave_less_its_wait_is_the_moment_in_which_it_was_wanted(make):
    """However long the process does not run between the switch and telling of it: changes are told in between."""
    one = make(mapping="minimal")
    one.enter()
    one.records()
    assert exits(one, CPUID)
    told = {(kind, data.get("new")): (ts, data) for ts, kind, data in one.stamped()}
    in_host, _ = told["ht.mode", "HOST"]
    wanted = one.ht.chronicle._wanted_ns
    left, data = told["leave", None]
    assert left - data["wait_ns"] == wanted and left == in_host


def test_a_halt_that_is_polled_for_does_not_block(make):
    one = make()
    one.enter()
    one.ht.vcpu.poll_ns = 0
    blocked = one.ht.isolation.missed(HALT)
    assert blocked
    one.ht.vcpu.poll_ns = HALT.wake_ns
    assert one.ht.vcpu.polls(HALT) and one.ht.isolation.missed(HALT, polled=True) is None


def test_who_sleeps_is_scheduled_out_whatever_is_mapped(make):
    one = make()
    one.enter()
    sleeps = HALT._replace(parts=frozenset())
    assert one.ht.isolation.missed(sleeps) == WHATEVER_IS_MAPPED
    assert one.ht.isolation.missed(sleeps._replace(wake_ns=0)) is None


def test_a_kind_is_decided_once_until_what_is_mapped_changes(make, monkeypatch):
    one = make()
    one.enter()
    asked = []
    real = isolated_exits.footprint
    monkeypatch.setattr(isolated_exits, "footprint", lambda *what: asked.append(what) or real(*what))
    for _ in range(3):
        assert one.ht.isolation.missed(CPUID._replace(service_ns=len(asked))) is None
    assert len(asked) == 1
    space(one, unmap=["kvm"])
    assert one.ht.isolation.missed(CPUID) == "kvm" and len(asked) == 2
    space(one, mapped=["kvm"], generation=2)
    assert one.ht.isolation.missed(CPUID) is None and len(asked) == 3


def test_a_change_of_another_vm_is_remembered_until_it_runs_here(make):
    one = make(vms=2)
    one.enter()
    one.records()
    space(one, vm=2, unmap=["kvm"])
    assert one.ht.isolation.missed(CPUID) is None
    assert one.told[-1] == {"op": "done", "id": 9}
    assert of_type(one, "space.unmap") == []
    one.ht.isolation.attach(2)
    assert one.ht.isolation.missed(CPUID) == "kvm"


def test_a_change_is_noted_behind_the_exits_that_were_decided_before(make):
    one = make()
    one.enter()
    one.records()
    one.ht.vcpu.inject(7, CPUID, 3)
    one.ht.vcpu.in_guest()
    space(one, unmap=["kvm", "io devices"])
    told = [(kind, data) for kind, data in one.records() if kind == "exit" or kind.startswith("space.")]
    assert [(kind, data.get("object", data.get("n"))) for kind, data in told] == [
        ("exit", 3), ("space.unmap", "kvm"), ("space.unmap", "io devices")
    ]  # fmt: skip
    assert told[1][1] == {"vm": 1, "object": "kvm", "generation": 1}
    space(one, unmap=["kvm"], mapped=["kvm", "io devices"], generation=2)
    assert [data["object"] for data in of_type(one, "space.map")] == ["kvm", "io devices"]


def test_an_exit_under_way_is_counted_once_and_under_the_mapping_that_decided_it(make):
    one = make()
    one.enter()
    one.records()
    one.ht.vcpu.exit = slow = CPUID._replace(service_ns=10**12)
    one.ht.vcpu.exits(slow)
    one.kick(1)
    one.settle()
    assert one.ht.state.phase is Phase.ASKING and one.ht.vcpu.unfinished
    space(one, unmap=["kvm"])
    one.ht.vcpu.left_ns = 0
    one.order(Bid.ADMIT, vm=1)
    one.settle()
    assert not one.ht.vcpu.unfinished
    one.ht.chronicle.flush(0)
    kinds = [kind for kind, _ in one.records() if kind in ("exit", "space.unmap")]
    assert kinds == ["exit", "space.unmap"]


def test_what_is_to_be_done_is_done_before_a_change(make):
    one = make()
    one.enter()
    one.interrupt(NMI)
    one.ht.take_interrupts()
    one.ht.on_link(told_of(unmap=["kvm"]))
    seen = []
    one.ht.trap = seen.append
    one.ht.bring_event = lambda: one.ht.orders.append((None, 0))
    one.ht.on_order = lambda order, cause: stop()
    with pytest.raises(Stopped):
        one.ht.run()
    assert seen and one.told == [{"op": "done", "id": 9}] and not one.ht.state.frames
    assert one.ht.isolation.missed(CPUID) == "kvm"


def test_a_place_is_reported_once_and_in_the_kernels_form(make):
    one = make(mapping="minimal")
    one.enter()
    one.records()
    for _ in range(3):
        assert exits(one, CPUID)
    [fault] = of_type(one, "fault")
    assert (fault["vm"], fault["reason"], fault["ending"]) == (1, "CPUID", "left")
    assert fault_of(Record(1, 1, 1, "fault", 0, 0, 0, 0, fault)) is None
    line, trace, *frames = FaultLines().of(fault)
    assert line.startswith(f"KVM isolation: page fault #0 ({fault['error']}) at {fault['at']} on ")
    assert trace == "Call Trace:" and frames[-1].startswith(" entry_SYSCALL_64_after_hwframe+")


def test_when_there_is_no_room_for_more_places_that_is_said_once(make):
    one = make()
    one.enter()
    one.ht.isolation._log = FaultLog(places_max=1)
    for event in (PAGE_IN, CPUID._replace(reason="EXTERNAL_INTERRUPT"), CPUID._replace(reason="HLT", parts=BLOCKS)):
        assert exits(one, event)
    told = one.records()
    assert len([kind for kind, _ in told if kind == "fault"]) == 1
    assert [data for kind, data in told if kind == "fault.full"] == [{"places": 1}]


@pytest.mark.parametrize(
    ("unmapped", "event", "ending"),
    [
        (("kvm", "current_task"), CPUID, "forced"),
        (("cpu_tlbstate",), FULL, "switch forced"),
    ],
)
def test_a_fault_whose_handler_or_switch_faults_ends_in_the_full_space_all_the_same(make, unmapped, event, ending):
    one = make()
    one.enter()
    space(one, unmap=unmapped)
    assert exits(one, event)
    [fault] = of_type(one, "fault")
    assert fault["ending"] == ending


def test_a_place_that_ends_in_another_way_than_before_is_told_again(make):
    one = make()
    one.enter()
    assert exits(one, PAGE_IN) and exits(one, PAGE_IN)
    space(one, unmap=["cpu_entry_area"])
    with pytest.raises(ShutDown):
        exits(one, PAGE_IN)
    faults = of_type(one, "fault")
    assert [fault["ending"] for fault in faults] == ["left", "stopped"]
    assert len({(fault["ip"], fault["address"]) for fault in faults}) == 1


def test_without_entry_code_the_hyperthread_is_lost(make):
    one = make()
    one.enter()
    one.records()
    space(one, unmap=["cpu_entry_area"])
    assert not exits(one, CPUID), "nothing faults, so nothing is needed to handle it"
    with pytest.raises(ShutDown):
        exits(one, PAGE_IN)
    [fault] = of_type(one, "fault")
    assert fault["ending"] == "stopped"
    assert FaultLines().of(fault)[-1] == "KVM isolation: triple fault: no handler can be run"


def test_where_every_exit_is_full_nothing_is_isolated_and_nothing_faults(make, monkeypatch):
    one = make(policy="kick-every-exit", mapping="minimal")
    monkeypatch.setattr(isolation, "host_of", None)  # not even built
    one.enter()
    assert exits(one, CPUID)
    assert of_type(one, "fault") == []


def test_an_interrupt_leaves_for_what_devices_handlers_touch(make):
    one = make()
    one.enter()
    event = Exit(0, "EXTERNAL_INTERRUPT", "vmx", 0, False)
    assert one.ht.isolation.missed(event)
    one.ht.irqs.raise_line(3, event, 1, mapped=True)
    assert one.ht.irqs.missed(one.ht.irqs.lines[0]) is None
    one.ht.isolation.attach(0)
    assert one.ht.isolation.missed(event) == WHATEVER_IS_MAPPED, "no space of a VM is loaded"


MACHINE = """
[machine]
cores = 1
smt = 4
[[vm]]
on = ["c0h0"]
guest = { source = "%s", table = "table.toml" }
"""


def built(root, monkeypatch, source):
    monkeypatch.setattr(isolation, "_built", {})
    (root / "table.toml").write_text('[[exit]]\nreason = "CPUID"\nshare = 1\nservice = "1us"\n')
    (root / "machine.toml").write_text(MACHINE % source)
    isolation.build(root / "machine.toml")
    return isolation._built


def test_spaces_that_exits_will_ask_are_built_once_for_all(make, monkeypatch, tmp_path):
    [(vm, space_of_vm)] = built(tmp_path, monkeypatch, "mix").items()
    monkeypatch.setattr(isolation, "host_of", None)  # never built again
    one = make()
    one.enter()
    assert vm == 1 and one.ht.isolation.missed(CPUID) is None
    space(one, unmap=["kvm"])
    assert not space_of_vm.has("kvm"), "in a child it is the child's own copy"
    later = make(inc=2)
    later.enter()
    assert later.ht.isolation.missed(CPUID) is None, "born with another mapping, which is the one that counts"


def test_what_cannot_be_read_or_takes_too_long_is_not_built_for_all(monkeypatch, tmp_path):
    assert built(tmp_path, monkeypatch, "trace") == {}, "it has no file"
    monkeypatch.setattr(isolation, "BUILD_NS", 0)
    assert built(tmp_path, monkeypatch, "idle") == {}


def test_a_space_of_its_own_is_built_before_a_lease_is_held(make, monkeypatch):
    one = make(vms=2)
    one.ht.isolation.attach(2)
    monkeypatch.setattr(isolation, "host_of", None)
    assert one.ht.isolation.missed(CPUID) is None


def test_a_policy_that_isolates_comes_while_no_lease_is_held(make, monkeypatch):
    one = make(policy="kick-every-exit")
    one.ht.isolation.attach(1)
    assert one.ht.isolation.missed(CPUID) == WHATEVER_IS_MAPPED
    one.ht.set_policy("asi", "ack")
    monkeypatch.setattr(isolation, "host_of", None)
    assert one.ht.isolation.missed(CPUID) is None


def test_a_change_that_no_table_takes_as_told_is_made_by_building_anew(make):
    """Of an object that is mapped another way, say: the mapping that was told is what counts."""
    one = make()
    one.enter()
    one.records()
    assert one.ht.isolation.missed(CPUID) is None
    space(one, unmap=["kvm"], mapped=["vcpu"])
    assert one.ht.isolation.missed(CPUID) == "kvm"
    assert [data["split"] for data in of_type(one, "space.map")] == [True]
