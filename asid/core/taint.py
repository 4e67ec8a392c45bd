"""What the buffers of a core may hold, and which guest ran beside or after what it should not find there.

Rule 1. A pure fold: `step(state, event) -> (state, leaks)`. No clock; the caller says when, if it cares.
Rule 2. In doubt it is still there: a load stays until a flush that certainly reached it, and whoever is at work goes on
        loading, so what a flush clears is there again at once while its owner's code runs.
Rule 3. The measure is a perfect policy. Whether the policy in force had promised anything is asked apart (`promised`).

What loads what
    HOST loads the host kernel's data, and the userspace VMM's when its exit goes on to the VMM. ISOLATED and GUEST load
    the VM's. PARKED, OFFLINE and ENTER load nothing. Every load is data; a VM's is training of the predictors as well
    (the kernel is nobody's attacker, and no policy takes the VMM for one).

Leaks
    Guest instructions of a VM while something of another domain is present: *concurrent* when its owner's code is at
    work on a sibling right now, else *residual*. One leak a guest stay, visit and kind, however many buffers hold it,
    told when it begins. A guest whose pending bit is set retires nothing: that is ENTER, also for one that was in GUEST
    before the bit. The return stack and the store buffers are one's own, so no sibling reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from asid.core import exits
from asid.core.buffers import (
    BARRIER,
    BUFFERS,
    KERNEL,
    L1D_FLUSH,
    PERFECT,
    VMM,
    Buffer,
    Domain,
    Flush,
    Kind,
    Promise,
    When,
    domain_of,
)
from asid.core.events import Mode


def bits(buffers: Iterable[Buffer]) -> int:
    """Return buffers as a number with a bit for each."""
    return sum(1 << BUFFERS.index(buffer) for buffer in buffers)


SHARED: Final = bits(buffer for buffer in BUFFERS if buffer.shared)
EVERYWHERE: Final = bits(BUFFERS)
OF_KIND: Final = {kind: bits(buffer for buffer in BUFFERS if buffer.kind is kind) for kind in Kind}
ORDER: Final = tuple(Domain)
INTERRUPTS: Final = frozenset({"nmi", "mce", "irq"})
WORKS: Final = frozenset({Mode.HOST, Mode.ISOLATED, Mode.GUEST})


class Load(NamedTuple):
    """What one visit brings in. visit, why and idle are the caller's: they are only handed on."""

    owner: int  # a VM's number, or buffers.KERNEL or buffers.VMM
    ht: int
    visit: int
    why: str
    idle: bool


class Taint(NamedTuple):
    """A load, and in which buffers it is: a bit for each of BUFFERS. What is not shared is the loader's own."""

    load: Load
    where: int


class Thread(NamedTuple):
    """A hyperthread, and what it is loading while it stays in this mode."""

    mode: Mode
    vm: int
    loads: tuple[Load, ...]


class TaintState(NamedTuple):
    """One core. taints is ordered, so that equal contents are equal states."""

    threads: tuple[Thread, ...]
    taints: tuple[Taint, ...]


class Event(NamedTuple):
    """A hyperthread changes its mode, or flushes (flushes is not empty; the rest is then ignored).

    vm: of ISOLATED, GUEST and ENTER. why: of HOST, the exit's kernel name, or nmi, mce or irq. visit: a name for this
    stay, to be found in leaks. idle: of HOST, whether the guest that it left has nothing to run.
    """

    ht: int
    mode: Mode = Mode.PARKED
    vm: int = 0
    why: str = ""
    visit: int = 0
    idle: bool = False
    flushes: tuple[Flush, ...] = ()


class Leak(NamedTuple):
    """Guest instructions of `vm` on hyperthread `reader`, in stay `stay`, and what was there.

    loader, visit, why, idle: who brought it, in which visit, and what for; why is "" for a VM. domains: whose it is to
    the reader; buffers: where it can be found. Of a CONTROL leak the loader is the attacker, of a DATA leak the reader.
    """

    concurrent: bool
    kind: Kind
    reader: int
    vm: int
    stay: int
    loader: int
    visit: int
    why: str
    idle: bool
    domains: tuple[Domain, ...]
    buffers: tuple[str, ...]


def initial(siblings: int) -> TaintState:
    """Return a core of that many hyperthreads whose buffers hold nothing."""
    return TaintState((Thread(Mode.OFFLINE, 0, ()),) * siblings, ())


def owners(why: str) -> tuple[int, ...]:
    """Return whose data a visit to HOST loads. why: the kernel's name of an exit, or nmi, mce, irq."""
    if why in INTERRUPTS:
        return (KERNEL,)
    found = exits.find(why) if why else None
    row = exits.find_number(found.isa, found.number) if found is not None else None
    return (KERNEL, VMM) if row is not None and row.when == "userspace" else (KERNEL,)


