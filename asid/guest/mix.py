"""The mix source: exits drawn from a table of reasons, shares and service times.

The table is a TOML file of asid's own, the text of `perf kvm stat report`, or of counts (`asid.trace.counts`). TOML:

    isa = "vmx"                              # optional default for every row
    [[exit]]
    reason  = "MSR_WRITE"                    # any name `asid.core.exits` reads
    share   = 0.55                           # or rate = "1100/s", of one vCPU; the same one in every row
    service = "1.2us"                        # fixed, or { mean = "1.2us", min = "0.4us", max = "90us" }
    full    = 0.02                           # optional: share of these that need the full address space, see below
    wake    = "250us"                        # HLT only: how long the vCPU sleeps, in the same two forms

HLT: the time a table gives for it is time asleep, not time in a handler. It becomes `wake_ns`, and `service_ns` is 0,
unless the row has a `wake` of its own beside `service`.

Counts without times: a handler works as long as `asid.guest.handler_times` says, and a vCPU that halts sleeps for a
part of the time that handlers leave, `asleep` of the configuration: the rest of it the guest runs.

Draws: `after_ns` is exponential (exits come at random, on average `rate` a second *of guest time*); the reason by its
share; times by `asid.guest.spread`. Each exit takes two numbers from the source's own random.Random, and one from
another where the table has times that are drawn: other times and other details of the exits change no reason, and
other details no time.

Details: an exit asks for what `asid.guest.details` draws, and whether it is fast is up to what is mapped. A row with a
share `full` of its own says it instead: that share of its exits leaves the isolated address space whatever is mapped,
and the others ask for nothing beyond the least.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import fsum, log1p
from pathlib import Path
from random import Random
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from asid.core.exits import Canonical, Isa, find, is_idle, suggestions
from asid.errors import ConfigError, InputError
from asid.guest.base import DURATION_NS_MAX, Exit
from asid.guest.details import details_of
from asid.guest.handler_times import handler_ns
from asid.guest.spread import Constant, Exponential, Spread, fit
from asid.trace.counts import KINDS, CountRow, read_counts
from asid.trace.perf_kvm_stat import KvmStatRow, read_table
from asid.trace.sniff import foreign, read_lines, sniff
from asid.units import parse_duration_ns, parse_rate_hz

ROWS_MAX: Final = 1_000
RATE_HZ_MAX: Final = 1e9
RATE_HZ_DEFAULT: Final = 1_000.0  # of one vCPU, where neither the configuration nor the table says
PERF_ROUNDING_NS: Final = 10  # perf prints microseconds with two digits: a mean may lie this far outside min and max

ASLEEP_DEFAULT: Final = 0.5

_WANTED: Final = "a mix table (TOML with [[exit]] rows), the text of perf kvm stat report, or counts by kvmexit of bcc"


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One reason of a table. `weight` is its part, in any unit; `full` is a share of its own, see above. `halts`: the
    vCPU sleeps, and nothing tells how long."""

    reason: Canonical
    weight: float
    service: Spread
    wake: Spread | None = None
    full: float | None = None
    halts: bool = False


@dataclass(frozen=True, slots=True)
class MixTable:
    """A whole table. `rate_hz` is the sum of the rows' rates, None where the table has shares or counts only.

    Of counts: `over_ns` for how long and of how many vCPUs (`vcpus`) they are, 0 where the text does not say;
    `timeless`: they came without times."""

    path: str
    entries: tuple[MixEntry, ...]
    rate_hz: float | None = None
    notes: tuple[str, ...] = ()
    over_ns: int = 0
    vcpus: int = 0
    timeless: bool = False

    @property
    def halts(self) -> bool:
        """Whether it is not known how long its vCPUs sleep."""
        return any(entry.halts for entry in self.entries)

    @property
    def handled_ns(self) -> float:
        """How long the exits of a table of counts took, sleep included where it is known."""
        return fsum(
            entry.weight * (entry.service.mean_ns + (entry.wake.mean_ns if entry.wake else 0.0))
            for entry in self.entries
        )

    def cycle_ns(self, rate_hz: float, asleep: float = ASLEEP_DEFAULT) -> float:
        """Return the time from an exit of a vCPU to its next one, in the mean."""
        total = fsum(entry.weight for entry in self.entries)
        return self.handled_ns / total + 1e9 / rate_hz / (1.0 - asleep if self.halts else 1.0)

    def rate_over_hz(self, over_ns: int, vcpus: int, asleep: float = ASLEEP_DEFAULT) -> float:
        """Return the exits a second of guest time that make these counts in so long; 0.0 when they do not fit in it."""
        left_ns = (over_ns * vcpus - self.handled_ns) * (1.0 - asleep if self.halts else 1.0)
        return fsum(entry.weight for entry in self.entries) * 1e9 / left_ns if left_ns > 0 else 0.0


