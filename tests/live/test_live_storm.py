"""clients/nmi_storm.py against machines of its own, and against one that runs: NMIs and #MCs at random instants."""

from __future__ import annotations

import sys

import pytest
from live_rig import ROOT, check_passes, machine

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(180, method="signal")]

SCRIPT = str(ROOT / "clients" / "nmi_storm.py")
STORM = ("--nmis", "400", "--mces", "8", "--rate", "800")


def table(out: str) -> dict[tuple[str, str], list[str]]:
    """(kick, by) -> the numbers."""
    rows = [line.split() for line in out.splitlines()]
    return {(words[0], words[1]): words[2:] for words in rows if len(words) > 2 and words[1] in ("nmi", "mce", "all")}


def test_each_kick_has_a_run_of_its_own_and_passes(rig):
    config = str(ROOT / "configs" / "nmi-storm.toml")
    process = rig.spawn(sys.executable, SCRIPT, "-C", config, *STORM, "--kicks", "ack,stun", "--broadcast")
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, out + err
    found = table(out)
    for kick in ("ack", "stun"):
        assert f"\nPASS: {kick}: " in out
        sent, handled, merged, lost = (int(word.replace(",", "")) for word in found[kick, "nmi"][:4])
        assert (sent, handled + merged, lost) == (400, 400, 0) and handled > 0
        assert found[kick, "mce"][0] == "32", "each reaches all four"


def test_on_a_machine_that_runs_the_kick_is_changed_and_changed_back(rig):
    daemon = rig.start(machine(2, policy={"kick": "send"}))
    process = rig.spawn(sys.executable, SCRIPT, "-i", daemon.paths.name, *STORM, "--kicks", "ack,stun")
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, out + err
    assert set(table(out)) == {(kick, what) for kick in ("ack", "stun") for what in ("nmi", "mce", "all")}
    assert daemon.client().status()["kick"] == "send"
    counts = check_passes(daemon.stop(), "G8", "G10")
    assert counts["policy"] == 4, "two there and two back"
