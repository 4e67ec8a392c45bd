"""The trace source: recorded threads played again."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random

import pytest

from asid.config import Guest
from asid.core.exits import canonical
from asid.errors import InputError
from asid.guest import Exit, Source, TraceSource, make_source, vcpus
from asid.guest.trace import find_thread, thread_exits
from asid.mm.footprint import NO_PARTS
from asid.mm.host import Host, VmShape
from asid.mm.isolated import Isolated
from asid.mm.parts import Part
from asid.mm.population import ALLOWED, populate
from asid.mm.reach import Reach
from asid.trace.reader import read_trace

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "data" / "trace"
REAL = ROOT.parent / "shared" / "data" / "traces"


@cache
def allowed() -> Reach:
    """What a vCPU reaches with everything mapped that may be."""
    isolated = Isolated(Host((VmShape("a", (0,)),), 2), 1)
    populate(isolated, ALLOWED, "vmx")
    return Reach(isolated, 0)


def is_fast(event: Exit) -> bool:
    """Say whether an exit is handled with what may be mapped."""
    number = canonical(event.reason, event.isa).number
    return not event.full and allowed().is_fast(event.isa, number, event.parts)


def source_of(name: str, vcpu: int = 0, base_dir: Path = SAMPLES, seed: int = 1, **guest: str | bool) -> Source:
    return make_source(Guest(source="trace", file=name, **guest), vm=1, vcpu=vcpu, seed=seed, base_dir=base_dir)  # type: ignore[arg-type]


def all_of(source: Source) -> list[Exit]:
    exits = []
    while (event := source.next()) is not None:
        exits.append(event)
        assert len(exits) < 10_000
    return exits


def test_a_thread_is_played_with_its_recorded_times() -> None:
    assert all_of(source_of("ftrace_two_vcpus.txt")) == [
        Exit(20_000, "MSR_WRITE", "vmx", 2_000, False),
        Exit(18_000, "HLT", "vmx", 0, False, 900_000, frozenset({Part.BLOCKS})),
    ]


def test_a_userspace_exit_went_to_the_vmm_and_without_one_it_did_not() -> None:
    exits = all_of(source_of("ftrace_two_vcpus.txt", vcpu=1))
    assert exits == [
        Exit(28_000, "IO_INSTRUCTION", "vmx", 25_000, False, 0, frozenset({Part.VMM_DEVICE})),  # went to the VMM
        Exit(886_000, "IO_INSTRUCTION", "vmx", 2_000, False),  # did not, and the recording would have shown it
        Exit(7_000, "EXTERNAL_INTERRUPT", "vmx", 4_000, False),
        Exit(6_000, "TRIPLE_FAULT", "vmx", 6_000, False),  # without entry: took at least 6 us
    ]


def test_without_userspace_events_the_details_are_drawn(tmp_path: Path) -> None:
    lines = [line for line in (SAMPLES / "ftrace_two_vcpus.txt").read_text().splitlines() if "userspace" not in line]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n")
    full = 0
    for seed in range(60):
        exits = all_of(source_of("t.txt", vcpu=1, base_dir=tmp_path, seed=seed))
        full += sum(e.parts == {Part.VMM_DEVICE} for e in exits if e.reason == "IO_INSTRUCTION")
    assert 40 <= full <= 80  # half of 120


def test_a_userspace_exit_of_a_handler_without_such_a_part_is_full_whatever_is_mapped(tmp_path: Path) -> None:
    text = (SAMPLES / "ftrace_two_vcpus.txt").read_text()
    (tmp_path / "t.txt").write_text(text.replace("IO_INSTRUCTION", "CPUID"))
    first, second, *_ = all_of(source_of("t.txt", vcpu=1, base_dir=tmp_path))
    assert (first.reason, first.full, first.parts) == ("CPUID", True, NO_PARTS)  # went to the VMM for a signal, say
    assert (second.reason, second.full, second.parts) == ("CPUID", False, NO_PARTS)


def test_what_a_recording_does_not_tell_is_drawn_even_where_it_has_userspace_events(tmp_path: Path) -> None:
    text = (SAMPLES / "ftrace_two_vcpus.txt").read_text()
    (tmp_path / "t.txt").write_text(text.replace("EXTERNAL_INTERRUPT", "CR_ACCESS"))
    asked = [all_of(source_of("t.txt", vcpu=1, base_dir=tmp_path, seed=seed))[2].parts for seed in range(120)]
    assert set(asked) == {NO_PARTS, frozenset({Part.MMU_RESET})}
    assert 15 <= asked.count(frozenset({Part.MMU_RESET})) <= 45  # a quarter


def test_the_end_stays_the_end_and_a_loop_has_none() -> None:
    source = source_of("ftrace_two_vcpus.txt")
    first = all_of(source)
    assert source.next() is None and source.next() is None
    looped = source_of("ftrace_two_vcpus.txt", loop=True)
    assert isinstance(looped, TraceSource) and len(looped) == 2
    assert [looped.next() for _ in range(6)] == first * 3


def test_guest_time_that_was_not_recorded_is_zero() -> None:
    trace = read_trace(SAMPLES / "losses.txt")
    exits = thread_exits(trace, find_thread(trace, "2"), Random(1))
    assert [(e.reason, e.after_ns, e.wake_ns) for e in exits] == [("CPUID", 2_000, 0), ("HLT", 0, 10_000)]


def test_max_pace_keeps_order_and_kind() -> None:
    guest = Guest(source="trace", file="ftrace_two_vcpus.txt")
    paced = make_source(guest, vm=1, vcpu=1, seed=1, base_dir=SAMPLES, pace="max")
    real = source_of("ftrace_two_vcpus.txt", vcpu=1)
    assert [e._replace(after_ns=0, service_ns=0, wake_ns=0) for e in all_of(real)] == all_of(paced)


def test_threads_are_listed_by_vcpu_number() -> None:
    threads = vcpus(read_trace(SAMPLES / "ftrace_two_vcpus.txt"))
    assert [(t.index, t.key, t.pid, t.vcpu, t.comm, t.cpus, t.exits) for t in threads] == [
        (0, "4100", 4100, 0, "CPU 0/KVM", (4, 6), 2),
        (1, "4101", 4101, 1, "CPU 1/KVM", (5,), 4),
    ]


@pytest.mark.parametrize("name", ["4101", "vcpu1", "1"])
def test_a_thread_by_name(name: str) -> None:
    assert find_thread(read_trace(SAMPLES / "ftrace_two_vcpus.txt"), name).key == "4101"


@pytest.mark.parametrize(("name", "vcpu"), [("9", 0), ("vcpu7", 0), ("", 2), ("", -1), ("CPU 0/KVM", 0), ("٣", 0)])
def test_a_thread_that_is_not_there(name: str, vcpu: int) -> None:
    with pytest.raises(InputError, match="no such thread") as raised:
        find_thread(read_trace(SAMPLES / "ftrace_two_vcpus.txt"), name, vcpu)
    assert "4100 (CPU 0/KVM, vCPU 0)" in raised.value.state and "4100" in raised.value.hint


def test_a_vcpu_number_that_two_vms_share_is_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(
        "".join(
            f" q-{pid} [000] 1.00000{n}: {event}\n"
            for pid in (11, 12)
            for n, event in enumerate(
                ("kvm_entry: vcpu 0", "kvm_exit: reason CPUID rip 0x1 info 0 0", "kvm_entry: vcpu 0")
            )
        )
    )
    trace = read_trace(path)
    with pytest.raises(InputError, match="several threads fit"):
        find_thread(trace, "vcpu0")
    assert [find_thread(trace, "", n).key for n in (0, 1)] == ["11", "12"]


def test_tsc_stamps_cannot_be_played() -> None:
    with pytest.raises(InputError, match="TSC cycles") as raised:
        source_of("tsc_clock.txt")
    assert "-C mono" in raised.value.hint


def test_a_trace_whose_exits_were_all_lost_has_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(" q-1 [000] 1.000001: kvm_exit: reason CPUID rip 0x1 info 0 0\nCPU:0 [EVENTS DROPPED]\n")
    with pytest.raises(InputError, match="no such thread") as raised:
        source_of("t.txt", base_dir=tmp_path)
    assert "Record longer" in raised.value.hint


def test_a_recorded_machine_of_two_vcpus() -> None:
    found = sorted(REAL.glob("t19_*.txt"))
    if not found:
        pytest.skip(f"recording t19 is not here: {REAL}")
    assert [(t.pid, t.vcpu, t.exits) for t in vcpus(read_trace(found[0]))] == [(8396, 0, 3), (8397, 1, 10)]
    first = all_of(source_of(str(found[0]), vcpu=0))
    assert first == [
        Exit(0, "EXTERNAL_INTERRUPT", "vmx", 14_000, False),
        Exit(13_000, "EXTERNAL_INTERRUPT", "vmx", 8_000, False),
        Exit(6_000, "EXTERNAL_INTERRUPT", "vmx", 0, False),
    ]
    assert not any(is_fast(event) for event in first)
    second = all_of(source_of(str(found[0]), vcpu=1))
    assert [e.reason for e in second][-2:] == ["LDTR_TR", "TRIPLE_FAULT"]
    fast = [e.reason for e in second if is_fast(e)]
    assert {"CPUID", "MSR_READ", "MSR_WRITE"} <= set(fast)
    assert not is_fast(second[-1])


@pytest.mark.parametrize("short", ["d11", "t01", "t02", "t10", "t12b", "t14", "t16", "t22", "t25", "t28"])
def test_every_recording_can_be_played(short: str) -> None:
    found = sorted(REAL.glob(f"{short}_*.txt"))
    if not found:
        pytest.skip(f"recording {short} is not here: {REAL}")
    trace = read_trace(found[0])
    threads = vcpus(trace)
    assert sum(t.exits for t in threads) == trace.pairs + sum(t.tail is not None for t in trace.threads)
    for t in threads:
        exits = all_of(source_of(str(found[0]), vcpu=t.index))
        assert len(exits) == t.exits
        assert not any(is_fast(e) for e in exits if e.reason in ("HLT", "TRIPLE_FAULT", "VMRESUME"))
