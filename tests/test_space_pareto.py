"""The curve of full exits against bytes exposed: its order by a workload made by hand, and the verb that shows it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from asid.commands import invoke
from asid.config import load
from asid.report.learned import bar
from asid.space_learn import learn
from asid.space_pareto import Lack, Point, curve

ROOT = Path(__file__).parent.parent
SMT2 = str(ROOT / "configs/smt2.toml")
PAGE = 4096


class MadeSpace:
    """Exits by what they touch, objects by the pages they lie in, of which `secret` are others'."""

    def __init__(self, exits, pages, secret=(), refused=()):
        self.exits, self.pages, self.secret, self.refused = exits, pages, set(secret), refused
        self.mapped = {0}
        self.exits_hz = sum(rate for _, rate in exits)

    def lacks(self):
        missing = [(tuple(n for n in names if not self.pages[n] <= self.mapped), rate) for names, rate in self.exits]
        return [Lack(names, rate) for names, rate in missing if names]

    def exposes(self, name):
        return len(self.pages[name] - self.mapped) * PAGE

    def is_refused(self, name):
        return name in self.refused

    def map(self, name):
        assert not self.pages[name] <= self.mapped, f"{name} is reached already"
        self.mapped |= self.pages[name]

    def exposed(self):
        return len(self.mapped) * PAGE, len(self.mapped & self.secret) * PAGE


@pytest.fixture
def run(capsys):
    def once(*args: str) -> SimpleNamespace:
        code = invoke(["space", *args])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, json=lambda: json.loads(said.out))

    return once


def test_a_curve_that_can_be_checked_by_hand():
    """Of 1000 exits a second 600 need kvm and vcpu (3 pages), 300 buses too (4 more), 100 the tables (1, a secret)."""
    space = MadeSpace(
        [(("kvm", "vcpu"), 600.0), (("kvm", "vcpu", "buses"), 300.0), (("kvm", "tables"), 100.0)],
        {"kvm": {1}, "vcpu": {2, 3}, "buses": {4, 5, 6, 7}, "tables": {8}},
        secret={3, 8},
        refused={"tables"},
    )
    assert curve(space) == (
        Point("", 0, 1 * PAGE, 0, 1000.0, 1.0, False),
        Point("kvm", 1, 2 * PAGE, 0, 1000.0, 1.0, False),
        Point("vcpu", 1, 4 * PAGE, PAGE, 400.0, 0.4, False),
        Point("buses", 2, 8 * PAGE, PAGE, 100.0, 0.1, False),
        Point("tables", 3, 9 * PAGE, 2 * PAGE, 0.0, 0.0, True),
    )


def test_the_best_by_the_byte_comes_first_and_not_the_largest_saving():
    """1. a saves 500 for 10 pages. 2. b saves 100 for one: more for each byte, so b is first."""
    space = MadeSpace([(("a",), 500.0), (("b",), 100.0)], {"a": set(range(1, 11)), "b": {11}})
    assert [point.object for point in curve(space)] == ["", "b", "a"]


def test_of_equals_the_smaller_is_first_then_the_one_that_is_missed_first():
    space = MadeSpace(
        [(("two",), 20.0), (("one",), 10.0), (("other",), 10.0)], {"two": {1, 2}, "one": {3}, "other": {4}}
    )
    assert [point.object for point in curve(space)] == ["", "one", "other", "two"]


def test_what_an_earlier_object_exposed_with_itself_is_no_point():
    space = MadeSpace([(("a", "beside a"), 10.0), (("beside a", "b"), 5.0)], {"a": {1, 2}, "beside a": {2}, "b": {3}})
    assert [(point.object, point.full_hz) for point in curve(space)] == [("", 15.0), ("a", 5.0), ("b", 0.0)]


def test_exits_that_are_full_whatever_is_mapped_stay():
    class Stubborn(MadeSpace):
        def lacks(self):
            return [*super().lacks(), Lack((), 30.0)]

    space = Stubborn([(("a",), 10.0)], {"a": {1}})
    space.exits_hz = 40.0
    assert [(point.object, point.full) for point in curve(space)] == [("", 1.0), ("a", 0.75)]


def test_a_space_in_which_nothing_is_full_has_its_beginning_alone():
    assert curve(MadeSpace([((), 5.0)], {})) == (Point("", 0, PAGE, 0, 0, 0.0, False),)


@pytest.mark.parametrize(
    ("part", "text"), [(0.0, ""), (0.0001, "▏"), (0.5, "█" * 12), (1.0, "█" * 24), (0.26, "██████▎")]
)
def test_a_bar_is_as_long_as_its_part(part, text):
    assert bar(part) == text


# --- the verb


def test_the_curve_ends_where_learning_does_and_goes_on_with_secrets():
    (vm,) = learn(load(SMT2), "minimal", rounds=50, exits=2000, secrets=False, pareto=True).vms
    allowed = [point for point in vm.curve if not point.refused]
    assert {point.object for point in allowed[1:]} == {row.object for row in vm.additions}
    assert (allowed[0].full, allowed[-1].full) == (pytest.approx(vm.before), pytest.approx(vm.after))
    assert allowed[-1].mapped - allowed[0].mapped == sum(row.mapped for row in vm.additions)
    assert vm.curve[-1].full == pytest.approx(vm.anyway) and 0 < vm.anyway < 0.05
    assert "other task" in {point.object for point in vm.curve if point.refused}
    for one, following in zip(vm.curve, vm.curve[1:], strict=False):
        assert following.mapped >= one.mapped and following.secret >= one.secret and following.full <= one.full


def test_the_curve_as_a_table_and_as_points(run):
    done = run("learn", SMT2, "--exits", "2000", "--pareto")
    lines = done.out.splitlines()
    assert done.code == 0 and lines[0].startswith("tenant: 4,000 exits, ") and "whatever is mapped)" in lines[0]
    assert lines[1].split("  ")[0] == "GROUP" and "BYTES EXPOSED" in lines[1] and "FULL EXITS/S" in lines[1]
    assert "(the beginning)" in lines[2] and lines[2].endswith("100.0%  " + "█" * 24)
    assert any(line.lstrip("0123456789 ").startswith("other task *  ") for line in lines)
    assert "round 1" not in done.out and lines[-2].startswith("Objects of one GROUP are what one kind of exit misses")
    (vm,) = run("learn", SMT2, "--exits", "2000", "--pareto", "--json").json()["vms"]
    assert len(vm["curve"]) == len([line for line in lines[1:] if "%" in line])
    assert set(vm["curve"][1]) == {"object", "group", "mapped", "secret", "full_hz", "full", "refused", "whose"}
    (plain,) = run("learn", SMT2, "--exits", "100", "--json").json()["vms"]
    assert plain["curve"] == []


def test_with_secrets_allowed_nothing_is_marked(run):
    done = run("learn", SMT2, "--exits", "1000", "--pareto", "--allow-secrets")
    assert " * " not in done.out and done.out.splitlines()[-1] == "no fault is left"


def test_who_waits_at_a_terminal_is_told(run, monkeypatch):
    monkeypatch.setattr("asid.judging.TICK_S", 0.001)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = run("learn", SMT2, "--exits", "3000")
    assert "\rlearning from smt2.toml: 0 s so far " in done.err and "so far" not in done.out
