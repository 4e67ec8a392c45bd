"""The operations of the control protocol: name, arguments, return, and what kind of operation each is.

One table. The daemon's checks (`convert_args`), the JSON Schema (`ops_schema`) and docs/protocol.md all come from it.

A *mutating* operation needs an idempotency key, leaves a record in the journal and is refused while the daemon drains;
an *urgent* one is also taken on the urgent socket, where nothing slow is ever in front of it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import msgspec

from asid import optypes as t
from asid.errors import CONTROL_ERRORS, BadArgument, UnknownOp

PROTOCOL_VERSION = 1
MAGIC = b"ASID1"

# Limits of the control protocol. Every one is told in `hello`.
REQUEST_BYTES_MAX = 4_096  # msgpack can blow up a byte into 64 bytes of objects: 4 KiB cost 0.3 ms and 256 KiB at most
REPLY_BYTES_MAX = 262_144
FRAME_BYTES_MAX = 65_536  # the transport's own limit: a longer frame costs the peer its connection
NESTING_MAX = 8
ITEMS_MAX = 64  # entries of one map or list
IN_FLIGHT_MAX = 64  # requests of one client without an answer
RATE_HZ_MAX = 10_000  # requests a second of one client, in the long run
BURST_MAX = 2_000  # requests of one client at once
IDEM_KEYS_MAX = 4_096  # finished operations remembered
JOBS_MAX = 256  # jobs remembered, running ones included
CLIENTS_MAX = 1_024  # clients remembered
TICKETS_MAX = 4_096  # operations under way in the machine
WAITERS_MAX = 4_096  # requests of all clients without an answer
DEADLINE_MS_DEFAULT = 5_000
DEADLINE_MS_MAX = 600_000

LIMITS: dict[str, int] = {
    "request_bytes": REQUEST_BYTES_MAX,
    "reply_bytes": REPLY_BYTES_MAX,
    "frame_bytes": FRAME_BYTES_MAX,
    "nesting": NESTING_MAX,
    "items": ITEMS_MAX,
    "in_flight": IN_FLIGHT_MAX,
    "rate_hz": RATE_HZ_MAX,
    "burst": BURST_MAX,
    "idem_keys": IDEM_KEYS_MAX,
    "jobs": JOBS_MAX,
    "clients": CLIENTS_MAX,
    "tickets": TICKETS_MAX,
    "waiters": WAITERS_MAX,
    "deadline_ms_default": DEADLINE_MS_DEFAULT,
    "deadline_ms": DEADLINE_MS_MAX,
    "inject_count": t.INJECT_COUNT_MAX,
    "inject_inline": t.INJECT_INLINE_MAX,
    "fetch_events": t.FETCH_EVENTS_MAX,
    "stats_rows": t.STATS_ROWS_MAX,
    "space_objects": t.OBJECTS_MAX,
}

assert REQUEST_BYTES_MAX <= FRAME_BYTES_MAX, "a request that is too long gets an error, not a cut connection"
assert t.TEXT_LENGTH_MAX * 4 + 400 <= REQUEST_BYTES_MAX, "the longest text fits into a request, in any script"
assert t.TOPICS_MAX <= ITEMS_MAX
assert t.OBJECTS_MAX <= ITEMS_MAX
assert IN_FLIGHT_MAX <= TICKETS_MAX
assert BURST_MAX <= RATE_HZ_MAX

ROLES: tuple[t.Role, ...] = ("observer", "operator", "admin")
"""Lowest first; each may do all that those before it may."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. targets: the fields of `args` that name objects, whose cores must not be held by others."""

    name: str
    args: type[t.Args]
    ret: type[t.Ret]
    about: str
    mutating: bool = False
    urgent: bool = False
    role: t.Role = "observer"
    targets: tuple[str, ...] = ()
    everything: bool = False  # touches every core, whatever its arguments
    machine: bool = True  # False: the control server answers by itself

    def is_job(self, args: t.Args) -> bool:
        """Return whether these arguments mean work that outlives the request (more than about 50 ms)."""
        if self.ret is t.StopRet:
            return True
        rate_hz, count = getattr(args, "rate_hz", 0), getattr(args, "count", 1)
        return bool(rate_hz and count > 1) or count > t.INJECT_INLINE_MAX


