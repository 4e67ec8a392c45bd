"""The command line: the tree of verbs, where output goes, how every kind of error ends, verbs that need no daemon."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import asid
from asid import errors
from asid.commands import NAMES, VERBS, cli, invoke
from asid.commands.session import Session, columns, instance_option
from asid.host import Finding, _kvm_events, findings

ROOT = Path(__file__).parent.parent
COMMANDS = ROOT / "asid" / "commands"
SUPPORT = {"__init__", "session", "space_live"}


@pytest.fixture
def run(capsys):
    """run("config", "show") -> code, out, err of one invocation in this process."""

    def once(*args: str) -> SimpleNamespace:
        code = invoke(list(args))
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out))

    return once


@pytest.fixture
def verb(monkeypatch):
    """Plant a verb made of one function in place of `ls`."""

    def plant(function):
        command = click.command()(click.pass_obj(function))
        monkeypatch.setitem(sys.modules, "asid.commands.ls", SimpleNamespace(command=command))

    return plant


def present() -> list[str]:
    return [name for name in NAMES if (COMMANDS / f"{name}.py").exists()]


# --- the tree


def test_every_module_of_commands_is_a_verb_of_the_list():
    modules = {path.stem for path in COMMANDS.glob("*.py")}
    assert modules - SUPPORT <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_every_verb_of_the_list_has_its_module():
    assert set(present()) == set(NAMES)


@pytest.mark.parametrize("name", present())
def test_every_verb_takes_json_and_explains_itself(name):
    def leaves(command: click.Command) -> list[click.Command]:
        if isinstance(command, click.Group):
            return [leaf for part in command.commands.values() for leaf in leaves(part)]
        return [command]

    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help
    for leaf in leaves(command):
        assert leaf.help, f"{name} {leaf.name} has no help"
        assert any("--json" in parameter.opts for parameter in leaf.params)


def test_help_lists_every_verb_under_its_heading(run):
    result = run("--help")
    assert result.code == 0
    for heading, verbs in VERBS:
        assert f"{heading}:" in result.out
        assert all(f"  {name} " in result.out for name, _ in verbs)


def test_the_list_names_every_part_of_a_verb():
    for name, what in (verb for _, verbs in VERBS for verb in verbs):
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            assert set(command.commands) <= set(re.findall(r"\w+", what)), name


def test_version(run):
    assert run("--version").out == f"asid {asid.__version__}\n"


# --- how things end


@pytest.mark.parametrize(
    ("args", "says", "hint"),
    [
        (("stauts",), "there is no verb 'stauts'", "Did you mean status?"),
        (("config", "shw"), "no such command 'shw'", "asid config --help"),
        (("config", "show", "--bad"), "no such option '--bad'", "asid config show --help"),
        (("config", "show", "a", "b"), "unexpected extra argument", "asid config show --help"),
        (("config", "show", "--set", "x"), "is not KEY=VALUE", "asid config show --help"),
        (("schema", "opps"), "'opps' is not one of", "asid schema --help"),
        (("schema", "run", "--markdown"), "--markdown is for", "asid schema --help"),
        (("runs", "rm"), "name the runs", "asid runs rm --help"),
    ],
)
def test_a_usage_error_says_what_was_allowed_and_ends_with_2(run, args, says, hint):
    result = run(*args)
    assert result.code == errors.EXIT_USAGE == 2
    assert result.out == ""
    assert result.err.startswith("asid: ") and says in result.err and f"hint: {hint}" in result.err

    failed = run("--json", *args)
    assert failed.code == 2
    document = failed.json()
    assert document["ok"] is False and document["asid"] == asid.__version__ and document["schema"] == "error/1"
    assert says in document["error"]["msg"] and document["error"]["exit"] == 2


def test_no_verb_shows_the_help_on_stderr(run):
    result = run()
    assert (result.code, result.out) == (2, "") and "First steps" in result.err


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (
            errors.Busy("gate of c0 is held", hint="asid gate release c0"),
            10,
            "asid: Busy: gate of c0 is held\nhint: asid gate",
        ),
        (errors.NotRunning("no daemon"), 7, "asid: NotRunning: no daemon"),
        (errors.NoAnswer("none in 5 s"), 8, "NoAnswer"),
        (errors.WireVersion("2 is not 1"), 9, "WireVersion"),
        (errors.PermissionRefused("not yours"), 4, "PermissionRefused"),
        (errors.HostUnsuitable("no memory"), 6, "HostUnsuitable"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (click.exceptions.Exit(3), 3, ""),
        (ZeroDivisionError("a / 0"), 70, "ZeroDivisionError: a / 0\nhint: Set ASID_DEBUG=1"),
        (SystemError("odd"), 70, "test_commands.py"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_verb_raises_decides_the_exit_code(run, verb, raised, code, says):
    def act(session: Session) -> None:
        raise raised

    verb(act)
    result = run("ls")
    assert result.code == code
    assert result.out == "" and says in result.err


def test_a_fault_of_ours_keeps_its_traceback_when_asked(verb, monkeypatch):
    def act(session: Session) -> None:
        raise ZeroDivisionError

    verb(act)
    monkeypatch.setenv("ASID_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        invoke(["ls"])


def test_an_error_in_json_has_its_five_parts_and_whether_it_happened(run, verb):
    def act(session: Session) -> None:
        raise errors.NoAnswer("none", where="ctl", state="5 s", allowed="one", hint="again", data={"op": "ping"})

    verb(act)
    error = run("ls", "--json").json()["error"]
    assert error == {
        "class": "NoAnswer", "msg": "ctl: none (5 s): must be one", "where": "ctl", "what": "none", "state": "5 s",
        "allowed": "one", "hint": "again", "data": {"op": "ping"}, "applied": "unknown", "retry": "now", "exit": 8,
    }  # fmt: skip


# --- the session


def test_an_answer_is_text_or_one_document_and_never_both(run, verb):
    def act(session: Session) -> None:
        session.note("talk")
        session.show({"n": 1}, lambda: "one\n")

    verb(act)
    plain, machine = run("ls"), run("ls", "--json")
    assert (plain.out, plain.err) == ("one\n", "talk\n")
    assert machine.json() == {"asid": asid.__version__, "schema": "ls/1", "ok": True, "n": 1}
    assert run("--json", "ls").json() == machine.json()
    assert list(machine.json()) == ["asid", "schema", "ok", "n"], "what tells a reader the shape comes first"


def test_a_stream_is_json_lines(run, verb):
    def act(session: Session) -> None:
        for n in range(2):
            session.line({"n": n}, str(n))

    verb(act)
    assert run("ls").out == "0\n1\n"
    assert [json.loads(line)["n"] for line in run("ls", "--json").out.splitlines()] == [0, 1]


def test_the_instance_comes_from_the_option_then_the_environment(run, monkeypatch):
    @click.command()
    @instance_option
    @click.pass_obj
    def command(session: Session) -> None:
        session.show({}, session.instance)

    monkeypatch.setitem(sys.modules, "asid.commands.ls", SimpleNamespace(command=command))
    monkeypatch.delenv("ASID_INSTANCE", raising=False)
    assert run("ls").out == "default\n"
    monkeypatch.setenv("ASID_INSTANCE", "fromenv")
    assert run("ls").out == "fromenv\n"
    assert run("ls", "--instance", "given").out == "given\n"


def test_colour_is_for_a_terminal_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Session().colour and "\x1b[" in Session().style("x", fg="red")
    assert not Session(as_json=True).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert Session().style("x", fg="red") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: False))
    assert not Session().colour


def test_a_table_is_aligned_without_trailing_blanks():
    assert columns(("A", "NUMBER"), [("long name", 1), ("b", 22)], right=(1,)) == (
        "A          NUMBER\nlong name       1\nb              22"
    )
    with pytest.raises(AssertionError, match="missing column"):
        columns(("A", "B"), [("a",)])


# --- config, schema, doctor


def test_config_show_prints_every_key_and_where_it_comes_from(run):
    path = str(ROOT / "configs" / "smt2.toml")
    result = run("config", "show", path, "--origin", "--set", "policy.name=none", "--set", "machine.smt=4")
    assert result.code == 0
    lines = {line.split()[0]: line for line in result.out.splitlines()}
    assert '"none"' in lines["policy.name"] and lines["policy.name"].endswith("command line")
    assert lines["machine.smt"].split() == ["machine.smt", "4", "command", "line"]
    assert lines["policy.turn"].endswith("default")
    assert f"{path}:" in lines["vm.0.on"]
    document = run("config", "show", path, "--json").json()
    assert document["config"]["name"] == "smt2" and "origin" not in document


def test_config_show_refuses_with_file_line_and_way_out(run, tmp_path):
    path = tmp_path / "smt3.toml"
    path.write_text("[machine]\nsmt = 3\n")
    result = run("config", "show", str(path))
    assert result.code == 2
    assert result.err == (
        f"asid: ConfigError: {path}:2: machine.smt = 3: must be 1, 2, 4 or 8 (SMT threads of one core)\nhint: Try 4.\n"
    )


@pytest.mark.parametrize("part", ["ops", "events", "config", "run"])
def test_every_schema_prints_as_json(run, part):
    printed = json.loads(run("schema", part).out)
    assert run("schema", part, "--json").json()["schemas"][part] == printed
    assert printed


@pytest.mark.parametrize(("part", "page"), [("config", "config.md"), ("ops", "protocol.md")])
def test_the_pages_of_the_manual_are_what_the_definitions_say(run, part, page):
    assert (ROOT / "docs" / page).read_text() == run("schema", part, "--markdown").out, "stale: run `make docs`"


def test_doctor_says_what_each_finding_means(run):
    result = run("doctor", "--json")
    document = result.json()
    assert result.code == (0 if document["ok"] else errors.EXIT_HOST_UNSUITABLE)
    found = {finding["what"]: finding for finding in document["findings"]}
    assert {"python", "msgpack", "cpus", "clocksource", "sockets", "socket path", "/dev/kvm"} <= set(found)
    assert all(finding["meaning"] and finding["level"] in ("good", "note", "bad") for finding in found.values())


def test_doctor_ends_with_6_when_asid_cannot_run(run, monkeypatch):
    monkeypatch.setattr("asid.host.findings", lambda: [Finding("bad", "msgpack", "1.0", "too old")])
    result = run("doctor")
    assert result.code == 6 and "unsuitable: msgpack" in result.out


def test_doctor_finds_old_libraries_and_directories_it_must_not_use(monkeypatch, tmp_path):
    monkeypatch.setattr("asid.host.version", lambda name: "1.1.9")
    open_to_all = tmp_path / "asid"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    found = {finding.what: finding for finding in findings()}
    assert found["msgpack"].level == "bad"
    assert found["sockets"].level == "bad" and "0755" in found["sockets"].value
    open_to_all.chmod(0o700)
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    again = {finding.what: finding for finding in findings()}
    assert again["sockets"].level == "good" and again["socket path"].level == "bad"


def test_doctor_says_whether_the_events_of_kvm_can_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr("asid.trace.record.check_thread_numbers", lambda where: None)
    monkeypatch.setenv("ASID_TRACEFS", str(tmp_path))
    assert (_kvm_events().level, _kvm_events().value) == ("note", "no tracefs is mounted")
    (tmp_path / "events" / "kvm").mkdir(parents=True)
    assert (_kvm_events().level, _kvm_events().value) == ("note", f"{tmp_path} makes no instances")
    (tmp_path / "instances").mkdir()
    assert (_kvm_events().level, _kvm_events().value) == ("good", str(tmp_path))


# --- runs


@pytest.fixture
def two_runs(monkeypatch, tmp_path):
    """Two finished runs that differ in policy and verdict, and `latest`."""
    from asid.live.rundir import create_run

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = []
    for policy, verdict in (("none", "FAIL"), ("asi", "PASS")):
        run = create_run(f"r-{policy}", config_text="", resolved={"policy": {"name": policy}}, seed=1)
        run.write_json(
            "verdict.json", {"verdict": verdict, "guarantees": {"G2": "held" if policy == "asi" else "broken"}}
        )
        run.end("stop")
        made.append(run)
    return made


def test_runs_ls_show_and_diff(run, two_runs):
    listed = run("runs", "ls", "--json").json()["runs"]
    assert [
        (row["policy"], row["verdict"], row["status"]) for row in sorted(listed, key=lambda row: row["policy"])
    ] == [
        ("asi", "PASS", "ended"),
        ("none", "FAIL", "ended"),
    ]
    assert len(run("runs", "ls", "--last", "1", "--json").json()["runs"]) == 1
    shown = run("runs", "show")
    assert two_runs[1].name in shown.out and "verdict  PASS" in shown.out and "G2   held" in shown.out
    assert run("runs", "show", "r-none", "--json").json()["verdict"]["verdict"] == "FAIL"
    differ = run("runs", "diff", "r-none", "latest", "--json")
    keys = {entry["key"] for entry in differ.json()["differences"]}
    assert differ.code == 1
    assert keys == {"config: policy.name", "verdict: verdict", "verdict: guarantees.G2"}
    assert run("runs", "diff", "latest", "latest").code == 0


def test_runs_rm_takes_what_was_named_and_nothing_else(run, two_runs, tmp_path):
    none, asi = two_runs
    assert run("runs", "rm", "r-none", "--dry-run").out == f"would remove {none.name}\n"
    assert none.path.exists()
    assert run("runs", "rm", "r-none").code == 0
    assert not none.path.exists() and asi.path.exists()
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    refused = run("runs", "rm", str(outside))
    assert refused.code == 2 and "is not a run of yours" in refused.err and outside.exists()
    asi.update_manifest(status="running")
    kept = run("runs", "rm", "--keep", "0")
    assert "its daemon is alive" in kept.err and asi.path.exists()
    asi.update_manifest(status="ended")
    assert run("runs", "rm", "--keep", "0").out == f"removed {asi.name}\n"
    assert not (asi.path.parent / "latest").is_symlink()
    assert "no run in" in run("runs", "ls").out


def test_a_damaged_run_is_listed_and_a_missing_one_is_an_error(run, two_runs):
    (two_runs[0].path / "manifest.json").write_text("{")
    rows = {row["run"]: row for row in run("runs", "ls", "--json").json()["runs"]}
    assert rows[two_runs[0].name]["status"] == "damaged"
    missing = run("runs", "show", "nothing-like-it")
    assert missing.code == 2 and "hint:" in missing.err


# --- the executable


def asid_process(*args: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asid", *args], capture_output=True, text=True, timeout=20, cwd=ROOT, **more
    )


@pytest.mark.live
def test_the_library_and_help_import_nothing_heavy():
    code = (
        "import sys, asid, asid.commands\n"
        "try: asid.commands.cli(['--help'], standalone_mode=False)\n"
        "finally: heavy = {'zmq', 'numpy', 'rich', 'msgpack', 'msgspec', 'psutil', 'hypothesis'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("args", [("--help",), ("status", "--instance", "nobody-runs-this")])
def test_a_start_imports_nothing_heavy(args):
    heavy = ("numpy", "multiprocessing.pool", "asid.explore", "asid.live.daemon", "asid.live.serve", "asid.audit")
    code = (
        "import sys; from asid.commands import invoke; invoke(sys.argv[1:]); "
        f"sys.stderr.write('HEAVY ' + ' '.join(m for m in {heavy!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=30)
    assert done.stderr.rpartition("HEAVY ")[2].strip() == ""
    assert "HEAVY" in done.stderr


def test_examples_keep_their_lines(run):
    assert "Examples:\n    asid runs rm 2026 --dry-run\n    asid runs rm --keep 10\n" in run("runs", "rm", "--help").out


@pytest.mark.live
def test_python_without_assertions_is_refused():
    done = subprocess.run([sys.executable, "-O", "-m", "asid", "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "-O" in done.stderr


@pytest.mark.live
def test_a_reader_that_leaves_is_no_crash():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "asid", "schema"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=20, cwd=ROOT
    )
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.live
@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
@pytest.mark.parametrize("line", ["status --instance nobody --json", "--json runs ls", "runs ls", "schema", "ls"])
def test_output_that_cannot_be_written_is_told_in_one_error(where, line, tmp_path):
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m asid {line} {where}"],
        stderr=subprocess.PIPE, text=True, timeout=20, cwd=ROOT, env=env,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    head, hint = done.stderr.splitlines()
    assert head.startswith("asid: HostUnsuitable: standard output cannot be written (") and hint.startswith("hint: ")


@pytest.mark.live
def test_help_that_cannot_be_written_is_no_crash():
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m asid --help >/dev/full"], stderr=subprocess.PIPE, timeout=20
    )
    assert done.returncode == 6 and done.stderr.count(b"\n") == 2


@pytest.mark.live
def test_talk_that_cannot_be_written_changes_nothing():
    for where in ("2>/dev/full", "2>&-"):
        done = subprocess.run(["sh", "-c", f"{sys.executable} -m asid nothing-like-it {where}"], timeout=20)
        assert done.returncode == 2


@pytest.mark.live
def test_sigterm_ends_with_143_and_runs_the_finally_blocks():
    code = (
        "import sys, threading\n"
        "from types import SimpleNamespace\n"
        "import click, asid.commands as c\n"
        "def act():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        threading.Event().wait(20)\n"
        "    finally:\n"
        "        print('clean', flush=True)\n"
        "sys.modules['asid.commands.ls'] = SimpleNamespace(command=click.command()(act))\n"
        "sys.argv = ['asid', 'ls']\n"
        "c.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (143, "clean\n") and "terminated" in err


def test_the_front_door_is_lazy_and_complete():
    for name in asid.__all__:
        assert getattr(asid, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        asid.nothing_like_it  # noqa: B018
    assert importlib.import_module("asid").__version__ == asid.__version__
