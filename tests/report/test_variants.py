"""What a comparison runs, and in which order."""

from __future__ import annotations

from collections import Counter

import pytest

from asid.core.events import Kick
from asid.core.policies.asi import Asi
from asid.core.policy import KICKS, NAMES, kick_of
from asid.errors import ConfigError
from asid.report.variants import Variant, turns, variants


def labels(*given) -> list[str]:
    return [variant.label for variant in variants(*given)]


def test_a_policy_without_a_choice_of_kicks_is_run_once():
    assert labels(["none", "asi", "nosmt"], ["send", "ack"]) == ["none", "asi/send", "asi/ack", "nosmt"]
    assert labels(["nosmt"], ["ack"]) == ["nosmt"]
    assert labels(["asi", "asi"], ["ack", "ack"]) == ["asi/ack"], "each once"


def test_by_default_it_is_all_that_this_build_has():
    found = variants()
    assert list(dict.fromkeys(variant.policy for variant in found)) == list(NAMES)
    assert [variant.kick for variant in found if variant.policy == "asi"] == list(KICKS)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("given", "says"),
    [((["non"], []), "policy 'non'"), (([], ["acc"]), "--kicks: kick 'acc': must be some of ack,")],
)
def test_a_name_that_is_none_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        variants(*given)


def test_what_a_policy_refuses_is_not_run(monkeypatch):
    from asid.report import variants as module

    real, allowed = module.make, {"asi": ("ack", "stun"), "nosmt": ("stun",)}

    def picky(name, kick):
        if kick not in allowed[name]:
            raise ConfigError(f"kick {kick!r}")
        return real(name, kick)

    monkeypatch.setattr(module, "KICKS", dict.fromkeys(("ack", "send", "stun")))
    monkeypatch.setattr(module, "make", picky)
    assert labels(["asi"]) == ["asi/ack", "asi/stun"]
    assert labels(["asi"], ["send", "stun"]) == ["asi/stun"]
    assert labels(["nosmt"]) == labels(["nosmt"], ["ack"]) == ["nosmt/stun"], "the only one that it takes"
    with pytest.raises(ConfigError, match=r"policy 'asi' .it does not go with the kick send"):
        variants(["asi"], ["send"])


def test_a_policy_that_has_some_of_the_kicks_is_run_with_those(monkeypatch):
    from asid.report import variants as module

    class Choosy(Asi):
        kicks = (Kick.ACK, Kick.STUN)

    monkeypatch.setattr(module, "make", lambda name, kick: Choosy(kick_of(Choosy, KICKS[kick])))
    assert labels(["choosy"]) == ["choosy/ack", "choosy/stun"]
    with pytest.raises(ConfigError, match="must be one with a kick of ack,stun"):
        variants(["choosy"], ["send"])


def test_each_repeat_runs_every_variant_and_in_an_order_of_its_own():
    of = [Variant(name) for name in "abcdef"]
    dealt = turns(of, 40, seed=7)
    assert len(dealt) == 40
    assert all(sorted(turn, key=of.index) == of for turn in dealt), "a repeat is whole before the next begins"
    assert len({tuple(turn) for turn in dealt}) > 30
    first = Counter(turn[0].label for turn in dealt)
    assert len(first) == 6, "nobody is always the last to begin"
    assert turns(of, 40, seed=7) == dealt and turns(of, 40, seed=8) != dealt
    assert turns(of, 3, seed=7) == dealt[:3], "more repeats begin as fewer do"
