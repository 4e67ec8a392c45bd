"""SIGKILL and SIGSTOP before every kind of step, of hyperthreads and of coordinators, two and four siblings.

Every life of a process ends (or pauses) before another step: the first before its first READY, the next before an
ASK, and so on. In the end everybody must be back and served, and no guarantee may have been broken on the way.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from itertools import islice

import pytest
from live_rig import (
    Rig,
    check_passes,
    machine,
    pass_time,
    pid_of,
    stopped,
    story,
    wait_each_progresses,
    wait_ready,
    wait_until,
)

from asid.client import Client, Daemon
from asid.core.rebirth import YOUNG_DEATHS_MAX
from asid.errors import ControlError
from asid.live.traps import LATE_VARIABLE, VARIABLE

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.stress, pytest.mark.timeout(180, method="signal")]

MAIN = (
    "SEND_READY", "SEND_ASK", "SET_MODE_ISOLATED", "SET_MODE_ENTER", "LOOK", "SET_MODE_GUEST", "SEND_ENTERED", "WORK",
    "CLEAR_PENDING", "SET_MODE_PARKED", "SEND_ANSWER", "SEND_LEAVE", "SET_MODE_HOST", "SEND_DONE",
)  # fmt: skip
HANDLERS = tuple(
    f"{what}_{step}"
    for what in ("NMI", "MCE")
    for step in ("SET_DEPTH_1", "IPI", "SET_MODE_HOST", "WORK", "SET_DEPTH_0", "WAKE")
)
SEND = ("SET_FLAG_1", "IPI", "SET_MODE_HOST", "SET_FLAG_0", "WAKE", "SEND_ANSWER", "CLEAR_PENDING")
GATE = (
    "RECEIVE", "ORDER_ATTACH", "ORDER_ADMIT", "ORDER_GRANT", "ORDER_RESYNC", "REQUEST", "PEND", "TIMER", "WIPE",
    "BURIED",
)  # fmt: skip
# A first coordinator has nobody to resynchronise.
NOT_FIRST = ("ORDER_RESYNC",)
LIVES = YOUNG_DEATHS_MAX - 1  # deaths of one process in a row, one less than it takes to be given up


def plan(steps: tuple[str, ...], places: list[str], how: str, rng: random.Random) -> dict[str, list[str]]:
    """Deal the steps out to the lives of the places; return the traps of each place, one a life."""
    todo = list(steps)
    rng.shuffle(todo)
    todo.sort(key=lambda step: step in NOT_FIRST)
    dealt: dict[str, list[str]] = {place: [] for place in places}
    order: Iterator[str] = (place for _ in range(LIVES) for place in places)
    for step, place in zip(todo, islice(order, len(todo)), strict=True):
        nth = 1 if step in ("SEND_READY", "ORDER_RESYNC", "ORDER_ATTACH", "BURIED") else rng.randint(1, 3)
        dealt[place].append(f"{step}:{nth}:{how}")
    return dealt


def armed(dealt: dict[str, list[str]]) -> str:
    entries = ((place, life, trap) for place, traps in dealt.items() for life, trap in enumerate(traps, start=1))
    return " ".join(f"{place}.{life}:{trap}" for place, life, trap in entries)


def lives(client: Client) -> dict[str, int]:
    """Incarnation of each process that lives, by place."""
    found = {}
    for core in client.status()["cores"]:
        if core["coordinator"]:
            found[f"c{core['core']}"] = core["coordinator"]["inc"]
        found.update({ht["name"]: ht["inc"] for ht in core["hts"] if ht["pid"]})
    return found


def drive(
    client: Client, dealt: dict[str, list[str]], *, hurt: str = "", hold: bool = False, within_s: float = 90
) -> None:
    """Interrupts and deaths enough that every step is come to, until every trap has gone off."""
    deadline = time.monotonic() + within_s
    while True:
        now = lives(client)
        missing = {place: traps for place, traps in dealt.items() if now.get(place, 0) <= len(traps)}
        if not missing:
            return
        assert time.monotonic() < deadline, f"not come to within {within_s:g} s: {missing}, lives {now}"
        for place in (place for place in now if "h" in place):
            with contextlib.suppress(ControlError):  # it may be dead just now
                client.inject_nmi(place)
                client.inject_mce(place)
        if hurt:  # only so does a coordinator wipe and bury
            with contextlib.suppress(ControlError):
                client.inject("kill", hurt, wait=True)
        if hold:  # only so are the lease holders of one VM kicked where leaves send
            with contextlib.suppress(ControlError):
                client.gate_hold("c*")
                client.gate_release("c*")
        pass_time(0.05)


@pytest.mark.parametrize(
    ("smt", "cores", "kick", "steps"),
    [(2, 4, "ack", MAIN + HANDLERS), (4, 2, "ack", MAIN + HANDLERS), (2, 2, "send", SEND), (4, 1, "send", SEND)],
    ids=["ack-2", "ack-4", "send-2", "send-4"],
)
def test_a_hyperthread_killed_before_every_step(rig, monkeypatch, smt, cores, kick, steps):
    seed = int(os.environ.get("ASID_STRESS_SEED", "1"))
    places = [f"c{core}h{ht}" for core in range(cores) for ht in range(smt)]
    dealt = plan(steps, places, "KILL", random.Random(seed))
    monkeypatch.setenv(VARIABLE, armed(dealt))
    daemon = rig.start(machine(smt, cores, policy={"kick": kick}))
    client = daemon.client()
    drive(client, dealt, hold=kick == "send")
    monkeypatch.delenv(VARIABLE)
    finish(rig, daemon, client, deaths=len(steps))


@pytest.mark.parametrize(("smt", "cores"), [(2, 3), (4, 3)])
def test_a_coordinator_killed_before_every_step(rig, monkeypatch, smt, cores):
    seed = int(os.environ.get("ASID_STRESS_SEED", "1"))
    dealt = plan(GATE, [f"c{core}" for core in range(cores)], "KILL", random.Random(seed))
    monkeypatch.setenv(VARIABLE, armed(dealt))
    daemon = rig.start(machine(smt, cores))
    client = daemon.client()
    drive(client, dealt, hurt="c*h0")
    finish(rig, daemon, client, deaths=len(GATE))


@pytest.mark.parametrize("smt", [2, 4])
def test_everybody_stopped_before_every_step_and_let_go_again(rig, monkeypatch, tmp_path, smt):
    """Half a second of silence at each: whoever is in the way is fenced, whoever is not is none the worse for it."""
    seed = int(os.environ.get("ASID_STRESS_SEED", "1"))
    cores = 8 // smt
    places = [f"c{core}h{ht}" for core in range(cores) for ht in range(smt)]
    rng = random.Random(seed)
    traps = [f"{place}.1:{step}:{rng.randint(1, 3)}:STOP" for place, step in zip(places * 2, MAIN[1:], strict=False)]
    # Not while it starts, for which every coordinator must have been heard.
    late = ("ORDER_ADMIT", "ORDER_GRANT", "REQUEST", "RECEIVE")
    traps += [f"c{core}.1:{step}:{rng.randint(1, 50)}:STOP:LATE" for core, step in enumerate(late[:cores])]
    monkeypatch.setenv(VARIABLE, " ".join(traps))
    monkeypatch.setenv(LATE_VARIABLE, str(tmp_path / "started"))
    daemon = rig.start(machine(smt, cores, deadline="200ms"))
    (tmp_path / "started").touch()
    client = daemon.client()
    first = {place: pid_of(client, place) for place in (*places, *(f"c{core}" for core in range(cores)))}
    missing = set(first)
    quiet_since, deadline = time.monotonic(), time.monotonic() + 90
    while missing or time.monotonic() - quiet_since < 1.0:
        now = stopped(daemon)
        if now:
            pass_time(0.5)
            quiet_since = time.monotonic()
        for pid in now:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        born_again = {place for place, inc in lives(client).items() if inc > 1}  # it was stopped, and fenced for it
        missing -= {place for place in missing if first[place] in now or place in born_again}
        assert time.monotonic() < deadline, f"never stopped: {missing}"
        pass_time(0.05)
    finish(rig, daemon, client, deaths=0)


def finish(rig: Rig, daemon: Daemon, client: Client, *, deaths: int) -> None:
    """Faults are off: everybody is back, everybody is served, and the journal holds against every guarantee."""
    wait_ready(client, 15)
    wait_each_progresses(client, 15)
    wait_until(lambda: not stopped(daemon))
    run = daemon.stop()
    assert run.verdict.passed, story(run)
    counts = check_passes(run, "G1", "G5", "L2")
    assert counts["death"] >= deaths
