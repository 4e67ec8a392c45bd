"""A journal that is not whole is never a pass, whatever it holds."""

from __future__ import annotations

import pytest
from audit_tale import Tale

from asid.audit import FAIL, PASS, UNKNOWN, audit
from asid.audit.finding import TITLES
from asid.core.record import Record
from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_UNKNOWN, InputError
from asid.live.journal import HEAD, HEADER, JournalWriter


def told(tale: Tale) -> None:
    tale.enter(10, 0)
    tale.enter(20, 1)
    tale.leave(100, 0, kicked=(1,))


def good(tale: Tale) -> Tale:
    told(tale)
    tale.say(900, "run.end", -1, -1, reason="stop")
    return tale


def write(path, records):
    writer = JournalWriter(path)
    assert writer.append(records, sync=True)
    writer.close()
    return path


def test_every_guarantee_is_reported(tale):
    verdict = good(tale).audit()
    assert [finding.guarantee for finding in verdict.findings] == list(TITLES)
    assert verdict.verdict == PASS and verdict.passed and verdict.exit_code == EXIT_OK


@pytest.mark.parametrize("as_directory", [False, True])
def test_from_the_file_and_from_the_records_is_the_same(tale, tmp_path, as_directory):
    told(tale)
    tale.goes(150, 1, "GUEST")
    verdict = tale.end(900)
    path = write(tmp_path / "journal.asid", tale.records)
    assert audit(tmp_path if as_directory else str(path)).as_map() == verdict.as_map()
    assert verdict.verdict == FAIL and verdict.exit_code == EXIT_FAIL
    assert verdict.story


def test_no_end_is_unknown(tale):
    good(tale).records.pop()
    verdict = tale.audit()
    assert verdict.verdict == UNKNOWN and verdict.exit_code == EXIT_UNKNOWN
    assert any("run.end" in reason for reason in verdict.reasons)


def test_no_beginning_is_unknown(tale):
    good(tale)
    records = [r._replace(seq=r.seq - 1) for r in tale.records[1:]]
    assert audit(records).verdict == UNKNOWN


def test_a_whole_journal_of_nothing_is_unknown():
    begin = {"name": "x", "policy": "asi", "kick": "ack", "seed": 1, "cores": 1, "smt": 2, "engine": "live"}
    rows = [("run.begin", begin), ("run.end", {"reason": "stop"})]
    records = [Record(seq, 1, seq, kind, -1, -1, 0, 0, data) for seq, (kind, data) in enumerate(rows, 1)]
    verdict = audit(records)
    assert verdict.verdict == UNKNOWN and not verdict.passed
    assert verdict.reasons == ["nothing was exercised: no guarantee had anything to check"]


@pytest.mark.parametrize(
    ("vcpus", "us", "expected"),
    [(2, 1_500_000, UNKNOWN), (2, 900_000, PASS), (0, 9_000_000, PASS), (None, 9_000_000, PASS)],
    ids=["nobody for a second", "a short run", "nobody to run", "an older journal"],
)
def test_a_run_in_which_no_guest_ran_is_unknown(vcpus, us, expected):
    tale = Tale(vcpus=vcpus)
    tale.nmi(20, 0)  # so that something was exercised
    verdict = tale.end(us)
    assert verdict.verdict == expected
    assert verdict.reasons == (
        [] if expected == PASS else ["no guest ran: 2 vCPUs were to run, none was ever admitted"]
    )


def test_a_short_run_in_which_hyperthreads_die_before_they_run_anything_is_unknown():
    tale = Tale(vcpus=1)
    tale.say(10, "death", 0, 1, what="ht", pid=102, inc=1, status=1)
    tale.gate(11, "dead", 1, inc=1)
    tale.say(12, "spawn", 0, 1, what="ht", pid=109, inc=2)
    tale.say(13, "ht.mode", 0, 1, inc=2, old="OFFLINE", new="PARKED", vm=0)
    tale.gate(14, "ready", 1, inc=2, mode="PARKED")
    verdict = tale.end(1_000)
    assert verdict.verdict == UNKNOWN
    assert verdict.reasons == ["no guest ran: 1 vCPU was to run, none was ever admitted; born again meanwhile: c0h1"]


