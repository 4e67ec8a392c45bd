"""What a mapping buys and what it costs: full exits a second against bytes exposed, object by object, the best first.

Rule 1. Objects come in groups: all that one kind of exit still misses, for with less of it that exit stays full.
Rule 2. Next is the group that saves the most full exits a second for each byte that it exposes; of equals the smaller,
        then the one that is missed first. So the curve falls steeply first, and the reader may stop anywhere.
Rule 3. What is refused as secret comes behind all else, as further points: what mapping secrets would buy.
Rule 4. Each point is measured with all before it mapped: what two objects share counts once, at the first.

The saving of a group shows at its last object; those before it cost and save nothing yet. An object that lies in a page
that an earlier one exposed is no point: nothing misses it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

GROUPS: Final = "Objects of one GROUP are what one kind of exit misses: none of them saves anything without the others."


class Lack(NamedTuple):
    """One kind of exit that is full: what it misses, in the order of the code, and how often it comes a second.

    objects: empty when it is full whatever is mapped.
    """

    objects: tuple[str, ...]
    rate_hz: float


class Space(Protocol):
    """One VM's space while its curve is made. exits_hz: all exits a second, fast and full."""

    exits_hz: float

    def lacks(self) -> Sequence[Lack]:
        """Return the kinds of exits that are full now."""

    def exposes(self, name: str) -> int:
        """Return how many bytes mapping an object would expose."""

    def is_refused(self, name: str) -> bool:
        """Say whether an object is secret and not allowed."""

    def map(self, name: str) -> None:
        """Map an object."""

    def exposed(self) -> tuple[int, int]:
        """Return how many bytes are mapped, and how many of these are of others."""


class Point(NamedTuple):
    """The space with one object more: cumulative figures.

    object: "" for the beginning. group: see Rule 1; 0 for the beginning. mapped, secret: bytes reachable, and those of
    the host or of other VMs among them. full_hz, full: full exits that are left, a second and as a part of all, 0 to 1.
    refused: to be had only with secrets.
    """

    object: str
    group: int
    mapped: int
    secret: int
    full_hz: float
    full: float
    refused: bool


def curve(space: Space) -> tuple[Point, ...]:
    """Return the points of a space, the first of them as it is now. Map everything that makes an exit fast."""
    lacks = space.lacks()
    points = [_point(space, lacks, "", 0, False)]
    group = 0
    for refused in (False, True):
        while names := best(space, lacks, refused):
            group += 1
            for name in names:
                if not any(name in lack.objects for lack in lacks):
                    continue
                space.map(name)
                lacks = space.lacks()
                points.append(_point(space, lacks, name, group, refused))
    return tuple(points)


def best(space: Space, lacks: Sequence[Lack], refused: bool) -> tuple[str, ...]:
    """Return the objects to map next, see Rule 2; none when nothing more is to be had. refused: take secrets too."""
    candidates = dict.fromkeys(lack.objects for lack in lacks if lack.objects)
    found: tuple[str, ...] = ()
    found_rank = (0.0, 0)
    for names in candidates:
        if not refused and any(space.is_refused(name) for name in names):
            continue
        cost = sum(space.exposes(name) for name in names)
        saves_hz = sum(lack.rate_hz for lack in lacks if lack.objects and set(lack.objects) <= set(names))
        rank = saves_hz / max(1, cost), -cost
        if not found or rank > found_rank:
            found, found_rank = names, rank
    return found


def _point(space: Space, lacks: Sequence[Lack], name: str, group: int, refused: bool) -> Point:
    full_hz = sum(lack.rate_hz for lack in lacks)
    full = full_hz / space.exits_hz if space.exits_hz else 0.0
    return Point(name, group, *space.exposed(), full_hz, full, refused)
