"""The buffers of a core, what clears them, and which policy promises what: the data behind `asid.core.taint`.

Rule 1. Data, and functions that only look into it. Every row has its source; where nobody has published a figure the
        row has none and says so.
Rule 2. A flush reaches every shared buffer that it clears as a whole, and of those that each hyperthread has for itself
        the one of the hyperthread that flushes.
Rule 3. Cycles are turned into ns at 3 GHz.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

GHZ: Final = 3
NO_FIGURE: Final = "no published figure"


class Domain(Enum):
    """Whose something is, as seen by the guest that runs. The value is the word that people read."""

    KERNEL = "host kernel"
    VMM = "userspace VMM"
    THIS_VM = "this VM"
    OTHER_VM = "other VM"


# Who owns what was loaded: a VM by its number, or one of these two.
KERNEL: Final = 0
VMM: Final = -1


def domain_of(owner: int, vm: int) -> Domain:
    """Return whose an owner's data is to a guest of `vm`."""
    if owner == KERNEL:
        return Domain.KERNEL
    if owner == VMM:
        return Domain.VMM
    return Domain.THIS_VM if owner == vm else Domain.OTHER_VM


class Kind(Enum):
    """What a taint is good for. DATA: an attacker reads what a victim has left. CONTROL: an attacker has trained a
    predictor, and a victim runs on it."""

    DATA = "data"
    CONTROL = "control"


class Buffer(NamedTuple):
    """Where something stays behind. shared: by all hyperthreads of a core; else each has its own."""

    name: str
    kind: Kind
    shared: bool
    source: str


L1D: Final = Buffer("L1D", Kind.DATA, True, "linux l1tf.rst: shared by hyperthreads")
FILL: Final = Buffer("fill buffers", Kind.DATA, True, "linux mds.rst, MFBDS: shared between hyperthreads")
LOAD: Final = Buffer("load ports", Kind.DATA, True, "linux mds.rst, MLPDS: shared between hyperthreads")
STORE: Final = Buffer("store buffers", Kind.DATA, False, "linux mds.rst, MSBDS: partitioned between hyperthreads")
BTB: Final = Buffer("branch target buffer", Kind.CONTROL, True, "linux spectre.rst: may be shared between threads")
RETURNS: Final = Buffer("return stack", Kind.CONTROL, False, "linux cross-thread-rsb.rst: one a thread, while both run")

BUFFERS: Final = (L1D, FILL, LOAD, STORE, BTB, RETURNS)


class Cost(NamedTuple):
    """What a flush takes, ns."""

    low_ns: int
    typical_ns: int
    high_ns: int


class Flush(NamedTuple):
    """An instruction that clears buffers. cost: None when nobody has published one."""

    name: str
    clears: tuple[Buffer, ...]
    cost: Cost | None
    source: str
    about: str


L1D_FLUSH: Final = Flush(
    "L1D flush",
    (L1D, FILL, LOAD, STORE),
    Cost(512 // GHZ, 400, 10_000 // GHZ),
    "low: 512 cycles, the theory for 32 KiB; typical: assumed, between 768 cycles (48 KiB) and twice that; both"
    " community.intel.com 1422386, whose author has measured neither; high: 10,000 cycles, secondary notes",
    "linux mds.rst: it clears the other buffers as VERW does, which is then left out",
)
BUFFER_CLEAR: Final = Flush(
    "buffer clear (VERW)", (FILL, LOAD, STORE), None, NO_FIGURE, "linux mds.rst: the microcode clears the buffers"
)
BARRIER: Final = Flush(
    "branch predictor barrier (IBPB)",
    (BTB, RETURNS),
    None,
    NO_FIGURE,
    "with the return stack stuffed, as before a new guest: linux spectre.rst",
)
FLUSHES: Final = (L1D_FLUSH, BUFFER_CLEAR, BARRIER)

# The word `what` of a record of type `flush`.
WHAT: Final[dict[str, tuple[Flush, ...]]] = {
    "data": (L1D_FLUSH,),
    "control": (BARRIER,),
    "all": (L1D_FLUSH, BARRIER),
}


class When(Enum):
    """When a policy flushes before guest code runs."""

    NEVER = "never"
    ENTRY = "at every entry"
    TAINTED = "when tainted since the last"


class Promise(NamedTuple):
    """What a policy keeps guests from.

    protect: whose data no guest finds in the buffers (forward looking: the attacker comes later). prevent: whose
    training no guest runs on (backward looking: the attacker was there before). when: the flushes for these. apart: who
    is never at work on a core beside a guest whose instructions retire; idle_apart: nor after the exit of a guest that
    has nothing to run.
    """

    protect: frozenset[Domain]
    prevent: frozenset[Domain]
    when: When
    apart: frozenset[Domain]
    idle_apart: bool = True


FOREIGN: Final = frozenset({Domain.KERNEL, Domain.VMM, Domain.OTHER_VM})
OTHERS: Final = frozenset({Domain.OTHER_VM})
NOBODY: Final[frozenset[Domain]] = frozenset()

# What no policy would have to promise more than; the measure of a leak.
PERFECT: Final = Promise(FOREIGN, OTHERS, When.TAINTED, FOREIGN)

# KVM's class in the 2025 posting of address space isolation: protect KERNEL_DATA | USER_DATA | OTHER_MM_DATA, prevent
# OTHER_MM_CONTROL. The others flush the L1D at every entry and know of no predictor (linux l1tf.rst).
_ASI: Final = Promise(FOREIGN, OTHERS, When.TAINTED, FOREIGN)
_L1D: Final = Promise(FOREIGN, NOBODY, When.ENTRY, FOREIGN)

PROMISES: Final[dict[str, Promise]] = {
    "none": Promise(NOBODY, NOBODY, When.NEVER, NOBODY),
    "nosmt": _L1D,
    "core-sched": _L1D._replace(apart=OTHERS),
    "kick-every-exit": _L1D,
    "kick-except-idle": _L1D._replace(idle_apart=False),
    "asi": _ASI,
    "asi-irqoff": _ASI,
    "asi-stun": _ASI,
}