def _read(name: str, args: type[t.Args], ret: type[t.Ret], about: str, **more: Any) -> Op:
    return Op(name, args, ret, about, **more)


def _act(name: str, args: type[t.Args], ret: type[t.Ret], about: str, **more: Any) -> Op:
    return Op(name, args, ret, about, mutating=True, **{"role": "operator", "targets": ("target",), **more})


_TABLE = (
    _read("hello", t.HelloArgs, t.HelloRet, "Say who you are; learn versions, limits, role and addresses.",
          urgent=True, machine=False),
    _read("ping", t.Nothing, t.PingRet, "Is anybody there?", urgent=True, machine=False),
    _read("schema", t.SchemaArgs, t.SchemaRet, "This manual as JSON Schema.", machine=False),
    _read("status.get", t.Nothing, t.StatusRet, "State of daemon, cores and hyperthreads."),
    _read("ht.list", t.TargetArgs, t.HtListRet, "Hyperthreads: process, mode, vCPU, counts."),
    _read("vm.list", t.Nothing, t.VmListRet, "VMs and where their vCPUs are."),
    _read("gate.get", t.TargetArgs, t.GateGetRet, "Gates: round, open or closed, who waits, who holds."),
    _read("stats.get", t.StatsGetArgs, t.StatsGetRet, "Exits by hyperthread, VM and reason, since the start."),
    _read("hist.get", t.HistGetArgs, t.HistGetRet, "A distribution: exits, leaves, gate waits, exposure."),
    _read("policy.list", t.Nothing, t.PolicyListRet, "Policies known and the one in force."),
    _read("config.get", t.Nothing, t.ConfigGetRet, "The configuration as resolved."),
    _read("space.get", t.SpaceGetArgs, t.SpaceGetRet, "What the isolated spaces of VMs map."),
    _act("inject.exit", t.InjectExitArgs, t.InjectRet, "Make VM exits happen."),
    _act("inject.nmi", t.InjectNmiArgs, t.InjectRet, "Send NMIs."),
    _act("inject.mce", t.InjectMceArgs, t.InjectRet, "Raise machine checks."),
    _act("inject.irq", t.InjectIrqArgs, t.InjectRet, "Send device interrupts."),
    _act("inject.stall", t.InjectStallArgs, t.InjectRet, "Stop a hyperthread process for a while."),
    _act("inject.kill", t.InjectKillArgs, t.InjectRet, "Kill a hyperthread or coordinator process."),
    _act("gate.hold", t.GateHoldArgs, t.GateRet, "Keep gates closed; others' changes to these cores get Busy.",
         urgent=True),
    _act("gate.release", t.GateReleaseArgs, t.GateRet, "Let gates open again.", urgent=True),
    _act("policy.set", t.PolicySetArgs, t.PolicySetRet, "Change the policy, of all gates together.",
         role="admin", targets=(), everything=True),
    _act("space.map", t.SpaceMapArgs, t.SpaceChangeRet, "Map objects into a VM's isolated space.",
         role="admin", targets=(), everything=True),
    _act("space.unmap", t.SpaceUnmapArgs, t.SpaceChangeRet, "Unmap objects from a VM's isolated space.",
         role="admin", targets=(), everything=True),
    _act("ht.plug", t.HtPlugArgs, t.HtRet, "Give hyperthreads back.", role="admin"),
    _act("ht.unplug", t.HtUnplugArgs, t.HtRet, "Take hyperthreads away.", role="admin"),
    _act("vcpu.attach", t.VcpuAttachArgs, t.VcpuRet, "Pin a vCPU to a hyperthread.", role="admin", targets=("to",)),
    _act("vcpu.detach", t.VcpuDetachArgs, t.VcpuRet, "Take vCPUs off their hyperthreads.", role="admin"),
    _read("job.get", t.JobArgs, t.JobRet, "How far a job is.", machine=False),
    _read("job.wait", t.JobWaitArgs, t.JobRet, "Wait for the end of a job.", machine=False),
    _act("job.cancel", t.JobArgs, t.JobRet, "End a job early; answered when it has ended.", urgent=True, targets=(),
         machine=False),
    _read("events.fetch", t.EventsFetchArgs, t.EventsFetchRet, "Records out of the journal, to close a gap."),
    _act("mark", t.MarkArgs, t.MarkRet, "Write a remark into the journal.", targets=()),
    _act("stop", t.StopArgs, t.StopRet,
         "Drain and end the daemon: a job, over when the run is complete, not yet audited.",
         urgent=True, role="admin", targets=()),
)  # fmt: skip