class MixKind(NamedTuple):
    """Exits that differ by their times only. until: where they end among all the weights of the table, counted up."""

    until: float
    service: Spread
    wake: Spread | None
    exit: Exit

    @property
    def is_drawn(self) -> bool:
        """Whether a time of it is."""
        return self.wake is not None or not isinstance(self.service, Constant)


class MixSource:
    """Endless exits drawn from a table; never returns None.

    With `timeless` every duration is 0 (pace "max"): the same reasons and the same details, made faster.

    times: the random numbers of times, None where none is drawn.
    """

    __slots__ = ("_draw", "_draw_time", "_edges", "kinds", "mean_after_ns", "random", "timeless", "times", "total")

    def __init__(
        self,
        table: MixTable,
        rate_hz: float,
        random: Random,
        *,
        timeless: bool = False,
        asleep: float = ASLEEP_DEFAULT,
    ) -> None:
        assert table.entries, "an empty table is refused when it is read"
        assert 0.0 < rate_hz <= RATE_HZ_MAX, rate_hz
        self.kinds = _kinds_of(_woken(table.entries, rate_hz, asleep))
        self.total = self.kinds[-1].until
        self.mean_after_ns = 1e9 / rate_hz
        self.random = random
        times = Random(random.getrandbits(64))
        self.times = times if not timeless and any(kind.is_drawn for kind in self.kinds) else None
        self.timeless = timeless
        self._edges = [kind.until for kind in self.kinds[:-1]]  # rounding may reach the end: it is the last kind's
        self._draw = random.random
        self._draw_time = times.random

    def next(self) -> Exit:
        kind = self.kinds[bisect_right(self._edges, self._draw() * self.total)]
        after_draw, drawn = self._draw(), kind.exit
        if self.timeless:
            return drawn
        time_draw = self._draw_time()
        after_ns = self.after_ns(after_draw, self.mean_after_ns)
        wake_ns = 0 if kind.wake is None else kind.wake.draw(time_draw)
        return Exit(after_ns, drawn.reason, drawn.isa, kind.service.draw(time_draw), drawn.full, wake_ns, drawn.parts)

    @staticmethod
    def after_ns(uniform: float, mean_ns: float) -> int:
        """Return the guest time before an exit at `uniform` in [0, 1)."""
        return int(-log1p(-uniform) * mean_ns)


def _woken(entries: Sequence[MixEntry], rate_hz: float, asleep: float) -> Sequence[MixEntry]:
    """Give each halt of unknown length its time asleep: together they are `asleep` of what handlers leave."""
    halts = fsum(entry.weight for entry in entries if entry.halts)
    if not halts:
        return entries
    a_halt_ns = fsum(entry.weight for entry in entries) / halts * 1e9 / rate_hz * asleep / (1.0 - asleep)
    wake = Exponential(0.0, min(a_halt_ns, float(DURATION_NS_MAX)))
    return [replace(entry, wake=wake) if entry.halts else entry for entry in entries]


def _kinds_of(entries: Sequence[MixEntry]) -> list[MixKind]:
    """Return the kinds of exits of a table, in its order: of each row those that ask for less, then those for more."""
    found: list[MixKind] = []
    begins = 0.0
    for entry in entries:
        isa, number, name = entry.reason
        less, more = Exit(0, name, isa, 0, False), Exit(0, name, isa, 0, True)
        share = entry.full
        if share is None:
            details = details_of(isa, number)
            share = details.share
            less, more = (Exit(0, name, isa, 0, False, 0, parts) for parts in (details.usual, details.further))
        parts = (begins + entry.weight * (1.0 - share), less), (begins + entry.weight, more)
        for until, exit_ in parts:
            if until > begins:
                found.append(MixKind(until, entry.service, entry.wake, exit_))
                begins = until
    return found


