"""Leaves by the ten thousand under everything at once, from a seed: no deadlock, no broken guarantee, nobody left.

    ASID_STRESS_LEAVES  leaves of all runs together, 10,000 by default (`make stress`: 100,000)
    ASID_STRESS_SEED    decides every fault; told with each failure, and enough to draw the same faults again

First the faults (safety: the audit), then none (progress: everybody is served again within seconds).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from live_rig import (
    GONE_S,
    Rig,
    check_passes,
    family,
    leaves_of,
    machine,
    pass_time,
    pid_of,
    stopped,
    story,
    wait_each_progresses,
    wait_ready,
    wait_until,
)

from asid.audit import audit
from asid.client import Client, Daemon
from asid.core.rebirth import YOUNG_NS
from asid.errors import AsidError

LEAVES = int(os.environ.get("ASID_STRESS_LEAVES", "10000"))
SEED = int(os.environ.get("ASID_STRESS_SEED", "2019"))
STUCK_S = 15.0  # without one leave: a deadlock
LEAVES_A_SECOND_MIN = 40  # a machine that makes fewer than this is not stressed but stuck
# What a leave costs grows with the siblings, so wider cores get a smaller part.
WIDTHS = ((2, "ack", 0.3), (2, "send", 0.3), (4, "ack", 0.25), (8, "ack", 0.15))

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.stress]


class Havoc:
    """Does one random thing at a time to a machine of one core."""

    def __init__(self, daemon: Daemon, client: Client, smt: int, kick: str, draw: random.Random) -> None:
        self.daemon, self.client, self.smt, self.kick, self.draw = daemon, client, smt, kick, draw
        self.done: Counter[str] = Counter()
        self.timers: list[threading.Timer] = []  # of those that are stopped
        self.died: dict[str, float] = {}  # when it was last killed from outside
        self.astray: dict[str, str] = {}  # vCPUs that run nowhere at the moment, and where they belong
        self.menu: dict[Callable[[], None], int] = {
            self.exits: 20, self.nmis: 20, self.mces: 10, self.irqs: 4, self.kill: 6, self.kill_from_outside: 4,
            self.kill_coordinator: 2, self.stop: 5, self.stop_coordinator: 2, self.stop_daemon: 1, self.hotplug: 3,
            self.move: 3, self.hold: 2, self.policy: 1,
        }  # fmt: skip

    def strike(self) -> None:
        """One fault. What the machine refuses, because its target is just gone, is none."""
        [what] = self.draw.choices(list(self.menu), list(self.menu.values()))
        try:
            what()
            self.done[what.__name__] += 1
        except (AsidError, ProcessLookupError):
            self.done["refused"] += 1

    def place(self) -> str:
        return f"c0h{self.draw.randrange(self.smt)}"

    def exits(self) -> None:
        full = self.draw.choice(["yes", "no", "auto"])
        self.client.inject_exit(self.place(), reason="EPT_VIOLATION", full=full, count=self.draw.randint(1, 50))

    def nmis(self) -> None:
        self.client.inject_nmi(self.draw.choice([self.place(), "c0"]), count=self.draw.choice([1, 1, 3, 20]))

    def mces(self) -> None:
        scope = self.draw.choice(["local", "broadcast"])
        self.client.inject_mce(self.place(), scope=scope, count=self.draw.choice([1, 1, 4]))

    def irqs(self) -> None:
        self.client.inject("irq", self.place(), count=self.draw.randint(1, 5))

    def kill(self) -> None:
        self.client.inject("kill", self.place())

    def kill_from_outside(self) -> None:
        """Not more than the machine forgives: who dies young too often stays out, and that is another test."""
        place = self.place()
        pid = pid_of(self.client, place)
        if pid and time.monotonic() - self.died.get(place, 0.0) > 1.2 * YOUNG_NS / 1e9:
            self.died[place] = time.monotonic()
            os.kill(pid, signal.SIGKILL)

    def kill_coordinator(self) -> None:
        self.client.inject("kill", "c0", what="coordinator")

    def stop(self) -> None:
        self.pause(pid_of(self.client, self.place()), self.draw.uniform(0.01, 0.6))

    def stop_coordinator(self) -> None:
        self.pause(pid_of(self.client, "c0"), self.draw.uniform(0.05, 1.0))

    def stop_daemon(self) -> None:
        os.kill(self.daemon.process.pid, signal.SIGSTOP)
        pass_time(self.draw.uniform(0.05, 0.5))
        os.kill(self.daemon.process.pid, signal.SIGCONT)

    def pause(self, pid: int, seconds: float) -> None:
        """Stop a process of ours for a while. Another thread lets it go: this one may have to wait for it."""
        if pid:
            os.kill(pid, signal.SIGSTOP)
            self.timers.append(threading.Timer(seconds, self.let_go, (pid,)))
            self.timers[-1].start()

    def let_go(self, pid: int) -> None:
        if pid in family(self.daemon).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def hotplug(self) -> None:
        place = self.place()
        self.client.unplug(place, force=self.draw.random() < 0.3)
        self.client.plug(place)

    def move(self) -> None:
        """Take a vCPU away and give it back; one that cannot come back now does so at the next move, or at the end."""
        self.come_back()
        place = self.place()
        [ht] = self.client.call("ht.list", {"target": place}).ret["hts"]
        if ht["vm"]:
            self.client.detach(place)
            self.astray[f"vm{ht['vm']}/{ht['vcpu']}"] = place
        pass_time(self.draw.uniform(0, 0.02))
        self.come_back()

    def come_back(self) -> None:
        for vcpu, place in list(self.astray.items()):
            self.client.attach(vcpu, place)
            del self.astray[vcpu]

    def hold(self) -> None:
        self.client.gate_hold("c0", ttl_ms=5_000)
        pass_time(self.draw.uniform(0, 0.05))
        self.client.gate_release("c0")

    def policy(self) -> None:
        self.client.policy_set("kick-every-exit", kick=self.draw.choice(["ack", "send"]))
        self.client.policy_set("asi", kick=self.kick)

    def heal(self) -> None:
        """Faults off: nobody is stopped, unplugged, held out, or without its vCPU."""
        for timer in self.timers:
            timer.join()
        wait_until(lambda: not stopped(self.daemon), what="nobody is stopped")
        with contextlib.suppress(AsidError):
            self.client.gate_release("c0", force=True)
        self.client.plug("c0")
        wait_ready(self.client, 20)
        self.client.policy_set("asi", kick=self.kick)
        self.come_back()


def soak(rig: Rig, smt: int, kick: str, leaves: int) -> str:
    """Make so many leaves under faults; return what was done in words."""
    draw = random.Random(f"{SEED} {smt} {kick}")
    daemon = rig.start(machine(smt, rate="4000/s", deadline="100ms", policy={"kick": kick}), seed=SEED)
    client = daemon.client(timeout_s=20)
    havoc = Havoc(daemon, client, smt, kick, draw)
    begin = last = time.monotonic()
    made = before = 0
    while made < leaves:
        havoc.strike()
        pass_time(draw.uniform(0, 0.04))
        made = leaves_of(client)
        if made != before:
            before, last = made, time.monotonic()
        assert time.monotonic() - last < STUCK_S, f"no leave for {STUCK_S:g} s, seed {SEED}: {client.status()}"
    took = time.monotonic() - begin
    havoc.heal()
    wait_each_progresses(client, 20)
    fences = client.status()["counters"]["fences"]
    run = daemon.stop(timeout_s=180)
    assert run.verdict.passed, f"seed {SEED}, {dict(havoc.done)}: {story(run)}"
    asked = ("G2", "L1") if kick == "ack" else ()  # where a leave asks nobody there is nothing to hold of these
    counts = check_passes(run, "G1", "G5", "G8", "G10", "L2", "L4", *asked)
    assert counts["leave"] >= leaves
    assert counts["death"] > 3 and counts["intr"] > 10, "the faults were really there"
    faults = ", ".join(f"{name} {n}" for name, n in sorted(havoc.done.items()))
    return (
        f"smt {smt} {kick} seed {SEED}: {made} leaves in {took:.1f} s, {sum(counts.values())} records, "
        f"{counts['death']} deaths, {fences} fences, {counts['intr']} interrupts; {faults}"
    )


@pytest.mark.timeout(90 + LEAVES // LEAVES_A_SECOND_MIN, method="signal")
@pytest.mark.parametrize(("smt", "kick", "part"), WIDTHS)
def test_leaves_under_everything_at_once(rig, smt, kick, part):
    told = soak(rig, smt, kick, int(LEAVES * part))
    assert "leaves" in told
    print(f"\n{told}")  # `make stress` shows it


@pytest.mark.timeout(120, method="signal")
@pytest.mark.parametrize("smt", [2, 8])
def test_the_daemon_killed_at_any_moment_leaves_nobody(rig, smt):
    """From its first moments to its last; the next one starts in the same directory every time."""
    draw = random.Random(SEED)
    for number in range(3 if LEAVES < 50_000 else 20):
        daemon = rig.start(machine(smt), instance="again")
        client = daemon.client()
        if number % 3 == 2:
            daemon.process.send_signal(signal.SIGTERM)
        else:
            with contextlib.suppress(AsidError):
                client.inject_nmi("c0", count=50)
                client.inject("kill", f"c0h{draw.randrange(smt)}")
        pass_time(draw.uniform(0, 0.3))
        daemon.kill()
        wait_until(lambda d=daemon: not family(d), GONE_S, f"nobody is left, seed {SEED}, time {number}")
        wait_until(lambda d=daemon: not list(d.paths.root.glob("*.sock")), GONE_S, "no socket file")
        verdict = audit(daemon.run_dir).as_map()
        assert verdict["verdict"] in ("UNKNOWN", "PASS"), verdict
        assert not [name for name, found in verdict["guarantees"].items() if found["state"] == "broken"], verdict
