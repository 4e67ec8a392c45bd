"""The configuration: what each key means, its default, and what it may be.

One definition serves four: the check of a file, `asid config show`, the JSON Schema of `asid schema config`, and
docs/config.md. Reading TOML and finding the line of a mistake is `asid.config_file`; the rules that one type cannot
express are `asid.config_rules`. `load_config` and `load` are the only doors.

Durations, rates and targets are kept as they were written, so that what is shown is what was given; the `_ns` and
`_hz` properties are their checked values. A value that this version would have to ignore is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from asid.config_costs import Costs
from asid.core.limits import MCE_TIMEOUT_NS
from asid.targets import Place, Topology, VmPlaces, resolve
from asid.units import parse_duration_ns, parse_rate_hz

SMT_ALLOWED = (1, 2, 4, 8)
CORES_MAX = 64
SEED_MAX = 2**63 - 1
KICK_DEADLINE_MIN_NS = 5_000_000
KICK_DEADLINE_MAX_NS = 400_000_000
MCE_TIMEOUT_MIN_NS = 10_000_000  # a sibling that only waits for a CPU has to come in that time
MCE_TIMEOUT_MAX_NS = MCE_TIMEOUT_NS
INJECT_COUNT_MAX = 10_000_000
HALT_POLL_MAX_NS = 1_000_000
MAPPINGS = ("allowed", "rfc", "minimal")  # those that have a name; any other is a file
SCALE_MIN = 1e-6  # 1 / asid.guest.base.SCALE_MAX: a speed-up here is a factor of durations there

# Below a scheduler's slice on a busy host a kick deadline would fence hyperthreads that are only waiting for a CPU.
# Above the gate's retry (core.limits.RETRY_NS) a waiter would ask again before the sibling in its way is fenced.
assert KICK_DEADLINE_MIN_NS < KICK_DEADLINE_MAX_NS

InjectKind = Literal["exit", "nmi", "mce", "irq", "stall", "kill"]


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The emulated hardware."""

    cores: Annotated[int, Meta(ge=1, le=CORES_MAX, description="Physical cores, each with a coordinator process.")] = 1
    smt: Annotated[int, Meta(description="SMT threads of one core: 1, 2, 4 or 8. Each is a process.")] = 2


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where exits are handled, who is kicked, and how long anybody waits."""

    name: Annotated[
        str,
        Meta(description="none, nosmt, core-sched, kick-every-exit, kick-except-idle, asi, asi-irqoff or asi-stun."),
    ] = "asi"
    kick: Annotated[
        Literal["ack", "send", "rendezvous", "stun"],
        Meta(
            description="Who waits at a leave: ack = the leaver, until all siblings are out; send = nobody;"
            " rendezvous = all, before and after; stun = the siblings, until the buffers are flushed."
            " Of policies that have a choice."
        ),
    ] = "ack"
    kick_deadline: Annotated[
        str, Meta(description="A sibling that has not answered a kick by then is fenced (killed). 5ms to 400ms.")
    ] = "50ms"
    turn: Annotated[str, Meta(description="How long a VM keeps a core that another VM is waiting for.")] = "2ms"
    nmi: Annotated[
        Literal["full", "isolated"],
        Meta(description="Address space in which NMI and #MC handlers run. isolated: no leave."),
    ] = "full"

    @property
    def kick_deadline_ns(self) -> int:
        return parse_duration_ns(self.kick_deadline, "policy.kick_deadline")

    @property
    def turn_ns(self) -> int:
        return parse_duration_ns(self.turn, "policy.turn")


class Apic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The local APIC through which siblings are kicked."""

    mode: Annotated[
        Literal["x2apic", "xapic", "shorthand"],
        Meta(description="x2apic: an IPI is one write; xapic: two; shorthand: xAPIC, one for all siblings."),
    ] = "x2apic"
    icr_fix: Annotated[bool, Meta(description="xAPIC: the NMI path restores ICR2; false shows the torn write.")] = True


