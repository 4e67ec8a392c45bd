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


def test_a_storm_asks_for_its_number_at_instants_of_each_hyperthreads_own():
    storm = load("nmi_storm")
    asked = []

    class Recorder:
        def call(self, op, args=None, **_):
            return {"hts": [{"core": 0, "ht": n} for n in range(4)]}

        def status(self):
            return {"state": "ready"}

        def inject(self, what, on, /, **args):
            asked.append((what, on, args["count"], args.get("rate_hz"), args.get("gaps"), args.get("seed")))
            job = f"j{len(asked)}" if args["count"] > 1 else ""
            return storm.asid.client.Reply({"job": job, "handled": 1, "merged": 0, "lost": 0}, 1, 1)

        def wait_job(self, job, **_):
            count = asked[int(job[1:]) - 1][2]
            return {"result": {"handled": count - 1, "merged": 1, "lost": 0}}

    args = storm.argparse.Namespace(nmis=4001, mces=3, rate=400, target="c0", seed=7, broadcast=False)
    blown = storm.Storm(Recorder(), args)
    blown.blow()
    nmis, mces = [row for row in asked if row[0] == "nmi"], [row for row in asked if row[0] == "mce"]
    assert [row[1:4] for row in nmis] == [
        ("c0h0", 1001, 100),
        ("c0h1", 1000, 100),
        ("c0h2", 1000, 100),
        ("c0h3", 1000, 100),
    ]
    assert {row[4] for row in nmis} == {"random"} and len({row[5] for row in nmis}) == 4
    assert [row[1:] for row in mces] == [(f"c0h{n}", 1, None, None, None) for n in range(3)], "one has no pace"
    assert blown.counts == {
        "nmi": {"handled": 3997, "merged": 4, "lost": 0},
        "mce": {"handled": 3, "merged": 0, "lost": 0},
    }


def test_percentiles_of_a_storm_are_read_off_a_histogram():
    storm = load("nmi_storm")
    assert storm.percentiles_of([]) == storm.percentiles_of([[40, 0]]) == {"count": 0}
    found = storm.percentiles_of([[48, 1], [40, 98], [44, 1]])  # from 4,096, 1,024 and 2,048 ns on
    assert found == {"count": 100, "p50_ns": 1_117, "p99_ns": 2_233, "max_ns": 4_871}
    exposure = {"count": 1200, "p50_ns": 1_500, "p99_ns": 20_000, "max_ns": 3_000_000}
    counts = storm.Counter(handled=900, merged=100, lost=0)
    assert storm.line_of("ack", "nmi", counts, exposure).split() == (
        ["ack", "nmi", "1,000", "900", "100", "0", "1,200", "1.5", "20.0", "3,000.0"]
    )
    assert storm.line_of("send", "send", None, {"count": 0}).split() == ["send", "send", "0", "-", "-", "-"]
    assert storm.line_of("ack", "mce", counts, None).split() == ["ack", "mce", "1,000", "900", "100", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--mces", "5"], ["--kicks", "ack"], ["-C", "x.toml"], ["--nmis", "-1"]])
def test_half_a_storm_is_refused(options):
    path = next(path for path in CLIENTS if path.stem == "nmi_storm")
    done = subprocess.run(
        [sys.executable, str(path), *options], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr


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


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("nmi_storm", ["c0h1", "-d", "nan"], "argument -d/--duration: 'nan' is no time: must be seconds above 0"),
        ("nmi_storm", ["--nmis", "9", "--kicks", "ack,bogus"], "'bogus' is no kick: must be some of ack,send,"),
        ("inject_exits", ["c0h1", "-t", "nan"], "argument -t/--timeout: 'nan' is no time"),
        ("inject_nmis", ["c0h1", "-t", "-1"], "argument -t/--timeout: '-1' is no time"),
        ("inject_mces", ["c0h1", "-t", "inf"], "argument -t/--timeout: 'inf' is no time"),
        ("soak", ["-d", "-1"], "argument -d/--duration: '-1' is no time"),
        ("watcher", ["nan", "1"], "argument interval: 'nan' is no time"),
        ("watcher", ["1", "--", "-1"], "argument count: -1 is no count"),
    ],
)
def test_what_no_client_can_do_is_refused_before_it_begins(monkeypatch, capsys, name, args, says):
    client = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
    with pytest.raises(SystemExit) as ended:
        client.parse()
    assert ended.value.code == 2 and says in capsys.readouterr().err
