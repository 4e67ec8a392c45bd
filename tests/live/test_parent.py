"""The parent: when a hyperthread may be born again. No processes: births and messages are noted, not done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from asid.live.parent import Parent

PLACE = (0, 1)


class Nursery(Parent):
    """A parent whose births are a list and whose delays are run by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.born: list[tuple[int, int]] = []
        self.told: list[dict[str, Any]] = []
        self.delayed: list[Any] = []
        self.living: dict[tuple[int, int], Any] = {}
        self.state = "ready"
        self.config = SimpleNamespace(machine=SimpleNamespace(smt=2))  # type: ignore[assignment]
        ring = SimpleNamespace(empty=True)
        self.children = SimpleNamespace(by_place=self.living, hyperthreads=list)  # type: ignore[assignment]
        self.merge = SimpleNamespace(drain=lambda rings: 0, note=lambda *args, **more: None)  # type: ignore[assignment]
        self.injector = SimpleNamespace(on_death=lambda place: None)  # type: ignore[assignment]
        self.drain = lambda: None
        self.later = lambda after_ns, what: self.delayed.append(what)
        self.now_ns = lambda: 10**12
        self.ring = ring
        self.live_again((0, -1))
        self.live_again((0, 0))
        self.live_again(PLACE)
        self.born.clear()

    def live_again(self, place: tuple[int, int]) -> None:
        inc = self.incs[place] = self.incs.get(place, 0) + 1
        birth = SimpleNamespace(core=place[0], ht=place[1], inc=inc, name=f"c{place[0]}h{place[1]}")
        kind = "ht" if place[1] >= 0 else "coordinator"
        self.living[place] = SimpleNamespace(
            birth=birth, place=place, kind=kind, pid=1, ring=self.ring, born_ns=0, wanted=True, kill=lambda: None
        )
        self.born.append(place)

    def bear_hyperthread(self, place: tuple[int, int]) -> None:
        self.live_again(place)

    def bear_coordinator(self, core: int) -> None:
        self.live_again((core, -1))

    def tell(self, child: Any, message: dict[str, Any]) -> None:
        self.told.append(message)

    def dies(self, place: tuple[int, int]) -> None:
        child = self.living.pop(place)
        self.on_death(child, -9)

    def run_delayed(self) -> None:
        due, self.delayed = self.delayed, []
        for what in due:
            what()


@pytest.fixture
def parent() -> Nursery:
    return Nursery()


def test_a_birth_waits_for_the_burial(parent):
    parent.dies(PLACE)
    parent.run_delayed()
    assert PLACE not in parent.born
    parent._buried(PLACE, 1)
    parent.run_delayed()
    assert parent.born == [PLACE]


def test_a_birth_under_way_waits_for_the_coordinator_that_comes_back(parent):
    """1. A hyperthread dies and is buried; its birth is a delay away. 2. Its coordinator dies. 3. The delay ends.
    Born now, its words would be wiped by the coordinator that comes back, an NMI's depth among them (V26c)."""
    parent.dies(PLACE)
    parent._buried(PLACE, 1)
    parent.dies((0, -1))
    parent.run_delayed()
    assert PLACE not in parent.born, "born before the new coordinator's wipe"
    parent.run_delayed()
    assert parent.born == [(0, -1)]
    parent._buried(PLACE, 0)
    parent.run_delayed()
    assert parent.born == [(0, -1), PLACE]


def test_a_death_that_the_old_coordinator_never_finished_waits_for_the_new_ones_word(parent):
    parent.dies(PLACE)
    parent.dies((0, -1))
    parent.run_delayed()
    parent.run_delayed()
    assert parent.born == [(0, -1)], "the new coordinator has not wiped yet"
    parent._buried(PLACE, 0)
    parent.run_delayed()
    assert parent.born == [(0, -1), PLACE]


def test_a_burial_of_an_older_life_bears_nobody(parent):
    parent.dies(PLACE)
    parent._buried(PLACE, 7)
    parent.run_delayed()
    assert parent.born == []


def test_an_unplugged_place_stays_empty_when_its_coordinator_comes_back(parent):
    parent.unplugged.add(PLACE)
    parent.dies(PLACE)
    parent._buried(PLACE, 1)
    parent.dies((0, -1))
    parent.run_delayed()
    parent._buried(PLACE, 0)
    parent.run_delayed()
    assert parent.born == [(0, -1)]
