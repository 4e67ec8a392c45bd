"""G9 and the leaks: each kind once good and once bad, what excuses, what is counted once, and by whose promise."""

from __future__ import annotations

import itertools

import pytest
from audit_tale import Tale

from asid.audit import FAIL, PASS, Verdict
from asid.audit.visits import TO_VMM
from asid.core.buffers import VMM
from asid.core.exits import SVM, VMX
from asid.core.record import Record
from asid.core.taint import owners


def counts(verdict: Verdict) -> tuple[int, int, int]:
    """(concurrent, residual, promised)"""
    leaks = verdict.figures["leaks"]
    finding, found = verdict.finding("G9"), leaks["concurrent"] + leaks["residual"]
    assert bool(found) <= finding.broken <= min(found, finding.checked), "guest intervals, however much each could read"
    assert (finding.broken > finding.allowed) == (leaks["promised"] > 0)
    return leaks["concurrent"], leaks["residual"], leaks["promised"]


def chains(verdict: Verdict) -> list[tuple[str, str, str]]:
    """(loader, why, reader) of those that are shown, by time."""
    shown = [leak.as_map() for leak in sorted(verdict.leaks)]
    return [(leak["loader"]["name"], leak["loader"]["why"], leak["reader"]["name"]) for leak in shown]


def host(tale: Tale, us: float, ht: int, *, why: str = "HLT", via: str = "bare", host_us: float = 10) -> None:
    """From wherever it is to HOST and on to ISOLATED: takes host_us."""
    tale.goes(us, ht, "HOST", via=via)
    tale.say(us, "leave", 0, ht, tale.round, kind_="bare", reason=why, wait_ns=1)
    tale.goes(us + host_us, ht, "ISOLATED")


def both(**more) -> Tale:
    tale = Tale(**more)
    tale.enter(10, 0)
    tale.enter(20, 1)
    return tale


# --- residual -----------------------------------------------------------------------------------------------------


def test_a_guest_that_goes_back_in_after_its_own_exit(tale):
    tale.enter(10, 0)
    tale.leave(100, 0)  # HOST from 106 to 116
    tale.goes(200, 0, "ISOLATED")
    tale.goes(210, 0, "GUEST")
    verdict = tale.end(900)
    assert verdict.verdict == FAIL and counts(verdict) == (0, 1, 1)
    [leak] = verdict.leaks
    assert (leak.visit.start, leak.visit.end, leak.reader.start) == (106_000, 116_000, 210_000)
    assert "c0h0 in HOST by grant left host kernel data to the guest of vm1 on c0h0, which ran 94000 ns" in leak.text


@pytest.mark.parametrize("by", [0, 1])
@pytest.mark.parametrize(("what", "left"), [("data", 0), ("all", 0), ("control", 1)])
def test_a_flush_by_anybody_on_the_core_clears_if_it_is_of_data(tale, by, what, left):
    tale.enter(10, 0)
    tale.leave(100, 0)
    tale.flush(150, by, what)
    tale.goes(200, 0, "ISOLATED")
    tale.goes(210, 0, "GUEST")
    assert counts(tale.end(900)) == (0, left, left)


@pytest.mark.parametrize(("us", "left"), [(105, 1), (110, 1), (116, 0), (210, 0), (211, 1)])
def test_a_flush_counts_between_the_end_of_the_visit_and_the_entry(tale, us, left):
    """HOST from 106 to 116, guest from 210 on; at equal stamps the run gets the benefit of the doubt."""
    tale.enter(10, 0)
    tale.leave(100, 0)
    tale.flush(us, 1)
    tale.goes(210, 0, "GUEST")
    assert counts(tale.end(900))[1] == left


def test_what_a_sibling_left_behind(tale):
    tale.enter(10, 0)
    tale.leave(100, 0)
    tale.goes(200, 1, "GUEST")
    assert chains(tale.end(900)) == [("c0h0", "", "c0h1")]


def test_a_guest_does_not_read_a_visit_twice(tale):
    tale.enter(10, 0)
    tale.leave(100, 0)
    for us in (200, 300, 400):
        tale.goes(us, 0, "GUEST")
        tale.goes(us + 50, 0, "ISOLATED")
    tale.goes(500, 1, "GUEST")
    assert chains(tale.end(900)) == [("c0h0", "", "c0h0"), ("c0h0", "", "c0h1")], "once each hyperthread"


