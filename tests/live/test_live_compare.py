"""`asid compare` over real machines."""

from __future__ import annotations

import json

import pytest
from live_rig import ROOT

from asid.audit import audit
from asid.commands import invoke

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]


def test_two_policies_are_compared_and_leave_their_runs(rig, capsys):
    config = str(ROOT / "configs" / "noisy-neighbour.toml")
    code = invoke(["compare", config, "--policies", "none,asi", "--kicks", "ack", "--repeats", "1",
                   "--duration", "600ms", "--json"])  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert code == 0, document
    none, asi = document["rows"]
    assert (none["label"], asi["label"]) == ("none", "asi/ack")
    assert none["verdict"] == "FAIL" and none["kept"] and "G2" in none["broken"]
    assert asi["verdict"] == "PASS" and asi["vs_none"]["ratio"] > 0 and asi["vs_none"]["low"] is None
    for row in (none, asi):
        assert row["exits_per_s"] > 0 and 0 < row["guest_percent"] < 100 and row["gate_wait_p99_ns"] > 0
    assert none["full_percent"] == 100.0 > asi["full_percent"] > 0
    assert len(document["runs"]) == 2
    for run in document["runs"]:
        assert audit(run["run_dir"]).verdict == run["verdict"], "each run is there, and says the same"
