"""The text of a recording on disk: whole lines, up to a limit, and never at the cost of what else is written there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from asid.errors import refused_by_os
from asid.units import format_size

ROOM_BYTES_MIN: Final = 32 << 20  # left for the journal beside it


class TextFile:
    """A new file. `cut`: why it does not hold everything, "" while it does; `size`: its bytes."""

    def __init__(self, path: Path, head: bytes, limit: int) -> None:
        """Raise InputError, PermissionRefused or HostUnsuitable when the file cannot be made."""
        self.cut = ""
        self.size = 0
        self._limit = limit
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise refused_by_os(error, "a recording cannot be kept there", where=str(path)) from None
        self.write(head)

    def write(self, lines: bytes) -> None:
        """Add whole lines. What has no room any more is dropped, now and from then on."""
        if self.cut or not lines:
            return
        room = self._limit - self.size
        try:
            if len(lines) > room:
                self._put(lines[: lines.rfind(b"\n", 0, room) + 1])
                self._stop(f"it is limited to {format_size(self._limit)}")
            elif self._host_room() < ROOM_BYTES_MIN:
                self._stop(f"less than {format_size(ROOM_BYTES_MIN)} are free there")
            else:
                self._put(lines)
        except OSError as error:
            self._stop(f"it cannot be written: {os.strerror(error.errno or 0)}")

    def _host_room(self) -> int:
        found = os.fstatvfs(self._fd)
        return found.f_bavail * found.f_frsize

    def _put(self, lines: bytes) -> None:
        while lines:
            n = os.write(self._fd, lines)
            self.size += n
            lines = lines[n:]

    def _stop(self, why: str) -> None:
        self.cut = why
        try:
            os.write(self._fd, f"\n# the recording goes on and its text ends here: {why}\n".encode())
        except OSError:
            return  # as it says itself

    def close(self) -> None:
        os.close(self._fd)
