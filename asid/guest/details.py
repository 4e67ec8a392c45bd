"""What an exit asks for beyond the least: an exit is known by its reason, and its details are drawn.

A table of counts, and most recordings, say that there was an EPT_MISCONFIG and not for which device. What its details
were decides what its handling touches, so they are drawn, by the share that `asid.core.exits` has of its reason. Where
a recording says that an exit went on to the VMM, it went there, and nothing is drawn.

Pure: a draw comes in as a number in [0, 1), parts go out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from asid.core.exits import Isa, find_number
from asid.mm.footprint import footprint, parts_for, usual_parts
from asid.mm.parts import Part

TO_USERSPACE: Final = "prepare_exit_to_usermode"


class Details(NamedTuple):
    """Of exits of one number: `usual` is what each asks for, `further` what a share of them does instead."""

    usual: frozenset[Part]
    further: frozenset[Part]
    share: float

    def parts(self, draw: float) -> frozenset[Part]:
        """Return the parts of one exit. draw: uniform in [0, 1), from the caller's own seeded source."""
        assert 0.0 <= draw < 1.0, draw
        return self.further if draw < self.share else self.usual


@lru_cache(maxsize=1024)
def details_of(isa: Isa, number: int) -> Details:
    """Return the details that exits of a number have. Those of unknown numbers, and failed entries, have no choice."""
    usual = usual_parts(isa, number)
    row = None if isa == "vmx" and number & 1 << 31 else find_number(isa, number)
    if row is None or not row.when:
        return Details(usual, usual, 0.0)
    return Details(usual, parts_for(isa, number, row.when, True), row.share)


def went_to_vmm(isa: Isa, number: int) -> frozenset[Part] | None:
    """Return the parts of an exit that went on to the VMM; None when its handler would not have taken it there.

    Then it did for another reason (a signal, a request of the VMM), and needed the full address space whatever it was.
    """
    parts = parts_for(isa, number, "userspace", True)
    return parts if any(access.function == TO_USERSPACE for access in footprint(isa, number, parts)) else None


def stayed_in_kernel(isa: Isa, number: int, draw: float) -> frozenset[Part]:
    """Return the parts of an exit that is known not to have gone on to the VMM. draw: as in `Details.parts`."""
    row = find_number(isa, number)
    if row is not None and row.when == "userspace":
        return details_of(isa, number).usual
    return details_of(isa, number).parts(draw)
