"""G6: a fault that nobody left for, exits that were fast although nothing was mapped, leaves for what was mapped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from audit_tale import MS, Tale

from asid.audit import FAIL, PASS
from asid.audit.history import gather
from asid.audit.spaces import Spaces
from asid.audit.verdict import Verdict, judge
from asid.config import load, resolved
from asid.mm.isolated import Entry
from asid.mm.population import entries_of
from asid.space_files import mapping_text

CONFIG = {"vm": [{"name": "a", "on": ["c0h0"]}, {"name": "b", "on": ["c0h1"]}]}


@pytest.fixture
def kept(tmp_path: Path):
    """A run directory, as far as the audit reads it, with one mapping of both VMs: a name, or entries."""

    def keep(mapping: str | tuple[Entry, ...] = "allowed") -> Spaces:
        entries = entries_of(mapping, "vmx") if isinstance(mapping, str) else mapping
        (tmp_path / "space.toml").write_text(mapping_text({"a": entries, "b": entries}, "kept"))
        (tmp_path / "config.resolved.json").write_text(json.dumps(resolved(load(CONFIG))))
        return Spaces(tmp_path)

    return keep


def g6(tale: Tale, spaces: Spaces | None = None, us: float = 900):
    tale.say(us, "run.end", -1, -1, reason="stop")
    return judge(gather(tale.records), None, spaces).finding("G6")


def fault(tale: Tale, us: float, ht: int = 0, *, ending: str = "left", name: str = "irq_desc", vm: int = 1) -> int:
    return tale.say(us, "fault", 0, ht, 1, vm=vm, ip=1, address=2, error=0, at="do_IRQ+0x7/0xd0", on="2", object=name,
                    reason="EXTERNAL_INTERRUPT", ending=ending, trace="")  # fmt: skip


def fast(tale: Tale, us: float, ht: int = 0, *, reason: str = "CPUID", n: int = 5) -> int:
    return tale.say(
        us, "exit", 0, ht, 1, reason=reason, isa="vmx", full=False, n=n, sum_ns=n, min_ns=1, max_ns=1, hist=[]
    )


def left(tale: Tale, us: float, ht: int = 0, *, name: str, reason: str = "EXTERNAL_INTERRUPT", wait_ns: int = 0) -> int:
    return tale.say(us, "leave", 0, ht, 1, kind_="ack", reason=reason, wait_ns=wait_ns, object=name)


def change(tale: Tale, us: float, kind: str, name: str, generation: int, ht: int = 0, vm: int = 1, **more) -> None:
    tale.say(us, f"space.{kind}", 0, ht, 1, vm=vm, object=name, generation=generation, **more)


def leaves(tale: Tale, us: float, ht: int = 0) -> None:
    tale.leave(us, ht)
    tale.goes(us + 30, ht, "ISOLATED")
    tale.flush(us + 31, ht)
    tale.goes(us + 40, ht, "GUEST")


# --- a fault and its leave ------------------------------------------------------------------------------------------


def test_a_fault_is_followed_by_its_leave(tale):
    tale.enter(10, 0)
    fault(tale, 99)
    leaves(tale, 100)
    finding = g6(tale)
    assert (finding.state, finding.checked) == ("held", 1)


def test_a_guest_that_exits_in_the_very_nanosecond_it_was_entered_in(tale):
    tale.enter(10, 0)
    tale.goes(99, 0, "ISOLATED")
    tale.goes(100, 0, "GUEST")
    fault(tale, 100)
    leaves(tale, 101)
    assert g6(tale).state == "held"


def test_guest_again_without_a_leave(tale):
    tale.enter(10, 0)
    seq = fault(tale, 99)
    tale.goes(100, 0, "ISOLATED")
    tale.goes(120, 0, "GUEST")
    finding = g6(tale)
    assert (finding.broken, finding.first.seqs[0]) == (1, seq)
    assert finding.first.text == (
        "c0h0 entered guest again without a leave after it missed 'irq_desc' in an exit EXTERNAL_INTERRUPT"
    )


def test_the_handler_of_an_nmi_is_no_leave(tale):
    tale.enter(10, 0)
    fault(tale, 99)
    tale.nmi(100, 0)
    tale.goes(120, 0, "GUEST")
    assert g6(tale).broken == 1


@pytest.mark.parametrize("ending", ["forced", "switch forced"])
def test_a_switch_that_was_forced_is_a_leave_to_be_seen_too(tale, ending):
    tale.enter(10, 0)
    fault(tale, 99, ending=ending)
    tale.goes(120, 0, "ISOLATED")
    tale.goes(130, 0, "GUEST")
    assert g6(tale).broken == 1


def test_the_end_of_the_run_the_end_of_a_hyperthread_and_its_vcpu_excuse(tale):
    tale.enter(10, 0)
    tale.enter(20, 1)
    fault(tale, 99, 0)
    tale.say(100, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    tale.mode[0] = "OFFLINE"
    tale.goes(110, 0, "PARKED", inc=2)
    tale.goes(111, 0, "GUEST", inc=2)
    fault(tale, 200, 1)
    tale.goes(201, 1, "PARKED")
    tale.gate(202, "idle", 1)
    tale.goes(300, 1, "GUEST", vm=2)
    fault(tale, 400, 1)
    fault(tale, 500, 1, ending="stopped")
    finding = g6(tale)
    assert (finding.checked, finding.broken) == (4, 0)


def test_a_fault_while_it_works_in_host_already_has_its_leave(tale):
    tale.enter(10, 0)
    tale.leave(100, 0)
    fault(tale, 110)
    tale.goes(130, 0, "GUEST")
    assert g6(tale).state == "held"


# --- what was mapped ------------------------------------------------------------------------------------------------


def test_exits_are_fast_with_what_is_mapped_and_full_for_what_is_not(tale, kept):
    tale.enter(10, 0)
    fast(tale, 50)
    left(tale, 60, name="irq_desc")
    finding = g6(tale, kept())
    assert (finding.state, finding.checked) == ("held", 6)


def test_a_fast_exit_of_a_reason_that_touches_what_is_not_mapped(tale, kept):
    tale.enter(10, 0)
    fast(tale, 40)
    seq = fast(tale, 50, reason="EXTERNAL_INTERRUPT")
    finding = g6(tale, kept())
    assert (finding.checked, finding.broken, finding.first.seqs) == (10, 1, (seq,))
    assert finding.first.text.startswith("an exit EXTERNAL_INTERRUPT of vm1 on c0h0 was fast, although")


def test_an_interrupt_that_a_client_sends_may_touch_only_what_is_mapped(tale, kept):
    tale.enter(10, 0)
    tale.say(20, "inject", 0, 0, id=1, what="irq", target="c0h0", vector=50)
    fast(tale, 50, reason="EXTERNAL_INTERRUPT")
    assert g6(tale, kept()).state == "not exercised"


def test_a_leave_for_what_is_mapped(tale, kept):
    tale.enter(10, 0)
    seq = left(tale, 60, name="vcpu", reason="CPUID")
    finding = g6(tale, kept())
    assert (finding.broken, finding.first.seqs) == (1, (seq,))
    assert finding.first.text == "c0h0 left for 'vcpu' in an exit CPUID, although it was mapped"


def test_where_nothing_of_that_name_is_mapped_the_tables_tell(tale, kept):
    """The RFC maps no text by its name: the whole image is, and the whole first chunk of per-CPU variables."""
    tale.enter(10, 0)
    fast(tale, 50, reason="PML_FULL")
    assert g6(tale, kept("rfc")).broken == 1, "it has no step for the dirty bitmap"
    other = Tale()
    other.enter(10, 0)
    fast(other, 50, reason="CPUID")
    assert g6(other, kept("rfc")).broken == 0


def test_a_change_counts_from_where_its_hyperthread_tells_it(tale, kept):
    tale.enter(10, 0)
    fast(tale, 50)
    change(tale, 60, "unmap", "cpuid entries", 1)
    left(tale, 70, name="cpuid entries", reason="CPUID")
    change(tale, 80, "map", "cpuid entries", 2)
    fast(tale, 90)
    finding = g6(tale, kept())
    assert (finding.checked, finding.broken) == (11, 0)


@pytest.mark.parametrize("first", ["exit", "leave"])
def test_a_change_that_is_not_heeded(tale, kept, first):
    tale.enter(10, 0)
    change(tale, 60, "unmap", "cpuid entries", 1)
    if first == "exit":
        fast(tale, 5 * MS / 1000, reason="CPUID")
    else:
        change(tale, 70, "map", "cpuid entries", 2)
        left(tale, 5 * MS / 1000, name="cpuid entries", reason="CPUID")
    assert g6(tale, kept(), 9 * MS / 1000).broken == 1


def test_a_leave_may_have_been_wanted_before_the_change(tale, kept):
    tale.enter(10, 0)
    change(tale, 60, "unmap", "cpuid entries", 1)
    change(tale, 9_000, "map", "cpuid entries", 2)
    left(tale, 9_010, name="cpuid entries", reason="CPUID", wait_ns=20_000)
    assert g6(tale, kept(), 20_000).broken == 0


def test_whoever_is_born_again_may_know_of_changes_that_others_told(tale, kept):
    tale.enter(10, 0)
    tale.enter(20, 1, vm=1)
    change(tale, 60, "unmap", "cpuid entries", 1, ht=1)
    tale.say(70, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    tale.say(80, "spawn", 0, 0, what="ht", pid=109, inc=2)
    tale.mode[0] = "OFFLINE"
    tale.goes(90, 0, "PARKED", inc=2)
    tale.goes(91, 0, "GUEST", inc=2)
    left(tale, 100, name="cpuid entries", reason="CPUID")
    seq = fast(tale, 110)
    finding = g6(tale, kept())
    assert (finding.broken, finding.first.seqs) == (1, (seq,)), "it knows of the change from its birth"


def test_whoever_is_born_after_a_change_that_the_daemon_alone_tells_knows_of_it(tale, kept):
    tale.enter(10, 0)
    tale.say(50, "death", 0, 0, what="ht", pid=101, inc=1, status=-9)
    told = {"vm": 1, "object": "cpuid entries", "generation": 1, "mapped": False}
    tale.say(60, "space.change", -1, -1, **told)
    tale.say(80, "spawn", 0, 0, what="ht", pid=109, inc=2)
    tale.mode[0] = "OFFLINE"
    tale.goes(90, 0, "PARKED", inc=2)
    tale.goes(91, 0, "GUEST", inc=2)
    left(tale, 100, name="cpuid entries", reason="CPUID")
    seq = fast(tale, 110)
    finding = g6(tale, kept())
    assert (finding.broken, finding.first.seqs) == (1, (seq,)), "the leave is for what was not mapped"


def test_whoever_begins_with_a_vm_after_a_change_knows_of_it_untold(tale, kept):
    told = {"vm": 1, "object": "cpuid entries", "mapped": False}
    tale.say(5, "space.change", -1, -1, generation=1, **told)
    tale.enter(10, 0)
    left(tale, 100, name="cpuid entries", reason="CPUID")
    tale.say(200, "space.change", -1, -1, generation=2, **told | {"object": "kvm"})
    seq = left(tale, 300, name="kvm", reason="CPUID")
    finding = g6(tale, kept())
    assert (finding.broken, finding.first.seqs) == (1, (seq,)), "what is changed while it runs the VM, it tells"


def test_fast_exits_may_be_of_any_vm_that_was_run_since_the_last_were_told(kept):
    tale = Tale(vm=1)
    tale.enter(10, 0, vm=1)
    change(tale, 20, "unmap", "cpuid entries", 1, vm=2)
    tale.goes(30, 0, "PARKED")
    tale.goes(31, 0, "GUEST", vm=2)
    fast(tale, 40)
    assert g6(tale, kept()).broken == 0


def test_a_larger_entry_around_an_object_is_told_by_its_level(tale, kept):
    """Per-CPU variables lie in one entry of 2 MiB: with all of it mapped for one of them, the others are too."""
    tale.enter(10, 0)
    change(tale, 60, "unmap", "current_task", 1)
    change(tale, 61, "map", "this_cpu_off", 2, level="PMD", split=False)
    fast(tale, 70, reason="INVD")
    without = tuple(entry for entry in entries_of("allowed", "vmx") if entry.object != "this_cpu_off")
    assert g6(tale, kept(without)).broken == 0


@pytest.mark.parametrize("policy", ["none", "kick-every-exit"])
def test_of_policies_that_do_not_isolate_no_mapping_is_asked(kept, policy):
    tale = Tale(policy=policy, kick="bare" if policy == "none" else "ack")
    tale.enter(10, 0)
    fast(tale, 50, reason="EXTERNAL_INTERRUPT")
    assert g6(tale, kept()).state == "not exercised"


# --- when it is not known -------------------------------------------------------------------------------------------


def test_a_run_without_exits_or_without_a_mapping_exercises_nothing(tale, kept, tmp_path):
    tale.enter(10, 0)
    assert g6(tale, kept()).state == "not exercised"
    fast(tale, 50, reason="EXTERNAL_INTERRUPT")
    assert g6(tale).state == "not exercised"
    assert g6(tale, Spaces(tmp_path / "elsewhere")).state == "not exercised"


@pytest.mark.parametrize(
    ("spoilt", "text"),
    [
        ("space.toml", "[]"),
        ("space.toml", '[[vm]]\nname = "b"\nmap = []\n'),
        ("space.toml", '[[vm]]\nname = "a"\nmap = [{ object = "kvm", level = "PXE" }]\n'),
        ("config.resolved.json", "[]"),
        ("config.resolved.json", "{"),
        ("config.resolved.json", '{"vm": [{"name": "a"}], "machine": {"cores": 1, "smt": 2}}'),
    ],
)
def test_a_mapping_that_cannot_be_read_is_said_and_not_guessed(tale, kept, tmp_path, spoilt, text):
    tale.enter(10, 0)
    fast(tale, 50, reason="EXTERNAL_INTERRUPT")
    spaces = kept()
    (tmp_path / spoilt).write_text(text)
    finding = g6(tale, spaces)
    assert finding.state != "broken" and finding.note.startswith("what was mapped is not known: ")


def test_a_verdict_has_it(tale, kept):
    tale.enter(10, 0)
    fast(tale, 50, reason="EXTERNAL_INTERRUPT")
    tale.say(900, "run.end", -1, -1, reason="stop")
    verdict: Verdict = judge(gather(tale.records), None, kept())
    assert verdict.verdict == FAIL and verdict.first[0] == "G6"
    assert judge(gather(tale.records)).verdict == PASS
    assert os.linesep.join(verdict.as_map()["guarantees"]).split() == [f.guarantee for f in verdict.findings]
