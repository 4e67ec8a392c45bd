"""Fast exits played as one run leave the records that they leave one by one, to the nanosecond."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from simulated import CONFIGS, MS, TYPICAL, VARIANTS

from asid.config import load
from asid.core.record import bucket_of
from asid.sim.agenda import Agenda
from asid.sim.counted import buckets
from asid.sim.machine import Played
from asid.simulating import machine_of

FAST = ("MSR_WRITE", "CPUID", "PREEMPTION_TIMER", "EPT_VIOLATION", "HLT")


def both(source: Any, duration_ns: int, chosen: dict[str, Any], **more: bool) -> tuple[Played, Played]:
    loaded = load(source, chosen)
    plain, runs = (machine_of(loaded, TYPICAL, runs=runs).play(duration_ns, **more) for runs in (False, True))
    return plain, runs


def same(plain: Played, runs: Played) -> None:
    for one, other in zip(plain.records, runs.records, strict=False):
        assert one == other
    assert plain == runs


@st.composite
def machines(draw: st.DrawFn) -> dict[str, Any]:
    """A machine of few siblings, whose guests exit a lot and seldom in full, and to which much happens."""
    smt = draw(st.sampled_from([1, 2, 2, 4]))
    ns = st.one_of(st.sampled_from([0, 1, 250, 1_243, 1_343]), st.integers(0, 5_000))
    rows = [
        {
            "reason": reason,
            "share": draw(st.sampled_from([0.01, 0.2, 1.0])),
            "full": draw(st.sampled_from([0.0, 0.0, 0.05, 1.0])),
            **({"wake": f"{draw(ns)}ns"} if reason == "HLT" else {"service": f"{draw(ns)}ns"}),
        }
        for reason in draw(st.lists(st.sampled_from(FAST), min_size=1, max_size=3, unique=True))
    ]
    rate = draw(st.sampled_from(["5000/s", "200000/s", "2000000/s"]))
    injected = st.fixed_dictionaries(
        {
            "what": st.sampled_from(["nmi", "mce", "irq", "exit", "stall", "kill"]),
            "target": st.integers(0, smt - 1).map(lambda ht: f"c0h{ht}"),
            "at": st.integers(1, 450_000).map(lambda at: f"{at}ns"),
        }
    )
    inject = [
        {**each, **({"duration": "20us"} if each["what"] == "stall" else {})}
        for each in draw(st.lists(injected, max_size=4))
    ]
    vms = draw(st.integers(1, min(2, smt)))
    on = [[f"c0h{ht}" for ht in range(smt) if ht % vms == vm] for vm in range(vms)]
    policy, kick = draw(st.sampled_from(VARIANTS))
    return {
        "seed": draw(st.integers(0, 99)),
        "machine": {"cores": 1, "smt": smt},
        "policy": {"name": policy, **({"kick": kick} if kick else {})},
        "vm": [
            {"on": on[vm], "guest": {"source": "mix", "rate": rate, "halt_poll": draw(st.sampled_from(["0ns", "1us"]))}}
            for vm in range(vms)
        ],
        "inject": inject,
        "table": rows,
    }


def toml_of(rows: list[dict[str, Any]]) -> str:
    lines = ['isa = "vmx"']
    for row in rows:
        lines.append("[[exit]]")
        lines += [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in row.items()]
    return "\n".join(lines)


@settings(
    max_examples=int(os.environ.get("ASID_SIM_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(machines())
def test_any_machine(tmp_path_factory: pytest.TempPathFactory, machine: dict[str, Any]):
    table = tmp_path_factory.mktemp("tables") / "table.toml"
    table.write_text(toml_of(machine["table"]))
    for vm in machine["vm"]:
        vm["guest"]["table"] = str(table)
    same(*both({key: value for key, value in machine.items() if key != "table"}, MS // 2, {}))


@pytest.mark.parametrize("config", ["smt2.toml", "smt4.toml", "nmi-heavy.toml", "noisy-neighbour.toml"])
@pytest.mark.parametrize(("policy", "kick"), VARIANTS)
def test_the_machines_of_the_project(config: str, policy: str, kick: str):
    same(*both(CONFIGS / config, 8 * MS, {"policy.name": policy, **({"policy.kick": kick} if kick else {})}))


def test_a_recording_that_comes_to_its_end(tmp_path):
    text = "\n".join(
        f"qemu-system-x86-1 [000] .... {1 + n * 5e-5:.6f}: kvm_{what}: {rest}"
        for n, (what, rest) in enumerate([("entry", "vcpu 0"), ("exit", "reason CPUID rip 0x100 info 0 0")] * 200)
    )
    trace = tmp_path / "trace.txt"
    trace.write_text(text + "\n")
    machine = {"vm": [{"on": ["c0h0"], "guest": {"source": "trace", "file": str(trace)}}]}
    plain, runs = both(machine, 100 * MS, {}, until_exhausted=True)
    assert plain.duration_ns < 100 * MS
    same(plain, runs)


def test_what_is_played_grows_with_leaves_and_not_with_exits(tmp_path):
    """Or nothing above would tell anything."""
    table = tmp_path / "table.toml"
    table.write_text('[[exit]]\nreason = "CPUID"\nshare = 1.0\nservice = "1us"\nfull = 0.0\n')
    guest = {"source": "mix", "table": str(table), "rate": "200000/s"}
    loaded = load({"machine": {"smt": 2}, "vm": [{"on": ["c0h0", "c0h1"], "guest": guest}]})
    taken = []
    for runs in (False, True):
        machine = machine_of(loaded, TYPICAL, runs=runs)
        machine.play(20 * MS)
        taken.append(sum(core.agenda.taken for core in machine.cores))
    assert taken[0] > 20_000
    assert taken[1] < 300


@pytest.mark.parametrize("seed", range(10))
def test_a_guest_that_was_held_up_in_its_first_run_is_in_guest_since_before_that(tmp_path, seed: int):
    (tmp_path / "t.toml").write_text('[[exit]]\nreason = "MSR_WRITE"\nshare = 1.0\nservice = "0ns"\nfull = 0.0\n')
    guest = {"source": "mix", "rate": "5000/s", "table": str(tmp_path / "t.toml")}
    stall = {"what": "stall", "target": "c0h0", "at": "640ns", "duration": "20us"}
    machine = {"seed": seed, "machine": {"smt": 1}, "vm": [{"on": ["c0h0"], "guest": guest}], "inject": [stall]}
    same(*both(machine, MS // 20, {}))


@given(st.integers(1, 2**60))
@example(1)
@example(2**40)
def test_buckets_are_those_of_single_durations(ns: int):
    near = [n for n in (ns - 1, ns, ns + 1) if n > 0]
    assert buckets(np.array(near)).tolist() == [bucket_of(n) for n in near]


def test_exits_of_no_time_at_all_are_entered_at_one():
    assert buckets(np.array([0, 1])).tolist() == [bucket_of(0), bucket_of(1)] == [0, 0]


def test_what_a_hyperthread_does_itself_comes_first_whenever_it_was_put_down():
    agenda, seen = Agenda(), []
    agenda.after(5, lambda: seen.append("from elsewhere"))
    agenda.after(5, lambda: seen.append("second"), 1)
    agenda.after(5, lambda: seen.append("first"), 0)
    agenda.run(6)
    assert seen == ["first", "second", "from elsewhere"]


def test_a_replay_lets_happen_what_is_its_own_and_nothing_else():
    agenda, seen = Agenda(), []

    def late() -> None:
        seen.append(("late", agenda.now_ns))
        agenda.after(3, lambda: seen.append(("own", agenda.now_ns)), 1)

    def happens() -> None:
        agenda.after(0, lambda: seen.append(("other", agenda.now_ns)), 0)
        agenda.replay(2, 1, late)
        seen.append(("now", agenda.now_ns))

    agenda.after(9, happens)
    agenda.run(20)
    assert seen == [("late", 2), ("own", 5), ("now", 9), ("other", 9)]
