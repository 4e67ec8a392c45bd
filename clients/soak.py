#!/usr/bin/env python3
#
# soak  Mixed exits, NMIs, machine checks, stalls, kills and hotplug from a seed.
#
# USAGE: soak [-h] [-i INSTANCE | -C CONFIG] [-s SEED] [-d SECONDS] [--no-kills]
#
# First everything is broken that can be, at random but from a seed; then it is
# left alone and must become whole and serve every hyperthread again. A line for
# each check: PASS or FAIL. Exit code 0 only if all passed. Nothing waits longer
# than its deadline. With -C it starts a daemon of its own and its audit counts.
#
# OVERHEAD: not for a daemon whose run you care about.
"""Mixed exits, NMIs, machine checks, stalls, kills and hotplug from a seed."""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import asid.client

EXAMPLES = """examples:
    ./soak.py -C configs/smt2.toml            # its own daemon, 10 seconds, a seed of its own
    ./soak.py -C configs/two-vms.toml -s 42   # the same again
    ./soak.py -i lab -d 60 --no-kills         # a daemon that runs already"""

CALL_S = 10.0  # deadline of one call: far above what any takes, so a miss is a fault
HEAL_S = 20.0  # from the last fault until everything is served again
REASONS = ("EPT_VIOLATION", "CPUID", "MSR_WRITE", "IO_INSTRUCTION", "EXTERNAL_INTERRUPT")
ACTIONS = (
    ("exit", 40),
    ("nmi", 20),
    ("mce", 8),
    ("irq", 10),
    ("stall", 5),
    ("kill", 3),
    ("kill-coordinator", 1),
    ("unplug", 4),
    ("plug", 6),
    ("hold", 3),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Mixed exits, NMIs, machine checks, stalls, kills and hotplug from a seed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-i", "--instance", default="", help="which daemon (default: ASID_INSTANCE, or default)")
    where.add_argument("-C", "--config", default="", help="start a daemon of its own with this configuration")
    parser.add_argument("-s", "--seed", type=int, default=None, help="decides everything that is injected")
    parser.add_argument(
        "-d", "--duration", type=asid.client.seconds, default=10.0, help="seconds of faults (default 10)"
    )
    parser.add_argument("--no-kills", action="store_true", help="no kills and no stalls")
    return parser.parse_args()


class Soak:
    """One soak: what was asked for, what came of it."""

    def __init__(self, client: asid.client.Client, seed: int, kills: bool) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.actions = [(name, w) for name, w in ACTIONS if kills or name not in ("stall", "kill", "kill-coordinator")]
        self.hts = [f"c{row['core']}h{row['ht']}" for row in client.call("ht.list").ret["hts"]]
        self.cores = sorted({name.split("h")[0] for name in self.hts})
        self.counts: Counter[str] = Counter()
        self.ids: set[int] = set()
        self.unanswered: list[str] = []
        self.faults: list[str] = []

    def step(self) -> None:
        """One random action. A refusal is an answer; silence and faults of the daemon are not."""
        names, weights = zip(*self.actions, strict=True)
        what = self.random.choices(names, weights)[0]
        ht, core = self.random.choice(self.hts), self.random.choice(self.cores)
        n = self.random.choice((1, 1, 1, 5, 20))
        self.counts[what] += 1
        self.attempt(what, ht, core, n)

    def attempt(self, what: str, ht: str, core: str, n: int) -> None:
        try:
            if what == "exit":
                self.inject("exit", ht, reason=self.random.choice(REASONS), count=n)
            elif what in ("nmi", "mce", "irq"):
                self.inject(what, ht, count=n)
            elif what == "stall":
                self.inject("stall", ht, for_ms=self.random.choice((1, 10, 30)))
            elif what == "kill":
                self.inject("kill", ht)
            elif what == "kill-coordinator":
                self.inject("kill", core, what="coordinator")
            elif what == "unplug":
                self.client.call("ht.unplug", {"target": ht}, timeout_s=CALL_S)
            elif what == "plug":
                self.client.call("ht.plug", {"target": ht}, timeout_s=CALL_S)
            else:
                self.client.call("gate.hold", {"target": core, "ttl_ms": 500}, timeout_s=CALL_S)
                self.client.call("gate.release", {"target": core}, timeout_s=CALL_S)
        except asid.client.NoAnswer as error:
            self.unanswered.append(f"{what} {ht}: {error}")
        except asid.client.ControlError as error:
            self.counts["refused"] += 1
            if error.wire_class == "Internal":
                self.faults.append(f"{what} {ht}: {error}")

    def inject(self, kind: str, target: str, **args: Any) -> None:
        self.ids.update(self.client.inject(kind, target, timeout_s=CALL_S, **args)["ids"])

    def heal(self, events: asid.client.Events) -> str:
        """Give everything back and wait until all is ready; return what is not."""
        end = time.monotonic() + HEAL_S
        why = ""
        while time.monotonic() < end:
            try:
                self.client.call("ht.plug", {"target": "c*"}, timeout_s=CALL_S)
                why = f"state {self.client.status()['state']}"
                if why == "state ready":
                    return ""
            except asid.client.ControlError as error:
                why = str(error)
            events.next(0.1)
        return why

    def serve(self) -> Iterator[str]:
        """Yield the hyperthreads on which an NMI is not handled, once all is whole again."""
        for ht in self.hts:
            try:
                ret = self.client.inject_nmi(ht, wait=True, timeout_s=HEAL_S).ret
                self.ids.update(ret["ids"])
                if ret["handled"] + ret["merged"] != 1:
                    yield f"{ht}: {ret}"
            except asid.client.AsidError as error:
                yield f"{ht}: {error}"


def check(failed: list[str], name: str, wrong: list[str] | str) -> None:
    """Print one PASS or FAIL line."""
    found = [wrong] if isinstance(wrong, str) and wrong else list(wrong)
    if found:
        failed.append(name)
        print(f"FAIL: soak: {name}: {found[0]}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
    else:
        print(f"PASS: soak: {name}")


def said(found: dict[str, Any]) -> str:
    """The first violation of a guarantee, in the audit's words."""
    return (
        f"({found['broken']} x): {found['violations'][0]['text']}" if found["violations"] else f"({found['broken']} x)"
    )


def soak(client: asid.client.Client, args: argparse.Namespace, seed: int) -> list[str]:
    """Break, heal, check; return the checks that failed."""
    failed: list[str] = []
    with client.events("inject", "death", "loss", "gate.fence") as events:
        run = Soak(client, seed, kills=not args.no_kills)
        end = time.monotonic() + args.duration
        seen: Counter[str] = Counter()
        begun: set[int] = set()
        done: Counter[int] = Counter()

        def read() -> None:
            for event in events.drain():
                seen[event.type] += 1
                if event.type == "inject":
                    begun.add(event.data["id"])
                elif event.type == "inject.done":
                    done[event.data["id"]] += 1

        while time.monotonic() < end:
            run.step()
            read()
        not_ready = run.heal(events)
        check(failed, "all is ready again", not_ready)
        check(failed, "every hyperthread is served again", list(run.serve()))
        deadline = time.monotonic() + HEAL_S
        while True:
            with contextlib.suppress(asid.client.NoAnswer):
                events.wait_seq(client.ping().seq, timeout_s=1)
            read()
            if begun == set(done) or time.monotonic() > deadline:
                break
        check(failed, "every call was answered in time", run.unanswered)
        check(failed, "no fault of the daemon", run.faults)
        wrong = [f"injection {n} ended {done[n]} times" for n in sorted(begun | set(done)) if done[n] != 1]
        wrong += [f"injection {n} was answered and not recorded" for n in sorted(run.ids - begun)]
        check(failed, "each accepted injection ended once", wrong)
        check(failed, "no event was lost", f"{events.lost} were" if events.lost else "")
    print("INFO: soak: " + ", ".join(f"{name} {count}" for name, count in sorted(run.counts.items())))
    print("INFO: soak: seen " + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    return failed


def main() -> int:
    args = parse()
    seed = args.seed if args.seed is not None else secrets.randbelow(2**32)
    print(f"INFO: soak: seed {seed}")
    if args.config:
        with asid.client.Daemon.start(args.config, seed=seed) as daemon:
            failed = soak(daemon.client(name="soak"), args, seed)
            run = daemon.stop()
        verdict = run.verdict
        broken = [f"{name} {said(found)}" for name, found in verdict.guarantees.items() if found["state"] == "broken"]
        check(failed, "audit of the journal", broken if broken or verdict.passed else verdict.verdict)
        print(f"INFO: soak: run directory {run.root}")
    else:
        with asid.client.connect(args.instance, name="soak") as client:
            failed = soak(client, args, seed)
    where = f"-C {args.config}" if args.config else f"-i {args.instance or 'default'}"
    flags = " --no-kills" if args.no_kills else ""
    print(f"INFO: soak: again: clients/soak.py {where} -s {seed} -d {args.duration:g}{flags}")
    return 1 if failed else 0


if __name__ == "__main__":
    asid.client.exit_with(main)
