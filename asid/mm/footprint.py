"""Footprints: what the handling of one exit touches, access by access, from the moment the guest has stopped.

Rule 1. Total: every exit number has a footprint. One that no table has, and an entry that failed, is handed to the VMM.
Rule 2. A footprint is the same for the same exit and parts; the order of its accesses is that of the code.
Rule 3. Nothing here knows of a mapping. What is isolated, and what not, is asked of an address space.

Parts
    What a handler does beyond the least depends on the exit's details: `Part` names what may come on top. Where nothing
    is known of an exit, it has its usual parts: a HLT blocks, and an EPT violation needs a page.

Offsets
    A touch whose instruction the RFC shows has its offset; the others lie evenly over the function. They tell places
    apart in a report and mean nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from asid.core.exits import VMX_BASIC_MASK, Isa, find, name_of, normal_number
from asid.core.exits_vmx import VMX_FLAGS
from asid.errors import InputError
from asid.mm import footprint_svm, footprint_vmx
from asid.mm.functions import MODULES
from asid.mm.objects import OBJECT, Object
from asid.mm.parts import SYSCALL, USUAL, Part, Paths

Mode = Literal["r", "w", "x"]
NO_PARTS: Final[frozenset[Part]] = frozenset()


class Function(NamedTuple):
    """A kernel function: its own touches, in order, with their offsets. size: bytes."""

    name: str
    module: str
    size: int
    touches: tuple[tuple[Mode, str, int], ...]
    source: str


class Access(NamedTuple):
    """One access of a handler. mode: read, write or execute. offset: of the instruction in the function, bytes.

    callers: the functions above, nearest first.
    """

    object: str
    mode: Mode
    function: str
    module: str
    offset: int
    callers: tuple[str, ...]
    source: str

    @property
    def touched(self) -> Object:
        """What is known of the object."""
        return OBJECT[self.object]


def _read_functions() -> dict[str, Function]:
    found: dict[str, Function] = {}
    for module, rows in MODULES:
        for name, size, texts, source in rows:
            assert name not in found, f"{name} twice"
            touches = []
            for place, text in enumerate(texts, start=1):
                what, _, at = text.partition("@")
                mode, _, touched = what.partition(" ")
                assert touched in OBJECT, f"{name} touches {touched!r}, which is no object"
                offset = int(at, 16) if at else size * place // (len(texts) + 1)
                assert 0 <= offset < size, f"{name} has {size:#x} bytes"
                touches.append((_mode(mode), touched, offset))
            found[name] = Function(name, module, size, tuple(touches), source)
    return found


def _mode(text: str) -> Mode:
    assert text in ("r", "w"), text
    return "r" if text == "r" else "w"


FUNCTIONS: Final = _read_functions()


class _Handler(NamedTuple):
    paths: Paths
    parts: dict[Part, Paths]


def _read_rows() -> dict[tuple[str, int], _Handler]:
    found: dict[tuple[str, int], _Handler] = {}
    for isa, rows in (("vmx", footprint_vmx.ROWS), ("svm", footprint_svm.ROWS)):
        for numbers, paths, parts in rows:
            for number in numbers:
                assert (isa, number) not in found, f"{isa} {number:#x} twice"
                found[isa, number] = _Handler(paths, parts)
    return found


_HANDLERS: Final = _read_rows()
_ISA: Final = {"vmx": footprint_vmx, "svm": footprint_svm}
_ENTRY_FAILED: Final = VMX_FLAGS[0][0]


def has_handler(isa: Isa, number: int) -> bool:
    """Say whether the tables have this exit number; `footprint` answers for any other too."""
    return (isa, number) in _HANDLERS


def _handler(isa: Isa, number: int) -> _Handler:
    number = normal_number(isa, number)
    if isa == "vmx":
        if number & _ENTRY_FAILED:
            return _Handler(_ISA[isa].UNEXPECTED, {})
        number &= VMX_BASIC_MASK
    return _HANDLERS.get((isa, number)) or _Handler(_ISA[isa].UNEXPECTED, {})


def parts_of(isa: Isa, number: int) -> tuple[Part, ...]:
    """Return the parts that details of this exit may ask for."""
    return tuple(_handler(isa, number).parts)


def usual_parts(isa: Isa, number: int) -> frozenset[Part]:
    """Return the parts of an exit of which nothing more is known."""
    return frozenset(part for part in _handler(isa, number).parts if part in USUAL)


def parts_for(isa: Isa, number: int, when: str, full: bool) -> frozenset[Part]:
    """Return parts for an exit of which only `when` and a draw are known, as in `asid.core.exits`.

    full: take the first part that needs what `when` names; else none but the usual ones.
    """
    usual = usual_parts(isa, number)
    if not full:
        return usual
    first = next((part for part in _handler(isa, number).parts if when and part.when == when), None)
    return usual if first is None else usual | {first}


def footprint(isa: Isa, number: int, parts: Iterable[Part] | None = None) -> tuple[Access, ...]:
    """Return what handling an exit touches, each object once a function and caller.

    parts: None for the usual ones. Raise InputError for a part that this exit does not have.
    """
    chosen = usual_parts(isa, number) if parts is None else frozenset(parts)
    return _footprint(isa, number, chosen)


def footprint_of(reason: str, isa: Isa | None = None, *, whole: bool = False) -> tuple[Access, ...]:
    """Return what handling an exit of this name touches at least; whole: with everything that details may ask for.

    isa: None for that which the name tells. () for a name that no exit has.
    """
    known = find(reason, isa)
    if known is None:
        return ()
    return _footprint(known.isa, known.number, frozenset(parts_of(known.isa, known.number)) if whole else NO_PARTS)


@lru_cache(maxsize=1)
def objects_touched() -> frozenset[str]:
    """Return the names of what the handling of some exit touches, whatever its details ask for."""
    return frozenset(
        access.object
        for (isa, number), handler in _HANDLERS.items()
        for access in _footprint("vmx" if isa == "vmx" else "svm", number, frozenset(handler.parts))
    )


def accesses_of(*path: str) -> tuple[Access, ...]:
    """Return what the last function of a path touches itself, of a path that is no exit's: faults, switches."""
    return tuple(_own(path))


