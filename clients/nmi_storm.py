#!/usr/bin/env python3
#
# nmi_storm  Send NMIs at a fixed rate and show how long siblings were exposed.
#
# USAGE: nmi_storm [-h] [-i INSTANCE] [-r RATE] [-d SECONDS] [-m] [target]
#
# An NMI takes a hyperthread to the full address space at once. Its siblings
# leave guest only when they look at their pending bit. Until then they are in
# guest beside secrets: no guest instruction retires, but the time passes. This
# pairs each NMI (HOST via nmi) with what its siblings were doing, from the
# events alone, and prints the overlaps as a histogram.
#
# OVERHEAD: each NMI costs the core one round of its gate; at 1000/s the guest
# barely runs.
"""Send NMIs at a fixed rate and show how long siblings were exposed."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable

import asid.client

EXAMPLES = """examples:
    ./nmi_storm.py                     # 100 NMIs a second everywhere, for 5 seconds
    ./nmi_storm.py c0h1 -r 1000 -d 2   # one hyperthread, fast
    ./nmi_storm.py c0 -m               # in milliseconds"""

BAR_WIDTH = 40
FOREVER_NS = 2**63
PATIENCE_S = 30  # for the end of a job, beyond twice its length

Span = tuple[int, int, str, str]
"""(begin ns, end ns, mode, via)"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Send NMIs at a fixed rate and show how long siblings were exposed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="?", default="c*", help="which hyperthreads get NMIs (default: all)")
    parser.add_argument("-r", "--rate", type=int, default=100, help="NMIs a second (default 100)")
    parser.add_argument("-d", "--duration", type=float, default=5.0, help="seconds (default 5)")
    parser.add_argument("-m", "--milliseconds", action="store_true", help="histogram in milliseconds")
    parser.add_argument("-i", "--instance", default="", help="which daemon (default: ASID_INSTANCE, or default)")
    return parser.parse_args()


def spans_of(modes: list[tuple[int, str, str, str]]) -> list[Span]:
    """(ts, old, new, via) in order of time -> what the hyperthread did when, from the first to the last change."""
    spans = [(0, modes[0][0], modes[0][1], "")]
    for (begin, _, mode, via), after in zip(modes, [*modes[1:], None], strict=True):
        spans.append((begin, after[0] if after else FOREVER_NS, mode, via))
    return spans


def exposures_ns(events: Iterable[asid.client.Event], idle: dict[tuple[int, int], str]) -> list[int]:
    """Overlaps of a hyperthread in HOST by NMI with a sibling in GUEST. idle: modes of those that never changed."""
    changes: dict[tuple[int, int], list[tuple[int, str, str, str]]] = defaultdict(list)
    for event in sorted(events, key=lambda event: (event.ts, event.seq)):
        if event.type == "ht.mode":
            via = event.data.get("via") or ""
            changes[event.core, event.ht].append((event.ts, event.data["old"], event.data["new"], via))
    spans = {place: spans_of(modes) for place, modes in changes.items()}
    for place, mode in idle.items():
        spans.setdefault(place, [(0, FOREVER_NS, mode, "")])
    found = []
    for (core, ht), own in spans.items():
        for begin, end, _, _ in (span for span in own if span[2] == "HOST" and span[3] == "nmi"):
            for (other_core, other_ht), theirs in spans.items():
                if other_core == core and other_ht != ht:
                    overlaps = (min(end, s[1]) - max(begin, s[0]) for s in theirs if s[2] == "GUEST")
                    found += [ns for ns in overlaps if 0 < ns < FOREVER_NS // 2]
    return found


def histogram(values: list[int], unit: str) -> str:
    """Power-of-two buckets, as the bcc tools print them."""
    counts: dict[int, int] = defaultdict(int)
    for value in values:
        counts[max(value, 1).bit_length() - 1] += 1
    most = max(counts.values())
    lines = [f"{unit:>25} : count     distribution"]
    for bucket in range(max(counts) + 1):
        low, high = (0 if bucket == 0 else 1 << bucket), (1 << bucket + 1) - 1
        stars = "*" * (BAR_WIDTH * counts[bucket] // most)
        lines.append(f"{low:>10} -> {high:<10} : {counts[bucket]:<8} |{stars:<{BAR_WIDTH}}|")
    return "\n".join(lines)


def summary(exposed_ns: list[int], unit_ns: int, unit: str) -> str:
    """Histogram and percentiles of the exposures."""
    if not exposed_ns:
        return "no sibling was in guest beside an NMI"
    ordered = sorted(exposed_ns)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    figures = f"p50 {p50 / 1e3:.1f} us, p99 {p99 / 1e3:.1f} us, max {ordered[-1] / 1e3:.1f} us"
    return histogram([ns // unit_ns for ns in ordered], unit) + f"\n\nexposed {len(ordered)} x: {figures}"


def wait_job(
    client: asid.client.Client, job: str, events: asid.client.Events, seen: list[asid.client.Event], timeout_s: float
) -> asid.client.Reply:
    """Wait for the end of the job and read meanwhile: events that nobody reads are dropped after a while."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        seen += events.drain()
        reply = client.call("job.wait", {"job": job, "timeout_ms": 100})
        if reply["state"] != "running":
            return reply
    raise asid.client.NoAnswer(f"job {job} still runs", hint=f"Wait longer, or cancel it: job.cancel {job}")


def main() -> int:
    args = parse()
    count = max(2, int(args.rate * args.duration))
    with asid.client.connect(args.instance) as client, client.events("ht.mode", "intr") as events:
        idle = {(row["core"], row["ht"]): row["mode"] for row in client.call("ht.list").ret["hts"]}
        print(
            f"Sending {args.rate} NMIs a second to each of {args.target} for {args.duration:g} s... Ctrl-C ends early."
        )
        job = client.inject_nmi(args.target, count=count, rate_hz=args.rate)["job"]
        seen: list[asid.client.Event] = []
        try:
            done = wait_job(client, job, events, seen, timeout_s=args.duration * 2 + PATIENCE_S)
        except KeyboardInterrupt:
            done = client.call("job.cancel", {"job": job}, timeout_s=10)
        events.wait_seq(done["seq"], timeout_s=PATIENCE_S)
        seen += events.drain()
    unit_ns, unit = (1_000_000, "msecs") if args.milliseconds else (1_000, "usecs")
    print("\n" + summary(exposures_ns(seen, idle), unit_ns, unit))
    names = ("accepted", "handled", "merged", "lost")
    print("NMIs: " + ", ".join(f"{done['result'][name]} {name}" for name in names))
    if events.lost:
        print(f"WARNING: {events.lost} events were lost; exposures are missing")
    return 3 if events.lost else 0


if __name__ == "__main__":
    asid.client.exit_with(main)
