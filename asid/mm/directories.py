"""Directories of page tables: whose each is, the one door through which entries are written, and the way back.

Rule 1. A directory belongs to the table that allocated it, for ever; its address is never given away again.
Rule 2. Only its owner writes into a directory (G7). A table that copied an entry which points at one reads through it.
Rule 3. What others point at is not released.
Rule 4. What is refused has changed nothing: every change leaves its undoing behind until the outermost operation ends.

Not to be confused with Linux's list of struct pgt_directory, which records the same ownership by pages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from asid.errors import MappingRefused
from asid.mm.entry import ENTRIES, FRAME, PAGE, PRESENT, PSE, Level

# 1 GiB of directories. A host of 64 GiB in entries of 2 MiB has about 70.
DIRECTORIES_MAX: Final = 1 << 18


class Directory:
    """512 entries of one level. borrowed: entries of tables other than the owner's that point at it."""

    __slots__ = ("borrowed", "entries", "level", "owner")

    def __init__(self, level: Level, owner: Directories) -> None:
        self.entries = [0] * ENTRIES
        self.level = level
        self.owner = owner
        self.borrowed = 0


class Frames:
    """The page frames in which the directories of all tables of one host are, by physical address."""

    __slots__ = ("_next", "directories")

    def __init__(self) -> None:
        self.directories: dict[int, Directory] = {}
        self._next = PAGE

    def take(self, directory: Directory) -> int:
        """Put a directory into a frame that none has been in before, and return its address."""
        at = self._next
        self._next += PAGE
        self.directories[at] = directory
        return at


