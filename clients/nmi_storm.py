#!/usr/bin/env python3
#
# nmi_storm  Send NMIs and show how long siblings were exposed.
#
# USAGE: nmi_storm [-h] [-i INSTANCE] [-r RATE] [-d SECONDS] [-m] [target]
#        nmi_storm [-i INSTANCE | -C CONFIG] [-r RATE] [-s SEED] [--nmis N]
#                  [--mces N] [--broadcast] [--kicks LIST] [target]
#
# An NMI takes a hyperthread to the full address space at once. Its siblings
# leave guest only when they look at their pending bit. Until then they are in
# guest beside secrets: no guest instruction retires, but the time passes. This
# pairs each NMI (HOST via nmi) with what its siblings were doing, from the
# events alone, and prints the overlaps as a histogram.
#
# With --nmis the NMIs, and machine checks, come at random instants from a seed,
# and --kicks does it once for each kick variant: a line each, with how many were
# handled, how many merged (one NMI waits, as on x86; more are that one), and
# the exposure. With -C each variant is a run of a daemon of its own, and its
# audit counts: exit code 1 when one FAILs, 3 when one is UNKNOWN. On a daemon
# that runs already the kick is changed in between and changed back, the verdict
# is that of its end, and percentiles and maximum are read off a histogram with
# four buckets to the octave.
#
# OVERHEAD: each NMI costs the core one round of its gate; at 1000/s the guest
# barely runs. A run of 100,000 has some two million records to be audited.
"""Send NMIs and show how long siblings were exposed."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import resource
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import asid.client

EXAMPLES = """examples:
    ./nmi_storm.py                     # 100 NMIs a second everywhere, for 5 seconds
    ./nmi_storm.py c0h1 -r 1000 -d 2   # one hyperthread, fast
    ./nmi_storm.py c0 -m               # in milliseconds
    ./nmi_storm.py -C configs/nmi-storm.toml --nmis 100000 --mces 1000 --kicks ack,send,rendezvous,stun"""

BAR_WIDTH = 40
FOREVER_NS = 2**63
PATIENCE_S = 30  # for the end of a job, beyond twice its length
STORM_RATE = 1_000  # NMIs a second on all hyperthreads together
AUDIT_S = 3_600  # two million records take some minutes
KICKS = ("ack", "send", "rendezvous", "stun")
RESULTS = ("handled", "merged", "lost")
PARTS = ("p50", "p99", "max")
WIDTHS = (12, 5, 9, 9, 9, 6, 9, 9, 9, 11)
PAUSE_S = 0.05  # between two looks whether the machine is ready
SEEDS_APART = 1 << 20  # a hyperthread's own seed is counted on from that of the storm
EXITS = {"PASS": 0, "": 0, "FAIL": 1, "UNKNOWN": 3}

Span = tuple[int, int, str, str]
"""(begin ns, end ns, mode, via)"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Send NMIs and show how long siblings were exposed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="?", default="c*", help="which hyperthreads get NMIs (default: all)")
    parser.add_argument("-r", "--rate", type=int, default=0, help="NMIs a second and hyperthread (default 100)")
    parser.add_argument("-d", "--duration", type=asid.client.seconds, default=5.0, help="seconds (default 5)")
    parser.add_argument("-m", "--milliseconds", action="store_true", help="histogram in milliseconds")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-i", "--instance", default="", help="which daemon (default: ASID_INSTANCE, or default)")
    where.add_argument("-C", "--config", default="", help="a daemon of its own for each kick, with this configuration")
    storm = parser.add_argument_group("a storm at random instants")
    storm.add_argument("--nmis", type=int, default=0, help="so many in all, at RATE in all (default 1000/s)")
    storm.add_argument("--mces", type=int, default=0, help="so many machine checks besides, in the same time")
    storm.add_argument("--broadcast", action="store_true", help="machine checks reach all siblings")
    storm.add_argument("--kicks", default="", metavar="LIST", help="as in ack,send: once for each (default: as it is)")
    storm.add_argument("-s", "--seed", type=int, default=1, help="decides every instant (default 1)")
    args = parser.parse_args()
    if args.nmis < 0 or args.mces < 0 or args.rate < 0 or args.seed < 0:
        parser.error("counts, rates and seeds are 0 or more")
    if not args.nmis and (args.mces or args.kicks or args.config):
        parser.error("--mces, --kicks and --config go with --nmis")
    if wrong := [kick for kick in args.kicks.split(",") if args.kicks and kick not in KICKS]:
        parser.error(f"argument --kicks: {wrong[0]!r} is no kick: must be some of {','.join(KICKS)}")
    return args


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


