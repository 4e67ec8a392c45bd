"""The verbs that talk to a daemon, run in this process against a control server in a thread."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from asid.commands import invoke
from asid.commands.inject import arguments
from asid.commands.inject import render as inject_render
from asid.commands.status import render as status_render
from asid.commands.watch import render as watch_render
from asid.errors import ConfigError
from asid.live.subscriber import Event

STATUS = {
    "state": "ready",
    "name": "tiny",
    "policy": "asi",
    "kick": "ack",
    "seed": 7,
    "started_ns": 0,
    "run_dir": "/runs/x",
    "cores": [],
    "counters": {"malformed": 3},
    "warnings": ["few CPUs"],
}
HTS = [{"core": 0, "ht": 1, "mode": "GUEST", "vm": 1, "vcpu": 0, "pid": 99, "inc": 2, "exits": 12_345}]


@pytest.fixture
def asid(server, monkeypatch, capsys):
    """Run one command line; return (exit code, stdout, stderr)."""
    machine = server.desk.machine
    rets = {
        "status.get": STATUS,
        "ht.list": {"hts": HTS},
        "policy.list": {"policies": [{"name": "asi"}, {"name": "none"}], "current": "asi", "kick": "ack"},
    }
    old = machine.query
    machine.query = lambda op, args: rets[op] if op in rets else old(op, args)
    monkeypatch.setenv("ASID_INSTANCE", "t")

    def run(*line):
        code = invoke(list(line))
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_status_says_what_is_and_checks_what_should_be(asid):
    code, out, _ = asid("status")
    assert code == 0
    for text in ("t: ready", "policy asi, kick ack, seed 7", "warning: few CPUs", "12,345", "vm1", "lost: malformed 3"):
        assert text in out
    assert asid("status", "--expect", "healthy")[0] == 0
    STATUS["state"] = "degraded"
    try:
        assert asid("status", "--expect", "ready")[0] == 0
        code, _, err = asid("status", "--expect", "healthy")
        assert (code, "expected healthy, it is degraded" in err) == (1, True)
    finally:
        STATUS["state"] = "ready"


def test_every_answer_is_one_json_document(asid):
    for line in (["status"], ["ls"], ["gate", "show"], ["policy", "list"], ["policy", "show"], ["ht", "ls"],
                 ["inject", "nmi", "c0h1"], ["policy", "set", "none"], ["ht", "unplug", "c0h1"]):  # fmt: skip
        code, out, err = asid(*line, "--json")
        assert code == 0, (line, out, err)
        document = json.loads(out)
        assert document["ok"] is True and document["asid"] and document["schema"]


def test_a_hold_and_its_refusal_in_the_words_of_the_manual(asid, server):
    code, out, _ = asid("gate", "hold", "c0", "--ttl", "30s")
    assert code == 0 and out.startswith("c0 held by ")
    server.do(lambda s: s.desk.control.request(b"x", [b"ASID1", b""], s.desk.machine.now, False))
    for hold in server.desk.control.holds().values():
        hold.by = "top@pts/3"
    code, _, err = asid("inject", "nmi", "c0h1")
    assert code == 10
    assert re.search(r"asid: Busy: inject\.nmi: gate of c0 is held by client 'top@pts/3' since \d+\.\d s", err), err
    assert "hint: asid gate release c0 --force" in err
    assert asid("gate", "release", "c0")[0] == 10
    assert asid("gate", "release", "c0", "--force")[0] == 0


def test_an_error_in_json_has_its_class_and_whether_it_was_applied(asid):
    code, out, _ = asid("inject", "nmi", "c9", "--json")
    error = json.loads(out)["error"]
    assert (code, error["class"], error["applied"], error["exit"]) == (2, "NoSuchObject", "no", 2)


def test_inject_maps_its_options(asid, server):
    code, out, _ = asid("inject", "exit", "c0h1", "--reason", "cpuid", "--count", "5")
    assert (code, out) == (0, "exit c0h1: accepted 1 (seq 42)\n")
    op, args, _, _ = server.desk.machine.begun[-1]
    assert (op, args.reason, args.count, args.rate_hz, args.wait) == ("inject.exit", "CPUID", 5, 0, False)
    code, out, _ = asid("inject", "nmi", "c0h1", "--count", "9", "--rate", "500/s")
    assert code == 0 and out == "nmi c0h1: job j1 has begun\n"
    assert server.desk.machine.begun[-1][1].rate_hz == 500 and server.desk.machine.begun[-1][1].gaps == "even"
    asid("inject", "nmi", "c0h1", "--count", "9", "--rate", "500/s", "--random", "3")
    assert (server.desk.machine.begun[-1][1].gaps, server.desk.machine.begun[-1][1].seed) == ("random", 3)
    asid("inject", "stall", "c0h1", "--for", "200ms")
    assert server.desk.machine.begun[-1][1].for_ms == 200


@pytest.mark.parametrize(
    "line",
    [
        ("inject", "nmi", "c0h1", "--reason", "CPUID"),
        ("inject", "kill", "c0h1", "--count", "2"),
        ("inject", "exit", "c0h1", "--for", "1s"),
        ("inject", "exit", "c0h1", "--count", "0"),
        ("inject", "nmi", "c0h1", "--rate", "fast"),
        ("inject", "nmi", "c0h1", "--count", "9", "--random", "3"),
        ("inject", "explode", "c0h1"),
        ("gate", "hold", "c0", "--ttl", "soon"),
        ("policy", "set", "none", "--kick", "hard"),
        ("watch", "--since", "-1"),
    ],
)
def test_a_wrong_option_is_a_usage_error_and_reaches_no_daemon(asid, server, line):
    code, _, err = asid(*line)
    assert code == 2
    assert err.startswith("asid: ")
    assert server.desk.machine.begun == []


def test_a_daemon_that_is_not_there(asid):
    for line in (["status"], ["down"], ["inject", "nmi", "c0"], ["watch"]):
        code, _, err = asid(*line, "--instance", "nobody")
        assert code == 7, (line, err)
        assert "hint: " in err


def test_watch_since_a_record(asid, server):
    place = {"topic": "e.c000.h1.gate.kick.", "core": 0, "ht": 1}
    numbers = {"seq": 40, "tseq": 1, "ts": 1_500_000_000, "round": 8, "cause": 39}
    record = {**place, **numbers, "type": "gate.kick", "data": {"number": 3}}
    server.desk.machine.query = lambda op, args: {"events": [record], "next": 42, "complete": True, "head": 41}
    code, out, _ = asid("watch", "--since", "40", "--count", "1")
    assert code == 0
    assert out == "    1.500000       40 c0h1   gate.kick    number=3 round=8 cause=39\n"
    code, out, _ = asid("watch", "gate", "--since", "40", "--count", "1", "--json")
    assert json.loads(out)["data"] == {"number": 3}
    code, out, _ = asid("watch", "--for", "50ms")
    assert (code, out) == (0, "")


def test_up_refuses_a_configuration_that_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    assert invoke(["up", str(tmp_path / "none.toml"), "--detach"]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["up", "down", "status", "ls", "inject", "gate", "policy", "ht", "watch"])
def test_help_shows_examples(verb):
    from asid.commands import cli

    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0
    assert f"asid {verb}" in result.output.partition("Options:")[2]


def test_renderings():
    options = {"reason": None, "count": 1, "rate": None, "duration": None, "broadcast": True, "coordinator": False}
    assert arguments("mce", wait=True, **options) == {"wait": True, "count": 1, "scope": "broadcast"}
    with pytest.raises(ConfigError, match="--broadcast"):
        arguments("nmi", wait=True, **options)
    fatal = {**options, "broadcast": False, "local": True, "severity": "fatal"}
    assert arguments("mce", wait=False, **fatal) == {"wait": False, "count": 1, "scope": "local", "severity": "fatal"}
    with pytest.raises(ConfigError, match="--broadcast and --local"):
        arguments("mce", wait=True, **{**fatal, "broadcast": True})
    with pytest.raises(ConfigError, match="--severity"):
        arguments("nmi", wait=True, **{**fatal, "local": False})
    ret = {"accepted": 5, "handled": 3, "merged": 2, "lost": 0, "refused": 0, "job": ""}
    assert inject_render("nmi", "c0", ret, 9) == "nmi c0: accepted 5, handled 3, merged 2 (seq 9)"
    event = Event("y.gap.", 0, 0, 0, "gap", -1, -1, 0, 0, {"since": 1, "why": "x" * 100})
    assert watch_render(event, 5).endswith("why=" + "x" * 57 + "...")
    screen = status_render(
        {"instance": "t", "pid": 1, "status": {**STATUS, "counters": {}}, "hts": [], "gates": []}, 2 * 10**9
    )
    assert "up 2.0 s" in screen and "lost" not in screen
