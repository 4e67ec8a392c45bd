"""What halt polling saves, over real machines."""

from __future__ import annotations

import pytest
from live_rig import TABLES, machine

from asid.drive import drive

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]


def figures(policy: str, halt_poll: str) -> dict:
    guest = {"source": "mix", "table": str(TABLES / "halts.toml"), "rate": "2000/s", "halt_poll": halt_poll}
    config = machine(vm=[{"name": "tenant", "on": ["c*"], "guest": guest}], policy={"name": policy})
    outcome = drive(config, duration_ns=600_000_000)
    assert outcome.word == "PASS", outcome.verdict["reasons"]
    return outcome.verdict["figures"]


def test_a_halt_that_is_polled_for_kicks_nobody(rig):
    slept, polled = figures("asi", "0s"), figures("asi", "200us")
    assert slept["halts"] > 50 and slept["halts_polled"] == 0
    assert slept["full"] == slept["halts"] and slept["kicks"] > 20
    assert polled["halts_polled"] == polled["halts"] > 50
    assert polled["full"] == 0 == polled["leaves"]["count"], "every halt was handled in the isolated address space"
    assert polled["kicks"] <= 2, "but those of the stop, one a hyperthread"


def test_where_every_exit_is_handled_in_host_the_kicks_stay(rig):
    polled = figures("kick-every-exit", "200us")
    assert polled["halts_polled"] == polled["halts"] > 50
    assert polled["full"] == polled["exits"] and polled["kicks"] > 20
