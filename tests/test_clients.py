"""The scripts of clients/: one job each, standing on asid.client alone, with examples in --help."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = sorted((Path(__file__).parent.parent / "clients").glob("*.py"))
NAMES = [path.stem for path in CLIENTS]


def load(name):
    path = next(path for path in CLIENTS if path.stem == name)
    spec = importlib.util.spec_from_file_location(f"client_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module


def test_they_are_all_here():
    assert NAMES == ["inject_exits", "inject_mces", "inject_nmis", "nmi_storm", "soak", "watcher"]


@pytest.mark.parametrize("path", CLIENTS, ids=NAMES)
def test_a_client_imports_asid_client_and_the_standard_library_alone(path):
    for name in imports_of(ast.parse(path.read_text())):
        assert name == "asid.client" or name.partition(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", CLIENTS, ids=NAMES)
def test_a_client_says_what_it_does_how_and_at_what_cost(path):
    text = path.read_text()
    head = text[: text.index('"""')]
    assert head.startswith("#!/usr/bin/env python3\n")
    assert f"# {path.stem}  " in head
    assert "# USAGE: " + path.stem in head
    assert "# OVERHEAD: " in head
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", CLIENTS, ids=NAMES)
def test_a_client_neither_sleeps_nor_waits_for_ever(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "sleep"


@pytest.mark.slow
@pytest.mark.parametrize("path", CLIENTS, ids=NAMES)
def test_help_has_examples(path):
    done = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert f"./{path.name}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inject_nmis", "watcher", "soak"])
def test_without_a_daemon_the_error_says_what_to_do(name, tmp_path):
    path = next(path for path in CLIENTS if path.stem == name)
    command = [sys.executable, str(path), *(["c0"] if name.startswith("inject") else [])]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "ASID_INSTANCE": "nobody"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment,
    )
    assert done.returncode == 7
    assert "NotRunning: no daemon runs as instance 'nobody'" in done.stderr
    assert "hint: asid up" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- the storm's arithmetic


def mode(storm, ts, ht, old, new, via=""):
    return storm.asid.client.Event("e", ts, 1, ts, "ht.mode", 0, ht, 0, 0, {"old": old, "new": new, "via": via})


def test_exposure_is_the_overlap_of_host_by_nmi_with_a_sibling_in_guest():
    storm = load("nmi_storm")
    events = [
        mode(storm, 100, 1, "ISOLATED", "GUEST"),
        mode(storm, 200, 0, "GUEST", "HOST", "nmi"),
        mode(storm, 230, 1, "GUEST", "PARKED"),
        mode(storm, 300, 0, "HOST", "ISOLATED"),
        mode(storm, 400, 0, "ISOLATED", "HOST", "grant"),
        mode(storm, 410, 1, "PARKED", "GUEST"),
        mode(storm, 420, 0, "HOST", "PARKED"),
    ]
    assert storm.exposures_ns(reversed(events), {}) == [30]
    assert storm.exposures_ns(events, {(0, 2): "GUEST", (1, 0): "GUEST"}) == [30, 100], "a third sibling all along"
    assert storm.exposures_ns([], {(0, 0): "GUEST"}) == []


def test_a_histogram_has_power_of_two_buckets():
    storm = load("nmi_storm")
    text = storm.histogram([0, 1, 2, 3, 5, 5], "usecs")
    assert "0 -> 1          : 2        |****************************************|" in text
    assert "2 -> 3          : 2" in text and "4 -> 7          : 2" in text
    assert "p50 3.0 us, p99 9.0 us, max 9.0 us" in storm.summary([1_000, 3_000, 9_000], 1_000, "usecs")
    assert storm.summary([], 1_000, "usecs") == "no sibling was in guest beside an NMI"


def test_the_watcher_counts_by_what_an_event_says():
    watcher = load("watcher")
    counts = watcher.Counter()
    event = watcher.asid.client.Event
    for kind, data in (("exit", {"n": 7, "full": False}), ("exit", {"n": 1, "full": True}), ("intr", {"what": "nmi"}),
                       ("gate.kick", {}), ("death", {})):  # fmt: skip
        watcher.tally(counts, event("e", 1, 1, 1, kind, 0, 0, 0, 0, data))
    assert dict(counts) == {"exits": 8, "full": 1, "nmis": 1, "kicks": 1, "grave": 1}


def test_the_same_seed_asks_for_the_same():
    soak = load("soak")

    class Recorder:
        def __init__(self):
            self.asked = []

        def call(self, op, args=None, **_):
            self.asked.append((op, args))
            return type("R", (), {"ret": {"hts": [{"core": 0, "ht": n} for n in range(2)]}})()

        def inject(self, kind, target, **args):
            self.asked.append((kind, target, args))
            return {"accepted": 1, "ids": [1]}

    asked = []
    for _ in range(2):
        recorder = Recorder()
        run = soak.Soak(recorder, 7, kills=True)
        for _ in range(300):
            run.step()
        asked.append(recorder.asked)
    assert asked[0] == asked[1]
    assert set(run.counts) == {name for name, _ in soak.ACTIONS}
