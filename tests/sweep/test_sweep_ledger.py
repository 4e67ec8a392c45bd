"""The rows of an unfinished sweep on disk: what is torn is played again, what is whole is believed."""

from __future__ import annotations

import errno

import pytest

from asid.errors import Busy, Conflict, HostUnsuitable
from asid.sweep.ledger import Ledger, ledger_of


@pytest.fixture
def output(tmp_path):
    """An output of which four rows are kept."""
    path = tmp_path / "a.parquet"
    ledger = Ledger(path, "f" * 64, 9, resume=False)
    for run in (3, 0, 1, 2):
        ledger.keep(run, {"status": "done", "guest_percent": 98.31, "words": "ü\n"})
    ledger.close()
    return path


def opened(output, fingerprint="f" * 64):
    return Ledger(output, fingerprint, 9, resume=True)


def test_rows_come_back_as_they_were(output):
    ledger = opened(output)
    assert list(ledger.rows) == [3, 0, 1, 2]
    assert ledger.rows[3] == {"status": "done", "guest_percent": 98.31, "words": "ü\n"}
    assert ledger.cut == 0
    ledger.close()


def test_a_tail_torn_at_any_byte_costs_the_last_row_alone(output):
    whole = ledger_of(output).read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(last, len(whole)):
        ledger_of(output).write_bytes(whole[:size])
        ledger = opened(output)
        assert list(ledger.rows) == [3, 0, 1]
        assert ledger.cut == size - last
        ledger.keep(2, {"status": "done", "guest_percent": 98.31, "words": "ü\n"})
        ledger.close()
        assert ledger_of(output).read_bytes() == whole


def test_from_a_damaged_line_on_nothing_is_believed(output):
    whole = bytearray(ledger_of(output).read_bytes())
    second = whole.find(b'{"run":0')
    whole[second + 20] ^= 1
    ledger_of(output).write_bytes(bytes(whole) + bytes(4096))  # and what a power cut leaves
    ledger = opened(output)
    assert list(ledger.rows) == [3]
    ledger.close()


def test_what_is_not_a_ledger_is_left_alone(output):
    ledger_of(output).write_text("mine\n")
    with pytest.raises(Conflict, match="no list of a sweep's rows"):
        opened(output)
    assert ledger_of(output).read_text() == "mine\n"


def test_another_sweep_another_start_and_another_process_are_refused(output):
    with pytest.raises(Conflict, match="another one"):
        opened(output, "0" * 64)
    with pytest.raises(Conflict, match="not finished"):
        Ledger(output, "f" * 64, 9, resume=False)
    ledger = opened(output)
    with pytest.raises(Busy, match="another asid sweep"):
        opened(output)
    ledger.remove()
    assert not ledger_of(output).exists()


def test_no_room_for_the_first_line_leaves_no_file(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("asid.sweep.ledger.os.fsync", full)
    with pytest.raises(HostUnsuitable, match="No space left"):
        Ledger(tmp_path / "b.parquet", "f" * 64, 9, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_kept_once(output):
    ledger = opened(output)
    with pytest.raises(AssertionError, match="once"):
        ledger.keep(3, {})
    ledger.close()
