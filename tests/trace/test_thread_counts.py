"""Counts of KVM's events by thread, from text as trace_pipe has it."""

from __future__ import annotations

import pytest

from asid.trace.thread_counts import Count, ThreadCounts


def line(us: int, event: str, said: str, pid: int = 42, cpu: int = 0, comm: str = "asid: c0h0 hype") -> bytes:
    return f" {comm}-{pid}   [{cpu:03}] ..... {us // 1_000_000}.{us % 1_000_000:06}: {event}: {said}\n".encode()


def exit_(us: int, reason: str = "HLT", **more) -> bytes:
    return line(us, "kvm_exit", f"vcpu 0 reason {reason} rip 0xfff0 info1 0x0 info2 0x0 intr_info 0x0", **more)


def entry(us: int, **more) -> bytes:
    return line(us, "kvm_entry", "vcpu 0, rip 0xfff0", **more)


def handed(us: int, reason: str = "KVM_EXIT_IO (2)", **more) -> bytes:
    return line(us, "kvm_userspace_exit", f"reason {reason}", **more)


def counted(*lines: bytes) -> list[Count]:
    counts = ThreadCounts()
    counts.feed(b"".join(lines))
    return counts.take()


def test_an_exit_lasts_until_the_next_entry_and_is_kept_when_userspace_did_not_see_it():
    told = counted(exit_(100), entry(150), exit_(200), handed(210), entry(300), exit_(400, "CPUID"), entry(401))
    assert told == [
        Count(42, "kvm_entry", "", 3),
        Count(42, "kvm_exit", "CPUID", 1, 1, 1, 1_000),
        Count(42, "kvm_exit", "HLT", 2, 2, 1, 150_000),
        Count(42, "kvm_userspace_exit", "KVM_EXIT_IO", 1),
    ]


def test_an_exit_whose_entry_is_missing_is_counted_and_has_no_time():
    assert counted(exit_(100), exit_(200), entry(210))[1] == Count(42, "kvm_exit", "HLT", 2, 1, 1, 10_000)


def test_threads_are_told_apart():
    told = counted(exit_(100), exit_(110, pid=43), entry(120), entry(150, pid=43))
    assert [(count.pid, count.sum_ns) for count in told if count.event == "kvm_exit"] == [(42, 20_000), (43, 40_000)]


def test_what_was_open_on_a_cpu_that_lost_events_is_dropped_there_and_nowhere_else():
    counts = ThreadCounts()
    counts.feed(exit_(100) + exit_(100, pid=43, cpu=1) + b"CPU:0 [LOST 17 EVENTS]\n" + entry(200) + entry(200, pid=43))
    assert {count.pid: count.ended for count in counts.take() if count.event == "kvm_exit"} == {42: 0, 43: 1}
    assert counts.lost == 17


def test_an_exit_that_ends_after_it_was_told_is_told_to_have_ended_later():
    counts = ThreadCounts()
    counts.feed(exit_(100))
    assert counts.take() == [Count(42, "kvm_exit", "HLT", 1)]
    assert counts.take() == []
    counts.feed(entry(130))
    assert counts.take() == [Count(42, "kvm_entry", "", 1), Count(42, "kvm_exit", "HLT", 0, 1, 1, 30_000)]


@pytest.mark.parametrize("comm", ["<...>", "CPU 0/KVM", "a-12 b-7", "qemu-system-x86"])
def test_names_of_threads_do_not_matter(comm):
    assert counted(handed(5, comm=comm)) == [Count(42, "kvm_userspace_exit", "KVM_EXIT_IO", 1)]


def test_reasons_are_taken_as_they_are_printed():
    told = counted(exit_(1, "PF excp"), handed(2, "restart (4)"), handed(3, "error (-22)"), line(4, "kvm_fpu", "load"))
    assert [(count.event, count.reason) for count in told] == [
        ("kvm_exit", "PF excp"), ("kvm_fpu", ""), ("kvm_userspace_exit", "error"), ("kvm_userspace_exit", "restart"),
    ]  # fmt: skip


def test_other_lines_are_nothing():
    assert counted(b"# tracer: nop\n", b"\n", b"half a li\n", b" x-1 [000] ..... 1.000001: sched_switch: y\n") == []


def test_lines_with_the_process_of_the_thread_are_read_too():
    text = b" x-42  (  41) [000] d..1. 7.000001: kvm_entry: vcpu 0\n"
    assert counted(text) == [Count(42, "kvm_entry", "", 1)]
