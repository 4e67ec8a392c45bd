"""KVM's own events of a run with real guests: a recorder beside the daemon, and what it says, in the journal.

Rule 1. It is never in the way: it is another process (`asid.trace.run_recorder`), nobody waits for it but at the start
        and at the end, and there with a deadline. A run goes on without it.
Rule 2. Who is recorded are the children of the fork server, by the kernel's own following of forks: a hyperthread that
        is born again is recorded from its first instruction. Its number is added all the same, for where that fails.
Rule 3. What it counts are records of the daemon and of no core: a sign of the daemon's life is none of a core's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asid.core.record import Record
from asid.errors import AsidError, HostUnsuitable
from asid.guest.check import required
from asid.interpreter import words_of
from asid.live import fork_server
from asid.trace.record import check_thread_numbers, clear_left, find_tracefs, places
from asid.trace.thread_counts import EXIT, Count

if TYPE_CHECKING:
    from asid.config import Config
    from asid.live.merge import Merge
    from asid.live.node import Node

FILE: Final = "kvm-events.txt"
KEY: Final = "journal.kvm_events"
COMMAND: Final = (*words_of("asid.trace.run_recorder"),)
START_NS: Final = 3_000_000_000  # for the recorder to be ready; then the machine starts without it
END_NS: Final = 3_000_000_000  # for the rest of the text, and for tracefs to be left as it was
LAST_S: Final = 1.0
NEW_SERVER: Final = "a new fork server: the first moments of a hyperthread of it may be missing"

log = logging.getLogger("asid.daemon")


class KernelEvents:
    """The recording of one run. `begin` before run.begin, `begun` behind it, `over` until it says so before run.end,
    and `close`."""

    def __init__(self, config: Config, node: Node, merge: Merge, file: Path) -> None:
        self.wanted = bool(config.real_vms) and config.journal.kvm_events != "off"
        self._required = config.journal.kvm_events == "on"
        self._node, self._merge, self._file = node, merge, file
        self._tracefs: Path | None = None  # while something of ours may be in it
        self._process: subprocess.Popen[bytes] | None = None
        self._commands = self._answers = -1
        self._rest = b""
        self._state = self._reason = ""  # as last told: on, off or over
        self._end_ns = 0
        self._server = 0  # the fork server's pid, as last told to the recorder
        self._hyperthreads: dict[int, str] = {}  # by pid
        self._early: list[dict[str, Any]] | None = []  # told before the run began
        self._late = False  # it did not record when the run began
        self._unplaced: dict[tuple[int, str, str], Count] = {}  # of threads whose birth has not been numbered yet
        self._broken = False  # the recorder has not ended in order

    # --- start --------------------------------------------------------------------------------------------

    def begin(self, server: Callable[[], int]) -> None:
        """Start the recorder and wait until it records. server: starts the fork server, returns its pid.

        Raise what stands in the way when the configuration insists on it; else the journal says why there is none.
        """
        if not self.wanted:
            return
        self._merge.listeners.append(self.on_record)
        try:
            check_thread_numbers(KEY)
            self._tracefs = find_tracefs(places(), KEY)
            self._start(self._tracefs)
        except AsidError as refused:
            self._told_off(f"{refused.what}; {refused.state}" if refused.state else refused.what)
        except OSError as error:
            self._told_off(f"its recorder cannot be started: {os.strerror(error.errno or 0)}")
        else:
            self._server = server()
            self._command(self._server)
            self._wait_begun()
        if self._required and self._state != "on":
            raise required(HostUnsuitable("KVM's events are not recorded", state=self._why_not()))

    def _start(self, tracefs: Path) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, str(tracefs), str(self._file.absolute())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._commands, False)
        os.set_blocking(self._answers, False)
        self._node.add_reader(self._answers, self._on_answers)

    def _wait_begun(self) -> None:
        """Wait for the recorder's first word."""
        until_ns = time.monotonic_ns() + START_NS
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while not self._state and (left_ns := until_ns - time.monotonic_ns()) > 0:
            if poll.poll(left_ns / 1e6):
                self._on_answers()

    def begun(self) -> None:
        """The run has begun: what is known by now can be told."""
        early, self._early = self._early, None
        self._late = self._state != "on"
        for data in early or ():
            self._note(data)

    def _why_not(self) -> str:
        return self._reason if self._state else f"the recorder was not ready after {START_NS / 1e9:g} s"

    # --- while it records ---------------------------------------------------------------------------------

    def on_record(self, record: Record) -> None:
        """A hyperthread was born: know it, and let the recorder know it."""
        if record.type == "spawn" and record.data["what"] == "ht":
            self._born(record)

    def _born(self, record: Record) -> None:
        pid = record.data["pid"]
        self._hyperthreads[pid] = f"c{record.core}h{record.ht}"
        self._place(key for key in self._unplaced if key[0] == pid)
        self._command(pid)
        server = fork_server.pid()
        if server not in (0, self._server):
            self._server = server
            self._command(server)
            if self._state == "on":
                self._note({"state": "on", "why": NEW_SERVER})

    def _command(self, pid: int) -> None:
        if self._commands >= 0:
            with contextlib.suppress(OSError):  # it is gone, or asleep for very long
                os.write(self._commands, f"{pid}\n".encode())

    def _on_answers(self) -> None:
        """Take what the recorder says."""
        try:
            came = os.read(self._answers, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._gone()
            return
        *lines, self._rest = (self._rest + came).split(b"\n")
        for line in lines:
            try:
                self._on_answer(json.loads(line))
            except (ValueError, TypeError, KeyError):
                log.warning("the recorder of KVM's events said %r", line[:80])

    def _on_answer(self, answer: dict[str, Any]) -> None:
        if "count" in answer:
            self._counted(Count(*answer["count"]))
        elif answer["state"] == "on":
            late = {"why": "late: some hyperthreads may have run before"} if self._late else {}
            self._say({"state": "on", **late})
        elif answer["state"] == "off":
            self._told_off(answer["why"])
        else:
            self._say({name: answer[name] for name in ("state", "why", "lost", "bytes", "cut") if answer[name] != ""})

    def _counted(self, count: Count) -> None:
        """Note a count, as soon as it is known whose: a birth is numbered later than its hyperthread runs."""
        if count.pid in self._hyperthreads:
            self._note_count(count)
            return
        key = count.pid, count.event, count.reason
        before = self._unplaced.get(key, Count(*key, 0))
        self._unplaced[key] = Count(*key, *(a + b for a, b in zip(before[3:], count[3:], strict=True)))

    def _place(self, keys: Iterable[tuple[int, str, str]]) -> None:
        for key in tuple(keys):
            self._note_count(self._unplaced.pop(key))

    def _note_count(self, count: Count) -> None:
        data: dict[str, Any] = {"of": self._hyperthreads.get(count.pid, ""), **count._asdict()}
        if count.event != EXIT:
            data = {name: value for name, value in data.items() if name not in ("ended", "kept", "sum_ns")}
        self._merge.note("kvm.events", data)

    def _told_off(self, why: str) -> None:
        self._say({"state": "off", "why": why})

    def _say(self, data: dict[str, Any]) -> None:
        self._state, self._reason = data["state"], data.get("why", "")
        if self._state == "over":
            self._place(self._unplaced)
        self._note(data)
        log.info("KVM's events: %s", " ".join(f"{name} {value}".removeprefix("state ") for name, value in data.items()))

    def _note(self, data: dict[str, Any]) -> None:
        if self._early is None:
            self._merge.note("kvm.recording", data)
        else:
            self._early.append(data)  # nothing comes before run.begin

    # --- end ----------------------------------------------------------------------------------------------

    def over(self) -> bool:
        """End the recording, when nobody runs any more; return whether it has said its last word, or never will. It is
        asked again until then."""
        if self._process is None or self._answers < 0 or self._state in ("off", "over"):
            return True
        now_ns = time.monotonic_ns()
        if not self._end_ns:
            self._end_ns = now_ns + END_NS
            self._end_commands()
        if now_ns < self._end_ns:
            return False
        self._process.kill()
        self._gone()
        return True

    def _end_commands(self) -> None:
        if self._commands >= 0:
            self._commands = -1
            assert self._process is not None
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _gone(self) -> None:
        """There are no more answers. A recorder that has not said its last word was killed, or hangs."""
        if self._answers < 0:
            return
        assert self._process is not None
        assert self._process.stdout is not None
        self._node.drop_reader(self._answers)
        self._answers = -1
        self._process.stdout.close()
        self._end_commands()
        if self._state in ("", "on"):
            self._broken = True
            self._say({"state": "over", "why": "its recorder was killed: events since its last word are missing"})

    def close(self) -> None:
        """Leave no process behind, and nothing in tracefs, whatever happened."""
        process = self._process
        if process is None:
            return
        self._gone()
        self._process = None
        try:
            process.wait(LAST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, and ends with that
                process.wait(LAST_S)
        if (self._broken or process.returncode != 0) and self._tracefs is not None:
            with contextlib.suppress(OSError):
                clear_left(self._tracefs)
