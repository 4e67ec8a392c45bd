"""A learned mapping as people and programs read it: the faults of each round, what was added and why, what was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asid.report.spaces import size_words
from asid.space_learn import Learned


def learned_document(found: Learned) -> dict[str, Any]:
    """Return what was learned as plain values."""
    return {
        "complete": found.complete,
        "rounds": [{**turn._asdict(), "lines": list(turn.lines)} for turn in found.rounds],
        "vms": [
            {
                **vm._asdict(),
                "additions": [each._asdict() for each in vm.additions],
                "refused": [dict(zip(("object", "whose", "full_hz"), row, strict=True)) for row in vm.refused],
            }
            for vm in found.vms
        ],
        "mapping": {
            name: [{**entry._asdict(), "level": entry.level.name} for entry in entries]
            for name, entries in found.mapping.items()
        },
    }


def learned_text(found: Learned, columns: Callable[..., str]) -> str:
    """Return what was learned for a reader. columns: as asid.commands.session has it."""
    lines: list[str] = []
    for turn in found.rounds:
        lines += [f"round {turn.number}, {turn.vm}", *turn.lines]
        if turn.added:
            lines.append(f"  added: {', '.join(turn.added)}")
        if turn.refused:
            lines.append(f"  needs secrets: {', '.join(turn.refused)}")
        lines.append("")
    for vm in found.vms:
        shares = f"full {vm.before:.1%} before, {vm.after:.1%} after"
        lines.append(f"{vm.name}: {vm.exits:,} exits, {vm.rate_hz:,.0f}/s; {shares}")
        if vm.additions:
            rows = [
                (each.object, each.whose, each.round, f"{each.saves_hz:,.1f}", size_words(each.mapped),
                 size_words(each.secret)) for each in vm.additions
            ]  # fmt: skip
            lines.append(
                columns(("ADDED", "WHOSE", "ROUND", "KICKS/S SAVED", "MAPPED", "OF OTHERS"), rows, right=(2, 3, 4, 5))
            )
        if vm.dropped:
            lines.append(f"taken back, for no exit is fast by it: {', '.join(vm.dropped)}")
        if vm.refused:
            refused = [(name, whose, f"{rate:,.1f}") for name, whose, rate in vm.refused]
            lines += ["", columns(("NOT ADDED", "WHOSE", "FULL EXITS/S"), refused, right=(2,))]
        lines.append("")
    if found.complete:
        lines.append("no fault is left" if not any(vm.after for vm in found.vms) else "the faults left need secrets")
    else:
        lines.append("UNKNOWN: the rounds ran out; more would be added")
    return "\n".join(lines)
