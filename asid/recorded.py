"""From a recording, or a table of counts, to a configuration that plays it, and what was assumed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from asid.errors import ConfigError, InputError

SIBLINGS_DEFAULT: Final = 2  # of a table, which says nothing of vCPUs
RATE_DEFAULT: Final = "2000/s"  # likewise


class Wanted(NamedTuple):
    """How a file is to be played. siblings: hyperthreads of a core, 0 for what the vCPUs need, up to 8. rate: exits a
    second of one vCPU, of a table. pace, scale: as in the [pace] of a configuration."""

    siblings: int = 0
    rate: str = RATE_DEFAULT
    seed: int = 1
    policy: str = "asi"
    kick: str = "ack"
    pace: str = "real"
    scale: float = 1.0
    loop: bool = False


class Recorded(NamedTuple):
    """A configuration, and what was assumed. has_end: the guests come to an end by themselves."""

    config: dict[str, Any]
    words: list[str]
    has_end: bool


def recorded(path: Path, wanted: Wanted) -> Recorded:
    """Return the configuration that plays a recording or a `perf kvm stat` text. Raise InputError for anything else."""
    from asid.trace.sniff import foreign, sniff

    kind = sniff(path)
    if kind == "trace":
        return _of_trace(path, wanted)
    if kind == "perf-kvm-stat":
        return _of_table(path, wanted)
    raise foreign(path, kind, "trace")


def _of_trace(path: Path, wanted: Wanted) -> Recorded:
    from asid.guest.check import recording

    trace = recording(path)
    threads = trace.threads
    guest = {"source": "trace", "file": str(path.resolve()), "loop": wanted.loop}
    config, siblings, cores = _machine(path, len(threads), guest, wanted)
    exits = sum(thread.exits for thread in threads)
    words = [
        f"{path.name}: {len(threads)} vCPU threads, {exits} exits",
        f"assumed: vCPUs side by side on {cores} core(s) of {siblings} hyperthreads; a recording does not say which"
        " host CPUs are siblings",
        *(f"note: {note}" for note in trace.notes),
    ]
    return Recorded(config, words, not wanted.loop)


def _of_table(path: Path, wanted: Wanted) -> Recorded:
    from asid.trace.perf_kvm_stat import read_table

    table = read_table(path)
    guest = {"source": "mix", "table": str(path.resolve()), "rate": wanted.rate}
    config, _, _ = _machine(path, wanted.siblings or SIBLINGS_DEFAULT, guest, wanted)
    words = [
        f"{path.name}: a table of {len(table.rows)} reasons; drawn at random at {wanted.rate} a vCPU, since a table"
        " has no order",
        *(f"note: {note}" for note in table.notes),
    ]
    return Recorded(config, words, False)


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
