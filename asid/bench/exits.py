"""asid bench exits: fast exits of one hyperthread as fast as possible, beside bare stores and loads.

The bare loop does to a page of its own what a fast exit cannot do without, in the same interpreter and at the same time
of day: look at the pending bit, count an instruction, publish ISOLATED, ENTER and GUEST. It has no fence, no request
word, no siblings and nobody to answer. During the exits the coordinator must hear and say nothing.
"""

from __future__ import annotations

import time

from asid.bench.figures import Progress, Result, Row, ratio_of
from asid.bench.machine import Event, gate_messages, idle_machine, records_since
from asid.core.events import Mode
from asid.live.page import INSNS, MODE, PENDING, CorePage, base_of, make_page

NAME = "exits"
AIM = ">= 300,000/s"


def measure(quick: bool, on_progress: Progress) -> Result:
    rounds, exits = (2, 20_000) if quick else (7, 1_000_000)
    ours: list[float] = []
    bare: list[float] = []
    messages: list[Event] = []
    with idle_machine() as daemon:
        client = daemon.client(name="bench")
        client.inject_exit("c0h0", reason="CPUID", full="no", count=1000, wait=True)
        for number in range(rounds):
            on_progress(f"exits: round {number + 1} of {rounds}")
            begin = client.ping().seq
            reply = client.inject_exit("c0h0", reason="CPUID", full="no", count=exits, wait=True)
            if reply["job"]:
                client.wait_job(str(reply["job"]), timeout_s=120.0)
            records = records_since(client, begin)
            rate, begin_ns, end_ns = rate_of(records)
            ours.append(rate)
            messages += gate_messages(records, 0, begin_ns, end_ns)
            bare.append(bare_loop(exits))
    mine = Row("asid fast exits", "/s", tuple(ours))
    floor = Row("bare stores and loads", "/s", tuple(bare))
    rounds_of = [([a], [b]) for a, b in zip(ours, bare, strict=True)]
    warnings = () if not messages else (f"{len(messages)} gate messages during the exits; there must be none",)
    facts = {"gate_messages": len(messages), "exits_a_round": exits, "aim": AIM}
    about = "one hyperthread, its sibling in guest, no service time"
    return Result(NAME, about, (mine, floor), (ratio_of(mine, floor, rounds_of),), facts, warnings)


def rate_of(records: list[Event]) -> tuple[float, int, int]:
    """Return fast exits a second, and the stretch they were taken in: from the injection to their last record.

    So what a busy guest does between batches, looking at its sockets and at the clock, is in it.
    """
    begin_ns = next(event["ts"] for event in records if event["type"] == "inject")
    fast = [event for event in records if event["type"] == "exit" and not event["data"]["full"]]
    end_ns = max(event["ts"] for event in fast)
    return sum(event["data"]["n"] for event in fast) / (end_ns - begin_ns) * 1e9, begin_ns, end_ns


def bare_loop(n: int) -> float:
    """Return loops a second of the least that a fast exit must do to a page."""
    page = CorePage(make_page(0, 1), 1)
    words, own = page.words, base_of(0)
    pending, insns, mode = own + PENDING, own + INSNS, own + MODE
    isolated, enter, guest = int(Mode.ISOLATED), int(Mode.ENTER), int(Mode.GUEST)
    begin_ns = time.monotonic_ns()
    for number in range(n):
        if words[pending]:
            break
        words[insns] = number
        words[mode] = isolated
        words[mode] = enter
        words[mode] = guest
    took_ns = time.monotonic_ns() - begin_ns
    page.close()
    return n / took_ns * 1e9
