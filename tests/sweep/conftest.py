"""A matrix of a few short runs, and the verb that sweeps it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from swept import SMALL, Inline

from asid.commands import invoke, sweep


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def run(capsys, monkeypatch):
    """run("small.toml", ..., pool=Inline()) -> code, out, err of `asid sweep`; played in this process."""

    def once(*args: str, pool: Inline | None = None) -> SimpleNamespace:
        chosen = pool or Inline()
        monkeypatch.setattr(sweep, "_pool", lambda jobs, scheduler: chosen)
        code = invoke(["sweep", *args])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out), pool=chosen)

    return once
