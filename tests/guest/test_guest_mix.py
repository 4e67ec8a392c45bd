"""The mix source: tables, draws, and refusals."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.config import load_config
from asid.errors import InputError
from asid.guest import Exit, MixSource, make_source
from asid.guest.mix import MixEntry, MixTable, read_mix, read_mix_toml
from asid.guest.spread import Constant, Exponential, TruncatedExponential
from asid.mm.footprint import NO_PARTS
from asid.mm.parts import Part

# Two cores shared with others: an example may take long, and every test stays below a quarter of a second.
FEW = settings(max_examples=40, deadline=None)

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "tests" / "data" / "tables"
REAL = ROOT.parent / "shared" / "data" / "perf_kvm_stat"
WEB = ROOT / "configs" / "tables" / "web.toml"


def drawn(table: MixTable, n: int, rate_hz: float = 1000.0, seed: int = 1, timeless: bool = False) -> list[Exit]:
    source = MixSource(table, rate_hz, Random(seed), timeless=timeless)
    return [source.next() for _ in range(n)]


def test_a_table_of_rates() -> None:
    table = read_mix(TABLES / "rates.toml")
    assert table.rate_hz == pytest.approx(400.1)
    npf, hlt, io = table.entries
    assert (npf.reason.name, npf.weight, npf.service) == ("npf", 300.0, Exponential(2000, 6000))
    assert (hlt.reason.name, hlt.service, hlt.wake) == ("hlt", Constant(0), Constant(250_000))
    assert io.weight == pytest.approx(0.1)
    assert (io.full, io.service) == (1.0, Exponential(0, 20_000))


@pytest.mark.parametrize(
    ("table", "more", "rate_hz"),
    [
        ("rates.toml", {}, 400.1),
        ("rates.toml", {"rate": ""}, 400.1),
        ("rates.toml", {"rate": "50/s"}, 50),
        ("perf_intel.txt", {}, 1000),
        (WEB, {}, 1000),
        (WEB, {"rate": "3000/s"}, 3000),
    ],
)
def test_a_tables_own_rates_serve_where_the_configuration_has_none(table: str, more: dict[str, str], rate_hz: float):
    guest = {"source": "mix", "table": str(TABLES / table), **more}
    config = load_config({"vm": [{"on": ["c0h0"], "guest": guest}]})
    source = make_source(config.vm[0].guest, vm=1, vcpu=0, seed=3, base_dir=TABLES)
    exits = [source.next() for _ in range(4000)]
    mean_ns = sum(e.after_ns for e in exits if e is not None) / 4000
    assert mean_ns == pytest.approx(1e9 / rate_hz, rel=0.06)


def test_shares_rates_and_times_come_out_as_the_table_says() -> None:
    table = read_mix(WEB)
    exits = drawn(table, 8_000, rate_hz=2000.0)
    assert sum(e.after_ns for e in exits) / len(exits) == pytest.approx(500_000, rel=0.05)
    counts = Counter(e.reason for e in exits)
    total = sum(entry.weight for entry in table.entries)
    for entry in table.entries:
        share = entry.weight / total
        assert counts[entry.reason.name] / len(exits) == pytest.approx(share, abs=5 * (share / len(exits)) ** 0.5)
    services = [e.service_ns for e in exits if e.reason == "MSR_WRITE"]
    assert sum(services) / len(services) == pytest.approx(1200, rel=0.05) and min(services) >= 400
    assert all(e.after_ns >= 0 and e.service_ns >= 0 for e in exits)


def test_hlt_sleeps_and_nothing_else_does() -> None:
    for e in drawn(read_mix(WEB), 2000):
        assert (e.wake_ns > 0) == (e.reason == "HLT")
        assert e.reason != "HLT" or (e.service_ns == 0 and e.parts == {Part.BLOCKS})


def test_full_whatever_is_mapped_is_only_what_a_row_says_itself() -> None:
    exits = drawn(read_mix(WEB), 8_000)
    assert {e.reason for e in exits if e.full} == {"IO_INSTRUCTION", "EPT_MISCONFIG"}
    assert all(e.full for e in exits if e.reason == "IO_INSTRUCTION")
    misconfigs = [e.full for e in exits if e.reason == "EPT_MISCONFIG"]
    assert 0.02 < sum(misconfigs) / len(misconfigs) < 0.09  # the row says 0.05, the table of reasons 0.5


def test_the_same_seed_gives_the_same_exits_and_another_gives_others() -> None:
    table = read_mix(WEB)
    assert drawn(table, 500) == drawn(table, 500)
    assert drawn(table, 500) != drawn(table, 500, seed=2)


def test_other_times_change_no_reason_and_other_details_no_time() -> None:
    table = read_mix(WEB)
    exits = drawn(table, 500)
    others = drawn(MixTable("t", tuple(replace(e, service=Constant(7), wake=None) for e in table.entries)), 500)
    assert [(e.after_ns, e.reason, e.full, e.parts) for e in others] == [
        (e.after_ns, e.reason, e.full, e.parts) for e in exits
    ]
    others = drawn(MixTable("t", tuple(replace(e, full=0.3) for e in table.entries)), 500)
    assert [e._replace(full=False, parts=NO_PARTS) for e in others] == [
        e._replace(full=False, parts=NO_PARTS) for e in exits
    ]
    assert [e.full for e in others] != [e.full for e in exits]


def test_the_details_of_an_exit_are_drawn_by_the_share_of_its_reason() -> None:
    text = "".join(ROW.replace("CPUID", reason) for reason in ("IO_INSTRUCTION", "HLT", "EPT_VIOLATION", "CPUID"))
    exits = drawn(read_mix_toml(text.replace('"HLT"\nshare = 1\nservice', '"HLT"\nshare = 1\nwake')), 8_000)
    asked = {(e.reason, e.parts) for e in exits}
    device = frozenset({Part.VMM_DEVICE})
    assert asked == {
        ("IO_INSTRUCTION", NO_PARTS),
        ("IO_INSTRUCTION", device),
        ("HLT", frozenset({Part.BLOCKS})),
        ("EPT_VIOLATION", frozenset({Part.NEEDS_PAGE})),
        ("CPUID", NO_PARTS),
    }
    ports = [e.parts == device for e in exits if e.reason == "IO_INSTRUCTION"]
    assert 0.45 < sum(ports) / len(ports) < 0.55  # the table of reasons says 0.5


def test_a_row_with_a_share_of_its_own_says_what_is_full_whatever_is_mapped() -> None:
    exits = drawn(read_mix_toml(ROW.replace("CPUID", "EPT_VIOLATION") + "full = 0.25\n"), 4_000)
    assert {e.parts for e in exits} == {NO_PARTS}
    assert 0.2 < sum(e.full for e in exits) / len(exits) < 0.3


def test_max_pace_gives_the_same_exits_without_time() -> None:
    table = read_mix(WEB)
    plain, timeless = drawn(table, 2000), drawn(table, 2000, timeless=True)
    assert [(e.reason, e.full, e.parts) for e in plain] == [(e.reason, e.full, e.parts) for e in timeless]
    assert len({id(e) for e in timeless}) <= 2 * len(table.entries), "prepared once, two a row"
    assert all(e.after_ns == e.service_ns == e.wake_ns == 0 for e in timeless)


@pytest.mark.parametrize("pace", ["real", "scaled", "max"])
def test_pace_of_a_made_source(pace: str) -> None:
    from asid.config import Guest

    guest = Guest(source="mix", table=str(WEB))
    real = make_source(guest, vm=1, vcpu=0, seed=1, base_dir=ROOT)
    paced = make_source(guest, vm=1, vcpu=0, seed=1, base_dir=ROOT, pace=pace, scale=0.5)
    factor = {"real": 1.0, "scaled": 0.5, "max": 0.0}[pace]
    for _ in range(200):
        a, b = real.next(), paced.next()
        assert a is not None and b is not None
        assert (a.reason, a.full, round(a.after_ns * factor)) == (b.reason, b.full, b.after_ns)


@pytest.mark.slow
@pytest.mark.parametrize("hashseed", ["0", "1"])
def test_the_hash_seed_of_the_process_has_no_part(hashseed: str) -> None:
    code = (
        "from pathlib import Path; from asid.config import Guest; from asid.guest import make_source;"
        f"s = make_source(Guest(source='mix', table={str(WEB)!r}), vm=1, vcpu=0, seed=7, base_dir=Path('.'));"
        "import sys; sys.stdout.write(repr([tuple(s.next()) for _ in range(20)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hashseed},
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        check=True,
    )
    from asid.config import Guest

    here = make_source(Guest(source="mix", table=str(WEB)), vm=1, vcpu=0, seed=7, base_dir=ROOT)
    assert done.stdout.decode() == repr([tuple(here.next() or ()) for _ in range(20)])


def test_a_perf_table_as_a_mix() -> None:
    table = read_mix(TABLES / "perf_intel.txt")
    assert [(e.reason.name, e.weight) for e in table.entries] == [
        ("MSR_WRITE", 6000.0),
        ("HLT", 3000.0),
        ("INTERRUPT_WINDOW", 990.0),
    ]
    msr, hlt, window = table.entries
    assert isinstance(msr.service, TruncatedExponential) and msr.service.mean_ns == 1000
    assert hlt.service == Constant(0) and isinstance(hlt.wake, TruncatedExponential) and hlt.wake.max_ns == 5_000_000
    assert window.service.mean_ns == 2000
    assert any("UNKNOWN" in note for note in table.notes)
    services = [e.service_ns for e in drawn(table, 20_000) if e.reason == "MSR_WRITE"]
    assert sum(services) / len(services) == pytest.approx(1000, rel=0.03)
    assert min(services) >= 500 and max(services) <= 20_000


def test_a_perf_table_without_minimum_is_an_exponential() -> None:
    cpuid, hlt = read_mix(TABLES / "perf_2012_two_tables.txt").entries
    assert cpuid.service == Exponential(0, 1000) and hlt.wake == Exponential(0, 3000)


def test_a_mean_just_outside_by_rounding_is_taken_and_a_wrong_one_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    text = (TABLES / "perf_intel.txt").read_text()
    path.write_text(
        text.replace("20.00us      1.00us", "20.00us      0.49us").replace("3.00us      2.00us", "3.00us      9.00us")
    )
    table = read_mix(path)
    assert [e.reason.name for e in table.entries] == ["MSR_WRITE", "HLT"]
    assert any("outside its minimum" in note for note in table.notes)


@pytest.mark.parametrize(
    ("short", "first", "entries"),
    [
        ("p01", "IO_INSTRUCTION", 10),
        ("p03", "MSR_WRITE", 9),
        ("p04", "interrupt", 2),
        ("p08", "interrupt", 3),
        ("p10", "APIC_ACCESS", 9),
        ("p15", "EPT_VIOLATION", 3),
        ("p16", "EXTERNAL_INTERRUPT", 2),
    ],
)
def test_recorded_tables_drive_a_mix(short: str, first: str, entries: int) -> None:
    found = sorted(REAL.glob(f"{short}_*.txt"))
    if not found:
        pytest.skip(f"recording {short} is not here: {REAL}")
    table = read_mix(found[0])
    assert (table.entries[0].reason.name, len(table.entries)) == (first, entries)
    exits = drawn(table, 500)
    assert {e.reason for e in exits} <= {entry.reason.name for entry in table.entries}
    assert Counter(e.reason for e in exits).most_common(1)[0][0] == first


ROW = '[[exit]]\nreason = "CPUID"\nshare = 1\nservice = "1us"\n'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "exit"),
        ("exit = []", "exit"),
        ("exit = 3", "exit"),
        ("[[exit", "is not TOML"),
        ("x = " + "[" * 2000, "is not TOML"),
        ("x = " + "9" * 6000, "is not TOML"),
        (ROW + "shares = 2\n", "shares"),
        ("names = 1\n" + ROW, "names"),
        (ROW.replace("CPUID", "CPUIDD"), "exit[0].reason = 'CPUIDD'"),
        (ROW.replace("CPUID", "Cpuid"), "exit[0].reason"),
        ('isa = "svm"\n' + ROW.replace("CPUID", "EPT_VIOLATION"), "exit[0].reason"),
        ('isa = "arm"\n' + ROW, "isa"),
        (ROW.replace("share = 1\n", ""), "neither of share and rate"),
        (ROW + 'rate = "5/s"\n', "both of share and rate"),
        (ROW + ROW.replace("share = 1", 'rate = "5/s"'), "some rows"),
        (ROW.replace("share = 1", "share = 0"), "share"),
        (ROW.replace("share = 1", "share = -1"), "share"),
        (ROW.replace("share = 1", "share = nan"), "share"),
        (ROW.replace("share = 1", "share = inf"), "share"),
        (ROW.replace("share = 1", "share = true"), "share"),
        (ROW.replace("share = 1", 'rate = "5"'), "exit[0].rate"),
        (ROW.replace("share = 1", 'rate = "99999999999/s"'), "rates add up"),
        (ROW.replace('"1us"', "1"), "service"),
        (ROW.replace('"1us"', '"1"'), "exit[0].service"),
        (ROW.replace('service = "1us"\n', ""), "no service"),
        (ROW.replace('"1us"', '{ min = "1us" }'), "mean"),
        (ROW.replace('"1us"', '{ mean = "1us", avg = "1us" }'), "avg"),
        (ROW.replace('"1us"', '{ mean = "1us", min = "2us" }'), "exit[0].service"),
        (ROW.replace('"1us"', '{ mean = "5us", max = "2us" }'), "exit[0].service"),
        (ROW + "full = 1.5\n", "full"),
        (ROW + "full = -0.5\n", "full"),
        (ROW + 'wake = "1us"\n', "exit[0].wake on CPUID"),
        (ROW.replace("CPUID", "HLT").replace('service = "1us"\n', ""), "no time"),
    ],
)
def test_a_bad_table_is_refused_with_file_and_key(text: str, what: str) -> None:
    with pytest.raises(InputError) as raised:
        read_mix_toml(text, "t.toml")
    error = raised.value
    assert error.where == "t.toml" and what in error.what
    assert error.state and error.allowed and error.hint


def test_hlt_may_have_service_beside_its_sleep() -> None:
    (entry,) = read_mix_toml(ROW.replace("CPUID", "HLT") + 'wake = "9us"\n').entries
    assert (entry.service, entry.wake) == (Constant(1000), Constant(9000))


def test_a_recording_of_events_is_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="text of a trace") as raised:
        read_mix(TABLES.parent / "trace" / "perf_script.txt")
    assert "'trace'" in raised.value.hint
    path = tmp_path / "notes.txt"
    path.write_text("not a table\n")
    with pytest.raises(InputError, match="without any VM exit"):
        read_mix(path)


def test_a_perf_table_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    lines = (TABLES / "perf_intel.txt").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not any(name in line for name in ("MSR_WRITE", "HLT", "PENDING"))]
    path.write_text("".join(kept).replace("UNKNOWN         10", "  CPUID          0"))
    with pytest.raises(InputError, match="no row can be used") as raised:
        read_mix(path)
    assert "10000 missing" in raised.value.hint


def test_one_row_and_tiny_weights_work() -> None:
    tiny = MixTable("t", (MixEntry(read_mix(WEB).entries[0].reason, 5e-324, Constant(1)),))
    assert [e.reason for e in drawn(tiny, 20)] == ["MSR_WRITE"] * 20


TOML_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["CPUID", "1us", "5/s", "HLT"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["mean", "min", "max", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(["reason", "share", "rate", "service", "wake", "full", "isa", "extra"])


def to_toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return "'" + "".join(c for c in value if c.isprintable() and c != "'") + "'"
    return repr(value)


def assert_told(error: InputError) -> None:
    assert error.where and error.what and error.allowed and error.hint


@pytest.mark.slow
@FEW
@given(st.lists(st.dictionaries(KEYS, TOML_VALUES, max_size=5), max_size=3))
def test_any_toml_is_a_table_or_an_input_error(rows: list[dict[str, object]]) -> None:
    text = "".join("[[exit]]\n" + "".join(f"{k} = {to_toml(v)}\n" for k, v in row.items()) for row in rows)
    try:
        table = read_mix_toml(text)
    except InputError as error:
        assert_told(error)
        return
    assert len(drawn(table, 5)) == 5


@FEW
@given(st.binary(max_size=300))
def test_any_file_is_a_table_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "mix.toml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_mix(path)