def test_of_several_visits_the_last_lies_over_the_others():
    tale = Tale(policy="none")
    for us, why in ((100, "HLT"), (200, "HLT"), (300, "EPT_VIOLATION"), (400, "IO_INSTRUCTION")):
        host(tale, us, 0, why=why)
    tale.goes(500, 0, "GUEST")
    verdict = tale.end(900)
    assert chains(verdict) == [("c0h0", "EPT_VIOLATION", "c0h0"), ("c0h0", "IO_INSTRUCTION", "c0h0")]
    assert {leak.visit.domains for leak in verdict.leaks} == {("host kernel",), ("host kernel", "userspace VMM")}


def test_the_same_domains_again_are_something_new_to_read():
    tale = Tale(policy="none")
    for us in (100, 200, 300):
        host(tale, us, 0)
        tale.goes(us + 20, 0, "GUEST")
    assert counts(tale.end(900)) == (0, 3, 0)


def test_equal_stamps_of_two_hyperthreads_say_nothing(tale):
    tale.enter(10, 0)
    tale.leave(100, 0)
    tale.goes(116, 1, "GUEST")
    assert counts(tale.end(900)) == (0, 0, 0)


# --- concurrent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "promised"), [("none", 0), ("core-sched", 0), ("asi", 1), ("nosmt", 1)])
def test_a_guest_beside_host(policy, promised):
    tale = Tale(policy=policy)
    tale.enter(10, 0)
    host(tale, 100, 1, why="EPT_VIOLATION", via="grant" if policy == "asi" else "bare")
    verdict = tale.end(900)
    assert counts(verdict) == (1, 0, promised)
    [leak] = verdict.leaks
    assert leak.visit.why == "EPT_VIOLATION" and len(leak.seqs) == 3
    assert (
        "in HOST by" in leak.text and "for EPT_VIOLATION loaded host kernel data beside the guest of vm1" in leak.text
    )
    assert ("does not promise otherwise" in verdict.finding("G9").violations[0].text) == (not promised)


def test_a_guest_after_host_is_beside_nobody(tale):
    tale.enter(10, 0)
    tale.leave(100, 0)
    tale.enter(120, 1)
    assert tale.end(900).verdict == PASS


def test_a_pair_counts_once_as_concurrent():
    tale = Tale(policy="none")
    tale.goes(50, 0, "GUEST")
    host(tale, 100, 1)
    tale.goes(200, 0, "ISOLATED")
    tale.goes(210, 0, "GUEST")
    assert counts(tale.end(900)) == (1, 0, 0)


def test_each_guest_interval_beside_one_visit_counts():
    tale = Tale(policy="none")
    host(tale, 100, 1, host_us=400)
    for us in (150, 250, 350):
        tale.goes(us, 0, "GUEST")
        tale.goes(us + 50, 0, "ISOLATED")
    assert counts(tale.end(900)) == (3, 0, 0)


def test_every_sibling_in_guest_reads():
    tale = Tale(policy="none", smt=4)
    for ht in (0, 1, 2):
        tale.goes(50, ht, "GUEST")
    host(tale, 100, 3)
    assert counts(tale.end(900)) == (3, 0, 0)


def test_fast_exits_within_a_guest_interval_are_no_visits():
    tale = both()
    exit_ = {"reason": "MSR_WRITE", "isa": "vmx", "full": False, "n": 9, "sum_ns": 9, "min_ns": 1, "max_ns": 1}
    tale.say(100, "exit", 0, 0, 1, **exit_, hist=[[0, 9]])
    assert counts(tale.end(900)) == (0, 0, 0)


# --- what its pending bit excuses ---------------------------------------------------------------------------------


def exposed(tale: Tale, via: str, *, ipi: bool = True, flushed: bool = True) -> Verdict:
    """c0h0 in HOST by `via` from 100 to 130; c0h1 is out of guest at 115, and in again at 140."""
    if ipi:
        tale.ipis(99, 0, via)
    tale.goes(100, 0, "HOST", via=via)
    tale.goes(130, 0, "ISOLATED")
    if via in ("nmi", "mce"):
        tale.intr(130, 0, what=via, was="GUEST")
    tale.goes(115, 1, "ISOLATED")
    if flushed:
        tale.flush(135, 1)
    tale.goes(140, 1, "GUEST")
    tale.goes(150, 0, "GUEST")
    return tale.end(900)


