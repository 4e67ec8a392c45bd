"""Numbers for things: the parts of a world are told from each other by small numbers, BITS bits each."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

BITS: Final = 20
MASK: Final = (1 << BITS) - 1

T = TypeVar("T", bound=Hashable)


class Interner(Generic[T]):
    """Numbers for hashable things, both ways."""

    __slots__ = ("ids", "things")

    def __init__(self) -> None:
        self.ids: dict[T, int] = {}
        self.things: list[T] = []

    def __call__(self, thing: T) -> int:
        number = self.ids.get(thing)
        if number is None:
            number = self.ids[thing] = len(self.things)
            assert number <= MASK, "more parts than a field of the world can count"
            self.things.append(thing)
        return number
