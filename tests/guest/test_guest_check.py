"""What no vCPU could play is refused while nothing has been started: by the check itself, and by every verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asid.commands import invoke
from asid.config import Loaded, load
from asid.errors import ConfigError, InputError, PermissionRefused
from asid.guest import check, make_source
from asid.guest.check import check_guests

DATA = Path(__file__).resolve().parents[1] / "data"
TWO = DATA / "trace" / "ftrace_two_vcpus.txt"
ROW = '[[exit]]\nreason = "CPUID"\nshare = 1\nservice = "1us"\n'


def config(tmp_path: Path, guest: str, on: str = '"c0h0"') -> Path:
    """A configuration of one VM, its guest on line 5; beside it files to choose from."""
    (tmp_path / "typo.toml").write_text(ROW + "shaer = 2\n")
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "cut.txt").write_bytes(TWO.read_bytes()[:150])
    path = tmp_path / "given.toml"
    path.write_text(f"[machine]\nsmt = 4\n[[vm]]\non = [{on}]\nguest = {{ {guest} }}\n")
    return path


def make_all(loaded: Loaded) -> None:
    """Make every vCPU's source, as the hyperthreads do."""
    for vcpu in range(len(loaded.config.places_of(1))):
        make_source(loaded.config.vm[0].guest, vm=1, vcpu=vcpu, seed=1, base_dir=loaded.base_dir)


THREE = '"c0h0-2"'
REFUSED = [
    (f'source = "trace", file = "{DATA}/trace/perf_top_histogram.txt"', '"c0h0"', "no order and no time"),
    (f'source = "trace", file = "{DATA}/trace/arm64.txt"', '"c0h0"', "another architecture"),
    (f'source = "trace", file = "{DATA}/trace/tsc_clock.txt"', '"c0h0"', "TSC cycles"),
    (f'source = "trace", file = "{DATA}/tables/rates.toml"', '"c0h0"', "this is a mix table"),
    ('source = "trace", file = "cut.txt"', '"c0h0"', "text without any VM exit"),
    (f'source = "trace", file = "{TWO}"', THREE, "a thread for vCPU 2: the trace has no such thread"),
    (f'source = "trace", file = "{TWO}", thread = "77"', '"c0h0"', "thread '77': the trace has no such thread"),
    ('source = "mix", table = "typo.toml"', '"c0h0"', "unknown field `shaer`"),
    ('source = "mix", table = "empty.toml"', '"c0h0"', "an empty file"),
    (f'source = "mix", table = "{TWO}"', '"c0h0"', "this is the text of a trace"),
    (f'source = "mix", table = "{DATA}/tables/rates.toml", rate = "9999999999/s"', '"c0h0"', "guest.rate"),
]


@pytest.mark.parametrize(("guest", "on", "says"), REFUSED)
def test_it_is_refused_in_five_parts(tmp_path, guest, on, says):
    path = config(tmp_path, guest, on)
    loaded = load(path)
    with pytest.raises(ConfigError) as caught:
        check_guests(loaded)
    error = caught.value
    assert error.exit_code == 2
    assert error.where == f"{path}:5"
    assert error.what.startswith(("vm.0.guest.file = ", "vm.0.guest.table = ")), error.what
    assert says in error.state
    assert error.allowed and error.hint
    with pytest.raises((ConfigError, InputError)):  # what the check refuses is what a hyperthread would die of
        make_all(loaded)


@pytest.mark.parametrize(
    ("guest", "on"),
    [
        ('source = "idle"', '"c0"'),
        (f'source = "trace", file = "{TWO}"', '"c0h0-1"'),
        (f'source = "trace", file = "{TWO}", thread = "4101"', '"c0"'),
        (f'source = "mix", table = "{DATA}/tables/rates.toml"', '"c0"'),
        (f'source = "mix", table = "{DATA}/tables/perf_intel.txt"', '"c0"'),
    ],
)
def test_what_can_be_played_passes(tmp_path, guest, on):
    loaded = load(config(tmp_path, guest, on))
    check_guests(loaded)
    make_all(loaded)


def test_what_came_from_no_file_is_told_in_the_words_of_its_reader():
    given = {"vm": [{"on": ["c0h0"], "guest": {"source": "trace", "file": str(DATA / "trace" / "arm64.txt")}}]}
    with pytest.raises(InputError, match="another architecture") as caught:
        check_guests(load(given))
    assert caught.value.where == str(DATA / "trace" / "arm64.txt")


def test_a_file_that_may_not_be_read_is_a_matter_of_permission(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionRefused("cannot be read", where=str(path), state="permission denied", allowed="yours", hint="h")

    monkeypatch.setattr(check, "read_mix", refuse)
    with pytest.raises(PermissionRefused) as caught:
        check_guests(load(config(tmp_path, f'source = "mix", table = "{DATA}/tables/rates.toml"')))
    assert caught.value.exit_code == 4 and caught.value.where.endswith("given.toml:5")


def test_a_recording_is_read_once_however_many_play_it_and_again_when_it_has_changed(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(check, "read_trace", lambda path, real=check.read_trace: read.append(path) or real(path))
    copy = tmp_path / "copy.txt"
    copy.write_bytes(TWO.read_bytes())
    path = tmp_path / "given.toml"
    guest = 'guest = { source = "trace", file = "copy.txt" }'
    path.write_text(f'machine.smt = 4\n[[vm]]\non = ["c0h0-1"]\n{guest}\n[[vm]]\non = ["c0h2-3"]\n{guest}\n')
    check_guests(load(path))
    check_guests(load(path))
    assert len(check.recording(copy).threads) == 2
    assert len(read) == 1
    copy.write_bytes(TWO.read_bytes() * 2)
    check_guests(load(path))
    assert len(read) == 2


@pytest.mark.parametrize("verb", [["run"], ["up"], ["up", "--detach"], ["config", "show"]], ids=" ".join)
def test_every_verb_refuses_it_and_leaves_nothing(tmp_path, monkeypatch, capsys, verb):
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name))
    path = config(tmp_path, f'source = "trace", file = "{TWO}"', THREE)
    assert invoke([*verb, str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "given.toml:5: vm.0.guest.file" in said.err and "\nhint: " in said.err
    assert invoke([*verb, str(path), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["error"]["class"], document["error"]["exit"]) == ("error/1", "ConfigError", 2)
    assert document["error"]["where"] == f"{path}:5" and document["error"]["applied"] == "no"
    assert not list((tmp_path / "XDG_RUNTIME_DIR").iterdir()) + list((tmp_path / "XDG_STATE_HOME").iterdir())


@pytest.mark.parametrize("more", [[], ["--pace", "scaled", "--scale", "1e-7"]], ids=["clock", "scale"])
def test_replay_refuses_it_and_leaves_nothing(tmp_path, monkeypatch, capsys, more):
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name))
    assert invoke(["replay", str(TWO if more else DATA / "trace" / "tsc_clock.txt"), *more]) == 2
    assert ("pace.scale = 1e-07: must be" if more else "TSC cycles") in capsys.readouterr().err
    assert not list((tmp_path / "XDG_RUNTIME_DIR").iterdir()) + list((tmp_path / "XDG_STATE_HOME").iterdir())