@pytest.mark.parametrize("via", ["nmi", "mce", "send", "stun"])
def test_an_exposure_window_leaks_nothing(via):
    tale = both(kick=via if via in ("send", "stun") else "ack")
    verdict = exposed(tale, via)
    assert verdict.verdict == PASS and len(verdict.windows) == 1 and counts(verdict) == (0, 0, 0)


@pytest.mark.parametrize("via", ["nmi", "mce", "send", "stun"])
def test_what_it_leaves_is_to_be_flushed(via):
    """Each of the two finds it: c0h0 as its own, c0h1 as its sibling's."""
    verdict = exposed(both(kick=via if via in ("send", "stun") else "ack"), via, flushed=False)
    assert counts(verdict) == (0, 2, 2)
    assert {leak.visit.why for leak in verdict.leaks} == {via if via in ("nmi", "mce") else ""}


@pytest.mark.parametrize("via", ["nmi", "send"])
def test_without_an_ipi_there_is_no_excuse(via):
    verdict = exposed(both(kick="send"), via, ipi=False)
    assert counts(verdict) == (1, 0, 1) and verdict.finding("G2").broken == 1


@pytest.mark.parametrize("policy", ["none", "core-sched"])
def test_under_a_policy_that_heeds_no_sibling_an_nmi_leaks(policy):
    assert counts(exposed(both(policy=policy), "nmi")) == (1, 0, 0)


def test_who_enters_beside_it_has_no_excuse():
    tale = Tale()
    tale.ipis(99, 0, "nmi")
    tale.goes(100, 0, "HOST", via="nmi")
    tale.goes(110, 1, "ISOLATED")
    tale.goes(115, 1, "GUEST")
    tale.goes(130, 0, "ISOLATED")
    tale.intr(130, 0)
    verdict = tale.end(900)
    assert counts(verdict) == (1, 0, 1) and verdict.finding("G2").broken == 1


def test_a_look_that_came_before_it_excuses():
    """ISOLATED at 90, a look, an NMI from 100 to 110 on the other one, GUEST noted at 120: its bit is set."""
    tale = both()
    tale.goes(90, 1, "ISOLATED")
    tale.nmi(100, 0, host_us=10)
    tale.goes(120, 1, "GUEST")
    tale.goes(125, 1, "ISOLATED")
    tale.goes(130, 1, "GUEST")  # and this one is in earnest: nobody has flushed
    verdict = tale.end(900)
    assert counts(verdict) == (0, 1, 1)
    [leak] = verdict.leaks
    assert (leak.reader.start, leak.visit.why) == (130_000, "nmi")


def test_a_look_that_came_after_it_excuses_nothing():
    tale = both()
    tale.nmi(100, 0, host_us=10)
    tale.goes(105, 1, "ISOLATED")
    tale.goes(120, 1, "GUEST")
    assert counts(tale.end(900)) == (0, 1, 1)


def test_an_nmi_of_ones_own_is_no_excuse():
    tale = both()
    tale.nmi(100, 0)
    tale.goes(120, 0, "GUEST")
    assert chains(tale.end(900)) == [("c0h0", "nmi", "c0h0")]


# --- other VMs ----------------------------------------------------------------------------------------------------


def test_two_vms_side_by_side_read_each_other():
    tale = Tale(policy="none")
    tale.goes(50, 0, "GUEST", vm=1)
    tale.goes(60, 1, "GUEST", vm=2)
    verdict = tale.end(900)
    assert counts(verdict) == (2, 0, 0)
    assert {leak.visit.domains for leak in verdict.leaks} == {("vm1",), ("vm2",)}
    assert "c0h1 running vm2 loaded vm2 data beside the guest of vm1 on c0h0" in {leak.text for leak in verdict.leaks}


def test_stays_of_one_vm_are_one_visit():
    tale = Tale(policy="none")
    tale.goes(50, 0, "GUEST", vm=1)
    for us in (100, 200, 300):
        tale.goes(us, 1, "ISOLATED", vm=2)
        tale.goes(us + 50, 1, "GUEST", vm=2)
    verdict = tale.end(900)
    assert sum(leak.visit.vm == 2 for leak in verdict.leaks) == 1