class _Times(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mean: str
    min: str | None = None
    max: str | None = None


class _ExitRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str
    service: str | _Times | None = None
    wake: str | _Times | None = None
    isa: Literal["vmx", "svm"] | None = None
    share: Annotated[float, msgspec.Meta(gt=0, le=1e12)] | None = None
    rate: str | None = None
    full: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class _TableFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    exit: Annotated[tuple[_ExitRow, ...], msgspec.Meta(min_length=1, max_length=ROWS_MAX)]
    name: str = ""
    isa: Literal["vmx", "svm"] | None = None


def read_mix(path: Path | str) -> MixTable:
    """Read a mix table, TOML, perf kvm stat text or counts, once while its file stays as it is.

    Raise InputError for anything else.
    """
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError):
        return _read_mix(path)  # which says what is wrong
    return _read_once(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=8)
def _read_once(path: Path, _as_it_is: tuple[int, ...]) -> MixTable:
    return _read_mix(path)


def _read_mix(path: Path) -> MixTable:
    kind = sniff(path)
    if kind == "perf-kvm-stat":
        return _read_perf_table(path)
    if kind in KINDS:
        return _read_counts(path)
    if kind not in ("mix-table", "unknown"):
        raise foreign(path, kind, _WANTED)
    text = "\n".join(line for _, line, _ in read_lines(path))
    if kind == "unknown" and path.suffix != ".toml":
        raise foreign(path, kind, _WANTED)
    return read_mix_toml(text, str(path))


