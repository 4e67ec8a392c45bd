"""The looks at guests' counters from HOST, over memory that the test writes as guests would."""

from __future__ import annotations

import os

from asid.guest.kvm_programs import COUNTER, GuestMemory, make_memory
from asid.live.standstill import Standstill


class Notes:
    """Keeps what is noted."""

    last = 0

    def __init__(self) -> None:
        self.noted: list[dict[str, object]] = []

    def note(self, kind, data, round_=0, cause=0, *, ht=None, ts=0):
        assert kind == "standstill"
        self.noted.append(data)
        return 0

    def show(self, data, round_):
        raise AssertionError("nobody watches")


def test_only_what_a_sibling_counts_between_the_two_looks_is_movement():
    fds = [make_memory("a"), make_memory("b")]
    guests = [GuestMemory(fd) for fd in fds]
    seen, notes = Standstill(fds, [1, 2]), Notes()

    def turn(vm: int, place: int, n: int) -> None:
        guests[vm].words[guests[vm].word(place, COUNTER)] += n

    turn(0, 1, 5)  # before
    seen.begin("grant")
    turn(0, 0, 9)  # our own guest is no sibling's
    seen.end()
    turn(1, 2, 5)  # after
    seen.begin("nmi")
    turn(1, 2, 3)
    turn(0, 1, 4)
    seen.end()
    seen.begin("nmi")
    seen.end()
    seen.note(notes, 1)
    seen.note(notes, 1)
    assert notes.noted == [
        {"via": "grant", "visits": 1, "moved": 0, "turns": 0},
        {"via": "nmi", "visits": 2, "moved": 1, "turns": 7},
    ]
    seen.close()
    for guest in guests:
        guest.close()
    for fd in fds:
        os.close(fd)