def test_one_admission_is_enough():
    tale = Tale(vcpus=2)
    tale.enter(10, 0)
    assert tale.end(5_000_000).verdict == PASS


def test_nothing_is_unknown():
    verdict = audit([])
    assert verdict.verdict == UNKNOWN and not verdict.passed


def test_every_missing_record_is_noticed(tale):
    """Take any one record out: a gap in seq, so nothing is claimed, neither good nor bad."""
    records = good(tale).records
    for at in range(len(records)):
        verdict = audit(records[:at] + records[at + 1 :])
        assert verdict.verdict == UNKNOWN, f"without record {at + 1}"


def test_a_hole_in_a_topic_is_noticed(tale):
    good(tale)
    tale.records = [r._replace(tseq=r.tseq + (r.type == "ht.mode" and r.tseq > 2)) for r in tale.records]
    verdict = tale.audit()
    assert verdict.verdict == UNKNOWN
    assert any("tseq" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(("what", "expected"), [("telemetry", PASS), ("records", UNKNOWN)])
def test_losses(tale, what, expected):
    tale.say(50, "loss", -1, -1, what=what, n=3)
    assert good(tale).audit().verdict == expected


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("gate.invented", {}),
        ("gate.admit", {"vm": 1, "req": 1}),
        ("gate.admit", {"vm": True, "req": 1, "inc": 1}),
        ("gate.admit", {"vm": 1, "req": 1, "inc": 1, "more": 2}),
        ("ht.mode", {"inc": 1, "old": "HOST", "new": "LIMBO", "vm": 1}),
    ],
)
def test_a_record_we_do_not_understand_is_noticed(tale, kind, data):
    tale.say(50, kind, 0, 0, **data)
    verdict = good(tale).audit()
    assert verdict.verdict == UNKNOWN
    assert any(kind in reason for reason in verdict.reasons)


def test_a_clock_that_runs_backwards_is_noticed(tale):
    tale.goes(20, 0, "ISOLATED")
    tale.goes(10, 0, "PARKED")
    assert tale.end(100).verdict == UNKNOWN


def test_a_second_beginning_is_noticed(tale):
    tale.say(20, "run.begin", -1, -1, name="x", policy="none", kick="bare", seed=1, cores=1, smt=2, engine="live")
    assert good(tale).audit().verdict == UNKNOWN


def test_with_records_missing_a_violation_may_be_an_artefact(tale):
    tale.say(50, "loss", -1, -1, what="records", n=1)
    tale.goes(60, 0, "GUEST")
    verdict = tale.end(100)
    assert verdict.verdict == UNKNOWN
    assert verdict.finding("G1").broken == 1


def test_every_cut_of_a_good_journal_is_unknown(tale, tmp_path):
    """At every byte of the last records: never PASS, and never FAIL, for nothing was broken."""
    path = write(tmp_path / "journal.asid", good(tale).records)
    whole = path.read_bytes()
    assert audit(path).verdict == PASS
    for size in [*range(len(HEADER) + 1), *range(len(whole) - 200, len(whole))]:
        path.write_bytes(whole[:size])
        assert audit(path).verdict == UNKNOWN, f"cut at {size}"


def test_every_cut_at_a_record_is_unknown(tale):
    """A shorter run has lost answers, not proofs: nothing looks broken in any prefix of a good run."""
    records = good(tale).records
    for size in range(len(records)):
        verdict = audit(records[:size])
        assert verdict.verdict == UNKNOWN, verdict.first


