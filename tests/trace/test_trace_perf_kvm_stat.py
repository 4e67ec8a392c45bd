"""perf kvm stat tables: layouts, sums, wrong files. Samples in tests/data/tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.core.exits import canonical
from asid.errors import InputError
from asid.trace.perf_kvm_stat import read_table, read_tables

# Two cores shared with others: an example may take long, and every test stays below a quarter of a second.
FEW = settings(max_examples=40, deadline=None)

SAMPLES = Path(__file__).resolve().parents[1] / "data" / "tables"
TRACES = SAMPLES.parent / "trace"


def test_a_live_table() -> None:
    table = read_table(SAMPLES / "perf_intel.txt")
    assert (table.title, table.line, len(table.rows)) == ("all VMs, all VCPUs", 5, 4)
    assert (table.samples, table.total_samples, table.missing_samples) == (10_000, 10_000, 0)
    assert table.total_ns == 607_980_000
    assert [row.reason and row.reason.name for row in table.rows] == ["MSR_WRITE", "HLT", "INTERRUPT_WINDOW", None]
    first, last = table.rows[0], table.rows[-1]
    assert (first.samples, first.min_ns, first.max_ns, first.mean_ns) == (6000, 500, 20_000, 1000.0)
    assert first.error_fraction == pytest.approx(0.005) and last.error_fraction is None  # -nan
    assert table.notes == ("1 rows name no exit reason we know: UNKNOWN.",)


def test_the_table_of_vm_exits_is_chosen_among_several() -> None:
    path = SAMPLES / "perf_2012_two_tables.txt"
    table = read_table(path)
    assert (table.event, table.title, table.tables_in_file) == ("VM-EXIT", "VCPU 3", 2)
    assert [(row.name, row.samples, row.mean_ns, row.min_ns) for row in table.rows] == [
        ("CPUID", 30, 1000.0, None),
        ("HLT", 10, 3000.0, None),
    ]
    assert read_table(path, index=1) == table
    for index in (0, 2, -1):
        with pytest.raises(InputError, match="no table of VM exits") as raised:
            read_table(path, index=index)
        assert f"asked for table {index}" in raised.value.state and "MMIO Access" in raised.value.state


def test_an_elided_table_with_names_that_hold_a_blank() -> None:
    table = read_table(SAMPLES / "perf_amd_elided.txt")
    assert table.elided and table.missing_samples == 300
    assert [row.reason for row in table.rows] == [canonical("interrupt"), canonical("PF excp")]
    assert "300 missing" in table.notes[0] and "left rows out" in table.notes[1]


def test_the_newest_layout_has_nanoseconds_and_no_mean() -> None:
    table = read_table(SAMPLES / "perf_event_name_ns.txt")
    assert [(row.name, row.samples, row.mean_ns) for row in table.rows] == [("npf", 400, 2000.0), ("hlt", 100, 4000.0)]
    assert table.missing_samples is None and "totals is missing" in table.notes[0]


def test_wrapped_and_damaged_rows_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    text = (SAMPLES / "perf_intel.txt").read_text()
    path.write_text(text.replace("5000.00us    200.00us", "5000.00us\n200.00us").replace("60.00%     1.00%", "60.00 1"))
    table = read_table(path)
    assert [number for number, _ in table.rejected] == [7, 8, 9]
    assert table.missing_samples == 9000 and "9000 missing" in table.notes[0]
    assert "3 lines not used; the first is line 7" in " ".join(table.notes)


def test_too_many_samples_are_said_too(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text((SAMPLES / "perf_intel.txt").read_text().replace("Samples:10000", "Samples:9990"))
    assert "10 too many" in read_table(path).notes[0]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"nothing here\n", "without any VM exit"),
        (b"PERFILE2\0", "perf.data"),
        (b"             VM-EXIT    Samples  Samples%\n", "no table of VM exits"),
        (b"             VM-EXIT    Samples  Samples%     Time%         Avg time\n\nCPUID  x\n", "no table of VM exits"),
    ],
)
def test_files_without_a_table(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what) as raised:
        read_table(path)
    assert raised.value.where == str(path) and raised.value.hint and raised.value.allowed


def test_a_trace_or_another_machine_is_named() -> None:
    with pytest.raises(InputError, match="text of a trace") as raised:
        read_table(TRACES / "perf_script.txt")
    assert "replay" in raised.value.hint
    with pytest.raises(InputError, match="histogram"):
        read_table(TRACES / "perf_top_histogram.txt")
    with pytest.raises(InputError, match="ARM64"):
        read_table(SAMPLES / "perf_arm64.txt")


def assert_told(error: InputError) -> None:
    assert error.where and error.what and error.allowed and error.hint


CELLS = st.text(alphabet="0123456789.,%usn ()+-[]ABC:", max_size=60)


@FEW
@given(
    st.lists(CELLS, max_size=6),
    st.sampled_from(["VM-EXIT Samples Samples% Time% Avg time", "Event name Samples Time (ns)"]),
)
def test_any_row_is_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, rows: list[str], head: str) -> None:
    path = tmp_path_factory.getbasetemp() / "table.txt"
    path.write_text("\n".join([head, *rows, ""]))
    try:
        (table,) = read_tables(path)
    except InputError as error:
        assert_told(error)
        return
    assert len(table.rows) + len(table.rejected) + table.elided <= len(rows) + 1
    for row in table.rows:
        assert row.samples >= 0 and row.mean_ns >= 0


@FEW
@given(st.binary(max_size=300))
def test_any_file_is_read_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "anytable.txt"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_table(path)
