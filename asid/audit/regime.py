"""The policy in force, and what it promises: the audit's own table, for it shares none with the gate."""

from __future__ import annotations

from typing import NamedTuple

from asid.core.record import Record

# The policies that do not ask before HOST. Every other one asks, or kicks, as its kick says.
BARE = frozenset({"none", "nosmt", "core-sched"})
UNGUARDED = frozenset({"none", "core-sched"})  # a guest beside HOST is what they allow
GATELESS = frozenset({"none"})  # ... and this one beside another VM, too
ISOLATING = frozenset({"asi", "asi-irqoff", "asi-stun"})  # exits are handled in the isolated address space
UNFLUSHED = frozenset({"none"})
IDLES_BARE = frozenset({"kick-except-idle"})  # a leave for idling kicks nobody
VIA_OF_KICK = {"ack": "grant", "rendezvous": "grant", "send": "send", "stun": "stun"}
OWN_KICK = {"asi-stun": "stun"}
KNOWN = BARE | {"kick-every-exit", "kick-except-idle", "asi", "asi-irqoff", "asi-stun"}
ASYNC = frozenset({"send", "stun"})
INVOLUNTARY = frozenset({"nmi", "mce"})


class Regime(NamedTuple):
    """One policy with its kick, from `ts` until the next. seq: of the record that says so."""

    ts: int
    seq: int
    policy: str
    kick: str
    like: str = ""  # of a user's own policy: the one whose promises it makes
    ways: str = ""  # ... and in which ways its voluntary leaves reach HOST, as in grant,send

    @property
    def rules(self) -> str:
        """The policy whose promises are judged."""
        return self.like or self.policy

    @property
    def guarded(self) -> bool:
        """Whether siblings heed each other at all."""
        return self.rules not in UNGUARDED

    @property
    def rooms_are_vms(self) -> bool:
        """Whether the gate's turns are those of VMs (with `nosmt` they are those of hyperthreads)."""
        return self.rules not in ("none", "nosmt")

    @property
    def via(self) -> str:
        """How a voluntary leave reaches HOST; empty when that is not known."""
        return "bare" if self.rules in BARE else VIA_OF_KICK.get(OWN_KICK.get(self.rules, self.kick), "")

    @property
    def vias(self) -> tuple[str, ...]:
        """Every way in which a voluntary leave may reach HOST."""
        if self.ways:
            return tuple(self.ways.split(","))
        if self.rules in IDLES_BARE:
            return self.via, "bare"
        return (self.via, "grant") if self.rules == "nosmt" else (self.via,)  # an interrupt finds a parked sibling

    @property
    def isolates(self) -> bool:
        """Whether what is mapped decides where an exit is handled."""
        return self.rules in ISOLATING

    @property
    def flushes(self) -> bool:
        """Whether guests are to find nothing of others in the buffers."""
        return self.rules not in UNFLUSHED

    def keeps_apart(self, via: str) -> bool:
        """Say whether no guest instruction is to retire beside HOST reached this way."""
        return self.guarded and not (via == "bare" and self.rules in IDLES_BARE)

    def exposes(self, via: str) -> bool:
        """Say whether HOST reached this way may be beside a guest that has not looked at its pending bit yet."""
        return via in INVOLUNTARY or (via in ASYNC and (via in self.vias or not self.via))

    @property
    def keeps_vms_apart(self) -> bool:
        """Whether no two VMs are to be on a core at once."""
        return self.rules not in GATELESS


UNSAID = Regime(0, 0, "?", "?")


def regime_of(record: Record, word: str) -> Regime:
    """Return what is in force from a record on; `word` is where it names the policy."""
    data = record.data
    return Regime(record.ts, record.seq, data[word], data["kick"], data.get("like", ""), data.get("ways", ""))
