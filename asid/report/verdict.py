"""A verdict as text, for a terminal of 80 columns: the verdict first, a line a guarantee, then what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from asid.report.kernel_events import kernel_lines
from asid.units import format_ns

WIDTH = 80
CHANGES_SHOWN = 8

MEANINGS = {
    "PASS": "every guarantee that was exercised held",
    "FAIL": "a guarantee is broken",
    "UNKNOWN": "nothing is claimed",
}


def verdict_lines(document: Mapping[str, Any], *, name: str = "") -> list[str]:
    """Return the text of a verdict. document: as in verdict.json. name: of the run, for the first line."""
    word = str(document["verdict"])
    run, figures = document.get("run", {}), document.get("figures", {})
    title = name or str(run.get("name", ""))
    out = [f"{word}: {title}: {MEANINGS[word]}" if title else f"{word}: {MEANINGS[word]}"]
    out = wrap(out[0], WIDTH)
    for reason in document.get("reasons", ()):
        out += wrap(str(reason), WIDTH, initial_indent="  - ", subsequent_indent="    ")
    out += _run_lines(run, figures, document.get("policies", ()))
    out.append("")
    for guarantee, finding in document["guarantees"].items():
        out += _finding_lines(guarantee, finding)
    out.append("")
    out += _exposure_lines(document.get("exposure", {}))
    out += _standstill_lines(document.get("figures", {}).get("standstill", {}))
    for line in kernel_lines(document.get("figures", {}).get("kvm", {})):
        out += wrap(line, WIDTH, subsequent_indent=" " * 10)
    out += _leak_lines(figures.get("leaks"), document.get("leaks", ()))
    missing = document.get("not_exercised", ())
    if missing:
        out += wrap(f"Not exercised: {', '.join(missing)}.", WIDTH)
    if figures.get("suspects"):
        out += wrap(
            f"Suspects: {figures['suspects']} that cannot be told from a record that was still under way.", WIDTH
        )
    out += _story_lines(document)
    return out


def summary_line(document: Mapping[str, Any]) -> str:
    """Return one line: verdict, how many guarantees held, exposure."""
    states = [finding["state"] for finding in document["guarantees"].values()]
    broken = [name for name, finding in document["guarantees"].items() if finding["state"] == "broken"]
    exposure = document.get("exposure", {})
    text = f"{document['verdict']}: {states.count('held')} held, {len(broken)} broken"
    if broken:
        text += f" ({', '.join(broken)})"
    text += f", {states.count('not exercised')} not exercised; exposure {exposure.get('count', 0):,} x"
    return text + (f", max {format_ns(exposure['max_ns'])}" if exposure.get("count") else "")


def record_line(record: Mapping[str, Any], start_ns: int = 0) -> str:
    """Return a record as one line: seconds since the start, where, what, its data. record: as a map."""
    place = "-" if record["core"] < 0 else f"c{record['core']}"
    if record["ht"] >= 0:
        place += f"h{record['ht']}"
    seconds = (record["ts"] - start_ns) / 1e9
    turn = f" r{record['round']}" if record["round"] else ""
    return f"{seconds:14.9f}  {place:<7} {record['type']:<12} {_said(record)}{turn}"


def _said(record: Mapping[str, Any]) -> str:
    data = record["data"]
    if record["type"] == "ht.mode":
        vm = f"(vm{data['vm']})" if data["new"] in ("GUEST", "ISOLATED") else ""
        via = f" by {data['via']}" if data.get("via") else ""
        return f"{data['old']} -> {data['new']}{vm}{via}"
    if record["type"] == "fault":
        return f"{data['object']} at {data['at']}, {data['ending']}"
    words = [f"{key}={value}" for key, value in data.items() if key != "hist"]
    return " ".join(words)


def _run_lines(run: Mapping[str, Any], figures: Mapping[str, Any], policies: Sequence[Mapping[str, Any]]) -> list[str]:
    out = []
    if run:
        text = (
            f"policy {run['policy']}, kick {run['kick']}, seed {run['seed']}, {run['cores']} x {run['smt']}"
            f" hyperthreads, engine {run['engine']}"
        )
        out += wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
    for change in policies[:CHANGES_SHOWN]:
        out.append(f"  policy {change['old']} -> {change['new']}, kick {change['kick']}, at seq {change['seq']:,}")
    if len(policies) > CHANGES_SHOWN:
        out.append(f"  and {len(policies) - CHANGES_SHOWN} more changes of policy")
    if figures:
        text = (
            f"{figures['duration_ns'] / 1e9:.2f} s, {figures['records']:,} records, {figures['exits']:,} exits"
            f" ({figures['full_percent']:.2f} % full), {figures['kicks']:,} kicks"
            f" ({figures['kicks_avoidable']:,} avoidable), {figures['fences']:,} fences,"
            f" {figures['grants_void']:,} void grants, gate wait p99 {format_ns(figures['gate_waits']['p99_ns'])}"
        )
        out += wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
    if figures.get("served_ns") and "forced_idle_percent" in figures:
        text = (
            f"vCPU time: guest {figures['guest_percent']:.2f} %, forced idle {figures['forced_idle_percent']:.2f} %,"
            f" gate closed {figures['gate_closed_percent']:.2f} %"
        )
        out.append(f"  {text}")
    return out


def _finding_lines(guarantee: str, finding: Mapping[str, Any]) -> list[str]:
    state, checked = finding["state"], finding["checked"]
    count = f"{finding['broken']:,} of {checked:,}" if finding["broken"] else f"{checked:,}"
    line = f"  {guarantee:<4} {state:<13} {count:>16}  {finding['title']}"
    if finding.get("note"):
        return [line[:WIDTH], *wrap(finding["note"], WIDTH, initial_indent=" " * 38, subsequent_indent=" " * 38)]
    return [line[:WIDTH]]


def _exposure_lines(exposure: Mapping[str, Any]) -> list[str]:
    if not exposure.get("count"):
        return ["Exposure: none (no guest beside an NMI, a #MC, a send or a stun leave)."]
    out = [
        f"Exposure: {exposure['count']:,} x, p50 {format_ns(exposure['p50_ns'])},"
        f" p99 {format_ns(exposure['p99_ns'])}, max {format_ns(exposure['max_ns'])} of a guest beside"
    ]
    causes = exposure.get("by_cause", {})
    told = (f"{cause} {part['count']:,} x max {format_ns(part['max_ns'])}" for cause, part in causes.items())
    out.append(f"          {', '.join(told)}")
    return out


def _standstill_lines(seen: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return what real guests' own counts say; nothing for a run without real guests."""
    if not seen:
        return []
    told = [
        f"{of['visits']:,} visits to HOST by {via}, moved on in {of['moved']:,}"
        + (f" by {of['turns']:,} turns" if of["moved"] else "")
        for via, of in seen.items()
    ]
    return wrap(f"Guests' own counts: {'; '.join(told)}.", WIDTH, subsequent_indent=" " * 10)


