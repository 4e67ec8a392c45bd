"""The daemon's end of the recording of KVM's events, with programs for its recorder that say what the test wants."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_rig import machine

from asid.config import load
from asid.core.record import Record, fault_of
from asid.errors import AsidError, HostUnsuitable, PermissionRefused
from asid.guest import check
from asid.live import kernel_events
from asid.live.kernel_events import NEW_SERVER, KernelEvents
from asid.live.node import Node

REAL = [{"name": "tenant", "on": ["c*"], "guest": {"source": "kvm", "program": "mix"}}]
SERVER = 77  # the fork server's pid

# Says that it records, counts an entry for each thread that it is told of, and ends with its commands.
RECORDS = """
import json, sys
say = lambda answer: print(json.dumps(answer), flush=True)
sys.stdin.readline()
say({"state": "on"})
for line in sys.stdin:
    say({"count": [int(line), "kvm_exit", "HLT", 5, 4, 3, 2000]})
say({"state": "over", "lost": 6, "bytes": 7, "cut": "", "why": ""})
"""
EARLY = """
import sys
print('{"state": "on"}\\n{"count": [501, "kvm_entry", "", 5]}\\n{"count": [77, "kvm_entry", "", 1]}', flush=True)
print('{"count": [501, "kvm_entry", "", 6]}', flush=True)
sys.stdin.read()
print('{"state": "over", "lost": 0, "bytes": 7, "cut": "", "why": ""}')
"""
REFUSES = """print('{"state": "off", "why": "not today"}')"""
MUTE = """import signal; signal.pause()"""
DEAF = """import signal; print('{"state": "on"}', flush=True); signal.pause()"""
DIES = """print('{"state": "on"}', flush=True)"""
BABBLES = """print('{"state": "on"}\\n{"count": 3}\\nnothing\\n[]\\n{}', flush=True); import sys; sys.stdin.read()"""


class Stream:
    """Keeps what is noted; what the journal would refuse is refused here."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.listeners: list[Callable[[Record], None]] = []

    def note(self, kind: str, data: dict[str, Any]) -> None:
        assert fault_of(Record(1, 1, 0, kind, -1, -1, 0, 0, data)) is None
        self.noted.append((kind, data))

    def born(self, pid: int, ht: int = 0, what: str = "ht") -> None:
        data = {"what": what, "pid": pid, "inc": 1}
        for listener in self.listeners:
            listener(Record(1, 1, 0, "spawn", 0, ht, 0, 0, data))

    def states(self) -> list[dict[str, Any]]:
        return [data for kind, data in self.noted if kind == "kvm.recording"]

    def counts(self) -> list[dict[str, Any]]:
        return [data for kind, data in self.noted if kind == "kvm.events"]


class Machine:
    """What the recording needs of a daemon."""

    def __init__(self, file, **config: Any) -> None:
        self.node, self.stream = Node(), Stream()
        loaded = load(machine(**{"vm": REAL, **config}))
        self.kernel = KernelEvents(loaded.config, self.node, self.stream, file)

    def begin(self) -> None:
        self.kernel.begin(lambda: SERVER)
        assert self.stream.noted == [], "run.begin comes first"
        self.kernel.begun()

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.node.turn(time.monotonic_ns() + 2_000_000)


@pytest.fixture
def recorded(tmp_path, monkeypatch) -> Iterator[Callable[..., Machine]]:
    """Make a machine whose recorder is this program, on a host with something like a tracefs."""
    (tmp_path / "tracing" / "events" / "kvm").mkdir(parents=True)
    monkeypatch.setenv("ASID_TRACEFS", str(tmp_path / "tracing"))
    monkeypatch.setattr(kernel_events, "check_thread_numbers", lambda where: None)
    monkeypatch.setattr(kernel_events.fork_server, "pid", lambda: SERVER)
    made = []

    def make(program: str, **config: Any) -> Machine:
        monkeypatch.setattr(kernel_events, "COMMAND", (sys.executable, "-c", program))
        made.append(Machine(tmp_path / "kvm-events.txt", **config))
        return made[-1]

    yield make
    for machine_ in made:
        machine_.kernel.close()


