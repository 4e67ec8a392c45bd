"""Stress with deadlines: leaves by the thousand while everything that can happen to a core happens to it.

A seed decides what happens. `make test` makes ASID_STRESS_LEAVES leaves (10,000 by default) over the widths; `make
stress` makes a hundred thousand. Whatever happens: no deadlock, no broken guarantee, no orphan.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pytest
from live_rig import leaves_of, machine, pass_time, pid_of, wait_each_progresses, wait_ready

from asid.errors import AsidError

pytestmark = [pytest.mark.live, pytest.mark.slow]

LEAVES = int(os.environ.get("ASID_STRESS_LEAVES", "10000"))
SEED = int(os.environ.get("ASID_STRESS_SEED", "2019"))
APART_S = 2.5  # between two deaths of one place: who dies younger, again and again, is a crash loop, and stays OFFLINE
LEAVES_A_SECOND_MIN = 40  # a machine that makes fewer than this is not stressed but stuck
WIDTHS = ((2, "ack"), (2, "send"), (4, "ack"), (8, "ack"))


class Havoc:
    """Does one random thing at a time to a machine of one core."""

    def __init__(self, client, smt: int, draw: random.Random) -> None:
        self.client, self.smt, self.draw = client, smt, draw
        self.done: dict[str, int] = {}
        self.stopped: list[tuple[float, int]] = []
        self.died: dict[str, float] = {}  # place: when

    def strike(self) -> None:
        self.wake_the_stopped(time.monotonic())
        what = self.draw.choices(
            ("nmi", "mce", "exit", "irq", "kill", "stop", "coordinator", "hotplug"), (30, 10, 20, 10, 8, 6, 3, 5)
        )[0]
        place = f"c0h{self.draw.randrange(self.smt)}"
        self.done[what] = self.done.get(what, 0) + 1
        with contextlib.suppress(AsidError, ProcessLookupError):  # a target that just died takes nothing
            if what in ("nmi", "mce", "irq"):
                self.client.inject(what, place, count=self.draw.randrange(1, 4))
            elif what == "exit":
                self.client.inject_exit(place, reason="EPT_VIOLATION", full="yes", count=self.draw.randrange(1, 20))
            elif what in ("kill", "coordinator"):
                self.signal(place if what == "kill" else "c0", signal.SIGKILL)
            elif what == "stop":
                pid = self.signal(place if self.draw.random() < 0.8 else "c0", signal.SIGSTOP)
                self.stopped.append((time.monotonic() + self.draw.uniform(0.01, 0.6), pid))
            else:
                self.client.unplug(place, force=self.draw.random() < 0.3)
                self.client.plug(place)

    def signal(self, place: str, signum: signal.Signals) -> int:
        pid = pid_of(self.client, place)
        if signum is signal.SIGKILL and time.monotonic() - self.died.get(place, 0.0) < APART_S:
            return 0
        if pid:
            self.died[place] = time.monotonic()
            os.kill(pid, signum)
        return pid

    def wake_the_stopped(self, now: float) -> None:
        for at, pid in self.stopped:
            if at <= now and pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.stopped = [(at, pid) for at, pid in self.stopped if at > now]


@pytest.mark.timeout(60 + LEAVES // LEAVES_A_SECOND_MIN)
@pytest.mark.parametrize(("smt", "kick"), WIDTHS)
def test_leaves_under_everything_at_once(rig, smt, kick):
    wanted = LEAVES // len(WIDTHS)
    draw = random.Random(f"{SEED} {smt} {kick}")
    config = machine(smt, deadline="50ms", pace={"mode": "max"}, policy={"kick": kick})
    daemon = rig.start(config)
    client = daemon.client(timeout_s=20.0)
    havoc = Havoc(client, smt, draw)
    deadline = time.monotonic() + 30 + wanted / LEAVES_A_SECOND_MIN
    made = 0
    while made < wanted:
        havoc.strike()
        pass_time(draw.uniform(0.0, 0.05))
        with contextlib.suppress(AsidError):
            made = leaves_of(client)
        assert time.monotonic() < deadline, f"{made} of {wanted} leaves, seed {SEED}: {client.status()}"
    havoc.wake_the_stopped(float("inf"))
    for ht in range(smt):  # heal: whoever was left unplugged or given up comes back
        client.plug(f"c0h{ht}")
    wait_ready(client, 20.0)
    wait_each_progresses(client, 20.0)
    verdict = daemon.stop(timeout_s=120.0).verdict
    broken = {name: found for name, found in verdict.guarantees.items() if found["broken"]}
    assert verdict.passed, f"seed {SEED}, {havoc.done}: {broken or verdict.document.get('reasons')}"
    assert made >= wanted
    assert sum(havoc.done.values()) > 10