def _leak_lines(counts: Mapping[str, int] | None, leaks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how many leaks there were, and the chain of the first. counts: None when nobody has looked for any."""
    if counts is None:
        return []
    if not counts["concurrent"] and not counts["residual"]:
        return ["Leaks: none (no guest ran beside or after data of others)."]
    text = (
        f"Leaks: {counts['concurrent']:,} concurrent, {counts['residual']:,} residual;"
        f" {counts['promised']:,} that the policy promises against."
    )
    out = wrap(text, WIDTH)
    for leak in leaks[:1]:
        chain = f"The first: {leak['text']} (seq {', '.join(f'{seq:,}' for seq in leak['seqs'])})."
        out += wrap(chain, WIDTH, initial_indent="       ", subsequent_indent="       ")
    return out


def _story_lines(document: Mapping[str, Any]) -> list[str]:
    first = document.get("first_violation")
    if first is None:
        return []
    story = document.get("story", [])
    start = story[0]["ts"] if story else 0
    out = ["", f"First violation, {first['guarantee']}:"]
    out += wrap(first["text"] + ".", WIDTH, initial_indent="  ", subsequent_indent="  ")
    if story:
        out.append("  What led to it (seconds since the first line; * shows it):")
    for record in story:
        mark = "*" if record["seq"] in first["seqs"] else " "
        out.append(f" {mark}{record_line(record, start)}"[:WIDTH].rstrip())
    return out
