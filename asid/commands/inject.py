"""asid inject: make something happen to a hyperthread."""

from __future__ import annotations

from typing import Any

import click

from asid.commands.session import Session, instance_option
from asid.errors import ConfigError
from asid.units import parse_duration_ns, parse_rate_hz

KINDS = ("exit", "nmi", "mce", "irq", "stall", "kill")
ONLY = {
    "reason": ("exit",),
    "full": ("exit", "irq"),
    "for": ("stall",),
    "coordinator": ("kill",),
    "broadcast": ("mce",),
    "local": ("mce",),
    "severity": ("mce",),
}
NO_COUNT = ("stall", "kill")


@click.command(
    epilog="asid inject nmi c0h1\nasid inject exit 'c*h0' --reason CPUID --count 1000 --rate 500/s --wait\n"
    "asid inject mce c0h0 --broadcast --severity fatal\nasid inject stall c0h1 --for 200ms\n"
    "asid inject kill c0 --coordinator"
)
@click.argument("what", type=click.Choice(KINDS))
@click.argument("target")
@click.option("--reason", metavar="R", help="Exit reason, the kernel's name. [default: EPT_VIOLATION]")
@click.option("--full", type=click.Choice(["yes", "no"]), help="Needs the full address space. [what is mapped decides]")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option("--rate", metavar="R/s", help="So many a second; without it all at once.")
@click.option("--random", type=click.IntRange(min=0), metavar="SEED", help="At random moments, R a second in the mean.")
@click.option("--for", "duration", metavar="D", help="How long a stall lasts. [default: 100ms]")
@click.option("--broadcast", is_flag=True, help="A machine check of all siblings. [default: as configured]")
@click.option("--local", is_flag=True, help="A machine check of the target alone.")
@click.option("--severity", type=click.Choice(["corrected", "recoverable", "fatal"]), help="... [recoverable]")
@click.option("--coordinator", is_flag=True, help="Kill the coordinator of the core instead of the hyperthreads.")
@click.option("--wait", is_flag=True, help="Return when all are handled, merged or lost.")
@click.option("--timeout", default=10.0, show_default=True, metavar="S", help="How long to wait for the answer.")
@instance_option
@click.pass_obj
def command(session: Session, /, what: str, target: str, timeout: float, wait: bool, **options: Any) -> None:
    """Inject VM exits, NMIs, machine checks, interrupts, a stall or a kill into TARGET."""
    args = arguments(what, wait=wait, **options)
    with session.client() as client:
        reply = client.inject(what, target, timeout_s=timeout, **args)
        ret, seq = reply.ret, reply.seq
        if ret["job"] and wait:
            done = client.wait_job(ret["job"], timeout_s=timeout)
            ret, seq = {**done["result"], "job": ret["job"]}, done["seq"]
    session.show({"what": what, "target": target, **ret, "seq": seq}, lambda: render(what, target, ret, seq))


def arguments(what: str, *, wait: bool, **options: Any) -> dict[str, Any]:
    """Return the operation's arguments. Raise ConfigError for an option that means nothing for `what`."""
    for option, kinds in ONLY.items():
        if options.get("duration" if option == "for" else option) and what not in kinds:
            raise ConfigError(f"--{option}", where=f"asid inject {what}", allowed=f"used with {' or '.join(kinds)}")
    if what in NO_COUNT and (options["count"] != 1 or options["rate"]):
        raise ConfigError("--count or --rate", where=f"asid inject {what}", allowed="used with exit, nmi, mce or irq")
    args: dict[str, Any] = {"wait": wait}
    if what not in NO_COUNT:
        args["count"] = options["count"]
        if options["rate"]:
            args["rate_hz"] = round(parse_rate_hz(options["rate"]))
    if options.get("random") is not None:
        if not options["rate"]:
            raise ConfigError("--random", where=f"asid inject {what}", allowed="used with --rate", hint="--rate 100/s")
        args |= {"gaps": "random", "seed": options["random"]}
    if options["reason"]:
        args["reason"] = options["reason"].upper()
    if options.get("full"):
        args["full"] = options["full"]
    if options["duration"]:
        args["for_ms"] = parse_duration_ns(options["duration"]) // 1_000_000
    local = options.get("local")
    if options["broadcast"] and local:
        raise ConfigError("--broadcast and --local", where="asid inject mce", allowed="one of them")
    if options["broadcast"] or local:
        args["scope"] = "broadcast" if options["broadcast"] else "local"
    if options.get("severity"):
        args["severity"] = options["severity"]
    if options["coordinator"]:
        args["what"] = "coordinator"
    return args


def render(what: str, target: str, ret: dict[str, Any], seq: int) -> str:
    """Return one line about what was injected."""
    if ret["job"] and not ret["accepted"]:
        return f"{what} {target}: job {ret['job']} has begun"
    parts = [f"accepted {ret['accepted']:,}"]
    parts += [f"{name} {ret[name]:,}" for name in ("handled", "merged", "lost", "refused") if ret.get(name)]
    return f"{what} {target}: {', '.join(parts)} (seq {seq})"
