"""Who holds which gate closed, and what that keeps others from.

A hold belongs to a client's name and ends by itself: a client that vanished cannot keep a core for ever. It locks from
the moment it is asked for (before the gate has closed) to the moment it is released (after it may open again), so two
holders never overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asid import ops, optypes
from asid.errors import Busy, Conflict

NS_PER_MS = 1_000_000
RELEASE_RETRY_NS = 100_000_000  # between two tries to release a hold whose time is over


@dataclass(slots=True)
class Hold:
    """A core's gate held closed for one client name."""

    by: str
    since_ns: int
    until_ns: int
    releasing: bool = False


class Holds:
    """All holds, by core."""

    def __init__(self) -> None:
        self._holds: dict[int, Hold] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def by_core(self) -> dict[int, Hold]:
        return dict(self._holds)

    def refuse(self, op: ops.Op, args: optypes.Args, cores: tuple[int, ...], name: str, now_ns: int) -> None:
        """Raise Busy when somebody else holds one of the cores, Conflict when nothing is there to release."""
        for core in tuple(self._holds) if op.everything else cores:
            hold = self._holds.get(core)
            if hold is None:
                if isinstance(args, optypes.GateReleaseArgs):
                    raise Conflict(f"gate of c{core} is not held", where=op.name, hint="asid gate show lists holders.")
                continue
            if hold.releasing and isinstance(args, optypes.GateHoldArgs | optypes.GateReleaseArgs):
                raise Busy(f"gate of c{core} is being released", where=op.name, hint="Try again.", data={"core": core})
            if hold.by == name or (isinstance(args, optypes.GateReleaseArgs) and args.force):
                continue
            held_ns = max(0, now_ns - hold.since_ns)
            raise Busy(
                f"gate of c{core} is held by client {hold.by!r} since {held_ns / 1e9:.1f} s",
                where=op.name,
                hint=f"asid gate release c{core} --force",
                data={"holder": hold.by, "core": core, "held_ns": held_ns},
            )

    def lock(self, args: optypes.Args, cores: tuple[int, ...], name: str, now_ns: int) -> tuple[int, ...]:
        """Begin a hold or a release. Return the cores that were free before, to be undone if it fails."""
        if isinstance(args, optypes.GateHoldArgs):
            fresh = tuple(core for core in cores if core not in self._holds)
            for core in cores:
                since_ns = self._holds[core].since_ns if core in self._holds else now_ns
                self._holds[core] = Hold(name, since_ns, now_ns + args.ttl_ms * NS_PER_MS)
            return fresh
        if isinstance(args, optypes.GateReleaseArgs):
            for core in cores:
                self._holds[core].releasing = True
        return ()

    def succeeded(self, args: optypes.Args, cores: tuple[int, ...]) -> None:
        if isinstance(args, optypes.GateReleaseArgs):
            for core in cores:
                self._holds.pop(core, None)

    def failed(self, args: optypes.Args, cores: tuple[int, ...], fresh: tuple[int, ...]) -> None:
        for core in fresh:
            self._holds.pop(core, None)
        if isinstance(args, optypes.GateReleaseArgs):
            for core in cores:
                if core in self._holds:
                    self._holds[core].releasing = False

    def overdue(self, now_ns: int) -> list[int]:
        """Return the cores whose hold is over; they come again after a while if their release fails."""
        cores = [core for core, hold in self._holds.items() if hold.until_ns <= now_ns and not hold.releasing]
        for core in cores:
            self._holds[core].until_ns = now_ns + RELEASE_RETRY_NS
        return cores

    def as_ret(self, args: optypes.Args, cores: tuple[int, ...]) -> dict[str, Any]:
        """Return what gate.hold and gate.release answer."""
        ends = [self._holds[core].until_ns for core in cores if core in self._holds]
        return {"cores": list(cores), "until_ns": max(ends, default=0) if isinstance(args, optypes.GateHoldArgs) else 0}

    def add_holders(self, ret: dict[str, Any], now_ns: int) -> None:
        """Complete the return of gate.get, whose gates know nothing of clients."""
        for gate in ret.get("gates", ()):
            hold = self._holds.get(gate.get("core", -1))
            gate["holder"] = hold.by if hold else ""
            gate["held_ns"] = max(0, now_ns - hold.since_ns) if hold else 0
