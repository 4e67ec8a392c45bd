#!/usr/bin/env python3
#
# inject_nmis  Send NMIs and say what became of them.
#
# USAGE: inject_nmis [-h] [-i INSTANCE] [-c COUNT] [-r RATE] [-t SECONDS] target
#
# An NMI takes a hyperthread to the full address space at once and asks nobody.
# One that meets another still being handled is held; a third merges with it,
# as on x86: it counts as MERGED, not as lost.
#
# OVERHEAD: each NMI costs the core one round of its gate.
"""Send NMIs and say what became of them."""

from __future__ import annotations

import argparse
import time

import asid.client

EXAMPLES = """examples:
    ./inject_nmis.py c0h1                 # one NMI
    ./inject_nmis.py c0 -c 5              # five on each hyperthread of core 0, of which some merge
    ./inject_nmis.py 'c*' -c 1000 -r 200  # 200 a second everywhere"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Send NMIs and say what became of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", help="which hyperthreads: c0, c0h1, vm1, vm1/0, c0-3, c*h1, or a list")
    parser.add_argument("-c", "--count", type=int, default=1, help="how many on each hyperthread")
    parser.add_argument("-r", "--rate", type=int, default=0, help="how many a second (default: all at once)")
    parser.add_argument(
        "-t", "--timeout", type=asid.client.seconds, default=30.0, help="seconds to wait for the last one"
    )
    parser.add_argument("-i", "--instance", default="", help="which daemon (default: ASID_INSTANCE, or default)")
    return parser.parse_args()


def main() -> int:
    args = parse()
    started = time.monotonic()
    with asid.client.connect(args.instance) as client:
        reply = client.inject_nmi(args.target, count=args.count, rate_hz=args.rate, wait=True, timeout_s=args.timeout)
        ret, seq = reply.ret, reply.seq
        if ret["job"]:
            job = client.wait_job(ret["job"], timeout_s=args.timeout)
            ret, seq = job["result"], job["seq"]
    seconds = time.monotonic() - started
    names = ("accepted", "handled", "merged", "lost", "refused")
    print(f"{'WHAT':<8} {'TARGET':<10} " + " ".join(f"{name.upper():>8}" for name in names) + "      SEQ  SECONDS")
    counts = " ".join(f"{ret[name]:>8}" for name in names)
    print(f"{'nmi':<8} {args.target[:10]:<10} {counts} {seq:>8} {seconds:>8.3f}")
    return 0 if ret["accepted"] == sum(ret[name] for name in names[1:]) else 1


if __name__ == "__main__":
    asid.client.exit_with(main)
