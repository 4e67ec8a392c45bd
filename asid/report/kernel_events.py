"""What KVM itself told of a run, as text. See `asid.audit.kernel_events`, which counts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asid.units import format_ns

SHOWN: Final = 4  # hyperthreads that are told one by one
EXIT: Final = "kvm_exit"
USERSPACE_EXIT: Final = "kvm_userspace_exit"


def kernel_lines(kvm: Mapping[str, Any]) -> list[str]:
    """Return sentences, not wrapped; none for a run that tried to record nothing. kvm: as in figures.kvm."""
    if not kvm:
        return []
    if not kvm["recorded"]:
        return [f"KVM's own events: not recorded ({kvm['why']})."]
    threads: Mapping[str, Any] = kvm["threads"]
    tells_exits = any(EXIT in events for events in threads.values())
    shown = list(threads.items())[:SHOWN]
    told = [f"{of} {_exits(events) if tells_exits else _returns(events)}" for of, events in shown]
    more = f"; and of {len(threads) - SHOWN} more" if len(threads) > SHOWN else ""
    what = "exits" if tells_exits else "returns to userspace (this KVM tells no exits)"
    out = [f"KVM's own {what}: {'; '.join(told) or 'none'}{more}."]
    if agreement := kvm.get("agreement"):
        out.append(_agreement_line(agreement))
    doubts = [kvm["why"]] if kvm["why"] else []
    doubts += [f"{kvm['lost']:,} events were dropped by the kernel"] if kvm["lost"] else []
    doubts += [f"the text is cut: {kvm['text_cut']}"] if kvm["text_cut"] else []
    return out + ([f"          ({'; '.join(doubts)})"] if doubts else [])


def _exits(events: Mapping[str, Any]) -> str:
    """Return the exits of one hyperthread by reason, the most frequent first, with their mean and what KVM kept."""
    rows = sorted(events.get(EXIT, {}).items(), key=lambda row: -row[1]["n"])
    told = []
    for reason, row in rows:
        mean = f" of {format_ns(row['sum_ns'] // row['ended'])}" if row["ended"] else ""
        kept = f", {row['kept']:,} kept within KVM" if row["kept"] else ""
        told.append(f"{reason} {row['n']:,}{mean}{kept}")
    return f"{sum(row['n'] for _, row in rows):,} ({'; '.join(told)})" if told else "0"


def _returns(events: Mapping[str, Any]) -> str:
    rows = sorted(events.get(USERSPACE_EXIT, {}).items(), key=lambda row: -row[1]["n"])
    told = ", ".join(f"{reason} {row['n']:,}" for reason, row in rows)
    return f"{sum(row['n'] for _, row in rows):,} ({told})" if told else "0"


def _agreement_line(agreement: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how far the hyperthreads' own reports are from what KVM says that it handed to them."""
    handed, reported = (sum(row[name] for row in agreement.values()) for name in ("handed", "reported"))
    text = f"Of {handed:,} exits that KVM handed over its hyperthreads reported {reported:,}"
    if any(row["bound"] is None for row in agreement.values()):
        return f"{text}; how far apart they may be is not known."
    beyond = [of for of, row in agreement.items() if abs(row["handed"] - row["reported"]) > row["bound"]]
    if beyond:
        return f"{text}; {', '.join(beyond)} differ by more than what was under way explains."
    bound = sum(row["bound"] for row in agreement.values())
    return f"{text} (at most {bound:,} apart: under way, or injected)."
