"""Injections over a machine that only remembers: each is done exactly once, and the counts add up (G8)."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.core.record import Record, fault_of
from asid.errors import Busy, Conflict
from asid.live.injector import BURST_MAX, IDS_SHOWN_MAX, Batch, Injector
from asid.live.page import MCE, NMI, base_of, interrupt_parts

S = 1_000_000_000
H0, H1 = (0, 0), (0, 1)


class Machine:
    """Two hyperthreads and a coordinator that remember what was done to them, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 10 * S
        self.page = [0] * 1000
        self.children: dict[tuple[int, int], Any] = {}
        self.vcpus = {H0: (1, 0), H1: (1, 1)}
        self.unplugged: set[tuple[int, int]] = set()
        self.told: list[dict[str, Any]] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.rung: list[tuple[int, int]] = []
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.over: list[Batch] = []
        self.progress: list[tuple[int, int, int]] = []
        for place in (H0, H1, (0, -1)):
            self.bear(place)
        self.injector = Injector(self)  # type: ignore[arg-type]

    def bear(self, place: tuple[int, int]) -> Any:
        signals: list[int] = []
        kill = lambda signum=signal.SIGKILL: signals.append(signum)  # noqa: E731
        child = self.children[place] = SimpleNamespace(up=True, place=place, signals=signals, kill=kill)
        return child

    def child(self, place: tuple[int, int]) -> Any:
        return self.children.get(place)

    def words(self, core: int) -> list[int]:
        return self.page

    def vcpu(self, place: tuple[int, int]) -> tuple[int, int]:
        return self.vcpus[place]

    def stays_away(self, place: tuple[int, int]) -> bool:
        return place in self.unplugged

    def ring_bell(self, place: tuple[int, int]) -> None:
        self.rung.append(place)

    def tell(self, child: Any, message: dict[str, Any]) -> None:
        self.told.append(message)

    def note(self, kind: str, data: dict[str, Any], core: int = -1, ht: int = -1) -> None:
        self.notes.append((kind, data))

    def later(self, after_ns: int, what: Callable[[], None]) -> None:
        self.timers.append((self.now + after_ns, what))

    def progressed(self, batch: Batch) -> None:
        self.progress.append((batch.ticket, batch.delivered, batch.accepted))

    def completed(self, batch: Batch) -> None:
        self.over.append(batch)

    def now_ns(self) -> int:
        return self.now

    # What the test does.

    def inject(self, what: str, *places: tuple[int, int], count: int = 1, interval_ns: int = 0, **more: Any) -> Batch:
        batch = Batch(what, places or (H0,), count, interval_ns, self.now, more.pop("details", {}), **more)
        self.injector.accept(batch)
        return batch

    def takes(self, what: str, place: tuple[int, int]) -> None:
        """The hyperthread looks at its line, and its handler ends."""
        word = self.page[base_of(place[1]) + (NMI if what == "nmi" else MCE)]
        data = {"what": what, "id": interrupt_parts(word)[0], "depth": 1, "merged": 0, "host_ns": 1, "from": "GUEST"}
        self.injector.on_record(Record(1, 1, self.now, "intr", place[0], place[1], 0, 0, data))

    def dies(self, place: tuple[int, int]) -> None:
        del self.children[place]
        self.injector.on_death(place)

    def pass_ns(self, ns: int) -> None:
        self.now += ns
        due, self.timers = [t for t in self.timers if t[0] <= self.now], [t for t in self.timers if t[0] > self.now]
        for _, what in due:
            what()
        self.injector.tick()

    def results(self) -> Counter[str]:
        return Counter(data["result"] for kind, data in self.notes if kind == "inject.done")

    def assert_each_done_once(self) -> None:
        """G8, from the notes alone."""
        accepted = Counter(data["id"] for kind, data in self.notes if kind == "inject")
        done = Counter(data["id"] for kind, data in self.notes if kind == "inject.done")
        assert accepted == done
        assert set(accepted.values()) <= {1}


