"""The recorder of a run, over a directory that is no tracefs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asid.errors import AsidError
from asid.trace import run_recorder, text_file
from asid.trace.reader import read_trace
from asid.trace.run_recorder import record_run

LINES = (
    b" CPU 0/KVM-42 [000] ..... 100.000001: kvm_entry: vcpu 0, rip 0xfff0\n"
    b" CPU 0/KVM-42 [000] ..... 100.000101: kvm_exit: vcpu 0 reason HLT rip 0xfff0 info1 0x0 info2 0x0 "
    b"intr_info 0x0 error_code 0x0\n"
    b" CPU 0/KVM-42 [000] ..... 100.000201: kvm_entry: vcpu 0, rip 0xfff1\n"
)
pause = threading.Event()


class Run:
    """A recorder in a thread, and the other ends of its pipes."""

    def __init__(self, tracefs: Any, file: Path, limit: int) -> None:
        self.own = tracefs.root / "instances" / f"asid-{os.getpid()}"
        self.file = file
        hear, self.commands = os.pipe()
        self.answers, say = os.pipe()
        self._ends = [hear, say]
        self._rest = b""
        self.thread = threading.Thread(target=record_run, args=(tracefs.root, file, hear, say, limit), daemon=True)
        self.thread.start()

    def command(self, *pids: int) -> None:
        os.write(self.commands, "".join(f"{pid}\n" for pid in pids).encode())

    def answer(self) -> dict[str, Any]:
        """The next one; there must be one."""
        while b"\n" not in self._rest:
            self._rest += os.read(self.answers, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def write(self, text: bytes) -> None:
        """What the kernel has to tell."""
        fd = os.open(self.own / "trace_pipe", os.O_WRONLY)
        os.write(fd, text)
        os.close(fd)

    def end(self) -> list[dict[str, Any]]:
        """End it; return what it still has to say."""
        os.close(self.commands)
        self.commands = -1
        told = []
        while not told or "state" not in told[-1]:
            told.append(self.answer())
        self.thread.join(10)
        return told

    def close(self) -> None:
        for fd in (self.commands, self.answers):
            if fd >= 0:
                os.close(fd)
        self.thread.join(10)
        assert not self.thread.is_alive()
        for fd in self._ends:
            os.close(fd)


@contextmanager
def recording(tracefs: Any, file: Path, *pids: int, limit: int = 1 << 20) -> Iterator[Run]:
    run = Run(tracefs, file, limit)
    try:
        if pids:
            run.command(*pids)
        yield run
    finally:
        run.close()
    assert list((tracefs.root / "instances").iterdir()) == [], "nothing is left in tracefs"


def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("not within 10 s")


def test_it_counts_keeps_the_text_and_leaves_nothing(tracefs, tmp_path):
    file = tmp_path / "kvm-events.txt"
    with recording(tracefs, file, 42) as run:
        assert run.answer() == {"state": "on"}
        assert (run.own / "trace_options").read_text() == "event-fork"
        run.write(LINES)
        told = run.end()
    assert {tuple(answer["count"]) for answer in told[:-1]} == {
        (42, "kvm_entry", "", 2, 0, 0, 0), (42, "kvm_exit", "HLT", 1, 1, 1, 100_000),
    }  # fmt: skip
    assert told[-1] == {"state": "over", "lost": 0, "bytes": file.stat().st_size, "cut": "", "why": ""}
    (thread,) = read_trace(file).threads
    assert [pair.reason[2] for pair in thread.pairs] == ["HLT"]


def test_whoever_is_born_later_is_added_and_nobody_dropped(tracefs, tmp_path):
    with recording(tracefs, tmp_path / "text", 42, 43) as run:
        assert run.answer() == {"state": "on"}
        threads = run.own / "set_event_pid"
        assert threads.read_text() == "42 43"
        run.command(44)
        until(lambda: "44" in threads.read_text())
        run.command(45, 46)
        until(lambda: "46" in threads.read_text())
        assert threads.read_text() == "42 4344\n45\n46\n", "the kernel's file takes each write for itself"
        assert run.end()[-1]["why"] == ""


def test_a_thread_that_cannot_be_added_is_said(tracefs, tmp_path, monkeypatch):
    def refuse(own, pid):
        raise ProcessLookupError if pid == 44 else OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(run_recorder, "add_thread", refuse)
    with recording(tracefs, tmp_path / "text", 42) as run:
        assert run.answer() == {"state": "on"}
        run.command(44)  # it has ended by now: there is nothing to be said
        run.command(45)
        until(lambda: not fcntl.ioctl(run._ends[0], 0x541B, b"\0" * 4).strip(b"\0"))  # FIONREAD: all is taken
        assert run.end()[-1]["why"] == "threads that could not be followed: 1"


def test_what_the_kernel_dropped_is_said(tracefs, tmp_path):
    with recording(tracefs, tmp_path / "text", 42) as run:
        assert run.answer() == {"state": "on"}
        run.write(LINES + b"CPU:0 [LOST 12 EVENTS]\n")
        assert run.end()[-1]["lost"] == 12


def test_a_line_that_comes_in_two_parts_is_one(tracefs, tmp_path):
    file = tmp_path / "text"
    with recording(tracefs, file, 42) as run:
        assert run.answer() == {"state": "on"}
        run.write(LINES[:100])
        until(lambda: b"kvm_entry" in file.read_bytes())
        run.write(LINES[100:])
        told = run.end()
    assert sum(answer["count"][3] for answer in told[:-1]) == 3


def test_the_text_ends_at_its_limit_with_a_word_and_the_counts_go_on(tracefs, tmp_path):
    file = tmp_path / "text"
    with recording(tracefs, file, 42, limit=400) as run:
        assert run.answer() == {"state": "on"}
        run.write(LINES * 20)
        told = run.end()
    assert told[-1]["cut"] == "it is limited to 400B"
    assert told[-1]["bytes"] <= 400
    assert sum(answer["count"][3] for answer in told[:-1]) == 60
    *lines, last = file.read_text().splitlines()
    assert last == "# the recording goes on and its text ends here: it is limited to 400B"
    assert all(line.startswith(("#", " CPU 0/KVM-42")) for line in lines if line)
    assert read_trace(file).rejected_count == 0


def test_a_disk_that_is_full_costs_the_text_alone(tracefs, tmp_path, monkeypatch):
    with recording(tracefs, tmp_path / "text", 42) as run:
        assert run.answer() == {"state": "on"}

        def full(file, lines):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(text_file.TextFile, "_put", full)
        run.write(LINES)
        told = run.end()
    assert told[-1]["cut"] == "it cannot be written: No space left on device"
    assert sum(answer["count"][3] for answer in told[:-1]) == 3


def test_the_last_room_on_a_disk_is_left_to_the_journal(tracefs, tmp_path, monkeypatch):
    monkeypatch.setattr(text_file.TextFile, "_host_room", lambda file: 1 << 20)
    with recording(tracefs, tmp_path / "text", 42) as run:
        assert run.answer() == {"state": "on"}
        run.write(LINES)
        assert run.end()[-1]["cut"] == "less than 32.0MiB are free there"


def test_a_file_that_is_there_is_kept_and_nothing_recorded(tracefs, tmp_path):
    file = tmp_path / "text"
    file.write_text("mine")
    with recording(tracefs, file, 42) as run:
        answer = run.answer()
        assert answer["state"] == "off"
        assert "File exists" in answer["why"]
    assert file.read_text() == "mine"
    assert tracefs.made == []


def test_a_tracefs_that_makes_no_instance_is_said_and_leaves_no_file(tracefs, tmp_path, monkeypatch):
    def refuse(path, *args, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    file = tmp_path / "text"
    with recording(tracefs, file, 42) as run:
        answer = run.answer()
        assert (answer["state"], "Operation not permitted" in answer["why"]) == ("off", True)
    assert not file.exists()


def test_a_daemon_that_ends_before_it_says_whom_is_no_error(tracefs, tmp_path):
    with recording(tracefs, tmp_path / "text") as run:
        os.close(run.commands)
        run.commands = -1
        run.thread.join(10)
    assert tracefs.made == []


def test_the_death_of_the_daemon_ends_it_and_nothing_is_left(tracefs, tmp_path):
    with recording(tracefs, tmp_path / "text", 42) as run:
        assert run.answer() == {"state": "on"}
        run.write(LINES)
        os.close(run.answers)
        os.close(run.commands)
        run.answers = run.commands = -1
    assert b"kvm_exit" in (tmp_path / "text").read_bytes()


def test_a_pipe_of_the_kernel_that_fails_ends_it_in_words(tracefs, tmp_path, monkeypatch):
    monkeypatch.setattr(tracefs, "furnish", lambda own, furnish=tracefs.furnish: furnish_with_directory(own, furnish))
    with recording(tracefs, tmp_path / "text", 42) as run:
        assert run.answer() == {"state": "on"}
        over = run.answer()
        assert (over["state"], over["why"]) == ("over", "trace_pipe: Is a directory")


def furnish_with_directory(own: Path, furnish: Any) -> None:
    """A trace_pipe that opens and cannot be read."""
    furnish(own)
    (own / "trace_pipe").unlink()
    os.mkdir(own / "trace_pipe")


def test_a_daemon_that_does_not_listen_gets_its_counts_together_when_it_does(tracefs, tmp_path, monkeypatch):
    monkeypatch.setattr(run_recorder, "TELL_S", 0.0)
    with recording(tracefs, tmp_path / "text", 42) as run:
        assert run.answer() == {"state": "on"}
        fcntl.fcntl(run.answers, fcntl.F_SETPIPE_SZ, 4096)
        for number in range(100, 300):
            run.write(LINES.replace(b"-42", f"-{number}".encode()))
        told = run.end()
    assert sum(answer["count"][3] for answer in told[:-1]) == 600


def test_as_a_process_it_says_why_it_cannot_and_ends(tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "-m", "asid.trace.run_recorder", str(tmp_path), str(tmp_path / "text")]
    done = subprocess.run(command, input=b"42\n", capture_output=True, timeout=30)
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "off"
    assert list(tmp_path.iterdir()) == []


def test_where_it_is_looked_for_can_be_named(monkeypatch, tmp_path):
    from asid.trace.record import PLACES, VARIABLE, places

    monkeypatch.delenv(VARIABLE, raising=False)
    assert places() == PLACES
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert places() == (tmp_path,)


def test_threads_with_other_numbers_for_the_kernel_are_not_recorded(monkeypatch):
    from asid.trace import record

    monkeypatch.setattr(record, "FIRST_PIDS", "pid:[1]")
    with pytest.raises(AsidError, match="a pid namespace of its own"):
        record.check_thread_numbers()