OPS: dict[str, Op] = {op.name: op for op in _TABLE}

# Taken also while the daemon drains: they end things.
WHILE_DRAINING = frozenset({"stop", "gate.release", "job.cancel"})

assert len(OPS) == len(_TABLE), "an operation is named twice"
assert all(set(op.targets) <= set(op.args.__struct_fields__) for op in _TABLE)


def find_op(name: str) -> Op:
    """Return the operation. Raise UnknownOp, with the nearest name as a hint."""
    op = OPS.get(name)
    if op is None:
        import difflib

        near = difflib.get_close_matches(name[: t.NAME_LENGTH_MAX], OPS, n=1)
        raise UnknownOp(
            f"no operation {name[: t.NAME_LENGTH_MAX]!r}",
            where="op",
            allowed=f"one of the {len(OPS)} that `schema` lists",
            hint=f"Did you mean {near[0]}?" if near else "asid schema ops",
        )
    return op


def convert_args(op: Op, mapping: object) -> t.Args:
    """Return the arguments as op's struct. Raise BadArgument with the path of the field that is wrong.

    Exact: no bool for an int, no float for an int (so no NaN), no missing, unknown or misnamed field.
    """
    try:
        return msgspec.convert(mapping, op.args, strict=True)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at ")
        field = path.strip("`").removeprefix("key` in `").replace("$", "args", 1) or "args"
        if said.endswith("`") and " field `" in said:  # missing or unknown: the path must name the field itself
            field += "." + said.rsplit(" field `", 1)[1].rstrip("`")[: t.NAME_LENGTH_MAX]
            said = "an unknown field" if "unknown" in said else "required, and missing"
        raise BadArgument(
            said.replace("`", "")[: t.TEXT_LENGTH_MAX],
            where=f"{op.name}: {field}",
            allowed=f"one of {', '.join(op.args.__struct_fields__) or 'none'}" if said == "an unknown field" else "",
            hint=f"asid schema ops shows what {op.name} takes.",
            data={"field": field},
        ) from None


def convert_ret(op: Op, mapping: object) -> dict[str, Any]:
    """Return a plain map of op's return. Raise msgspec.ValidationError when the machine gave another shape."""
    ret: dict[str, Any] = msgspec.to_builtins(msgspec.convert(mapping, op.ret, strict=True))
    return ret


@functools.cache
def _components() -> tuple[dict[str, Any], dict[str, Any]]:
    kinds = sorted({op.args for op in _TABLE} | {op.ret for op in _TABLE}, key=lambda kind: kind.__name__)
    refs, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    return {kind.__name__: ref for kind, ref in zip(kinds, refs, strict=True)}, definitions


def ops_schema(only: str = "") -> dict[str, Any]:
    """Return the JSON Schema of every operation (or of `only`): args, return, kind; error classes; limits.

    Raise UnknownOp when there is no operation `only`.
    """
    chosen = [find_op(only)] if only else list(_TABLE)
    refs, definitions = _components()
    used = {kind.__name__ for op in chosen for kind in (op.args, op.ret)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "protocol": PROTOCOL_VERSION,
        "ops": {
            op.name: {
                "about": op.about,
                "args": refs[op.args.__name__],
                "ret": refs[op.ret.__name__],
                "mutating": op.mutating,
                "urgent": op.urgent,
                "role": op.role,
            }
            for op in chosen
        },
        "errors": {
            name: {
                "about": (cls.__doc__ or "").strip(),
                "applied": cls.applied,
                "retry": cls.retry,
                "exit": cls.exit_code,
            }
            for name, cls in CONTROL_ERRORS.items()
        },
        "limits": dict(LIMITS),
        "$defs": {name: schema for name, schema in definitions.items() if not only or name in used},
    }
