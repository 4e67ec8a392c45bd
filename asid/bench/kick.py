"""asid bench kick: a voluntary leave beside a bare relay of its four hops.

A leave with a sibling in guest: leave (message), kick (shared word and doorbell), answer (message), granted (message);
three processes. The relay passes one frame of the same size over four such hops and does no work. Short rounds
alternate, so that a host that slows down slows both: leaves of the live machine while the relays sleep, then as many
trips of each relay while the machine is idle.

At two paces. With a pause before each leave, or trip, every process has slept and both guests run: a leave and nothing
else, which is what the aim is for. Back to back, a leave also waits for what is left of the round before it, because
all siblings come back into guest meanwhile; a relay has nothing of the kind.

A leave counts from wanting HOST to being HOST, as the hyperthread's own `leave` record has it, and only if a sibling
that was in guest all the time until then was kicked out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asid.bench.bare import Relay, pause
from asid.bench.figures import Progress, Ratio, Result, Row, ratio_of
from asid.bench.machine import Event, idle_machine, records_since
from asid.client import Client

NAME = "kick"
PAUSE_NS = 5_000_000
SETTLE_NS = 50_000_000  # after the leaves of a round: the records are written, and everybody sleeps
PACES: Final = (("5 ms apart", PAUSE_NS, "<= 1.5"), ("back to back", 0, ""))  # what it is called, the pause, the aim


def measure(quick: bool, on_progress: Progress) -> Result:
    rounds, trips = (2, 10) if quick else (40, 20)
    found = [_Pace(name, pause_ns, aim) for name, pause_ns, aim in PACES]
    with Relay("poll") as poll, Relay("node") as node, idle_machine() as daemon:
        client = daemon.client(name="bench")
        leaves(client, trips, PAUSE_NS)
        for relay in (poll, node):
            relay.run(trips, PAUSE_NS)
        for number in range(rounds):
            if number % 10 == 0:
                on_progress(f"kick: round {number + 1} of {rounds}")
            for pace in found:
                pace.measure(client, poll, node, trips)
    rows = tuple(row for pace in found for row in pace.rows())
    ratios = tuple(ratio for pace in found for ratio in pace.ratios())
    left_out = sum(pace.left_out for pace in found)
    about = "from wanting HOST to being HOST, one sibling in guest"
    return Result(NAME, about, rows, ratios, {"left_out_because_nobody_was_kicked_out_of_guest": left_out})


class _Pace:
    """What was measured at one pace, by round."""

    def __init__(self, name: str, pause_ns: int, aim: str) -> None:
        self.name = name
        self.pause_ns = pause_ns
        self.aim = aim
        self.leaves: list[list[int]] = []
        self.poll: list[list[int]] = []
        self.node: list[list[int]] = []
        self.left_out = 0

    def measure(self, client: Client, poll: Relay, node: Relay, n: int) -> None:
        """One round."""
        waits, others = leaves(client, n, self.pause_ns)
        self.leaves.append(waits)
        self.left_out += others
        self.poll.append(poll.run(n, self.pause_ns))
        self.node.append(node.run(n, self.pause_ns))

    def rows(self) -> tuple[Row, Row, Row]:
        whose = (("leave", self.leaves), ("bare relay, zmq.Poller", self.poll), ("bare relay, our loop", self.node))
        ours, poll, node = (
            Row(f"{who}, {self.name}", "us", tuple(ns / 1000 for each in rounds for ns in each))
            for who, rounds in whose
        )
        return ours, poll, node

    def ratios(self) -> tuple[Ratio, Ratio]:
        ours, poll, node = self.rows()
        return (
            ratio_of(ours, poll, list(zip(self.leaves, self.poll, strict=True)), self.aim),
            ratio_of(ours, node, list(zip(self.leaves, self.node, strict=True))),
        )


def leaves(client: Client, n: int, pause_ns: int) -> tuple[list[int], int]:
    """Make n leaves of c0h0, each after a pause; with none, back to back.

    Return the waits (ns) of those that kicked a guest, and how many did not.
    """
    begin = client.ping().seq
    if pause_ns:
        for _ in range(n):
            pause(pause_ns)
            client.inject_exit("c0h0", full="yes")
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