def step(state: TaintState, event: Event) -> tuple[TaintState, tuple[Leak, ...]]:
    """Return the next state, and the leaks that begin with it: readers in order, then loaders."""
    if event.flushes:
        return flushed(state, event.ht, event.flushes), ()
    assert event.vm > 0 or event.mode not in (Mode.ISOLATED, Mode.GUEST), "VMs are numbered from 1"
    ht = event.ht
    now = Thread(event.mode, event.vm, loads_of(event))
    threads = (*state.threads[:ht], now, *state.threads[ht + 1 :])
    after = TaintState(threads, with_loads(state.taints, now.loads))
    leaks: list[Leak] = []
    for reader, thread in enumerate(threads):
        if thread.mode is Mode.GUEST and (reader == ht or now.loads):
            # The one that has just begun meets all there is; the others what is new.
            fresh = None if reader == ht else now.loads
            stay = event.visit if reader == ht else thread.loads[0].visit
            leaks += read(after, reader, stay, fresh)
    return after, tuple(leaks)


def loads_of(event: Event) -> tuple[Load, ...]:
    """Return what a stay in the event's mode loads."""
    if event.mode is Mode.HOST:
        return tuple(Load(owner, event.ht, event.visit, event.why, event.idle) for owner in owners(event.why))
    if event.mode in WORKS:
        return (Load(event.vm, event.ht, event.visit, "", False),)
    return ()


def with_loads(taints: tuple[Taint, ...], loads: tuple[Load, ...]) -> tuple[Taint, ...]:
    """Return the taints and what these loads add. A hyperthread's later load of one owner lies over its earlier one."""
    if not loads:
        return taints
    over = {(load.owner, load.ht) for load in loads}
    rest = [taint for taint in taints if (taint.load.owner, taint.load.ht) not in over]
    # The kernel and the VMM train nobody.
    rest += [Taint(load, EVERYWHERE if load.owner > 0 else OF_KIND[Kind.DATA]) for load in loads]
    return tuple(sorted(rest))


def flushed(state: TaintState, ht: int, flushes: tuple[Flush, ...]) -> TaintState:
    """Return the core after a hyperthread's flushes. Who is at work, that hyperthread included, goes on loading."""
    cleared = bits({buffer for flush in flushes for buffer in flush.clears})
    rest = []
    for load, where in state.taints:
        left = where & ~(cleared if load.ht == ht else cleared & SHARED)
        if left:
            rest.append(Taint(load, left))
    at_work = tuple(load for thread in state.threads for load in thread.loads)
    return state._replace(taints=with_loads(tuple(rest), at_work))


def seen(taint: Taint, ht: int, vm: int, wanted: Promise) -> int:
    """Return in which buffers a guest of `vm` on a hyperthread meets a taint that is to be kept from it."""
    domain = domain_of(taint.load.owner, vm)
    where = taint.where if taint.load.ht == ht else taint.where & SHARED
    if domain not in wanted.protect:
        where &= ~OF_KIND[Kind.DATA]
    if domain not in wanted.prevent:
        where &= ~OF_KIND[Kind.CONTROL]
    return where


def read(state: TaintState, reader: int, stay: int, fresh: tuple[Load, ...] | None) -> list[Leak]:
    """Return what a guest that runs on hyperthread `reader` finds; only of these loads when `fresh` is given."""
    vm = state.threads[reader].vm
    found: dict[tuple[int, int, str], tuple[int, list[Load]]] = {}
    for taint in state.taints:
        load = taint.load
        if fresh is not None and load not in fresh:
            continue
        where = seen(taint, reader, vm, PERFECT)
        for kind, of_kind in OF_KIND.items():
            if where & of_kind:
                key = (load.ht, load.visit, kind.value)
                before, loads = found.get(key, (0, []))
                found[key] = (before | where & of_kind, [*loads, load])
    return [
        Leak(
            loader != reader and any(load in state.threads[loader].loads for load in loads),
            Kind(kind), reader, vm, stay, loader, visit, loads[0].why, loads[0].idle,
            tuple(sorted({domain_of(load.owner, vm) for load in loads}, key=ORDER.index)),
            tuple(buffer.name for number, buffer in enumerate(BUFFERS) if where >> number & 1),
        )
        for (loader, visit, kind), (where, loads) in sorted(found.items())
    ]  # fmt: skip


def promised(promise: Promise, leak: Leak) -> bool:
    """Return whether a policy that makes this promise has broken it by a leak."""
    if leak.concurrent:
        return any(domain in promise.apart for domain in leak.domains) and (promise.idle_apart or not leak.idle)
    guarded = promise.protect if leak.kind is Kind.DATA else promise.prevent
    return any(domain in guarded for domain in leak.domains)


def due(promise: Promise, state: TaintState, ht: int, vm: int) -> tuple[Flush, ...]:
    """Return what a policy flushes before guest instructions of `vm` run on a hyperthread."""
    if promise.when is When.NEVER:
        return ()
    if promise.when is When.ENTRY:
        return (L1D_FLUSH,) if promise.protect else ()
    where = 0
    for taint in state.taints:
        where |= seen(taint, ht, vm, promise)
    return tuple(flush for kind, flush in ((Kind.DATA, L1D_FLUSH), (Kind.CONTROL, BARRIER)) if where & OF_KIND[kind])
