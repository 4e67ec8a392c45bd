"""The exit tables, the names they are found by, and what needs the full address space."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.core import exits
from asid.core.exits import SVM, VMX, Canonical, canonical, find, find_number, is_idle, name_of
from asid.core.exits_vmx import VMX_FLAGS
from asid.errors import InputError

# Two cores shared with others: an example may take long, and every test stays below a quarter of a second.
FEW = settings(max_examples=40, deadline=None)

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "exit_reasons"
KERNEL = REAL / "exit_reasons_linux-5.15.167.csv"
PLUGIN = REAL / "exit_reasons_libtraceevent-plugin_2024-10.csv"


def read_csv(path: Path) -> list[tuple[str, int, str]]:
    if not path.exists():
        pytest.skip(f"recorded exit tables are not here: {path}")
    with path.open() as stream:
        return [(row["kind"], int(row["value"]), row["name"]) for row in csv.DictReader(stream)]


@pytest.mark.parametrize(
    ("text", "isa", "number", "name"),
    [
        ("EPT_VIOLATION", "vmx", 48, "EPT_VIOLATION"),
        ("ept_violation", "vmx", 48, "EPT_VIOLATION"),  # the 2009 text is lower case
        ("npf", "svm", 0x400, "npf"),
        ("EXIT_NPF", "svm", 0x400, "npf"),
        ("NPF", "svm", 0x400, "npf"),
        ("SVM_EXIT_NPF", "svm", 0x400, "npf"),
        ("HLT", "vmx", 12, "HLT"),
        ("hlt", "svm", 0x78, "hlt"),
        ("EXIT_HLT", "svm", 0x78, "hlt"),
        ("EXIT_REASON_HLT", "vmx", 12, "HLT"),
        ("idle-halt", "svm", 0xA6, "idle-halt"),
        ("PF excp", "svm", 0x4E, "PF excp"),
        ("EXIT_EXCP_PF", "svm", 0x4E, "PF excp"),
        ("PENDING_INTERRUPT", "vmx", 7, "INTERRUPT_WINDOW"),
        ("EXIT_IOIO", "svm", 0x7B, "io"),
        ("EXIT_VMMCALL", "svm", 0x81, "hypercall"),
        ("EXIT_ERR", "svm", -1, "invalid_guest_state"),
        ("SVM_VMGEXIT_PSC", "svm", 0x80000010, "vmgexit_page_state_change"),
        ("INVALID_STATE FAILED_VMENTRY", "vmx", 0x80000021, "INVALID_STATE FAILED_VMENTRY"),
        ("UNKNOWN (2147483681)", "vmx", 0x80000021, "INVALID_STATE FAILED_VMENTRY"),
        ("UNKNOWN (75)", "vmx", 75, "NOTIFY"),
        ("UNKNOWN(75)", "vmx", 75, "NOTIFY"),
        ("0x4b", "vmx", 75, "NOTIFY"),
        ("0x5a", "vmx", 90, "0x5a"),
        ("0x5a FAILED_VMENTRY", "vmx", 0x8000005A, "0x5a FAILED_VMENTRY"),
        ("CPUID 0x4000000", "vmx", 0x0400000A, "CPUID 0x4000000"),
        ("MSR_WRITE_IMM", "vmx", 85, "MSR_WRITE_IMM"),
    ],
)
def test_canonical_reads_every_wording(text: str, isa: str, number: int, name: str) -> None:
    assert canonical(text) == Canonical(isa, number, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["Hlt", "cPuId"])
def test_a_case_that_fits_both_isas_is_refused_unless_the_isa_is_given(text: str) -> None:
    assert find(text) is None
    vmx, svm = find(text, "vmx"), find(text, "svm")
    assert vmx is not None and vmx.name == text.upper()
    assert svm is not None and svm.name == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "NO_SUCH",
        "UNKNOWN",
        "UNKNOWN ()",
        "UNKNOWN (x)",
        "0x",
        "-5",
        "-1",
        "npf FAILED_VMENTRY",
        "HLT HLT",
        "HLT 0x1",
        "HLT 0x100000000",
        "9" * 30,
        "A" * 5000,
        "EXIT_REASON_",
        "SVM_",
        "٣",
    ],
)
def test_canonical_refuses_what_is_no_reason(text: str) -> None:
    assert find(text) is None
    with pytest.raises(InputError) as raised:
        canonical(text, where="args.reason")
    assert raised.value.where == "args.reason"
    assert raised.value.allowed and raised.value.hint and raised.value.state
    assert len(str(raised.value)) < 400


def test_the_hint_names_near_reasons() -> None:
    with pytest.raises(InputError) as raised:
        canonical("EPT_VIOLATON")
    assert "EPT_VIOLATION" in raised.value.hint
    with pytest.raises(InputError) as raised:
        canonical("npff", "svm")
    assert "npf" in raised.value.hint


def test_an_isa_excludes_the_names_of_the_other() -> None:
    assert find("EPT_VIOLATION", "svm") is None
    assert find("npf", "vmx") is None
    assert find("PENDING_INTERRUPT", "svm") is None


def test_svm_error_code_in_every_width() -> None:
    for number in (-1, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF):
        assert name_of("svm", number) == "invalid_guest_state"
        assert exits.canonical_number("svm", number).number == -1


def test_flags_do_not_hide_the_basic_reason() -> None:
    row = find_number("vmx", 0x80000021)
    assert row is not None and row.name == "INVALID_STATE"
    assert find_number("svm", 0x80000021) is None  # SVM has no flags: the whole value counts


def test_tables_are_sound() -> None:
    assert len(VMX) == 61 + 12 + 4  # 5.15, the manual only, later kernels
    assert len(SVM) == 103 + 6 + 9
    for row in VMX + SVM:
        assert canonical(row.name) == row.canonical
        for other in row.other_names:
            assert canonical(other) == row.canonical, other
        assert name_of(row.isa, row.number) == row.name
        assert canonical(name_of(row.isa, row.number), row.isa) == row.canonical


def test_kernel_names_and_numbers_agree_with_a_real_kernel() -> None:
    rows = read_csv(KERNEL)
    assert len([r for r in rows if r[0] == "vmx"]) == 61
    assert len([r for r in rows if r[0] == "svm"]) == 103
    for kind, number, name in rows:
        if kind == "vmx-flag":
            assert (number, name) in VMX_FLAGS
        else:
            assert name_of(kind, number) == name
            assert canonical(name) == (kind, number, name)


def test_plugin_names_mean_the_kernel_numbers() -> None:
    rows = read_csv(PLUGIN)
    assert len(rows) == 136
    for kind, number, name in rows:
        assert canonical(name)[:2] == (kind, number), name


@pytest.mark.parametrize(
    ("name", "share", "when"),
    [
        ("CPUID", 0.0, ""),
        ("msr", 0.0, ""),
        ("HLT", 0.0, ""),
        ("EXTERNAL_INTERRUPT", 0.0, ""),
        ("npf", 0.0, ""),
        ("IO_INSTRUCTION", 0.5, "userspace"),
        ("EPT_MISCONFIG", 0.5, "userspace"),
        ("io", 0.5, "userspace"),
        ("PAUSE_INSTRUCTION", 0.05, "schedule"),
        ("CR_ACCESS", 0.25, "host"),
    ],
)
def test_only_where_exits_of_a_reason_differ_there_is_a_share(name: str, share: float, when: str) -> None:
    reason = canonical(name)
    row = find_number(reason.isa, reason.number)
    assert row is not None and (row.share, row.when) == (share, when)


def test_idle_reasons() -> None:
    idle = {row.name for row in VMX + SVM if is_idle(row.isa, row.number)}
    assert idle == {"HLT", "hlt", "idle-halt", "vmgexit_ap_hlt_loop"}


@FEW
@given(st.text(max_size=100), st.sampled_from(["vmx", "svm", None]))
def test_any_text_is_a_reason_or_an_input_error(text: str, isa: exits.Isa | None) -> None:
    try:
        reason = canonical(text, isa)
    except InputError:
        return
    assert isa in (None, reason.isa)
    assert canonical(reason.name, reason.isa) == reason


@FEW
@given(st.sampled_from(["vmx", "svm"]), st.integers(0, (1 << 32) - 1))
def test_every_number_has_a_name_that_leads_back(isa: exits.Isa, number: int) -> None:
    reason = exits.canonical_number(isa, number)
    assert find(reason.name, isa) == reason
