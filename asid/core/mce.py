"""Machine checks that reach every sibling of a core, and the rendezvous in which their handlers meet.

Rule 1. Pure: words and decisions. The engines keep the words, the step functions say when what is done.
Rule 2. A hyperthread writes its own word alone. A dead one's is closed by its coordinator, a newborn's by itself.
Rule 3. A handler asks the siblings' words, never a process; and it asks them for a limited time.

The rendezvous, as Linux has it (mce_start and mce_end of arch/x86/kernel/cpu/mce/core.c)
    The hardware raises a broadcast: it has a number, and names whom it reached, the party. Each handler calls in: it
    writes the number and its place in the order of arrival, in one atomic step. It waits until the party is in. The
    first in is the monarch, and works first; the others work in the order in which they came. Each says when it has
    worked, and all go home together when all have. The worst severity of those who are in decides for all of them.

    Linux counts arrivals in one counter, and the monarch sets it back. Here the number of the broadcast tells one
    rendezvous from the next, so nothing has to be set back, and whoever dies in it leaves nothing that counts later.

Time-out
    Whoever does not come, or does not come to an end, is missing. After the time-out the others wait no more, for
    anybody: each works at once. Who is missing is told afterwards, and is fenced; until its word is closed, nobody who
    missed it goes back into guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from asid.core.events import Do


class Severity(IntEnum):
    """What a machine check says of the data. FATAL: nothing on this core can be trusted any more."""

    CORRECTED = 0
    RECOVERABLE = 1
    FATAL = 2


class Check(NamedTuple):
    """One machine check as its hyperthread is hit by it."""

    broadcast: int = 0  # number of the broadcast that it is part of, 0 for a local one (LMCE, AMD)
    party: int = 0  # bits of the hyperthreads that the broadcast reached
    severity: Severity = Severity.RECOVERABLE


LOCAL: Final = Check()


class CallIn(NamedTuple):
    """What one hyperthread says of the last broadcast that it has to do with."""

    broadcast: int = 0
    order: int = 0  # of arrival, from 1; 0: it takes no part in this one, nor in any before it
    done: bool = False  # its handler has worked
    severity: Severity = Severity.CORRECTED


class Met(NamedTuple):
    """What a wait came to. missing: bits of those whom it had waited for when its time was out, 0 for nobody."""

    missing: int = 0
    first: bool = False  # nobody who called in before is in the rendezvous
    severity: Severity = Severity.CORRECTED  # the worst of those who are in


class Role(IntEnum):
    """What a handler is in its rendezvous; NONE until it knows."""

    NONE = 0
    MONARCH = 1  # works first
    JOINED = 2  # works when those before it have
    ALONE = 3  # its time was out, and it was not the first


AWAITS: Final = (Do.AWAIT_ALL, Do.AWAIT_TURN, Do.AWAIT_OUT)
MEETS: Final = (Do.CALL_IN, *AWAITS)  # what reads the siblings' words


def called_in(check: Check, others: Sequence[CallIn]) -> CallIn:
    """Return the word of a handler that arrives. others: the siblings' words, read in the same atomic step."""
    before = (word.order for word in others if word.broadcast == check.broadcast)
    return CallIn(check.broadcast, 1 + max(before, default=0), False, check.severity)


def closed(broadcast: int) -> CallIn:
    """Return the word of a hyperthread that takes no part in what was raised up to this broadcast: of one that has
    just been born, or is dead."""
    return CallIn(broadcast)


def is_in(word: CallIn, broadcast: int) -> bool:
    """Say whether nobody has to wait for this one to come. A later broadcast has taken an earlier one along."""
    return word.broadcast >= broadcast


def is_done(word: CallIn, broadcast: int) -> bool:
    """Say whether this one has worked, or takes no part."""
    return word.broadcast > broadcast or (word.broadcast == broadcast and (word.done or not word.order))


def awaited(do: Do, ht: int, party: int, words: Sequence[CallIn]) -> int:
    """Return the bits of those for whom `ht` still waits, 0 when the wait is over. words: by hyperthread."""
    own = words[ht]
    bits = 0
    for other, word in enumerate(words):
        if other == ht or not party >> other & 1:
            continue
        if do is Do.AWAIT_ALL:
            waits = not is_in(word, own.broadcast)
        elif do is Do.AWAIT_TURN:
            waits = _before(word, own) and not word.done
        else:
            waits = not is_done(word, own.broadcast)
        bits |= waits << other
    return bits


def unfinished(ht: int, absent: int, words: Sequence[CallIn]) -> int:
    """Return who of `absent` has still not come to an end with the last broadcast of `ht`, as bits."""
    return awaited(Do.AWAIT_OUT, ht, absent, words) if absent else 0


