"""asid space: what a configuration's spaces map and expose, dumps and their differences, and learning a mapping."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from asid.commands import invoke
from asid.config import load
from asid.errors import ConfigError, InputError
from asid.mm.entry import Level
from asid.mm.isolated import Entry
from asid.mm.population import entries_of
from asid.mm.ptdump import parse_dump
from asid.space_build import check_mapping, host_of, isa_of, mapping_at_start
from asid.space_files import mapping_text, read_bytes, read_mapping
from asid.space_learn import learn, play

ROOT = Path(__file__).parent.parent
SMT2 = str(ROOT / "configs/smt2.toml")
TWO = str(ROOT / "configs/two-vms.toml")
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def run(capsys):
    def once(*args: str) -> SimpleNamespace:
        code = invoke(["space", *args])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out))

    return once


def written(tmp_path, text: str, name: str = "given.toml") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


SVM = """
seed = 7
[space]
layout = "x86-64-5level"
page_fault_stack = false
[[vm]]
name = "amd"
on = ["c0h0", "c0h1"]
guest = { source = "mix", table = "svm.toml" }
"""
SVM_TABLE = """
isa = "svm"
[[exit]]
reason = "msr"
share = 0.7
service = "1us"
[[exit]]
reason = "npf"
share = 0.2
service = "4us"
[[exit]]
reason = "hlt"
share = 0.1
wake = "100us"
"""


# --- show and audit


def test_show_lists_the_objects_of_each_vm(run):
    done = run("show", TWO)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "tenant-a: mapping rfc"
    assert lines[1].split() == ["OBJECT", "WHOSE", "STEP", "LEVEL", "RANGES", "ASKED", "BESIDE"]
    assert "tenant-b: mapping rfc" in lines
    assert any(line.startswith("percpu first chunk") and " core " in line and " PMD " in line for line in lines)
    one = run("show", TWO, "--vm", "vm2", "--mapping", "minimal", "--ranges")
    assert one.out.startswith("tenant-b: mapping minimal") and "tenant-a" not in one.out
    assert "module kvm_intel" in one.out and "0xffffffff81000000" in one.out


def test_show_as_json_says_what_the_table_says(run):
    document = run("show", SMT2, "--json").json()
    assert (document["schema"], document["ok"], document["mapping"]) == ("space.show/1", True, "rfc")
    (vm,) = document["vms"]
    assert vm["name"] == "tenant" and vm["totals"]["mapped"] == vm["totals"]["asked"] + vm["totals"]["slack"]
    rows = {row["object"]: row for row in vm["objects"]}
    assert rows["vcpu"] == {
        "object": "vcpu", "whose": "this VM's", "step": "vCPU data", "level": "PTE", "split": False, "ranges": 2,
        "asked": 2 * 19_456, "slack": rows["vcpu"]["slack"],
    }  # fmt: skip
    assert rows["kvm module"]["ranges"] == 1 and len(vm["ranges"]) == vm["totals"]["ranges"]


def test_audit_fails_for_secrets_and_names_the_mapping_that_exposes_them(run):
    done = run("audit", SMT2, "--json")
    assert done.code == 1 and done.json()["ok"] is False
    (vm,) = done.json()["vms"]
    pool = next(row for row in vm["secrets"] if row["name"] == "random pool")
    assert (pool["by"], pool["size"], pool["slack"], pool["whose"]) == ("percpu first chunk", 144, 0, "host secret")
    text = run("audit", SMT2)
    assert text.code == 1 and text.out.splitlines()[1].split()[:3] == ["SECRET", "WHOSE", "BYTES"]
    assert any(line.startswith("random pool") for line in text.out.splitlines())
    assert "another VM's" not in text.out and "another VM's" in run("audit", TWO).out


def test_audit_passes_a_mapping_of_whole_pages(run, tmp_path):
    mapping = {"tenant": (Entry("kernel text", Level.PMD), Entry("VMCS", split=True))}
    path = written(tmp_path, mapping_text(mapping, "two objects"), "clean.toml")
    done = run("audit", SMT2, "--mapping", path)
    assert (done.code, done.out.splitlines()[-1]) == (0, "no secret")


# --- dump and diff


def test_a_dump_is_one_that_can_be_read_and_is_the_table(run, tmp_path):
    text = run("dump", SMT2).out
    again = written(tmp_path, text, "tenant.txt")
    assert run("dump", again).out == text
    assert run("diff", SMT2, again).out == "no difference\n"
    ranges = parse_dump(text).present
    totals = run("show", SMT2, "--json").json()["vms"][0]["totals"]
    assert sum(seen.size for seen in ranges) == totals["mapped"] == run("dump", SMT2, "--json").json()["mapped"]


def test_a_diff_of_a_space_and_its_host_shows_what_the_space_lacks(run, tmp_path):
    host = written(tmp_path, run("dump", SMT2, "--host").out, "host.txt")
    done = run("diff", SMT2, host, "--json")
    assert done.code == 1
    found = done.json()["differences"]
    assert all(seen["first"] == "" and seen["second"] for seen in found), "a space maps nothing that the host does not"
    assert any(seen["start"] == "0xffffea0000000000" for seen in found), "vmemmap"
    assert run("diff", SMT2, host, "--host").code == 0
    text = run("diff", TWO, TWO, "--vm", "vm1", "--with-vm", "vm2")
    assert text.code == 1 and text.out.splitlines()[0].split() == ["START", "SIZE", "FIRST", "SECOND"]


def test_a_dump_may_be_gzip(run, tmp_path):
    path = tmp_path / "dump.txt.gz"
    path.write_bytes(gzip.compress(run("dump", SMT2).out.encode()))
    assert run("diff", SMT2, str(path)).code == 0


def test_a_real_dump_round_trips(run):
    real = DATA / "ptdump" / "x86-64_dmesg_ptdump_i7-4770_4.18rc_pti.txt"
    if not real.exists():
        pytest.skip(f"no dump of a real kernel here: {real}")
    assert run("diff", str(real), str(real)).out == "no difference\n"
    assert parse_dump(run("dump", str(real)).out).ranges == parse_dump(real.read_bytes()).ranges


# --- learn


def test_learning_ends_when_only_secrets_are_missed_and_the_file_is_the_mapping(run, tmp_path):
    path = tmp_path / "learned.toml"
    done = run("learn", SMT2, "--exits", "3000", "-o", str(path), "--json")
    assert done.code == 0
    document = done.json()
    (vm,) = document["vms"]
    assert document["complete"] and vm["before"] == 1.0 and 0.15 < vm["after"] < 0.35
    assert document["rounds"][0]["lines"][0].startswith("KVM isolation: page fault #0 (2) at kvm_arch_vcpu_ioctl_run+")
    assert document["rounds"][0]["lines"][1] == "Call Trace:"
    added = {row["object"] for row in vm["additions"]}
    assert {"vcpu", "kvm_run", "guest FPU"} <= added
    assert all(
        row["whose"] in ("this VM's", "globally non-sensitive") and row["saves_hz"] > 0 for row in vm["additions"]
    )
    assert {row["object"] for row in vm["refused"]} >= {"other task", "VMM's memory"}
    mapped = [entry["object"] for entry in document["mapping"]["tenant"]]
    assert [entry.object for entry in read_mapping(path)["tenant"]] == mapped
    assert not added - set(mapped) and not set(vm["dropped"]) & set(mapped)
    assert run("show", SMT2, "--mapping", str(path)).code == 0
    again = run("learn", SMT2, "--exits", "3000", "--mapping", str(path), "--json").json()
    assert again["vms"][0]["additions"] == [] and again["vms"][0]["before"] == again["vms"][0]["after"] == vm["after"]


def test_what_is_printed_of_learning(run):
    out = run("learn", SMT2, "--exits", "2000").out
    assert out.startswith("round 1, tenant\nKVM isolation: page fault #0 (2) at kvm_arch_vcpu_ioctl_run+")
    assert "ADDED" in out and "KICKS/S SAVED" in out and "NOT ADDED" in out
    assert out.splitlines()[-1] == "the faults left need secrets"


def test_with_secrets_no_fault_is_left(run):
    done = run("learn", SMT2, "--exits", "2000", "--allow-secrets")
    assert done.code == 0 and done.out.splitlines()[-1] == "no fault is left"
    vm = run("learn", SMT2, "--exits", "2000", "--allow-secrets", "--json").json()["vms"][0]
    assert 0 < vm["after"] == vm["anyway"] < 0.02, "ports that are always the VMM's, as the table says"
    assert f"{vm['after']:.1%} after ({vm['after']:.1%} whatever is mapped)" in done.out
    assert "other task" in done.out and "NOT ADDED" not in done.out


def test_rounds_that_run_out_are_unknown_and_keep_what_was_found(run, tmp_path):
    path = tmp_path / "half.toml"
    done = run("learn", SMT2, "--exits", "2000", "--rounds", "3", "-o", str(path))
    assert done.code == 3 and done.out.splitlines()[-1].startswith("UNKNOWN")
    assert [entry.object for entry in read_mapping(path)["tenant"]][-3:] == ["srcu data", "kvm_run", "vcpu"]


def test_learning_for_svm_with_five_levels_and_without_call_traces(run, tmp_path):
    written(tmp_path, SVM_TABLE, "svm.toml")
    config = written(tmp_path, SVM)
    assert isa_of(load(config), 1) == "svm"
    document = run("learn", config, "--exits", "1000", "--json").json()
    lines = [line for turn in document["rounds"] for line in turn["lines"]]
    assert lines and not any("Call Trace" in line for line in lines)
    assert all(line.partition(" on ")[2].startswith(("ff11", "ffa0", "ffd4")) for line in lines), lines
    names = {row["object"] for row in document["vms"][0]["additions"]}
    assert "VMCB" in names and "VMCS" not in names and "L1D flush pages" not in names


def test_the_same_seed_learns_the_same_in_every_process(tmp_path):
    def once(hash_seed: str) -> bytes:
        path = tmp_path / f"{hash_seed}.toml"
        command = [sys.executable, "-m", "asid", "space", "learn", SMT2, "--exits", "500", "-o", str(path), "--json"]
        environment = {"PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, timeout=50, check=True)
        return path.read_bytes() + done.stdout.replace(str(path).encode(), b"")

    assert once("0") == once("1")


def test_an_object_saves_what_would_be_full_without_it():
    found = learn(load(SMT2), "minimal", rounds=50, exits=2000, secrets=False)
    (vm,) = found.vms
    work = play(load(SMT2), 1, 2000)
    assert vm.rate_hz == pytest.approx(sum(work.rate_hz(kind) for kind in work.counts))
    vcpu = next(row for row in vm.additions if row.object == "vcpu")
    assert vcpu.saves_hz == pytest.approx(vm.rate_hz * (1 - vm.after)), "every fast exit needs it"
    assert vcpu.mapped == 2 * 5 * 4096
    buses = next(row for row in vm.additions if row.object == "buses")
    assert 0 < buses.saves_hz < vcpu.saves_hz


def test_a_real_kallsyms_names_the_instructions(run, tmp_path):
    real = DATA / "symbols" / "kallsyms_x86-64_kandycs.txt.gz"
    if not real.exists():
        pytest.skip(f"no kallsyms of a real kernel here: {real}")
    table = ROOT / "configs/tables/web.toml"
    text = f"""
