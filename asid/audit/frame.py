"""What cannot be, whatever a machine does: records that contradict run.begin, or the numbers they are made of.

Such a journal was not written by a machine of that kind. Nothing it says is believed, neither good nor bad.
"""

from __future__ import annotations

from typing import Any

from asid.audit.regime import BARE, KNOWN, VIA_OF_KICK
from asid.core.record import RECORD_TYPES, Record

NUMBERS_END = 1 << 63
CORES_MAX = 64
VMS_MAX = 64
SIBLINGS = (1, 2, 4, 8)
SIGNED = frozenset({("death", "status"), ("held", "by")})  # minus a signal; -1 for nobody in particular
ADDRESSES = frozenset({("fault", "ip"), ("fault", "address")})  # of a kernel: with all 64 bits
ADDRESS_END = 1 << 64
ENDINGS = frozenset({"left", "forced", "switch forced", "stopped"})
SIBLING_NAMED = frozenset({"to", "for_ht", "by"})

_NUMBERS = {
    name: tuple(
        (field.name, ADDRESS_END if (name, field.name) in ADDRESSES else NUMBERS_END)
        for field in kind.fields
        if field.kind == "int" and (name, field.name) not in SIGNED
    )
    for name, kind in RECORD_TYPES.items()
}
_SIBLINGS = {
    name: tuple(field.name for field in kind.fields if field.kind == "int" and field.name in SIBLING_NAMED)
    for name, kind in RECORD_TYPES.items()
}
_OF_CORES = frozenset(name for name, kind in RECORD_TYPES.items() if kind.writer != "daemon")
_OF_HTS = frozenset(name for name, kind in RECORD_TYPES.items() if kind.writer == "hyperthread")


class Frame:
    """The size of the machine as run.begin tells it; while it has not, the largest that there is."""

    def __init__(self) -> None:
        self.begin_ts = 0
        self.cores = CORES_MAX
        self.smt = max(SIBLINGS)
        self.policy = ""

    def fault_of(self, record: Record) -> str | None:
        """Say what cannot be in a record whose form is good, or None."""
        _, tseq, ts, kind, core, ht, round_, _, data = record
        for name, end in _NUMBERS[kind]:
            if name in data and not 0 <= data[name] < end:
                return f"{kind}: {name} = {data[name]} cannot be"
        if not (0 <= ts < NUMBERS_END and 0 <= round_ < NUMBERS_END and 0 <= tseq < NUMBERS_END):
            return f"{kind}: ts {ts}, round {round_}, tseq {tseq} cannot be"
        if ts < self.begin_ts:
            return f"{kind} is stamped before the run began"
        if not -1 <= core < self.cores:
            return f"{kind} of core {core}, but the machine has {self.cores}"
        if not -1 <= ht < self.smt:
            return f"{kind} of hyperthread {ht}, but a core has {self.smt}"
        if (core < 0 and kind in _OF_CORES) or (ht < 0 and kind in _OF_HTS):
            return f"{kind} does not say where"
        if not data:
            return None
        if "vm" in data and data["vm"] > VMS_MAX:
            return f"{kind}: vm = {data['vm']}, at most {VMS_MAX}"
        for name in _SIBLINGS[kind]:
            if not -1 <= data[name] < self.smt:
                return f"{kind}: {name} = {data[name]}, but a core has {self.smt} hyperthreads"
        if "wait_ns" in data and data["wait_ns"] > ts - self.begin_ts:
            return f"{kind}: wait_ns = {data['wait_ns']} is longer than the run"
        if kind == "fault" and data["ending"] not in ENDINGS:
            return f"{kind}: ending {data['ending']!r:.40} is none that is known"
        if kind == "policy":
            return self._fault_of_policy(data)
        return None

    def begin(self, record: Record) -> str | None:
        """Take run.begin. What it says of the machine is only taken when there are such machines."""
        data = record.data
        self.begin_ts, self.policy = record.ts, data["policy"]
        if not 1 <= data["cores"] <= CORES_MAX or data["smt"] not in SIBLINGS:
            return f"there is no machine of {data['cores']} cores with {data['smt']} hyperthreads each"
        self.cores, self.smt = data["cores"], data["smt"]
        return _unknown(data.get("like", data["policy"]), data["kick"])

    def _fault_of_policy(self, data: dict[str, Any]) -> str | None:
        before, self.policy = self.policy, data["new"]
        if before and before != data["old"]:
            return f"the policy changed from {data['old']!r:.40}, but {before!r:.40} was in force"
        return _unknown(data.get("like", data["new"]), data["kick"])


def _unknown(policy: str, kick: str) -> str | None:
    if policy not in KNOWN:
        return f"policy {policy!r:.40} is none that is known"
    known = kick in VIA_OF_KICK or (kick == "bare" and policy in BARE)
    return None if known else f"kick {kick!r:.40} is none that is known"
