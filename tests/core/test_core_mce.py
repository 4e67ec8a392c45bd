"""The rendezvous of #MC handlers: its words and decisions, and what a hyperthread does in it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.core import hyperthread, mce
from asid.core.apic import Apic
from asid.core.events import Action, Do, Mode, Seen
from asid.core.hyperthread import Event, HyperthreadState, Phase, What
from asid.core.mce import CallIn, Check, Meeting, Met, Role, Severity

BROADCAST = Check(7, 0b1111, Severity.RECOVERABLE)

# --- words


@given(st.builds(CallIn, st.integers(0, 1 << 40), st.integers(0, 8), st.booleans(), st.sampled_from(list(Severity))))
def test_a_call_in_word_says_what_was_packed(word):
    assert mce.unpacked(mce.packed(word)) == word


def test_no_word_is_the_word_of_nobody():
    assert mce.unpacked(0) == CallIn() == mce.closed(0)


@given(st.integers(0, 1 << 40), st.integers(0, 255))
def test_a_broadcast_word_says_what_was_packed(number, party):
    assert mce.broadcast_parts(mce.broadcast_word(number, party)) == (number, party)


@pytest.mark.parametrize("raised", list(itertools.product(Severity, repeat=2)))
def test_the_worst_severity_since_the_last_one_counts(raised):
    taken = mce.severity_word(mce.severity_word(0, Severity.FATAL), Severity.RECOVERABLE)
    word = taken
    for severity in raised:
        word = mce.severity_word(word, severity)
    assert mce.severity_since(word, taken) is max(raised)


def test_a_machine_check_takes_the_broadcast_along_that_was_raised_since():
    first, second = mce.broadcast_word(1, 3), mce.broadcast_word(2, 3)
    assert mce.check_of(second, first, Severity.FATAL) == Check(2, 3, Severity.FATAL)
    assert mce.check_of(second, second, Severity.RECOVERABLE) == mce.LOCAL


# --- arrivals and waits


def arrive(words: list[CallIn], ht: int, check: Check = BROADCAST) -> None:
    words[ht] = mce.called_in(check, [w for other, w in enumerate(words) if other != ht])


def waits(do: Do, ht: int, words: list[CallIn], party: int = 0b1111) -> list[int]:
    bits = mce.awaited(do, ht, party, words)
    return [other for other in range(len(words)) if bits >> other & 1]


@pytest.mark.parametrize("arrivals", list(itertools.permutations(range(4))))
def test_the_first_in_is_the_monarch_and_the_others_follow_in_order(arrivals):
    words = [CallIn(3, 2, True)] * 4  # what an earlier rendezvous left
    for number, ht in enumerate(arrivals, start=1):
        arrive(words, ht)
        assert words[ht] == CallIn(7, number, False, Severity.RECOVERABLE)
        assert sorted(waits(Do.AWAIT_ALL, ht, words)) == sorted(set(range(4)) - set(arrivals[:number]))
    for number, ht in enumerate(arrivals):
        assert sorted(waits(Do.AWAIT_TURN, ht, words)) == sorted(arrivals[:number])
        assert mce.role_of(mce.met(ht, words)) is (Role.JOINED if number else Role.MONARCH)
    for number, ht in enumerate(arrivals):
        assert waits(Do.AWAIT_TURN, ht, words) == []
        words[ht] = words[ht]._replace(done=True)
        assert sorted(waits(Do.AWAIT_OUT, ht, words)) == sorted(arrivals[number + 1 :])


def test_nobody_waits_for_whom_it_did_not_reach_or_who_took_it_along_with_a_later_one():
    words = [CallIn(), CallIn(), CallIn(8, 1), CallIn()]
    arrive(words, 0)
    assert waits(Do.AWAIT_ALL, 0, words, party=0b0101) == []
    assert waits(Do.AWAIT_OUT, 0, words, party=0b0101) == []
    assert waits(Do.AWAIT_ALL, 0, words) == [1, 3]


def test_whoever_died_is_waited_for_no_more_and_the_next_is_first():
    words = [CallIn()] * 4
    for ht in (2, 1, 0, 3):
        arrive(words, ht)
    assert waits(Do.AWAIT_TURN, 1, words) == [2]
    words[2] = mce.closed(7)
    assert waits(Do.AWAIT_TURN, 1, words) == waits(Do.AWAIT_ALL, 1, words) == []
    assert mce.role_of(mce.met(1, words)) is Role.MONARCH
    assert mce.role_of(mce.met(0, words)) is Role.JOINED


def test_one_that_comes_late_is_not_first_although_the_others_have_gone_on():
    words = [CallIn(8, 1), CallIn(7, 1, True), CallIn()]
    arrive(words, 2)
    assert words[2].order == 2
    words[1] = CallIn(8, 2)
    assert not mce.met(2, words).first


def test_the_worst_severity_of_those_who_are_in_decides():
    words = [CallIn(7, 1), CallIn(7, 2, False, Severity.FATAL), CallIn(6, 1, True, Severity.FATAL)]
    assert mce.met(0, words).severity is Severity.FATAL
    words[1] = mce.closed(7)
    assert mce.met(0, words).severity is Severity.CORRECTED


def test_the_role_of_one_whose_time_is_out():
    assert mce.role_of(Met(missing=2, first=True)) is Role.MONARCH
    assert mce.role_of(Met(missing=2)) is Role.ALONE


# --- what a hyperthread does

SPEC = hyperthread.Spec(0, (1,))
HELD = HyperthreadState(phase=Phase.HELD, mode=Mode.ISOLATED, vm=1, session=True, used=True, round=1)
PLAIN = (Do.SET_DEPTH, Do.IPI, Do.SET_MODE, Do.WORK, Do.SET_MODE, Do.SET_DEPTH, Do.WAKE)
MEETS = (Do.CALL_IN, Do.WAKE, Do.AWAIT_ALL, Do.AWAIT_TURN, Do.WORK, Do.CALL_OUT, Do.WAKE, Do.AWAIT_OUT)


def hit(check: Check, spec: hyperthread.Spec = SPEC, s: HyperthreadState = HELD) -> HyperthreadState:
    return hyperthread.step(spec, s, Event(What.MCE, check=check))


def play(
    s: HyperthreadState, *, spec: hyperthread.Spec = SPEC, ends: dict[Do, Met] | None = None
) -> tuple[HyperthreadState, list[Action]]:
    """Perform everything the handler does; `ends`: what its waits come to, by default the end in time."""
    done = []
    while s.frames:
        action = hyperthread.next_action(s)
        assert action is not None
        done.append(action)
        met = (ends or {}).get(action.do, Met(0, True)) if action.do in mce.AWAITS else None
        s = hyperthread.step(spec, s, hyperthread.PERFORMED if met is None else Event(What.PERFORMED, met=met))
    return s, done


def kinds(done: list[Action]) -> tuple[Do, ...]:
    return tuple(action.do for action in done)


def test_a_local_machine_check_meets_nobody():
    after, done = play(hit(mce.LOCAL))
    assert kinds(done) == PLAIN
    assert after == HELD
    assert hit(Check(severity=Severity.CORRECTED)).frames[0].todo == hit(mce.LOCAL).frames[0].todo


def test_a_broadcast_is_worked_on_in_the_rendezvous_in_host_with_the_depth_up():
    after, done = play(hit(BROADCAST))
    at = PLAIN.index(Do.WORK)
    assert kinds(done) == (*PLAIN[:at], *MEETS, *PLAIN[at + 1 :])
    assert done[3] == Action(Do.CALL_IN, 7, Severity.RECOVERABLE)
    assert after == HELD


@pytest.mark.parametrize("do", mce.AWAITS)
def test_a_wait_that_is_timed_out_is_the_last(do):
    after, done = play(hit(BROADCAST), ends={do: Met(missing=2)})
    assert kinds(done).count(Do.WORK) == kinds(done).count(Do.CALL_OUT) == 1
    assert [d for d in kinds(done) if d in mce.AWAITS] == list(mce.AWAITS[: mce.AWAITS.index(do) + 1])
    assert after.absent == 2
    assert after.depth == 0


def test_whoever_missed_a_sibling_stays_out_of_guest_until_a_look_is_clear():
    s, _ = play(hit(BROADCAST), ends={Do.AWAIT_ALL: Met(missing=2)})
    for holders in (True, True, False):
        s = hyperthread.step(SPEC, s, hyperthread.DOORBELL)
        s = hyperthread.step(SPEC, s, Event(What.PERFORMED, seen=Seen(False, 0, holders)))
        assert bool(s.absent) is holders
        assert (s.phase is Phase.HELD) is holders


def test_whom_the_next_broadcast_did_not_reach_is_missed_no_more():
    """It is dead: its word was closed for the broadcast in which it was missed, and is of no later one ever again."""
    s, _ = play(hit(BROADCAST), ends={Do.AWAIT_ALL: Met(missing=0b0110)})
    words = [CallIn(8, 1, True), mce.closed(7), CallIn(8, 2, True), CallIn(8, 3, True)]
    assert mce.unfinished(0, s.absent, words) == 0b0010
    after, _ = play(hit(Check(8, 0b1101), s=s))
    assert after.absent == 0b0100, "the other one was reached again, and is asked for like anybody"
    assert mce.unfinished(0, after.absent, words) == 0
    again, _ = play(hit(mce.LOCAL, s=s))
    assert again.absent == s.absent


def test_a_handler_without_a_way_back_ends_with_its_last_wait():
    """Under `none` an interrupted HOST is neither left nor restored: the rendezvous is all there is."""
    spec = hyperthread.Spec(0, (1,), guarded=False)
    hosting = HyperthreadState(phase=Phase.HOSTING, mode=Mode.HOST, vm=1)
    after, done = play(hit(BROADCAST, spec, hosting), spec=spec)
    assert kinds(done) == MEETS
    assert after == hosting


@pytest.mark.parametrize("guarded", [True, False])
def test_a_fatal_one_fails_the_core_before_it_kicks_and_works(guarded):
    spec = hyperthread.Spec(0, (1,), guarded=guarded)
    _, done = play(hit(Check(severity=Severity.FATAL), spec), spec=spec)
    at = kinds(done).index(Do.FAIL)
    assert kinds(done)[at : at + 3] == (Do.FAIL, Do.IPI, Do.WORK)
    assert Do.SET_MODE in kinds(done)[:at]


def test_the_fatal_one_of_a_sibling_fails_the_core_for_all():
    _, done = play(hit(BROADCAST), ends={Do.AWAIT_TURN: Met(severity=Severity.FATAL)})
    assert kinds(done).count(Do.FAIL) == 1
    assert kinds(done).index(Do.FAIL) < kinds(done).index(Do.WORK)


def test_the_kicks_of_a_fatal_one_leave_icr2_as_it_was():
    spec = hyperthread.Spec(0, (1,), apic=Apic.XAPIC)
    _, done = play(hit(Check(severity=Severity.FATAL), spec, HELD._replace(icr2=1)), spec=spec)
    fatal = done[kinds(done).index(Do.FAIL) : kinds(done).index(Do.WORK)]
    assert fatal[-1] == Action(Do.ICR2, 1)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_failed_core_takes_no_guest_under_any_policy(guarded):
    spec = hyperthread.Spec(0, (1,), guarded=guarded)
    entering = HELD._replace(phase=Phase.ENTERING, mode=Mode.ENTER, todo=(hyperthread.LOOK,))
    look = Event(What.PERFORMED, seen=Seen(False, 0, False, False, True))
    after = hyperthread.step(spec, entering, look)
    assert after.phase is Phase.HELD


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("check", [Check(severity=Severity.FATAL), BROADCAST], ids=["local", "of a sibling"])
def test_an_entry_that_has_had_its_look_looks_again_behind_a_fatal_one(check, flush):
    """Its own kicks reach its siblings only; without flushes nothing else makes it look."""
    spec = hyperthread.Spec(0, (1,), flush=flush)
    entering = HELD._replace(phase=Phase.ENTERING, mode=Mode.ENTER, todo=hyperthread.TO_GUEST)
    after, _ = play(hit(check, spec, entering), spec=spec, ends={Do.AWAIT_TURN: Met(severity=Severity.FATAL)})
    assert (after.mode, after.todo) == (Mode.ENTER, (hyperthread.LOOK,))


def test_a_machine_check_inside_a_machine_check_is_held_or_ends_the_process():
    inside = hit(mce.LOCAL)
    assert not hyperthread.may_interrupt(SPEC, inside, What.MCE)
    assert not hyperthread.shuts_down(SPEC, inside, What.MCE)
    strict = hyperthread.Spec(0, (1,), mcip=True)
    assert hyperthread.shuts_down(strict, inside, What.MCE)
    assert not hyperthread.shuts_down(strict, HELD, What.MCE)
    assert not hyperthread.shuts_down(strict, inside, What.NMI)


# --- what must hold


def test_what_breaks_a_rendezvous_is_said():
    monarch = Meeting(7, 7, 0b11, Role.MONARCH, True)
    assert mce.broken((monarch, Meeting(7, 7, 0b11))) is None
    assert mce.broken((monarch, None)) is None
    assert "both monarch" in str(mce.broken((monarch, monarch)))
    assert "not even hit" in str(mce.broken((monarch, Meeting(6))))
    assert "work at once" in str(mce.broken((monarch, monarch._replace(role=Role.JOINED))))
    assert mce.broken((monarch._replace(late=True), Meeting(6))) is None
    assert mce.broken((monarch, monarch._replace(role=Role.ALONE, late=True))) is None
