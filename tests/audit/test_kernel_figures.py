"""What the audit makes of KVM's own events in a journal, and how a verdict tells it."""

from __future__ import annotations

import pytest

from asid.audit import PASS
from asid.report.kernel_events import kernel_lines
from asid.report.verdict import verdict_lines


def told(tale, of="c0h0", event="kvm_userspace_exit", reason="KVM_EXIT_IO", **data):
    tale.say(50, "kvm.events", -1, -1, of=of, pid=101, event=event, reason=reason, **data)


def recording(tale, state="on", **data):
    tale.say(2, "kvm.recording", -1, -1, state=state, **data)


def exits(tale, n, ht=0, reason="IO_INSTRUCTION"):
    times = {"sum_ns": n * 100, "min_ns": 100, "max_ns": 100, "hist": [[26, n]]}
    tale.say(60, "exit", 0, ht, 1, reason=reason, isa="vmx", full=False, n=n, **times)


def figures(tale):
    tale.enter(10, 0)
    tale.enter(20, 1)
    verdict = tale.end(900)
    assert verdict.verdict == PASS, "figures are no guarantee"
    return verdict.figures.get("kvm")


def over(tale, **data):
    tale.say(800, "kvm.recording", -1, -1, state="over", lost=0, bytes=10, **data)


def text(figures):
    return " ".join(kernel_lines(figures))


def test_a_run_that_recorded_nothing_says_nothing_of_it(tale):
    assert figures(tale) is None
    assert kernel_lines({}) == []


def test_why_nothing_was_recorded_is_said(tale):
    recording(tale, "off", why="no tracefs is mounted")
    found = figures(tale)
    assert found == {"recorded": False, "why": "no tracefs is mounted", "lost": 0, "text_cut": ""}
    assert text(found) == "KVM's own events: not recorded (no tracefs is mounted)."


def test_counts_of_all_records_are_added_up(tale):
    recording(tale)
    told(tale, event="kvm_exit", reason="CPUID", n=5, ended=4, kept=4, sum_ns=4_000)
    told(tale, event="kvm_exit", reason="CPUID", n=5, ended=6, kept=6, sum_ns=16_000)
    told(tale, event="kvm_exit", reason="IO_INSTRUCTION", n=1000, ended=1000, kept=0, sum_ns=2_000_000)
    told(tale, event="kvm_entry", reason="", n=1010)
    over(tale)
    found = figures(tale)
    assert found["threads"] == {
        "c0h0": {
            "kvm_entry": {"": {"n": 1010}},
            "kvm_exit": {
                "CPUID": {"n": 10, "ended": 10, "kept": 10, "sum_ns": 20_000},
                "IO_INSTRUCTION": {"n": 1000, "ended": 1000, "kept": 0, "sum_ns": 2_000_000},
            },
        }
    }
    assert text(found) == (
        "KVM's own exits: c0h0 1,010 (IO_INSTRUCTION 1,000 of 2.0us; CPUID 10 of 2.0us, 10 kept within KVM)."
    )


def test_a_kvm_that_tells_no_exits_is_said_to(tale):
    recording(tale)
    told(tale, n=7)
    told(tale, reason="restart", n=3)
    over(tale)
    assert text(figures(tale)).startswith(
        "KVM's own returns to userspace (this KVM tells no exits): c0h0 10 (KVM_EXIT_IO 7, restart 3)."
    )


def test_what_both_told_is_compared_and_what_a_client_injected_is_allowed_for(tale):
    recording(tale)
    told(tale, n=100)
    told(tale, reason="KVM_EXIT_HLT", n=10)
    told(tale, reason="restart", n=999)
    tale.say(55, "inject", 0, 0, id=1, what="exit", target="c0h0", reason="IO_INSTRUCTION", n=4)
    exits(tale, 104)
    exits(tale, 10, reason="HLT")
    exits(tale, 50, reason="CPUID")  # KVM hands none of these over
    tale.say(70, "inject.done", 0, 0, id=1, result="handled")
    over(tale)
    found = figures(tale)
    assert found["agreement"] == {"c0h0": {"handed": 110, "reported": 114, "bound": 5}}
    assert "Of 110 exits that KVM handed over its hyperthreads reported 114 (at most 5 apart" in text(found)


def test_a_hyperthread_that_differs_by_more_is_named(tale):
    recording(tale)
    told(tale, n=100)
    told(tale, of="c0h1", n=100)
    exits(tale, 100)
    exits(tale, 90, ht=1)
    over(tale)
    assert "c0h1 differ by more than what was under way explains" in text(figures(tale))


@pytest.mark.parametrize("doubt", ["lost", "late", "killed", "not over"])
def test_no_bound_is_stated_where_nobody_can_know_it(tale, doubt):
    recording(tale, **({"why": "late"} if doubt == "late" else {}))
    told(tale, n=100)
    exits(tale, 90)
    if doubt == "killed":
        tale.say(65, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
        tale.say(66, "gate.dead", 0, 0, 1, inc=1)
    if doubt == "lost":
        tale.say(800, "kvm.recording", -1, -1, state="over", lost=3, bytes=10)
    elif doubt != "not over":
        over(tale)
    tale.say(900, "run.end", -1, -1, reason="stop")
    found = tale.audit().figures["kvm"]
    assert found["agreement"]["c0h0"]["bound"] is None
    assert "how far apart they may be is not known" in text(found)
    if doubt == "lost":
        assert "3 events were dropped by the kernel" in text(found)


def test_a_text_that_is_cut_is_said(tale):
    recording(tale)
    told(tale, n=1)
    exits(tale, 1)
    over(tale, cut="it is limited to 64.0MiB")
    found = figures(tale)
    assert found["agreement"]["c0h0"]["bound"] == 1, "the counts are whole all the same"
    assert "the text is cut: it is limited to 64.0MiB" in text(found)


def test_of_many_hyperthreads_the_first_are_shown():
    threads = {f"c{number}h0": {"kvm_userspace_exit": {"KVM_EXIT_IO": {"n": 1}}} for number in range(9)}
    shown = text({"recorded": True, "why": "", "lost": 0, "text_cut": "", "threads": threads, "agreement": {}})
    assert shown.endswith("c3h0 1 (KVM_EXIT_IO 1); and of 5 more.")


def test_a_verdict_tells_it_within_its_width(tale):
    recording(tale)
    for reason in ("KVM_EXIT_IO", "KVM_EXIT_MMIO", "KVM_EXIT_HLT", "restart"):
        told(tale, reason=reason, n=123_456)
    over(tale)
    figures(tale)
    lines = verdict_lines(tale.audit().as_map())
    assert any(line.startswith("KVM's own returns") for line in lines)
    assert max(map(len, lines)) <= 80
