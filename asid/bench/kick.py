"""asid bench kick: a voluntary leave beside a bare relay of its four hops.

A leave with a sibling in guest: leave (message), kick (shared word and doorbell), answer (message), granted (message);
three processes. The relay passes one frame of the same size over four such hops and does no work. Rounds alternate:
some leaves of the live machine while the relays sleep, then as many trips of each relay while the machine is idle, each
leave and each trip after the same pause.

A leave counts from wanting HOST to being HOST, as the hyperthread's own `leave` record has it, and only if the sibling
was really kicked out of guest.
"""

from __future__ import annotations

from collections.abc import Sequence

from asid.bench.bare import Relay, pause
from asid.bench.figures import Progress, Result, Row, ratio_of
from asid.bench.machine import Event, idle_machine, records_since
from asid.client import Client

NAME = "kick"
AIM = "<= 1.5"
PAUSE_NS = 5_000_000


def measure(quick: bool, on_progress: Progress) -> Result:
    rounds, trips = (2, 10) if quick else (12, 60)
    leaves: list[list[int]] = []
    polled: list[list[int]] = []
    nodes: list[list[int]] = []
    without_kick = 0
    with Relay("poll") as poll, Relay("node") as node, idle_machine() as daemon:
        client = daemon.client(name="bench")
        leave_once(client, 3)
        poll.run(3, PAUSE_NS)
        node.run(3, PAUSE_NS)
        for number in range(rounds):
            on_progress(f"kick: round {number + 1} of {rounds}")
            waits, others = leave_once(client, trips)
            leaves.append(waits)
            without_kick += others
            polled.append(poll.run(trips, PAUSE_NS))
            nodes.append(node.run(trips, PAUSE_NS))
    ours = Row("asid leave", "us", _us(leaves))
    bare_poll = Row("bare relay, zmq.Poller", "us", _us(polled))
    bare_node = Row("bare relay, node loop", "us", _us(nodes))
    ratios = (
        ratio_of(ours, bare_poll, list(zip(leaves, polled, strict=True)), AIM),
        ratio_of(ours, bare_node, list(zip(leaves, nodes, strict=True))),
    )
    warnings = [f"{without_kick} leaves found no sibling in guest and are left out"] if without_kick else []
    facts = {"pause_before_each": f"{PAUSE_NS / 1e6:g} ms", "leaves_kicked": sum(map(len, leaves))}
    return Result(NAME, "wanting HOST to HOST, one sibling in guest", (ours, bare_poll, bare_node), ratios, facts,
                  tuple(warnings))  # fmt: skip


def leave_once(client: Client, n: int) -> tuple[list[int], int]:
    """Make n leaves of c0h0, one at a time. Return the waits (ns) that kicked a guest, and how many did not."""
    begin = client.ping().seq
    for _ in range(n):
        pause(PAUSE_NS)
        client.inject_exit("c0h0", full="yes", wait=True)
    pause(PAUSE_NS)
    return kicked_leaves(records_since(client, begin))


def kicked_leaves(records: Sequence[Event]) -> tuple[list[int], int]:
    """Return the waits of leaves during which a sibling was kicked out of GUEST, in ns, and how many others there were.

    records: by stamp, of one core of two hyperthreads.
    """
    kicks = [event["ts"] for event in records if event["type"] == "kick.seen" and event["data"]["was"] == "GUEST"]
    waits, others = [], 0
    for event in records:
        if event["type"] == "leave":
            wait_ns = event["data"]["wait_ns"]
            if any(event["ts"] - wait_ns <= ts <= event["ts"] for ts in kicks):
                waits.append(wait_ns)
            else:
                others += 1
    return waits, others


def _us(rounds: Sequence[Sequence[int]]) -> tuple[float, ...]:
    return tuple(ns / 1000 for samples in rounds for ns in samples)
