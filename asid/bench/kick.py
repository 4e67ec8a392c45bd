"""asid bench kick: a voluntary leave beside a bare relay of its four hops.

A leave with a sibling in guest: leave (message), kick (shared word and doorbell), answer (message), granted (message);
three processes. The relay passes one frame of the same size over four such hops and does no work. Rounds alternate:
leaves of the live machine while the relays sleep, then as many trips of each relay while the machine is idle.

At two paces. Back to back: the next leave, or trip, as soon as the one before is over; caches are warm, as under load.
After a pause: every process has slept and finds its caches cold, which costs the one that has more to do more.

A leave counts from wanting HOST to being HOST, as the hyperthread's own `leave` record has it, and only if a sibling
that was in guest all the time until then was kicked out of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from asid.bench.bare import Relay, pause
from asid.bench.figures import Progress, Ratio, Result, Row, ratio_of
from asid.bench.machine import Event, idle_machine, records_since
from asid.client import Client

NAME = "kick"
AIM = "<= 1.5"
PAUSE_NS = 5_000_000
SETTLE_NS = 20_000_000  # after the leaves of a round: both hyperthreads are in guest again


def measure(quick: bool, on_progress: Progress) -> Result:
    rounds, trips, paused = (2, 20, 5) if quick else (12, 200, 40)
    busy: dict[str, list[list[int]]] = {"asid": [], "poll": [], "node": []}
    cold: dict[str, list[list[int]]] = {"asid": [], "poll": [], "node": []}
    left_out = 0
    with Relay("poll") as poll, Relay("node") as node, idle_machine() as daemon:
        client = daemon.client(name="bench")
        leaves(client, trips, 0)
        for relay in (poll, node):
            relay.run(trips, 0)
        for number in range(rounds):
            on_progress(f"kick: round {number + 1} of {rounds}")
            for samples, n, pause_ns in ((busy, trips, 0), (cold, paused, PAUSE_NS)):
                waits, others = leaves(client, n, pause_ns)
                left_out += others
                samples["asid"].append(waits)
                samples["poll"].append(poll.run(n, pause_ns))
                samples["node"].append(node.run(n, pause_ns))
    rows: list[Row] = []
    ratios: list[Ratio] = []
    for pace, samples in (("back to back", busy), (f"{PAUSE_NS / 1e6:g} ms apart", cold)):
        ours, bare, loop = (
            Row(f"{who}, {pace}", "us", _us(samples[key]))
            for who, key in (("asid leave", "asid"), ("bare relay (poll)", "poll"), ("bare relay (node)", "node"))
        )
        rows += (ours, bare, loop)
        ratios.append(ratio_of(ours, bare, list(zip(samples["asid"], samples["poll"], strict=True)), AIM))
    facts = {"leaves": sum(len(row.samples) for row in rows[::3]), "left_out": left_out}
    warnings = () if all(row.samples for row in rows[::3]) else ("no leave kicked a sibling out of guest",)
    about = "from wanting HOST to being HOST, one sibling in guest; two hyperthreads and their coordinator"
    return Result(NAME, about, tuple(rows), tuple(ratios), facts, warnings)


def leaves(client: Client, n: int, pause_ns: int) -> tuple[list[int], int]:
    """Make n leaves of c0h0, each after a pause; with none, back to back.

    Return the waits (ns) of those that kicked a guest, and how many did not.
    """
    begin = client.ping().seq
    if pause_ns:
        for _ in range(n):
            pause(pause_ns)
            client.inject_exit("c0h0", full="yes", wait=True)
    else:
        client.inject_exit("c0h0", full="yes", count=n, wait=True, timeout_s=30.0)
    pause(SETTLE_NS)
    return kicked_leaves(records_since(client, begin))


def kicked_leaves(records: Sequence[Event]) -> tuple[list[int], int]:
    """Return the waits (ns) of leaves that kicked a sibling out of guest, and how many others there were.

    records: by stamp, of one core of two hyperthreads. A sibling that only came into guest, or only handed back what it
    had not used yet, while the leaver waited is not what is measured.
    """
    kicks = [event["ts"] for event in records if event["type"] == "kick.seen" and event["data"]["was"] == "GUEST"]
    entries = [event["ts"] for event in records if event["type"] == "ht.mode" and event["data"]["new"] == "GUEST"]
    waits, others = [], 0
    for event in records:
        if event["type"] != "leave":
            continue
        wait_ns = event["data"]["wait_ns"]
        begin, end = event["ts"] - wait_ns, event["ts"]
        if any(begin <= ts <= end for ts in kicks) and not any(begin <= ts <= end for ts in entries):
            waits.append(wait_ns)
        else:
            others += 1
    return waits, others


def _us(rounds: Sequence[Sequence[int]]) -> tuple[float, ...]:
    return tuple(ns / 1000 for samples in rounds for ns in samples)
