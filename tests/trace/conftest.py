"""A directory where tracefs would be: what the kernel puts into an instance is made when the instance is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from asid.trace.record import EVENTS


class FakeTracefs:
    """Files where tracefs has some, a pipe where it has one, and what was written to each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "events" / "kvm").mkdir(parents=True)
        (root / "instances").mkdir()
        self.made: list[str] = []

    def furnish(self, own: Path) -> None:
        """What the kernel puts into a new instance."""
        for event in EVENTS:
            (own / "events" / "kvm" / event).mkdir(parents=True)
            (own / "events" / "kvm" / event / "enable").write_text("0")
        os.mkfifo(own / "trace_pipe")


@pytest.fixture
def tracefs(tmp_path, monkeypatch):
    made = FakeTracefs(tmp_path / "tracing")
    mkdir = Path.mkdir

    def furnished(path, *args, **options):
        mkdir(path, *args, **options)
        if path.parent == made.root / "instances":
            made.furnish(path)

    def unfurnished(path):
        made.made.append((path / "tracing_on").read_text())
        for name in ("set_event_pid", "trace_clock"):
            if (path / name).exists():
                made.made.append((path / name).read_text())
        shutil.rmtree(path)

    monkeypatch.setattr(Path, "mkdir", furnished)
    monkeypatch.setattr(Path, "rmdir", unfurnished)
    return made
