"""The vCPU tasks in an isolated address space: task_struct, stack, mm_struct and PGD of each, counted and shared.

Rule 1. A task stays mapped while it has been mapped more often than unmapped, or until it ends.
Rule 2. Threads of one process have their mm_struct and PGD in common; what is shared goes with the last of them.
Rule 3. Two live tasks have no other memory in common. When one is mapped over a buffer of another, the other is dead
        and its memory was given away: all it had is unmapped, and the address is copied again as the host has it now.

The RFC's version 1 marks a task as mapped and takes it for the only one of its vCPU: a stack that was freed and given
to another task stayed mapped as it had been.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from asid.errors import MappingRefused
from asid.mm.space import Space

K = TypeVar("K")
V = TypeVar("V")


class Buffer(NamedTuple):
    """Memory of a task. shared: other live tasks may have it too (mm_struct, PGD); then in the same size."""

    start: int
    size: int
    what: str
    shared: bool = False

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size


class Mapped(NamedTuple):
    """A task. references: how often it was mapped and not unmapped. buffers: none when it has ended."""

    references: int
    buffers: tuple[Buffer, ...]


class Tasks:
    """The tasks mapped into one space. A task is named by what is never used again, such as (pid, start time).

    split: see Space.map.
    """

    def __init__(self, space: Space, *, split: bool = False) -> None:
        self.space = space
        self.split = split
        self._tasks: dict[Hashable, Mapped] = {}
        self._users: dict[int, tuple[Hashable, ...]] = {}  # by the start of a buffer

    def references(self, task: Hashable) -> int:
        """Return how often a task was mapped and not unmapped."""
        known = self._tasks.get(task)
        return known.references if known else 0

    def is_mapped(self, task: Hashable) -> bool:
        """Say whether a task's buffers are mapped. Not those of one that has ended."""
        known = self._tasks.get(task)
        return bool(known and known.buffers)

    def map(self, task: Hashable, buffers: Sequence[Buffer]) -> None:
        """Map a task, or count one more user of it. Raise MappingRefused: EINVAL if it was mapped with other buffers,
        and as Space.map does."""
        known = self._tasks.get(task, Mapped(0, ()))
        if known.buffers and known.buffers != tuple(buffers):
            raise self._refused(
                task,
                f"these are not its buffers: {_listed(buffers)}",
                state=f"mapped with {_listed(known.buffers)}",
                allowed="the same buffers again",
                hint="Two tasks need two names; the end of the first one has to be said if the name is used again.",
            )
        with self.space.table.all_or_nothing():
            if not known.buffers:
                for buffer in buffers:
                    self._map(task, buffer)
            self._set(self._tasks, task, Mapped(known.references + 1, tuple(buffers)))

    def unmap(self, task: Hashable) -> None:
        """Count one user of a task less, and unmap it with the last. Raise MappingRefused, EINVAL, if it has none."""
        known = self._tasks.get(task)
        if known is None:
            raise self._refused(
                task,
                "it is unmapped more often than it was mapped",
                state=f"{len(self._tasks)} tasks are known",
                allowed="a task that was mapped and has a user left",
                hint="Each map of a task goes with one unmap.",
            )
        with self.space.table.all_or_nothing():
            if known.references > 1:
                self._set(self._tasks, task, known._replace(references=known.references - 1))
                return
            self.end(task)
            self._set(self._tasks, task, None)

    def end(self, task: Hashable) -> None:
        """Unmap what a task that has ended had, whoever still counts on it: the kernel frees its stack now. Its users
        may unmap it as often as they mapped it."""
        known = self._tasks.get(task)
        if known is None or not known.buffers:
            return
        with self.space.table.all_or_nothing():
            for buffer in known.buffers:
                left = tuple(user for user in self._users[buffer.start] if user != task)
                self._set(self._users, buffer.start, left or None)
                if not left:
                    self.space.unmap(buffer.start)
            self._set(self._tasks, task, known._replace(buffers=()))

    def _map(self, task: Hashable, buffer: Buffer) -> None:
        for seen in self.space.sharing(buffer.start, buffer.end):
            for user in self._users.get(seen.start, ()):
                if user != task and not self._may_share(user, buffer):
                    self.end(user)
        users = self._users.get(buffer.start, ())
        if not users:
            self.space.map(buffer.start, buffer.size, what=buffer.what, split=self.split)
        self._set(self._users, buffer.start, (*users, task))

    def _may_share(self, user: Hashable, buffer: Buffer) -> bool:
        """Say whether a live task can have this buffer, or memory in it, beside another one."""
        return all(
            other.end <= buffer.start
            or buffer.end <= other.start
            or (other.shared and buffer.shared and other[:2] == buffer[:2])
            for other in self._tasks[user].buffers
        )

    def _set(self, table: dict[K, V], key: K, value: V | None) -> None:
        """Set or, with None, remove an item of a dict, and have that undone with the rest."""
        old = table.get(key)
        self.space.table.on_undo(partial(_put, table, key, old))
        _put(table, key, value)

    def _refused(self, task: Hashable, what: str, *, state: str, allowed: str, hint: str) -> MappingRefused:
        return MappingRefused(
            "EINVAL", what, where=f"{self.space.name}, task {task}", state=state, allowed=allowed, hint=hint
        )


def _listed(buffers: Sequence[Buffer]) -> str:
    return ", ".join(f"{buffer.what} at {buffer.start:#x}" for buffer in buffers)


def _put(table: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
