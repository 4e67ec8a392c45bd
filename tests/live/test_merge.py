"""Many rings, one stream: numbers without holes, order by stamp, and causes that name the right record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from asid.core.record import Record
from asid.live import merge as merge_
from asid.live.journal import JournalReader, JournalWriter
from asid.live.merge import Merge
from asid.live.notebook import Notebook
from asid.live.ring import Ring, make_ring

MODE = {"inc": 1, "old": "PARKED", "new": "ISOLATED", "vm": 1}


class Desk:
    """A merge over two rings, and what it published."""

    def __init__(self, path: Path) -> None:
        self.fds = [make_ring("a"), make_ring("b")]
        self.rings = [Ring(fd) for fd in self.fds]
        self.journal = JournalWriter(path)
        self.published: list[Record] = []
        self.shown: list[Any] = []
        self.merge = Merge(self.journal, self.published.extend, self.shown.extend)
        self.ht = Notebook(Ring(self.fds[0]), 0, 0, 1)
        self.gate = Notebook(Ring(self.fds[1]), 0, -1, 1)

    def drain(self) -> list[Record]:
        before = len(self.published)
        self.merge.drain(self.rings)
        return self.published[before:]

    def close(self) -> None:
        self.journal.close()
        for ring in self.rings:
            ring.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path / "journal.asid")
    yield made
    made.close()


def test_what_is_only_shown_gets_no_number_and_is_nobodys_cause(desk):
    first = desk.ht.note("gate.done", {})
    desk.ht.show(MODE, 7)
    assert desk.ht.last == first
    desk.ht.note("ht.mode", MODE, 7, desk.ht.last)
    assert [(record.seq, record.type, record.cause) for record in desk.drain()] == [
        (1, "gate.done", 0), (2, "ht.mode", 1),
    ]  # fmt: skip
    [(key, _, kind, core, ht, round_, cause, data)] = desk.shown
    assert (key, kind, core, ht, round_, cause, data) == (0, "raw", 0, 0, 7, 0, MODE)


def test_what_is_only_shown_is_left_out_when_the_ring_is_behind(desk):
    while not desk.ht.full:
        desk.ht.note("ht.mode", MODE)
    for _ in range(10_000):
        desk.ht.show(MODE, 7)
    while len(desk.published) < 1_000 and desk.drain():
        pass
    assert desk.shown == [] and desk.ht.lost == 0


def test_numbers_have_no_holes_and_the_journal_has_what_was_published(desk, tmp_path):
    for number in range(50):
        (desk.ht if number % 3 else desk.gate).note("gate.done", {}, number)
        if number % 7 == 0:
            desk.merge.note("mark", {"text": str(number)})
        if number % 5 == 0:
            desk.drain()
    desk.drain()
    assert [record.seq for record in desk.published] == list(range(1, 59))
    with JournalReader(tmp_path / "journal.asid") as reader:
        assert list(reader) == desk.published
        assert reader.damage is None


def test_records_of_one_drain_are_in_the_order_of_their_stamps(desk):
    desk.gate.note("gate.done", {}, ts=300)
    desk.ht.note("ht.mode", MODE, ts=100)
    desk.ht.note("ht.mode", MODE, ts=200)
    assert [record.ts for record in desk.drain()] == [100, 200, 300]


def test_a_cause_names_its_record_across_rings_and_drains(desk):
    first = desk.ht.note("ht.mode", MODE, ts=10)
    second = desk.gate.note("gate.leave", {}, cause=first, ts=20)
    leave = desk.drain()[1]
    assert leave.cause == desk.published[0].seq
    desk.ht.note("ht.mode", MODE, cause=second, ts=30)
    assert desk.drain()[0].cause == leave.seq


def test_a_cause_that_nobody_knows_is_none(desk):
    desk.ht.note("ht.mode", MODE, cause=12345)
    assert desk.drain()[0].cause == 0


def test_an_effect_stamped_before_its_cause_has_none_rather_than_a_wrong_one(desk):
    cause = desk.gate.note("gate.grant", {}, ts=20)
    desk.ht.note("ht.mode", MODE, cause=cause, ts=10)
    effect, _ = desk.drain()
    assert (effect.ts, effect.cause) == (10, 0)


def test_old_keys_are_forgotten_and_new_ones_are_not(desk, monkeypatch):
    monkeypatch.setattr(merge_, "KEYS_MAX", 100)
    old = desk.ht.note("ht.mode", MODE)
    for _ in range(150):
        desk.ht.note("ht.mode", MODE)
    young = desk.ht.last
    desk.drain()
    assert len(desk.merge._seqs) <= 101
    desk.ht.note("ht.mode", MODE, cause=old)
    desk.ht.note("ht.mode", MODE, cause=young)
    assert [record.cause for record in desk.drain()] == [0, 151]


def test_topics_are_numbered_on_their_own(desk):
    for _ in range(3):
        desk.ht.note("ht.mode", MODE)
        desk.gate.note("gate.done", {}, ht=0)
    by_type: dict[str, list[int]] = {}
    for record in desk.drain():
        by_type.setdefault(record.type, []).append(record.tseq)
    assert by_type == {"ht.mode": [1, 2, 3], "gate.done": [1, 2, 3]}


def test_one_full_ring_does_not_keep_the_other_out(desk, monkeypatch):
    monkeypatch.setattr(merge_, "TAKE_MAX", 4)
    for _ in range(20):
        desk.ht.note("ht.mode", MODE)
    desk.gate.note("gate.done", {}, ht=0)
    taken = desk.drain()
    assert [record.type for record in taken] == ["ht.mode"] * 4
    assert desk.rings[1].empty, "it was taken, and waits for what is stamped before it"
    for _ in range(5):
        taken += desk.drain()
    assert [record.type for record in taken] == ["ht.mode"] * 20 + ["gate.done"]
    assert desk.drain() == []


def test_a_cause_behind_a_full_ring_is_waited_for(desk, monkeypatch):
    monkeypatch.setattr(merge_, "TAKE_MAX", 2)
    for _ in range(6):
        desk.ht.note("ht.mode", MODE)
    cause = desk.ht.note("ht.mode", MODE)
    desk.gate.note("gate.leave", {}, cause=cause, ht=0)
    taken: list[Record] = []
    while len(taken) < 8:
        taken += desk.drain()
    assert taken[-1].type == "gate.leave"
    assert taken[-1].cause == taken[-2].seq == 7


def test_the_horizon_says_up_to_when_everything_has_its_number(desk, monkeypatch):
    monkeypatch.setattr(merge_, "TAKE_MAX", 3)
    stamps = []
    for number in range(10):
        stamps.append(1_000 + number)
        desk.ht.note("ht.mode", MODE, ts=stamps[-1])
    desk.drain()
    assert desk.merge.horizon_ns == 1_002
    while desk.merge.horizon_ns < stamps[-1]:
        desk.drain()
    assert [record.ts for record in desk.published] == stamps


def test_listeners_see_every_record_once(desk):
    seen: list[int] = []
    desk.merge.listeners.append(lambda record: seen.append(record.seq))
    desk.ht.note("ht.mode", MODE)
    desk.merge.note("mark", {"text": "x"})
    desk.drain()
    assert seen == [1, 2]
    assert desk.drain() == []


def test_what_a_listener_notes_is_numbered_next_time(desk):
    def echo(record: Record) -> None:
        if record.type == "mark":
            desk.merge.note("warn", {"text": "after a mark"})

    desk.merge.listeners.append(echo)
    desk.merge.note("mark", {"text": "x"})
    assert [record.type for record in desk.drain()] == ["mark"]
    assert [record.type for record in desk.drain()] == ["warn"]
