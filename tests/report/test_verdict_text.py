"""The text of a verdict, and runs side by side."""

from __future__ import annotations

from asid.audit import audit
from asid.core.record import Record
from asid.report.compare import compare_lines, compare_row
from asid.report.verdict import record_line, summary_line, verdict_lines

BEGIN = {"name": "smt2", "policy": "asi", "kick": "ack", "seed": 42, "cores": 1, "smt": 2, "engine": "live"}


STARTS = [
    (0, "spawn", -1, {"what": "coordinator", "pid": 100, "inc": 1}),
    *((0, "spawn", ht, {"what": "ht", "pid": 101 + ht, "inc": 1}) for ht in range(2)),
]


def run(*told: tuple[int, str, int, dict], end: bool = True, **begin) -> list[Record]:
    rows = [
        (0, "run.begin", -1, {**BEGIN, **begin}),
        *STARTS,
        *told,
        *([(9_000_000, "run.end", -1, {"reason": "stop"})] if end else []),
    ]
    return [
        Record(at, 0, ts, kind, -1 if kind.startswith("run.") else 0, ht, 0, 0, data)
        for at, (ts, kind, ht, data) in enumerate(rows, 1)
    ]


def mode(ts: int, ht: int, old: str, new: str, via: str = "") -> tuple[int, str, int, dict]:
    return ts, "ht.mode", ht, {"inc": 1, "old": old, "new": new, "vm": 1, **({"via": via} if via else {})}


LEAK = (
    mode(1_000, 0, "PARKED", "GUEST"),
    mode(2_000, 1, "PARKED", "HOST", "bare"),
    mode(63_000, 1, "HOST", "PARKED"),
    mode(70_000, 1, "PARKED", "HOST", "nmi"),
    mode(131_000, 1, "HOST", "PARKED"),
    (132_000, "intr", 1, {"what": "nmi", "id": 0, "depth": 1, "merged": 0, "host_ns": 1, "from": "PARKED"}),
)
ASKED = (5_000, "gate.ask", 0, {"vm": 1, "req": 1})


def test_a_failure_says_it_first_and_tells_the_story():
    document = audit(run(*LEAK, policy="none")).as_map()
    lines = verdict_lines(document, name="20261104T101530Z-smt2-9f3a")
    assert lines[0].startswith("FAIL: 20261104T101530Z-smt2-9f3a")
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "policy none, kick ack, seed 42, 1 x 2" in text
    assert "G2   broken                  1 of 1  no guest beside a voluntary HOST" in text
    assert "Exposure: 1 x, p50 61.0us, p99 61.0us, max 61.0us" in text
    assert "First violation, G2:" in text
    assert "c0h0 was in GUEST(vm1) beside c0h1 in HOST (bare) for 61000 ns (policy none" in text
    assert "does not promise otherwise)." in text
    story = lines[lines.index("  What led to it (seconds since the first line; * shows it):") + 1 :]
    assert [line[1] for line in story if "ht.mode" in line] == ["*", "*"]
    assert "PARKED -> HOST by bare" in story[-1]


def test_each_guarantee_has_its_line():
    document = audit(run(ASKED)).as_map()
    lines = verdict_lines(document)
    assert lines[0] == "PASS: smt2: every guarantee that was exercised held"
    for guarantee in document["guarantees"]:
        assert sum(line.split()[:1] == [guarantee] for line in lines) == 1
    assert any(line.startswith("Not exercised: G1, G2, ") for line in lines)


def test_where_the_time_of_the_vcpus_went():
    text = "  vCPU time: guest 45.30 %, forced idle 0.00 %, gate closed 0.00 %"
    document = audit(run(*LEAK, policy="none", vcpus=1)).as_map()
    document["figures"]["guest_percent"] = 45.3
    assert text in verdict_lines(document)
    del document["figures"]["forced_idle_percent"]
    assert not any("vCPU time" in line for line in verdict_lines(document)), "a verdict of an older version"
    assert not any("vCPU time" in line for line in verdict_lines(audit(run(ASKED)).as_map())), "nobody was served"


def test_unknown_says_why():
    lines = verdict_lines(audit(run(*LEAK[:1], end=False)).as_map())
    assert lines[0].startswith("UNKNOWN: smt2")
    assert "run.end" in lines[1]
    assert max(map(len, lines)) <= 80


def test_a_verdict_of_nothing_at_all_can_be_shown():
    lines = verdict_lines(audit([]).as_map())
    assert lines[0].startswith("UNKNOWN: nothing is claimed")
    assert "run.begin" in lines[1]


def test_one_line():
    assert summary_line(audit(run(ASKED)).as_map()).startswith("PASS: 2 held, 0 broken, 12 not exercised")
    line = summary_line(audit(run(*LEAK, policy="none")).as_map())
    assert line.startswith("FAIL: ") and "2 broken (G2, G9)" in line and line.endswith("exposure 1 x, max 61.0us")


def test_a_record_in_one_line():
    line = record_line(run(*LEAK)[5]._asdict(), 1_000)
    assert line == "   0.000001000  c0h1    ht.mode      PARKED -> HOST by bare"


def test_runs_side_by_side():
    none = audit(run(*LEAK, policy="none")).as_map()
    asi = audit(run(ASKED)).as_map()
    row = compare_row(none)
    assert (row["policy"], row["g2_violations"], row["exposure_max_ns"], row["verdict"]) == ("none", 1, 61_000, "FAIL")
    lines = compare_lines([none, asi])
    assert lines[0].split()[0] == "policy" and len(lines) == 3
    assert lines[1].split()[0] == "none" and lines[1].endswith("FAIL")
    assert lines[2].split()[0] == "asi" and lines[2].endswith("PASS")
    assert max(map(len, lines)) <= 100
    assert compare_lines([none, asi], labels=["a", "b"])[1].startswith("a ")
    assert compare_lines([{}])[1].endswith("UNKNOWN"), "a run without a verdict has a line too"


def test_changes_of_policy_are_shown():
    told = [(ts, "policy", -1, {"old": old, "new": new, "kick": "ack"})
            for ts, old, new in ((1_000, "asi", "none"), (2_000, "none", "asi"))]  # fmt: skip
    lines = verdict_lines(audit(run(*told, ASKED)).as_map())
    assert "  policy asi -> none, kick ack, at seq 5" in lines
    assert "  policy none -> asi, kick ack, at seq 6" in lines
