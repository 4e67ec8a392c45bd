"""A pipe from who starts a daemon to the daemon: whatever becomes of the starter, the daemon hears of its end.

The starter holds the end for writing and writes nothing. Its death closes that end, SIGKILL or not, and the daemon then
stops as it does by SIGHUP. A starter that leaves its daemon running on purpose (`asid up --detach`) says so first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final

from asid.live.node import Node

STAY: Final = b"."


class Leash:
    """The starter's end. `theirs` is the daemon's, to be passed to it and closed here."""

    def __init__(self) -> None:
        self.theirs, self._own = os.pipe()

    def passed(self) -> None:
        """The daemon has its end, or never will."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def release(self) -> None:
        """Leave the daemon running."""
        if self._own >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._own, STAY)
        self.close()

    def close(self) -> None:
        """Let go. A daemon that still lives stops."""
        self.passed()
        if self._own >= 0:
            os.close(self._own)
            self._own = -1


def hold(node: Node, fd: int, on_gone: Callable[[], None]) -> None:
    """Call `on_gone` from the daemon's loop when its starter ended without a word; forget the pipe after a word."""
    os.set_inheritable(fd, False)

    def heard() -> None:
        node.drop_reader(fd)
        stays = os.read(fd, 1) == STAY
        os.close(fd)
        if not stays:
            on_gone()

    node.add_reader(fd, heard)
