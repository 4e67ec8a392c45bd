"""From a recording, or a table of counts, to a configuration that plays it, and what was assumed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asid.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asid.guest.mix import MixTable
    from asid.guest.trace import VcpuThread

SIBLINGS_DEFAULT: Final = 2  # of a table, which says nothing of vCPUs
RATE_DEFAULT: Final = "2000/s"  # likewise
ASLEEP: Final = (0.1, 0.9)  # the ends, where it is not known how much a vCPU sleeps
EXITS_A_VCPU: Final = 150  # that are enough to play: ratios are of the same exits
OWN_NS: Final = 1_000  # what an exit takes besides what is recorded of it, about
EXITS_MAX: Final = 2_000  # of a recording that is longer


class Wanted(NamedTuple):
    """How a file is to be played. siblings: hyperthreads of a core, 0 for what the vCPUs need, up to 8. pace, scale: as
    in the [pace] of a configuration. Of a table: rate: exits a second of guest time of one vCPU; over_ns: in what time,
    and vcpus: of how many vCPUs its exits were counted, from which the rate follows. "" and 0 for what its text says.
    """

    siblings: int = 0
    rate: str = ""
    seed: int = 1
    policy: str = "asi"
    kick: str = "ack"
    pace: str = "real"
    scale: float = 1.0
    loop: bool = False
    over_ns: int = 0
    vcpus: int = 0


class Assumption(NamedTuple):
    """What had to be assumed and could be otherwise. overrides: its two other values, as keys of a configuration."""

    what: str
    words: tuple[str, str]
    overrides: tuple[dict[str, Any], dict[str, Any]]


class Recorded(NamedTuple):
    """A configuration, and what was assumed. has_end: the guests come to an end by themselves. enough_ns: what time of
    it says as much as more would. rate_hz: exits a second of guest time of one vCPU where that was assumed, else 0."""

    config: dict[str, Any]
    words: list[str]
    has_end: bool
    enough_ns: int = 0
    rate_hz: float = 0.0
    further: tuple[Assumption, ...] = ()


def recorded(path: Path, wanted: Wanted) -> Recorded:
    """Return the configuration that plays a recording, a `perf kvm stat` text or a text of counts.

    Raise InputError for anything else, ConfigError where what is wanted does not fit the file.
    """
    from asid.trace.counts import KINDS
    from asid.trace.sniff import foreign, sniff

    kind = sniff(path)
    if kind == "trace":
        return _of_trace(path, wanted)
    if kind == "perf-kvm-stat" or kind in KINDS:
        return _of_table(path, wanted)
    raise foreign(path, kind, "a trace, a perf kvm stat table, or counts by kvmexit, kvm_stat or SystemTap")


def _of_trace(path: Path, wanted: Wanted) -> Recorded:
    from asid.guest.check import recording
    from asid.units import format_ns

    if wanted.over_ns or wanted.vcpus:
        name = "--over" if wanted.over_ns else "--vcpus"
        raise ConfigError(name, where=str(path), state="a recording has times and vCPUs of its own",
                          allowed="with a table of counts", hint=f"Leave {name} out.")  # fmt: skip
    trace = recording(path)
    threads = trace.threads
    guest = {"source": "trace", "file": str(path.resolve()), "loop": wanted.loop}
    config, siblings, cores = _machine(path, len(threads), guest, wanted)
    exits = sum(thread.exits for thread in threads)
    words = [
        f"{path.name}: {_count(len(threads), 'vCPU thread')}, {_count(exits, 'exit')}",
        f"assumed: vCPUs side by side on {_count(cores, 'core')} of {_count(siblings, 'hyperthread')}; a recording does"
        " not say which host CPUs are siblings",
        *(f"note: {note}" for note in trace.notes),
    ]
    enough_ns = _enough_ns(threads)
    if wanted.loop:
        longest_ns = max(thread.span_ns for thread in threads)
        how = (
            f"begins anew whenever it ends, after {format_ns(longest_ns)}" if enough_ns >= longest_ns else "is cut off"
        )
        words.append(f"assumed: all threads begin at the same moment, and each {how}")
    return Recorded(config, words, not wanted.loop, enough_ns)


def _enough_ns(threads: Sequence[VcpuThread]) -> int:
    """Return the time in which threads that begin anew come to enough exits, or once to their end, or to EXITS_MAX."""
    hz = sum(thread.exits / (thread.span_ns + OWN_NS * thread.exits) for thread in threads)
    few_ns, many_ns = (round(n * len(threads) / hz) for n in (EXITS_A_VCPU, EXITS_MAX))
    return min(max(few_ns, max(thread.span_ns for thread in threads)), many_ns)


def _of_table(path: Path, wanted: Wanted) -> Recorded:
    from asid.guest.mix import ASLEEP_DEFAULT, read_mix
    from asid.units import parse_rate_hz

    table = read_mix(path)
    rate, how, assumed = _rate_of(path, table, wanted)
    guest = {"source": "mix", "table": str(path.resolve()), "rate": rate}
    config, siblings, _ = _machine(path, wanted.siblings or SIBLINGS_DEFAULT, guest, wanted)
    exits = round(sum(entry.weight for entry in table.entries))
    words = [
        f"{path.name}: {_count(exits, 'exit')} of {_count(len(table.entries), 'reason')}; drawn at random, since a"
        " table has no order",
        how,
        f"assumed: {_count(siblings, 'vCPU')} of one VM on one core, each with the exits of the whole table",
    ]
    further = []
    if table.timeless:
        words.append("assumed: the text has no times; a handler works as long as published for its reason elsewhere")
    if table.halts:
        words.append(f"assumed: a vCPU that halts sleeps {ASLEEP_DEFAULT:.0%} of the time that handlers leave")
        values = []
        for asleep in ASLEEP:
            own = _rate_of(path, table, wanted, asleep)[0]
            values.append({"vm.0.guest.asleep": asleep, "vm.0.guest.rate": own})
        named = (f"{ASLEEP[0]:.0%}", f"{ASLEEP[1]:.0%}")
        further.append(Assumption("time asleep of a vCPU", named, (values[0], values[1])))
    words += [note if note.startswith("assumed: ") else f"note: {note}" for note in table.notes]
    rate_hz = parse_rate_hz(rate, "--rate")
    enough_ns = round(EXITS_A_VCPU * table.cycle_ns(rate_hz))
    return Recorded(config, words, False, enough_ns, rate_hz if assumed else 0.0, tuple(further))


def _rate_of(path: Path, table: MixTable, wanted: Wanted, asleep: float | None = None) -> tuple[str, str, bool]:
    """Return the rate of a table's exits, where it is from, and whether anything of that was assumed."""
    from asid.guest.mix import ASLEEP_DEFAULT, RATE_HZ_MAX
    from asid.units import format_ns, parse_rate_hz

    each = "exits a second of guest time of each vCPU"
    if wanted.rate:
        return wanted.rate, f"as told: {parse_rate_hz(wanted.rate, '--rate'):,g} {each}", False
    over_ns, vcpus = wanted.over_ns or table.over_ns, wanted.vcpus or table.vcpus or SIBLINGS_DEFAULT
    if not over_ns and wanted.vcpus:
        raise ConfigError(f"--vcpus {wanted.vcpus}", where=str(path), state="the text does not say over what time it"
                          " was counted", allowed="with --over T", hint="Add --over 10s.")  # fmt: skip
    if not over_ns:
        why = "the text does not say over what time it was counted (--over T tells it, or --rate R)"
        return RATE_DEFAULT, f"assumed: {parse_rate_hz(RATE_DEFAULT):,g} {each}; {why}", True
    known = wanted.vcpus or table.vcpus
    told = ("as told" if wanted.over_ns else "as the text says") if known else "assumed"
    rate_hz = table.rate_over_hz(over_ns, vcpus, ASLEEP_DEFAULT if asleep is None else asleep)
    if not 0.0 < rate_hz <= RATE_HZ_MAX:
        took = f"handlers and halts took {format_ns(table.handled_ns)}" if table.handled_ns else "no time"
        raise ConfigError(
            f"{format_ns(over_ns)} of {_count(vcpus, 'vCPU')}", where=str(path), state=took,
            allowed=f"a time that leaves some to the guests, and no more than {RATE_HZ_MAX:g} exits in a second of it",
            hint="Say with --vcpus how many vCPUs were counted, and with --over T how long.",
        )  # fmt: skip
    of = f"{_count(vcpus, 'vCPU')}{'' if known else ' (--vcpus N tells it)'}"
    shown = f"{rate_hz:,.0f}" if rate_hz >= 10 else f"{rate_hz:.2g}"
    return f"{rate_hz:.9f}/s", f"{told}: counted over {format_ns(over_ns)} of {of}: {shown} {each}", not known


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _machine(path: Path, vcpu_count: int, guest: dict[str, Any], wanted: Wanted) -> tuple[dict[str, Any], int, int]:
    """Return a configuration with one VM of `vcpu_count` vCPUs, siblings filled first."""
    from asid.core.limits import SIBLINGS_ALLOWED, SIBLINGS_MAX

    if vcpu_count == 0:
        raise InputError("no vCPU thread", where=str(path), allowed="kvm_exit and kvm_entry events of a thread")
    at_least = wanted.siblings or min(vcpu_count, SIBLINGS_MAX)
    if wanted.siblings and at_least not in SIBLINGS_ALLOWED:
        raise ConfigError(f"--siblings {at_least}", allowed="1, 2, 4 or 8", hint="Try 2.")
    siblings = min(n for n in SIBLINGS_ALLOWED if n >= at_least)
    cores = -(-vcpu_count // siblings)
    places = [f"c{at // siblings}h{at % siblings}" for at in range(vcpu_count)]
    config = {
        "name": name_of(path),
        "seed": wanted.seed,
        "machine": {"cores": cores, "smt": siblings},
        "policy": {"name": wanted.policy, "kick": wanted.kick},
        "pace": {"mode": wanted.pace, "scale": wanted.scale},
        "vm": [{"name": "recorded", "on": places, "guest": guest}],
    }
    return config, siblings, cores


def name_of(path: Path) -> str:
    """Return a name for the run of a file."""
    return "".join(c if c.isalnum() else "-" for c in path.stem)[:40].strip("-") or "replay"
