"""G10 in the rendezvous of #MC handlers: time-outs, monarchs, orders, and a core that has failed."""

from __future__ import annotations

import pytest
from audit_tale import Tale

S_US = 1_000_000


@pytest.fixture
def tale():
    return Tale(smt=4)


def handler(tale: Tale, us: float, ht: int, order: int, *, broadcast: int = 1, role: str = "", wait_ns: int = 0,
            severity: str = "recoverable") -> None:  # fmt: skip
    """A handler that hit PARKED, so that there is no more to tell of it."""
    tale.say(
        us, "intr", 0, ht, 0, what="mce", id=0, depth=1, merged=0, host_ns=1, from_="PARKED", severity=severity,
        broadcast=broadcast, role=role or ("joined" if order > 1 else "monarch"), order=order, wait_ns=wait_ns,
    )  # fmt: skip


def texts(verdict) -> list[str]:
    return [violation.text for violation in verdict.finding("G10").violations]


def test_a_rendezvous_in_order_holds(tale):
    for order, ht in enumerate((2, 0, 3, 1), start=1):
        handler(tale, 10 + order, ht, order)
    finding = tale.end(100).finding("G10")
    assert finding.state == "held"
    assert finding.checked == 8  # their nesting, and their meeting


@pytest.mark.parametrize(
    ("met", "fault"),
    [
        ([(1, "monarch"), (2, "monarch")], "two monarchs"),
        ([(2, "joined"), (3, "joined")], "no monarch"),
        ([(1, "monarch"), (2, "joined"), (2, "joined")], "same order"),
        ([(1, "monarch"), (2, "alone")], None),  # it gave up: that is told by mce.timeout
    ],
)
def test_one_monarch_and_one_of_each_order(tale, met, fault):
    for ht, (order, role) in enumerate(met):
        handler(tale, 10 + ht, ht, order, role=role)
    assert [fault in text for text in texts(tale.end(100))] == ([True] if fault else [])


def test_two_machine_checks_have_a_monarch_each(tale):
    for broadcast in (1, 2):
        for order in (1, 2):
            handler(tale, 10 * broadcast + order, order, order, broadcast=broadcast)
    assert not texts(tale.end(100))


@pytest.mark.parametrize("met", [[(1, "monarch"), (2, "monarch")], [(2, "joined"), (3, "joined")]])
def test_a_death_leaves_an_order_and_a_monarchy_to_others(tale, met):
    tale.say(5, "death", 0, 3, what="ht", pid=104, inc=1, status=-9)
    for ht, (order, role) in enumerate(met):
        handler(tale, 10 + ht, ht, order, role=role)
    assert not texts(tale.end(100))


@pytest.mark.parametrize(("wait_s", "broken"), [(0.2, False), (3.1, False), (3.3, True)])
def test_a_wait_has_an_end_of_which_the_run_says_when(wait_s, broken):
    tale = Tale(smt=4)
    first = tale.records[0]
    tale.records[0] = first._replace(data={**first.data, "mce_timeout_ns": 200_000_000})
    handler(tale, 6 * S_US, 0, 1, wait_ns=int(wait_s * 1e9))
    assert bool(texts(tale.end(6 * S_US + 10))) is broken


@pytest.mark.parametrize(("after_s", "broken"), [(0.5, False), (1.5, True)])
@pytest.mark.parametrize("local", [True, False])
def test_no_guest_goes_on_on_a_core_that_has_failed(tale, after_s, broken, local):
    if local:
        tale.say(10, "intr", 0, 1, 0, what="mce", id=0, depth=1, merged=0, host_ns=1, from_="PARKED", severity="fatal")
    else:
        handler(tale, 10, 1, 1, severity="fatal")
    tale.enter(after_s * S_US, 0)
    found = [text for text in texts(tale.end(3 * S_US)) if "had failed" in text]
    assert bool(found) is broken
