"""Durations, rates, sizes and cpulists: what people write and read, and the integers inside.

Inside asid time is whole nanoseconds, a rate is events a second, a size is bytes. Outside it is `250us`, `500/s`,
`64MiB`, `0-3,8`. Each parser raises ConfigError with `where` set to the caller's name for the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from asid.errors import ConfigError

NS_PER_UNIT = {
    "ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000,
}  # fmt: skip
BYTES_PER_UNIT = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SECONDS_PER_UNIT = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60)}

# A cpulist is expanded to numbers, so its largest number bounds the memory that one string can ask for.
CPU_MAX = 65_535

_NUMBER = r"(\d{1,15}(?:\.\d{1,9})?)"
_DURATION = re.compile(rf"{_NUMBER}\s*([a-zµ]+)", re.ASCII)
_RATE = re.compile(rf"{_NUMBER}\s*/\s*([a-z]+)", re.ASCII)
_RANGE = re.compile(r"(\d{1,30})(?:\.\.(\d{1,30}))?", re.ASCII)
_CPU_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def _refuse(where: str, text: str, allowed: str, hint: str) -> ConfigError:
    shown = text if len(text) <= 40 else text[:37] + "..."
    what = f"{where} = {shown!r}" if where else repr(shown)
    return ConfigError(what, allowed=allowed, hint=hint)


def parse_duration_ns(text: str, where: str = "") -> int:
    """`250us`, `1.5ms`, `2s`, `1m`, `1h` -> whole nanoseconds, zero or more."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or found[2] not in NS_PER_UNIT:
        raise _refuse(where, text, "a duration: a number and one of ns, us, ms, s, m, h", "Try 250us, 10ms or 2s.")
    return int(Decimal(found[1]) * NS_PER_UNIT[found[2]])


def parse_rate_hz(text: str, where: str = "") -> float:
    """`500/s`, `2/ms`, `30/m` -> events a second, above zero."""
    found = _RATE.fullmatch(text.strip())
    if found is None or found[2] not in SECONDS_PER_UNIT or not Decimal(found[1]):
        raise _refuse(where, text, "a rate: a number above 0 and one of /ms, /s, /m", "Try 500/s.")
    return float(Decimal(found[1]) / SECONDS_PER_UNIT[found[2]])


def parse_cpulist(text: str, where: str = "") -> tuple[int, ...]:
    """`0-3,8` -> (0, 1, 2, 3, 8), sorted, each once; the empty string -> ()."""
    cpus: set[int] = set()
    if not text.strip():
        return ()
    for part in text.split(","):
        found = _CPU_RANGE.fullmatch(part.strip())
        low = int(found[1]) if found else -1
        high = int(found[2] or found[1]) if found else -1
        if found is None or not low <= high <= CPU_MAX:
            raise _refuse(where, text, f"a cpulist: numbers and ranges up to {CPU_MAX}, low first", "Try 0-3,8.")
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus))


def parse_range(text: str, where: str, numbers_max: int) -> tuple[int, int]:
    """`1..20` -> (1, 20), the first and the last; `7` -> (7, 7)."""
    found = _RANGE.fullmatch(text.strip())
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if not low <= high < low + numbers_max:
        allowed = f"a number, or the first and the last of at most {numbers_max:,}"
        raise _refuse(where, text, allowed, "Try 1..20.")
    return low, high


def format_cpulist(cpus: Iterable[int]) -> str:
    """(0, 1, 2, 3, 8) -> `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def format_ns(ns: int | float) -> str:
    """61_000 -> `61.0us`; three figures are enough for a reader, the journal has all of them."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        # 999_950 ns would print as 1000.0us; the next unit takes over where rounding would.
        if abs(ns) >= size * 0.99995:
            return f"{ns / size:.1f}{unit}"
    return f"{round(ns)}ns"


def format_size(size_bytes: int) -> str:
    """67_108_864 -> `64.0MiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= BYTES_PER_UNIT[unit]:
            return f"{size_bytes / BYTES_PER_UNIT[unit]:.1f}{unit}"
    return f"{size_bytes}B"