@pytest.mark.parametrize("flushed", [True, False])
def test_a_vm_that_had_the_core_before(flushed):
    tale = Tale()
    tale.enter(10, 0, vm=2)
    tale.goes(100, 0, "ISOLATED", vm=2)
    tale.goes(110, 0, "PARKED", vm=2)
    tale.flushes = flushed
    tale.enter(200, 1, vm=1)
    verdict = tale.end(900)
    assert counts(verdict) == ((0, 0, 0) if flushed else (0, 1, 1))
    assert chains(verdict) == ([] if flushed else [("c0h0", "", "c0h1")])


def test_a_vcpu_of_another_vm_reads_for_itself():
    tale = Tale(policy="none")
    host(tale, 100, 1)
    tale.goes(200, 0, "GUEST", vm=1)
    tale.goes(250, 0, "PARKED", vm=1)
    tale.goes(300, 0, "GUEST", vm=2)
    shown = sorted((leak.reader.vm, leak.visit.vm) for leak in tale.end(900).leaks)
    # vm2 finds what vm1 left here, and has c0h1 in the isolated address space of vm1 beside it.
    assert shown == [(1, 0), (2, 0), (2, 1), (2, 1)]


# --- whose data ---------------------------------------------------------------------------------------------------


def test_the_audits_own_list_of_exits_to_the_vmm_is_that_of_the_model():
    assert {row.name for row in VMX + SVM if VMM in owners(row.name)} == TO_VMM


@pytest.mark.parametrize(
    ("why", "vmm"),
    [("IO_INSTRUCTION", True), ("EPT_MISCONFIG FAILED_VMENTRY", True), ("DB excp", True), ("DB", False), ("HLT", False),
     ("EXTERNAL_INTERRUPT", False)],
)  # fmt: skip
def test_what_an_exit_loads(why, vmm):
    tale = Tale(policy="none")
    host(tale, 100, 0, why=why)
    tale.goes(200, 0, "GUEST")
    [leak] = tale.end(900).leaks
    assert leak.visit.domains == (("host kernel", "userspace VMM") if vmm else ("host kernel",))
    assert leak.as_map()["loader"]["why"] == why


def test_the_reason_of_a_visit_is_that_of_its_own_leave():
    tale = Tale(policy="none")
    for us, why in ((100, "HLT"), (200, "CPUID"), (300, "INVLPG")):
        host(tale, us, 0, why=why)
        tale.goes(us + 20, 0, "GUEST")
    assert [why for _, why, _ in chains(tale.end(900))] == ["HLT", "CPUID", "INVLPG"]


# --- by whose promise ---------------------------------------------------------------------------------------------


def test_kick_except_idle_does_not_promise_what_comes_of_idling():
    tale = both(policy="kick-except-idle")
    host(tale, 100, 1, why="HLT", via="bare")
    verdict = tale.end(900)
    assert counts(verdict) == (1, 0, 0)
    assert verdict.finding("G9").note.startswith("1 that policy kick-except-idle does not promise against; 0 others")


@pytest.mark.parametrize(("policy", "own", "sibling"), [("none", 0, 0), ("core-sched", 1, 0), ("nosmt", 1, 1)])
def test_what_is_left_behind_is_promised_or_not(policy, own, sibling):
    for reader, promised in ((0, own), (1, sibling)):
        tale = Tale(policy=policy)
        host(tale, 100, 0)
        tale.goes(200, reader, "GUEST")
        assert counts(tale.end(900)) == (0, 1, promised)


def test_each_leak_goes_by_the_policy_of_its_moment():
    tale = Tale(policy="none")
    for us in range(100, 140):
        host(tale, us, 0, host_us=0.25)
        tale.goes(us + 0.5, 0, "GUEST")
    tale.policy(500, "asi", old="none")
    tale.goes(590, 0, "ISOLATED")
    tale.goes(600, 0, "HOST", via="grant")
    tale.goes(610, 0, "PARKED")
    tale.goes(700, 0, "GUEST")
    verdict = tale.end(900)
    assert counts(verdict) == (0, 41, 1)
    assert len(verdict.leaks) == 20 and [leak.policy for leak in verdict.leaks[:2]] == ["asi", "none"]
    assert "40 that policy none does not promise against; 1 others, the first: c0h0" in verdict.finding("G9").note