def shares(total: int, hts: int) -> list[int]:
    """So many for each hyperthread, together the total."""
    return [total // hts + (at < total % hts) for at in range(hts)]


class Storm:
    """NMIs and machine checks at random instants on every hyperthread of a target, and what became of them."""

    def __init__(self, client: asid.client.Client, args: argparse.Namespace) -> None:
        self.client, self.args = client, args
        self.seconds = args.nmis / (args.rate or STORM_RATE)
        self.counts: dict[str, Counter[str]] = {"nmi": Counter(), "mce": Counter()}
        self.took_s = 0.0

    def wait_ready(self) -> None:
        end, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while self.client.status()["state"] != "ready" and time.monotonic() < end:
            pause.wait(PAUSE_S)

    def send(self, what: str, total: int, seed: int, **more: str) -> Iterator[str]:
        """Begin a job for each hyperthread, with instants of its own. A single one is none, and is over at once."""
        hts = [
            f"c{row['core']}h{row['ht']}" for row in self.client.call("ht.list", {"target": self.args.target})["hts"]
        ]
        for at, (ht, count) in enumerate(zip(hts, shares(total, len(hts)), strict=True)):
            pace: dict[str, Any] = {}
            if count > 1:
                pace = {"rate_hz": max(1, round(count / self.seconds)), "gaps": "random", "seed": seed + at}
            if count:
                reply = self.client.inject(what, ht, count=count, wait=True, timeout_s=PATIENCE_S, **pace, **more)
                if reply["job"]:
                    yield reply["job"]
                else:
                    self.add(what, reply.ret)

    def add(self, what: str, result: dict[str, int]) -> None:
        self.counts[what].update({name: result[name] for name in RESULTS})

    def blow(self) -> None:
        """All of it, to the end of the last handler."""
        self.wait_ready()
        begin = time.monotonic()
        seed, scope = self.args.seed * SEEDS_APART, {"scope": "broadcast"} if self.args.broadcast else {}
        jobs = [("nmi", job) for job in self.send("nmi", self.args.nmis, seed)]
        jobs += [("mce", job) for job in self.send("mce", self.args.mces, seed + SEEDS_APART // 2, **scope)]
        for what, job in jobs:
            done = self.client.wait_job(job, timeout_s=4 * self.seconds + PATIENCE_S)
            self.add(what, done["result"])
        self.took_s = time.monotonic() - begin


def percentiles_of(buckets: Iterable[Sequence[int]]) -> dict[str, int]:
    """The audit's words for exposures, from [bucket, count] pairs: bucket b begins at 2**(b/4) ns."""
    counts = sorted((bucket, count) for bucket, count in buckets if count > 0)
    so_far = list(itertools.accumulate(count for _, count in counts))
    if not counts:
        return {"count": 0}

    def middle(part: float) -> int:
        bucket = counts[bisect_left(so_far, math.ceil(so_far[-1] * part))][0]
        return round(2 ** ((bucket + 0.5) / 4))

    end_ns = round(2 ** ((counts[-1][0] + 1) / 4))
    return {"count": so_far[-1], "p50_ns": middle(0.5), "p99_ns": middle(0.99), "max_ns": end_ns}


def row(*cells: str) -> str:
    return "".join(
        cell.ljust(width) if at < 2 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )


def line_of(kick: str, what: str, counts: Counter[str] | None, exposure: dict[str, int] | None) -> str:
    """One line of the table. counts: None for exposures that nobody injected; exposure: None where it is not known."""
    sent = [""] * 4 if counts is None else [f"{n:,}" for n in (counts.total(), *(counts[name] for name in RESULTS))]
    if exposure is None:
        return row(kick, what, *sent, *[""] * 4).rstrip()
    found = exposure["count"]
    times = [f"{exposure[f'{name}_ns'] / 1e3:,.1f}" if found else "-" for name in PARTS]
    return row(kick, what, *sent, f"{found:,}", *times)


def own_run(args: argparse.Namespace, kick: str) -> str:
    """A storm on a daemon of its own, judged. Return the verdict."""
    with asid.client.Daemon.start(args.config, kick=kick, seed=args.seed) as daemon:
        storm = Storm(daemon.client(name="nmi_storm"), args)
        storm.blow()
        begin = time.monotonic()
        run = daemon.stop(timeout_s=AUDIT_S)
        judged_s = time.monotonic() - begin
    document = run.verdict.document
    by_cause = document["exposure"]["by_cause"]
    kick = document["run"]["kick"]
    for what, counts in storm.counts.items():
        print(line_of(kick, what, counts, by_cause.pop(what, {"count": 0})))
    for what, exposure in by_cause.items():  # `send` and `stun` leaves expose, too
        print(line_of(kick, what, None, exposure))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{run.verdict.verdict}: {kick}: {storm.took_s:.0f} s, {document['figures']['records']:,} records, stopped and"
        f" audited in {judged_s:.0f} s with {peak_mb:,.0f} MB\n      {run.root}"
    )
    for reason in document["reasons"]:
        print(f"      {reason}")
    for name, found in run.verdict.guarantees.items():
        if found["state"] == "broken":
            print(f"      {name} is broken {found['broken']} x: {found['violations'][0]['text']}")
    return run.verdict.verdict


def on_running(client: asid.client.Client, args: argparse.Namespace, kick: str) -> str:
    """A storm on a daemon that runs already, under this kick. Its verdict is that of its end: return ""."""
    status = client.status()
    if kick:
        client.policy_set(status["policy"], kick=kick)
    before = Counter(dict(client.call("hist.get", {"what": "exposure"})["buckets"]))
    storm = Storm(client, args)
    storm.blow()
    after = Counter(dict(client.call("hist.get", {"what": "exposure"})["buckets"]))
    for what, counts in storm.counts.items():
        print(line_of(kick or status["kick"], what, counts, None))
    print(line_of(kick or status["kick"], "all", None, percentiles_of((after - before).items())))
    if kick:
        client.policy_set(status["policy"], kick=status["kick"])
    return ""


def storms(args: argparse.Namespace) -> int:
    """A storm for each kick; the exit code is that of the gravest verdict."""
    print(f"{args.nmis:,} NMIs and {args.mces:,} machine checks for each kick, seed {args.seed}\n")
    print(row("kick", "by", "sent", *RESULTS, "exposed", *(f"{name} us" for name in PARTS)), flush=True)
    codes = []
    with contextlib.ExitStack() as stack:
        client = None if args.config else stack.enter_context(asid.client.connect(args.instance, name="nmi_storm"))
        for kick in args.kicks.split(",") if args.kicks else [""]:
            codes.append(EXITS[own_run(args, kick) if client is None else on_running(client, args, kick)])
            sys.stdout.flush()
    return min(codes, key=lambda code: (code != 1, -code))


def main() -> int:
    args = parse()
    if args.nmis:
        return storms(args)
    args.rate = args.rate or 100
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