def test_what_it_counts_is_in_the_journal_by_hyperthread(recorded):
    rig = recorded(RECORDS)
    rig.begin()
    rig.stream.born(501, ht=1)
    rig.stream.born(502, what="coordinator")
    rig.until(rig.stream.counts)
    rig.until(rig.kernel.over)
    assert rig.stream.counts() == [
        {"of": "c0h1", "pid": 501, "event": "kvm_exit", "reason": "HLT", "n": 5, "ended": 4, "kept": 3, "sum_ns": 2000}
    ]
    assert rig.stream.states() == [{"state": "on"}, {"state": "over", "lost": 6, "bytes": 7}]


def test_what_it_counts_before_a_birth_is_numbered_is_of_that_hyperthread_all_the_same(recorded):
    rig = recorded(EARLY)
    rig.begin()
    rig.until(lambda: sum(count.n for count in rig.kernel._unplaced.values()) == 12)
    assert rig.stream.noted == [("kvm.recording", {"state": "on"})]
    rig.stream.born(501, ht=1)
    assert rig.stream.counts() == [{"of": "c0h1", "pid": 501, "event": "kvm_entry", "reason": "", "n": 11}]
    rig.until(rig.kernel.over)
    assert [data["of"] for data in rig.stream.counts()] == ["c0h1", ""], "of nobody else's nothing is dropped"
    assert rig.stream.noted[-1][1]["state"] == "over"


def test_whoever_is_born_again_is_told_to_it_too(recorded):
    rig = recorded(RECORDS)
    rig.begin()
    rig.stream.born(501)
    rig.stream.born(601)
    rig.until(lambda: len(rig.stream.counts()) == 2)
    assert [(data["of"], data["pid"]) for data in rig.stream.counts()] == [("c0h0", 501), ("c0h0", 601)]


def test_a_fork_server_that_is_replaced_is_followed_and_said(recorded, monkeypatch):
    rig = recorded(RECORDS)
    rig.begin()
    monkeypatch.setattr(kernel_events.fork_server, "pid", lambda: 88)
    rig.stream.born(501)
    rig.stream.born(502)
    rig.until(lambda: len(rig.stream.counts()) == 2)
    rig.until(rig.kernel.over)
    assert [(data["of"], data["pid"]) for data in rig.stream.counts()] == [("c0h0", 501), ("c0h0", 502), ("", 88)]
    assert rig.stream.states()[:2] == [{"state": "on"}, {"state": "on", "why": NEW_SERVER}]


@pytest.mark.parametrize("config", [{"vm": []}, {"journal": {"kvm_events": "off"}}])
def test_a_machine_that_wants_none_does_not_even_look(recorded, monkeypatch, config):
    def looked(*_):
        raise AssertionError("somebody looked for a tracefs")

    rig = recorded(RECORDS, **config)
    monkeypatch.setattr(kernel_events, "find_tracefs", looked)
    monkeypatch.setattr(kernel_events, "check_thread_numbers", looked)
    rig.kernel.begin(looked)
    assert rig.kernel.over()
    assert (rig.stream.noted, rig.stream.listeners) == ([], [])


def test_without_a_tracefs_the_journal_says_why_and_the_machine_starts(recorded, monkeypatch, tmp_path):
    monkeypatch.setenv("ASID_TRACEFS", str(tmp_path / "nowhere"))
    rig = recorded(RECORDS)
    rig.begin()
    why = f"no tracefs is mounted; looked at {tmp_path / 'nowhere'}"
    assert rig.stream.noted == [("kvm.recording", {"state": "off", "why": why})]
    assert rig.kernel.over()


def test_a_recorder_that_refuses_costs_nothing_but_a_word(recorded):
    rig = recorded(REFUSES)
    rig.begin()
    rig.stream.born(501)
    rig.until(rig.kernel.over)
    assert rig.stream.noted == [("kvm.recording", {"state": "off", "why": "not today"})]


def test_a_recorder_that_cannot_be_started_costs_nothing_but_a_word(recorded, monkeypatch):
    rig = recorded(RECORDS)
    monkeypatch.setattr(kernel_events, "COMMAND", ("/nowhere/python",))
    rig.begin()
    assert rig.stream.states() == [{"state": "off", "why": "its recorder cannot be started: No such file or directory"}]
    assert rig.kernel.over()


