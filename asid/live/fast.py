"""The hot loop: fast exits of one lease, with no message and no step function.

It does to the page exactly what the step functions order for a fast exit, in the same order:

    announce an instruction -> fence -> boundary (pending bit and interrupt lines clear: it runs) -> MODE=ISOLATED
    -> work -> MODE=ENTER -> announce the next one -> fence
    -> look (own pending bit, own request word, siblings' flags and depths) -> MODE=GUEST

An instruction is announced in INSNS before the fence in front of its boundary, and taken back when the boundary stops
it. So whoever sets the pending bit and then reads INSNS has counted the one that may still be in flight.

`tests/live/test_fast.py` compares the two access by access. Whatever is not all clear leaves the loop, with the page
as the step functions would have it at that point.

What the buffers hold is not looked at, for under the policies that the loop is for it cannot keep a guest out by itself
(see `sees_all`). Under the others exits are taken in steps.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from asid.core.events import Kick, Mode
from asid.core.hyperthread import Spec
from asid.live.page import DEPTH, FLAG, INSNS, MCE, MODE, NMI, PENDING, REQUEST, base_of


class Left(IntEnum):
    """Why the loop ended, and so where the hyperthread stands."""

    DONE = 0  # in guest, all n exits done
    INTERRUPTED = 1  # in guest, a boundary found the pending bit or an injected NMI or #MC
    LOOKING = 2  # ENTER is published, the look was not clear


def sees_all(spec: Spec) -> bool:
    """Say whether the loop, under a policy, looks at all that may keep its guest out.

    Where siblings in HOST are heeded, none gets there to taint the buffers beside a lease but behind its flag, its
    depth or our pending bit, and that bit stays until a step clears it (G9, as the explorer has it). A leave that tells
    nobody taints them beside a running guest, and then each entry has a flush to do.
    """
    heeded = spec.guarded and Kick.BARE not in (spec.kick, spec.idle_kick, spec.irq_kick)
    return heeded or not spec.flush


def run_fast(
    words: memoryview[int] | list[int],
    own: int,
    siblings: tuple[int, ...],
    fence: Callable[[], object],
    *,
    vm: int,
    answered: int,
    interrupts: tuple[int, int],
    n: int,
) -> tuple[int, Left]:
    """Take up to n fast exits without service time. Return how many were completed or begun, and why it ended.

    words: the core page; own: first word of this hyperthread (see page.base_of); siblings: the other hyperthreads.
    interrupts: NMIs and #MCs delivered so far. An exit whose look was not clear counts: its handler has run.
    """
    mode, pending, request, insns = own + MODE, own + PENDING, own + REQUEST, own + INSNS
    nmi, mce = own + NMI, own + MCE
    nmis, mces = interrupts
    isolated, enter, guest = Mode.ISOLATED | vm << 8, Mode.ENTER | vm << 8, Mode.GUEST | vm << 8
    holds = tuple(base_of(other) + field for other in siblings for field in (FLAG, DEPTH))
    announced = words[insns] + 1
    words[insns] = announced
    fence()
    for done in range(n):
        if words[pending] or words[nmi] != nmis or words[mce] != mces:
            words[insns] = announced - 1
            return done, Left.INTERRUPTED
        words[mode] = isolated
        words[mode] = enter
        announced += 1
        words[insns] = announced
        fence()
        if words[pending] or words[request] != answered:
            words[insns] = announced - 1
            return done + 1, Left.LOOKING
        for at in holds:
            if words[at]:
                words[insns] = announced - 1
                return done + 1, Left.LOOKING
        words[mode] = guest
    words[insns] = announced - 1
    return n, Left.DONE
