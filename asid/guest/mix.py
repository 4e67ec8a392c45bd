"""The mix source: exits drawn from a table of reasons, shares and service times.

The table is a TOML file of asid's own, or the text of `perf kvm stat report`. TOML:

    isa = "vmx"                              # optional default for every row
    [[exit]]
    reason  = "MSR_WRITE"                    # any name `asid.core.exits` reads
    share   = 0.55                           # or rate = "1100/s", of one vCPU; the same one in every row
    service = "1.2us"                        # fixed, or { mean = "1.2us", min = "0.4us", max = "90us" }
    full    = 0.02                           # optional: share of these that need the full address space, see below
    wake    = "250us"                        # HLT only: how long the vCPU sleeps, in the same two forms

HLT: the time a table gives for it is time asleep, not time in a handler. It becomes `wake_ns`, and `service_ns` is 0,
unless the row has a `wake` of its own beside `service`.

Draws: `after_ns` is exponential (exits come at random, on average `rate` a second *of guest time*); the reason by its
share; times by `asid.guest.spread`. Each exit takes four numbers from the source's own random.Random, whatever they are
used for: other details of the exits change no reason and no time.

Details: an exit asks for what `asid.guest.details` draws, and whether it is fast is up to what is mapped. A row with a
share `full` of its own says it instead: that share of its exits leaves the isolated address space whatever is mapped,
and the others ask for nothing beyond the least.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from math import fsum, log1p
from pathlib import Path
from random import Random
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from asid.core.exits import Canonical, Isa, find, is_idle, suggestions
from asid.errors import ConfigError, InputError
from asid.guest.base import Exit
from asid.guest.details import details_of
from asid.guest.spread import Constant, Spread, fit
from asid.trace.perf_kvm_stat import KvmStatRow, read_table
from asid.trace.sniff import foreign, read_lines, sniff
from asid.units import parse_duration_ns, parse_rate_hz

ROWS_MAX: Final = 1_000
RATE_HZ_MAX: Final = 1e9
RATE_HZ_DEFAULT: Final = 1_000.0  # of one vCPU, where neither the configuration nor the table says
PERF_ROUNDING_NS: Final = 10  # perf prints microseconds with two digits: a mean may lie this far outside min and max

_WANTED: Final = "a mix table (TOML with [[exit]] rows) or the text of perf kvm stat report"


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One reason of a table. `weight` is its part, in any unit; `full` is a share of its own, see above."""

    reason: Canonical
    weight: float
    service: Spread
    wake: Spread | None = None
    full: float | None = None


@dataclass(frozen=True, slots=True)
class MixTable:
    """A whole table. `rate_hz` is the sum of the rows' rates, None where the table has shares or counts only."""

    path: str
    entries: tuple[MixEntry, ...]
    rate_hz: float | None = None
    notes: tuple[str, ...] = ()


class MixRow(NamedTuple):
    """A row of a table and its exits without their times. share: of `more`; the rest is `less`."""

    entry: MixEntry
    share: float
    less: Exit
    more: Exit


class MixSource:
    """Endless exits drawn from a table; never returns None.

    With `timeless` every duration is 0 (pace "max"): the same reasons and the same details, made faster.
    """

    __slots__ = ("_draw", "_last", "_total", "cumulative", "mean_after_ns", "random", "rows", "timeless")

    def __init__(
        self,
        table: MixTable,
        rate_hz: float,
        random: Random,
        *,
        timeless: bool = False,
    ) -> None:
        assert table.entries, "an empty table is refused when it is read"
        assert 0.0 < rate_hz <= RATE_HZ_MAX, rate_hz
        self.cumulative = list(accumulate(entry.weight for entry in table.entries))
        self.mean_after_ns = 1e9 / rate_hz
        self.random = random
        self.rows = [_row_of(entry) for entry in table.entries]
        self.timeless = timeless
        self._total = self.cumulative[-1]
        self._last = len(table.entries) - 1
        self._draw = random.random

    def next(self) -> Exit:
        random = self._draw
        index = bisect_right(self.cumulative, random() * self._total)
        if index > self._last:
            index = self._last  # rounding may reach the end
        after_draw, time_draw, details_draw = random(), random(), random()
        entry, share, less, more = self.rows[index]
        drawn = more if details_draw < share else less
        if self.timeless:
            return drawn
        after_ns = self.after_ns(after_draw, self.mean_after_ns)
        wake_ns = 0 if entry.wake is None else entry.wake.draw(time_draw)
        return Exit(after_ns, drawn.reason, drawn.isa, entry.service.draw(time_draw), drawn.full, wake_ns, drawn.parts)

    @staticmethod
    def after_ns(uniform: float, mean_ns: float) -> int:
        """Return the guest time before an exit at `uniform` in [0, 1)."""
        return int(-log1p(-uniform) * mean_ns)


def _row_of(entry: MixEntry) -> MixRow:
    isa, number, name = entry.reason
    if entry.full is not None:
        return MixRow(entry, entry.full, Exit(0, name, isa, 0, False), Exit(0, name, isa, 0, True))
    details = details_of(isa, number)
    less, more = (Exit(0, name, isa, 0, False, 0, parts) for parts in (details.usual, details.further))
    return MixRow(entry, details.share, less, more)


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
    """Read a mix table, TOML or perf kvm stat text. Raise InputError for anything else."""
    path = Path(path)
    kind = sniff(path)
    if kind == "perf-kvm-stat":
        return _read_perf_table(path)
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
        elif is_idle(row.reason.isa, row.reason.number):
            entries.append(MixEntry(row.reason, float(row.samples), Constant(0), wake=times))
        else:
            entries.append(MixEntry(row.reason, float(row.samples), times))
    if not entries:
        raise _refuse(str(path), "no row can be used", _WANTED, " ".join(notes[:3]))
    return MixTable(str(path), tuple(entries), None, tuple(notes))


def _fit_perf_row(row: KvmStatRow) -> Spread | None:
    mean_ns = row.mean_ns
    if row.min_ns is not None and row.min_ns - PERF_ROUNDING_NS <= mean_ns < row.min_ns:
        mean_ns = row.min_ns
    if row.max_ns is not None and row.max_ns < mean_ns <= row.max_ns + PERF_ROUNDING_NS:
        mean_ns = row.max_ns
    try:
        return fit(mean_ns, row.min_ns, row.max_ns)
    except ValueError:
        return None
