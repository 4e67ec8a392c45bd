"""A learned mapping as people and programs read it: the faults of each round, what was added and why, what was not; and
the curve of full exits against bytes exposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from asid.mm.objects import OBJECT
from asid.report.spaces import size_words
from asid.space_learn import Learned, OfVm
from asid.space_pareto import GROUPS

_BAR: Final = 24  # characters of a bar that is full
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


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
                "curve": [{**point._asdict(), "whose": _whose(point.object)} for point in vm.curve],
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
        lines.append(_heading(vm))
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
    return "\n".join([*lines, _outcome(found)])


def curves_text(found: Learned, columns: Callable[..., str]) -> str:
    """Return the curve of each VM for a reader: full exits against bytes exposed. columns: as learned_text."""
    lines: list[str] = []
    for vm in found.vms:
        lines += [_heading(vm), _curve_table(vm, columns), ""]
    return "\n".join([*lines, GROUPS, _outcome(found)])


def _heading(vm: OfVm) -> str:
    shares = f"full {vm.before:.1%} before, {vm.after:.1%} after"
    shares += f" ({vm.anyway:.1%} whatever is mapped)" if vm.anyway else ""
    return f"{vm.name}: {vm.exits:,} exits, {vm.rate_hz:,.0f}/s; {shares}"


def _curve_table(vm: OfVm, columns: Callable[..., str]) -> str:
    rows = [
        (
            point.group or "-",
            f"{point.object or '(the beginning)'}{' *' if point.refused else ''}",
            _whose(point.object) or "-",
            f"{point.mapped:,}",
            f"{point.secret:,}",
            f"{point.full_hz:,.1f}",
            f"{point.full:.1%}",
            bar(point.full),
        )
        for point in vm.curve
    ]
    heads = ("GROUP", "OBJECT", "WHOSE", "BYTES EXPOSED", "OF OTHERS", "FULL EXITS/S", "FULL", "")
    table = columns(heads, rows, right=(0, 3, 4, 5, 6))
    starred = "\n* to be had only with secrets: refused without --allow-secrets"
    return table + (starred if any(point.refused for point in vm.curve) else "")


def bar(part: float) -> str:
    """Return a bar for a part of a whole, 0 to 1: what is more than nothing shows."""
    eighths = max(round(part * _BAR * 8), 1 if part > 0 else 0)
    return (_EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _whose(name: str) -> str:
    return OBJECT[name].sensitivity.value if name else ""


def _outcome(found: Learned) -> str:
    if found.complete:
        return "no fault is left" if not any(vm.refused for vm in found.vms) else "the faults left need secrets"
    return "UNKNOWN: the rounds ran out; more would be added"
