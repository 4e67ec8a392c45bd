"""Recordings of real machines, read where they are present (../shared/data); counts were taken by hand with grep."""

from __future__ import annotations

from pathlib import Path

import pytest

from asid.core.exits import canonical
from asid.errors import InputError
from asid.trace.model import Trace
from asid.trace.perf_kvm_stat import read_table, read_tables
from asid.trace.reader import read_trace
from asid.trace.sniff import sniff

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def recorded(kind: str, short: str) -> Path:
    found = sorted((REAL / kind).glob(f"{short}_*.txt"))
    if not found:
        pytest.skip(f"recording {short} is not here: {REAL / kind}")
    return found[0]


def trace_of(short: str) -> Trace:
    return read_trace(recorded("traces", short))


@pytest.mark.parametrize(
    ("short", "lines", "exits", "entries", "pairs", "userspace", "rejected"),
    [
        ("d11", 2, 1, 1, 1, 0, []),
        ("t01", 31, 7, 8, 7, 1, [31]),
        ("t02", 17, 2, 2, 1, 2, []),
        ("t10", 4, 1, 1, 0, 1, []),
        ("t12b", 31, 10, 9, 9, 0, []),
        ("t14", 28, 5, 6, 4, 4, [18]),
        ("t16", 58, 5, 5, 3, 3, []),
        ("t19", 78, 13, 12, 12, 0, []),
        ("t22", 12, 3, 3, 3, 0, []),
        ("t25", 9, 1, 0, 0, 1, []),
        ("t28", 3, 1, 1, 0, 1, []),
        ("t30", 2, 1, 0, 0, 0, []),
    ],
)
def test_counts(
    short: str, lines: int, exits: int, entries: int, pairs: int, userspace: int, rejected: list[int]
) -> None:
    path = recorded("traces", short)
    assert sniff(path) == "trace"
    trace = read_trace(path)
    assert (trace.lines, trace.exits, trace.entries, trace.pairs) == (lines, exits, entries, pairs)
    assert trace.userspace_events == userspace
    assert [r.number for r in trace.rejected] == rejected and trace.rejected_count == len(rejected)
    assert trace.losses == 0 and not trace.truncated
    for t in trace.threads:
        assert t.exits == len(t.pairs) + (t.tail is not None) + t.double_exits + t.dropped


def test_every_recording_is_looked_at() -> None:
    if not (REAL / "traces").is_dir():
        pytest.skip(f"recordings are not here: {REAL}")
    for path in sorted((REAL / "traces").glob("*.txt")):
        assert sniff(path) in ("trace", "perf-histogram"), path
    for path in sorted((REAL / "perf_kvm_stat").glob("*.txt")):
        assert sniff(path) == "perf-kvm-stat", path


def test_two_vcpus_of_the_best_sample() -> None:
    trace = trace_of("t19")
    second, first = trace.threads
    assert (first.key, first.vcpu, first.cpus, second.key, second.vcpu, second.cpus) == (
        "8396",
        0,
        (1,),
        "8397",
        1,
        (2,),
    )
    assert [pair.reason.name for pair in second.pairs] == [
        "CR_ACCESS", "CR_ACCESS", "CPUID", "MSR_READ", "MSR_WRITE", "CR_ACCESS", "EXTERNAL_INTERRUPT", "MSR_WRITE",
        "LDTR_TR",
    ]  # fmt: skip
    assert [(pair.guest, pair.service) for pair in second.pairs][:3] == [(None, 95_000), (20_000, 10_000), (10_000, 0)]
    assert second.tail is not None and (second.tail.reason.name, second.tail.guest) == ("TRIPLE_FAULT", 19_000)
    assert [(pair.guest, pair.service) for pair in first.pairs] == [(None, 14_000), (13_000, 8_000), (6_000, 0)]


def test_an_exit_and_its_entry_on_two_cpus() -> None:
    (thread,) = trace_of("d11").threads
    assert thread.cpus == (78, 74) and thread.pairs[0].service == 11_628_000
    assert thread.pairs[0].reason.name == "APIC_WRITE"