@pytest.fixture
def machine():
    return Machine()


# --- interrupts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nmi", "mce"])
def test_an_interrupt_is_handled_when_its_handler_has_ended(machine, what):
    batch = machine.inject(what)
    assert machine.rung == [H0]
    assert (batch.accepted, batch.over, machine.over) == (1, False, [])
    machine.takes(what, H0)
    assert batch.counts == {"handled": 1, "merged": 0, "lost": 0, "refused": 0}
    assert machine.over == [batch]
    machine.assert_each_done_once()


def test_interrupts_that_come_during_one_become_one(machine):
    batch = machine.inject("nmi", count=5)
    machine.takes("nmi", H0)
    assert batch.counts["handled"] == 1
    assert batch.counts["merged"] == 4
    handled = [data["id"] for kind, data in machine.notes if kind == "inject.done" and data["result"] == "handled"]
    assert handled == [5], "the last one is the one whose handler ran"
    machine.assert_each_done_once()


def test_the_two_lines_of_a_hyperthread_are_apart(machine):
    nmi, mce = machine.inject("nmi"), machine.inject("mce")
    machine.takes("mce", H0)
    assert (nmi.over, mce.over) == (False, True)
    machine.takes("nmi", H0)
    assert nmi.over
    machine.assert_each_done_once()


def test_a_handler_that_began_before_does_not_take_what_came_after(machine):
    first = machine.inject("nmi")
    word = machine.page[base_of(0) + NMI]
    second = machine.inject("nmi")
    data = {"what": "nmi", "id": interrupt_parts(word)[0]}
    machine.injector.on_record(Record(1, 1, 0, "intr", 0, 0, 0, 0, data))
    assert (first.over, second.over) == (True, False)


def test_an_interrupt_nobody_injected_changes_nothing(machine):
    machine.takes("nmi", H1)
    assert machine.notes == []


def test_each_target_counts(machine):
    batch = machine.inject("nmi", H0, H1, count=2)
    assert batch.accepted == 4
    machine.takes("nmi", H0)
    assert not batch.over
    machine.takes("nmi", H1)
    assert (batch.over, batch.counts["handled"], batch.counts["merged"]) == (True, 2, 2)


# --- exits ------------------------------------------------------------------------------------------------


def test_exits_go_as_one_message_and_are_counted_one_by_one(machine):
    batch = machine.inject("exit", count=100, details={"reason": "CPUID", "full": False, "isa": "vmx", "service_ns": 0})
    [message] = machine.told
    assert (message["op"], message["n"], message["reason"]) == ("exit", 100, "CPUID")
    assert machine.injector.on_done(message["id"])
    assert batch.counts["handled"] == 100
    assert not machine.injector.on_done(message["id"]), "told twice, done once"
    machine.assert_each_done_once()
    [note] = [data for kind, data in machine.notes if kind == "inject"]
    assert (note["n"], note["reason"], note["target"]) == (100, "CPUID", "c0h0")


def test_an_interrupt_of_a_device_is_noted_with_its_vector(machine):
    machine.inject("irq", details={"reason": "EXTERNAL_INTERRUPT", "vector": 77})
    assert [data["vector"] for kind, data in machine.notes if kind == "inject"] == [77]
    machine.inject("exit", details={"reason": "CPUID"})
    for kind, data in machine.notes:
        assert fault_of(Record(1, 1, 1, kind, 0, 0, 0, 0, data)) is None
    assert "vector" not in machine.notes[-1][1]


def test_a_number_that_is_no_injections_is_not_taken(machine):
    assert not machine.injector.on_done(77)


def test_a_hyperthread_without_a_vcpu_takes_no_exits(machine):
    machine.vcpus[H1] = (0, 0)
    with pytest.raises(Conflict, match="no vCPU"):
        machine.inject("exit", H0, H1)
    assert machine.notes == machine.told == []
    machine.inject("nmi", H1)


