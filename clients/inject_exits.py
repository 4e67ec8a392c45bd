#!/usr/bin/env python3
#
# inject_exits  Make VM exits happen and say what became of them.
#
# USAGE: inject_exits [-h] [-i INSTANCE] [-R REASON] [-f auto|yes|no] [-c COUNT] [-r RATE] [-t SECONDS] target
#
# An exit that needs only KVM's own data is handled in the isolated address
# space and costs no message. Any other takes the hyperthread to the full one:
# its siblings are kicked out of guest first. Which it is, the policy decides,
# unless -f says so. An exit waits until its hyperthread is in guest.
#
# OVERHEAD: a full exit costs the core one round of its gate.
"""Make VM exits happen and say what became of them."""

from __future__ import annotations

import argparse
import time

import asid.client

EXAMPLES = """examples:
    ./inject_exits.py c0h1                        # one EPT_VIOLATION on hyperthread 1 of core 0
    ./inject_exits.py c0h1 -R CPUID -c 1000       # 1000 of a reason
    ./inject_exits.py 'c*h0' -c 500 -r 100        # 100 a second on hyperthread 0 of every core
    ./inject_exits.py vm1 -R HLT -f yes           # full exits on all vCPUs of VM 1"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make VM exits happen and say what became of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", help="which hyperthreads: c0, c0h1, vm1, vm1/0, c0-3, c*h1, or a list")
    parser.add_argument("-R", "--reason", default="EPT_VIOLATION", help="exit reason, the kernel's name")
    parser.add_argument("-f", "--full", choices=["auto", "yes", "no"], default="auto", help="full address space?")
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
        reply = client.inject_exit(
            args.target,
            reason=args.reason.upper(),
            full=args.full,
            count=args.count,
            rate_hz=args.rate,
            wait=True,
            timeout_s=args.timeout,
        )
        ret, seq = reply.ret, reply.seq
        if ret["job"]:
            job = client.wait_job(ret["job"], timeout_s=args.timeout)
            ret, seq = job["result"], job["seq"]
    seconds = time.monotonic() - started
    names = ("accepted", "handled", "merged", "lost", "refused")
    print(f"{'WHAT':<8} {'TARGET':<10} " + " ".join(f"{name.upper():>8}" for name in names) + "      SEQ  SECONDS")
    counts = " ".join(f"{ret[name]:>8}" for name in names)
    print(f"{'exit':<8} {args.target[:10]:<10} {counts} {seq:>8} {seconds:>8.3f}")
    return 0 if ret["accepted"] == sum(ret[name] for name in names[1:]) else 1


if __name__ == "__main__":
    asid.client.exit_with(main)
