"""The areas of the host's address space: real constants, lookup against a plain search, what KASLR may move."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid.errors import ConfigError, InputError
from asid.mm.layout import (
    CPU_ENTRY_AREA,
    GIB,
    TOP,
    Image,
    Kaslr,
    Layout,
    Sensitivity,
    image_of,
    kaslr_of,
    layout,
)
from asid.mm.objects import OBJECTS
from asid.mm.symbols import parse_symbols
from asid.mm.symbols_bundled import bundled

IMAGE = Image(0xFFFFFFFF81000000, 0xFFFFFFFF81C00000, 0xFFFFFFFF83000000)
LAYOUTS = [layout(levels, before_4_20=old) for levels in (4, 5) for old in (False, True)]
LAYOUTS += [layout(4, kaslr=Kaslr(), image=IMAGE), layout(5, kaslr=Kaslr(0xFF11_0000_4000_0000), memory=64 * GIB)]


@pytest.mark.parametrize(
    ("levels", "old", "name", "first", "last"),
    [
        (4, False, "LDT remap", 0xFFFF880000000000, 0xFFFF887FFFFFFFFF),
        (4, False, "direct map", 0xFFFF888000000000, 0xFFFFC87FFFFFFFFF),
        (4, True, "direct map", 0xFFFF880000000000, 0xFFFFC7FFFFFFFFFF),
        (4, True, "LDT remap", 0xFFFFFE8000000000, 0xFFFFFEFFFFFFFFFF),
        (4, False, "vmalloc", 0xFFFFC90000000000, 0xFFFFE8FFFFFFFFFF),
        (4, False, "vmemmap", 0xFFFFEA0000000000, 0xFFFFEAFFFFFFFFFF),
        (4, False, "KASAN shadow", 0xFFFFEC0000000000, 0xFFFFFBFFFFFFFFFF),
        (4, False, "user space", 0, 0x7FFFFFFFFFFF),
        (5, False, "user space", 0, 0xFFFFFFFFFFFFFF),
        (5, False, "LDT remap", 0xFF10000000000000, 0xFF10FFFFFFFFFFFF),
        (5, False, "direct map", 0xFF11000000000000, 0xFF90FFFFFFFFFFFF),
        (5, True, "direct map", 0xFF10000000000000, 0xFF8FFFFFFFFFFFFF),
        (5, True, "LDT remap", 0xFF90000000000000, 0xFF9FFFFFFFFFFFFF),
        (5, False, "vmalloc", 0xFFA0000000000000, 0xFFD1FFFFFFFFFFFF),
        (5, False, "vmemmap", 0xFFD4000000000000, 0xFFD5FFFFFFFFFFFF),
        (5, False, "cpu_entry_area", 0xFFFFFE0000000000, 0xFFFFFE7FFFFFFFFF),
        (5, False, "espfix64", 0xFFFFFF0000000000, 0xFFFFFF7FFFFFFFFF),
        (4, False, "kernel image", 0xFFFFFFFF80000000, 0xFFFFFFFF9FFFFFFF),
        (4, False, "modules", 0xFFFFFFFFA0000000, 0xFFFFFFFFFEFFFFFF),
        (4, False, "vsyscall", 0xFFFFFFFFFF600000, 0xFFFFFFFFFF600FFF),
    ],
)
def test_areas_are_where_the_kernel_has_them(levels, old, name, first, last):
    found = layout(levels, before_4_20=old)
    area = found.area(name)
    assert (area.start, area.end - 1) == (first, last)
    assert found.find(first) == found.find(last) == area


def test_the_rfcs_second_address_is_memory_in_an_old_kernel_only():
    old, new = layout(before_4_20=True).find(0xFFFF88003C718000), layout().find(0xFFFF88003C718000)
    assert old is not None and new is not None
    assert (old.name, old.sensitivity) == ("direct map", Sensitivity.SECRET)
    assert new.name == "LDT remap"


@pytest.mark.parametrize("host", LAYOUTS, ids=lambda host: f"{host.levels}-{len(host.areas)}")
def test_areas_ascend_and_are_canonical(host: Layout):
    for one, following in pairwise(host.areas):
        assert one.start < one.end <= following.start
    for area in host.areas:
        assert host.is_canonical(area.start) and host.is_canonical(area.end - 1), area
    assert not host.is_canonical(1 << 62) and not host.is_canonical(TOP)


edges = st.sampled_from([edge for host in LAYOUTS for area in host.areas for edge in (area.start, area.end)])


@given(st.sampled_from(LAYOUTS), edges.flatmap(lambda edge: st.integers(edge - 2, edge + 2)) | st.integers(-1, TOP + 1))
def test_lookup_is_a_search_through_all_areas(host, address):
    assert host.find(address) == next((area for area in host.areas if area.start <= address < area.end), None)


def test_a_layout_without_areas_finds_nothing_there():
    host = layout(before_4_20=True).without("vmemmap", "direct map")
    assert host.find(0xFFFFEA00005331F0) is None and host.find(0xFFFF88003C718000) is None
    assert not host.has("vmemmap") and host.has("vmalloc")
    with pytest.raises(ConfigError, match=r"'heap' is no area .4 levels.: must be one of user space, guard hole"):
        host.without("heap")


def made_or_refused(levels: int, kaslr: Kaslr) -> Layout | str:
    try:
        return layout(levels, kaslr=kaslr)
    except ConfigError as error:
        return str(error)


@given(st.sampled_from([4, 5]), st.lists(st.integers(0, 21_000), min_size=3, max_size=3))
def test_given_bases_are_kept_or_refused_with_the_reason(levels, steps):
    plain = layout(levels)
    bases = [plain.area(name).start + step * GIB for name, step in zip(("direct map", "vmalloc", "vmemmap"), steps,
                                                                       strict=True)]  # fmt: skip
    host = made_or_refused(levels, Kaslr(*bases))
    if isinstance(host, str):
        assert ": must be " in host
        return
    assert bases[0] < bases[1] < bases[2] < CPU_ENTRY_AREA
    assert [host.area(name).start for name in ("direct map", "vmalloc", "vmemmap")] == bases
    assert all(one.end <= following.start for one, following in pairwise(host.areas))
    assert not host.has("KASAN shadow")


def test_kaslr_moves_areas_and_keeps_what_is_fixed():
    kaslr = Kaslr(0xFFFF9A0140000000, 0xFFFFB1C380000000, 0xFFFFE5A240000000)
    host = layout(kaslr=kaslr)
    direct = host.area("direct map")
    assert (direct.start, direct.end) == (0xFFFF9A0140000000, 0xFFFFB1C380000000), "it ends where vmalloc begins"
    assert host.area("cpu_entry_area") == layout().area("cpu_entry_area")
    assert host.area("modules").start == 0xFFFFFFFFC0000000, "the image may take 1 GiB"
    assert not host.has("KASAN shadow"), "a kernel with KASAN moves nothing"


@pytest.mark.parametrize(
    ("given_values", "says"),
    [
        ({"levels": 3}, "3 levels of page tables: must be 4 or 5"),
        ({"kaslr": Kaslr(0xFFFF888000001000)}, "page_offset_base = 0xffff888000001000 .* a multiple of 40000000"),
        ({"kaslr": Kaslr(0xFFFFD00000000000)}, "KASLR keeps their order"),
        ({"kaslr": Kaslr(vmalloc_base=0xFFFFD90000000000)}, "vmemmap_base = 0xffffea0000000000"),
        ({"kaslr": Kaslr(0xFFFF800000000000)}, "ascending, from 0xffff888000000000"),
        ({"memory": 0}, "memory = 0 bytes"),
        ({"memory": 65 << 40}, "the direct map holds all of it"),
        ({"image": Image(0xFFFFFFFF81000000, 0xFFFFFFFF80000000, 0xFFFFFFFF83000000)}, "the image has 512 MiB"),
        (
            {"levels": 5, "before_4_20": True, "kaslr": Kaslr(0xFF20000000000000, 0xFFA0000000000000)},
            "LDT remap begins",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given_values, says):
    with pytest.raises(ConfigError, match=says):
        layout(**given_values)


def test_memory_bounds_the_direct_map_and_its_struct_pages():
    host = layout(memory=64 * GIB + 1)
    assert host.area("direct map").size == 64 * GIB + 4096
    assert host.area("vmemmap").size == GIB + 4096, "64 bytes a page"


def test_an_image_is_split_into_text_and_data():
    host = layout(image=image_of(bundled()))
    text = host.area("kernel text")
    assert (text.start, text.sensitivity) == (0xFFFFFFFF81000000, Sensitivity.NON_SENSITIVE)
    assert host.area("kernel data").start == text.end and host.area("kernel data").sensitivity is Sensitivity.MIXED
    with pytest.raises(InputError, match="no symbol _etext"):
        image_of(parse_symbols("ffffffff81000000 T _text\n"))


def test_section_marks_of_a_dump_are_bases():
    marks = {"Low Kernel Mapping": 0xFFFF9A0140000000, "vmalloc() Area": 0xFFFFB1C380000000, "Modules": 1}
    assert kaslr_of(marks) == Kaslr(0xFFFF9A0140000000, 0xFFFFB1C380000000, None)


def test_every_object_lies_in_an_area():
    areas = {area.name for area in layout().areas}
    for touched in OBJECTS:
        assert touched.area in areas, touched
        assert 0 < touched.size <= layout().area(touched.area).size and touched.source, touched
