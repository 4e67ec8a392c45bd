"""A trace text as threads and pairs: pairing rules, losses, damage, foreign files. Samples in tests/data/trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.errors import InputError, PermissionRefused
from asid.trace.model import REJECTED_KEPT_MAX, Thread, Trace
from asid.trace.reader import read_trace
from asid.trace.sniff import LINE_BYTES_MAX, sniff

# Two cores shared with others: an example may take long, and every test stays below a quarter of a second.
FEW = settings(max_examples=40, deadline=None)

SAMPLES = Path(__file__).resolve().parents[1] / "data" / "trace"
TABLES = SAMPLES.parent / "tables"


def assert_accounted(trace: Trace) -> None:
    """Every exit is in exactly one place."""
    for t in trace.threads:
        assert t.exits == len(t.pairs) + (t.tail is not None) + t.double_exits + t.dropped
        assert all(pair.complete and pair.service >= 0 and (pair.guest is None or pair.guest >= 0) for pair in t.pairs)
    assert trace.rejected_count >= len(trace.rejected)


def read(name: str) -> Trace:
    trace = read_trace(SAMPLES / name)
    assert_accounted(trace)
    return trace


def only(trace: Trace) -> Thread:
    (thread,) = trace.threads
    return thread


def told(thread: Thread) -> list[tuple[str, int | None, int]]:
    return [(pair.reason.name, pair.guest, pair.service) for pair in thread.pairs]


def test_two_vcpus_interleaved() -> None:
    trace = read("ftrace_two_vcpus.txt")
    assert (trace.lines, trace.events, trace.exits, trace.entries, trace.pairs) == (23, 17, 6, 7, 5)
    assert trace.userspace_events == 2 and trace.rejected_count == 0 and trace.notes == ()
    first, second = trace.threads
    assert (first.key, first.comm, first.vcpu, first.cpus) == ("4100", "CPU 0/KVM", 0, (4, 6))
    assert told(first) == [("MSR_WRITE", 20_000, 2_000), ("HLT", 18_000, 900_000)]
    assert told(second) == [
        ("IO_INSTRUCTION", 28_000, 25_000),
        ("IO_INSTRUCTION", 886_000, 2_000),
        ("EXTERNAL_INTERRUPT", 7_000, 4_000),
    ]
    assert [pair.userspace for pair in second.pairs] == ["KVM_EXIT_IO", "", ""]
    assert second.tail is not None and not second.tail.complete
    assert (second.tail.reason.name, second.tail.service) == ("TRIPLE_FAULT", 6_000)
    assert second.tail.userspace == "KVM_EXIT_SHUTDOWN"


def test_amd_plugin_text_with_a_lost_name() -> None:
    thread = only(read("trace_cmd_plugin_amd.txt"))
    assert thread.comm == "sev-guest-box"
    # The plugin's UNKNOWN does not say which isa: it counts as VMX, where 166 has no name.
    assert told(thread) == [("npf", 10_000, 10_000), ("0xa6", 10_000, 20_000)]


def test_raw_report_in_nanoseconds_with_both_isas() -> None:
    trace = read("trace_cmd_report_raw_ns.txt")
    svm, vmx = trace.threads
    assert told(svm) == [("npf", 250, 750), ("hlt", 300, 900_000)]
    assert svm.pairs[1].userspace == "0x5"
    assert vmx.tail is not None and vmx.tail.reason == ("vmx", 0x80000021, "INVALID_STATE FAILED_VMENTRY")
    assert vmx.tail.guest is None  # the recording starts inside the guest


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("trace_cmd_report_latency.txt", "8101", [("CPUID", 10_000, 1_000)]),
        ("trace_cmd_tgid.txt", "310", [("INTERRUPT_WINDOW", 8_000, 1_000)]),
        ("perf_script_tid_ns.txt", "601", [("PREEMPTION_TIMER", 10, 100)]),
        ("perf_script_no_pid.txt", "cpu3", [("WBINVD", 4_000, 1_000)]),
        ("perf_script_no_cpu.txt", "comm timer_test", [("HLT", 4_000, 100_000)]),
    ],
)
def test_other_tools(name: str, key: str, expected: list[tuple[str, int, int]]) -> None:
    trace = read(name)
    assert only(trace).key == key
    assert told(only(trace)) == expected
    assert any("no pid" in note for note in trace.notes) == (only(trace).pid < 0)


def test_a_nested_exit_counts_once_and_a_migration_pairs() -> None:
    thread = only(read("perf_script.txt"))
    assert (thread.exits, thread.nested_exits, thread.cpus) == (2, 1, (11, 12))
    assert told(thread) == [("EPT_MISCONFIG", 20_000, 20_000), ("EPT_MISCONFIG", 20_000, 2_000)]
    assert [(p.nested, p.userspace) for p in thread.pairs] == [(True, "KVM_EXIT_MMIO"), (False, "")]


def test_tsc_stamps_are_cycles_until_a_frequency_is_given() -> None:
    trace = read("tsc_clock.txt")
    assert trace.clock == "tsc" and told(only(trace)) == [("io", 3_000, 6_000)]
    assert "TSC" in " ".join(trace.notes)
    timed = read_trace(SAMPLES / "tsc_clock.txt", tsc_hz=3e9)
    assert timed.clock == "ns" and told(only(timed)) == [("io", 1_000, 2_000)]
    for hz in (0.0, -1.0, float("nan"), 1e15):
        with pytest.raises(InputError, match="tsc_hz"):
            read_trace(SAMPLES / "tsc_clock.txt", tsc_hz=hz)


def test_losses_drop_what_was_open_on_that_cpu_only() -> None:
    trace = read("losses.txt")
    assert (trace.losses, trace.lost_events, trace.overwritten) == (2, 60, 50)
    a, b = trace.threads
    # a: its first exit was open when CPU 0 lost events. The entry after the loss starts a new guest interval.
    assert told(a) == [("CPUID", 2_000, 1_000)] and a.dropped == 1
    # b: was in guest when CPU 1 lost events, so the next exit's guest time is unknown; then two exits in a row.
    assert told(b) == [("CPUID", 2_000, 6_000), ("HLT", None, 10_000)] and b.double_exits == 1 and b.dropped == 0
    assert "60 events" in trace.notes[0]


def test_damaged_lines_are_counted_shown_and_never_filled_in() -> None:
    trace = read("damaged.txt")
    assert [r.number for r in trace.rejected] == [3, 5, 7, 11]
    assert trace.rejected_count == 4 and trace.truncated
    assert "NO_SUCH_THING" in trace.rejected[2].reason
    assert trace.rejected[3].text.endswith("kvm_ex")
    thread = only(trace)
    assert (thread.exits, thread.entries) == (2, 5)
    assert told(thread) == [("CPUID", 1_000, 1_000), ("MSR_READ", 1_000, 1_000)]


@pytest.mark.parametrize(
    ("events", "expected", "dropped", "double"),
    [
        # An exit that cannot be read: the next exit's guest time is not known.
        (["entry", "exit CUT", "exit", "entry"], [("HLT", None, 1_000)], 0, 0),
        # An entry that cannot be read: the exit before it has no known end.
        (["entry", "exit", "entry CUT", "exit", "entry"], [("HLT", None, 1_000)], 1, 0),
        # Two exits in a row: the entry between was lost without a word, and with it the guest time.
        (["entry", "exit", "exit", "entry"], [("HLT", None, 1_000)], 0, 1),
    ],
)
def test_what_a_hole_touches_is_not_known(
    tmp_path: Path, events: list[str], expected: list[tuple[str, int | None, int]], dropped: int, double: int
) -> None:
    text = {
        "entry": "kvm_entry: vcpu 0",
        "entry CUT": "kvm_entry: vcp",
        "exit": "kvm_exit: reason HLT rip 0x1 info 0 0",
        "exit CUT": "kvm_exit: reason HLT rip 0x1 inf",
    }
    path = tmp_path / "t.txt"
    path.write_text("".join(f" a-1 [000] 1.00000{n}: {text[event]}\n" for n, event in enumerate(events)))
    trace = read_trace(path)
    assert_accounted(trace)
    thread = only(trace)
    assert (told(thread), thread.dropped, thread.double_exits) == (expected, dropped, double)


def test_a_file_may_start_and_end_inside_an_exit(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(
        " a-1 [000] 1.000001: kvm_fpu: load\n a-1 [000] 1.000002: kvm_entry: vcpu 0\n"
        " a-1 [000] 1.000003: kvm_exit: reason HLT rip 0x1 info 0 0\n a-1 [000] 1.000009: kvm_fpu: unload"
    )
    trace = read_trace(path)
    thread = only(trace)
    assert thread.pairs == () and thread.tail is not None and thread.tail.service == 6_000
    assert not trace.truncated and "no line end" in trace.notes[0]


def test_equal_and_backward_stamps_keep_file_order(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(
        " a-1 [000] 1.000005: kvm_entry: vcpu 0\n a-1 [000] 1.000005: kvm_exit: reason HLT rip 0x1 info 0 0\n"
        " a-1 [001] 1.000003: kvm_entry: vcpu 0\n a-1 [001] 1.000007: kvm_exit: reason CPUID rip 0x1 info 0 0\n"
        " a-1 [001] 1.000008: kvm_entry: vcpu 0\n"
    )
    trace = read_trace(path)
    assert told(only(trace)) == [("HLT", 0, 0), ("CPUID", 4_000, 1_000)]
    assert only(trace).backward == 1 and "negative" in " ".join(trace.notes)


def test_a_thread_that_runs_two_vcpus_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(
        " a-1 [000] 1.000001: kvm_entry: vcpu 0\n a-1 [000] 1.000002: kvm_exit: reason HLT rip 0x1 info 0 0\n"
        " a-1 [000] 1.000003: kvm_entry: vcpu 5\n"
    )
    assert "vCPUs 0, 5" in " ".join(read_trace(path).notes)


def test_two_clocks_in_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(
        " a-1 [000] 1.000001: kvm_entry: vcpu 0\n a-1 [000] 9000: kvm_exit: reason HLT rip 0x1 info 0 0\n"
        " a-1 [000] 1.000003: kvm_exit: reason HLT rip 0x1 info 0 0\n"
    )
    trace = read_trace(path)
    assert (trace.clock, trace.exits, trace.rejected_count) == ("ns", 1, 1)
    assert "another clock" in trace.rejected[0].reason


def test_long_lines_and_many_rejects_stay_bounded(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    good = " a-1 [000] 1.000001: kvm_exit: reason HLT rip 0x1 info 0 0\n"
    path.write_text(good + "x" * (3 * LINE_BYTES_MAX) + "\n" + "nonsense\n" * 500 + good)
    trace = read_trace(path)
    assert (trace.lines, trace.rejected_count, len(trace.rejected), trace.exits) == (503, 501, REJECTED_KEPT_MAX, 2)
    assert all(len(r.text) <= 120 for r in trace.rejected)


@pytest.mark.parametrize(
    ("content", "kind", "hint"),
    [
        (b"", "empty", "trace-cmd record"),
        (b" \n\n", "empty", "trace-cmd record"),
        (b"\x17\x08Dtracing6\0\0rest", "trace-dat", "trace-cmd report -R -t -i"),
        (b"PERFILE2\x68\0\0\0", "perf-data", "perf script"),
        (b"\x1f\x8b\x08rest", "compressed", "zcat"),
        (b"text\0text", "binary", "trace-cmd report"),
        (b"hello\nworld\n", "unknown", "trace-cmd record"),
        (b"KVM_EXIT_REASON      COUNT\nHLT  3\n", "bcc-kvmexit", "trace-cmd record"),
        (b"kvm statistics - pid 1 (vm)\n", "kvm-stat", "trace-cmd record"),
        (b"# reason: count sum(us)\n0: 55 123\n", "systemtap", "trace-cmd record"),
        (b'[[exit]]\nreason = "HLT"\n', "mix-table", "mix"),
    ],
)
def test_foreign_files_are_named_with_what_to_do(tmp_path: Path, content: bytes, kind: str, hint: str) -> None:
    path = tmp_path / "given"
    path.write_bytes(content)
    assert sniff(path) == kind
    with pytest.raises(InputError) as raised:
        read_trace(path)
    error = raised.value
    assert error.where == str(path) and error.what and error.state and error.allowed
    assert hint in error.hint
    assert "FILE" not in error.hint


def test_wrong_kind_of_recording() -> None:
    with pytest.raises(InputError, match="histogram") as raised:
        read_trace(SAMPLES / "perf_top_histogram.txt")
    assert "no order" in str(raised.value)
    with pytest.raises(InputError, match="perf kvm stat table") as raised:
        read_trace(TABLES / "perf_intel.txt")
    assert "mix" in raised.value.hint


def test_a_trace_without_exits_says_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(" a-1 [000] 1.000001: kvm_entry: vcpu 0\n b-2 [000] 1.000001: sched_switch: x\n")
    with pytest.raises(InputError, match="no kvm_exit") as raised:
        read_trace(path)
    assert "1 kvm_entry" in raised.value.state and "kvm" in raised.value.hint
    with pytest.raises(InputError, match="another architecture") as raised:
        read_trace(SAMPLES / "arm64.txt")
    assert "x86" in raised.value.hint


def test_a_trace_of_a_kvm_that_tells_no_exits_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(" a-1 [000] ..... 1.000001: kvm_userspace_exit: reason KVM_EXIT_IO (2)\n")
    with pytest.raises(InputError, match="no kvm_exit, but 1 kvm_userspace_exit") as raised:
        read_trace(path)
    assert "told no exits" in raised.value.hint


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "missing", tmp_path, fifo, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(InputError) as raised:
            read_trace(path)
        assert raised.value.hint and raised.value.allowed


def test_a_file_that_is_too_large_or_not_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SAMPLES / "ftrace_two_vcpus.txt"
    with monkeypatch.context() as patch:
        patch.setattr("asid.trace.sniff.FILE_BYTES_MAX", 1000)
        with pytest.raises(InputError, match="bytes") as raised:
            read_trace(path)
        assert "at most 1000" in raised.value.allowed and raised.value.hint

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a mode of 000 does not stop root
    with pytest.raises(PermissionRefused) as denied:
        read_trace(path)
    assert denied.value.where == str(path) and denied.value.hint


def assert_told(error: InputError) -> None:
    assert error.where and error.what and error.allowed and error.hint


LINES = st.sampled_from(
    [
        " a-1 [000] 1.0000{n:02}: kvm_entry: vcpu 0",
        " a-1 [000] 1.0000{n:02}: kvm_exit: reason HLT rip 0x1 info 0 0",
        " b-2 [001] 1.0000{n:02}: kvm_entry: vcpu 1",
        " b-2 [001] 1.0000{n:02}: kvm_exit: reason CPUID rip 0x1 info 0 0",
        " b-2 [000] 1.0000{n:02}: kvm_exit: reason CPUID rip 0x1",
        " a-1 [000] 1.0000{n:02}: kvm_nested_vmexit: whatever",
        " a-1 [000] 1.0000{n:02}: kvm_userspace_exit: reason KVM_EXIT_IO (2)",
        " a-1 [000] 1.0000{n:02}: kvm_exit: reason HLT rip",
        "CPU:0 [5 EVENTS DROPPED]",
        "CPU:1 [LOST 2 EVENTS]",
        "garbage",
    ]
)


@FEW
@given(st.lists(LINES, max_size=60))
def test_no_exit_is_ever_lost_from_the_books(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "books.txt"
    path.write_text("".join(line.format(n=n) + "\n" for n, line in enumerate(lines)))
    try:
        trace = read_trace(path)
    except InputError:
        assert not any("kvm_exit: reason HLT rip 0x1" in line or "CPUID" in line for line in lines)
        return
    assert_accounted(trace)
    assert trace.exits == sum("kvm_exit" in line and not line.endswith("rip") for line in lines)
    assert trace.entries == sum("kvm_entry" in line for line in lines)
    assert trace.lines == len(lines)


@FEW
@given(
    st.one_of(st.binary(max_size=400), st.text(max_size=400).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_any_file_is_read_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    try:
        assert_accounted(read_trace(path))
    except InputError as error:
        assert_told(error)


@FEW
@given(st.data())
def test_a_cut_or_changed_trace_is_read_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = (SAMPLES / data.draw(st.sampled_from(sorted(p.name for p in SAMPLES.glob("*.txt"))))).read_bytes()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    cut = bytearray(text[start:end])
    if cut:
        cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "cut.txt"
    path.write_bytes(bytes(cut))
    try:
        assert_accounted(read_trace(path))
    except InputError as error:
        assert_told(error)
