"""asid assess: what each policy would cost a workload, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asid.commands.session import Drawn, Session, Usage, columns
from asid.errors import ConfigError

if TYPE_CHECKING:
    from asid.assessing import Workload
    from asid.report.variants import Variant

DURATION = "100ms"


@click.command(
    epilog="asid assess recording.txt\n"
    "asid assess perf-kvm-stat.txt --rate 3600/s\n"
    "asid assess configs/smt2.toml --kicks ack,send --seeds 5\n"
    "perf kvm stat report > perf-kvm-stat.txt    # what goes in"
)
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False), metavar="FILE...")
@click.option("--policies", default="", metavar="LIST", help="As in none,nosmt,asi.  [default: all]")
@click.option("--kicks", default="ack", show_default=True, metavar="LIST", help="For policies with a choice.")
@click.option("--duration", default="", metavar="T", help=f"Of virtual time.  [default: {DURATION}; a recording's own]")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N", help="Typical runs.")
@click.option("--seed", type=int, default=1, show_default=True, metavar="N", help="The first.")
@click.option("--rate", default="2000/s", show_default=True, help="Exits a second of one vCPU, of a table.")
@click.option("--siblings", type=int, default=0, help="Hyperthreads of a core; see asid replay.")
@click.option("--no-sensitivity", is_flag=True, help="Leave out how far the answer moves with each assumption.")
@click.pass_obj
def command(session: Session, /, files: tuple[str, ...], **options: Any) -> None:
    """Show for each FILE what every policy would cost it, what its kicks are for, and how sure that is.

    FILE is a recording (ftrace, trace-cmd report, perf script), the text of perf kvm stat, or a configuration. It is
    played in virtual time under every policy, with typical costs and with low and high ones (docs/costs.md).
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
    for file in files:
        work = _workload(Path(file), options)
        line = _Line(session, Path(file).name)
        found = assess(work, chosen, seed=options["seed"], seeds=options["seeds"], on_run=line.run)
        moved = () if options["no_sensitivity"] else swings(work, about, seed=options["seed"], on_run=line.case)
        line.clear()
        rows = rows_of_all(found, chosen, options["seed"])
        documents.append(
            {"file": file, "assumed": list(work.words), "rows": rows, "about": about.label,
             "moves": [{**swing._asdict(), "width": swing.width} for swing in moved]}
        )  # fmt: skip
        body = assessed_lines(rows, about.label, found.causes[about.label], work, moved, columns)
        texts.append("\n".join([*([f"{file}:"] if len(files) > 1 else []), *body]))
    session.show({"files": documents}, "\n\n".join(texts), schema="assess/1")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _workload(path: Path, options: dict[str, Any]) -> Workload:
    """Return what a file says is to be played, and what had to be assumed."""
    from asid.assessing import Workload
    from asid.recorded import Wanted, recorded
    from asid.units import parse_duration_ns, parse_rate_hz

    given = parse_duration_ns(options["duration"], "--duration") if options["duration"] else None
    if given is not None and given <= 0:
        raise ConfigError(f"--duration {options['duration']}", allowed="longer than 0", hint=f"Try {DURATION}.")
    default_ns = parse_duration_ns(DURATION, "--duration")
    if path.suffix in (".toml", ".json"):
        if options["siblings"]:
            raise Usage("--siblings", state=f"{path} says where its vCPUs are", allowed="with a recording or a table")
        return Workload(path, given or default_ns)
    wanted = Wanted(siblings=options["siblings"], rate=options["rate"], seed=options["seed"])
    config, words, has_end = recorded(path, wanted)
    alone = config["machine"] == {"cores": len(config["vm"][0]["on"]), "smt": 1}
    apart = None if alone else recorded(path, wanted._replace(siblings=1)).config
    rate_hz = 0.0 if has_end else parse_rate_hz(options["rate"], "--rate")
    return Workload(config, given or (0 if has_end else default_ns), tuple(words), rate_hz, apart)


class _Line(Drawn):
    """What is drawn while the runs go on."""

    def __init__(self, session: Session, name: str) -> None:
        super().__init__(session)
        self._name = name

    def run(self, variant: Variant, done: int, total: int) -> None:
        self.draw(f"{self._name}: run {done + 1} of {total}, {variant.label}")

    def case(self, what: str, done: int, total: int) -> None:
        self.draw(f"{self._name}: assumption {done + 1} of {total}, {what}")
