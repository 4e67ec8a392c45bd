"""asid doctor --calibrate: what is measured, what is said where nothing is, and that nothing waits for ever."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from asid.calibrate import calibration, probes
from asid.calibrate.calibration import CONTEXT, ROWS, UNMEASURED, Measured, Pair, ask, calibrate, costs_text, pair_of
from asid.calibrate.kvm_guest import NOTHING, Guest, Unexpected
from asid.calibrate.machine_code import GETPID, READ, WRITE, Loops, Word
from asid.calibrate.probes import PROBES, batches, quartile
from asid.commands import invoke
from asid.config_costs import COST_MAX_NS, read_costs
from asid.errors import EXIT_USAGE
from asid.guest import kvm_api
from asid.guest.kvm_api import DEVICE
from asid.sim.costs import BY_NAME

SMT2 = str(Path(__file__).parent.parent.parent / "configs/smt2.toml")
ALONE = Pair(0, None, "CPU 0 alone")
on_kvm = pytest.mark.skipif(not os.access(DEVICE, os.R_OK | os.W_OK), reason="no /dev/kvm that we may open")


def nobody(*_: object) -> None:
    """Nobody watches."""


# --- what the figures become ---------------------------------------------------------------------------------


def test_siblings_are_taken_before_others_and_one_cpu_alone_before_none():
    of_smt = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}
    assert pair_of([1, 0, 4, 5], of_smt.__getitem__)[:2] == (0, 4)
    assert pair_of([0, 1, 5], of_smt.__getitem__)[:2] == (1, 5), "the sibling of 0 is not ours"
    apart = pair_of([2, 3], str)
    assert apart[:2] == (2, 3)
    assert "no siblings" in apart.words
    assert pair_of([7], str)[:2] == (7, None)


@pytest.mark.parametrize(("ns", "word"), [(169, "below"), (170, "within"), (340, "within"), (340.1, "above")])
def test_a_figure_is_within_its_row_below_or_above(ns, word):
    assert Measured("vm_exit", ns, ns, "").word == word


def test_what_was_not_measured_is_nowhere():
    assert Measured("nmi", None, None, "why").word == Measured("system_call", 90.0, 90.0, "").word == ""


def test_the_table_of_costs_that_comes_of_it_is_one(tmp_path):
    found = [
        Measured("vm_exit", 0.3, 1.0, "quick"), Measured("message", 66.6, 70.0, "a # b"),
        Measured("nmi", None, None, "why"), Measured("schedule", COST_MAX_NS + 1, 0, ""),
        Measured("system_call", 90.0, 90.0, ""),
    ]  # fmt: skip
    (tmp_path / "costs.toml").write_text(costs_text(found, "here"))
    assert read_costs(tmp_path / "costs.toml") == {"vm_exit": "1ns", "message": "67ns"}
    assert "# nmi: not measured: why" in costs_text(found, "here")


def test_every_row_is_measured_or_says_why_not(monkeypatch):
    monkeypatch.setattr(calibration, "ask", lambda *_: {"samples": [4.0, 8.0, 2.0, 6.0], "notes": ["a note"]})
    found = {each.name: each for each in calibrate(nobody, ALONE)}
    assert found.keys() == BY_NAME.keys() | CONTEXT.keys()
    assert (found["message"].ns, found["message"].median_ns) == (4.0, 6.0)
    assert found["vm_exit"].ns == found["vm_entry"].ns == 2.0, "half each"
    assert found["message"].how.endswith("; a note")
    assert all(found[name].ns is None and found[name].how for name in UNMEASURED)
    assert all(found[name].ns for name in ROWS)


def test_a_figure_below_that_of_its_own_measuring_is_none(monkeypatch):
    monkeypatch.setattr(calibration, "ask", lambda *_: {"samples": [-3.0], "notes": []})
    assert all(each.ns is None for each in calibrate(nobody, ALONE))


# --- what cannot be measured -----------------------------------------------------------------------------------


def test_a_probe_without_an_end_is_killed_at_its_deadline():
    begun = time.monotonic()
    assert ask("schedule", ALONE, 0.001) == {"refused": "no figure within 0.001 s"}
    assert time.monotonic() - begun < 10


def test_one_cpu_has_nobody_to_write_to():
    assert ask("message", ALONE, 1.0) == ask("ipi", ALONE, 1.0) == {"refused": "it takes two CPUs"}


def test_without_dev_kvm_the_rest_is_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(calibration.os, "access", lambda *_: False)
    monkeypatch.setattr(calibration.subprocess, "Popen", lambda words, **_: asked.append(words[-3]) or Ended())
    found = {each.name: each for each in calibrate(nobody, Pair(0, 1, ""))}
    assert set(asked) == set(PROBES) - {"vm_exit", "cr3_write", "user_exit"}
    assert "/dev/kvm is " in found["vm_exit"].how
    assert found["vm_exit"].ns is None
    assert found["message"].ns == 5.0


class Ended:
    """A probe that has said its figures."""

    returncode = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def communicate(self, timeout):
        return json.dumps({"samples": [5.0], "notes": []}), ""


def test_a_probe_that_breaks_says_its_last_words(monkeypatch):
    monkeypatch.setattr(Ended, "returncode", 1)
    monkeypatch.setattr(Ended, "communicate", lambda *_, **__: ("", "Traceback ...\nOSError: no such thing\n"))
    monkeypatch.setattr(calibration.subprocess, "Popen", lambda *_, **__: Ended())
    assert ask("system_call", ALONE, 1.0) == {"refused": "the probe ended with 1: OSError: no such thing"}


def test_o_without_calibrate_is_refused(capsys, tmp_path):
    assert invoke(["doctor", "-o", str(tmp_path / "costs.toml")]) == EXIT_USAGE
    assert "--calibrate" in capsys.readouterr().err


# --- the loops, and the guest ----------------------------------------------------------------------------------


def test_the_loops_do_what_is_said_of_them():
    loops, word, stop = Loops(), Word(), Word()
    assert loops.call(0, 0, 0, 3, GETPID) == os.getpid()
    other = threading.Thread(target=loops.take_turns, args=(word.address, 1_001, 1))
    other.start()
    loops.take_turns(word.address, 1_001, 0)
    other.join()
    assert word.value == 0, "the last turn is that of 1, which makes it 0"
    (far_read, write), (read, far_write) = os.pipe(), os.pipe()
    os.write(far_write, b"abc")
    loops.pass_on(write, stop.address, 1, 3, read, WRITE)
    assert os.read(far_read, 10) == b"\0ab", "each byte that came is what goes out next"
    stop.value = 0
    os.write(far_write, b"x")
    loops.pass_on(read, stop.address, 1, 1, write, READ)
    assert os.read(far_read, 10) == b"x"
    for fd in (far_read, write, read, far_write):
        os.close(fd)
    counter = Word()
    stop.value = 1
    loops.count_until(counter.address, stop.address)
    assert counter.value == 1


def test_a_batch_is_as_long_as_its_iterations_are_short():
    counts = []
    found = batches(lambda count: counts.append(count) or count * 1_000)
    assert counts[-1] == 2_000
    assert set(found) == {1_000.0}
    assert quartile([9.0, 1.0, 5.0, 7.0]) == 5.0


def test_a_probe_whose_kvm_makes_no_vm_says_so(monkeypatch, capsys):
    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(kvm_api, "open_device", busy)
    before = set(os.listdir("/proc/self/fd"))
    allowed = os.sched_getaffinity(0)
    try:
        probes.main("vm_exit", str(min(allowed)), "-1")
    finally:
        os.sched_setaffinity(0, allowed)
    assert json.loads(capsys.readouterr().out) == {"refused": "/dev/kvm: making a VM fails: Device or resource busy"}
    assert set(os.listdir("/proc/self/fd")) == before


@on_kvm
def test_a_guest_comes_to_its_out_and_says_what_else_it_did():
    guest = Guest(ring=3)
    guest.load(NOTHING, 1_000)
    assert guest.run() > 0
    assert guest.run() > 0, "it begins again"
    guest.load(bytes.fromhex("0f0b"), 1)  # ud2, and no table of handlers
    with pytest.raises(Unexpected):
        guest.run()
    guest.close()


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_this_host_is_measured_and_its_costs_are_taken(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    costs = tmp_path / "here.toml"
    assert invoke(["doctor", "--calibrate", "-o", str(costs), "--json"]) == 0
    measured = {each["name"]: each for each in json.loads(capsys.readouterr().out)["measured"]}
    assert set(measured) == BY_NAME.keys() | CONTEXT.keys()
    assert all(each["how"] for each in measured.values())
    assert 10 < measured["system_call"]["ns"] < 100_000
    assert 100 < measured["schedule"]["ns"] < 10_000_000
    rows = read_costs(costs)
    assert "schedule" in rows
    args = ["run", SMT2, "--engine", "sim", "--duration", "20ms", "--costs", str(costs), "--json"]
    assert invoke(args) == 0
    kept = json.loads(capsys.readouterr().out)["run_dir"]
    assert json.loads((Path(kept) / "config.resolved.json").read_text())["costs"]["schedule"] == rows["schedule"]
