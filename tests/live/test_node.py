"""The poll loop: timers on time, deadlines that signals cannot stretch, nobody starved, no wake-up lost."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import zmq

from asid.live import node as node_
from asid.live import sockets
from asid.live.node import Node, hush_doorbell, ring_doorbell

MS = 1_000_000
S = 1_000_000_000


class Clock:
    """A clock that the test moves; it begins far from zero, so that nobody mixes it up with the real one."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def node(clock):
    made = Node()
    made.now_ns = clock
    return made


@pytest.fixture
def pair():
    """Returns a function that makes two connected sockets of this process."""
    context = sockets.new_context()
    made: list[zmq.Socket[bytes]] = []

    def make(name: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        one, two = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        for socket in (one, two):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 10_000)
            socket.setsockopt(zmq.SNDHWM, 10_000)
            made.append(socket)
        one.bind(f"inproc://{name}")
        two.connect(f"inproc://{name}")
        return one, two

    yield make
    sockets.close(context, *made)


# --- timers -----------------------------------------------------------------------------------------------


def test_a_timer_fires_once_and_not_before_its_time(node, clock):
    fired = []
    node.set_timer("a", 5 * MS, lambda: fired.append(clock.now))
    assert not node.turn(clock.now)
    clock.now += 5 * MS - 1
    assert not node.turn(clock.now)
    clock.now += 1
    assert node.turn(clock.now)
    clock.now += S
    assert not node.turn(clock.now)
    assert fired == [10**15 + 5 * MS]


def test_a_timer_set_again_under_its_key_is_replaced(node, clock):
    fired = []
    node.set_timer("a", 5 * MS, lambda: fired.append("old"))
    node.set_timer("a", 9 * MS, lambda: fired.append("new"))
    clock.now += 5 * MS
    node.turn(clock.now)
    assert fired == []
    assert node.has_timer("a")
    clock.now += 4 * MS
    node.turn(clock.now)
    assert fired == ["new"]
    assert not node.has_timer("a")


def test_timers_that_are_due_together_fire_in_the_order_of_their_times(node, clock):
    fired = []
    for name, after in (("c", 3), ("a", 1), ("b", 2)):
        node.set_timer(name, after, lambda name=name: fired.append(name))
    clock.now += S
    node.turn(clock.now)
    assert fired == ["a", "b", "c"]


def test_a_timer_may_drop_one_that_is_due_with_it(node, clock):
    fired = []
    node.set_timer("first", 1, lambda: node.drop_timer("second"))
    node.set_timer("second", 2, lambda: fired.append("second"))
    clock.now += S
    node.turn(clock.now)
    assert fired == []


def test_a_timer_may_set_itself_anew(node, clock):
    fired = []

    def again() -> None:
        fired.append(clock.now)
        node.set_timer("a", MS, again)

    node.set_timer("a", MS, again)
    for _ in range(3):
        clock.now += MS
        node.turn(clock.now)
    assert len(fired) == 3


def test_dropping_a_timer_that_is_not_set_is_nothing(node):
    node.drop_timer("nobody")
    assert not node.has_timer("nobody")


# --- waiting ----------------------------------------------------------------------------------------------


def test_a_wait_ends_at_its_deadline(monkeypatch):
    monkeypatch.setattr(node_, "SLEEP_MAX_NS", 20 * S)  # without its deadline it would sleep so long
    node = Node()
    begin = time.monotonic_ns()
    deadline = begin + 30 * MS
    while node.now_ns() < deadline:
        node.turn(deadline)
    assert 30 * MS <= time.monotonic_ns() - begin < 10 * S


@pytest.mark.slow
def test_signals_do_not_stretch_a_deadline():
    """ZeroMQ's own time-outs start anew at each signal; a signal every 2 ms would keep them for ever.

    Measured in signals: a process that gets no CPU gets none of them either, and those that wait for it merge.
    """
    node, signals, most = Node(), [], 1_000

    def note(*_: object) -> None:
        signals.append(1)
        if len(signals) == most:
            signal.setitimer(signal.ITIMER_REAL, 0)  # so that a wait that was stretched ends, too

    old = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        while len(signals) < 5:
            deadline = node.now_ns() + 100 * MS
            while node.now_ns() < deadline:
                node.turn(deadline)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(signals) < most, "some 50 came in 100 ms"


def test_a_wait_is_never_longer_than_the_sleep_limit(node, clock, monkeypatch):
    monkeypatch.setattr(node_, "SLEEP_MAX_NS", 5 * MS)
    waited_ms = []
    monkeypatch.setattr(node_, "zmq_poll", lambda items, ms: waited_ms.append(ms) or [])
    assert not node.turn()
    assert not node.turn(clock.now + S)
    assert not node.turn(clock.now + 2 * MS)
    assert waited_ms == [5, 5, 2]


# --- doorbells --------------------------------------------------------------------------------------------


