"""The run directory: never overwritten, always whole, found by any reasonable name."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess

import pytest

from asid.errors import HostUnsuitable, InputError, PermissionRefused
from asid.live import rundir
from asid.live.rundir import create_run, find_run, list_runs, open_run, run_schema, runs_root, write_atomically


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "asid" / "runs"


def make(name="smt2", **more):
    return create_run(name, config_text="seed = 42\n", resolved={"seed": 42}, seed=42, **more)


def test_what_is_in_it(root):
    run = make(more={"policy": "asi"})
    assert runs_root() == root and run.path.parent == root
    assert re.fullmatch(r"\d{8}T\d{6}Z-smt2-[0-9a-f]{4}", run.name)
    assert (run.path / "config.toml").read_text() == "seed = 42\n"
    assert run.read_json("config.resolved.json") == {"seed": 42}
    manifest = run.manifest()
    assert manifest["status"] == "running" and manifest["policy"] == "asi" and manifest["seed"] == 42
    assert manifest["pid"] == os.getpid()
    assert set(manifest["host"]) >= {"cpus", "kernel", "python", "pyzmq", "libzmq", "msgpack"}
    assert set(manifest["started"]) == {"wall", "monotonic_ns"}
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    required = run_schema()["properties"]["manifest.json"]["required"]
    assert set(required) <= set(manifest)


def test_what_was_mapped_is_kept_and_done_again(root):
    run = make(mapping_text="# nothing\n")
    assert (run.path / "space.toml").read_text() == "# nothing\n"
    assert run.manifest()["command"] == ["asid", "run", "CONFIG", "--seed", "42", "--space", "SPACE"]
    assert (
        '"$here/config.resolved.json" --seed 42 --space "$here/space.toml" "$@"' in (run.path / "repro.sh").read_text()
    )
    plain = make()
    assert not (plain.path / "space.toml").exists() and "--space" not in (plain.path / "repro.sh").read_text()


def test_no_half_written_file_is_left(root):
    run = make()
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")]
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_names_never_collide_and_latest_is_the_last(root):
    runs = [make() for _ in range(20)]
    assert len({run.path for run in runs}) == 20
    assert (root / "latest").is_symlink()
    assert os.readlink(root / "latest") == runs[-1].name, "relative, so that the tree can be moved"
    assert open_run().path == runs[-1].path.resolve()
    assert find_run("latest") == runs[-1].path.resolve()
    assert {run.name for run in list_runs()} == {run.name for run in runs}


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b/c", "", "x" * 300, "...", "näme\n"])
def test_a_strange_name_stays_inside(root, name):
    run = make(name)
    assert run.path.parent == root
    assert re.fullmatch(r"[A-Za-z0-9._-]+", run.name)
    assert run.manifest()["name"] == name


def test_latest_that_is_a_directory_of_somebody_is_left_alone(root, caplog):
    (root / "latest").mkdir(parents=True)
    (root / "latest" / "keep").write_text("mine")
    run = make()
    assert (root / "latest" / "keep").read_text() == "mine"
    assert "latest" in caplog.text and run.journal.parent.exists()


def test_a_given_directory_must_be_new_or_empty(root, tmp_path):
    where = tmp_path / "mine"
    assert make(path=where).path == where
    assert not (root / "latest").exists()
    with pytest.raises(InputError, match="not empty"):
        make(path=where)


def test_a_place_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionRefused, match="cannot make"):
        create_run("x", config_text="", resolved={}, seed=1, root=tmp_path / "file" / "runs")


def test_a_directory_of_runs_that_is_none_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    for look in (list_runs, lambda: open_run("latest"), lambda: open_run("some")):
        with pytest.raises(InputError, match="the runs cannot be listed") as caught:
            look()
        assert caught.value.where == str(tmp_path / "file/asid/runs") and caught.value.state == "Not a directory"


def test_a_name_that_no_file_can_have_is_said(root):
    with pytest.raises(InputError, match="cannot be looked for"):
        open_run("x" * 5000)


def test_no_room_is_told_before_the_run(root, monkeypatch):
    monkeypatch.setattr(rundir, "FREE_BYTES_MIN", 1 << 62)
    with pytest.raises(HostUnsuitable, match="no room"):
        make()
    assert list_runs() == [] and not (root / "latest").exists()


def test_a_run_whose_process_has_ended_is_not_running_though_nobody_looked_at_its_end(root):
    run = make()
    ended = subprocess.Popen(["sh", "-c", "read line"], stdin=subprocess.PIPE)
    pid = ended.pid
    run.update_manifest(pid=pid, pid_started=rundir._pid_started(pid))
    assert run.manifest()["status"] == "running"
    ended.stdin.close()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it stays, as a zombie
    assert run.manifest()["status"] == "crashed"
    ended.wait()


def test_status(root):
    run = make()
    run.end("stop", verdict="PASS")
    assert run.manifest()["status"] == "ended"
    assert run.manifest()["ended"]["reason"] == "stop" and run.manifest()["verdict"] == "PASS"
    other = make()
    other.update_manifest(pid_started=1)  # the pid was used again by somebody else
    assert other.manifest()["status"] == "crashed"
    assert json.loads((other.path / "manifest.json").read_text())["status"] == "running"
    other.update_manifest(pid=2**22 + 1)
    assert other.manifest()["status"] == "crashed"


def test_open_by_name_part_path_and_journal(root):
    one, two = make("alpha"), make("beta")
    one.journal.touch()
    assert open_run(one.name).path == one.path.resolve()
    assert open_run("alpha").path == one.path.resolve()
    assert open_run(str(two.path)).path == two.path.resolve()
    assert open_run(str(one.journal)).path == one.path.resolve()
    make("beta")
    with pytest.raises(InputError, match="2 runs") as error:
        open_run("beta")
    assert "newest" in error.value.hint


@pytest.mark.parametrize("name", ["gamma", "", "../..", "/nowhere/at/all", "lat", "\0"])
def test_a_run_that_is_not_there(root, name):
    make("alpha")
    with pytest.raises(InputError) as error:
        open_run(name)
    assert error.value.hint and error.value.exit_code == 2


def test_no_run_at_all(root):
    with pytest.raises(InputError, match="no run yet"):
        open_run()
    assert list_runs() == []


def test_json_that_is_not(root):
    run = make()
    (run.path / "stats.json").write_text('{"rows": [')
    with pytest.raises(InputError, match="not JSON"):
        run.read_json("stats.json")
    assert run.read_json("verdict.json") is None


def test_repro_runs_its_own_copy_of_the_configuration(root, tmp_path):
    run = make("it's here", repro=["echo", "asid", "run", "CONFIG", "--seed", "42", "--policy", "a b"])
    script = run.path / "repro.sh"
    assert os.access(script, os.X_OK)
    said = subprocess.run([script, "more"], cwd="/", capture_output=True, text=True, timeout=10, check=True).stdout
    assert said.split() == [
        "asid",
        "run",
        str(run.path / "config.resolved.json"),
        "--seed",
        "42",
        "--policy",
        "a",
        "b",
        "more",
    ]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "stats.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["stats.json"]


def test_a_relative_state_directory_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runs_root() == tmp_path / ".local" / "state" / "asid" / "runs"
