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
from asid.errors import BadArgument, ConfigError, Conflict
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


# --- address spaces of the machine that runs


SPACE = {
    "vm": 1, "name": "tenant", "changing": False,
    "objects": [{"object": "buses", "whose": "this VM's", "step": "live", "level": "PTE", "split": True, "ranges": 1,
                 "asked": 24_008, "slack": 568}],
    "totals": {"mapped": 24_576, "asked": 24_008, "slack": 568, "secret": 0, "ranges": 1, "directories": 4,
               "generation": 2},
}  # fmt: skip


@pytest.fixture
def spaces(server):
    """What the machine says of its VMs' spaces: two of them."""
    other = {**SPACE, "vm": 2, "name": "noisy", "changing": True, "totals": {**SPACE["totals"], "generation": 0}}
    found = {"tenant": SPACE, "noisy": other}
    machine = server.desk.machine
    old = machine.query

    def query(op, args):
        if op == "vm.list":
            return {"vms": [{"vm": space["vm"], "name": name} for name, space in found.items()]}
        return {"spaces": [found[args.vm]]} if op == "space.get" else old(op, args)

    machine.query = query
    return found


def test_the_spaces_of_the_machine_that_runs(asid, spaces):
    code, out, _ = asid("space", "show")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "tenant: as mapped now, change 2"
    assert lines[2].split() == ["buses", "this", "VM's", "live", "PTE", "split", "1", "24,008", "B", "568", "B"]
    assert "noisy: as mapped now, as at the start; some hyperthreads do not have it yet" in lines
    assert lines[3].startswith("24,576 bytes mapped, 568 of them beside what was asked for, 0 of the host's")
    one = asid("space", "show", "--vm", "noisy")[1]
    assert one.startswith("noisy: ") and "tenant" not in one
    document = json.loads(asid("space", "show", "--json")[1])
    assert (document["schema"], document["instance"], document["vms"][0]) == ("space.show/1", "t", SPACE)


def test_a_machine_without_vms_has_no_space(asid):
    assert asid("space", "show")[:2] == (0, "t has no VM\n")


def test_mapping_and_unmapping_say_what_became_of_it(asid, server):
    code, out, err = asid("space", "unmap", "vm1", "buses")
    assert (code, err) == (0, "")
    assert out == (
        "a: unmapped buses: 4,096 bytes less within reach; of the host's or of other VMs 0 now, 16 before (seq 42)\n"
    )
    _, args, _, _ = server.desk.machine.begun[-1]
    assert (args.vm, args.objects) == ("vm1", ["buses"])
    line = ("space", "map", "vm1", "random pool", "buses", "--level", "PMD", "--no-split", "--allow-secrets")
    assert asid(*line)[0] == 0
    _, args, _, _ = server.desk.machine.begun[-1]
    assert args.objects == ["random pool", "buses"]
    assert (args.level, args.split, args.allow_secrets) == ("PMD", "no", True)
    assert asid("space", "map", "vm1", "buses")[0] == 0
    _, args, _, _ = server.desk.machine.begun[-1]
    assert (args.level, args.split, args.allow_secrets) == ("auto", "auto", False)


def test_who_takes_away_what_faults_need_is_warned(asid, server):
    server.desk.machine.ret = {
        "vm": 1, "name": "a", "generation": 1, "changed": ["x"], "mapped": [1, 1], "secret": [0, 0], "lacks": ["x"]
    }  # fmt: skip
    code, out, err = asid("space", "unmap", "vm1", "task_struct", "--json")
    assert code == 0 and json.loads(out)["lacks"] == ["x"]
    assert "the handler of an isolation fault misses x now" in err


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (Conflict("EBUSY: it is mapped", where="space.map: a, 'buses'", allowed="each once", hint="Unmap it."), 10),
        (BadArgument("secret to a VM: random pool", where="space.map: objects", hint="Leave it out."), 2),
    ],
)
def test_a_refused_mapping_is_told_with_the_way_out(asid, server, refusal, code):
    server.desk.machine.refusal = refusal
    found, _, err = asid("space", "map", "vm1", "buses")
    assert found == code and str(refusal) in err and f"hint: {refusal.hint}" in err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("space", "show", "--ranges"), "--ranges without CONFIG"),
        (("space", "show", "--mapping", "rfc"), "--mapping without CONFIG"),
        (("space", "show", "configs/smt2.toml", "--instance", "t"), "--instance with CONFIG"),
        (("space", "map", "vm1"), "missing argument 'OBJECT...'"),
        (("space", "map", "vm1", "buses", "--level", "PTX"), "PTX"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(asid, line, says):
    code, _, err = asid(*line)
    assert code == 2 and says in err and "hint: " in err