def test_a_hyperthread_without_a_vcpu_takes_interrupts(machine):
    machine.vcpus[H1] = (0, 0)
    machine.inject("irq", H1, details={"reason": "EXTERNAL_INTERRUPT"})
    assert [told["op"] for told in machine.told] == ["irq"]


@pytest.mark.parametrize("left", [3, 1])
def test_what_a_vcpu_had_not_done_when_it_was_taken_away_is_for_its_hyperthread_to_say(machine, left):
    batch = machine.inject("exit", count=3)
    machine.vcpus[H0] = (0, 0)
    machine.injector.on_detach(H0)
    assert machine.told[-1] == {"op": "refuse"}
    assert machine.results() == {}, "nobody knows yet how many it has done"
    machine.injector.on_done(machine.told[0]["id"], left)
    assert (batch.counts["refused"], batch.counts["handled"], batch.over) == (left, 3 - left, True)
    assert machine.results() == {"refused": 1}
    [why] = [data["why"] for kind, data in machine.notes if kind == "inject.done"]
    assert "taken away" in why and ("2 of 3" in why) == (left == 1)
    machine.assert_each_done_once()


def test_a_refusal_that_comes_too_late_for_a_message_that_is_done(machine):
    batch = machine.inject("exit", count=3)
    machine.injector.on_detach(H0)
    machine.injector.on_done(machine.told[0]["id"], 0)
    assert batch.counts["handled"] == 3


def test_a_paced_batch_whose_vcpu_goes_is_refused_from_there_on(machine):
    batch = machine.inject("exit", count=3, interval_ns=100)
    machine.injector.on_done(machine.told[0]["id"])
    machine.vcpus[H0] = (0, 0)
    machine.injector.on_detach(H0)
    machine.pass_ns(200)
    assert [message["op"] for message in machine.told] == ["exit"]
    assert (batch.counts["refused"], batch.counts["handled"], batch.over) == (2, 1, True)
    machine.assert_each_done_once()


# --- signals ----------------------------------------------------------------------------------------------


def test_a_kill_is_handled_by_the_death(machine):
    batch = machine.inject("kill", H1)
    assert machine.children[H1].signals == [signal.SIGKILL]
    assert not batch.over
    machine.dies(H1)
    assert (batch.over, batch.counts["handled"]) == (True, 1)
    machine.assert_each_done_once()


def test_a_coordinator_can_be_killed(machine):
    batch = machine.inject("kill", (0, -1))
    machine.dies((0, -1))
    assert batch.counts["handled"] == 1
    [note] = [data for kind, data in machine.notes if kind == "inject"]
    assert note["target"] == "c0"


def test_a_stall_ends_by_itself(machine):
    child = machine.children[H0]
    batch = machine.inject("stall", details={"for_ns": 50})
    assert child.signals == [signal.SIGSTOP]
    machine.pass_ns(49)
    assert not batch.over
    machine.pass_ns(1)
    assert child.signals == [signal.SIGSTOP, signal.SIGCONT]
    assert batch.counts["handled"] == 1


def test_a_stall_that_was_fenced_is_lost_and_its_successor_is_left_alone(machine):
    batch = machine.inject("stall", details={"for_ns": 50})
    machine.dies(H0)
    successor = machine.bear(H0)
    machine.pass_ns(100)
    assert batch.counts["lost"] == 1
    assert successor.signals == []
    machine.assert_each_done_once()


def test_several_signals_to_one_process_all_count(machine):
    batch = machine.inject("kill", count=3)
    machine.dies(H0)
    assert batch.counts["handled"] == 3
    machine.assert_each_done_once()


# --- pace -------------------------------------------------------------------------------------------------


