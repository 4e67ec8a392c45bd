"""The areas of the host's address space: where each begins, how big it is, and whose data is in it.

Rule 1. A layout is data made once from explicit values. There is no chance in it: with KASLR the bases are given.
Rule 2. Areas are sorted and never overlap; what is between two of them is an unused hole.
Rule 3. `end` is exclusive, so the last area of the address space may end at 2^64.

Where the numbers are from
    Linux Documentation/arch/x86/x86_64/mm.rst and asm/page_64_types.h. Until 4.20 the direct map began where PTI's LDT
    remap is now, and the LDT remap was elsewhere (Documentation/x86/x86_64/mm.txt of 4.19): the sample reports of the
    RFC are from such a kernel. The start of the fixmap depends on the configuration; ours is that of one 4.18 kernel.

KASLR
    It moves the direct map, vmalloc and vmemmap by whole GiB and keeps their order (arch/x86/mm/kaslr.c); they end
    before the cpu_entry_area. A kernel with KASAN does not move them, so a layout with given bases has no KASAN shadow.
    The image may take 1 GiB instead of 512 MiB, and the modules begin after it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final, NamedTuple

from asid.errors import ConfigError, InputError
from asid.mm.symbols import SymbolTable

PAGE: Final = 1 << 12
GIB: Final = 1 << 30
TIB: Final = 1 << 40
PIB: Final = 1 << 50
TOP: Final = 1 << 64

IMAGE_START: Final = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map
IMAGE_SIZE: Final = 512 << 20  # KERNEL_IMAGE_SIZE
IMAGE_SIZE_KASLR: Final = GIB
TEXT_START: Final = 0xFFFF_FFFF_8100_0000  # _text without KASLR
CPU_ENTRY_AREA: Final = 0xFFFF_FE00_0000_0000  # what KASLR moves ends before it
STRUCT_PAGE: Final = 64  # bytes of vmemmap for each page of memory


class Sensitivity(Enum):
    """Whose data an area or an object holds. The value is the word that people read."""

    NON_SENSITIVE = "globally non-sensitive"
    THIS_VM = "this VM's"
    SECRET = "host secret"
    MIXED = "mixed"


FREE: Final = Sensitivity.NON_SENSITIVE
OWN: Final = Sensitivity.THIS_VM
SECRET: Final = Sensitivity.SECRET
MIXED: Final = Sensitivity.MIXED


class Area(NamedTuple):
    """One area: addresses `start` to `end`, the latter not in it. why: what makes it as sensitive as it is."""

    name: str
    start: int
    end: int
    sensitivity: Sensitivity
    why: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Kaslr(NamedTuple):
    """Values of the kernel's variables page_offset_base, vmalloc_base and vmemmap_base; None: where it is without.

    These are values, not the addresses that kallsyms gives the variables. `kaslr_of` takes them from a page-table dump.
    """

    page_offset_base: int | None = None
    vmalloc_base: int | None = None
    vmemmap_base: int | None = None


class Image(NamedTuple):
    """Addresses of _text, _etext and _end."""

    text: int
    etext: int
    end: int


class _Moving(NamedTuple):
    """What one kernel has below the cpu_entry_area: (start, size) of each. ldt differs by age, the rest by levels."""

    user: int
    guard: tuple[int, int]
    ldt: tuple[int, int]
    direct: tuple[int, int]
    vmalloc: tuple[int, int]
    vmemmap: tuple[int, int]
    kasan: tuple[int, int]


# fmt: off
_L4: Final = _Moving(
    1 << 47,
    guard=(0xFFFF_8000_0000_0000, 8 * TIB),
    ldt=(0xFFFF_8800_0000_0000, TIB // 2),
    direct=(0xFFFF_8880_0000_0000, 64 * TIB),
    vmalloc=(0xFFFF_C900_0000_0000, 32 * TIB),
    vmemmap=(0xFFFF_EA00_0000_0000, TIB),
    kasan=(0xFFFF_EC00_0000_0000, 16 * TIB),
)
_L5: Final = _Moving(
    1 << 56,
    guard=(0xFF00_0000_0000_0000, 4 * PIB),
    ldt=(0xFF10_0000_0000_0000, PIB // 4),
    direct=(0xFF11_0000_0000_0000, 32 * PIB),
    vmalloc=(0xFFA0_0000_0000_0000, 12_800 * TIB),
    vmemmap=(0xFFD4_0000_0000_0000, PIB // 2),
    kasan=(0xFFDF_0000_0000_0000, 0xFFFF_FC00_0000_0000 - 0xFFDF_0000_0000_0000),
)
_MOVING: Final = {
    (4, False): _L4,
    (5, False): _L5,
    (4, True): _L4._replace(direct=(0xFFFF_8800_0000_0000, 64 * TIB), ldt=(0xFFFF_FE80_0000_0000, TIB // 2)),
    (5, True): _L5._replace(direct=(0xFF10_0000_0000_0000, 32 * PIB), ldt=(0xFF90_0000_0000_0000, 4 * PIB)),
}
# The same with 4 and with 5 levels.
_FIXED: Final = (
    Area("cpu_entry_area", CPU_ENTRY_AREA, CPU_ENTRY_AREA + TIB // 2, FREE, "entry stacks, GDT, TSS: [v1 p19]"),
    Area("espfix64", 0xFFFF_FF00_0000_0000, 0xFFFF_FF80_0000_0000, FREE, "return frames of 16-bit segments: [v1 p19]"),
    Area("EFI runtime", 0xFFFF_FFEF_0000_0000, 0xFFFF_FFFF_0000_0000, MIXED, "firmware code and data: inf"),
    Area("fixmap", 0xFFFF_FFFF_FF57_6000, 0xFFFF_FFFF_FF60_0000, MIXED, "registers of devices, text patching: inf"),
    Area("vsyscall", 0xFFFF_FFFF_FF60_0000, 0xFFFF_FFFF_FF60_1000, FREE, "code that every process sees"),
)
# fmt: on
_MODULES_END: Final = 0xFFFF_FFFF_FF00_0000


@dataclass(frozen=True, slots=True)
class Layout:
    """The areas of one kernel, sorted by address. `starts` are theirs, for the search."""

    levels: int
    areas: tuple[Area, ...]
    starts: tuple[int, ...]

    def find(self, address: int) -> Area | None:
        """Return the area that has the address; None in a hole, and outside the canonical addresses."""
        place = bisect_right(self.starts, address) - 1
        if place < 0:
            return None
        area = self.areas[place]
        return area if address < area.end else None

    def area(self, name: str) -> Area:
        """Return the area of that name. Raise ConfigError when this layout has none."""
        for area in self.areas:
            if area.name == name:
                return area
        raise ConfigError(
            f"{name!r} is no area",
            where="layout",
            state=f"{self.levels} levels",
            allowed="one of " + ", ".join(area.name for area in self.areas),
        )

    def has(self, name: str) -> bool:
        """Say whether there is an area of that name."""
        return any(area.name == name for area in self.areas)

    def without(self, *names: str) -> Layout:
        """Return the layout less these areas. Raise ConfigError when it does not have one of them."""
        gone = {self.area(name).name for name in names}
        return _layout(self.levels, [area for area in self.areas if area.name not in gone])

    def is_canonical(self, address: int) -> bool:
        """Say whether the bits above the highest translated one are copies of it: bit 47, or 56 with 5 levels."""
        top = 12 + 9 * self.levels - 1
        return 0 <= address < 1 << top or TOP - (1 << top) <= address < TOP


def _layout(levels: int, areas: list[Area]) -> Layout:
    return Layout(levels, tuple(areas), tuple(area.start for area in areas))


def layout(
    levels: int = 4,
    *,
    before_4_20: bool = False,
    kaslr: Kaslr | None = None,
    image: Image | None = None,
    memory: int | None = None,
) -> Layout:
    """Return the layout of a kernel.

    levels: 4 or 5. before_4_20: the old direct map, at ffff880000000000 with 4 levels. kaslr: None without; `Kaslr()`
    for one that is configured and has moved nothing. image: splits the kernel's image into text and data. memory: bytes
    of the host's memory; the direct map and vmemmap then end with it. Raise ConfigError when these do not fit.
    """
    if levels not in (4, 5):
        raise ConfigError(f"{levels} levels of page tables", where="layout", allowed="4 or 5")
    moving = _MOVING[levels, before_4_20]
    areas = [
        Area("user space", 0, moving.user, MIXED, "the VMM's memory: its guest's, and secrets of its own"),
        _at("guard hole", moving.guard, FREE, "reserved for hypervisors: nothing is mapped"),
        _at("LDT remap", moving.ldt, OWN, "the LDT of the running process: inf"),
        *_moved(moving, kaslr, memory),
        *_image(kaslr is not None, image),
        *_FIXED,
    ]
    if kaslr is None or kaslr == Kaslr():
        areas.append(_at("KASAN shadow", moving.kasan, FREE, "which bytes are valid, not what is in them: inf"))
    areas.sort(key=lambda area: area.start)
    for one, next_one in pairwise(areas):
        if one.end > next_one.start:  # only the old LDT remap with 5 levels: the bug that 4.20 moved it for
            raise _refused(f"{one.name} ends at {one.end:#x}", f"{next_one.name} begins at {next_one.start:#x}",
                           "given a base, or less memory, with which it ends before")  # fmt: skip
    return _layout(levels, areas)


def _at(name: str, place: tuple[int, int], sensitivity: Sensitivity, why: str) -> Area:
    start, size = place
    return Area(name, start, start + size, sensitivity, why)


def _moved(moving: _Moving, kaslr: Kaslr | None, memory: int | None) -> list[Area]:
    """Return direct map, vmalloc and vmemmap, each no longer than there is room before the next."""
    given = kaslr or Kaslr()
    direct = moving.direct[0] if given.page_offset_base is None else given.page_offset_base
    vmalloc = moving.vmalloc[0] if given.vmalloc_base is None else given.vmalloc_base
    vmemmap = moving.vmemmap[0] if given.vmemmap_base is None else given.vmemmap_base
    for name, value in zip(Kaslr._fields, (direct, vmalloc, vmemmap), strict=True):
        if value % GIB:
            raise _refused(f"{name} = {value:#x}", "KASLR moves by whole GiB", "a multiple of 40000000 (1 GiB)")
    limit = CPU_ENTRY_AREA
    if not moving.direct[0] <= direct < vmalloc < vmemmap < limit:
        raise _refused(
            f"page_offset_base {direct:#x}, vmalloc_base {vmalloc:#x}, vmemmap_base {vmemmap:#x}",
            "KASLR keeps their order",
            f"ascending, from {moving.direct[0]:#x} up to {limit:#x}",
        )
    if vmalloc + moving.vmalloc[1] > vmemmap:
        raise _refused(f"vmemmap_base = {vmemmap:#x}", f"vmalloc begins at {vmalloc:#x}",
                       f"at least {vmalloc + moving.vmalloc[1]:#x}")  # fmt: skip
    direct_end = min(direct + moving.direct[1], vmalloc)
    vmemmap_end = min(vmemmap + moving.vmemmap[1], limit)
    if memory is not None:
        if not 0 < memory <= direct_end - direct:
            raise _refused(f"memory = {memory} bytes", "the direct map holds all of it",
                           f"from 1 to {direct_end - direct}")  # fmt: skip
        direct_end = direct + _pages_up(memory)
        vmemmap_end = min(vmemmap_end, vmemmap + _pages_up(_pages_up(memory) // PAGE * STRUCT_PAGE))
    return [
        Area("direct map", direct, direct_end, SECRET, "all memory: the host's and every guest's"),
        _at("vmalloc", (vmalloc, moving.vmalloc[1]), MIXED, "stacks, modules' data, buffers of all kinds"),
        Area("vmemmap", vmemmap, vmemmap_end, FREE, "struct page: what a page is used for, not what is in it"),
    ]


def _image(kaslr: bool, image: Image | None) -> list[Area]:
    size = IMAGE_SIZE_KASLR if kaslr else IMAGE_SIZE
    end = IMAGE_START + size
    modules = Area("modules", end, _MODULES_END, MIXED, "code and static data of every module")
    if image is None:
        return [Area("kernel image", IMAGE_START, end, MIXED, "code and static data of the kernel"), modules]
    if not IMAGE_START <= image.text < image.etext <= image.end <= end:
        raise _refused(
            f"_text {image.text:#x}, _etext {image.etext:#x}, _end {image.end:#x}",
            f"{'with' if kaslr else 'without'} KASLR the image has {size >> 20} MiB",
            f"ascending, from {IMAGE_START:#x} to {end:#x}",
        )
    parts = [Area("kernel text", image.text, image.etext, FREE, "code: the same on every host of that kernel")]
    if image.etext < image.end:
        parts.append(Area("kernel data", image.etext, image.end, MIXED, "static data of the kernel"))
    return [*parts, modules]


def _pages_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _refused(what: str, state: str, allowed: str) -> ConfigError:
    return ConfigError(what, where="layout", state=state, allowed=allowed)


def kaslr_of(marks: Mapping[str, int]) -> Kaslr:
    """Return the bases that a page-table dump shows. marks: address of the first range after each section mark.

    A mark that is missing leaves its base where it is without KASLR.
    """
    return Kaslr(marks.get("Low Kernel Mapping"), marks.get("vmalloc() Area"), marks.get("Vmemmap"))


def image_of(table: SymbolTable) -> Image:
    """Return where a symbol table says that the kernel's image is. Raise InputError when it does not say."""
    found = []
    for names in (("_text", "_stext"), ("_etext",), ("_end",)):
        symbol = next((symbol for name in names if (symbol := table.named(name))), None)
        if symbol is None:
            raise InputError(
                f"no symbol {' or '.join(names)}",
                where="symbols",
                state=f"{len(table.rows)} symbols",
                hint="Take the whole of /proc/kallsyms, or the System.map of that kernel.",
            )
        found.append(symbol.address)
    return Image(*found)
