#!/usr/bin/env python3
#
# watcher  Print what deserves attention as it happens, and rates at an interval.
#
# USAGE: watcher [-h] [-i INSTANCE] [-s] [interval] [count]
#
# Deaths, fences, losses and warnings are printed at once. Every interval a line
# says how many exits, leaves, kicks, NMIs and admissions there were, and how
# many events telemetry dropped on the way (they are fetched again if they can).
#
# OVERHEAD: one subscriber to all events. With many full exits use -s, which
# subscribes to the grave ones only.
"""Print what deserves attention as it happens, and rates at an interval."""

from __future__ import annotations

import argparse
import time
from collections import Counter

import asid.client

EXAMPLES = """examples:
    ./watcher.py            # every second, until Ctrl-C
    ./watcher.py 5 12       # every 5 seconds, 12 times
    ./watcher.py -s         # only deaths, fences, losses and warnings"""

GRAVE = ("death", "gate.fence", "gate.dead", "gate.resync", "loss", "warn", "gap", "run.end")
COLUMNS = ("exits", "full", "leaves", "kicks", "admits", "nmis", "mces", "grave", "gaps", "lost")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Print what deserves attention as it happens, and rates at an interval.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("interval", nargs="?", type=asid.client.seconds, default=1.0, help="seconds (default 1)")
    parser.add_argument("count", nargs="?", type=int, default=0, help="how many intervals (default: for ever)")
    parser.add_argument("-s", "--silent", action="store_true", help="no rates, only what is grave")
    parser.add_argument("-i", "--instance", default="", help="which daemon (default: ASID_INSTANCE, or default)")
    args = parser.parse_args()
    if args.count < 0:
        parser.error(f"argument count: {args.count} is no count: must be 0 (for ever) or more")
    return args


def tally(counts: Counter[str], event: asid.client.Event) -> None:
    """Count one event under its columns."""
    if event.type == "exit":
        counts["exits"] += event.data.get("n", 1)
        counts["full"] += event.data.get("n", 1) if event.data.get("full") else 0
    elif event.type == "leave":
        counts["leaves"] += 1
    elif event.type == "gate.kick":
        counts["kicks"] += 1
    elif event.type == "gate.admit":
        counts["admits"] += 1
    elif event.type == "intr":
        counts["nmis" if event.data.get("what") == "nmi" else "mces"] += 1
    if event.type in GRAVE:
        counts["grave"] += 1


def tell(event: asid.client.Event) -> None:
    place = f"c{event.core}" if event.core >= 0 else "-"
    place += f"h{event.ht}" if event.ht >= 0 else ""
    data = " ".join(f"{name}={value}" for name, value in event.data.items())
    print(f"{event.seq or '-':<9} {place:<6} {event.type:<10} {data}", flush=True)


def main() -> int:
    args = parse()
    topics = GRAVE if args.silent else ()
    with asid.client.connect(args.instance) as client, client.events(*topics) as events:
        if not args.silent:
            print(f"{'TIME':<9}" + "".join(f" {name.upper():>8}" for name in COLUMNS))
        intervals = 0
        while not events.ended and (not args.count or intervals < args.count):
            counts: Counter[str] = Counter()
            gaps, lost = events.gaps, events.lost
            end = time.monotonic() + args.interval
            while not events.ended and (left := end - time.monotonic()) > 0:
                event = events.next(left)
                if event is not None:
                    tally(counts, event)
                    if event.type in GRAVE:
                        tell(event)
            counts["gaps"], counts["lost"] = events.gaps - gaps, events.lost - lost
            intervals += 1
            if not args.silent:
                print(
                    f"{time.strftime('%H:%M:%S'):<9}" + "".join(f" {counts[name]:>8}" for name in COLUMNS), flush=True
                )
    return 3 if events.lost else 0


if __name__ == "__main__":
    asid.client.exit_with(main)
