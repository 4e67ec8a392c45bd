"""Fixtures for tests of things that talk to asid: load with `pytest_plugins = ["asid.pytest_plugin"]` or `-p`.

    def test_mine(asid_client):
        assert asid_client.inject_nmi("c0h0", wait=True)["handled"] == 1

    @pytest.mark.asid(config="configs/smt4.toml", policy="none", seed=7)
    def test_another(asid_daemon): ...

The daemon lives for one test, in directories of that test, and is killed if it does not stop; a test of it is `live`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from asid.client import Client, Daemon

TINY: dict[str, Any] = {
    "name": "plugin",
    "machine": {"cores": 1, "smt": 2},
    "vm": [{"name": "a", "on": ["c0h0", "c0h1"], "guest": {"source": "idle"}}],
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "asid(config, policy, kick, seed): how asid_daemon is started")


@pytest.fixture
def asid_config(request: pytest.FixtureRequest) -> str | dict[str, Any]:
    """The configuration of asid_daemon: the mark's, else a core of two hyperthreads with an idle guest. Override it."""
    mark = request.node.get_closest_marker("asid")
    chosen: str | dict[str, Any] = mark.kwargs.get("config", TINY) if mark else TINY
    return chosen


@pytest.fixture
def asid_daemon(
    request: pytest.FixtureRequest,
    asid_config: str | dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Daemon]:
    """A daemon of this test's own, stopped at its end."""
    from asid.client import Daemon

    mark = request.node.get_closest_marker("asid")
    options = {name: value for name, value in (mark.kwargs if mark else {}).items() if name != "config"}
    # Not under tmp_path: a socket's path has room for 107 bytes, and pytest's names are long.
    with tempfile.TemporaryDirectory(prefix="asid-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        with Daemon.start(asid_config, **options) as daemon:
            yield daemon


@pytest.fixture
def asid_client(asid_daemon: Daemon) -> Client:
    """A client of asid_daemon, closed with it."""
    return asid_daemon.client(name="test")