@lru_cache(maxsize=4096)
def _footprint(isa: Isa, number: int, parts: frozenset[Part]) -> tuple[Access, ...]:
    handler = _handler(isa, number)
    foreign = parts - handler.parts.keys()
    if foreign:
        raise InputError(
            f"no part {', '.join(sorted(part.value for part in foreign))}",
            where=f"footprint of {name_of(isa, number)}",
            allowed=f"of {', '.join(part.value for part in handler.parts)}" if handler.parts else "given no part",
        )
    table = _ISA[isa]
    paths = [*table.COMMON, *handler.paths]
    for part, further in handler.parts.items():
        if part in parts:
            paths += further
    accesses: dict[Access, None] = {}
    seen: set[tuple[str, ...]] = set()
    for path in paths:
        chain = _chain(path, table.HANDLER)
        for depth in range(len(chain)):
            if chain[: depth + 1] not in seen:
                seen.add(chain[: depth + 1])
                accesses.update(dict.fromkeys(_own(chain[: depth + 1])))
    return tuple(accesses)


def _chain(path: str, handler: str) -> tuple[str, ...]:
    """Return every function from the system call down to the end of a path."""
    names = tuple(path.removeprefix("^").split(" > "))
    if not path.startswith("^"):
        return (*SYSCALL, handler, *names)
    return (*SYSCALL[: SYSCALL.index(names[0])], *names)


def _own(chain: tuple[str, ...]) -> Iterator[Access]:
    """Yield the accesses of the last function of a chain; none of those before the thread is isolated."""
    function = FUNCTIONS[chain[-1]]
    if chain[-1] in _BEFORE_ISOLATION:
        return
    callers = tuple(reversed(chain[:-1]))
    text = f"{function.module} module" if function.module else "kernel text"
    yield Access(text, "x", function.name, function.module, 0, callers, function.source)
    for mode, touched, offset in function.touches:
        yield Access(touched, mode, function.name, function.module, offset, callers, function.source)


# The thread enters the isolated address space in kvm_arch_vcpu_ioctl_run: [v1 p25].
_BEFORE_ISOLATION: Final = frozenset(SYSCALL[: SYSCALL.index("kvm_arch_vcpu_ioctl_run")])

assert all(name in FUNCTIONS for name in SYSCALL), "a function of the system call has no row"
assert all(
    name in FUNCTIONS
    for (isa, _), handler in _HANDLERS.items()
    for path in (*_ISA[isa].COMMON, *handler.paths, *(p for more in handler.parts.values() for p in more))
    for name in _chain(path, _ISA[isa].HANDLER)
), "a path names a function without a row"
