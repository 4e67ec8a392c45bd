"""Which exits of a block are fast, what each takes, and what those that were fast come to in counts.

Needs numpy, which is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from asid.core.record import BUCKETS, BUCKETS_PER_OCTAVE, bucket_of
from asid.core.tally import Tally
from asid.guest.base import Exit

if TYPE_CHECKING:
    from numpy import bool_, intp
    from numpy.typing import NDArray

    from asid.guest.arrays import Block, Floats, Ints

    Tags = NDArray[intp]  # what numpy counts with
    Bools = NDArray[bool_]

FEW: Final = 8  # kinds that are counted one by one


class Rules(NamedTuple):
    """What exits of each kind come to.

    fast, and fast_polled where it is a halt that is polled for: whether it is fast, and nothing is to be told of it.
    rows, rows_polled: the row that it is counted in, see `_count_drawn`; 0 where it is not, or has a time of its own:
    once: (kind, the time that each exit of it takes) of those that are fast.
    """

    kinds: list[Exit]
    fast: Bools
    fast_polled: Bools
    rows: Tags
    rows_polled: Tags
    once: list[tuple[int, int]]
    poll_ns: int

    def takes(self, block: Block) -> tuple[Ints, Bools]:
        """Return what the handler of each exit takes, and whether it is fast."""
        fast = self.fast.take(block.kind, mode="clip")
        asleep = block.wake > 0
        if not asleep.any():
            return block.service, fast
        polled = asleep & (block.wake <= self.poll_ns)
        fast[asleep] = (self.fast_polled[block.kind] & polled)[asleep]
        return block.service + block.wake * polled, fast


def rules_of(
    kinds: Sequence[Exit], fast: list[bool], fast_polled: list[bool], fixed: Sequence[int], poll_ns: int
) -> Rules:
    """Return the rules of some kinds. fixed: the time that each exit of a kind takes, -1 where they differ; it may be
    shorter."""
    import numpy as np

    once = [(k, ns) for k, ns in enumerate(fixed) if ns >= 0 and fast[k]]
    drawn = np.array(fast, np.bool_)
    drawn[[k for k, _ in once]] = False
    numbers = 2 * np.arange(len(kinds)) + 1
    polled = np.array(fast_polled, np.bool_)
    return Rules(
        [*kinds], np.array(fast, np.bool_), polled, numbers * drawn, (numbers + 1) * polled, once, poll_ns
    )  # fmt: skip


def count_fast(block: Block, took: Ints, apart: Sequence[int], rules: Rules, into: Tally) -> None:
    """Count the fast exits of a block. took: by handlers; apart: exits that somebody else counts."""
    if rules.once:
        _count_once(block, apart, rules, into)
    if rules.rows.any() or block.wake.any():
        _count_drawn(_tags(block, took, apart, rules), took, rules.kinds, into)


def _count_once(block: Block, apart: Sequence[int], rules: Rules, into: Tally) -> None:
    """Count those whose time is the same for all of a kind."""
    import numpy as np

    if len(rules.kinds) > FEW:
        numbers = np.bincount(block.kind, minlength=len(rules.kinds)).tolist()
    else:
        numbers = [int(np.count_nonzero(block.kind == k)) for k in range(len(rules.kinds))]
    for i in apart:
        numbers[block.kind[i]] -= 1
    for k, took_ns in rules.once:
        n, ns, kind = numbers[k], max(1, took_ns), rules.kinds[k]
        if n:
            into.add_all(kind.reason, kind.isa, n * ns, ns, ns, {bucket_of(took_ns): n})


def _tags(block: Block, took: Ints, apart: Sequence[int], rules: Rules) -> Tags:
    """Return what each exit is counted by."""
    tags = rules.rows[block.kind]
    asleep = block.wake > 0
    if asleep.any():
        tags[asleep] = (rules.rows_polled[block.kind] * (block.wake <= rules.poll_ns))[asleep]
    tags *= BUCKETS
    tags += buckets(took)
    tags[[*apart]] = 0
    return tags


def buckets(ns: Ints) -> Tags:
    """Return `asid.core.record.bucket_of` of each."""
    import numpy as np

    short = _short_buckets()
    if len(ns) and int(ns.max()) < len(short):
        return short[ns]
    octaves: Floats = np.log2(np.maximum(ns, 1))
    return (BUCKETS_PER_OCTAVE * octaves).astype(np.intp)


@cache
def _short_buckets() -> Tags:
    """Return the buckets of the durations below 65,536 ns."""
    import numpy as np

    return np.array([bucket_of(ns) for ns in range(1 << 16)], np.intp)


def _count_drawn(tags: Tags, took: Ints, kinds: list[Exit], into: Tally) -> None:
    """Count exits by reason. tags: row * BUCKETS + bucket; row 0 is of those that are counted elsewhere, the others are
    2 * kind + polled + 1."""
    import numpy as np

    hist = np.bincount(tags)
    hist = np.pad(hist, (0, -len(hist) % BUCKETS)).reshape(-1, BUCKETS)
    for row in np.flatnonzero(hist.any(axis=1)).tolist():
        if not row:
            continue
        cells = np.flatnonzero(hist[row]).tolist()
        low = high = took[tags == row * BUCKETS + cells[0]]
        if len(cells) > 1:
            high = took[tags == row * BUCKETS + cells[-1]]
        low_ns, high_ns = max(1, int(low.min())), max(1, int(high.max()))
        found = {cell: int(hist[row, cell]) for cell in cells}
        if low_ns == high_ns:
            total_ns = low_ns * sum(found.values())
        else:
            total_ns = int(np.maximum(took[tags // BUCKETS == row], 1).sum())
        kind, polled = kinds[(row - 1) // 2], (row - 1) % 2
        into.add_all(kind.reason, kind.isa, total_ns, low_ns, high_ns, found, "polled" * polled)