def test_userspace_round_trips_are_one_pair() -> None:
    first, second = trace_of("t14").threads
    assert [(p.reason.name, p.service, p.userspace) for p in first.pairs] == [
        ("EXTERNAL_INTERRUPT", 2_000, ""),
        ("IO_INSTRUCTION", 45_000, "KVM_EXIT_IO"),
        ("IO_INSTRUCTION", 30_000, "KVM_EXIT_IO"),
    ]
    assert first.tail is None  # its last kvm_exit was cut off in the source, line 18
    assert second.tail is not None and second.tail.userspace == "KVM_EXIT_HLT"


def test_nested_exits_count_once() -> None:
    outer, other = trace_of("t16").threads
    assert [(p.reason.name, p.nested, p.userspace) for p in outer.pairs] == [
        ("VMRESUME", False, "KVM_EXIT_MMIO"),
        ("EPT_MISCONFIG", True, "KVM_EXIT_MMIO"),
        ("MSR_WRITE", True, ""),
    ]
    assert other.tail is not None and other.tail.userspace == "KVM_EXIT_IOAPIC_EOI"
    (jailhouse,) = trace_of("t02").threads
    assert (jailhouse.exits, jailhouse.nested_exits, jailhouse.vcpu) == (2, 2, 3)


def test_amd_names_and_old_names() -> None:
    (amd,) = trace_of("t22").threads
    assert [p.reason for p in amd.pairs] == [canonical("msr"), canonical("GP excp"), canonical("GP excp")]
    (old,) = trace_of("t12b").threads
    assert "INTERRUPT_WINDOW" in [p.reason.name for p in old.pairs]  # printed as PENDING_INTERRUPT
    tsc = trace_of("t30")
    assert tsc.clock == "tsc" and tsc.threads[0].tail is not None and tsc.threads[0].tail.reason.name == "io"


def test_recordings_that_hold_no_exit() -> None:
    with pytest.raises(InputError, match="histogram"):
        trace_of("d04")
    with pytest.raises(InputError, match="no kvm_exit") as raised:
        trace_of("t27")
    assert "3 kvm_entry" in raised.value.state
    with pytest.raises(InputError, match="perf kvm stat table"):
        read_trace(recorded("perf_kvm_stat", "p01"))
    with pytest.raises(InputError, match="text of a trace"):
        read_table(recorded("traces", "t19"))
    for short in ("c01", "c06", "d08"):
        with pytest.raises(InputError):
            read_trace(recorded("counts", short))


@pytest.mark.parametrize(
    ("short", "tables"),
    [
        ("p01", [("VM-EXIT", 10, 70746)]),
        ("p03", [("VM-EXIT", 9, 25898)]),
        ("p04", [("VM-EXIT", 2, 156)]),
        ("p08", [("VM-EXIT", 3, 624041)]),
        ("p10", [("VM-EXIT", 9, 98202), ("MMIO Access", 4, 65057), ("IO Port Access", 1, 383), ("VM-EXIT", 9, 10914)]),
        ("p16", [("VM-EXIT", 2, 384)]),
    ],
)
def test_complete_tables_add_up(short: str, tables: list[tuple[str, int, int]]) -> None:
    found = read_tables(recorded("perf_kvm_stat", short))
    assert [(t.event, len(t.rows), t.total_samples) for t in found] == tables
    for t in found:
        assert t.missing_samples == 0 and not t.elided and not t.rejected
        assert t.event != "VM-EXIT" or all(row.reason is not None for row in t.rows)


def test_an_elided_table_says_what_is_missing() -> None:
    first, second = read_tables(recorded("perf_kvm_stat", "p15"))
    assert (first.elided, first.samples, first.missing_samples) == (True, 1_091_107, 296_198)
    assert (second.elided, second.samples, second.missing_samples) == (True, 966_428, 285_118)
    assert "296198 missing" in first.notes[0]


def test_cells_of_a_row() -> None:
    rows = {row.name: row for row in read_table(recorded("perf_kvm_stat", "p01")).rows}
    hlt = rows["HLT"]
    assert (hlt.samples, hlt.min_ns, hlt.max_ns, hlt.mean_ns) == (2933, 1_710, 15_227_790, 341_970.0)
    assert hlt.error_fraction == pytest.approx(0.0891)
    assert rows["PENDING_INTERRUPT"].reason == canonical("INTERRUPT_WINDOW")
    old = read_table(recorded("perf_kvm_stat", "p10"), index=3)
    assert (old.title, old.rows[0].min_ns, old.rows[0].mean_ns) == ("VCPU 0", None, 9_501_720.0)
