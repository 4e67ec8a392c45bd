"""Page-table dumps: columns, round trips, and what is refused and where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.errors import InputError
from asid.mm.ptdump import LEVELS, TOP, Dump, Flag, Mark, Range, Skipped, format_dump, parse_dump, size_text

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ptdump"
KERNEL = Flag.PRESENT | Flag.WRITABLE | Flag.GLOBAL | Flag.NX

# Made up, in the kernel's columns.
HERE = """\
---[ User Space ]---
0x0000000000000000-0xffff800000000000    16777088T                               pgd
---[ Low Kernel Mapping ]---
0xffff888000000000-0xffff888000200000           2M     RW                 GLB NX pte
0xffff888000200000-0xffff888040000000        1022M     RW         PSE     GLB NX pmd
---[ ESPfix Area ]---
... 1 entry skipped ... 
---[ High Kernel Mapping ]---
0xffffffff81000000-0xffffffff81e00000          14M     ro         PSE     GLB x  pmd
0xffffffff81e00000-0xffffffff81e01000           4K USR RW PWT PCD     PAT GLB NX pte
... 12 entries skipped ... 
0xffffffffff800000-0x0000000000000000           8M                               pmd
"""  # noqa: W291


def test_a_dump_is_read_by_its_columns():
    dump = parse_dump(HERE)
    assert dump.items[:4] == (
        Mark("User Space"),
        Range(0, 0xFFFF800000000000, "pgd", Flag(0)),
        Mark("Low Kernel Mapping"),
        Range(0xFFFF888000000000, 0xFFFF888000200000, "pte", KERNEL),
    )
    assert dump.items[6] == Skipped(1) and dump.items[10] == Skipped(12)
    text = dump.items[8]
    assert text == Range(0xFFFFFFFF81000000, 0xFFFFFFFF81E00000, "pmd", Flag.PRESENT | Flag.PSE | Flag.GLOBAL)
    assert dump.items[9].flags == KERNEL | Flag.USER | Flag.PWT | Flag.PCD | Flag.PAT
    assert dump.ranges[-1].end == TOP and dump.ranges[-1].size == 8 << 20
    assert len(dump.present) == 4
    assert dump.marks() == {"User Space": 0, "Low Kernel Mapping": 0xFFFF888000000000,
                            "High Kernel Mapping": 0xFFFFFFFF81000000}  # fmt: skip
    assert format_dump(dump.items) == HERE


@pytest.mark.parametrize(
    "changed",
    [
        HERE.replace("\n", "\r\n"),
        HERE.replace("\n", "\n\n"),
        "".join(f"[    0.{number:06}] {line}\n" for number, line in enumerate(HERE.splitlines())),
        "".join(f"<6>[12345.678901] {line}\n" for line in HERE.splitlines()),
        HERE.encode(),
    ],
)
def test_stamps_and_line_ends_say_nothing(changed):
    assert parse_dump(changed) == parse_dump(HERE)


LINE = "0xffffffff81000000-0xffffffff81e00000          14M     ro         PSE     GLB x  pmd"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "p: an empty text"),
        ("\n\nx86/mm: Checked W+X mappings: passed, no W+X pages found.\n", "p:3: .* is no line of a page-table dump"),
        (LINE.replace("14M", "15M"), "p:1: the size is 15M .*: must be 14M"),
        (LINE.replace("14M", " 7M").replace("e00000", "700000"), "p:1: a range of level pmd"),
        (LINE.replace("81e0", "80e0"), "p:1: a range from 0xffffffff81000000 to 0xffffffff80e00000"),
        (f"{LINE}\n{LINE}", "p:2: a range begins at 0xffffffff81000000 .the one before ends at 0xffffffff81e00000."),
        (LINE.replace("ro ", "rw "), "p:1: flags 'rw '"),
        (LINE.replace("    ro", "   ro "), "p:1: flags"),
        (" ".join(LINE.split()), "p:1: .* is no line"),
        (LINE.replace("pmd", "p3d"), "p:1: .* is no line"),
        (LINE[:-2], "p:1: .* is no line"),
        (b"\n\xfe\n", "p:2: no text"),
    ],
)
def test_what_is_no_dump_is_refused_with_its_line(text, says):
    with pytest.raises(InputError, match=says):
        parse_dump(text, where="p")


def read_or_refused(text: str | bytes) -> Dump | str:
    try:
        return parse_dump(text)
    except InputError as error:
        return str(error)


@given(
    st.text()
    | st.binary()
    | st.lists(st.sampled_from([*HERE.splitlines(), LINE[3:], "\r", "---[ ]---"])).map("\n".join)
)
def test_any_text_is_a_dump_or_is_refused(text):
    dump = read_or_refused(text)
    if isinstance(dump, str):
        assert dump.startswith("page tables")
        return
    assert parse_dump(format_dump(dump.items)) == dump


@given(st.integers(0, len(HERE) - 1), st.characters(codec="ascii"))
def test_a_changed_character_is_read_or_refused(place, character):
    dump = read_or_refused(HERE[:place] + character + HERE[place + 1 :])
    if isinstance(dump, str):
        assert re.match(r"page tables:\d+: ", dump)
        return
    assert parse_dump(format_dump(dump.items)) == dump


@st.composite
def items(draw):
    """Ascending ranges of all levels and flags, with marks and skips between them."""
    found = []
    end = 0
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["range", "range", "range", "mark", "skipped"]))
        if kind == "mark":
            found.append(Mark(draw(st.sampled_from(["Modules", "vmalloc() Area", "KASAN shadow", "", "a ]--- b"]))))
        elif kind == "skipped":
            found.append(Skipped(draw(st.integers(0, 1 << 40))))
        else:
            level = draw(st.sampled_from(sorted(LEVELS)))
            step = LEVELS[level]
            first = -(-end // step)
            if first >= TOP // step:
                continue
            start = draw(st.integers(first, TOP // step - 1))
            last = draw(st.integers(start + 1, min(start + 600, TOP // step)) | st.just(TOP // step))
            flags = draw(st.sampled_from([Flag(0), Flag.PRESENT, KERNEL])) or Flag(0)
            if flags:
                flags |= draw(st.sampled_from([Flag(0), Flag.USER, Flag.PSE | Flag.PAT, Flag.PWT | Flag.PCD]))
            found.append(Range(start * step, last * step, level, flags))
            end = last * step
    return tuple(found) or (Mark("Modules"),)


@given(items())
def test_ranges_survive_their_text(given_items):
    text = format_dump(given_items)
    assert parse_dump(text) == Dump(given_items)
    assert format_dump(parse_dump(text).items) == text


@given(st.integers(1, 1 << 52).map(lambda pages: pages << 12))
def test_a_size_is_in_the_largest_unit_that_divides_it(size):
    text = size_text(size)
    number, unit = int(text[:-1]), "BKMGTPE".index(text[-1])
    assert number << 10 * unit == size and (number % 1024 or unit == 6)


def test_a_real_dump_comes_back_as_it_was():
    found = sorted(REAL.glob("*.txt"))
    if not found:
        pytest.skip(f"no page-table dump of a real kernel here: {REAL}")
    text = found[0].read_text()
    dump = parse_dump(text)
    assert format_dump(dump.items) == re.sub(r"(?m)^\[ *[0-9.]+\] ", "", text)
    assert (len(dump.ranges), len(dump.present)) == (34, 18)
    assert dump.marks()["Modules"] == 0xFFFFFFFFC0000000
    assert [r for r in dump.present if r.flags & Flag.USER] == [
        Range(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, "pte", Flag.PRESENT | Flag.USER | Flag.NX)
    ]
