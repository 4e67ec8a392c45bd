"""The live machine that is measured: a daemon of its own, idle guests, and what its journal says of some time."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asid.client import Client
from asid.running import Daemon

Event = dict[str, Any]


@contextlib.contextmanager
def idle_machine(*, cores: int = 1, smt: int = 2, **options: Any) -> Iterator[Daemon]:
    """A daemon whose guests spin and never exit by themselves; its run directory goes with it."""
    config = {
        "name": "bench",
        "machine": {"cores": cores, "smt": smt},
        "policy": {"kick_deadline": "400ms"},  # a host under load is no reason to fence anybody here
        "vm": [{"name": "idle", "on": [f"c0-{cores - 1}" if cores > 1 else "c0"], "guest": {"source": "idle"}}],
    }
    with tempfile.TemporaryDirectory(prefix="asid-bench-") as root:
        run_dir = Path(root) / "run"
        with Daemon.start(config, run_dir=run_dir, **options) as daemon:
            yield daemon


def records_since(client: Client, seq: int) -> list[Event]:
    """Return every record after `seq`, by its stamp."""
    head = client.ping().seq
    return sorted(client.fetch(seq + 1, head, []), key=lambda event: int(event["ts"]))


def gate_messages(records: list[Event], core: int, begin_ns: int, end_ns: int) -> list[Event]:
    """Return what the coordinator of a core heard or said between two stamps."""
    return [
        event
        for event in records
        if event["core"] == core
        and event["type"].startswith("gate.")
        and begin_ns <= event["ts"] <= end_ns
        # What a hyperthread notes of its own wait is no message.
        and event["type"] != "gate.wait"
    ]
