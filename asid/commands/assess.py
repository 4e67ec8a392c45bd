"""asid assess: what each policy would cost a workload, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asid.commands.session import ChosenCosts, CostsType, Drawn, Session, Usage, columns
from asid.errors import ConfigError
from asid.units import parse_duration_ns

if TYPE_CHECKING:
    from asid.assessing import Workload
    from asid.report.variants import Variant

DURATION = "100ms"
SHARE = 2  # each assumption is looked at for a part of that: its two values are of the same exits
CONFIGURATIONS = (".toml", ".json")


@click.command(
    epilog="asid assess recording.txt\n"
    "asid assess perf-kvm-stat.txt --over 10s --vcpus 4\n"
    "asid assess kvmexit.txt    # of bcc; also kvm_stat and SystemTap's kvm_service_time\n"
    "asid assess configs/smt2.toml --kicks ack,send --seeds 5\n"
    "perf kvm stat report > perf-kvm-stat.txt    # what goes in"
)
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False), metavar="FILE...")
@click.option("--policies", default="", metavar="LIST", help="As in none,nosmt,asi.  [default: all]")
@click.option("--kicks", default="ack", show_default=True, metavar="LIST", help="For policies with a choice.")
@click.option(
    "--duration", default="", metavar="T", help=f"Of virtual time.  [default: {DURATION}; of a FILE: what it needs]"
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N", help="Typical runs.")
@click.option("--seed", type=int, default=1, show_default=True, metavar="N", help="The first.")
@click.option("--rate", default="", metavar="R", help="Exits a second of guest time of one vCPU, of a table.")
@click.option("--over", default="", metavar="T", help="In what time a table was counted: the rate follows from it.")
@click.option(
    "--vcpus", type=click.IntRange(1, 4096), metavar="N", help="Of how many vCPUs, with --over.  [default: 2]"
)
@click.option("--siblings", type=int, default=0, help="Hyperthreads of a core; see asid replay.")
@click.option("--costs", type=CostsType(), metavar="FILE", help="A file with [costs]: known, not assumed.")
@click.option("--no-sensitivity", is_flag=True, help="Leave out how far the answer moves with each assumption.")
@click.pass_obj
def command(session: Session, /, files: tuple[str, ...], **options: Any) -> None:
    """Show for each FILE what every policy would cost it, what its kicks are for, and how sure that is.

    FILE is a recording (ftrace, trace-cmd report, perf script), the text of perf kvm stat, counts (kvmexit of bcc,
    kvm_stat, kvm_service_time of SystemTap), or a configuration. It is played in virtual time under every policy, with
    typical costs and with low and high ones (docs/costs.md). Several FILEs are workloads of their own: a table each.
    """
    from asid.assessing import assess
    from asid.policies import require_tested
    from asid.report.assessed import assessed_lines, rows_of_all
    from asid.report.variants import BASELINE, variants
    from asid.sensitivity import swings

    names, kicks = (_names(options[key]) for key in ("policies", "kicks"))
    for name in names:
        require_tested(name)
    if names and BASELINE not in names:
        names = [BASELINE, *names]  # what every other one is measured by
    chosen = variants(names, kicks)
    about = next((variant for variant in chosen if variant.policy == "asi"), chosen[-1])
    documents, texts = [], []
    works = [_workload(Path(file), options) for file in files]  # refuses before anything is played
    for file, work in zip(files, works, strict=True):
        line = _Line(session, Path(file).name)
        found = assess(work, chosen, seed=options["seed"], seeds=options["seeds"], on_run=line.run)
        part = work._replace(duration_ns=-(-work.duration_ns // SHARE))
        moved = () if options["no_sensitivity"] else swings(part, about, seed=options["seed"], on_run=line.case)
        line.clear()
        rows = rows_of_all(found, chosen, options["seed"])
        documents.append(
            {"file": file, "duration_ns": work.duration_ns, "vcpus": found.vcpus, "assumed": list(work.words),
             "rows": rows, "about": about.label,
             "moves": [{**swing._asdict(), "width": swing.width} for swing in moved]}
        )  # fmt: skip
        body = assessed_lines(rows, about.label, found, work, moved, columns)
        texts.append("\n".join([*([f"{file}:"] if len(files) > 1 else []), *body]))
    session.show({"files": documents}, "\n\n".join(texts), schema="assess/1")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _workload(path: Path, options: dict[str, Any]) -> Workload:
    """Return what a file says is to be played, and what had to be assumed."""
    from asid.assessing import VIRTUAL_NS_MAX, Workload
    from asid.config import load
    from asid.config_costs import written
    from asid.recorded import Wanted, recorded
    from asid.simulating import given as given_costs

    costs: ChosenCosts | None = options["costs"]
    if costs is not None and not costs.file:
        raise Usage(f"--costs {costs.level}", state="every column is played", allowed="a file with [costs]")
    costs_file = costs.file if costs is not None else ""
    rows = written(load(path if path.suffix in CONFIGURATIONS else {}, given_costs(costs_file=costs_file)).config.costs)
    known = [f"costs as given, the others as in docs/costs.md: {', '.join(rows)}"] if rows else []
    given = _duration_ns(options, "duration", f"Try {DURATION}.")
    if path.suffix in CONFIGURATIONS:
        for name, value in ((name, options[name]) for name in ("siblings", "rate", "over", "vcpus")):
            if value:
                raise Usage(f"--{name}", state=f"{path} says it for itself", allowed="with a recording or a table")
        duration_ns = given or parse_duration_ns(DURATION, "--duration")
        return Workload(path, duration_ns, tuple(known), costs_file=costs_file)
    if options["rate"] and options["over"]:
        raise Usage("--rate and --over", state="the rate follows from --over", allowed="one of them")
    if options["vcpus"] and options["rate"]:
        raise Usage("--rate and --vcpus", state="--rate is of one vCPU already", allowed="one of them")
    wanted = Wanted(
        siblings=options["siblings"], rate=options["rate"], seed=options["seed"], loop=True,
        over_ns=_duration_ns(options, "over", "Try 10s."), vcpus=options["vcpus"] or 0,
    )  # fmt: skip
    found = recorded(path, wanted)
    config = found.config
    if options["rate"] and config["vm"][0]["guest"]["source"] == "trace":
        raise Usage("--rate", state="a recording has times of its own", allowed="with a table of counts")
    alone = config["machine"] == {"cores": len(config["vm"][0]["on"]), "smt": 1}
    apart = None if alone else recorded(path, wanted._replace(siblings=1)).config
    return Workload(
        config, given or min(found.enough_ns, VIRTUAL_NS_MAX), (*found.words, *known), found.rate_hz, apart,
        found.further, costs_file,
    )  # fmt: skip


def _duration_ns(options: dict[str, Any], name: str, hint: str) -> int:
    """Return a duration that was given, 0 for none."""
    if not options[name]:
        return 0
    given = parse_duration_ns(options[name], f"--{name}")
    if given <= 0:
        raise ConfigError(f"--{name} {options[name]}", allowed="longer than 0", hint=hint)
    return given


class _Line(Drawn):
    """What is drawn while the runs go on."""

    def __init__(self, session: Session, name: str) -> None:
        super().__init__(session)
        self._name = name

    def run(self, variant: Variant, done: int, total: int) -> None:
        self.draw(f"{self._name}: run {done + 1} of {total}, {variant.label}")

    def case(self, what: str, done: int, total: int) -> None:
        self.draw(f"{self._name}: assumption {done + 1} of {total}, {what}")
