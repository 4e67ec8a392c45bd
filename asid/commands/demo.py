"""asid demo: what asid is for, in under a minute."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from asid.commands.session import Session
from asid.errors import EXIT_FAIL, AsidError

RUN_NS = 6_000_000_000
STEP_NS = 40_000_000
SEED = 2019  # the year of the RFC


@click.command(epilog="asid demo\nasid demo --seconds 3 --json")
@click.option("--seconds", type=click.FloatRange(1, 60), default=RUN_NS / 1e9, show_default=True, help="Of each run.")
@click.option(
    "--guest",
    type=click.Choice(("auto", "kvm", "mix")),
    default="auto",
    show_default=True,
    help="Real guests (kvm) or emulated ones (mix); auto: real ones where they run.",
)
@click.pass_obj
def command(session: Session, seconds: float, guest: str) -> None:
    """A tour: the same load with policy none, which exposes siblings, and with policy asi, which does not.

    Exit code 0 when both show what they must: none FAILs (it is the negative control) and asi PASSes.
    """
    from asid.drive import configs_dir, shown_config
    from asid.report.compare import compare_lines, compare_row

    say = session.note
    say("One core of two hyperthreads, one VM on both. Each hyperthread is a process, the gate between them another.")
    real, remark = _real(guest)
    say(remark)
    config = configs_dir() / ("kvm-smt2.toml" if real else "smt2.toml")
    outcomes = []
    for policy, about in (
        ("none", "exits are handled beside running guests, nobody is kicked; must FAIL"),
        ("asi", "exits are handled isolated; a full exit kicks the sibling first; must PASS"),
    ):
        say(f"\npolicy {policy}: {about}")
        outcome, injected = _one(str(config), policy, round(seconds * 1e9))
        counts = ", ".join(f"{n} {what}" for what, n in injected.items())
        say(f"  ran {seconds:g} s with {counts} injected -> {outcome.word}{_remark(policy, outcome.word)}")
        outcomes.append(outcome)
    verdicts = [outcome.verdict for outcome in outcomes]
    none, asi = outcomes
    good = none.word == "FAIL" and _broken(none.verdict, "G2") > 0 and asi.word == "PASS"
    text = [
        "",
        *compare_lines(verdicts),
        "",
        f"policy none: {_broken(none.verdict, 'G2'):,} times a guest ran beside a sibling in the full address space"
        " (G2 broken: FAIL, as a negative control must).",
        f"policy asi:  {_asi_line(asi.verdict, real)}",
        *_counted(outcomes),
        "",
        "runs: " + "\n      ".join(str(outcome.run.root) for outcome in outcomes),
        "next: asid audit latest                            every guarantee, from the journal alone",
        "      asid stat latest                             exits by reason, as perf kvm stat",
        f"      asid up {shown_config('smt2.toml')} --detach           a machine of your own; asid watch; asid down",
        "      asid inject nmi c0h1 --count 100 --rate 50/s --wait",
        "      asid policy set kick-every-exit              change one thing and look again",
        "      asid explore                                 every interleaving, and what a broken gate looks like",
        "code: who may enter guest is decided in asid/core/gate.py, function decide",
    ]
    document: dict[str, Any] = {
        "as_expected": good,
        "guest": "kvm" if real else "mix",
        "rows": [compare_row(verdict) for verdict in verdicts],
        "runs": [str(outcome.run.root) for outcome in outcomes],
        "verdicts": verdicts,
    }
    session.show(document, "\n".join(text))
    if not good:
        session.finish(EXIT_FAIL)


def _real(guest: str) -> tuple[bool, str]:
    """Return whether guests are to be real, and what is said of it. Raise what stands in the way of real ones that were
    asked for: HostUnsuitable or PermissionRefused."""
    from asid.guest.kvm import check_kvm

    if guest == "mix":
        return False, "Guests are emulated, as asked for."
    try:
        emulated = check_kvm()
    except AsidError as refused:
        if guest == "kvm":
            raise
        return False, f"Guests are emulated, for there can be no real ones here ({refused.what})."
    how = " (this KVM emulates their instructions in software, so guest time is slow)" if emulated else ""
    return True, f"Guests are real: VM entry is KVM_RUN on /dev/kvm, a kick is a signal{how}."


def _one(config: str, policy: str, duration_ns: int) -> tuple[Any, dict[str, int]]:
    """Run one policy under the same injections; return the outcome and how much was injected."""
    from asid.drive import judge
    from asid.running import Daemon

    counts = {"exits": 0, "NMIs": 0, "MCEs": 0}
    with Daemon.start(config, policy=policy, seed=SEED) as daemon:
        client = daemon.client(name="demo")
        end_ns = time.monotonic_ns() + duration_ns
        step = 0
        while time.monotonic_ns() < end_ns:
            target = f"c0h{step % 2}"
            with contextlib.suppress(AsidError):  # a hyperthread that is just being respawned takes nothing
                counts["exits"] += int(
                    client.inject_exit(target, reason="EPT_VIOLATION", count=5, wait=True)["accepted"]
                )
                counts["NMIs"] += int(client.inject_nmi(target, wait=True)["accepted"])
                if step % 5 == 0:
                    counts["MCEs"] += int(client.inject_mce(target, wait=True)["accepted"])
            step += 1
            _pause(daemon, STEP_NS)
        run = daemon.stop()
    return judge(run), counts


def _pause(daemon: Any, ns: int) -> None:
    """Wait for a moment, or for the end of the daemon, whichever comes first."""
    import subprocess

    with contextlib.suppress(subprocess.TimeoutExpired):
        daemon.process.wait(ns / 1e9)


def _remark(policy: str, word: str) -> str:
    if policy == "none":
        return " (expected: the negative control)" if word == "FAIL" else " (NOT what a negative control must show)"
    return "" if word == "PASS" else " (NOT expected)"


def _broken(verdict: dict[str, Any], guarantee: str) -> int:
    return int(verdict.get("guarantees", {}).get(guarantee, {}).get("broken", 0))


def _counted(outcomes: list[Any]) -> list[str]:
    """Return what real guests' own counts say, a line for each run; nothing where there are none."""
    told = []
    for outcome in outcomes:
        seen = outcome.verdict.get("figures", {}).get("standstill", {})
        for via in sorted(seen.keys() & {"bare", "grant"}):
            visits, moved = seen[via]["visits"], seen[via]["moved"]
            told.append(
                f"The guests' own counters, policy {outcome.verdict['run']['policy']}: moved on in {moved:,} of"
                f" {visits:,} visits of a sibling to the full address space."
            )
    return told


def _asi_line(verdict: dict[str, Any], real: bool) -> str:
    from asid.units import format_ns

    exposure = verdict.get("exposure", {})
    return (
        f"{_broken(verdict, 'G2')} times. NMIs and MCEs do not ask: {exposure.get('count', 0)} exposure windows, "
        f"longest {format_ns(int(exposure.get('max_ns', 0)))}; a guest"
        f" {'is thrown out of KVM_RUN, and not let in,' if real else 'starts no instruction'} in one."
    )