class Mce(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Machine checks."""

    mode: Annotated[
        Literal["local", "broadcast"],
        Meta(description="Whom one reaches that does not say: its target (LMCE, AMD), or all siblings too (Intel)."),
    ] = "local"
    timeout: Annotated[
        str, Meta(description="How long a handler waits for its siblings in the rendezvous. 10ms to 1s.")
    ] = "1s"
    nested: Annotated[
        Literal["hold", "shutdown"],
        Meta(description="One inside another: held until the first is over, or (x86: MCIP) the hyperthread's end."),
    ] = "hold"

    @property
    def timeout_ns(self) -> int:
        return parse_duration_ns(self.timeout, "mce.timeout")


class Space(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The isolated address spaces, as `asid space` builds them and runs have them."""

    layout: Annotated[
        Literal["x86-64-4level", "x86-64-5level"], Meta(description="Page-table layout of the emulated kernel.")
    ] = "x86-64-4level"
    kallsyms: Annotated[
        str, Meta(description="A kallsyms or System.map file, plain or gzip; empty = a small table of our own.")
    ] = ""
    mapping: Annotated[
        str,
        Meta(
            description="What each VM's isolated space maps at the start: allowed = all that handlers touch and a VM"
            " may reach; rfc; minimal; or a file that `asid space learn` wrote."
        ),
    ] = "allowed"
    page_fault_stack: Annotated[bool, Meta(description="Report isolation faults with their call trace.")] = True


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How guest time passes."""

    mode: Annotated[
        Literal["real", "scaled", "max"],
        Meta(description="real = as the source says; scaled = `scale` times as fast; max = without pauses."),
    ] = "real"
    scale: Annotated[float, Meta(ge=SCALE_MIN, le=1000, description="Speed-up of guest time when mode is scaled.")] = (
        1.0
    )


class Guest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a VM's exits come from."""

    source: Annotated[
        Literal["idle", "mix", "trace", "kvm"],
        Meta(
            description="idle = spins, all exits injected; mix = drawn from `table`; trace = replayed from `file`;"
            " kvm = a real guest, which runs `program` on /dev/kvm."
        ),
    ] = "idle"
    table: Annotated[
        str, Meta(description="mix: a TOML table of exits, `perf kvm stat report` text, or counts (kvmexit, kvm_stat).")
    ] = ""
    file: Annotated[str, Meta(description="trace: a recording by ftrace, trace-cmd report or perf script.")] = ""
    rate: Annotated[
        str,
        Meta(
            description="mix: exits a second of one vCPU; empty = the sum of the table's own rates, else 1000/s."
            " kvm: of the programs mix and halt; empty = 1000/s."
        ),
    ] = ""
    program: Annotated[
        str,
        Meta(
            description="kvm: what the guest runs: mix (the default), spin, port, timer, mmio, halt, cpuid or prober."
        ),
    ] = ""
    asleep: Annotated[
        float,
        Meta(
            ge=0.0,
            le=0.99,
            description="mix, of counts without times: what part of the time outside handlers a halting vCPU sleeps.",
        ),
    ] = 0.5
    thread: Annotated[str, Meta(description="trace: the thread (pid or vCPU) to replay; empty = by vCPU number.")] = ""
    loop: Annotated[bool, Meta(description="trace: start again at the end of the recording.")] = False
    halt_poll: Annotated[
        str,
        Meta(
            description="A halt that ends within this is waited for where its exit is handled, and the vCPU is not"
            " scheduled out; KVM's halt_poll_ns. 0s (off) to 1ms."
        ),
    ] = "0s"

    @property
    def halt_poll_ns(self) -> int:
        return parse_duration_ns(self.halt_poll, "guest.halt_poll")

    @property
    def rate_hz(self) -> float:
        """0.0 when the table's own rates, or the default, are to be used."""
        return parse_rate_hz(self.rate, "guest.rate") if self.rate else 0.0


class Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A virtual machine. It is vm1, vm2, ... in the order of the file, and also known by its name."""

    name: Annotated[str, Meta(description="A name for targets and tables; empty = vm1, vm2, ...")] = ""
    on: Annotated[
        tuple[str, ...], Meta(description="The hyperthreads of its vCPUs: vCPU 0 is on the first, and so on.")
    ] = ()
    guest: Annotated[Guest, Meta(description="Where its exits come from.")] = Guest()


class Inject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happens to a hyperthread at a set time of the run."""

    what: Annotated[InjectKind, Meta(description="What happens.")]
    target: Annotated[str, Meta(description="To which hyperthreads.")]
    at: Annotated[str, Meta(description="When, from the start of the run.")] = "0s"
    reason: Annotated[str, Meta(description="exit: the kernel's name of the exit reason.")] = ""
    count: Annotated[int, Meta(ge=1, le=INJECT_COUNT_MAX, description="How often.")] = 1
    rate: Annotated[str, Meta(description="Pace of a count above 1; empty = at once.")] = ""
    duration: Annotated[str, Meta(description="stall: for how long.")] = "100ms"

    @property
    def at_ns(self) -> int:
        return parse_duration_ns(self.at, "inject.at")

    @property
    def rate_hz(self) -> float:
        """0.0 when all are to happen at once."""
        return parse_rate_hz(self.rate, "inject.rate") if self.rate else 0.0

    @property
    def duration_ns(self) -> int:
        return parse_duration_ns(self.duration, "inject.duration")


class Slow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hyperthreads that answer late: a host whose scheduler is busy, in a bottle."""

    target: Annotated[str, Meta(description="Which hyperthreads.")]
    delay: Annotated[str, Meta(description="How long each waits before it answers a kick.")] = "2ms"
    signal: Annotated[
        str, Meta(description="How much later a kick's signal comes to a real guest, which runs on until then.")
    ] = "0ns"

    @property
    def delay_ns(self) -> int:
        return parse_duration_ns(self.delay, "faults.slow.delay")

    @property
    def signal_ns(self) -> int:
        return parse_duration_ns(self.signal, "faults.slow.signal")


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wrong with this machine from the start."""

    slow: Annotated[tuple[Slow, ...], Meta(description="Hyperthreads that answer late.")] = ()


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record of a run on disk."""

    flush: Annotated[str, Meta(description="Records reach the disk at least this often (group commit).")] = "100ms"
    kvm_events: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Of real guests, KVM's own events from tracefs: auto = where it can be read; on = or the run"
            " does not start; off. The environment's ASID_TRACEFS names another tracefs."
        ),
    ] = "auto"

    @property
    def flush_ns(self) -> int:
        return parse_duration_ns(self.flush, "journal.flush")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole configuration. Every key has a default; `Config()` is one core of two hyperthreads and no VM."""

    name: Annotated[str, Meta(description="Names the run and its directory.")] = "asid"
    seed: Annotated[int, Meta(ge=0, le=SEED_MAX, description="Decides every draw of the guests' mixes.")] = 1
    machine: Annotated[Machine, Meta(description="The emulated hardware.")] = Machine()
    policy: Annotated[Policy, Meta(description="How leaves, kicks and turns are done.")] = Policy()
    apic: Annotated[Apic, Meta(description="The local APIC.")] = Apic()
    mce: Annotated[Mce, Meta(description="Machine checks.")] = Mce()
    space: Annotated[Space, Meta(description="The isolated address space.")] = Space()
    pace: Annotated[Pace, Meta(description="How guest time passes.")] = Pace()
    vm: Annotated[tuple[Vm, ...], Meta(description="The virtual machines.")] = ()
    inject: Annotated[tuple[Inject, ...], Meta(description="What happens, and when.")] = ()
    faults: Annotated[Faults, Meta(description="What is wrong from the start.")] = Faults()
    journal: Annotated[Journal, Meta(description="The record on disk.")] = Journal()
    costs: Annotated[Costs, Meta(description="What steps take in virtual time.")] = Costs()

    @property
    def bare_topology(self) -> Topology:
        """Cores and hyperthreads without the VMs: what a VM's own `on` may name."""
        return Topology(self.machine.cores, self.machine.smt)

    @property
    def topology(self) -> Topology:
        """What targets of this configuration are resolved against."""
        return Topology(
            self.machine.cores,
            self.machine.smt,
            tuple(VmPlaces(vm_name(self, number), self.places_of(number)) for number in range(1, len(self.vm) + 1)),
        )

    def places_of(self, vm: int) -> tuple[Place, ...]:
        """The hyperthreads of VM `vm` (from 1), by vCPU number: the items of `on` in order, each item sorted."""
        return tuple(place for item in self.vm[vm - 1].on for place in resolve(item, self.bare_topology))

    @property
    def real_vms(self) -> tuple[int, ...]:
        """The VMs, from 1, that are real guests."""
        return tuple(number for number, vm in enumerate(self.vm, start=1) if vm.guest.source == "kvm")

    def vcpu_at(self, core: int, ht: int) -> tuple[int, int] | None:
        """(vm from 1, vcpu) that the hyperthread runs at the start, or None."""
        for vm in range(1, len(self.vm) + 1):
            places = self.places_of(vm)
            if (core, ht) in places:
                return vm, places.index((core, ht))
        return None


# Names that the rest of the project uses for one entry.
GuestSpec = Guest
InjectSpec = Inject


class Loaded(msgspec.Struct, frozen=True):
    """A configuration and where it came from.

    path: as given, None for a mapping. text: the file as read ("" for a mapping). base_dir: what the files that the
    configuration names are relative to. origin: dotted key -> "default", "FILE:LINE" or "command line".
    """

    config: Config
    path: Path | None
    text: str
    base_dir: Path
    origin: dict[str, str]


def vm_name(config: Config, vm: int) -> str:
    """The name of VM `vm` (from 1)."""
    return config.vm[vm - 1].name or f"vm{vm}"


def load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read and check a configuration. Raise ConfigError (InputError when the file cannot be read).

    source: a TOML file, a `config.resolved.json` of a run, or a mapping of the same shape.
    overrides: dotted key -> value, from the command line; `vm.0.guest.rate` reaches into a list.
    """
    from asid.config_file import load_checked

    return load_checked(source, overrides or {})


def load_config(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Like load, for callers who need no origins."""
    return load(source, overrides).config


def resolved(loaded: Loaded) -> dict[str, Any]:
    """The whole configuration as plain values, files absolute: what `config.resolved.json` holds and load reads."""
    plain: dict[str, Any] = msgspec.to_builtins(loaded.config)
    for number, vm in enumerate(plain["vm"], start=1):
        vm["name"] = vm_name(loaded.config, number)
        for key in ("table", "file"):
            if vm["guest"][key]:
                vm["guest"][key] = str((loaded.base_dir / vm["guest"][key]).resolve())
    space = plain["space"]
    if space["kallsyms"]:
        space["kallsyms"] = str((loaded.base_dir / space["kallsyms"]).resolve())
    if space["mapping"] not in MAPPINGS:
        space["mapping"] = str((loaded.base_dir / space["mapping"]).resolve())
    plain["costs"]["file"] = ""  # its rows are in the table
    return plain


def mapping_given(name: str) -> str:
    """Return a mapping of the command line as a value of `space.mapping`: a file there is counted from here."""
    return name if not name or name in MAPPINGS else str(Path(name).absolute())


def json_schema() -> dict[str, Any]:
    """JSON Schema of a configuration."""
    schema: dict[str, Any] = msgspec.json.schema(Config)
    return schema
