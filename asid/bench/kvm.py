"""asid bench kvm: a real guest under the gate beside a bare KVM_RUN loop, and how long a kick takes to throw one out.

Exits: the program `timer` does nothing but exit, and its exits are handled isolated. The bare loop runs the same
program in this process, and does nothing with its exits but come back. Rounds of both alternate; while the bare loop
runs, the gate of the machine is held, so that its guest does not.

Kick: the program `spin` never exits. Another process takes the time, rings the doorbell and sleeps; this one takes the
time when KVM_RUN has come back.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from asid.bench.bare import pause
from asid.bench.figures import Progress, Result, Row, ratio_of
from asid.bench.machine import Event, records_since
from asid.client import Client
from asid.errors import AsidError
from asid.guest.kvm import RealVcpu, check_kvm
from asid.guest.kvm_kick import Kick, make_bell
from asid.guest.kvm_programs import PROGRAMS, make_memory
from asid.live.birth import SPAWN, Fd
from asid.running import Daemon

NAME = "kvm"
ABOUT = "a real guest: exits of one vCPU, and signal to out of guest"
PROGRAM: Final = "timer"
TICK_NS: Final = 2_000_000  # as in the live machine
SETTLE_NS: Final = 200_000_000  # two records of fast exits
KICK_PAUSE_NS: Final = 1_000_000
KICK_DEADLINE_S: Final = 30.0
NUMBER, STAMP, ANSWERED = 0, 8, 16  # words of a page of the kicker's, a line each


def measure(quick: bool, on_progress: Progress) -> Result:
    try:
        emulated = check_kvm(PROGRAM)
    except AsidError as refused:
        return Result(NAME, ABOUT, (), (), {}, (f"nothing was measured: {refused}",))
    rounds, round_ns, kicks = (2, 300_000_000, 100) if quick else (20, 700_000_000, 2000)
    ours: list[float] = []
    bare: list[float] = []
    with real_machine() as daemon:
        client = daemon.client(name="bench")
        for number in range(rounds):
            on_progress(f"kvm: round {number + 1} of {rounds}")
            ours.append(exits_of(client, round_ns))
            client.gate_hold("c0", ttl_ms=60_000)
            bare.append(bare_exits(round_ns))
            client.gate_release("c0")
    on_progress(f"kvm: {kicks} kicks")
    mine = Row("asid, exits handled isolated", "/s", tuple(ours))
    floor = Row("bare KVM_RUN loop", "/s", tuple(bare))
    thrown = Row("kick, signal to out of guest", "us", tuple(ns / 1000 for ns in kick_latencies(kicks)))
    each = [([a], [b]) for a, b in zip(ours, bare, strict=True)]
    facts = {"program": PROGRAM, "guest_instructions_emulated": emulated}
    return Result(NAME, ABOUT, (mine, floor, thrown), (ratio_of(mine, floor, each, ">= 0.8"),), facts)


@contextlib.contextmanager
def real_machine() -> Iterator[Daemon]:
    """A core without siblings whose guest does nothing but exit."""
    config = {
        "name": "bench",
        "machine": {"cores": 1, "smt": 1},
        "vm": [{"name": "real", "on": ["c0"], "guest": {"source": "kvm", "program": PROGRAM}}],
        "journal": {"kvm_events": "off"},  # the bare loop beside it is not recorded either
    }
    with (
        tempfile.TemporaryDirectory(prefix="asid-bench-") as root,
        Daemon.start(config, run_dir=Path(root) / "run") as daemon,
    ):
        yield daemon


def exits_of(client: Client, ns: int) -> float:
    """Return fast exits a second of the machine's guest over some time."""
    begin = client.ping().seq
    pause(ns + SETTLE_NS)
    return rate_of(records_since(client, begin))


def rate_of(records: list[Event]) -> float:
    """Return fast exits a second between the first record of them and the last one; 0 for fewer than two."""
    told = [event for event in records if event["type"] == "exit" and not event["data"]["full"]]
    if len(told) < 2:
        return 0.0
    took_ns = told[-1]["ts"] - told[0]["ts"]
    return float(sum(event["data"]["n"] for event in told[1:]) / took_ns * 1e9)


@contextlib.contextmanager
def bare_vcpu(program: str) -> Iterator[tuple[RealVcpu, int]]:
    """A vCPU in this process, and the end of its doorbell to ring."""
    memory_fd = make_memory("asid-bench")
    hear, ring = make_bell()
    try:
        kick = Kick(hear)
        try:
            vcpu = RealVcpu(memory_fd, PROGRAMS[program], 0, kick)
            try:
                yield vcpu, ring
            finally:
                vcpu.close()
        finally:
            kick.close()
    finally:
        for fd in (memory_fd, hear, ring):
            os.close(fd)


def bare_exits(ns: int) -> float:
    """Return exits a second of a loop that does nothing but KVM_RUN, with the tick that the machine has, too."""
    with bare_vcpu(PROGRAM) as (vcpu, _):
        vcpu.kick.arm(TICK_NS, TICK_NS)
        enter, n = vcpu.enter, 0
        begin_ns = time.monotonic_ns()
        until_ns = begin_ns + ns
        while time.monotonic_ns() < until_ns:
            for _ in range(100):
                if enter():
                    n += 1
                else:
                    vcpu.kick.hush()
        return n / (time.monotonic_ns() - begin_ns) * 1e9


def kick_latencies(n: int) -> list[int]:
    """Return how long n kicks took, each from the moment before the doorbell was rung to that after KVM_RUN, in ns."""
    words_fd = os.memfd_create("asid-bench-words", os.MFD_CLOEXEC)
    os.ftruncate(words_fd, mmap.PAGESIZE)
    out: list[int] = []
    with bare_vcpu("spin") as (vcpu, ring), mmap.mmap(words_fd, mmap.PAGESIZE) as page:
        process = SPAWN.Process(target=_kicker, args=(Fd(words_fd), Fd(ring), n))
        process.start()
        deadline_ns = time.monotonic_ns() + int(KICK_DEADLINE_S * 1e9)
        vcpu.kick.arm(TICK_NS * 50, TICK_NS * 50)  # so that a kicker that dies hangs nobody
        with memoryview(page).cast("Q") as words:
            while len(out) < n and time.monotonic_ns() < deadline_ns:
                came = vcpu.enter()
                now = time.monotonic_ns()
                assert not came, "the program never exits"
                if words[NUMBER] != words[ANSWERED]:
                    out.append(now - words[STAMP])
                    words[ANSWERED] = words[NUMBER]
                vcpu.kick.hush()
        process.join(KICK_DEADLINE_S)
        process.close()
    os.close(words_fd)
    return out


def _kicker(words_fd: Fd, ring: Fd, n: int) -> None:
    """Kick n times, with a pause before each, and wait for the answer. Runs in a process of its own."""
    with mmap.mmap(words_fd.fd, mmap.PAGESIZE) as page, memoryview(page).cast("Q") as words:
        for number in range(1, n + 1):
            pause(KICK_PAUSE_NS)
            words[STAMP] = time.monotonic_ns()
            words[NUMBER] = number
            os.write(ring.fd, b"\1")
            deadline_ns = time.monotonic_ns() + int(KICK_DEADLINE_S * 1e9)
            while words[ANSWERED] != number:
                if time.monotonic_ns() > deadline_ns:
                    return
                pause(KICK_PAUSE_NS // 10)