def test_every_bit_of_the_last_two_records_counts(tale, tmp_path):
    path = write(tmp_path / "journal.asid", good(tale).records)
    whole = bytearray(path.read_bytes())
    for bit in range((len(whole) - 120) * 8, len(whole) * 8):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        assert audit(path).verdict == UNKNOWN, f"bit {bit}"
        whole[bit // 8] ^= 1 << bit % 8


def test_damage_in_the_middle_stops_there(tale, tmp_path):
    path = write(tmp_path / "journal.asid", good(tale).records)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0x10
    path.write_bytes(whole)
    verdict = audit(path)
    assert verdict.verdict == UNKNOWN
    assert any("in the middle" in reason for reason in verdict.reasons)
    assert 0 < verdict.figures["records"] < len(tale.records)


def test_a_violation_before_the_cut_still_fails(tmp_path):
    tale = Tale()
    tale.goes(10, 0, "GUEST")
    tale.goes(20, 1, "HOST", via="grant")
    tale.goes(30, 1, "PARKED")
    tale.gate(40, "open")
    tale.say(50, "mark", -1, -1, text="x" * 20)
    path = write(tmp_path / "journal.asid", tale.records)
    path.write_bytes(path.read_bytes()[:-3])
    verdict = audit(path)
    assert verdict.verdict == FAIL
    assert any("damaged" in reason for reason in verdict.reasons)


def test_before_the_end_nothing_is_blamed_for_a_coordinators_record_that_is_still_under_way(tale):
    tale.enter(10, 0)
    tale.goes(100, 0, "ISOLATED")
    tale.round = 2
    tale.goes(110, 0, "GUEST")
    verdict = tale.audit()
    assert verdict.finding("G1").broken == 0 and verdict.finding("G5").broken == 0
    tale.round = 1
    tale.gate(120, "open")  # now the coordinator's records up to 110 are all known: there was no admission
    assert tale.audit().finding("G1").broken == 1


def test_before_the_end_an_open_interval_reaches_only_as_far_as_its_writers_last_record(tale):
    tale.goes(10, 0, "GUEST")
    tale.grant(15, 1)
    tale.goes(20, 1, "HOST", via="grant")
    tale.goes(30, 1, "PARKED")
    assert tale.audit().finding("G2").broken == 0
    assert tale.end(40).finding("G2").broken == 1


def test_a_foreign_file_is_an_input_error(tmp_path):
    path = tmp_path / "journal.asid"
    path.write_bytes(b"SQLite format 3\0" + b"x" * 100)
    with pytest.raises(InputError, match="not a journal"):
        audit(path)
    with pytest.raises(InputError, match="cannot be read"):
        audit(tmp_path / "nowhere")


def test_a_record_with_a_good_checksum_and_no_sense_is_damage(tale, tmp_path):
    import zlib

    path = write(tmp_path / "journal.asid", good(tale).records)
    payload = b"\x99" + b"\xc0" * 9
    with path.open("ab") as file:
        file.write(HEAD.pack(len(payload), zlib.crc32(payload)) + payload)
    verdict = audit(path)
    assert verdict.verdict == UNKNOWN


@pytest.mark.slow
@pytest.mark.parametrize("smt", [2, 8])
def test_a_long_run_is_audited_in_linear_time(smt):
    """Not a speed test: quadratic work over 60,000 records would take minutes, the time-out of the suite is one."""
    tale, us = Tale(smt=smt), 10
    for ht in range(smt):
        tale.enter(us, ht)
        us += 10
    while len(tale.records) < 60_000:
        leaver = len(tale.records) % smt
        tale.leave(us, leaver, kicked=tuple(ht for ht in range(smt) if ht != leaver))
        us += 50
        for ht in range(smt):
            tale.enter(us, ht)
            us += 10
        tale.nmi(us, leaver)
        us += 10
    verdict = tale.end(us)
    assert verdict.verdict == PASS, verdict.first
    assert len(verdict.windows) == (smt - 1) * verdict.figures["nmis"]


@pytest.mark.parametrize(
    ("deaths", "status", "back", "away"),
    [(6, 1, False, True), (6, -9, False, True), (5, 1, False, False), (6, 0, False, False), (6, 1, True, False)],
)
def test_a_hyperthread_that_is_given_up_leaves_the_run_unknown(deaths, status, back, away):
    """What it would have done was never seen; one that was unplugged ended in order."""
    tale = Tale()
    tale.enter(10, 0)
    for inc in range(1, deaths + 1):
        tale.say(100 * inc, "death", 0, 1, what="ht", pid=101, inc=inc, status=status)
        if inc < deaths or back:
            tale.say(100 * inc + 50, "spawn", 0, 1, what="ht", pid=101, inc=inc + 1)
    verdict = tale.end(5_000_000)
    said = f"c0h1 died {deaths} times in a row (status {status}) and stayed away"
    assert (said in verdict.reasons) is away
