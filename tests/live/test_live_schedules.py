"""A bug in a policy, from a seed of the simulator to real processes: by the command that asid sim prints."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from asid.errors import EXIT_FAIL

pytestmark = [pytest.mark.live, pytest.mark.slow]

CONFIGS = Path(__file__).parent.parent.parent / "configs"
MINE = """
from asid.core.events import Kick
from asid.core.policies.base import Policy


class QuietIrq(Policy):
    name = "quiet-irq"
    about = "an interrupt that hits a parked hyperthread goes to HOST and kicks nobody"
    irq_kick = Kick.BARE


class Deaf(Policy):
    name = "deaf"
    about = "handlers of NMI and #MC kick nobody, and nobody heeds them"
    guarded = False
"""


def asid(words: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=where, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize("policy", ["QuietIrq", "Deaf"])
def test_a_bug_that_a_seed_finds_is_shown_live_by_the_printed_command(rig, tmp_path, policy):
    (tmp_path / "mine.py").write_text(MINE)
    config = str(CONFIGS / "two-vms.toml")
    found = asid(["asid", "sim", config, "--policy", f"mine:{policy}", "--seeds", "1..6"], tmp_path)
    assert found.returncode == EXIT_FAIL, found.stderr
    assert "The least that still fails:" in found.stdout
    printed = next(line for line in found.stdout.splitlines() if line.startswith("asid replay"))
    live = asid([*shlex.split(printed, comments=True), "--json"], tmp_path)
    assert live.returncode == EXIT_FAIL, live.stderr
    verdict = json.loads(live.stdout)
    assert verdict["verdict"] == "FAIL"
    assert verdict["schedule"]["guarantee"] == "G2" and verdict["schedule"]["reproduced"]
    assert verdict["guarantees"]["G2"]["state"] == "broken"
    assert verdict["schedule"]["steps"] == verdict["schedule"]["of"]