[space]
kallsyms = "{real}"
[[vm]]
on = ["c0h0"]
guest = {{ source = "mix", table = "{table}" }}
"""
    done = run("learn", written(tmp_path, text), "--exits", "1000")
    assert done.code == 0 and " [kvm] on " in done.out and "do_IRQ+" in done.out


# --- what runs have


def test_what_is_mapped_by_default_exposes_nothing_but_what_lies_beside_it(run):
    document = run("audit", TWO, "--mapping", "allowed", "--json").json()
    for vm in document["vms"]:
        assert vm["secrets"] and vm["bytes"] == vm["slack"] < 100_000
        assert not {row["by"] for row in vm["secrets"]} - {entry.object for entry in entries_of("allowed", "vmx")}


def test_a_machine_starts_with_the_mapping_that_its_configuration_names(tmp_path):
    learned = {"amd": (Entry("kernel text", Level.PMD), Entry("kvm", split=True, step="learned"))}
    written(tmp_path, mapping_text(learned, "two objects"), "two.toml")
    written(tmp_path, SVM_TABLE, "svm.toml")
    path = written(tmp_path, SVM.replace("[space]", '[space]\nmapping = "two.toml"'))
    assert mapping_at_start(load(path)) == {1: learned["amd"]}
    assert mapping_at_start(load(path, {"space.mapping": "rfc"})) == {1: entries_of("rfc", "svm")}
    assert mapping_at_start(load(path, {"space.mapping": "allowed"})) == {1: entries_of("allowed", "svm")}
    assert mapping_at_start(load({})) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "is no mapping"),
        ('[[vm]]\nname = "other"\nmap = []\n', "it maps nothing for amd"),
        ('[[vm]]\nname = "amd"\nmap = [{ object = "kernel txt" }]\n', "'kernel txt' is no object"),
        (
            '[[vm]]\nname = "amd"\nmap = [{ object = "vcpu" }, { object = "vcpu", level = "PMD" }]\n',
            "a VM or an object is there twice",
        ),
        (
            '[[vm]]\nname = "amd"\nmap = [{ object = "vcpu" }, { object = "other vcpu", level = "PMD" }]\n',
            "EBUSY",
        ),
    ],
)
def test_a_mapping_that_no_machine_can_start_with_is_refused_before_it_does(tmp_path, capsys, text, says):
    bad = written(tmp_path, text, "bad.toml")
    written(tmp_path, SVM_TABLE, "svm.toml")
    path = written(tmp_path, SVM.replace("[space]", '[space]\nmapping = "bad.toml"'))
    with pytest.raises(ConfigError) as raised:
        check_mapping(load(path))
    error = raised.value
    assert error.what == 'space.mapping = "bad.toml"' and error.where == f"{path}:4"
    assert says in error.state and error.allowed and error.hint and error.exit_code == 2
    for verb in ("run", "up"):
        assert invoke([verb, written(tmp_path, SVM, "good.toml"), "--space", bad]) == 2
        said = capsys.readouterr().err
        assert f'command line: space.mapping = "{bad}"' in said and says in said


# --- what is refused


@pytest.mark.parametrize(
    ("args", "says", "code"),
    [
        (("show", SMT2, "--mapping", "rcf"), "there is no mapping 'rcf': must be allowed, rfc, minimal or a file", 2),
        (("show", SMT2, "--vm", "tenant-z"), "there is no VM 'tenant-z': must be tenant", 2),
        (("dump", "nothing.txt"), "nothing.txt: cannot be read", 2),
        (("show", "nothing.toml"), "nothing.toml", 2),
        (
            ("learn", SMT2, "--exits", "10", "-o", "/nowhere/file.toml"),
            "/nowhere/file.toml: the mapping cannot be saved there",
            2,
        ),
    ],
)
def test_a_mistake_is_told_with_place_and_way_out(run, args, says, code):
    done = run(*args)
    assert done.code == code and says in done.err
    assert run(*args, "--json").json()["error"]["exit"] == code


def test_a_machine_without_vms_or_exits_is_refused(run, tmp_path):
    empty = written(tmp_path, "name = 'empty'\n", "empty.toml")
    assert "it has no VM" in run("show", empty).err
    idle = written(tmp_path, '[[vm]]\non = ["c0h0"]\n', "idle.toml")
    done = run("learn", idle)
    assert done.code == 2 and "no VM has an exit to learn from" in done.err and "hint: Try guest" in done.err
    assert run("show", idle).code == 0


def test_options_of_a_configuration_do_not_go_with_a_dump(run, tmp_path):
    path = written(tmp_path, run("dump", SMT2).out, "tenant.txt")
    done = run("dump", path, "--host")
    assert done.code == 2 and "is a dump, of one table" in done.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no mapping"),
        ("[[vm]]", "name"),
        ('[[vm]]\nname = "a"\nmap = [{ object = "vcpu", level = "PTX" }]', "PTX"),
        ('[[vm]]\nname = "a"\nmap = [{ object = "vcpus" }]', "'vcpus' is no object"),
        ('[[vm]]\nname = "a"\nmap = [{ object = "vcpu" }, { object = "vcpu" }]', "there twice"),
        ('[[vm]]\nname = "a"\n[[vm]]\nname = "a"', "there twice"),
        ("x = ", "is no mapping"),
    ],
)
def test_a_mapping_file_is_read_strictly(tmp_path, text, says):
    with pytest.raises(InputError) as caught:
        read_mapping(Path(written(tmp_path, text)))
    assert says in str(caught.value) and caught.value.allowed


def test_a_mapping_of_another_machine_is_refused(run, tmp_path):
    path = written(tmp_path, '[[vm]]\nname = "a"\nmap = [{ object = "vcpu" }]', "other.toml")
    done = run("audit", SMT2, "--mapping", path)
    assert done.code == 2 and "it maps nothing for tenant (it is for a)" in done.err


def test_a_pipe_is_not_waited_for(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    done = run("dump", str(tmp_path / "pipe.txt"))
    assert done.code == 2 and "it is no regular file" in done.err


def test_a_torn_gzip_is_refused(tmp_path):
    path = tmp_path / "torn.gz"
    path.write_bytes(gzip.compress(b"x" * 10_000)[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        read_bytes(path)


def test_the_symbols_of_the_configuration_are_those_of_its_host(tmp_path):
    written(tmp_path, "ffffffff81000000 T _text\nffffffff81400000 T _etext\nffffffff81a00000 B _end\n", "kallsyms")
    config = written(tmp_path, '[space]\nkallsyms = "kallsyms"\n[[vm]]\non = ["c0h0"]\n')
    host = host_of(load(config))
    assert host.at("kernel text").end == 0xFFFFFFFF81400000 and host.symbols.named("fast_page_fault", "kvm")


def test_status_does_not_import_the_address_spaces():
    code = "import sys, asid.commands.status; sys.exit(any(name.startswith('asid.mm') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50, check=False).returncode == 0
