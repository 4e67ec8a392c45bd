"""How a naive variant of the protocol is planted: by replacing functions of `asid.core` and of the explorer's page.

Each variant is what a sensible person might have written. `explore_table` says which rule each breaks, a small model
that shows it, and what becomes of it: `unsafe` (a guarantee is broken), `deadlock`, `starvation`, or `passes`, for
those that look wrong and are not. Nothing of this is reachable from `asid/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from asid.core import hyperthread
from asid.core.hyperthread import What
from asid.explore.parts import Model

Plant = Callable[[ExitStack], None]


class Mutant(NamedTuple):
    """One naive variant."""

    name: str
    naive: str
    model: Model
    verdict: str
    how: str  # it fails, or why it does not
    cure: str
    plant: Plant


def put(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(owner, name, value))


def put_item(stack: ExitStack, table: Any, **changes: Any) -> None:
    stack.enter_context(patch.dict(table, changes))


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The protocol with one naive part in it."""
    with ExitStack() as stack:
        mutant.plant(stack)
        yield


def plain(stack: ExitStack, what: What, function: Any) -> None:
    """Replace the function of an event that has no more to it than the state."""
    stack.enter_context(patch.dict(hyperthread._PLAIN, {what: function}))
