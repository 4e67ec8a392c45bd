"""Texts of tools that count exits: kvmexit of bcc, kvm_stat, SystemTap. Samples are our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from asid.core.exits import canonical
from asid.errors import InputError
from asid.guest import source_random
from asid.guest.handler_times import OTHER_NS, TABLE, handler_ns
from asid.guest.mix import MixSource, read_mix
from asid.trace.counts import read_counts

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "counts"
SECTIONS = """\
# ./kvmexit.py
Display kvm exit reasons and statistics for all threads... Hit Ctrl-C to end.
PID      TID      KVM_EXIT_REASON                     COUNT
^C11     12       EXIT_REASON_HLT                     3
11       13       EXIT_REASON_MSR_WRITE               6

# ./kvmexit.py -p 11 5 -a
Display kvm exit reasons and statistics for PID 11 and its all threads after sleeping 5 secs.
TID      KVM_EXIT_REASON                     COUNT
12       HLT                                 10
12       MSR_WRITE                           20
13       MSR_WRITE                           30
14       FROBNICATE                          1

# ./kvmexit.py -p 11 -v 0 4
Display kvm exit reasons and statistics for PID 11 VCPU 0 after sleeping 4 secs.
KVM_EXIT_REASON                     COUNT
MSR_WRITE                           7
"""
STAT = """\
kvm statistics - pid 9 (guest)

 Event                                         Total %Total CurAvg/s
 kvm_exit                                       1000   50.0      100
 kvm_msr                                         600   30.0       60
 kvm_vcpu_wakeup                                 300   15.0       30
 kvm_fast_mmio                                    40    2.0        4
 kvm_mmio                                         40    2.0        4
 kvm_fpu                                          20    1.0        2
 Total                                          2000             200
"""
TAP = """\
# reason: count sum(us) min(us) avg(us) max(us)
12: 4 40000 58 10000 30000
32: 1000 700 0 0 33

# reason: count sum(us) min(us) avg(us) max(us)
32: 5 5 1 1 1
"""


def counts_of(tmp_path: Path, text: str):
    (tmp_path / "counts.txt").write_text(text)
    return read_counts(tmp_path / "counts.txt")


def by_name(counts) -> dict[str, int]:
    return {row.reason.name: row.n for row in counts.rows if row.reason is not None}


def test_the_first_section_that_says_its_time_is_taken_with_the_threads_it_names(tmp_path):
    counts = counts_of(tmp_path, SECTIONS)
    assert by_name(counts) == {"HLT": 10, "MSR_WRITE": 50}
    assert (counts.over_ns, counts.vcpus, counts.line) == (5_000_000_000, 3, 9)
    assert any("3 tables" in note for note in counts.notes)
    assert any("FROBNICATE" in note for note in counts.notes)


def test_a_section_that_was_stopped_by_hand_says_no_time(tmp_path):
    counts = counts_of(tmp_path, SECTIONS.partition("# ./kvmexit.py -p 11 5")[0])
    assert by_name(counts) == {"HLT": 3, "MSR_WRITE": 6}
    assert (counts.over_ns, counts.vcpus) == (0, 2)


def test_a_section_of_one_vcpu_is_of_one(tmp_path):
    counts = counts_of(tmp_path, SECTIONS[SECTIONS.index("# ./kvmexit.py -p 11 -v") :])
    assert (by_name(counts), counts.over_ns, counts.vcpus) == ({"MSR_WRITE": 7}, 4_000_000_000, 1)


def test_events_of_kvm_stat_stand_for_exits_and_interrupts_for_the_rest(tmp_path):
    counts = counts_of(tmp_path, STAT)
    assert by_name(counts) == {"MSR_WRITE": 600, "HLT": 300, "EPT_MISCONFIG": 40, "EXTERNAL_INTERRUPT": 60}
    assert counts.over_ns == 10_000_000_000
    assert all(note.startswith("assumed: ") for note in counts.notes)


def test_rows_of_reasons_are_taken_before_events(tmp_path):
    rows = " kvm_exit(HLT)  70 1 7\n kvm_exit(EPT_VIOLATION)  30 1 3\n"
    counts = counts_of(tmp_path, STAT.replace(" kvm_msr", rows + " kvm_msr"))
    assert by_name(counts) == {"HLT": 70, "EPT_VIOLATION": 30}


def test_numbers_of_systemtap_have_times_and_the_first_print_is_read(tmp_path):
    counts = counts_of(tmp_path, TAP)
    halt, write = counts.rows
    assert (halt.reason, halt.mean_ns, halt.min_ns) == (canonical("HLT"), 10_000_000.0, 58_000)
    assert (write.reason, write.n, write.mean_ns) == (canonical("MSR_WRITE"), 1000, 700.0)


def test_numbers_that_only_amd_has_are_taken_for_amds(tmp_path):
    counts = counts_of(tmp_path, TAP.replace("12: 4", "1024: 4").replace("32:", "124:"))
    assert by_name(counts) == {"npf": 4, "msr": 1000}


@pytest.mark.parametrize(
    "text",
    [
        "KVM_EXIT_REASON      COUNT\n",
        "KVM_EXIT_REASON      COUNT\nHLT   0\n",
        "KVM_EXIT_REASON      COUNT\nFROB   9\n",
        "TIME(s)            COMM             PID    MESSAGE\n1.0 a 3 KVM_EXIT exit_reason : 18\n",
        "kvm statistics - pid 1 (vm)\n kvm_fpu 5 5 5\n",
        "# reason: count sum(us) min(us) avg(us) max(us)\n",
        "# reason: count sum(us) min(us) avg(us) max(us)\n9999: 1 1 1 1 1\n",
    ],
)
def test_a_text_without_an_exit_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="no exit in it") as refused:
        counts_of(tmp_path, text)
    assert refused.value.hint and refused.value.allowed


def test_halts_sleep_half_of_the_time_that_handlers_leave(tmp_path):
    (tmp_path / "k.txt").write_text(SECTIONS)
    table = read_mix(tmp_path / "k.txt")
    assert table.timeless and table.halts
    rate_hz = table.rate_over_hz(table.over_ns, table.vcpus)
    source = MixSource(table, rate_hz, source_random(1, 1, 0))
    exits = [source.next() for _ in range(20_000)]
    ran, slept = sum(exit.after_ns for exit in exits), sum(exit.wake_ns for exit in exits)
    assert slept == pytest.approx(ran, rel=0.05)
    a_vcpu_hz = 60 / 5 / 3
    assert len(exits) * 1e9 / (ran + slept) == pytest.approx(a_vcpu_hz, rel=0.05)
    assert {exit.service_ns for exit in exits if exit.reason == "HLT"} == {0}


def test_every_handler_time_is_of_a_reason_and_has_a_source():
    for name, ns, source in TABLE:
        assert handler_ns(canonical(name)) == ns
        assert source and 100 <= ns < 100_000
    assert handler_ns(canonical("VMCLEAR")) == OTHER_NS


@pytest.mark.parametrize(
    ("short", "exits", "reasons", "over_s"),
    [("d08", 25_183, 10, 6.0), ("c01", 4_996_283, 9, 0.0), ("c06", 1_133, 4, 14.1625)],
)
def test_published_texts_are_read(short, exits, reasons, over_s):
    found = sorted(REAL.glob(f"{short}_*.txt"))
    if not found:
        pytest.skip(f"text {short} is not here: {REAL}")
    counts = read_counts(found[0])
    assert (counts.exits, len(counts.rows), counts.over_ns / 1e9) == (exits, reasons, over_s)
