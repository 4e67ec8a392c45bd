"""The recorder of a run: a process of its own, so that neither the kernel nor a disk that hangs stops the daemon.

    python -m asid.trace.run_recorder TRACEFS FILE

Commands come on stdin, a line of numbers each: the threads to record, the first line before anything is set up, each
further one adds some. The end of stdin, which the death of the daemon is too, is the end of the recording. Answers are
lines of JSON on stdout:

    {"state": "on"} or {"state": "off", "why": ...}     it records, or cannot
    {"count": [pid, event, reason, n, ...]}             see `asid.trace.thread_counts`; once a second, and at the end
    {"state": "over", "lost": N, "bytes": N, "cut": ...}

Threads that the named ones start are recorded too: the kernel sees to that, and misses no event of a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from asid.errors import AsidError
from asid.trace.record import HEAD, READ_BYTES, add_thread, instance, open_pipe
from asid.trace.text_file import TextFile
from asid.trace.thread_counts import ThreadCounts

TEXT_BYTES_MAX: Final = 64 << 20
RUN_BUFFER_KB: Final = 2048  # of each CPU: what some threads do between two looks
LOOK_S: Final = 0.1
TELL_S: Final = 1.0
REST_S: Final = 1.0  # for what is in the buffers at the end
LINE_BYTES_MAX: Final = 1 << 20  # without a line end: this is no text


class RunRecorder:
    """One recording, over descriptors: commands come from one, answers go to the other."""

    def __init__(self, commands: int, answers: int, text: TextFile) -> None:
        self._commands, self._answers, self._text = commands, answers, text
        self._counts = ThreadCounts()
        self._rest = b""  # of a line that has not ended
        self._told: list[bytes] = []  # answers that nobody has taken yet
        self._why = ""  # it ended before it was told to
        self._unfollowed = 0  # threads that could not be added

    def wait_threads(self) -> tuple[int, ...] | None:
        """Return the threads of the first command, None when there is none any more."""
        return self._take_command()

    def _take_command(self) -> tuple[int, ...] | None:
        """Return the numbers of what came; None at the end of the commands."""
        came = os.read(self._commands, 4096)
        while came and not came.endswith(b"\n"):
            more = os.read(self._commands, 4096)
            came = came + more if more else b""
        return tuple(int(word) for word in came.split()) if came else None

    def run(self, own: Path) -> None:
        """Record until the commands end."""
        fd = open_pipe(own)
        try:
            self.tell({"state": "on"})
            tell_s = time.monotonic() + TELL_S
            while not self._why:
                ready, _, _ = select.select((self._commands,), (), (), LOOK_S)
                if ready and (threads := self._take_command()) is None:
                    break
                for pid in threads if ready and threads else ():
                    self._add(own, pid)
                self._read(fd, time.monotonic() + LOOK_S)
                if time.monotonic() >= tell_s:
                    tell_s = time.monotonic() + TELL_S
                    self._tell_counts()
            with contextlib.suppress(OSError):
                (own / "tracing_on").write_text("0")
            self._read(fd, time.monotonic() + REST_S)
        finally:
            os.close(fd)

    def finish(self) -> None:
        """The last answers; whoever does not take them is waited for."""
        os.set_blocking(self._answers, True)
        self._tell_counts()
        why = self._why or (f"threads that could not be followed: {self._unfollowed}" if self._unfollowed else "")
        over = {"state": "over", "lost": self._counts.lost, "bytes": self._text.size, "cut": self._text.cut, "why": why}
        self.tell(over)

    def _add(self, own: Path, pid: int) -> None:
        try:
            add_thread(own, pid)
        except ProcessLookupError:
            return  # it has ended already
        except OSError:
            self._unfollowed += 1

    def _read(self, fd: int, until_s: float) -> None:
        """Take what there is by now, or until it is time."""
        while not self._why and time.monotonic() < until_s:
            try:
                came = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._why = f"trace_pipe: {os.strerror(error.errno or 0)}"
                return
            if not came:
                return
            came = self._rest + came
            end = came.rfind(b"\n") + 1
            self._rest = came[end:] if len(came) - end < LINE_BYTES_MAX else b""
            self._text.write(came[:end])
            self._counts.feed(came[:end])

    def _tell_counts(self) -> None:
        if self._told:
            self._flush()
        if not self._told:  # else what is counted meanwhile is told together, later
            for count in self._counts.take():
                self.tell({"count": count})

    def tell(self, answer: dict[str, Any]) -> None:
        self._told.append(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        self._flush()

    def _flush(self) -> None:
        """Hand over what the reader has room for; an answer is shorter than PIPE_BUF, so it goes whole or not."""
        try:
            while self._told:
                os.write(self._answers, self._told[0])
                del self._told[0]
        except BlockingIOError:
            return
        except BrokenPipeError:  # the daemon is dead
            self._told.clear()


def _off(why: str) -> bytes:
    return json.dumps({"state": "off", "why": why}).encode() + b"\n"


def record_run(tracefs: Path, file: Path, commands: int, answers: int, limit: int = TEXT_BYTES_MAX) -> None:
    """Record a run from the first command to the last, and leave nothing of it in tracefs."""
    os.set_blocking(answers, False)
    try:
        text = TextFile(file, HEAD, limit)
    except AsidError as refused:
        os.write(answers, _off(f"{refused.what}; {refused.state}"))
        return
    recorder = RunRecorder(commands, answers, text)
    try:
        threads = recorder.wait_threads()
        if not threads:
            return
        with instance(tracefs, threads, RUN_BUFFER_KB) as own:
            recorder.run(own)
            recorder.finish()  # before the instance is removed: that takes the kernel a while
    except AsidError as refused:
        with contextlib.suppress(OSError):
            file.unlink()
        os.write(answers, _off(refused.what))
    finally:
        text.close()


def main(arguments: list[str]) -> int:
    """Be the recorder of a daemon. It ends with its commands, however it is asked to end otherwise."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    tracefs, file = Path(arguments[0]), Path(arguments[1]).absolute()
    os.chdir(tracefs)  # so it is reached to the end, also when somebody unmounts it meanwhile
    record_run(Path(), file, sys.stdin.fileno(), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
