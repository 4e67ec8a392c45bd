"""Recording VM exits from tracefs: over a directory that is none, and over the real one where that may be read."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from asid.commands import invoke
from asid.errors import HostUnsuitable, PermissionRefused
from asid.trace.reader import read_trace
from asid.trace.record import check_counts, find_tracefs, instance, record, threads_of

LINES = (
    b" CPU 0/KVM-42 [000] ..... 100.000001: kvm_entry: vcpu 0, rip 0xfff0\n"
    b" CPU 0/KVM-42 [000] ..... 100.000101: kvm_exit: vcpu 0 reason HLT rip 0xfff0 info1 0x0 info2 0x0 "
    b"intr_info 0x0 error_code 0x0\n"
    b" CPU 0/KVM-42 [000] ..... 100.000201: kvm_entry: vcpu 0, rip 0xfff1\n"
)


def write_later(tracefs, text: bytes) -> threading.Thread:
    """Somebody whose VM exits while it is recorded."""

    def write() -> None:
        own = tracefs.root / "instances" / f"asid-{os.getpid()}" / "trace_pipe"
        ready = threading.Event()
        for _ in range(1000):
            try:
                fd = os.open(own, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                ready.wait(0.005)
                continue
            os.write(fd, text)
            ready.wait(0.3)
            os.close(fd)
            return

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_what_is_recorded_is_read_by_the_reader_of_recordings(tracefs, tmp_path, capsys):
    out = tmp_path / "exits.txt"
    writer = write_later(tracefs, LINES)
    argv = ["trace", "record", "-o", str(out), "--duration", "400ms", "--tracefs", str(tracefs.root)]
    assert invoke(argv) == 0
    writer.join(10)
    assert "2 kvm_entry, 1 kvm_exit" in capsys.readouterr().out
    (thread,) = read_trace(out).threads
    assert [pair.reason[2] for pair in thread.pairs] == ["HLT"]
    assert tracefs.made == ["0", "mono"], "it was switched off, and removed"
    assert list((tracefs.root / "instances").iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(tracefs, tmp_path):
    out = tmp_path / "exits.txt"
    out.write_text("mine")
    assert invoke(["trace", "record", "-o", str(out), "--tracefs", str(tracefs.root)]) == 2
    assert out.read_text() == "mine"


def test_a_file_that_cannot_be_made_is_told_before_anything_is_recorded(tracefs, tmp_path, capsys):
    out = tmp_path / "nowhere" / "exits.txt"
    assert invoke(["trace", "record", "-o", str(out), "--tracefs", str(tracefs.root)]) == 2
    assert "a recording cannot be saved there" in capsys.readouterr().err
    assert tracefs.made == []


def test_a_disk_that_is_full_ends_the_recording_in_words(tracefs, tmp_path, capsys, monkeypatch):
    def full(own, out, ns, on_progress):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("asid.trace.record.record", full)
    out = tmp_path / "exits.txt"
    assert invoke(["trace", "record", "-o", str(out), "--tracefs", str(tracefs.root)]) == 6
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "another file for -o" in said
    assert list((tracefs.root / "instances").iterdir()) == []


def test_whoever_waits_is_told_how_far_it_is_while_events_pour_in(tmp_path):
    own, told = tmp_path / "own", []
    own.mkdir()
    (own / "trace_pipe").symlink_to("/dev/zero")  # it never runs dry
    with open("/dev/null", "wb") as out:
        record(own, out, 350_000_000, lambda counts, left_ns: told.append(left_ns))
    assert len(told) >= 3


def test_only_the_threads_of_one_process_are_recorded_when_asked_for(tracefs):
    with instance(tracefs.root, threads_of(os.getpid())) as own:
        assert str(os.getpid()) in (own / "set_event_pid").read_text().split()
        assert (own / "trace_options").read_text() == "event-fork"


def test_nothing_is_left_when_it_is_cut_short(tracefs):
    with pytest.raises(KeyboardInterrupt), instance(tracefs.root):
        raise KeyboardInterrupt
    assert list((tracefs.root / "instances").iterdir()) == []


def test_what_a_killed_recorder_left_is_removed_by_the_next_one(tracefs):
    left = tracefs.root / "instances" / "asid-4194305"
    left.mkdir()
    (tracefs.root / "instances" / f"asid-{os.getpid()}").mkdir()  # in a container numbers come again soon
    corpse = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, corpse, os.WEXITED | os.WNOWAIT)
    dead = tracefs.root / "instances" / f"asid-{corpse}"
    dead.mkdir()
    living = tracefs.root / "instances" / f"asid-{os.getppid()}"
    living.mkdir()
    others = [tracefs.root / "instances" / name for name in ("asid-mine", "asid-4194305x", "asid-")]
    for other in others:
        other.mkdir()
    with instance(tracefs.root):
        assert not left.exists()
        assert not dead.exists(), "nobody has reaped it, and it traces no more"
        assert living.exists()
        assert all(other.exists() for other in others), "no recorder has such a name"
    os.waitpid(corpse, 0)


def test_a_process_that_there_is_not_is_told():
    with pytest.raises(HostUnsuitable, match="no process 4194305"):
        threads_of(4194305)


def test_a_host_without_tracefs_is_told_how_to_mount_it(tmp_path):
    with pytest.raises(HostUnsuitable) as refused:
        find_tracefs((tmp_path / "no", tmp_path / "neither"))
    assert "mount -t tracefs" in refused.value.hint


def test_a_place_that_cannot_be_looked_at_is_no_tracefs(tmp_path):
    with pytest.raises(HostUnsuitable, match="no tracefs is mounted"):
        find_tracefs((tmp_path / ("x" * 5000),))


def test_a_tracefs_without_events_of_kvm_is_another_matter(tmp_path):
    (tmp_path / "events").mkdir()
    with pytest.raises(HostUnsuitable, match="has no events of KVM"):
        find_tracefs((tmp_path,))


def test_a_tracefs_that_is_not_ours_is_a_matter_of_permission(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", closed)
    with pytest.raises(PermissionRefused, match="may not be read") as refused:
        find_tracefs((tmp_path,))
    assert "sudo asid trace record" in refused.value.hint
    with pytest.raises(PermissionRefused) as refused:
        find_tracefs((tmp_path,), "doctor")
    assert refused.value.hint == "Run as root."


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "no VM ran meanwhile"),
        ({"kvm_userspace_exit": 5}, "this KVM tells no exits"),
        ({"kvm_exit": 3}, "0 kvm_entry"),
    ],
)
def test_a_recording_without_exits_says_what_there_was(counts, said):
    with pytest.raises(HostUnsuitable) as refused:
        check_counts(Counter(counts), "exits.txt", 10)
    assert said in str(refused.value)
    check_counts(Counter({"kvm_exit": 1, "kvm_entry": 1}), "exits.txt", 10)