def met(ht: int, words: Sequence[CallIn], missing: int = 0) -> Met:
    """Return what hyperthread `ht` sees at the end of a wait."""
    own = words[ht]
    others = [word for other, word in enumerate(words) if other != ht]
    # Whoever died is closed, and is no predecessor; one that went on to a later broadcast may well have been.
    first = own.order == 1 or not any(_before(word, own) or word.broadcast > own.broadcast for word in others)
    worst = max((word.severity for word in others if word.order and word.broadcast == own.broadcast), default=0)
    return Met(missing, first, max(own.severity, Severity(worst)))


def role_of(seen: Met) -> Role:
    """Return the role of a handler that is about to work."""
    if seen.first:
        return Role.MONARCH
    return Role.ALONE if seen.missing else Role.JOINED


def _before(word: CallIn, own: CallIn) -> bool:
    return word.broadcast == own.broadcast and 0 < word.order < own.order


# --- words of the core page -------------------------------------------------------------------------------

_PARTY_BITS: Final = 8
_ORDER_BITS: Final = 8
_FATAL_SHIFT: Final = 32


def packed(word: CallIn) -> int:
    """Return a CALLIN word: broadcast << 16 | severity << 12 | done << 8 | order."""
    assert 0 <= word.order < 1 << _ORDER_BITS
    return word.broadcast << 16 | word.severity << 12 | word.done << 8 | word.order


def unpacked(word: int) -> CallIn:
    """Return what a CALLIN word says."""
    return CallIn(word >> 16, word & 0xFF, bool(word >> 8 & 1), Severity(word >> 12 & 3))


def broadcast_word(broadcast: int, party: int) -> int:
    """Return a BROADCAST word: number of the last broadcast and whom it reached."""
    assert 0 <= party < 1 << _PARTY_BITS
    return broadcast << _PARTY_BITS | party


def broadcast_parts(word: int) -> tuple[int, int]:
    """Return (broadcast, party) of a BROADCAST word."""
    return word >> _PARTY_BITS, word & (1 << _PARTY_BITS) - 1


def severity_word(word: int, severity: Severity) -> int:
    """Return a SEVERITY word after one more machine check: how many were fatal, and how many recoverable."""
    if severity is Severity.FATAL:
        return word + (1 << _FATAL_SHIFT)
    return word + (severity is Severity.RECOVERABLE)


def severity_since(word: int, taken: int) -> Severity:
    """Return the worst severity that was raised between two readings of a SEVERITY word."""
    if word >> _FATAL_SHIFT != taken >> _FATAL_SHIFT:
        return Severity.FATAL
    return Severity.CORRECTED if word == taken else Severity.RECOVERABLE


def check_of(broadcast: int, taken_broadcast: int, severity: Severity) -> Check:
    """Return the machine check that a hyperthread takes. broadcast: its BROADCAST word, and as it was when it last
    took one: a broadcast that was raised since is taken along by whichever machine check comes first."""
    number, party = broadcast_parts(broadcast)
    if number == broadcast_parts(taken_broadcast)[0]:
        return Check(0, 0, severity)
    return Check(number, party, severity)


# --- what must hold ---------------------------------------------------------------------------------------


class Meeting(NamedTuple):
    """One hyperthread's #MC handler, seen from outside; the fields from `broadcast` to `late` are 0 without one."""

    taken: int = 0  # number of the last broadcast that it was hit by
    broadcast: int = 0
    party: int = 0
    role: Role = Role.NONE
    works: bool = False  # it has its role and has not called out
    late: bool = False  # a wait of it was timed out
    failed: bool = False  # a #MC was fatal, here or on a sibling


def broken(meetings: Sequence[Meeting | None]) -> str | None:
    """G10 of the rendezvous, None when it holds. A dead hyperthread is None.

    One monarch at a time; nobody works who was told that all are in before everybody was hit; and of those whose
    waits ended in time one works at a time. Broken by: an order of arrival that is not atomic; a word of an earlier
    rendezvous that counts.
    """
    for ht, m in enumerate(meetings):
        if m is None or not m.role:
            continue
        for other, o in enumerate(meetings):
            if o is None or other == ht or not m.party >> other & 1:
                continue
            same = o.broadcast == m.broadcast
            if same and m.role is o.role is Role.MONARCH and other > ht:
                return f"h{ht} and h{other} are both monarch of machine check {m.broadcast}"
            if not m.late and o.taken < m.broadcast:
                return f"h{ht} works in machine check {m.broadcast} as if h{other} had come, and it was not even hit"
            if same and m.works and o.works and not m.late and not o.late and other > ht:
                return f"h{ht} and h{other} work at once in machine check {m.broadcast}"
    return None
