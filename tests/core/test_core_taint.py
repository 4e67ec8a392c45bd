"""Taints: each domain, buffer and flush; leaks beside and after; the fold against a plain one; the promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.core import buffers, exits, taint
from asid.core.buffers import (
    BARRIER,
    BUFFER_CLEAR,
    BUFFERS,
    FLUSHES,
    KERNEL,
    L1D_FLUSH,
    PERFECT,
    PROMISES,
    VMM,
    WHAT,
    Domain,
    Kind,
    When,
    domain_of,
)
from asid.core.events import Mode
from asid.core.policy import NAMES, POLICIES
from asid.core.taint import Event, Leak, TaintState, due, initial, owners, promised, step

FEW = settings(max_examples=40, deadline=None)
SHARED_DATA = ("L1D", "fill buffers", "load ports")
OWN_DATA = (*SHARED_DATA, "store buffers")


def tell(events: list[Event], siblings: int = 2) -> tuple[TaintState, list[Leak]]:
    state, leaks = initial(siblings), []
    for event in events:
        state, found = step(state, event)
        leaks += found
    return state, leaks


def host(ht: int, why: str = "HLT", visit: int = 1, *, idle: bool = False) -> Event:
    return Event(ht, Mode.HOST, why=why, visit=visit, idle=idle)


def guest(ht: int, vm: int = 1, visit: int = 9) -> Event:
    return Event(ht, Mode.GUEST, vm, visit=visit)


def isolated(ht: int, vm: int = 1, visit: int = 5) -> Event:
    return Event(ht, Mode.ISOLATED, vm, visit=visit)


def parked(ht: int) -> Event:
    return Event(ht, Mode.PARKED)


def flush(ht: int, *which: buffers.Flush) -> Event:
    return Event(ht, flushes=which or (L1D_FLUSH,))


# --- the tables ---------------------------------------------------------------------------------------------------


def test_every_row_has_its_source():
    for row in (*BUFFERS, *FLUSHES):
        assert row.source
    for row in FLUSHES:
        assert row.about
        if row.cost is None:
            assert row.source == buffers.NO_FIGURE
        else:
            assert 0 < row.cost.low_ns <= row.cost.typical_ns <= row.cost.high_ns


def test_every_buffer_is_cleared_by_something_and_no_flush_is_of_two_kinds():
    assert {buffer for row in FLUSHES for buffer in row.clears} == set(BUFFERS)
    assert all(len({buffer.kind for buffer in row.clears}) == 1 for row in FLUSHES)


def test_the_words_of_a_record_clear_what_they_say():
    def kinds(what: str) -> set[Kind]:
        return {buffer.kind for row in WHAT[what] for buffer in row.clears}

    assert (kinds("data"), kinds("control"), kinds("all")) == ({Kind.DATA}, {Kind.CONTROL}, set(Kind))
    for what, rows in WHAT.items():
        cleared = {buffer for row in rows for buffer in row.clears}
        assert cleared == {buffer for buffer in BUFFERS if buffer.kind in kinds(what)}, what


def test_whose_data_it_is_depends_on_who_looks():
    assert [domain_of(owner, 1) for owner in (KERNEL, VMM, 1, 2)] == [
        Domain.KERNEL, Domain.VMM, Domain.THIS_VM, Domain.OTHER_VM,
    ]  # fmt: skip
    assert domain_of(2, 2) is Domain.THIS_VM


@pytest.mark.parametrize(
    ("why", "whose"),
    [
        ("HLT", (KERNEL,)), ("EPT_VIOLATION", (KERNEL,)), ("EXTERNAL_INTERRUPT", (KERNEL,)),
        ("IO_INSTRUCTION", (KERNEL, VMM)), ("EPT_MISCONFIG", (KERNEL, VMM)), ("EXIT_IOIO", (KERNEL, VMM)),
        ("nmi", (KERNEL,)), ("mce", (KERNEL,)), ("irq", (KERNEL,)), ("", (KERNEL,)), ("no such exit", (KERNEL,)),
    ],
)  # fmt: skip
def test_whose_data_a_visit_to_host_loads(why, whose):
    assert owners(why) == whose


@pytest.mark.parametrize("row", exits.VMX + exits.SVM, ids=lambda row: f"{row.isa}-{row.name}")
def test_the_vmm_is_loaded_by_what_may_go_on_to_it(row):
    assert (VMM in owners(row.name)) == (row.when == "userspace")


# --- residual -----------------------------------------------------------------------------------------------------


def test_what_host_left_is_found_by_the_same_hyperthread_in_every_data_buffer():
    _, [leak] = tell([host(0, "IO_INSTRUCTION", visit=3), isolated(0), guest(0, visit=7)])
    assert leak == Leak(
        False, Kind.DATA, 0, 1, 7, 0, 3, "IO_INSTRUCTION", False, (Domain.KERNEL, Domain.VMM), OWN_DATA
    )  # fmt: skip


def test_a_sibling_finds_it_where_it_is_shared():
    _, [leak] = tell([host(0), parked(0), guest(1)])
    assert (leak.concurrent, leak.reader, leak.loader, leak.buffers) == (False, 1, 0, SHARED_DATA)


def test_the_guests_own_data_is_no_leak():
    assert tell([guest(0), isolated(0), parked(0), guest(0), guest(1), isolated(1), guest(1)])[1] == []


def test_another_vm_leaves_data_and_training():
    _, leaks = tell([guest(0, 2, visit=3), parked(0), guest(0, 1)])
    assert [(leak.kind, leak.domains, leak.visit, leak.concurrent) for leak in leaks] == [
        (Kind.CONTROL, (Domain.OTHER_VM,), 3, False),
        (Kind.DATA, (Domain.OTHER_VM,), 3, False),
    ]
    assert [leak.buffers for leak in leaks] == [("branch target buffer", "return stack"), OWN_DATA]
    assert {leak.why for leak in leaks} == {""}


def test_the_return_stack_of_a_sibling_trains_nobody():
    _, leaks = tell([guest(0, 2), parked(0), guest(1, 1)])
    assert [leak.buffers for leak in leaks] == [("branch target buffer",), SHARED_DATA]


def test_isolated_loads_its_vms_data():
    assert [leak.kind for leak in tell([isolated(0, 2), parked(0), guest(0, 1)])[1]] == [Kind.CONTROL, Kind.DATA]


def test_the_kernel_trains_nobody():
    assert [leak.kind for leak in tell([host(0, "nmi"), guest(0)])[1]] == [Kind.DATA]


@pytest.mark.parametrize("mode", [Mode.PARKED, Mode.OFFLINE, Mode.ENTER])
def test_what_loads_nothing(mode):
    state, leaks = tell([Event(0, mode, 2), guest(1, 1)])
    assert leaks == [] and all(left.load.ht == 1 for left in state.taints)


def test_of_several_visits_the_last_lies_over_the_others():
    _, [leak] = tell([host(0, visit=1), parked(0), host(0, visit=2), parked(0), guest(0)])
    assert leak.visit == 2


# --- concurrent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [[guest(0), host(1)], [host(1), guest(0)]], ids=["guest first", "host first"])
def test_a_guest_beside_host(events):
    _, [leak] = tell(events)
    assert (leak.concurrent, leak.reader, leak.loader, leak.domains, leak.stay) == (True, 0, 1, (Domain.KERNEL,), 9)
    assert leak.buffers == SHARED_DATA, "store buffers are partitioned"


def test_two_vms_beside_each_other_read_each_other():
    _, leaks = tell([guest(0, 1, visit=1), guest(1, 2, visit=2)])
    assert [(leak.reader, leak.loader, leak.stay, leak.visit, leak.kind) for leak in leaks] == [
        (0, 1, 1, 2, Kind.CONTROL), (0, 1, 1, 2, Kind.DATA), (1, 0, 2, 1, Kind.CONTROL), (1, 0, 2, 1, Kind.DATA),
    ]  # fmt: skip
    assert all(leak.concurrent for leak in leaks)


def test_a_guest_beside_the_isolated_address_space_of_another_vm():
    assert all(leak.concurrent for leak in tell([guest(0, 1), isolated(1, 2)])[1])
    assert len(tell([guest(0, 1), isolated(1, 2)])[1]) == 2
    assert tell([guest(0, 1), isolated(1, 1)])[1] == []


def test_a_guest_whose_pending_bit_is_set_reads_nothing():
    """An exposure window: the NMI comes, the sibling is in guest and retires nothing, it is flushed and goes on."""
    still = Event(0, Mode.ENTER, 1)
    assert tell([guest(0), still, host(1, "nmi"), parked(1), isolated(0), flush(0), guest(0)])[1] == []
    _, leaks = tell([guest(0), still, host(1, "nmi"), parked(1), isolated(0), guest(0)])
    assert [leak.concurrent for leak in leaks] == [False], "without a flush it finds what the handler left"


def test_leaks_are_told_when_they_begin_and_not_again():
    _, leaks = tell([guest(0), host(1), parked(1), guest(1), isolated(1)])
    assert [(leak.reader, leak.concurrent) for leak in leaks] == [(0, True), (1, False)]


def test_each_sibling_in_guest_is_a_reader():
    _, leaks = tell([guest(0), guest(1), guest(3), host(2)], siblings=4)
    assert [leak.reader for leak in leaks] == [0, 1, 3]


# --- flushes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FLUSHES, ids=lambda row: row.name)
@pytest.mark.parametrize("buffer", BUFFERS, ids=lambda buffer: buffer.name)
@pytest.mark.parametrize("own", [True, False], ids=["own", "a sibling's"])
def test_each_flush_and_its_reach(row, buffer, own):
    """What guest 2 left on hyperthread 0, after a flush on 0 or on 1, as guest 1 on hyperthread 0 finds it."""
    _, leaks = tell([guest(0, 2), parked(0), flush(0 if own else 1, row), guest(0, 1)])
    there = any(buffer.name in leak.buffers for leak in leaks)
    assert there == (buffer not in row.clears or (not own and not buffer.shared))


def test_a_flush_while_host_works_does_not_outlast_it():
    _, leaks = tell([host(0), flush(1), parked(0), guest(1)])
    assert [leak.concurrent for leak in leaks] == [False]
    assert tell([host(0), parked(0), flush(1), guest(1)])[1] == []


def test_a_guest_that_goes_on_is_not_flushed_away():
    _, leaks = tell([guest(0, 2), flush(1, L1D_FLUSH, BARRIER), guest(1, 1)])
    assert {leak.loader for leak in leaks if leak.reader == 1} == {0}


def test_buffers_that_a_clear_leaves_alone():
    _, [leak] = tell([host(0), parked(0), flush(0, BUFFER_CLEAR), guest(0)])
    assert leak.buffers == ("L1D",)


def test_equal_contents_are_equal_states():
    one, _ = tell([host(0), guest(1, 2), parked(0), parked(1)])
    other, _ = tell([guest(1, 2), host(0), parked(1), parked(0)])
    assert one == other and hash(one) == hash(other)


# --- against a plain dict -----------------------------------------------------------------------------------------


class Plain:
    """The same, told by sets of words: what is where, and who is at work."""

    def __init__(self, siblings: int) -> None:
        self.work: dict[int, set[int]] = {ht: set() for ht in range(siblings)}
        self.vm: dict[int, int] = {}  # of those in guest
        self.where: dict[tuple[str, int], set[tuple[int, int]]] = {}  # (buffer, whose or -1) -> (owner, loader)

    def fill(self, ht: int) -> None:
        for buffer in BUFFERS:
            for owner in self.work[ht]:
                if buffer.kind is Kind.DATA or owner > 0:
                    self.where.setdefault((buffer.name, -1 if buffer.shared else ht), set()).add((owner, ht))

    def seen(self, ht: int, only: int | None = None) -> set[tuple[int, int, str, bool]]:
        """(loader, reader, kind, concurrent) of what a guest on ht finds."""
        out = set()
        for (name, place), pairs in self.where.items():
            kind = next(buffer.kind for buffer in BUFFERS if buffer.name == name)
            for owner, loader in pairs:
                foreign = owner != self.vm[ht] if kind is Kind.DATA else owner > 0 and owner != self.vm[ht]
                if place in (-1, ht) and foreign and only in (None, loader):
                    now = loader != ht and owner in self.work[loader]
                    if only is None or owner in self.work[loader]:
                        out.add((loader, ht, kind.value, owner, now))
        return out

    def step(self, event: Event) -> set[tuple[int, int, str, int, bool]]:
        if event.flushes:
            for buffer in (buffer for row in event.flushes for buffer in row.clears):
                self.where.pop((buffer.name, -1 if buffer.shared else event.ht), None)
            for ht in self.work:
                self.fill(ht)
            return set()
        self.vm.pop(event.ht, None)
        self.work[event.ht] = set()
        if event.mode is Mode.HOST:
            self.work[event.ht] = {KERNEL, VMM} if event.why == "IO_INSTRUCTION" else {KERNEL}
        elif event.mode in (Mode.GUEST, Mode.ISOLATED):
            self.work[event.ht] = {event.vm}
        if event.mode is Mode.GUEST:
            self.vm[event.ht] = event.vm
        self.fill(event.ht)
        out = set()
        for ht in self.vm:
            out |= self.seen(ht, None if ht == event.ht else event.ht)
        return out


events_of_three = st.lists(
    st.one_of(
        st.builds(
            Event,
            st.integers(0, 2),
            st.sampled_from([Mode.HOST, Mode.ISOLATED, Mode.GUEST, Mode.PARKED, Mode.OFFLINE, Mode.ENTER]),
            st.integers(1, 2),
            why=st.sampled_from(["HLT", "IO_INSTRUCTION", "nmi"]),
            visit=st.just(0),
            flushes=st.just(()),
        ),
        st.builds(lambda ht, rows: Event(ht, flushes=tuple(rows)), st.integers(0, 2),
                  st.lists(st.sampled_from(FLUSHES), min_size=1, max_size=3)),
    ),
    max_size=30,
)  # fmt: skip


@FEW
@given(events_of_three)
def test_the_fold_says_what_a_plain_one_says(events):
    plain, state = Plain(3), initial(3)
    for event in events:
        expected = plain.step(event)
        state, leaks = step(state, event)
        found = {(leak.loader, leak.reader, leak.kind.value, domain) for leak in leaks for domain in leak.domains}
        assert found == {(a, b, kind, domain_of(owner, plain.vm[b])) for a, b, kind, owner, _ in expected}
        # With every visit named 0, one leak stands for all that one loader has brought.
        for leak in leaks:
            alike = [
                now for a, b, kind, _, now in expected if (a, b, kind) == (leak.loader, leak.reader, leak.kind.value)
            ]
            assert leak.concurrent == any(alike)


@FEW
@given(events_of_three, st.sampled_from(sorted(PROMISES)))
def test_nothing_that_a_policy_protects_from_is_left_after_its_flushes(events, name):
    """What is due before an entry suffices, while nobody else is at work."""
    state, _ = tell(events, 3)
    for ht in (1, 2):
        state, _ = step(state, parked(ht))
    flushes = due(PROMISES[name], state, 0, 1)
    state, _ = step(state, isolated(0, 1))
    if flushes:
        state, _ = step(state, Event(0, flushes=flushes))
    _, leaks = step(state, guest(0, 1))
    assert not any(promised(PROMISES[name], leak) for leak in leaks)
    assert not leaks or name not in ("asi", "asi-irqoff", "asi-stun"), "they promise all that there is"


# --- what policies promise ----------------------------------------------------------------------------------------


def test_every_policy_has_a_promise_and_those_that_flush_say_when():
    assert set(PROMISES) == set(NAMES)
    for name, promise in PROMISES.items():
        assert (promise.when is not When.NEVER) == POLICIES[name].flush, name
        assert promise.protect <= PERFECT.protect and promise.prevent <= PERFECT.prevent
        assert (promise.apart >= {Domain.KERNEL}) == POLICIES[name].guarded, name


def test_none_promises_nothing():
    _, leaks = tell([guest(0, 1), host(1), parked(1), guest(1, 2), host(0, "IO_INSTRUCTION"), guest(0, 1)])
    assert {leak.concurrent for leak in leaks} == {True, False}
    assert not any(promised(PROMISES["none"], leak) for leak in leaks)
    assert all(promised(PERFECT, leak) for leak in leaks)


@pytest.mark.parametrize(
    ("name", "beside_host", "beside_idle", "beside_vm", "after_host", "trained"),
    [
        ("none", False, False, False, False, False),
        ("nosmt", True, True, True, True, False),
        ("core-sched", False, False, True, True, False),
        ("kick-every-exit", True, True, True, True, False),
        ("kick-except-idle", True, False, True, True, False),
        ("asi", True, True, True, True, True),
        ("asi-irqoff", True, True, True, True, True),
        ("asi-stun", True, True, True, True, True),
    ],
)
def test_what_each_policy_promises(name, beside_host, beside_idle, beside_vm, after_host, trained):
    def leak_of(events: list[Event], kind: Kind = Kind.DATA) -> bool:
        [leak] = [leak for leak in tell(events)[1] if leak.reader == 0 and leak.kind is kind]
        return promised(PROMISES[name], leak)

    assert leak_of([guest(0), host(1)]) == beside_host
    assert leak_of([guest(0), host(1, "HLT", idle=True)]) == beside_idle
    assert leak_of([guest(0, 1), guest(1, 2)]) == beside_vm
    assert leak_of([host(0), guest(0)]) == after_host
    assert leak_of([guest(0, 2), parked(0), guest(0, 1)], Kind.CONTROL) == trained


@pytest.mark.parametrize(
    ("name", "clean", "after_host", "after_vm"),
    [
        ("none", (), (), ()),
        ("nosmt", (L1D_FLUSH,), (L1D_FLUSH,), (L1D_FLUSH,)),
        ("kick-every-exit", (L1D_FLUSH,), (L1D_FLUSH,), (L1D_FLUSH,)),
        ("asi", (), (L1D_FLUSH,), (L1D_FLUSH, BARRIER)),
    ],
)
def test_what_is_flushed_before_an_entry(name, clean, after_host, after_vm):
    for events, expected in (([], clean), ([host(0)], after_host), ([guest(0, 2), parked(0)], after_vm)):
        assert due(PROMISES[name], tell(events)[0], 0, 1) == expected


def test_a_siblings_store_buffers_are_nothing_to_flush_for():
    state, _ = tell([host(1), parked(1), flush(0)])
    [left] = state.taints
    assert (left.load.ht, left.where) == (1, taint.bits([buffers.STORE]))
    assert due(PROMISES["asi"], state, 0, 1) == ()
    assert due(PROMISES["asi"], state, 1, 1) == (L1D_FLUSH,)


def test_a_guest_without_a_vm_cannot_be():
    with pytest.raises(AssertionError):
        step(initial(1), Event(0, Mode.GUEST, 0))


def test_an_empty_core_holds_nothing():
    assert initial(8).taints == () and len(initial(8).threads) == 8