class Directories:
    """The directories that one table owns.

    own: their levels by address. changes: operations that changed something. lenders: owners of directories that this
    table has pointed at.
    """

    __slots__ = ("_depth", "_undo", "changes", "frames", "lenders", "name", "own", "own_max")

    def __init__(self, name: str, frames: Frames, own_max: int) -> None:
        self.name = name
        self.frames = frames
        self.own_max = own_max
        self.own: dict[int, Level] = {}
        self.lenders: tuple[Directories, ...] = ()
        self.changes = 0
        self._undo: list[Callable[[], object]] = []
        self._depth = 0

    @property
    def generation(self) -> int:
        """Grows with each change of what an address may be translated to, in the directories of lenders as well."""
        return self.changes + sum(lender.generation for lender in self.lenders)

    # --- one operation, whole or not at all ---------------------------------------------------------------

    def all_or_nothing(self) -> AllOrNothing:
        """Return a context whose changes are all undone when it is left by an exception. Contexts nest."""
        return AllOrNothing(self)

    def on_undo(self, action: Callable[[], object]) -> None:
        """Have `action` done, last first, if the context that is open is undone."""
        assert self._depth, "a change outside all_or_nothing() could not be undone"
        self._undo.append(action)

    def enter(self) -> int:
        """Open a context; return the mark to leave it with."""
        self._depth += 1
        return len(self._undo)

    def leave(self, mark: int, failed: bool) -> None:
        """Close a context, and undo what was done in it if it failed."""
        self._depth -= 1
        while failed and len(self._undo) > mark:
            self._undo.pop()()
        if not self._depth:
            self.changes += bool(self._undo)
            self._undo.clear()

    # --- directories --------------------------------------------------------------------------------------

    def owns(self, at: int) -> bool:
        """Say whether the directory at `at` is this table's."""
        return at in self.own

    def allocate(self, level: Level) -> int:
        """Return the address of a new, empty directory of `level`. Raise MappingRefused, ENOMEM, at the limit."""
        if len(self.own) >= self.own_max:
            raise MappingRefused(
                "ENOMEM",
                f"no room for another {level.name} directory",
                where=self.name,
                state=f"it has {len(self.own)} directories",
                allowed=f"at most {self.own_max}",
                hint="Unmap what is no longer needed, or create the table with a higher limit.",
            )
        at = self.frames.take(Directory(level, self))
        self.own[at] = level
        self.on_undo(partial(self._drop, at))
        return at

    def release(self, at: int) -> None:
        """Give back a directory whose own entry was cleared. Raise MappingRefused, EBUSY, if another table has one."""
        directory = self.ours(at)
        if directory.borrowed:
            raise MappingRefused(
                "EBUSY",
                f"its {directory.level.name} directory at {at:#x} cannot be released",
                where=self.name,
                state=f"{directory.borrowed} entries of other tables point at it",
                allowed="one that no other table points at",
                hint="Clear what was copied from it by reference first, or free those tables.",
            )
        self._drop(at)
        self.on_undo(partial(self._take_back, at, directory))

    def write(self, at: int, index: int, value: int) -> None:
        """Set one entry. Raise MappingRefused, EINVAL, if the directory is not this table's."""
        directory = self.ours(at)
        old = directory.entries[index]
        if old == value:
            return
        if directory.level is not Level.PTE:
            self._borrow(old, -1)
            self._borrow(value, +1)
        directory.entries[index] = value
        self.on_undo(partial(directory.entries.__setitem__, index, old))

    def write_leaves(self, at: int, first: int, values: list[int]) -> None:
        """Set entries from `first` on, none of which points at a directory before or after.

        Raise MappingRefused, EINVAL, if the directory is not this table's.
        """
        directory = self.ours(at)
        run = slice(first, first + len(values))
        old = directory.entries[run]
        assert directory.level is Level.PTE or not any(old), "what they point at would not be told"
        if old != values:
            directory.entries[run] = values
            self.on_undo(partial(directory.entries.__setitem__, run, old))

    def ours(self, at: int, where: str = "") -> Directory:
        """Return a directory that must be this table's. where: what leads to it. Raise MappingRefused, EINVAL."""
        directory = self.frames.directories[at]
        if directory.owner is not self:
            raise MappingRefused(
                "EINVAL",
                f"the {directory.level.name} directory at {at:#x} belongs to {directory.owner.name}",
                where=where or self.name,
                state="it was copied by reference, and a change would be one of its owner's table",
                allowed=f"a directory that {self.name} allocated",
                hint="Clear the range at the level at which it was mapped, or map it at a lower one.",
            )
        return directory

    def _borrow(self, entry: int, step: int) -> None:
        if not entry & PRESENT or entry & PSE:
            return
        directory = self.frames.directories[entry & FRAME]
        if directory.owner is self:
            return
        if step > 0 and directory.owner not in self.lenders:
            self._lend_from(directory.owner)
        self._lend(directory, step)
        self.on_undo(partial(self._lend, directory, -step))

    def _lend_from(self, owner: Directories) -> None:
        if owner.depends_on(self):
            raise MappingRefused(
                "EINVAL",
                f"it cannot point at a directory of {owner.name}",
                where=self.name,
                state=f"{owner.name} has pointed at directories of {self.name}",
                allowed="a table that points at none of its own",
                hint="Copy from the host into isolated tables, never the other way round.",
            )
        self.lenders += (owner,)

    def depends_on(self, other: Directories) -> bool:
        """Say whether this table has pointed at directories of `other`, itself or through its lenders."""
        return self is other or any(lender.depends_on(other) for lender in self.lenders)

    @staticmethod
    def _lend(directory: Directory, step: int) -> None:
        directory.borrowed += step

    def _drop(self, at: int) -> None:
        del self.own[at]
        del self.frames.directories[at]

    def _take_back(self, at: int, directory: Directory) -> None:
        self.own[at] = directory.level
        self.frames.directories[at] = directory


class AllOrNothing:
    """Changes of one table that are made as a whole. See Directories.all_or_nothing."""

    __slots__ = ("_directories", "_mark")

    def __init__(self, directories: Directories) -> None:
        self._directories = directories

    def __enter__(self) -> None:
        self._mark = self._directories.enter()

    def __exit__(self, kind: object, fault: object, trace: object) -> None:
        self._directories.leave(self._mark, failed=kind is not None)
