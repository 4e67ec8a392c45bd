"""The kick of a real guest: a signal that throws its vCPU out of KVM_RUN, and cannot come too early.

Rule 1. The signal is blocked in the thread that runs the vCPU, always; only while KVM_RUN runs is it not
        (KVM_SET_SIGNAL_MASK). One that comes between the look at the pending bit and KVM_RUN stays pending, and KVM_RUN
        then returns before the first guest instruction.
Rule 2. The signal says nothing but "look": what to do stands in the words of the core page, which are written first.
Rule 3. It comes from the doorbell: a pipe whose reading end signals its owner's thread (O_ASYNC). Whoever rings needs
        no process number, which could be another's by now; who is dead hears nothing.

A timer sends the same signal to the same thread: a guest that never exits has a process that must look around.

On a host whose interrupts come late (`[[faults.slow]]`, key signal) a thread hears the doorbell instead, and signals
later. Rule 1 stands: the words are looked at before every KVM_RUN, and a guest in it runs on until the signal.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import struct
import threading
from typing import Final

from asid.guest.kvm_api import unusable

SIGNAL: Final = signal.SIGIO  # what O_ASYNC sends; of this kind two that wait are one, so none can be too many
F_SETOWN_EX: Final = 15
F_OWNER_TID: Final = 0
CLOCK_MONOTONIC: Final = 1
SIGEV_THREAD_ID: Final = 4
READ_BYTES: Final = 4096
LAST_S: Final = 2.0  # for the thread of late signals to end

_libc = ctypes.CDLL(None, use_errno=True)
if not hasattr(_libc, "timer_create"):  # glibc before 2.34
    _libc = ctypes.CDLL("librt.so.1", use_errno=True)


class Event(ctypes.Structure):
    """struct sigevent, with the thread that is signalled."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("padding", ctypes.c_int * 11),
    )


class Timing(ctypes.Structure):
    """struct itimerspec: interval, then first; seconds and nanoseconds each."""

    _fields_ = (("every_s", ctypes.c_long), ("every_ns", ctypes.c_long), ("s", ctypes.c_long), ("ns", ctypes.c_long))


def make_bell() -> tuple[int, int]:
    """Return a doorbell: the end to hear, and the end to ring. Neither blocks."""
    hear, ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return hear, ring


class Kick:
    """The signal of one vCPU's thread, which makes this object and alone uses it."""

    def __init__(self, bell: int, *, late_ns: int = 0) -> None:
        """bell: the end to hear, see `make_bell`. The signal is blocked from here on, until `close`. late_ns: how long
        after the doorbell it comes.

        Raise HostUnsuitable where this user may have no timer.
        """
        self.bell = bell
        self._late: Late | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        self._was_blocked = SIGNAL in before
        self.blocked_in_guest = {int(number) for number in before if number != SIGNAL}
        self._timer = ctypes.c_void_p()
        thread = threading.get_native_id()
        event = Event(signo=SIGNAL, notify=SIGEV_THREAD_ID, thread=thread)
        try:
            self._check(_libc.timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)))
        except OSError as error:
            self._unblock()
            raise unusable(error, what="making a timer") from None
        if late_ns:
            self._late = Late(bell, late_ns)
            return
        fcntl.fcntl(bell, F_SETOWN_EX, struct.pack("ii", F_OWNER_TID, thread))
        fcntl.fcntl(bell, fcntl.F_SETFL, fcntl.fcntl(bell, fcntl.F_GETFL) | os.O_ASYNC)

    def arm(self, first_ns: int, every_ns: int) -> None:
        """Send the signal after first_ns, and every every_ns from then on; 0 for never."""
        timing = Timing(*divmod(every_ns, 10**9), *divmod(first_ns, 10**9))
        self._check(_libc.timer_settime(self._timer, 0, ctypes.byref(timing), None))

    def hush(self) -> None:
        """Take what has been signalled off, and the rings of the doorbell.

        What is rung from here on signals again, so whoever looks at the words after this misses nothing.
        """
        while signal.sigtimedwait((SIGNAL,), 0) is not None:
            pass
        try:
            while len(os.read(self.bell, READ_BYTES)) == READ_BYTES:
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Nobody signals this thread any more."""
        _libc.timer_delete(self._timer)
        if self._late is not None:
            self._late.close()
        fcntl.fcntl(self.bell, fcntl.F_SETFL, fcntl.fcntl(self.bell, fcntl.F_GETFL) & ~os.O_ASYNC)
        while signal.sigtimedwait((SIGNAL,), 0) is not None:
            pass
        self._unblock()

    def _unblock(self) -> None:
        if not self._was_blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})

    @staticmethod
    def _check(result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


class Late:
    """A thread that signals the one that makes it some time after the doorbell, and again until that is hushed."""

    def __init__(self, bell: int, late_ns: int) -> None:
        self._bell, self._late_ms = bell, late_ns / 1e6
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._whom = threading.get_ident()
        self._thread = threading.Thread(target=self._listen, name="late signal", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        """Wait for the bell until `close`."""
        bell, stop = select.poll(), select.poll()
        bell.register(self._bell, select.POLLIN)
        for poll in (bell, stop):
            poll.register(self._stop, select.POLLIN)
        while self._stop not in dict(bell.poll()):
            if stop.poll(self._late_ms):
                return
            signal.pthread_kill(self._whom, SIGNAL)

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join(LAST_S)
        assert not self._thread.is_alive(), "it waits for its end, whatever else it waits for"
        os.close(self._stop)