@pytest.fixture
def bell():
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_a_doorbell_wakes_and_is_hushed(node, clock, bell):
    rung = []
    node.add_reader(bell, lambda: (hush_doorbell(bell), rung.append(1)))
    assert not node.turn(clock.now)
    ring_doorbell(bell)
    ring_doorbell(bell)
    assert node.turn(clock.now)
    assert not node.turn(clock.now)
    assert rung == [1], "rings merge"


def test_ringing_never_blocks_and_hushing_a_silent_bell_is_nothing(bell):
    hush_doorbell(bell)
    os.eventfd_write(bell, 2**64 - 2)  # as full as it gets: one more would block
    ring_doorbell(bell)
    assert os.eventfd_read(bell) == 2**64 - 2


def test_ringing_at_a_pipe_that_nobody_hears_any_more_is_nothing():
    hear, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(hear)  # of a sibling that has died with the daemon, who had the same end
    with pytest.raises(BrokenPipeError):
        os.write(ring, node_.RING)
    ring_doorbell(ring)
    os.close(ring)


def test_a_descriptor_that_select_cannot_take_is_served_too(node, clock, bell):
    """A daemon of 64 cores has more than a thousand."""
    high = fcntl.fcntl(bell, fcntl.F_DUPFD_CLOEXEC, node_.FD_SETSIZE)
    rung = []
    node.add_reader(high, lambda: (hush_doorbell(high), rung.append(1)))
    try:
        assert not node.turn(clock.now + 300_000)
        ring_doorbell(bell)
        assert node.turn(clock.now + 300_000)
    finally:
        os.close(high)
    assert rung == [1]


def test_a_dropped_reader_is_not_called(node, clock, bell):
    rung = []
    node.add_reader(bell, lambda: rung.append(1))
    node.drop_reader(bell)
    node.drop_reader(bell)
    ring_doorbell(bell)
    node.turn(clock.now)
    assert rung == []


# --- messages ---------------------------------------------------------------------------------------------


def test_no_socket_starves_the_others(node, pair):
    """V28: one that always has something to say must not keep the others from being heard."""
    (loud, loud_far), (soft, soft_far) = pair("loud"), pair("soft")
    heard = []
    node.add_socket(loud, lambda frames: heard.append("loud"))
    node.add_socket(soft, lambda frames: heard.append("soft"))
    for _ in range(200):
        loud_far.send(b"x")
    soft_far.send(b"y")
    assert node.drain()
    assert heard.count("loud") == 16
    assert "soft" in heard
    while node.drain():
        pass
    assert heard.count("loud") == 200


def test_timers_fire_however_many_messages_come(clock, node, pair):
    near, far = pair("flood")
    fired = []

    def answer(frames: list[bytes]) -> None:
        far.send(b"another")  # there is always one more

    node.add_socket(near, answer)
    node.set_timer("a", MS, lambda: fired.append(1))
    far.send(b"first")
    clock.now += MS
    for _ in range(3):
        node.turn(clock.now)
    assert fired == [1]


def test_all_frames_of_a_message_come_at_once(node, clock, pair):
    near, far = pair("frames")
    got = []
    node.add_socket(near, got.append)
    far.send_multipart([b"a", b"", b"c"])
    node.turn(clock.now)
    assert got == [[b"a", b"", b"c"]]


@pytest.mark.slow
def test_no_wake_up_is_lost(monkeypatch, pair):
    """ZeroMQ's descriptors are edge-triggered, and a send may swallow the edge of what comes in at the same time.

    Two nodes with two links, and handlers that send on the *other* link. With the sleep limit out of the way a lost
    wake-up would be a wait of minutes.
    """
    monkeypatch.setattr(node_, "SLEEP_MAX_NS", 300 * S)
    rounds = 3_000
    (a_red, b_red), (a_blue, b_blue) = pair("red"), pair("blue")
    done = {"a": 0, "b": 0}

    def run(name: str, red: zmq.Socket[bytes], blue: zmq.Socket[bytes]) -> None:
        node = Node()

        def on_red(frames: list[bytes]) -> None:
            done[name] += 1
            blue.send(b"x")

        def on_blue(frames: list[bytes]) -> None:
            done[name] += 1
            red.send(b"x")

        node.add_socket(red, on_red)
        node.add_socket(blue, on_blue)
        if name == "a":
            red.send(b"x")
            blue.send(b"x")
        deadline = time.monotonic_ns() + 20 * S
        while min(done.values()) < rounds and time.monotonic_ns() < deadline:
            node.turn(deadline if name == "a" else time.monotonic_ns() + S)

    threads = [threading.Thread(target=run, args=args) for args in (("a", a_red, a_blue), ("b", b_red, b_blue))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert min(done.values()) >= rounds, done


# --- children ---------------------------------------------------------------------------------------------


def test_a_child_whose_fork_server_has_just_ended_ends_too():
    """Whoever adopted it, it is nobody's: the daemon starts another in its place."""
    code = "from asid.live import node; node.fork_server_pid = {}; node.prepare_child('x'); print('lives')"
    for parent, expected in ((os.getpid(), "lives\n"), (os.getpid() + 1, "")):
        done = subprocess.run([sys.executable, "-c", code.format(parent)], capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