def test_a_rate_is_kept(machine):
    batch = machine.inject("nmi", count=3, interval_ns=100)
    assert batch.left == 2
    assert machine.injector.tick() == machine.now + 100
    machine.pass_ns(100)
    assert batch.left == 1
    machine.pass_ns(99)
    assert batch.left == 1
    machine.pass_ns(1)
    assert batch.left == 0
    machine.takes("nmi", H0)
    assert sum(batch.counts.values()) == 3


def test_random_gaps_keep_their_mean_and_are_those_of_their_seed(machine):
    def moments(seed):
        batch = machine.inject("nmi", H0, count=400, interval_ns=1_000, gaps=Random(seed))
        begin = last = machine.now
        found = []
        while batch.left:
            before, soonest = batch.left, machine.injector.tick()
            assert soonest is not None and soonest >= last, "time goes on"
            machine.pass_ns(max(0, soonest - machine.now))
            last = soonest
            found += [soonest - begin] * (before - batch.left)
        machine.takes("nmi", H0)
        return found

    first, again, other = moments(7), moments(7), moments(8)
    assert first == again != other
    assert 300_000 < first[-1] < 500_000, "400 of 1,000 in the mean"
    gaps = [b - a for a, b in pairwise(first)]
    assert min(gaps) < 100 and max(gaps) > 4_000, "some are short, some are long"


def test_a_pause_of_the_daemon_is_caught_up(machine):
    batch = machine.inject("nmi", count=10, interval_ns=100)
    machine.pass_ns(100_000)
    assert batch.left == 0


@pytest.mark.parametrize("interval_ns", [0, 1])
def test_a_large_batch_does_not_keep_the_daemon_from_its_work(machine, interval_ns):
    batch = machine.inject("nmi", count=10 * BURST_MAX, interval_ns=interval_ns)
    machine.pass_ns(S)
    assert 7 * BURST_MAX <= batch.left <= 9 * BURST_MAX
    soonest = machine.injector.tick()
    assert soonest is not None and soonest <= machine.now, "there is more to do at once"
    for _ in range(12):
        machine.pass_ns(1)
    assert batch.left == 0
    machine.takes("nmi", H0)
    assert sum(batch.counts.values()) == batch.accepted == 10 * BURST_MAX
    assert len(batch.as_ret()["ids"]) == IDS_SHOWN_MAX
    machine.assert_each_done_once()


def test_a_cancelled_batch_counts_what_was_delivered(machine):
    batch = machine.inject("nmi", count=10, interval_ns=100, ticket=5)
    machine.pass_ns(200)
    machine.injector.cancel(5)
    assert batch.accepted == 3
    assert not batch.over, "what was delivered is followed to its end"
    machine.takes("nmi", H0)
    assert (batch.over, sum(batch.counts.values())) == (True, 3)
    machine.pass_ns(S)
    machine.assert_each_done_once()


def test_a_job_tells_what_it_has_delivered_of_what(machine):
    machine.inject("nmi", H0, H1, count=3, interval_ns=100, ticket=5)
    machine.pass_ns(99)
    assert machine.progress == [(5, 2, 6)], "nothing new is not told again"
    machine.pass_ns(1)
    machine.injector.cancel(5)
    machine.pass_ns(S)
    assert machine.progress == [(5, 2, 6), (5, 4, 6)]


def test_what_nobody_asks_after_tells_no_progress(machine):
    machine.inject("nmi", count=3, interval_ns=100)
    machine.pass_ns(S)
    assert machine.progress == []


def test_a_job_that_is_handed_over_at_once_is_delivered_as_a_whole(machine):
    machine.inject("exit", H0, H1, count=2_000, ticket=5)
    assert machine.progress == [(5, 4_000, 4_000)]


# --- deaths, refusals, the end ----------------------------------------------------------------------------


def test_nobody_home_is_refused_before_anything_happens(machine):
    machine.dies(H1)
    machine.unplugged = {H1}
    with pytest.raises(Conflict, match="OFFLINE") as caught:
        machine.inject("nmi", H0, H1)
    assert (caught.value.retry, caught.value.hint) == ("never", "asid ht plug c0h1 first.")
    assert machine.notes == [] and machine.page[base_of(0) + NMI] == 0


