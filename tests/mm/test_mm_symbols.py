"""Symbol tables: what is read, what is refused and where, and which symbol explains an address."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.errors import InputError
from asid.mm.layout import image_of
from asid.mm.symbols import KERNEL_HALF, Place, Symbol, SymbolTable, parse_symbols, table_of
from asid.mm.symbols_bundled import bundled

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "symbols"
HERE = """\
0000000000000000 A irq_stack_union
000000000000b5c0 D current_task
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000040 t do_one
ffffffff81000080 W weak_two
ffffffff81000080 t __two
ffffffff81000080 T two
ffffffff81000100 T twice
ffffffff81000140 T twice
ffffffff81002000 B _end
ffffffffa0000000 t second\t[kvm]
ffffffffa0000040 t first\t[kvm]
ffffffffa0001000 t first\t[kvm_intel]
"""
TABLE = parse_symbols(HERE)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (0xFFFFFFFF81000000, "_text+0x0/0x40"),
        (0xFFFFFFFF8100007F, "do_one+0x3f/0x40"),
        (0xFFFFFFFF81000080, "two+0x0/0x80"),  # neither the weak one nor the one with underscores
        (0xFFFFFFFF81000141, "twice+0x1/0x1ec0"),
        (0xFFFFFFFF81002FFF, "_end+0xfff/0x1000"),  # to the end of its page
        (0xFFFFFFFF81003000, "0xffffffff81003000"),
        (0xFFFFFFFFA0000041, "first+0x1/0xfc0 [kvm]"),
        (0xFFFFFFFFA0001FFF, "first+0xfff/0x1000 [kvm_intel]"),
        (0xFFFFFFFFA0002000, "0xffffffffa0002000"),
        (0xB5C0, "0xb5c0"),  # an offset into per-CPU memory explains nothing
        (0, "0x0"),
    ],
)
def test_an_address_is_shown_as_the_kernel_does(address, shown):
    assert TABLE.show(address) == shown


def test_names_have_addresses():
    assert TABLE.address("two") == 0xFFFFFFFF81000080
    assert TABLE.address("current_task") == 0xB5C0, "per-CPU symbols are found by name"
    assert TABLE.address("first", "kvm_intel") == 0xFFFFFFFFA0001000
    assert TABLE.address("twice") == 0xFFFFFFFF81000100 and len(TABLE.all_named("twice")) == 2
    assert TABLE.named("first") == Symbol(0xFFFFFFFFA0000040, "t", "first", "kvm")
    assert TABLE.named("two", "kvm") is None
    with pytest.raises(InputError, match="no symbol 'three' in kvm"):
        TABLE.address("three", "kvm")


@pytest.mark.parametrize("end", ["\r\n", "\n", "\n\n", " \n", "\r\r\n"])
def test_line_ends_and_empty_lines_say_nothing(end):
    text = HERE.replace("\n", end)
    assert parse_symbols(text).symbols == parse_symbols(text.encode()).symbols == TABLE.symbols


def test_a_line_twice_is_one_symbol():
    assert parse_symbols(HERE + HERE).symbols == TABLE.symbols


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "k: no symbol has a kernel address"),
        ("0000000000000000 T _text\n0000000000000000 T _stext\n", "k: every address is zero .2 symbols.$"),
        ("00001000 T _text\n", "k: no symbol has a kernel address"),
        (HERE + "what is this\n", "k:15: 'what is this' is no symbol"),
        ("\n\nffffffff81000000 T\n", "k:3: 'ffffffff81000000 T' is no symbol"),
        ("ffffffff810000000 T long\n", "k:1: "),
        ("٣ffffff81000000 T digits\n", "k:1: "),
        ("x" * 1000, r"k:1: 'x{60}\.\.\.' is no symbol"),
        (gzip.compress(HERE.encode()), "k: this is gzip"),
        (HERE.encode() + b"\xff\n", "k:15: no text"),
    ],
)
def test_what_is_no_symbol_table_is_refused_with_its_place(text, says):
    with pytest.raises(InputError, match=says):
        parse_symbols(text, where="k")


def test_hidden_addresses_say_what_to_do():
    with pytest.raises(InputError) as caught:
        parse_symbols("0000000000000000 T _text\n0000000000000000 t kvm_init\t[kvm]\n")
    assert "kptr_restrict" in caught.value.hint and "root" in caught.value.hint


def read_or_refused(text: str | bytes) -> SymbolTable | str:
    try:
        return parse_symbols(text)
    except InputError as error:
        return str(error)


@given(
    st.text()
    | st.binary()
    | st.lists(st.sampled_from([*HERE.splitlines(), "", "\r", "junk", "0 T a [", "\x1c"])).map("\n".join)
)
def test_any_text_is_a_table_or_is_refused(text):
    table = read_or_refused(text)
    if isinstance(table, str):
        assert table.startswith("symbols")
        return
    assert table.symbols and table.starts


names = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="_.$"), min_size=1, max_size=9)
kernel = st.integers(KERNEL_HALF, (1 << 64) - 1) | st.integers(0xFFFFFFFF81000000, 0xFFFFFFFF81000040)
symbols = st.builds(Symbol, kernel, st.sampled_from("tTdDwWbr"), names, st.sampled_from(["", "", "kvm", "nf"]))


@given(st.lists(symbols, min_size=1, max_size=30, unique=True), st.lists(kernel))
def test_text_and_lookup_agree_with_a_plain_search(given_symbols, addresses):
    lines = [f"{s.address:016x} {s.kind} {s.name}" + (f"\t[{s.module}]" if s.module else "") for s in given_symbols]
    table = parse_symbols("\n".join(lines))
    assert table.symbols == tuple(given_symbols)
    for address in [*addresses, *(s.address for s in given_symbols)]:
        below = [s for s in given_symbols if s.address <= address]
        start = max((s.address for s in below), default=None)
        place = table.lookup(address)
        if place is None:
            assert start is None or address >= (start // 4096 + 1) * 4096
            continue
        assert address - place.offset == start and place.offset < place.size
        assert (place.name, place.module) in {(s.name, s.module) for s in below if s.address == start}
        assert all(not start < s.address < start + place.size for s in given_symbols)


def test_of_several_at_one_address_the_kernels_choice_is_shown():
    order = ["plain", "_one", "__two", "__start_x", "__stop_y", "__zz_end", "weak"]
    rows = [Symbol(0xFFFFFFFF81000000, "W" if name == "weak" else "T", name, "") for name in order]
    for first in range(len(rows)):
        table = table_of(reversed(rows[first:]))
        shown = table.show(0xFFFFFFFF81000000)
        expected = order[first] if first not in (3, 4, 5) else "__zz_end"  # those of linker scripts: as nm listed them
        assert shown == f"{expected}+0x0/0x1000"
    module = [row._replace(module="kvm") for row in reversed(rows)]
    assert table_of(module).show(0xFFFFFFFF81000000).startswith("weak+"), "in a module the first one is shown"


def test_a_moved_table_shows_the_same_symbols_elsewhere():
    moved = TABLE.moved(0x1E00000)
    assert moved.show(0xFFFFFFFF82E00080) == TABLE.show(0xFFFFFFFF81000080)
    assert moved.address("current_task") == 0xB5C0, "per-CPU offsets stay"
    for offset in (1 << 40, -(1 << 62)):
        with pytest.raises(InputError, match="must be addresses from 0xff00000000000000 up"):
            TABLE.moved(offset)


def test_the_bundled_table_is_one_that_could_be_read():
    table = bundled()
    lines = [f"{s.address:016x} {s.kind} {s.name}" + (f"\t[{s.module}]" if s.module else "") for s in table.symbols]
    assert parse_symbols("\n".join(lines)).symbols == table.symbols
    assert str(table.lookup(table.address("fast_page_fault") + 0x13E)) == "fast_page_fault+0x13e/0x3e0 [kvm]"
    assert bundled() is table and image_of(table).text == 0xFFFFFFFF81000000


def real_text() -> str:
    found = sorted(REAL.glob("kallsyms*.gz"))
    if not found:
        pytest.skip(f"no kallsyms of a real kernel here: {REAL}")
    return gzip.decompress(found[0].read_bytes()).decode()


@pytest.mark.slow
def test_a_real_kallsyms_is_read_and_shown_in_a_third_of_a_second():
    text = real_text()
    took = []
    for _ in range(3):
        began = time.process_time()
        table = parse_symbols(text)
        place = table.lookup(0xFFFFFFFF81485D84)
        took.append(time.process_time() - began)
    assert place == Place("schedule", 4, 0x60)
    assert len(table.symbols) == 55_166
    assert min(took) < 0.3


def test_a_real_kernel_lists_first_what_we_choose():
    table = parse_symbols(real_text())
    first: dict[int, Symbol] = {}
    for symbol in table.symbols:
        first.setdefault(symbol.address, symbol)
    assert [start for start in table.starts if table.at(start) != first[start]] == []
    assert table.at(table.starts[0] + 1) is None
    assert table.show(table.address("cleanup_module", "craytrace")) == "mod_unload+0x0/0x4dc [craytrace]"