@pytest.mark.parametrize("program", [REFUSES, MUTE])
def test_a_configuration_that_insists_does_not_start_without(recorded, monkeypatch, program):
    monkeypatch.setattr(kernel_events, "START_NS", 300_000_000)
    rig = recorded(program, journal={"kvm_events": "on"})
    with pytest.raises(HostUnsuitable, match=r'journal\.kvm_events = "on"'):
        rig.begin()


def test_a_recorder_that_is_slow_to_start_is_not_waited_for_long_and_what_is_missing_is_said(recorded, monkeypatch):
    monkeypatch.setattr(kernel_events, "START_NS", 1)
    rig = recorded(RECORDS)
    rig.begin()
    assert rig.stream.noted == []
    rig.until(rig.stream.states)  # before any birth is numbered
    rig.stream.born(501)
    rig.until(rig.stream.counts)
    assert rig.stream.states() == [{"state": "on", "why": "late: some hyperthreads may have run before"}]


def test_a_recorder_that_dies_is_said_once_and_tracefs_is_cleared(recorded, monkeypatch):
    cleared = []
    monkeypatch.setattr(kernel_events, "clear_left", cleared.append)
    rig = recorded(DIES)
    rig.begin()
    rig.until(lambda: len(rig.stream.states()) == 2)
    rig.stream.born(501)  # nobody is there to be told
    rig.until(rig.kernel.over)
    rig.kernel.close()
    on, over = rig.stream.states()
    assert on == {"state": "on"}
    assert over["why"].startswith("its recorder was killed")
    assert len(cleared) == 1


def test_a_recorder_that_does_not_end_is_killed_and_the_run_ends(recorded, monkeypatch):
    cleared = []
    monkeypatch.setattr(kernel_events, "clear_left", cleared.append)
    monkeypatch.setattr(kernel_events, "END_NS", 20_000_000)
    rig = recorded(DEAF)
    rig.begin()
    process = rig.kernel._process
    assert not rig.kernel.over()
    rig.until(rig.kernel.over)
    rig.kernel.close()
    assert process.returncode == -9
    assert rig.stream.states()[-1]["why"].startswith("its recorder was killed")
    assert len(cleared) == 1


def test_a_machine_that_is_given_up_leaves_no_recorder(recorded):
    rig = recorded(DEAF)
    rig.begin()
    process = rig.kernel._process
    rig.kernel.close()
    rig.kernel.close()
    assert process.returncode == -9


def test_what_makes_no_sense_is_dropped(recorded):
    rig = recorded(BABBLES)
    rig.begin()
    rig.until(rig.kernel.over)
    assert [data["state"] for data in rig.stream.states()] == ["on", "over"]
    assert rig.stream.counts() == []


# --- before anything is started ----------------------------------------------------------------------------


def refused_on(monkeypatch: pytest.MonkeyPatch) -> AsidError:
    monkeypatch.setattr(check, "check_kvm", lambda program: False)
    with pytest.raises(AsidError) as refused:
        check.check_real_guests(load(machine(vm=REAL, journal={"kvm_events": "on"})))
    assert refused.value.what == 'journal.kvm_events = "on"'
    return refused.value


def test_insisting_is_refused_before_the_start_where_there_is_no_tracefs(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "check_thread_numbers", lambda: None)
    monkeypatch.setenv("ASID_TRACEFS", str(tmp_path))
    refused = refused_on(monkeypatch)
    assert isinstance(refused, HostUnsuitable)
    assert "no tracefs is mounted" in str(refused)
    assert "ASID_TRACEFS" in refused.hint and "--tracefs" not in refused.hint, "that is asid trace record's"


def test_insisting_is_a_matter_of_permission_where_tracefs_is_not_ours(monkeypatch):
    def closed(places, where):
        raise PermissionRefused("/sys/kernel/tracing may not be read", hint="sudo")

    monkeypatch.setattr(check, "check_thread_numbers", lambda: None)
    monkeypatch.setattr(check, "find_tracefs", closed)
    assert isinstance(refused_on(monkeypatch), PermissionRefused)


def test_nobody_else_looks_for_a_tracefs(monkeypatch):
    def looked(places, where):
        raise AssertionError("somebody looked for a tracefs")

    monkeypatch.setattr(check, "check_kvm", lambda program: False)
    monkeypatch.setattr(check, "find_tracefs", looked)
    for config in (machine(vm=REAL), machine(vm=REAL, journal={"kvm_events": "off"}), machine(table="")):
        check.check_real_guests(load(config))
