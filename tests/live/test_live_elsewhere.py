"""asid called where files lie that are named like modules of Python and of others: none of them is executed."""

from __future__ import annotations

import sys

import pytest
from live_rig import ROOT

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120, method="signal")]

NAMES = ("select", "random", "zmq", "msgpack", "numpy", "mine")
CALLS = (
    ("run", str(ROOT / "configs/smt2.toml"), "--duration", "300ms"),
    ("sim", str(ROOT / "configs/smt2.toml"), "--seeds", "1..2", "--jobs", "2", "--check-determinism"),
)


@pytest.mark.parametrize("words", CALLS, ids=lambda words: words[0])
def test_no_module_of_the_directory_is_executed(rig, tmp_path, words):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"import pathlib\npathlib.Path({name!r}).touch()\n")
    called = rig.spawn(sys.executable, "-P", "-m", "asid", *words, cwd=tmp_path)
    out, err = called.communicate(timeout=90)
    assert called.returncode == 0, (out, err)
    assert not [name for name in NAMES if (tmp_path / name).exists()]
