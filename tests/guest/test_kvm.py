"""Real guests: what is said without KVM, what the programs do with it, and that no kick is lost."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kvm_rig import needs_kvm, one_vcpu

from asid.commands import demo, invoke
from asid.errors import ConfigError, HostUnsuitable, PermissionRefused
from asid.guest import kvm_api, kvm_kick
from asid.guest.kvm import check_kvm, find_program, host_isa
from asid.guest.kvm_kick import SIGNAL, Kick, make_bell
from asid.guest.kvm_programs import DATA, FOUND, PROGRAMS, SECRET, GuestMemory, make_memory
from asid.mm.parts import Part

KICKS = int(os.environ.get("ASID_KVM_KICKS", "2000"))  # 100000 takes minutes
TICK_NS = 2_000_000
CONFIG = str(Path(__file__).parents[2] / "configs/kvm-smt2.toml")
RUN_NS = 100_000_000


# --- without KVM ------------------------------------------------------------------------------------------


def test_a_host_without_the_device_is_told_so_in_words(tmp_path):
    with pytest.raises(HostUnsuitable) as refused:
        check_kvm(device=str(tmp_path / "kvm"))
    assert "No such file" in str(refused.value)
    assert "mix" in refused.value.hint


def test_the_demo_does_without_and_says_why_unless_real_guests_were_asked_for(monkeypatch):
    def absent(program=""):
        raise HostUnsuitable("/dev/kvm: No such file or directory")

    monkeypatch.setattr("asid.guest.kvm.check_kvm", absent)
    assert demo._real("auto") == (
        False,
        "Guests are emulated, for there can be no real ones here (/dev/kvm: No such file or directory).",
    )
    with pytest.raises(HostUnsuitable):
        demo._real("kvm")


def test_a_start_with_real_guests_is_refused_where_there_is_no_kvm(monkeypatch, capsys, tmp_path):
    def absent(program=""):
        raise HostUnsuitable("/dev/kvm: No such file or directory", hint="use a guest of source mix")

    monkeypatch.setattr("asid.guest.check.check_kvm", absent)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert invoke(["run", CONFIG, "--duration", "1s"]) == 6
    assert "No such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [["run", "--engine", "sim", "--duration", "1s"], ["assess"]], ids=["run", "assess"])
def test_the_simulator_refuses_real_guests(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert invoke([verb[0], CONFIG, *verb[1:]]) == 2
    said = capsys.readouterr().err
    assert 'guest.source = "kvm"' in said
    assert "--engine live" in said


def test_a_device_that_is_not_ours_is_a_matter_of_permission(monkeypatch):
    def closed(path, flags):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(kvm_api.os, "open", closed)
    with pytest.raises(PermissionRefused) as refused:
        kvm_api.open_device()
    assert "group kvm" in refused.value.hint


class Failing:
    """fcntl whose ioctls fail in one way, and where a device is none do what KVM does."""

    def __init__(self, request, error):
        self.request, self.error = request, error

    def ioctl(self, fd, request, *args):
        if request == self.request:
            raise OSError(self.error, os.strerror(self.error))
        return fcntl.ioctl(fd, request, *args)


@pytest.fixture
def nothing_left():
    """Descriptors, mappings of guests and blocked signals are after a test as they were before."""

    def left():
        maps = Path("/proc/self/maps").read_text().count("asid-try")
        return set(os.listdir("/proc/self/fd")), maps, signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = left()
    yield
    assert left() == before


def test_a_device_that_is_no_kvm_makes_no_vm_and_leaves_nothing_open(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HostUnsuitable, match="fails"):
        kvm_api.open_device("/dev/null")
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_kind_of_processor_comes_from_its_flags(tmp_path):
    told = {"amd": "flags\t: fpu svm\n", "intel": "flags\t: fpu vmx\n", "silent": "flags\t: fpu\n"}
    for name, text in told.items():
        (tmp_path / name).write_text(text)
    assert [host_isa(tmp_path / name) for name in (*told, "absent")] == ["svm", "vmx", "vmx", "vmx"]


def test_a_program_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError) as refused:
        find_program("dance")
    assert "spin" in refused.value.allowed
    assert find_program("").name == "mix"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=lambda program: program.name)
def test_the_machine_code_is_what_its_assembly_says(program, tmp_path):
    """The lines of a program, through the assembler of this host: byte by byte the same."""
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("no assembler on this host")
    bits = 16 if program.mode == "real" else 64
    text = [f".code{bits}", ".intel_syntax noprefix"]
    for _, line in program.lines:
        label, _, instruction = line.rpartition(": ")
        text += [f"l_{label}:"] if label else []
        head, _, target = instruction.rpartition(" ")
        jumps = head.startswith("j") or head == "loop"
        text.append(f"{head} l_{target}" if jumps else instruction.replace("dword ptr ds:0", "dword ptr [0]"))
    source, made, raw = tmp_path / "p.s", tmp_path / "p.o", tmp_path / "p.bin"
    source.write_text("\n".join(text) + "\n")
    assembled = subprocess.run(["as", "-o", made, source], capture_output=True, text=True)
    if "no such instruction" in assembled.stderr or "invalid" in assembled.stderr:
        pytest.skip("the assembler of this host is not one of x86")
    assert assembled.returncode == 0, assembled.stderr
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, raw], check=True)
    assert raw.read_bytes() == program.code


def test_processes_that_map_one_memory_have_one_memory():
    fd = make_memory("test")
    one, other = GuestMemory(fd), GuestMemory(fd)
    os.close(fd)
    one.words[one.word(3, SECRET)] = 77
    assert other.words[other.word(3, SECRET)] == 77
    assert other.words[other.word(2, SECRET)] == 0
    one.close()
    other.close()


def test_a_bell_that_is_rung_signals_its_owners_thread_until_it_is_hushed():
    hear, ring = make_bell()
    kick = Kick(hear)
    os.write(ring, b"12345678")
    assert SIGNAL in signal.sigpending()
    kick.hush()
    assert SIGNAL not in signal.sigpending()
    with pytest.raises(BlockingIOError):
        os.read(hear, 1)
    kick.close()
    os.write(ring, b"1")
    assert SIGNAL not in signal.sigpending(), "a bell without an owner signals nobody"
    assert SIGNAL not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "the mask is as it was"
    for fd in (hear, ring):
        os.close(fd)


def test_a_timer_sends_the_same_signal_to_the_same_thread():
    hear, ring = make_bell()
    kick = Kick(hear)
    kick.arm(1_000_000, 0)
    assert signal.sigtimedwait((SIGNAL,), 5) is not None
    kick.close()
    for fd in (hear, ring):
        os.close(fd)


def test_a_user_who_may_have_no_timer_is_told_and_no_signal_stays_blocked(monkeypatch, nothing_left):
    def none(*_):
        ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(kvm_kick._libc, "timer_create", none)
    hear, ring = make_bell()
    try:
        with pytest.raises(HostUnsuitable, match="making a timer fails: Resource temporarily unavailable"):
            Kick(hear)
    finally:
        os.close(hear)
        os.close(ring)


def test_a_signal_may_come_some_time_after_the_bell_and_comes_until_it_is_hushed(nothing_left):
    hear, ring = make_bell()
    kick = Kick(hear, late_ns=50_000_000)
    begin = time.monotonic_ns()
    os.write(ring, b"1")
    for again in range(1, 4):
        assert signal.sigtimedwait((SIGNAL,), 5) is not None
        assert time.monotonic_ns() - begin > again * 50_000_000
    kick.hush()
    os.write(ring, b"1")
    kick.close()
    assert SIGNAL not in signal.sigpending()
    for fd in (hear, ring):
        os.close(fd)


# --- with it ----------------------------------------------------------------------------------------------


@needs_kvm
@pytest.mark.parametrize(
    ("error", "hint"),
    [(errno.EPERM, "seccomp"), (errno.EBUSY, "Another hypervisor"), (errno.ENOMEM, "out of memory"), (5, "dmesg")],
)
@pytest.mark.parametrize(
    "request_name",
    [
        "CREATE_VM", "SET_USER_MEMORY_REGION", "CREATE_VCPU", "GET_VCPU_MMAP_SIZE", "GET_SUPPORTED_CPUID", "SET_CPUID2",
        "GET_SREGS", "SET_SREGS", "SET_REGS", "SET_SIGNAL_MASK",
    ],
)  # fmt: skip
def test_whatever_kvm_refuses_is_told_and_nothing_is_left(monkeypatch, nothing_left, request_name, error, hint):
    monkeypatch.setattr(kvm_api, "fcntl", Failing(getattr(kvm_api, f"KVM_{request_name}"), error))
    with pytest.raises(HostUnsuitable, match=f"fails: {os.strerror(error)}") as refused:
        check_kvm()
    assert hint in refused.value.hint


def run_for(vcpu, ns=RUN_NS, most=2000):
    """The exits of a guest, until so many have come or so much time is over; and how often it was thrown out."""
    vcpu.kick.arm(TICK_NS, TICK_NS)
    exits, thrown = [], 0
    until_ns = time.monotonic_ns() + ns
    while time.monotonic_ns() < until_ns and len(exits) < most:
        if vcpu.enter():
            exits.append(vcpu.take_exit())
        else:
            thrown += 1
            vcpu.kick.hush()
    return exits, thrown


@needs_kvm
@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_runs_here(program):
    check_kvm(program)


@needs_kvm
@pytest.mark.parametrize(
    ("program", "number", "part"),
    [
        ("port", "io", Part.VMM_DEVICE),
        ("timer", "io", Part.KERNEL_DEVICE),
        ("mmio", "mmio", Part.VMM_DEVICE),
        ("halt", "hlt", Part.BLOCKS),
    ],
)
def test_an_exit_has_the_kernels_name_and_the_parts_of_what_was_asked_for(program, number, part):
    from asid.core.exits import name_of
    from asid.guest.kvm import _NUMBERS

    with one_vcpu(program) as (vcpu, _):
        exits, _ = run_for(vcpu, most=5)
        name = name_of(vcpu.isa, getattr(_NUMBERS[vcpu.isa], number))
    assert len(exits) == 5
    assert {(event.reason, event.parts) for event in exits} == {(name, frozenset({part}))}
    assert all((event.wake_ns > 0) is (program == "halt") for event in exits)


@needs_kvm
@pytest.mark.parametrize("program", ["spin", "cpuid", "prober"])
def test_a_guest_that_never_exits_is_thrown_out_and_goes_on_where_it_was(program):
    with one_vcpu(program) as (vcpu, _):
        thrown_out = 0
        for _ in range(5):
            before = vcpu.count
            until_ns = time.monotonic_ns() + 20_000_000_000
            while vcpu.count == before and time.monotonic_ns() < until_ns:
                exits, thrown = run_for(vcpu, 10_000_000)
                assert not exits
                thrown_out += thrown
            assert vcpu.count > before, "it runs on, and from where it had stopped"
        assert thrown_out > 0


@needs_kvm
def test_a_prober_finds_what_lies_in_its_memory_and_nothing_else():
    with one_vcpu("prober", place=5) as (vcpu, _):
        memory = vcpu.memory
        vcpu.words[memory.word(5, SECRET)] = 0x5EC2E7
        run_for(vcpu)
        assert vcpu.words[memory.word(5, FOUND)] == 0
        for at in range(1000):
            vcpu.words[DATA // 8 + at] = 0x5EC2E7
        until_ns = time.monotonic_ns() + 20_000_000_000
        while not vcpu.words[memory.word(5, FOUND)] and time.monotonic_ns() < until_ns:
            run_for(vcpu)
        assert vcpu.words[memory.word(5, FOUND)] > 0


@needs_kvm
def test_the_host_sets_how_often_the_mixed_program_exits():
    with one_vcpu("mix", rate_hz=500) as (vcpu, _):
        if not vcpu.tsc_khz:
            pytest.skip("this KVM does not know the frequency of its guest's clock")
        exits, _ = run_for(vcpu, 400_000_000, most=10**6)
    # CPUID of each 16 is hidden. A slow host gives fewer, none gives more.
    assert 20 < len(exits) <= 0.4 * 500 * 1.05


@needs_kvm
def test_the_mixed_program_has_every_kind_of_exit():
    with one_vcpu("mix") as (vcpu, _):
        exits, _ = run_for(vcpu, 5_000_000_000, most=600)
    of_64 = {key: 60 * sum(key in (next(iter(e.parts)),) for e in exits) / len(exits) for key in Part}
    shown = {part.value: round(n) for part, n in of_64.items() if n}
    assert shown == {"kernel-device": 52, "vmm-device": 7, "blocks": 1}


@needs_kvm
def test_a_guest_that_cannot_go_on_says_what_kvm_said_and_where():
    with one_vcpu("cpuid") as (vcpu, _):
        regs = list(vcpu._vcpu.regs)
        regs[16] = 0x4000_0000  # nothing is mapped there, and nobody handles the page fault
        vcpu._vcpu.regs = tuple(regs)
        with pytest.raises(HostUnsuitable) as broken:
            run_for(vcpu)
    assert "KVM_EXIT_" in str(broken.value)
    assert "program cpuid" in str(broken.value)


@needs_kvm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_many_kicks_at_random_instants_none_is_lost():
    """A guest that never exits, no timer, and another process that kicks it and waits for the answer."""
    words_fd = os.memfd_create("words", os.MFD_CLOEXEC)
    os.ftruncate(words_fd, 4096)
    words = memoryview(mmap.mmap(words_fd, 4096)).cast("Q")
    kicker = Path(__file__).parent / "kicker.py"
    with one_vcpu("spin") as (vcpu, ring):
        command = [sys.executable, "-S", str(kicker), str(words_fd), str(ring), str(KICKS), "1"]
        with subprocess.Popen(command, pass_fds=(words_fd, ring)) as process:
            # The end of the kicker, whatever it comes of, lets this thread out of guest.
            threading.Thread(target=lambda: (process.wait(), os.write(ring, b"\1")), daemon=True).start()
            answered = early = 0
            while answered <= KICKS and process.poll() is None:
                if words[0] != answered:
                    answered = words[0]
                    words[8] = answered
                before = vcpu.count
                assert not vcpu.enter(), "the program never exits"
                early += vcpu.count == before
                vcpu.kick.hush()
        assert process.returncode == 0, f"kick {words[0]} was lost"
    assert answered >= KICKS
    assert early < KICKS, "it did run in between"


@needs_kvm
def test_a_kick_between_the_look_and_the_entry_lets_no_instruction_run():
    with one_vcpu("spin") as (vcpu, ring):
        assert not vcpu.count
        for _ in range(100):
            os.write(ring, b"\1")  # after the look, before KVM_RUN
            assert not vcpu.enter()
            vcpu.kick.hush()
        assert vcpu.count == 0
