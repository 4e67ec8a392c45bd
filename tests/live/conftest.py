"""Fixtures of the live tests: a rig that starts daemons, and that nothing may be left of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_rig import Rig, directories


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Daemons for one test. At its end no process, socket file, lock or descriptor of theirs may be left."""
    with directories(monkeypatch) as (runtime, state):
        made = Rig(runtime, state)
        yield made
        made.check_nothing_left()
