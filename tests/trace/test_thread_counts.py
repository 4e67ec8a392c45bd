"""Counts of KVM's events by thread, from text as trace_pipe has it."""

from __future__ import annotations

import pytest

from asid.trace import thread_counts
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


def test_a_line_like_an_earlier_one_counts_as_that_one_did():
    lines = [exit_(100), handed(110), entry(150), exit_(160, "CPUID", cpu=1), entry(165, cpu=1), handed(7, pid=43)]
    assert counted(*lines, *lines, *lines) == [
        Count(42, "kvm_entry", "", 6),
        Count(42, "kvm_exit", "CPUID", 3, 3, 3, 15_000),
        Count(42, "kvm_exit", "HLT", 3, 3, 0, 150_000),
        Count(42, "kvm_userspace_exit", "KVM_EXIT_IO", 3),
        Count(43, "kvm_userspace_exit", "KVM_EXIT_IO", 3),
    ]


def test_a_thread_that_has_moved_loses_what_was_open_on_the_cpu_where_it_is_by_now():
    counts = ThreadCounts()
    counts.feed((exit_(100) + entry(110)) + (exit_(100, cpu=1) + entry(110, cpu=1)) + exit_(200))
    counts.feed(b"CPU:1 [LOST 1 EVENTS]\n" + entry(300))
    counts.feed(exit_(400, cpu=1) + b"CPU:1 [LOST 1 EVENTS]\n" + entry(500, cpu=1))
    assert counts.take()[1] == Count(42, "kvm_exit", "HLT", 4, 3, 3, 120_000)


@pytest.mark.parametrize("stamp", [b"0.00000x", b"x.000001", b"0000001", b""])
def test_a_stamp_that_is_none_is_no_line_also_behind_a_good_one(stamp):
    good = entry(100)
    assert counted(good, good.replace(b"0.000100", stamp)) == [Count(42, "kvm_entry", "", 1)]


def test_names_that_look_like_an_event_are_names():
    comm = "x: kvm_exit: y"
    assert counted(*2 * [handed(5, comm=comm)], *2 * [entry(7, comm=comm)]) == [
        Count(42, "kvm_entry", "", 2),
        Count(42, "kvm_userspace_exit", "KVM_EXIT_IO", 2),
    ]


def test_parts_of_lines_are_known_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(thread_counts, "KNOWN_MAX", 3)
    counts = ThreadCounts()
    counts.feed(b"".join(handed(5, pid=pid) for pid in range(1, 100)) * 2)
    assert max(len(counts._heads), len(counts._tails)) <= 3
    assert [count.n for count in counts.take()] == 99 * [2]


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
