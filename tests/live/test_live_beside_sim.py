"""The live machine and the simulator play one configuration: the same guests, and counts within stated bounds."""

from __future__ import annotations

import pytest
from live_rig import ROOT

from asid.agreement import AGREEMENTS, DURATION_NS, SIBLINGS, Agreement, Tally, config_of, differences, tally_of
from asid.drive import drive
from asid.live.journal import JournalReader
from asid.sim.costs import costs_of
from asid.simulating import load_for, machine_of

LEAVES = {(0, 0): (("HLT", "other task"), ("EPT_VIOLATION", "")), (0, 1): (("HLT", "other task"),)}
PLAIN = Agreement("plain", "smt2.toml", {}, SIBLINGS)


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("agreement", AGREEMENTS, ids=lambda agreement: agreement.name)
@pytest.mark.usefixtures("rig")
def test_both_engines_count_the_same_within_bounds(agreement):
    config = config_of(agreement, ROOT / "configs")
    outcome = drive(config, duration_ns=DURATION_NS)
    assert outcome.word == "PASS"
    with JournalReader(outcome.run.root / "journal.asid") as reader:
        live = tally_of(reader)
    simulated = tally_of(machine_of(load_for(config, {}), costs_of("typical")).play(DURATION_NS).records)
    assert simulated.leaves > 60, "enough that a bound means something"
    assert differences(agreement, live, simulated) == []


def test_a_guest_that_leaves_for_something_else_is_a_difference():
    tally = Tally(100, 3, 3, 1, LEAVES)
    assert differences(PLAIN, tally, tally) == []
    other = tally._replace(leaves_of={**LEAVES, (0, 1): (("CPUID", "buses"),)})
    (words,) = differences(PLAIN, tally, other)
    assert words.startswith("c0h1: leave 1 is for ('HLT', 'other task') live")
    longer = tally._replace(leaves_of={**LEAVES, (0, 1): (("HLT", "other task"), ("HLT", "other task"))})
    assert differences(PLAIN, tally, longer) == [], "who gets further has the same beginning"


def test_a_count_out_of_its_bounds_is_a_difference():
    tally = Tally(100, 3, 3, 1, LEAVES)
    assert differences(PLAIN, tally._replace(exits=50), tally) == [
        "exits: 0.50 times the simulated, where 0.6 to 1.05 is allowed"
    ]
    assert [words.partition(":")[0] for words in differences(PLAIN, tally._replace(kicks=6), tally)] == ["kicks"]
    assert differences(PLAIN, tally._replace(leaves=2, kicks=2), tally) == [], "as many of a leave"
