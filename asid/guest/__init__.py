"""Where VM exits come from: `idle`, `mix` and `trace`; and real guests, which are their own source.

`make_source` makes the source of one vCPU from a configuration's guest table; `asid.guest.base` says what a source is.
A guest on /dev/kvm is none: it runs, and exits when it does. See `asid.guest.kvm`.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from asid.errors import ConfigError
from asid.guest.base import Exit, GuestSpec, Paced, Source, check_pace, pace_exit
from asid.guest.idle import IdleSource
from asid.guest.mix import RATE_HZ_DEFAULT, RATE_HZ_MAX, MixSource, MixTable, read_mix
from asid.guest.trace import TraceSource, VcpuThread, find_thread, thread_exits, vcpus
from asid.trace.reader import read_trace
from asid.units import parse_rate_hz

FILE_KEYS = {"mix": "table", "trace": "file"}  # by source: the key that names its file

__all__ = [
    "FILE_KEYS",
    "Exit",
    "GuestSpec",
    "IdleSource",
    "MixSource",
    "Paced",
    "Source",
    "TraceSource",
    "VcpuThread",
    "check_pace",
    "guest_path",
    "make_source",
    "mix_rate_hz",
    "pace_exit",
    "source_random",
    "vcpus",
]


def source_random(seed: int, vm: int, vcpu: int) -> Random:
    """Return the random numbers of one vCPU: the same for the same three numbers, in every process and Python build."""
    # A text seed is hashed with SHA-512, not with hash(): PYTHONHASHSEED has no part in it.
    return Random(f"asid guest seed={seed} vm={vm} vcpu={vcpu}")


def make_source(
    spec: GuestSpec,
    *,
    vm: int,
    vcpu: int,
    seed: int,
    base_dir: Path,
    pace: str = "real",
    scale: float = 1.0,
) -> Source:
    """Return the source of exits of vCPU `vcpu` of VM `vm`.

    Paths in `spec` count from `base_dir`, the directory of the configuration. Raise ConfigError for a spec that cannot
    be used and InputError for a file that cannot. `pace` and `scale` are those of `pace_exit`; they change times only,
    never which exits come, which of them are full, or what their details are.
    """
    check_pace(pace, scale)
    random = source_random(seed, vm, vcpu)
    if spec.source == "idle":
        return IdleSource()
    if spec.source == "mix":
        table = read_mix(guest_path(spec, base_dir))
        mix = MixSource(table, mix_rate_hz(spec, table), random, timeless=pace == "max", asleep=spec.asleep)
        return mix if pace != "scaled" else Paced(mix, pace, scale)
    if spec.source == "trace":
        trace = read_trace(guest_path(spec, base_dir))
        thread = find_thread(trace, spec.thread, vcpu)
        exits = thread_exits(trace, thread, random)
        return TraceSource([pace_exit(event, pace, scale) for event in exits], spec.loop)
    raise ConfigError(
        f"guest.source = {spec.source!r}",
        where=f"vm{vm}",
        state="a real guest exits when it exits: no source can tell when that will be" if spec.source == "kvm" else "",
        allowed="idle, mix or trace; real guests run in the live machine alone",
        hint="asid run CONFIG --engine live; or trace-cmd record -e kvm, and the recording as a trace.",
    )


def guest_path(spec: GuestSpec, base_dir: Path) -> Path:
    """Return the file that the guest's exits come from: of source mix its table, of trace its recording."""
    key = FILE_KEYS[spec.source]
    name = spec.table if key == "table" else spec.file
    if not name:
        raise ConfigError(
            f"guest.{key} is empty",
            where=f"guest source {spec.source!r}",
            allowed="the path of a file",
            hint='Try table = "tables/web.toml".' if key == "table" else 'Try file = "recording.txt".',
        )
    return base_dir / Path(name).expanduser()


def mix_rate_hz(spec: GuestSpec, table: MixTable) -> float:
    """The configuration's rate; where that is empty, the sum of the table's own rates; of counts that say for how long
    and of how many vCPUs they are, the rate that makes as many; else 1000/s.

    A rate of the configuration's own scales the whole table: the rows keep their parts of it.
    """
    if spec.rate:
        rate_hz = parse_rate_hz(spec.rate, "guest.rate")
    else:
        own_hz = table.rate_hz
        if own_hz is None:
            own_hz = table.rate_over_hz(table.over_ns, table.vcpus, spec.asleep) or RATE_HZ_DEFAULT
        rate_hz = own_hz
    if 0.0 < rate_hz <= RATE_HZ_MAX:
        return rate_hz
    raise ConfigError(
        f"guest.rate = {spec.rate!r}",
        where=table.path,
        state="the table has rates" if table.rate_hz is not None else "the table has shares or counts, no rates",
        allowed=f"a rate above 0, at most {RATE_HZ_MAX:g}/s",
        hint="Try 1000/s: exits a second of guest time, of one vCPU.",
    )
