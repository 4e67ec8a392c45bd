"""The arguments and the returns of every control operation, as typed structs.

`asid.ops` names the operations and says which struct belongs to which. One definition serves the daemon's check, the
JSON Schema and docs/protocol.md, so a docstring here is a sentence of the manual.

Arguments are exact: a bool is no int, a float is no int, an unknown field is refused, every number has a range.
Returns may grow fields, so a client must ignore those that it does not know.
Units are last in a name: `_ns` nanoseconds, `_ms` milliseconds, `_hz` per second. `target` is the target grammar of the
command line (`c0`, `c0h1`, `vm1`, `vm1/2`, lists, ranges, globs). VMs are 1..n in the order of the config, 0 is none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

TARGET_LENGTH_MAX = 256  # characters
NAME_LENGTH_MAX = 64  # characters; ids, idempotency keys, names of clients and policies
TEXT_LENGTH_MAX = 900  # characters of a mark
INJECT_COUNT_MAX = 10_000_000
INJECT_RATE_HZ_MAX = 1_000_000
INJECT_INLINE_MAX = 1_000  # more than this, or any rate, makes the injection a job
STALL_MS_MAX = 60_000
HOLD_TTL_MS_MAX = 3_600_000
WAIT_MS_MAX = 600_000
FETCH_EVENTS_MAX = 1_000  # records in one answer of events.fetch
STATS_ROWS_MAX = 1_000  # rows in one answer of stats.get
TOPIC_LENGTH_MAX = 64
TOPICS_MAX = 32
OBJECTS_MAX = 64  # objects in one change of a mapping; there are fewer
INT63_MAX = 2**63 - 1

assert INJECT_INLINE_MAX < INJECT_COUNT_MAX, "else no count would make a job"

Target = Annotated[str, Meta(min_length=1, max_length=TARGET_LENGTH_MAX, description="target grammar, e.g. c0h1")]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
OptName = Annotated[str, Meta(max_length=NAME_LENGTH_MAX)]
Count = Annotated[int, Meta(ge=1, le=INJECT_COUNT_MAX, description="for each hyperthread of the target")]
RateHz = Annotated[int, Meta(ge=0, le=INJECT_RATE_HZ_MAX, description="a second, for each hyperthread; 0: all at once")]
Gaps = Annotated[
    Literal["even", "random"], Meta(description="random: exponential, so that at no moment one is more likely")
]
GapsSeed = Annotated[int, Meta(ge=0, le=INT63_MAX, description="of random gaps")]
Seq = Annotated[int, Meta(ge=0, le=INT63_MAX, description="number of a record")]
# The end is said by looking ahead: `$` would also match in front of a final line end.
Reason = Annotated[str, Meta(pattern=r"^[A-Z0-9_]{1,64}(?![\s\S])", description="exit reason, the kernel's name")]
ObjectNames = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX)]],
    Meta(min_length=1, max_length=OBJECTS_MAX, description="objects of the kernel, as asid space show names them"),
]
Role = Literal["observer", "operator", "admin"]


class Args(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all arguments."""


class Ret(Struct, frozen=True):
    """Base of all returns."""


class Nothing(Args, frozen=True):
    """No argument."""


# ---------------------------------------------------------------- session


class HelloArgs(Args, frozen=True):
    """Who the client is. The name owns the client's locks; the role asked for can only be lower than the one it has."""

    name: OptName = ""
    role: Literal["", "observer", "operator", "admin"] = ""


class HelloRet(Ret, frozen=True):
    """Versions, limits and addresses. `limits` names every limit that a request can meet."""

    asid: str
    protocol: int
    boot_id: str
    instance: str
    pid: int
    client: str
    role: Role
    capabilities: list[str]
    limits: dict[str, int]
    telemetry: str
    run_dir: str
    draining: bool
    seq: int


class PingRet(Ret, frozen=True):
    """The daemon's clock and the number of its last record."""

    t: int
    seq: int


class SchemaArgs(Args, frozen=True):
    """One operation; all of them, and the events, when empty."""

    op: OptName = ""