def test_what_is_only_perhaps_is_a_suspect():
    """Killed in guest, after its answer to a kick: what is left of that interval accuses nobody."""
    tale = both()
    tale.goes(100, 0, "ISOLATED")
    tale.gate(101, "leave", 0, req=2, reason="HLT")
    tale.gate(102, "kick", 1, number=1, for_ht=0)
    tale.gate(103, "answer", 1, number=1, was="GUEST")
    tale.gate(104, "grant", 0, req=2)
    tale.goes(105, 0, "HOST", via="grant")
    tale.say(120, "death", 0, 1, what="ht", pid=102, inc=1, status=-9)
    tale.goes(130, 0, "PARKED")
    finding = tale.end(900).finding("G9")
    assert (finding.broken, finding.suspects) == (0, 1)


@pytest.mark.parametrize(("policy", "state"), [("asi", "held"), ("none", "held")])
def test_g9_is_exercised_by_a_guest(policy, state):
    assert Tale(policy=policy).end(900).finding("G9").state == "not exercised"
    tale = Tale(policy=policy)
    tale.enter(10, 0)
    finding = tale.end(900).finding("G9")
    assert (finding.state, finding.checked) == (state, 1)


def test_a_machine_that_is_to_leave_its_buffers_alone_breaks_nothing_by_that(tale):
    tale.enter(10, 0)
    tale.leave(100, 0)
    tale.goes(200, 0, "GUEST")
    begin = tale.records[0]
    tale.records[0] = begin._replace(data={**begin.data, "flushes": False})
    verdict = tale.end(900)
    assert verdict.figures["leaks"] == {"concurrent": 0, "residual": 1, "promised": 0}
    finding = verdict.finding("G9")
    assert (finding.state, finding.note) == ("not exercised", "the machine was told to leave its buffers alone")
    assert [leak.promised for leak in verdict.leaks] == [False]


def test_the_chain_in_json():
    tale = Tale(policy="none")
    tale.goes(50, 0, "GUEST")
    host(tale, 100, 1, why="IO_INSTRUCTION")
    document = tale.end(900).as_map()
    [leak] = document["leaks"]
    assert leak["kind"] == "concurrent" and leak["promised"] is False and leak["policy"] == "none"
    assert leak["loader"] == {
        "name": "c0h1", "mode": "HOST", "via": "bare", "why": "IO_INSTRUCTION",
        "domains": ["host kernel", "userspace VMM"], "seq": leak["seqs"][0], "start": 100_000, "end": 110_000,
    }  # fmt: skip
    assert leak["reader"] == {"name": "c0h0", "vm": 1, "seq": leak["seqs"][2], "start": 50_000, "end": 900_000}
    by_seq = {record.seq: record for record in tale.records}
    assert [by_seq[seq].type for seq in leak["seqs"]] == ["ht.mode", "leave", "ht.mode"]
    assert document["figures"]["leaks"] == {"concurrent": 1, "residual": 0, "promised": 0}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["none", "core-sched"])
def test_a_long_run_is_counted_in_linear_time(policy):
    """Not a speed test: pairs of all with all over 100,000 records would take the time-out of the suite."""
    smt = 4
    tale = Tale(policy=policy, smt=smt)
    turns = itertools.cycle(range(smt))
    us = 100.0
    for ht in range(smt):
        tale.goes(us, ht, "GUEST")
    while len(tale.records) < 100_000:
        ht = next(turns)
        us += 10
        host(tale, us, ht, host_us=25, why="CPUID")
        if tale.flushes:
            tale.flush(us + 26, ht)
        tale.goes(us + 27, ht, "GUEST")
    tale.records.sort(key=lambda record: record.ts)
    records = [Record(seq, 0, *record[2:]) for seq, record in enumerate(tale.records, 1)]
    tale.records = records
    tale._tseqs.clear()
    concurrent, residual, _ = counts(tale.end(us + 1000))
    visits = sum(record.data.get("new") == "HOST" for record in records)
    assert visits < concurrent <= visits * smt
    assert residual <= visits * smt and (policy != "none" or residual >= visits)
