"""A TLB with PCIDs: what a switch flushes, what NOFLUSH keeps, and what an unmap leaves behind.

Rule 1. An entry is found under the PCID that it was filled under; a global one under every PCID, of isolated spaces
        too. So a kernel that isolates has no global ones (CR4.PGE off, as with PTI): that is the default here.
Rule 2. Writing CR3 flushes the entries of the new PCID, unless NOFLUSH (bit 63) is set; global ones stay.
Rule 3. A TLB knows no table: an entry that was filled before a change is used after it, until it is flushed. So what
        is unmapped stays reachable on every CPU that had it: a space that lost a range is not yet without it.
Rule 4. Only what is present is kept; a miss is asked of the table each time.

Whether to flush at entry
    Per CPU and space the generation of the table at the last flush is kept; NOFLUSH is set when it is still that one.
    The generation is read after the space was announced as entered, so a change that came in between sends an IPI or is
    seen here, as in the posting of 2022.

Sources: Intel SDM volume 3A, 4.10; linux arch/x86/mm/tlb.c; the number of a PCID as in the posting of 2025:
kern_pcid(asid) in the low bits and one more than the space's index above.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from asid.errors import MappingRefused
from asid.mm.entry import ENTRIES, GLOBAL, PAGE, Level
from asid.mm.pagetable import PageTable

ENTRIES_MAX: Final = 1536  # of a second-level TLB of Skylake
PCIDS: Final = 1 << 12
ASIDS: Final = 6  # TLB_NR_DYN_ASIDS
ASI_SHIFT: Final = 9  # two bits above those of the ASIDs, below PTI's
_ANY: Final = -1  # the PCID of global entries

_Key = tuple[int, int]  # PCID, first address of what is translated


def pcid_of(asid: int, space: int | None = None) -> int:
    """Return the PCID of an address space. asid: of the process, from 0. space: of an isolated one its index, from 0.

    Raise MappingRefused, EINVAL, for what has none: there are 6 ASIDs and 3 isolated spaces of each.
    """
    if not 0 <= asid < ASIDS or not (space is None or 0 <= space < 3):
        raise MappingRefused(
            "EINVAL",
            f"there is no PCID of ASID {asid}, space {space}",
            where="TLB",
            state=f"{PCIDS} PCIDs",
            allowed=f"an ASID from 0 to {ASIDS - 1}, and an isolated space from 0 to 2",
            hint="Give an ASID back first, as the kernel does with the one that was used longest ago.",
        )
    return asid + 1 | (0 if space is None else space + 1 << ASI_SHIFT)


class Tlb:
    """The TLB of one hyperthread. pge: obey the GLOBAL flag. entries_max: then the one used longest ago goes."""

    def __init__(self, *, pge: bool = False, entries_max: int = ENTRIES_MAX) -> None:
        self.pge: Final = pge
        self.entries_max: Final = entries_max
        self.pcid = 0
        self.fills = 0
        self.hits = 0
        self.flushed = 0
        self._entries: OrderedDict[_Key, tuple[int, int]] = OrderedDict()  # (entry, bytes)
        self._seen: dict[int, int] = {}  # by PCID: generation of its table when it was last flushed

    def __len__(self) -> int:
        return len(self._entries)

    # --- translating --------------------------------------------------------------------------------------

    def translate(self, table: PageTable, address: int) -> int:
        """Return the entry that an access uses, which may be one that the table has no more; 0 when it faults."""
        for pcid in (self.pcid, _ANY):
            for span in (PAGE, ENTRIES * PAGE, ENTRIES * ENTRIES * PAGE):
                key = pcid, address & -span
                found = self._entries.get(key)
                if found is not None and found[1] == span:
                    self._entries.move_to_end(key)
                    self.hits += 1
                    return found[0]
        walk = table.walk(address)
        if walk.entry:
            self._fill(walk.level, walk.entry, address)
        return walk.entry

    def stale(self, table: PageTable, pcid: int) -> tuple[int, ...]:
        """Return the addresses that are still translated under a PCID and otherwise, or not at all, by its table."""
        return tuple(
            sorted(
                start
                for (tag, start), (entry, _) in self._entries.items()
                if tag in (pcid, _ANY) and table.lookup(start) != entry
            )
        )

    def _fill(self, level: Level, entry: int, address: int) -> None:
        span = PAGE << 9 * level
        self._entries[_ANY if self.pge and entry & GLOBAL else self.pcid, address & -span] = entry, span
        self.fills += 1
        while len(self._entries) > self.entries_max:
            self._entries.popitem(last=False)

    # --- switching and flushing ---------------------------------------------------------------------------

    def write_cr3(self, pcid: int, *, noflush: bool = False) -> int:
        """Load the table of a PCID, and return how many entries that flushed."""
        self.pcid = pcid
        return 0 if noflush else self.flush(pcid)

    def enter(self, pcid: int, table: PageTable) -> bool:
        """Load a table, and keep its entries if it has not changed since they were flushed. Return whether they were
        kept."""
        generation = table.generation
        noflush = self._seen.get(pcid) == generation
        self.write_cr3(pcid, noflush=noflush)
        self._seen[pcid] = generation
        return noflush

    def flush(self, pcid: int) -> int:
        """Flush the entries of a PCID, not global ones, and return how many (INVPCID type 1)."""
        return self._drop([key for key in self._entries if key[0] == pcid])

    def flush_all(self) -> int:
        """Flush every entry, global ones too (INVPCID type 2), and forget which tables were seen."""
        self._seen.clear()
        return self._drop(list(self._entries))

    def flush_page(self, address: int) -> int:
        """Flush what translates an address under the loaded PCID, and global entries for it (INVLPG)."""
        gone = [
            key for key, (_, span) in self._entries.items() if key[0] in (self.pcid, _ANY) and key[1] == address & -span
        ]
        return self._drop(gone)

    def _drop(self, keys: list[_Key]) -> int:
        for key in keys:
            del self._entries[key]
        self.flushed += len(keys)
        return len(keys)