class SchemaRet(Ret, frozen=True):
    """JSON Schema: `ops` with their arguments and returns (in `$defs`), `errors`, `limits`, `events`: one, by type."""

    schema: dict[str, Any]


# ---------------------------------------------------------------- looking


class TargetArgs(Args, frozen=True):
    """Objects to look at; `c*` is all of them."""

    target: Target = "c*"


class StatusRet(Ret, frozen=True):
    """One screen: `state` is starting, ready, degraded (a sibling or a core is out), draining or failed."""

    state: Literal["starting", "ready", "degraded", "draining", "failed"]
    name: str
    policy: str
    kick: str
    seed: int
    started_ns: int
    run_dir: str
    cores: list[dict[str, Any]]
    counters: dict[str, int] = {}
    warnings: list[str] = []


class HtListRet(Ret, frozen=True):
    """A map a hyperthread: name, core, ht, pid, inc, mode, vm, vcpu, exits, full, nmis, mces."""

    hts: list[dict[str, Any]]


class VmListRet(Ret, frozen=True):
    """A map a VM: vm, name, vcpus (a list of {vcpu, ht}), exits, full."""

    vms: list[dict[str, Any]]


class GateGetRet(Ret, frozen=True):
    """A map a core: core, round, open, vm (that has the core; 0: none, or several under `none`), phase, waiting, holder
    (client name or empty), held_ns."""

    gates: list[dict[str, Any]]


class StatsGetArgs(Args, frozen=True):
    """Whose exits; `after` is the `next` of the answer before, to go on from there."""

    target: Target = "c*"
    after: Annotated[str, Meta(max_length=TARGET_LENGTH_MAX)] = ""
    limit: Annotated[int, Meta(ge=1, le=STATS_ROWS_MAX, description="rows")] = 500


class StatsGetRet(Ret, frozen=True):
    """A map per hyperthread, VM and exit reason: n, full, sum_ns, min_ns, max_ns, hist. `next` names the last row told
    when there are more, and is empty when there are none. `totals` are of all the targets, each time: an exposure is of
    the hyperthread that was in guest, the death of a coordinator of its core as a whole."""

    rows: list[dict[str, Any]]
    totals: dict[str, Any] = {}
    next: str = ""


class HistGetArgs(Args, frozen=True):
    """Which distribution of which hyperthreads; `reason` is for exits."""

    what: Literal["exit", "leave", "gate.wait", "exposure"]
    target: Target = "c*"
    reason: OptName = ""


class HistGetRet(Ret, frozen=True):
    """Buckets `[bucket, count]` with bucket = int(4 * log2(ns)), summed over the targets. An exposure is of the
    hyperthread that was in guest."""

    buckets: list[tuple[int, int]]
    n: int
    min_ns: int = 0
    max_ns: int = 0


class PolicyListRet(Ret, frozen=True):
    """The policies that can be set and the one in force."""

    policies: list[dict[str, Any]]
    current: str
    kick: str


class ConfigGetRet(Ret, frozen=True):
    """The resolved configuration."""

    config: dict[str, Any]


class SpaceGetArgs(Args, frozen=True):
    """A VM by its name or as `vm1`; all of them when empty. Of many VMs ask one at a time: an answer has a limit."""

    vm: OptName = ""


class SpaceGetRet(Ret, frozen=True):
    """A map a VM: vm, name, changing (hyperthreads are being told of a change), objects (a map each: object, whose,
    step, level, split, ranges, and bytes: asked, slack) and totals (bytes: mapped, asked, slack, secret; ranges;
    directories; generation: number of the machine's last change of mappings that was this VM's, 0 before)."""

    spaces: list[dict[str, Any]]


# ---------------------------------------------------------------- injecting


class InjectExitArgs(Args, frozen=True):
    """VM exits. What is mapped and the policy decide where one is handled. `full`: yes, it needs the full address space
    whatever is mapped; no, its details ask for nothing beyond the least; auto, for what this reason's usually do."""

    target: Target
    reason: Reason = "EPT_VIOLATION"
    count: Count = 1
    rate_hz: RateHz = 0
    gaps: Gaps = "even"
    seed: GapsSeed = 0
    full: Literal["auto", "yes", "no"] = "auto"
    wait: bool = False