def read_mix_toml(text: str, path: str = "mix table") -> MixTable:
    """Read the text of a TOML mix table. Raise InputError with file and key for what is wrong in it."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and integers of thousands of digits
        hint = "Look at the line named; strings need quotes."
        raise _refuse(path, f"is not TOML: {error}", "a TOML file", hint) from None
    try:
        table = msgspec.convert(raw, _TableFile)
    except msgspec.ValidationError as error:
        raise _refuse(path, str(error), "[[exit]] rows with reason, share or rate, service", _ROW_HINT) from None
    with_rate = [row.rate is not None for row in table.exit]
    if any(with_rate) and not all(with_rate):
        raise _refuse(path, "some rows have `rate`, some have not", "one of rate and share in every row", _ROW_HINT)
    entries = tuple(_read_row(path, f"exit[{n}]", row, table.isa) for n, row in enumerate(table.exit))
    total = fsum(entry.weight for entry in entries)
    if any(with_rate) and total > RATE_HZ_MAX:
        raise _refuse(path, f"rates add up to {total:g}/s", f"at most {RATE_HZ_MAX:g}/s", "Lower the rates.")
    return MixTable(path, entries, total if any(with_rate) else None)


_ROW_HINT: Final = 'Try: [[exit]] / reason = "CPUID" / share = 0.1 / service = "1us". See configs/tables/web.toml.'


def _refuse(where: str, what: str, allowed: str, hint: str) -> InputError:
    return InputError(what, where=where, state="mix table not used", allowed=allowed, hint=hint)


def _read_row(path: str, key: str, row: _ExitRow, isa_default: Isa | None) -> MixEntry:
    isa = row.isa or isa_default
    reason = find(row.reason, isa)
    if reason is None:
        near = suggestions(row.reason[:80], isa)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Letter case tells the isa: HLT is VMX, hlt is SVM."
        allowed = f"the name of an exit reason{f' of {isa.upper()}' if isa else ''}"
        raise _refuse(path, f"{key}.reason = {row.reason[:80]!r}", allowed, hint)
    if (row.share is None) == (row.rate is None):
        found = "both" if row.share is not None else "neither"
        raise _refuse(path, f"{key} has {found} of share and rate", "exactly one of them", _ROW_HINT)
    service, wake = _read_times(path, f"{key}.service", row.service), _read_times(path, f"{key}.wake", row.wake)
    if is_idle(reason.isa, reason.number):
        if wake is None:
            service, wake = Constant(0), service
        if wake is None:
            raise _refuse(path, f"{key} has no time", "service or wake, the time asleep", 'Try wake = "250us".')
    elif wake is not None:
        raise _refuse(path, f"{key}.wake on {reason.name}", "wake on HLT only", "Use service for handling time.")
    elif service is None:
        raise _refuse(path, f"{key} has no service", "the time its handling takes", 'Try service = "1.2us".')
    try:
        weight = row.share if row.rate is None else parse_rate_hz(row.rate, f"{key}.rate")
    except ConfigError as error:
        raise _refuse(path, error.what, error.allowed, error.hint) from None
    assert weight is not None
    return MixEntry(reason, weight, service or Constant(0), wake, row.full)


def _read_times(path: str, key: str, times: str | _Times | None) -> Spread | None:
    if times is None:
        return None
    try:
        if isinstance(times, str):
            return Constant(parse_duration_ns(times, key))
        low = None if times.min is None else parse_duration_ns(times.min, f"{key}.min")
        high = None if times.max is None else parse_duration_ns(times.max, f"{key}.max")
        return fit(parse_duration_ns(times.mean, f"{key}.mean"), low, high)
    except ConfigError as error:
        raise _refuse(path, error.what, error.allowed, error.hint) from None
    except ValueError as error:
        raise _refuse(path, f"{key}: {error}", "min <= mean <= max, under 31 years", "Swap them?") from None


def _read_perf_table(path: Path) -> MixTable:
    table = read_table(path)
    entries, notes = [], list(table.notes)
    for row in table.rows:
        if row.samples == 0:
            continue
        if row.reason is None:
            notes.append(f"Row {row.name!r} (line {row.line}) names no exit reason and is left out.")
            continue
        times = _fit_perf_row(row)
        if times is None:
            notes.append(f"Row {row.name!r} (line {row.line}) has a mean outside its minimum and maximum; left out.")
        else:
            entries.append(_entry_of(row.reason, row.samples, times))
    if not entries:
        raise _refuse(str(path), "no row can be used", _WANTED, " ".join(notes[:3]))
    vcpus = 1 if re.search(r"\bVCPU \d", table.title) else 0
    return MixTable(str(path), tuple(entries), None, tuple(notes), 0, vcpus)


def _read_counts(path: Path) -> MixTable:
    counts = read_counts(path)
    entries = []
    timeless = False
    for row in counts.rows:
        if row.reason is None or not row.n:
            continue
        if row.mean_ns is not None:
            times = _fit_perf_row(row) or Constant(round(row.mean_ns))
            entries.append(_entry_of(row.reason, row.n, times))
            continue
        timeless = True
        halts = is_idle(row.reason.isa, row.reason.number)
        service = Constant(0) if halts else Exponential(0.0, float(handler_ns(row.reason)))
        entries.append(MixEntry(row.reason, float(row.n), service, halts=halts))
    return MixTable(str(path), tuple(entries), None, counts.notes, counts.over_ns, counts.vcpus, timeless)


def _entry_of(reason: Canonical, n: int, times: Spread) -> MixEntry:
    """Return a row with times; those of a halt are times asleep."""
    if is_idle(reason.isa, reason.number):
        return MixEntry(reason, float(n), Constant(0), wake=times)
    return MixEntry(reason, float(n), times)


def _fit_perf_row(row: KvmStatRow | CountRow) -> Spread | None:
    mean_ns = row.mean_ns
    assert mean_ns is not None
    if row.min_ns is not None and row.min_ns - PERF_ROUNDING_NS <= mean_ns < row.min_ns:
        mean_ns = row.min_ns
    if row.max_ns is not None and row.max_ns < mean_ns <= row.max_ns + PERF_ROUNDING_NS:
        mean_ns = row.max_ns
    try:
        return fit(mean_ns, row.min_ns, row.max_ns)
    except ValueError:
        return None
