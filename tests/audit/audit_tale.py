"""Hand-made histories: a few calls tell a run, the audit says what it thinks of it."""

from __future__ import annotations

from typing import Any

from asid.audit import Verdict, audit
from asid.core.record import Record

US = 1_000
MS = 1_000_000
S = 1_000_000_000


class Tale:
    """A run of one core, told record by record. Times are microseconds since the start; `seq` follows the telling."""

    def __init__(
        self, *, policy: str = "asi", kick: str = "ack", smt: int = 2, vm: int = 1, vcpus: int | None = None
    ) -> None:
        self.records: list[Record] = []
        self.mode: dict[int, str] = {}
        self.vm = vm
        self.round = 1
        self._asked: dict[int, int] = {}
        self._tseqs: dict[tuple[int, int, str], int] = {}
        self.smt = smt
        self.flushes = policy != "none"
        begin = {"name": "tale", "policy": policy, "kick": kick, "seed": 1, "cores": 1, "smt": smt, "engine": "live"}
        self.say(0, "run.begin", -1, -1, **begin, **({} if vcpus is None else {"vcpus": vcpus}))
        self.say(0, "spawn", 0, -1, what="coordinator", pid=100, inc=1)
        for ht in range(smt):
            self.say(0, "spawn", 0, ht, what="ht", pid=101 + ht, inc=1)
            self.say(0, "ht.mode", 0, ht, inc=1, old="OFFLINE", new="PARKED", vm=0)
            self.say(1, "gate.ready", 0, ht, inc=1, mode="PARKED")
            self.mode[ht] = "PARKED"

    def say(self, us: float, kind: str, core: int = 0, ht: int = -1, round_: int = 0, **data: Any) -> int:
        """Add a record and return its seq. A trailing underscore in a data key is dropped (`from_`)."""
        key = (core, ht, kind)
        self._tseqs[key] = self._tseqs.get(key, 0) + 1
        seq = len(self.records) + 1
        data = {name.rstrip("_"): value for name, value in data.items()}
        self.records.append(Record(seq, self._tseqs[key], int(us * US), kind, core, ht, round_, 0, data))
        return seq

    def goes(self, us: float, ht: int, new: str, *, vm: int | None = None, via: str = "", inc: int = 1) -> int:
        """ht.mode, from whatever mode it was in."""
        old, self.mode[ht] = self.mode[ht], new
        more = {"via": via} if via else {}
        vm = self.vm if vm is None else vm
        return self.say(us, "ht.mode", 0, ht, self.round, inc=inc, old=old, new=new, vm=vm, **more)

    def gate(self, us: float, kind: str, ht: int = -1, **data: Any) -> int:
        """gate.*; an admission that nobody asked for yet is asked for first, at the same moment."""
        if kind == "turn":
            data.setdefault("room", data["vm"])
        elif kind == "ask":
            self._asked[ht] = data["req"]
        elif kind == "admit" and self._asked.pop(ht, None) != data["req"]:
            self.say(us, "gate.ask", 0, ht, self.round, vm=data["vm"], req=data["req"])
        return self.say(us, f"gate.{kind}", 0, ht, self.round, **data)

    def enter(self, us: float, ht: int, *, vm: int | None = None, req: int = 1, inc: int = 1) -> None:
        """Ask, be admitted, flush unless the policy is none, run the first instruction: takes 4 us."""
        vm = self.vm if vm is None else vm
        self.gate(us, "ask", ht, vm=vm, req=req)
        self.gate(us + 1, "admit", ht, vm=vm, req=req, inc=inc)
        self.goes(us + 2, ht, "ISOLATED", vm=vm, inc=inc)
        if self.flushes:
            self.flush(us + 2.5, ht)
        self.goes(us + 3, ht, "GUEST", vm=vm, inc=inc)
        self.gate(us + 4, "entered", ht)

    def flush(self, us: float, ht: int, what: str = "data") -> int:
        return self.say(us, "flush", 0, ht, self.round, what=what, cost_ns=400)

    def leave(self, us: float, ht: int, kicked: tuple[int, ...] = (), *, host_us: float = 10, number: int = 1) -> None:
        """A voluntary leave that kicks siblings, up to HOST and back to PARKED: takes 6 us and host_us."""
        self.goes(us, ht, "ISOLATED")
        self.gate(us + 1, "leave", ht, req=2, reason="EPT_VIOLATION")
        for sibling in kicked:
            self.gate(us + 2, "kick", sibling, number=number, for_ht=ht)
            self.goes(us + 3, sibling, "PARKED")
            self.say(us + 3, "kick.seen", 0, sibling, self.round, number=number, was="GUEST", avoidable=False, insns=0)
        for sibling in kicked:
            self.gate(us + 4, "answer", sibling, number=number, was="GUEST")
        self.gate(us + 5, "grant", ht, req=2)
        self.goes(us + 6, ht, "HOST", via="grant")
        self.goes(us + 6 + host_us, ht, "PARKED")
        self.gate(us + 6 + host_us, "done", ht)
        self.round += 1

    def grant(self, us: float, ht: int, *, req: int = 2) -> None:
        """A leave that is granted at once: takes 1 us, and is not used yet."""
        self.gate(us, "leave", ht, req=req, reason="HLT")
        self.gate(us + 1, "grant", ht, req=req)

    def ipis(self, us: float, ht: int, why: str, to: tuple[int, ...] | None = None) -> None:
        """The IPIs before a HOST that asks nobody."""
        for sibling in range(self.smt) if to is None else to:
            if sibling != ht:
                self.say(us, "ipi", 0, ht, self.round, to=sibling, why=why)

    def intr(self, us: float, ht: int, *, what: str = "nmi", id_: int = 0, depth: int = 1, merged: int = 0,
             was: str = "ISOLATED") -> None:  # fmt: skip
        self.say(us, "intr", 0, ht, self.round, what=what, id=id_, depth=depth, merged=merged, host_ns=1, from_=was)

    def nmi(self, us: float, ht: int, *, host_us: float = 5, id_: int = 0, what: str = "nmi", merged: int = 0) -> None:
        """An NMI that goes HOST and comes back."""
        was = self.mode[ht]
        self.ipis(us, ht, what)
        self.goes(us, ht, "HOST", via=what)
        self.goes(us + host_us, ht, "ISOLATED" if was == "GUEST" else was)
        self.intr(us + host_us, ht, what=what, id_=id_, merged=merged, was=was)

    def end(self, us: float) -> Verdict:
        self.say(us, "run.end", -1, -1, reason="stop")
        return self.audit()

    def policy(self, us: float, new: str, *, old: str = "asi", kick: str = "ack") -> int:
        return self.say(us, "policy", -1, -1, old=old, new=new, kick=kick)

    def audit(self) -> Verdict:
        return audit(self.records)