class InjectNmiArgs(Args, frozen=True):
    """NMIs. Two that meet an NMI in progress become one, as on x86."""

    target: Target
    count: Count = 1
    rate_hz: RateHz = 0
    gaps: Gaps = "even"
    seed: GapsSeed = 0
    wait: bool = False


class InjectMceArgs(Args, frozen=True):
    """Machine checks: to the target alone (local; LMCE), or to every sibling of its core, whose handlers then meet
    (broadcast: one injection a sibling); auto is what the configuration says (`mce.mode`). After a fatal one no guest
    runs on that core any more."""

    target: Target
    scope: Literal["auto", "local", "broadcast"] = "auto"
    severity: Literal["corrected", "recoverable", "fatal"] = "recoverable"
    count: Count = 1
    rate_hz: RateHz = 0
    gaps: Gaps = "even"
    seed: GapsSeed = 0
    wait: bool = False


class InjectIrqArgs(Args, frozen=True):
    """Device interrupts, taken wherever the target stands: in guest (an EXTERNAL_INTERRUPT exit), in the isolated
    address space, in HOST, or parked, with or without a vCPU. `full`: whether the handler makes a leave first; auto is
    yes, unless everything that a device's handler touches is mapped; no, it touches nothing but what is mapped.
    `vector` goes into the inject record, and changes nothing else."""

    target: Target
    vector: Annotated[int, Meta(ge=32, le=255)] = 236
    full: Literal["auto", "yes", "no"] = "auto"
    count: Count = 1
    rate_hz: RateHz = 0
    gaps: Gaps = "even"
    seed: GapsSeed = 0
    wait: bool = False


class InjectStallArgs(Args, frozen=True):
    """Stop the process (SIGSTOP) and let it go on (SIGCONT) after `for_ms`; it may be fenced meanwhile."""

    target: Target
    for_ms: Annotated[int, Meta(ge=1, le=STALL_MS_MAX)] = 100
    wait: bool = False


class InjectKillArgs(Args, frozen=True):
    """SIGKILL the hyperthreads, or the coordinators of their cores."""

    target: Target
    what: Literal["ht", "coordinator"] = "ht"
    wait: bool = False


class InjectRet(Ret, frozen=True):
    """`accepted` is exact. `ids` are the first of its inject records, each of which gets one inject.done; exits and
    interrupts of one hyperthread share a record. With wait the other counts add up to `accepted`. With a job they are
    those of its result; the first answer then says accepted 0 and names the job."""

    accepted: int
    handled: int = 0
    merged: int = 0
    lost: int = 0
    refused: int = 0
    ids: list[int] = []
    job: str = ""


# ---------------------------------------------------------------- changing


class GateHoldArgs(Args, frozen=True):
    """Keep the gates of these cores closed for one client, for at most `ttl_ms`; again: renews."""

    target: Target
    ttl_ms: Annotated[int, Meta(ge=1, le=HOLD_TTL_MS_MAX)] = 10_000


class GateReleaseArgs(Args, frozen=True):
    """Let go; with force also what another client holds."""

    target: Target
    force: bool = False


class GateRet(Ret, frozen=True):
    """Cores held or released, and for a hold the time of its end."""

    cores: list[int]
    until_ns: int = 0


class PolicySetArgs(Args, frozen=True):
    """Policy for the whole machine: all gates are held, and once nobody has a lease everybody is told; then they open.
    An empty kick is the one that was chosen last, or the policy's own. One that the policy has not is refused."""

    name: Name
    kick: Literal["", "ack", "send", "rendezvous", "stun", "bare"] = ""


class PolicySetRet(Ret, frozen=True):
    """What was in force before and what is now. kick: `bare` when nobody is kicked."""

    old: str
    new: str
    kick: str