def test_who_is_about_to_be_born_again_is_worth_another_try(machine):
    machine.dies(H1)
    with pytest.raises(Busy, match="c0h1 is not up") as caught:
        machine.inject("nmi", H0, H1)
    assert caught.value.retry == "later" and "plug" not in caught.value.hint
    assert machine.notes == [] and machine.page[base_of(0) + NMI] == 0
    machine.bear(H1).up = False
    with pytest.raises(Busy, match="born again"):
        machine.inject("exit", H1)


def test_everything_the_dead_had_not_done_is_lost(machine):
    batches = [machine.inject(what, count=2) for what in ("nmi", "mce", "exit", "irq")]
    machine.dies(H0)
    assert [batch.counts["lost"] for batch in batches] == [2, 2, 2, 2]
    assert not machine.injector.busy
    machine.assert_each_done_once()


def test_a_paced_batch_goes_on_over_a_death_and_says_what_was_lost(machine):
    batch = machine.inject("nmi", count=3, interval_ns=100)
    machine.dies(H0)
    machine.pass_ns(100)
    machine.bear(H0)
    machine.pass_ns(100)
    machine.takes("nmi", H0)
    assert (batch.counts["lost"], batch.counts["handled"]) == (2, 1)
    machine.assert_each_done_once()


def test_what_was_delivered_before_the_end_is_refused_by_nobody_but_its_hyperthread(machine):
    child = machine.children[H0]
    for what, details in (("nmi", {}), ("exit", {}), ("stall", {"for_ns": S}), ("mce", {})):
        machine.inject(what, count=4, interval_ns=100, details=details)
    machine.injector.close()
    assert machine.results() == {"handled": 1}, "the stall, cut short"
    assert child.signals[-1] == signal.SIGCONT, "nobody is left stopped"
    machine.takes("nmi", H0)  # its handler ran all the same
    exits = next(message for message in machine.told if message["op"] == "exit")
    assert {"op": "refuse"} in machine.told
    machine.injector.on_done(exits["id"], exits["n"])
    machine.dies(H0)
    assert machine.results() == {"handled": 2, "refused": 1, "lost": 1}
    assert not machine.injector.busy
    assert [batch.accepted for batch in machine.over] == [1, 1, 1, 1]
    machine.pass_ns(10 * S)
    machine.assert_each_done_once()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["nmi", "mce", "exit", "kill", "take", "die", "bear", "done", "pass", "cancel"]),
        st.sampled_from([H0, H1]),
        st.integers(1, 4),
        st.sampled_from([0, 0, 1, 4]),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_happens_each_is_done_once_and_the_counts_add_up(steps):
    machine = Machine()
    batches: list[Batch] = []
    for ticket, (step, place, n, left) in enumerate(steps, start=1):
        alive = place in machine.children
        if step in ("nmi", "mce", "exit", "kill"):
            if alive:
                batches.append(machine.inject(step, place, count=n, interval_ns=100 * (n % 2), ticket=ticket))
        elif step == "take" and alive:
            machine.takes("nmi" if n % 2 else "mce", place)
        elif step == "die" and alive:
            machine.dies(place)
        elif step == "bear" and not alive:
            machine.bear(place)
        elif step == "done" and machine.told:
            message = machine.told[n % len(machine.told)]
            machine.injector.on_done(message["id"], min(left, message["n"]))
        elif step == "pass":
            machine.pass_ns(50 * n)
        elif step == "cancel" and batches:
            machine.injector.cancel(batches[n % len(batches)].ticket)
    machine.injector.close()
    for place in list(machine.children):
        machine.dies(place)
    machine.assert_each_done_once()
    assert all(sum(batch.counts.values()) == batch.accepted for batch in batches)
    assert sorted(map(id, machine.over)) == sorted(map(id, batches)), "each batch is over once"
