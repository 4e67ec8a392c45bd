"""What is kept and said of a seed that fails: its least plan of faults as a configuration, and its steps as a schedule.

Each command that is said is whole: it can be run as it stands.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asid import saving
from asid.core.policy import POLICIES
from asid.errors import AsidError, InputError
from asid.sim.faults import SLOW, tables_of

if TYPE_CHECKING:
    from asid.scheduling import Made
    from asid.seeds import Failed, Job
    from asid.sim.faults import Plan

SAVED: Final = ("the failing configuration", "--save")
SCHEDULED: Final = ("the schedule", "--schedule")
UNEXPLORED: Final = "The explorer finds nothing broken in them: it judges what is, not what the journal says was done."
OPTIONS: Final = ("policy", "kick", "space", "costs", "duration")  # of asid sim; its run is another without them


class Kept(NamedTuple):
    """Which files somebody wants (None: of the schedule, one among those of asid's state), and the options as given."""

    save: Path | None
    schedule: Path | None
    options: Mapping[str, Any]


class Told(NamedTuple):
    """Lines for a person, and the same as a document."""

    lines: list[str]
    document: dict[str, Any]


def told_of(job: Job, seed: int, failed: Failed, plan: Plan, kept: Kept) -> Told:
    """Keep what is to be kept of a seed that fails, and say what it was and how to see it again.

    A file that cannot be written is said, too: it is no reason to lose what was found.
    """
    what = failed.guarantee or "a fault of the machine's own"
    lines = [f"seed {seed}: {what}: {failed.text}", "", "The least that still fails:"]
    lines += [f"  {_fault_words(table)}" for table in plan] or ["  no fault at all: the guests alone"]
    file, made, refused = _scheduled(job, seed, failed, plan, kept)
    steps = 0 if made is None else len(made.schedule.steps)
    explored = made is not None and made.explored
    if file is not None:
        replay = f"asid replay {shlex.quote(str(file))}"
        lines += ["", f"Its {steps:,} steps, as a schedule:", f"{replay}    # by real processes"]
        lines += [f"{replay} --engine sim", f"{replay} --engine explore" if explored else UNEXPLORED]
    else:
        lines += ["", f"No schedule of its steps: {refused}"]
    commands, unsaved = _configured(job, seed, plan, kept)
    lines += ["", *commands]
    document = {
        "seed": seed, **failed._asdict(), "plan": list(plan), "steps": steps,
        "schedule": None if file is None else str(file), "no_schedule": refused, "explored": explored,
        "unsaved": unsaved,
    }  # fmt: skip
    return Told(lines, document)


def _scheduled(job: Job, seed: int, failed: Failed, plan: Plan, kept: Kept) -> tuple[Path | None, Made | None, str]:
    """Write the schedule. Return its file and what was made, or why there is none."""
    from asid.explore.schedule import as_document
    from asid.live.rundir import runs_root
    from asid.scheduling import schedule_for

    try:
        made = schedule_for(job, seed, plan, failed.guarantee)
    except InputError as refused:
        return None, None, str(refused)
    text = json.dumps(as_document(made.schedule), indent=1) + "\n"
    own = runs_root().parent / "schedules" / f"{job.loaded().config.name}-seed-{seed}.json"
    file = own if kept.schedule is None else kept.schedule
    try:
        if file is own:
            saving.make_for(file, *SCHEDULED)
        saving.write(file, text, *SCHEDULED)
    except AsidError as refused:
        return None, None, str(refused)
    return file, made, ""


def _configured(job: Job, seed: int, plan: Plan, kept: Kept) -> tuple[list[str], str]:
    """Write the configuration with the plan in it. Return the commands that play it, or the one that writes it, and why
    it could not be written."""
    given = [word for key in OPTIONS if kept.options.get(key) for word in (f"--{key}", str(kept.options[key]))]
    if kept.save is None:
        faults = ["--no-faults"] if kept.options.get("no_faults") else []
        words = ["asid", "sim", str(job.source), "--seeds", str(seed), *given, *faults, "--save", "failing.json"]
        return ["Its faults, as a configuration:", shlex.join(words)], ""
    try:
        saving.write(kept.save, failing_text(job, seed, plan), *SAVED)
    except AsidError as refused:
        return [f"Its faults are not saved: {refused}"], str(refused)
    file, costs = str(kept.save), ["--costs", str(kept.options.get("costs", "typical"))]
    if job.tested or kept.options.get("policy") in POLICIES:
        duration = ["--duration", f"{job.duration_ns}ns"]
        played = shlex.join(["asid", "run", file, "--engine", "sim", *duration, *costs])
        return ["Its faults, as a configuration:", played, f"{shlex.join(['asid', 'run', file])}    # live"], ""
    words = ["asid", "sim", file, "--seeds", str(seed), "--no-faults", *given]
    return ["Its faults, as a configuration:", shlex.join(words)], ""


def _fault_words(table: dict[str, Any]) -> str:
    if table["what"] == SLOW:
        return f"slow {table['target']}: answers to kicks take {table['delay']} more"
    rest = (f"{key} {table[key]}" for key in ("count", "reason", "duration") if key in table)
    return " ".join([table["what"], table["target"], "at", table["at"], *rest])


def failing_text(job: Job, seed: int, plan: Plan) -> str:
    """Return a configuration with a plan in it, as JSON that load reads: files absolute, every key said."""
    from asid.config import resolved

    plain = resolved(job.loaded(seed))
    inject, slow = tables_of(plan)
    plain["inject"] = [*plain["inject"], *inject]
    plain["faults"]["slow"] = [*plain["faults"]["slow"], *slow]
    return json.dumps(plain, indent=2) + "\n"
