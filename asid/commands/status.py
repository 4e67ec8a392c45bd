"""asid status: one screen about a daemon."""

from __future__ import annotations

import time
from typing import Any

import click

from asid.commands.session import Session, columns, instance_option
from asid.errors import EXIT_FAIL

EXPECTED = {"ready": ("ready", "degraded"), "healthy": ("ready",)}


@click.command(epilog="asid status\nasid status --expect healthy   # exit code 1 when it is not")
@click.option("--expect", type=click.Choice(sorted(EXPECTED)), help="Exit 1 unless the daemon is so.")
@instance_option
@click.pass_obj
def command(session: Session, expect: str | None) -> None:
    """Show state, policy, gates and hyperthreads."""
    with session.client() as client:
        status = client.status()
        hts = client.call("ht.list").ret["hts"]
        gates = client.call("gate.get").ret["gates"]
        instance = client.endpoints
    document = {"instance": instance.instance, "pid": instance.pid, "status": status, "hts": hts, "gates": gates}
    session.show(document, lambda: render(document, time.monotonic_ns()))
    if expect is not None and status["state"] not in EXPECTED[expect]:
        session.note(f"asid: expected {expect}, it is {status['state']}")
        session.finish(EXIT_FAIL)


def render(document: dict[str, Any], now_ns: int) -> str:
    """Return the screen. now_ns: CLOCK_MONOTONIC, the clock of started_ns."""
    status = document["status"]
    up_s = max(0, now_ns - status["started_ns"]) / 1e9
    lines = [
        f"{document['instance']}: {status['state']}, up {up_s:.1f} s, pid {document['pid']}, run {status['name']}",
        f"policy {status['policy']}, kick {status['kick']}, seed {status['seed']}",
        f"run directory {status['run_dir']}",
    ]
    lines += [f"warning: {text}" for text in status["warnings"]]
    gates = [
        (f"c{gate['core']}", _gate(gate), gate.get("round", 0), _vm(gate.get("vm", 0)),
         _number(gate.get("waiting", 0)), gate.get("holder") or "-")
        for gate in document["gates"]
    ]  # fmt: skip
    lines += ["", columns(("CORE", "GATE", "ROUND", "VM", "WAITING", "HELD BY"), gates, right=(2, 4))]
    hts = [
        (ht.get("name") or f"c{ht['core']}h{ht['ht']}", ht.get("mode", "-"), _vm(ht.get("vm", 0)), ht.get("pid", "-"),
         ht.get("inc", "-"), *(f"{ht.get(name, 0):,}" for name in ("exits", "full", "nmis", "mces")))
        for ht in document["hts"]
    ]  # fmt: skip
    head = ("HT", "MODE", "VM", "PID", "INC", "EXITS", "FULL", "NMIS", "MCES")
    lines += ["", columns(head, hts, right=range(3, 9))]
    losses = {name: count for name, count in status["counters"].items() if count and name in LOSSES}
    if losses:
        lines += ["", "lost: " + ", ".join(f"{name} {count:,}" for name, count in losses.items())]
    return "\n".join(lines)


LOSSES = ("dropped", "malformed", "over_rate", "internal", "tel_dropped", "journal_lost")


def _gate(gate: dict[str, Any]) -> str:
    return "silent" if gate.get("phase") == "silent" else "open" if gate.get("open") else "closed"


def _vm(number: object) -> str:
    return f"vm{number}" if number else "-"


def _number(value: object) -> object:
    return len(value) if isinstance(value, list | tuple) else value
