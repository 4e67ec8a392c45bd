"""What a source of VM exits is: the shape of one exit, the source's one method, and the pace at which it is played.

A source is a plain object: no clock, no socket, no process. Given the same seed it returns the same exits, so the live
engine, the simulator and a test see one and the same guest.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, Protocol

from asid.core.exits import Isa
from asid.errors import ConfigError
from asid.mm.footprint import NO_PARTS
from asid.mm.parts import Part

PaceMode = Literal["real", "scaled", "max"]
PACE_MODES: Final[tuple[PaceMode, ...]] = ("real", "scaled", "max")
SCALE_MAX: Final = 1e6
DURATION_NS_MAX: Final = 10**18  # 31 years: a sum of two still fits a signed 64-bit word


class Exit(NamedTuple):
    """One VM exit: how long the guest runs before it, why it exits, how long its handling takes.

    All times are nanoseconds, never negative. `wake_ns` is the time a halted vCPU sleeps before it can run again; it
    is 0 for every other reason. `reason` is the kernel's name. `full`: it needs the full address space whatever is
    mapped; else the mapping and `parts` decide, which is what its details ask for beyond the least that its handling
    takes, see `asid.mm.parts`.
    """

    after_ns: int
    reason: str
    isa: Isa
    service_ns: int
    full: bool
    wake_ns: int = 0
    parts: frozenset[Part] = NO_PARTS


class Source(Protocol):
    """Where the exits of one vCPU come from."""

    def next(self) -> Exit | None:
        """Return the next exit, or None: no exit will come any more, the guest spins until it is kicked."""
        ...


class GuestSpec(Protocol):
    """What a source is made from; `asid.config` has the struct with these fields."""

    @property
    def source(self) -> str: ...
    @property
    def table(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def rate(self) -> str: ...
    @property
    def asleep(self) -> float: ...
    @property
    def thread(self) -> str: ...
    @property
    def loop(self) -> bool: ...


def pace_exit(event: Exit, mode: str, scale: float = 1.0) -> Exit:
    """Return the exit as it is to be played.

    real: unchanged. scaled: every duration times `scale` (0.1 plays ten times as fast, 2 half as fast). max: every
    duration 0, which leaves only what the machine itself costs. Raise ConfigError on another mode or a scale that is
    not a number in (0, SCALE_MAX].
    """
    check_pace(mode, scale)
    if mode == "real" or (mode == "scaled" and scale == 1.0):
        return event
    if mode == "max":
        return event._replace(after_ns=0, service_ns=0, wake_ns=0)
    return event._replace(
        after_ns=min(round(event.after_ns * scale), DURATION_NS_MAX),
        service_ns=min(round(event.service_ns * scale), DURATION_NS_MAX),
        wake_ns=min(round(event.wake_ns * scale), DURATION_NS_MAX),
    )


def check_pace(mode: str, scale: float) -> None:
    """Raise ConfigError unless `pace_exit` would take these."""
    if mode not in PACE_MODES:
        raise ConfigError(
            f"pace.mode = {mode!r}",
            where="pace",
            allowed="real, scaled or max",
            hint="Use real, the default, to play times as recorded.",
        )
    if not 0.0 < scale <= SCALE_MAX:  # also refuses NaN
        raise ConfigError(
            f"pace.scale = {scale!r}",
            where="pace",
            allowed=f"a number above 0, at most {SCALE_MAX:g}",
            hint="0.1 plays ten times as fast, 2 half as fast.",
        )


class Paced:
    """A source played at another pace. Exits and their order are those of the source inside."""

    __slots__ = ("inner", "mode", "scale")

    def __init__(self, inner: Source, mode: str, scale: float = 1.0) -> None:
        check_pace(mode, scale)
        self.inner = inner
        self.mode = mode
        self.scale = scale

    def next(self) -> Exit | None:
        event = self.inner.next()
        return None if event is None else pace_exit(event, self.mode, self.scale)