class SpaceMapArgs(Args, frozen=True):
    """Objects to map for a VM, all or none. auto: each in pages of its own. Whose data a VM must not reach is refused
    unless `allow_secrets`; what else lies in the entries of a higher level is not."""

    vm: Name
    objects: ObjectNames
    level: Literal["auto", "PTE", "PMD", "PUD", "P4D", "PGD"] = "auto"
    split: Literal["auto", "yes", "no"] = "auto"
    allow_secrets: bool = False


class SpaceUnmapArgs(Args, frozen=True):
    """Objects to unmap for a VM, all or none."""

    vm: Name
    objects: ObjectNames


class SpaceChangeRet(Ret, frozen=True):
    """What was changed, once every hyperthread that lives has it. mapped, secret: bytes that the VM reaches, and those
    of the host or of other VMs among them, before and after. lacks: objects that the handler of an isolation fault
    misses now: such a fault is forced into the full address space, or stops the hyperthread."""

    vm: int
    name: str
    generation: int
    changed: list[str]
    mapped: tuple[int, int]
    secret: tuple[int, int]
    lacks: list[str] = []


class HtPlugArgs(Args, frozen=True):
    """Hyperthreads to give back."""

    target: Target


class HtUnplugArgs(Args, frozen=True):
    """Hyperthreads to take away; without force one that runs a vCPU leaves the gate in order first."""

    target: Target
    force: bool = False


class HtRet(Ret, frozen=True):
    """Names of the hyperthreads changed; those that were so already are not in it."""

    changed: list[str]


class VcpuAttachArgs(Args, frozen=True):
    """Pin a vCPU (`vm1/0`) to a free hyperthread (`c0h1`)."""

    target: Target
    to: Target


class VcpuDetachArgs(Args, frozen=True):
    """Take vCPUs off their hyperthreads."""

    target: Target


class VcpuRet(Ret, frozen=True):
    """`[vm, vcpu, hyperthread]` of each vCPU changed."""

    changed: list[tuple[int, int, str]]


# ---------------------------------------------------------------- jobs, events, end


class JobArgs(Args, frozen=True):
    """A job's name."""

    job: Name


class JobWaitArgs(Args, frozen=True):
    """Wait for the end of a job; after `timeout_ms` the answer is the job as it stands, still running."""

    job: Name
    timeout_ms: Annotated[int, Meta(ge=1, le=WAIT_MS_MAX)] = 1_000


class JobRet(Ret, frozen=True):
    """`done` of `total` (count times places) are delivered. cancelled: a cancel, or the end of the daemon, came before
    the last of them. `result` is the operation's return in the end, `error` its error map when failed."""

    job: str
    op: str
    state: Literal["running", "done", "failed", "cancelled"]
    done: int = 0
    total: int = 0
    seq: int = 0
    result: dict[str, Any] = {}
    error: dict[str, Any] = {}


class EventsFetchArgs(Args, frozen=True):
    """Records from `since` on (inclusive), from the journal. `topics` are prefixes; none means all."""

    since: Seq
    limit: Annotated[int, Meta(ge=1, le=FETCH_EVENTS_MAX)] = 200
    until: Seq = INT63_MAX
    topics: Annotated[
        list[Annotated[str, Meta(max_length=TOPIC_LENGTH_MAX)]], Meta(max_length=TOPICS_MAX, description="prefixes")
    ] = []


class EventsFetchRet(Ret, frozen=True):
    """Records in order, each with its `topic`. `next` is where to go on; `complete` says that the end (until, or the
    last record written) was reached; `head` is the last record written."""

    events: list[dict[str, Any]]
    next: int
    complete: bool
    head: int


class MarkArgs(Args, frozen=True):
    """A remark for the journal."""

    text: Annotated[str, Meta(min_length=1, max_length=TEXT_LENGTH_MAX)]


class MarkRet(Ret, frozen=True):
    """The number of the mark's record."""

    seq: int


class StopArgs(Args, frozen=True):
    """Drain in order, or with force kill the children at once."""

    force: bool = False
    reason: OptName = "stop"


class StopRet(Ret, frozen=True):
    """The job that ends with the daemon."""

    job: str = ""
