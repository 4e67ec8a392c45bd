"""Figures that comparisons need: what of a run its vCPUs spent in guest, and which kicks asked no gate."""

from __future__ import annotations

from audit_tale import Tale

FAST = {"reason": "CPUID", "isa": "vmx", "full": False, "n": 2, "sum_ns": 10_000, "min_ns": 4_000, "max_ns": 6_000,
        "hist": [[48, 2]]}  # fmt: skip


def shares(tale: Tale) -> tuple[float, float, float]:
    figures = tale.audit().figures
    return figures["served_ns"] / 1000, figures["guest_ns"] / 1000, figures["guest_percent"]


def test_guest_time_is_a_share_of_the_time_that_was_served():
    tale = Tale(vcpus=2)
    tale.enter(1_000, 0)  # ISOLATED at 1,002, GUEST at 1,003
    tale.enter(1_010, 1)
    tale.leave(1_100, 0, (1,), host_us=40)
    tale.end(9_000)
    served, guest, percent = shares(tale)
    # h0 is in guest until 1,100, h1 until its kick at 1,103; the last stay is h0's in HOST. What comes before the first
    # stay and after the last is the start and the end of the processes.
    assert guest == (1_100 - 1_003) + (1_103 - 1_013)
    last = max(record.ts for record in tale.records if record.type == "ht.mode") / 1000
    assert served == last - 1_002
    assert percent == round(100 * guest / (2 * served), 2)


def test_the_handlers_of_fast_exits_are_no_guest_time():
    tale = Tale(vcpus=1)
    tale.enter(0, 0)
    tale.say(50, "exit", 0, 0, **FAST)
    tale.goes(103, 0, "PARKED")
    tale.end(200)
    assert shares(tale) == (101, 90, round(100 * 90 / 101, 2))


def test_a_vcpu_that_never_ran_counts_too():
    tale = Tale(vcpus=2)
    tale.enter(0, 0)
    tale.goes(103, 0, "PARKED")
    tale.end(200)
    assert shares(tale)[2] == round(100 * 100 / 202, 2)


def test_of_a_run_in_which_nobody_ran_there_is_none():
    tale = Tale(vcpus=2)
    tale.end(200)
    assert shares(tale) == (0, 0, 0)


def test_kicks_that_asked_no_gate_are_counted_apart_from_interrupts():
    tale = Tale(kick="send", smt=4)
    tale.enter(0, 0)
    tale.ipis(50, 0, "send")
    tale.ipis(60, 1, "nmi")
    tale.ipis(70, 1, "mce", (0,))
    figures = tale.end(200).figures
    assert (figures["kicks_sent"], figures["ipis"], figures["kicks"]) == (3, 7, 0)
