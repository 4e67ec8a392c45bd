"""Configurations: defaults, what is refused and in which words, origins, and the files in configs/."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from asid.config import Config, Vm, json_schema, load, load_config, resolved, vm_name
from asid.config_file import FILE_MAX_BYTES, key_lines
from asid.errors import EXIT_USAGE, ConfigError, InputError
from asid.targets import resolve

CONFIGS = Path(__file__).parent.parent / "configs"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.toml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value


@pytest.mark.parametrize(
    ("name", "text"),
    [("deep.toml", "a = " + "[" * 5_000), ("deep.toml", "a = " + "{a=" * 5_000), ("deep.json", "[" * 100_000),
     ("deep.toml", "[" + ".".join("a" * 5_000) + "]"), ("deep.json", '{"vm":' + "[" * 900 + "]" * 900 + "}")],
    ids=["lists", "tables", "json", "dots", "read and too deep"],
)  # fmt: skip
def test_a_file_too_deep_to_read_is_refused_in_five_parts(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises((InputError, ConfigError)) as caught:
        load(path)
    error = caught.value
    assert error.exit_code == EXIT_USAGE
    assert error.what and str(path) in error.where and error.hint
    if isinstance(error, InputError):
        assert error.state and error.allowed


def test_every_key_has_a_default(tmp_path):
    assert load_config(write(tmp_path, "")) == Config()
    config = load_config({})
    assert (config.machine.cores, config.machine.smt, config.policy.name, config.policy.kick) == (1, 2, "asi", "ack")
    assert (config.policy.kick_deadline_ns, config.policy.turn_ns, config.journal.flush_ns) == (
        50_000_000,
        2_000_000,
        100_000_000,
    )
    assert config.vm == () and config.inject == ()


def test_the_whole_of_the_language_is_read(tmp_path):
    (tmp_path / "mix.toml").write_text("")
    config = load_config(write(tmp_path, """
        name = "noisy-neighbour"
        seed = 42
        [machine]
        cores = 2
        smt = 4
        [policy]
        name = "kick-every-exit"
        kick = "send"
        kick_deadline = "20ms"
        [pace]
        mode = "scaled"
        scale = 2
        [[vm]]
        name = "tenant-a"
        on = ["c0h1", "c0h0", "c1h2-3"]
        guest = { source = "mix", table = "mix.toml", rate = "2/ms", halt_poll = "200us" }
        [[vm]]
        on = ["c1h0"]
        [[inject]]
        at = "500ms"
        what = "exit"
        target = "tenant-a/2"
        reason = "CPUID"
        count = 5
        rate = "10/s"
        [[faults.slow]]
        target = "vm2"
        delay = "3ms"
    """))  # fmt: skip
    assert config.places_of(1) == ((0, 1), (0, 0), (1, 2), (1, 3)), "vCPU numbers follow the order of `on`"
    assert config.vcpu_at(0, 0) == (1, 1) and config.vcpu_at(1, 0) == (2, 0) and config.vcpu_at(1, 1) is None
    assert (vm_name(config, 1), vm_name(config, 2)) == ("tenant-a", "vm2")
    assert [vm.guest.halt_poll_ns for vm in config.vm] == [200_000, 0]
    assert config.vm[0].guest.rate_hz == 2000.0 and config.vm[1].guest.source == "idle"
    inject = config.inject[0]
    assert (inject.at_ns, inject.rate_hz, inject.duration_ns) == (500_000_000, 10.0, 100_000_000)
    assert resolve(inject.target, config.topology) == ((1, 2),)
    assert config.faults.slow[0].delay_ns == 3_000_000
    assert config.pace.scale == 2.0
    assert len({config, config}) == 1, "frozen, so it can be a key"


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[machine]\nsmt = 3", ":2: machine.smt = 3: must be 1, 2, 4 or 8 (SMT threads of one core)", "Try 4."),
        ("[machine]\nsmt = 16", "machine.smt = 16: must be 1, 2, 4 or 8", "Try 8."),
        ("[machine]\ncores = 0", ":2: machine.cores = 0: must be a whole number from 1 to 64", ""),
        ("[machine]\ncores = 65", "must be a whole number from 1 to 64", ""),
        ('[machine]\ncores = "2"', 'machine.cores = "2": must be a whole number', ""),
        ("[machine]\ncores = true", "machine.cores = true: must be a whole number", ""),
        ("[machine]\ncores = 2.0", "must be a whole number", ""),
        ("machine = 2", ":1: machine = 2: must be a table", ""),
        ("[machine]\nsmtt = 2", ":2: machine.smtt = 2 (unknown key): must be one of cores, smt", "Did you mean smt?"),
        ("polcy = 1", "polcy = 1 (unknown key)", "Did you mean policy?"),
        ("[zzzzz]\na = 1", ":1: zzzzz", "asid schema config lists every key."),
        ('[policy]\nkick = "akc"', "must be ack, send, rendezvous or stun", "Did you mean ack?"),
        ('[policy]\nname = "asj"', "must be one of none, nosmt, core-sched,", "Did you mean asi?"),
        ('[policy]\nkick_deadline = "4ms"', "must be 5.0ms to 400.0ms", "Try 5.0ms."),
        ('[policy]\nkick_deadline = "5"', "must be a duration", ""),
        ('[policy]\nturn = "0s"', "policy.turn", ""),
        ('[journal]\nkvm_events = "on"', "no VM is a real guest): must be auto or off", 'a VM the source "kvm"'),
        ('[journal]\nkvm_events = "yes"', "must be auto, on or off", ""),
        ('[mce]\ntimeout = "2s"', "must be 10.0ms to 1.0s", "Try 1.0s."),
        ('[mce]\ntimeout = "soon"', "must be a duration", ""),
        ('[mce]\nmode = "brodcast"', "must be local or broadcast", "Did you mean broadcast?"),
        ("[apic]\nicr_fix = false", 'apic.mode is "x2apic"', 'Set apic.mode = "xapic".'),
        ('[space]\nkallsyms = "x"', ':2: space.kallsyms = "x" (no such file: ', "Paths are relative"),
        ('[space]\nmapping = "x"', ':2: space.mapping = "x" (no such file: ', "asid space learn CONFIG -o FILE"),
        ('[space]\nmapping = "alowed"', "must be allowed, rfc, minimal or a regular file", "Did you mean allowed?"),
        ('[space]\nlayout = "x86-64"', "must be x86-64-4level or x86-64-5level", "Did you mean x86-64-"),
        ("[pace]\nscale = 2.0", 'pace.mode is "real"', 'Set pace.mode = "scaled".'),
        ("[pace]\nscale = 0", "must be a number from 1e-06 to 1000", ""),
        ("[pace]\nscale = nan", "pace.scale", ""),
        ('[pace]\nmode = "scaled"\nscale = 9e-7', "must be a number from 1e-06 to 1000", ""),
        ('name = "a/b"', "name", ""),
        ('name = ".."', "name", ""),
        ("seed = -1", "must be a whole number from 0", ""),
        ('[[vm]]\non = ["c1h0"]', ':2: vm.0.on.0 = "c1h0" (there is no core c1): must be c0', ""),
        ('[[vm]]\non = ["c0h2"]', "there is no hyperthread h2", ""),
        ('[[vm]]\non = ["vm1"]', "there is no VM", ""),
        ('[[vm]]\non = []', "vm.0.on", "Try c0h0."),
        ('[[vm]]\nname = "a"\non = ["c0h0"]\n[[vm]]\non = ["c0h0"]', "c0h0 already runs a vCPU of a", "Try c0h1."),
        ('[[vm]]\non = ["c0h0", "c0"]', "c0h0 already runs a vCPU of vm1", ""),
        ('[[vm]]\nname = "c0"\non = ["c0h0"]', "vm.0.name", ""),
        ('[[vm]]\nname = "vm2"\non = ["c0h0"]', "this is VM 1 of the file", "vm1"),
        ('[[vm]]\nname = "a"\non = ["c0h0"]\n[[vm]]\nname = "a"\non = ["c0h1"]', "another VM has this name", ""),
        ('[[vm]]\non = ["c0h0"]\nguest = { source = "kvm", program = "dance" }', "must be mix, spin,", "Try mix."),
        ('[[vm]]\non = ["c0h0"]\nguest = { program = "spin" }', 'the source "idle" runs none', 'Set source = "kvm".'),
        (
            '[[vm]]\non = ["c0h0"]\nguest = { source = "kvm", program = "spin", rate = "5/s" }',
            "exits when it wants to", "use the program mix or halt",
        ),
        ('[machine]\ncores = 64\nsmt = 4\n[[vm]]\non = ["c0h0"]\nguest = { source = "kvm" }', "at most 240", "fewer"),
        ('[[vm]]\non = ["c0h0"]\nguest = { source = "kvm", rate = "9999/ms" }', "0.001/s to 1e+06/s", "Try 1000/s."),
        (
            '[pace]\nmode = "scaled"\nscale = 0.001\n[[vm]]\non = ["c0h0"]\n'
            'guest = { source = "kvm", rate = "0.5/s" }',
            '"0.5/s" (0.001 times as fast)', "Try 1000/s.",
        ),
        ('[[vm]]\non = ["c0h0"]\nguest = { source = "mix" }', "must be a table of exits", ""),
        ('[[vm]]\non = ["c0h0"]\nguest = { source = "trace" }', "must be a recording", ""),
        ('[[vm]]\non = ["c0h0"]\nguest = { table = "t.toml" }', 'the source "idle" reads none', "Leave it out."),
        ('[[vm]]\non = ["c0h0"]\nguest = { source = "mix", table = "gven.toml" }', "no such file", "given.toml?"),
        ('[[vm]]\non = ["c0h0"]\nguest = { rate = "fast" }', "must be a rate", "Try 500/s."),
        ('[[vm]]\non = ["c0h0"]\nguest = { rate = "5/s" }', 'the source "idle" has none', "Leave it out;"),
        ('[[vm]]\non = ["c0h0"]\nguest = { halt_poll = "0" }', "must be a duration", "Try 250us,"),
        ('[[vm]]\non = ["c0h0"]\nguest = { halt_poll = "2ms" }', "must be 0ns to 1.0ms", "Try 1.0ms."),
        ('[[vm]]\non = ["c0h0"]\nguest = { halt_poll = "1us" }', 'the source "idle" never halts', "Leave it out."),
        ('[[inject]]\nwhat = "nmi"', "inject.0.target", "Add target = ..."),
        ('[[inject]]\nwhat = "nim"\ntarget = "c0"', "must be exit, nmi, mce, irq, stall or kill", "Did you mean nmi?"),
        ('[[inject]]\nwhat = "nmi"\ntarget = "c9"', ":3: inject.0.target", ""),
        ('[[inject]]\nwhat = "nmi"\ntarget = "c0"\nreason = "CPUID"', "inject.0.reason", "Only an exit has one."),
        ('[[inject]]\nwhat = "exit"\ntarget = "c0"\nreason = "a b"', "must be a kernel name", ""),
        ('[[inject]]\nwhat = "nmi"\ntarget = "c0"\ncount = 0', "must be a whole number from 1", ""),
        ('[[faults.slow]]\ntarget = "c3"', "faults.slow.0.target", ""),
        ("a = ", "not TOML", ""),
        ("[machine]\nsmt = 2\nsmt = 4", "not TOML", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_place_value_and_way_out(tmp_path, text, says, hint):
    error = refusal(tmp_path, text)
    assert says in str(error)
    assert str(error).startswith(str(tmp_path / "given.toml"))
    assert hint in error.hint
    assert len(str(error)) < 500


def test_no_default_is_refused():
    assert load_config({}) == Config()


def test_the_address_space_is_configured(tmp_path):
    (tmp_path / "kallsyms").write_text("ffffffff81000000 T _text\n")
    text = '[space]\nlayout = "x86-64-5level"\nkallsyms = "kallsyms"\nmapping = "mine.toml"\npage_fault_stack = false\n'
    (tmp_path / "mine.toml").touch()
    (tmp_path / "given.toml").write_text(text)
    loaded = load(tmp_path / "given.toml")
    assert resolved(loaded)["space"] == {
        "layout": "x86-64-5level",
        "kallsyms": str(tmp_path / "kallsyms"),
        "mapping": str(tmp_path / "mine.toml"),
        "page_fault_stack": False,
    }


def test_the_line_of_a_mistake_is_found_through_the_forms_of_toml(tmp_path):
    text = '''
a.b = 1            # line 2
[machine]
"smt" = 2          # line 4
[[vm]]
on = [             # line 6
  "c0h0", # ] not the end
  "= 5",
]
guest.rate = """
x = 3
"""
[[vm]]             # line 13
name = "]"
[vm.guest]         # line 15
source = "idle"
'''
    lines = key_lines(text)
    assert lines["a.b"] == 2 and lines["machine.smt"] == 4 and lines["vm.0.on"] == 6 and lines["vm.0.guest.rate"] == 10
    assert lines["vm.1"] == 13 and lines["vm.1.name"] == 14 and lines["vm.1.guest.source"] == 16
    assert "vm.0.x" not in lines and "x" not in lines


def test_origins_say_where_each_value_comes_from(tmp_path):
    (tmp_path / "t.toml").write_text("")
    guest = 'guest = { source = "mix", table = "t.toml" }\n'
    path = write(tmp_path, 'name = "a"\n[machine]\nsmt = 4\n[[vm]]\non = ["c0"]\n' + guest)
    loaded = load(path, {"policy.name": "none", "vm.0.guest.rate": "5/s"})
    assert loaded.origin["name"] == f"{path}:1"
    assert loaded.origin["machine.smt"] == f"{path}:3"
    assert loaded.origin["vm.0.on"] == f"{path}:5"
    assert loaded.origin["machine.cores"] == "default"
    assert loaded.origin["policy.name"] == "command line" == loaded.origin["vm.0.guest.rate"]
    assert loaded.text == path.read_text()
    assert loaded.config.vm[0].guest.rate == "5/s"
    plain = load(path)
    assert (plain.config.vm[0].guest.rate, plain.origin["vm.0.guest.rate"]) == ("", "default"), "the table's own"


@pytest.mark.parametrize("item", ["-1", "-0", "+0", " 0", "0_0", "1", "x", ""])
def test_an_item_of_a_list_is_named_by_its_number_from_the_front(tmp_path, item):
    path = write(tmp_path, '[[vm]]\nname = "a"\non = ["c0h0"]\n')
    assert load(path, {"vm.0.name": "b"}).config.vm[0].name == "b"
    with pytest.raises(ConfigError, match="there is no such key to set"):
        load(path, {f"vm.{item}.name": "b"})


def test_a_mistake_on_the_command_line_names_the_command_line(tmp_path):
    path = write(tmp_path, "[machine]\nsmt = 2\n")
    for overrides, says in [
        ({"machine.smt": 3}, "command line: machine.smt = 3"),
        ({"vm.0.name": "x"}, "command line: vm.0.name"),
        ({"machine.smt.x": 3}, "command line: machine.smt.x"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(path, overrides)
        assert str(caught.value).startswith(says)


def test_an_override_does_not_change_the_callers_mapping():
    given = {"machine": {"smt": 2}}
    assert load_config(given, {"machine.smt": 4}).machine.smt == 4
    assert given == {"machine": {"smt": 2}}


def test_a_resolved_configuration_reads_back_the_same_from_anywhere(tmp_path):
    loaded = load(CONFIGS / "two-vms.toml")
    plain = resolved(loaded)
    copy = tmp_path / "config.resolved.json"
    copy.write_text(json.dumps(plain))
    again = load(copy)
    assert json.dumps(resolved(again)) == json.dumps(plain)
    assert Path(again.config.vm[0].guest.table).is_absolute()
    assert again.config.topology == loaded.config.topology


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory: must be a regular file"),
        (lambda path: os.mkfifo(path), "is a fifo: must be a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device: must be a regular file"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
        (lambda path: path.write_bytes(b"#" * (FILE_MAX_BYTES + 1)), "is no configuration"),
    ],
)
def test_a_file_that_cannot_be_one_is_an_input_error(tmp_path, make, says):
    path = tmp_path / "smt2.toml"
    (tmp_path / "smt4.toml").write_text("")
    make(path)
    with pytest.raises(InputError) as caught:
        load(path)
    assert says in str(caught.value) and str(path) in str(caught.value)
    assert caught.value.hint


def test_the_schema_knows_every_key():
    schema = json_schema()
    definitions = schema["$defs"]
    assert set(definitions["Config"]["properties"]) == set(Config.__struct_fields__)
    assert definitions["Config"]["additionalProperties"] is False
    assert definitions["Vm"]["properties"]["on"]["type"] == "array"
    assert all(field.get("description") for field in definitions["Policy"]["properties"].values())


ALL = sorted(CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_configuration_loads_and_says_what_it_shows(path):
    config = load_config(path)
    assert config.name == path.stem
    assert path.read_text().startswith("# Shows: ")
    assert config.vm and all(isinstance(vm, Vm) and vm.name for vm in config.vm)


def test_the_promised_configurations_are_there():
    wanted = {"smt1", "smt2", "smt4", "smt8", "two-vms", "eight-cores", "nmi-heavy", "slow-sibling", "tiny",
              "nmi-storm"}  # fmt: skip
    assert wanted <= {path.stem for path in ALL}
    assert load_config(CONFIGS / "eight-cores.toml").machine.cores == 8
    assert len(load_config(CONFIGS / "two-vms.toml").vm) == 2
    assert load_config(CONFIGS / "nmi-heavy.toml").inject
    assert load_config(CONFIGS / "slow-sibling.toml").faults.slow


@pytest.mark.timeout(20)
def test_more_vms_than_any_machine_has_are_refused_before_any_is_looked_at(tmp_path):
    for source in (write(tmp_path, "[[vm]]\n" * 100_000), {"vm": [{}] * 65}):
        with pytest.raises(ConfigError, match="at most 64"):
            load(source)
    with pytest.raises(ConfigError, match="one hyperthread or more"):
        load({"vm": [{}] * 64})


@pytest.mark.parametrize("table", ["/dev/zero", "/tmp", "."])
def test_a_hint_never_names_what_was_refused(tmp_path, table):
    with pytest.raises(ConfigError) as caught:
        load({"vm": [{"on": ["c0h0"], "guest": {"source": "mix", "table": table}}]})
    assert "must be a regular file" in str(caught.value) and "no such file" not in str(caught.value)
    assert "Did you mean" not in caught.value.hint


@pytest.mark.parametrize(
    "text", ['name = "a\u202eb"', '"a\u202eb" = 1', 'policy = { name = "asi\u202e" }',
             '[[vm]]\non = ["c0h0"]\nguest = { source = "mix", table = "\u202e" }', '[[vm]]\non = ["c\u202e"]']
)  # fmt: skip
def test_an_error_shows_no_character_that_changes_how_it_is_read(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    assert "\u202e" not in f"{caught.value}{caught.value.hint}"
    assert "u202e" in str(caught.value)
