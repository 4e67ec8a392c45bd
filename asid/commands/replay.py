"""asid replay: drive the live machine with a recording, or with a schedule of the explorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from asid.commands.session import ChosenCosts, Session, Usage, costs_option, require_alone
from asid.errors import ConfigError, InputError

if TYPE_CHECKING:
    from asid.drive import Outcome
    from asid.script import Script
    from asid.sim.costs import Level

PATIENCE_NS = 600_000_000_000
VIRTUAL_NS_MAX = 3_600_000_000_000  # a recording that has not ended by then is cut


@click.command(
    epilog="asid replay recording.txt\n"
    "asid replay recording.txt --engine sim           # in virtual time\n"
    "asid replay recording.txt --pace max --policy kick-every-exit\n"
    "asid replay perf-kvm-stat.txt --duration 5s --rate 2000/s\n"
    "asid explore --siblings 2 --policy core-sched --save hit.json; asid replay hit.json\n"
    "trace-cmd report -R -t -i trace.dat > recording.txt    # the one unambiguous text of a trace.dat"
)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--policy", default="asi", show_default=True, metavar="P")
@click.option("--kick", default="ack", show_default=True, metavar="K")
@click.option(
    "--space",
    default="allowed",
    show_default=True,
    metavar="M",
    help="A mapping: its name, or its file.",
)
@click.option("--pace", type=click.Choice(["real", "scaled", "max"]), default="real", show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Speed-up with --pace scaled.")
@click.option("--loop", is_flag=True, help="Start again at the end, until --duration.")
@click.option("--duration", default="", metavar="T", help="At most this long; needed for a table and with --loop.")
@click.option(
    "--siblings", type=int, default=0, help="Hyperthreads of a core; by default what the vCPUs need, up to 8."
)
@click.option(
    "--rate", default="", metavar="R", help="Exits a second of one vCPU, of a table.  [default: its own, or 2000/s]"
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--engine",
    type=click.Choice(["live", "sim", "explore"]),
    default="live",
    show_default=True,
    help="live: real processes. sim: virtual time. explore: of a schedule, the world it was found in.",
)
@costs_option
@click.pass_obj
def command(session: Session, /, file: str, engine: str, costs: ChosenCosts, **options: Any) -> None:
    """Play FILE on the live machine and judge the run.

    FILE is ftrace, trace-cmd report or perf script text with kvm events: each vCPU thread becomes a vCPU, its exits
    come in their order and at their times. Or it is a `perf kvm stat report`: its counts and times become a mix, drawn
    at random, since a table has no order. Exit code: 0 PASS, 1 FAIL, 3 UNKNOWN.

    Or it is a schedule that `asid explore --save` or `asid sim --schedule` wrote: its steps are taken in that order, by
    real processes or (--engine sim) in virtual time, the machine is left as the last one leaves it, and judged. Exit
    code: 1 when what it shows is broken there as well.
    """
    from asid.commands.run import Progress, require_costs_of_sim, show_outcome, simulated
    from asid.drive import drive
    from asid.policies import require_kick, require_tested
    from asid.recorded import Wanted, recorded
    from asid.trace.sniff import sniff
    from asid.units import parse_duration_ns

    path = Path(file)
    if path.suffix == ".json":
        require_alone("a schedule", "file", "engine", *(("costs",) if engine == "sim" else ()))
        if costs.file:
            raise Usage(f"--costs {costs.file} with a schedule", allowed="low, typical or high")
        _schedule(session, path, engine, costs.level)
        return
    if engine == "explore":
        raise ConfigError(
            f"--engine {engine}", where=path.name, state="a recording", allowed="live or sim, or a schedule"
        )
    require_costs_of_sim(engine)
    if click.get_current_context().get_parameter_source("kick") is ParameterSource.COMMANDLINE:
        require_tested(options["policy"])
        require_kick(options["policy"], options["kick"], "--kick")
    _require_fitting(path, sniff(path), options)
    config, words = recorded(path, Wanted(**{key: options[key] for key in Wanted._fields if key in options}))[:2]
    for word in words:
        session.note(word)
    duration_ns = parse_duration_ns(options["duration"], "--duration") if options["duration"] else 0
    if engine == "sim":
        from asid.simulating import given, load_for

        outcome = simulated(
            session, load_for(config, given(space=options["space"], costs_file=costs.file)),
            duration_ns or VIRTUAL_NS_MAX, costs.level, until_exhausted=not duration_ns,
        )  # fmt: skip
    else:
        progress = Progress(session, duration_ns)
        outcome = drive(
            config, duration_ns=duration_ns, patience_ns=PATIENCE_NS, until_exhausted=not duration_ns,
            space=options["space"], on_wait=progress.show,
        )  # fmt: skip
        progress.clear()
    show_outcome(session, outcome)
    if outcome.exit_code:
        session.finish(outcome.exit_code)


def _require_fitting(path: Path, kind: str, options: dict[str, Any]) -> None:
    """Refuse options that a recording, or a table, has no use for, or cannot do without."""
    from asid.trace.counts import KINDS

    if kind == "trace":
        if click.get_current_context().get_parameter_source("rate") is ParameterSource.COMMANDLINE:
            raise ConfigError(
                f"--rate {options['rate']}", where=path.name, state="a recording has times of its own",
                allowed="a table of counts", hint="--pace scaled --scale N plays it faster.",
            )  # fmt: skip
        if options["loop"] and not options["duration"]:
            raise ConfigError("--loop without --duration", allowed="a time to stop at", hint="Add --duration 10s.")
    elif kind == "perf-kvm-stat" or kind in KINDS:
        if options["loop"]:
            raise ConfigError("--loop", where=path.name, state="a table of counts has no end", allowed="a recording")
        if not options["duration"]:
            raise ConfigError(
                "a table of counts has no end", where=str(path), allowed="--duration", hint="Add --duration 5s."
            )


def _schedule(session: Session, path: Path, engine: str, costs: Level) -> None:
    """Take the steps of a schedule in their order: by real processes, in virtual time, or in the explorer."""
    if engine == "explore":
        from asid.commands.explore import run_again

        session.note(f"{path.name}: a schedule; replayed in the explorer, on the same step functions")
        run_again(session, path)
        return
    from asid.explore import schedule
    from asid.explore.script import script_of, taken
    from asid.recorded import name_of
    from asid.report.verdict import verdict_lines

    planned = schedule.read(path)
    script = script_of(*taken(planned))
    of = f": {script.guarantee}, {script.sentence}" if script.guarantee else ""
    by = "by real processes" if engine == "live" else "in virtual time"
    session.note(f"{path.name}: a schedule of {len(planned.steps)} steps{of}; taken {by}, in its order")
    outcome, core = _played(session, script, name_of(path), engine, costs)
    if "astray" in core:
        astray = core["astray"]
        raise InputError(
            f"the {_MACHINE[engine]} cannot follow it: expected {astray['expected']}, found {astray['found']}",
            where=f"{path.name}, step {astray['step']}: {astray['text']}",
            state=f"{core['steps']} of {core['of']} steps were taken; run directory: {outcome.run.root}",
            hint="The protocol is not the one the schedule was made with. asid replay FILE --engine explore",
        )
    broken = outcome.verdict["guarantees"].get(script.guarantee, {}).get("state") == "broken"
    document = {
        **outcome.verdict,
        "run_dir": str(outcome.run.root),
        "schedule": {**core, "guarantee": script.guarantee, "sentence": script.sentence, "reproduced": broken},
    }
    lines = [*_played_lines(core, script.guarantee, broken, engine), ""]
    lines += [*verdict_lines(outcome.verdict, name=outcome.run.name), f"run directory: {outcome.run.root}"]
    session.show(document, "\n".join(lines), schema="verdict/1")
    if outcome.exit_code:
        session.finish(outcome.exit_code)


_MACHINE = {"live": "live machine", "sim": "simulated machine"}


def _played(session: Session, script: Script, name: str, engine: str, costs: Level) -> tuple[Outcome, dict[str, Any]]:
    """Let a machine play a script; return with the verdict what its core came to."""
    if engine == "sim":
        from asid import simulating

        outcome, (core,) = simulating.play([script], name, costs)
        return outcome, core
    from asid.commands.run import Progress
    from asid.drive import play

    progress = Progress(session, 0)
    outcome, (core,) = play([script], name, progress.show)
    progress.clear()
    return outcome, core


def _played_lines(core: dict[str, Any], guarantee: str, broken: bool, engine: str) -> list[str]:
    """Say what the machine came to: where everybody stood after the last step, and whether that is the violation."""
    lines = [f"{core['steps']} of {core['of']} steps, and after each the core page as in the schedule"]
    for ht in core["hts"]:
        vm = f" of vm{ht['vm']}" if ht["mode"] in ("GUEST", "ISOLATED", "ENTER") else ""
        bit = "set" if ht["pending"] else "clear"
        lines.append(f"  {ht['name']}  {ht['mode']}{vm}, pending bit {bit}, {ht['insns']} guest instructions")
    lines += [f"c{core['core']}: {text}" for text in core["beside"]]
    there = "live" if engine == "live" else "in virtual time"
    if guarantee and broken:
        lines.append(f"{guarantee} is broken {there}, as the schedule says: the audit of the journal finds it.")
    elif guarantee:
        lines.append(
            f"{guarantee} is broken, the schedule says; the audit of this run does not find it. Not reproduced."
        )
    return lines
