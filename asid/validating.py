"""The figures of docs/validation.md: what the simulator gives where something was published.

    python -m asid.validating > docs/validation/figures.json

takes some minutes and runs the live machine too. The page is made from that file (`asid.report.validation_page`), and a
test simulates some of it again: the simulated figures are the same on every host, the live ones are of one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from asid import __version__
from asid.agreement import AGREEMENTS, COUNTS, DURATION_NS, Agreement, config_of, differences, ratios, tally_of
from asid.assessing import Workload, assess
from asid.drive import configs_dir, drive
from asid.live.journal import JournalReader
from asid.report.assessed import rows_of_all
from asid.report.variants import Variant
from asid.sim.costs import costs_of
from asid.simulating import load_for, machine_of

SEED: Final = 1
DIRECTORY: Final = Path("docs/validation")
MS: Final = 1_000_000


class Case(NamedTuple):
    """A configuration of docs/validation that is assessed. labels: of its variants, POLICY or POLICY/KICK."""

    name: str
    duration_ms: int
    labels: tuple[str, ...]

    @property
    def command(self) -> str:
        """What shows the figures; with every kick in it, one table has them all."""
        policies = dict.fromkeys(label.partition("/")[0] for label in self.labels)
        kicks = dict.fromkeys(kick for label in self.labels if (kick := label.partition("/")[2]))
        given = f" --kicks {','.join(kicks)}" if set(kicks) - {"ack"} else ""
        return (
            f"asid assess {DIRECTORY}/{self.name}.toml --duration {self.duration_ms}ms"
            f" --policies {','.join(policies)}{given} --no-sensitivity"
        )


EVERY, EXCEPT, ASI = "kick-every-exit", "kick-except-idle", "asi"
CASES: Final = (
    Case("cpuid", 1, ("none", "asi/ack")),
    Case("server", 200, ("none", "nosmt", f"{EVERY}/ack", f"{EVERY}/send", f"{EXCEPT}/ack", f"{EXCEPT}/send",
                         f"{ASI}/ack", f"{ASI}/send")),
    Case("server-polling", 2_000, ("none", f"{EVERY}/ack", f"{EXCEPT}/ack", f"{ASI}/ack")),
    Case("spinning", 5, ("none", "nosmt", f"{EVERY}/ack", f"{EVERY}/send", f"{ASI}/ack", f"{ASI}/send")),
    Case("alone", 200, ("none", "core-sched")),
    Case("alone-spinning", 5, ("none", "core-sched")),
)  # fmt: skip
BY_NAME: Final = {case.name: case for case in CASES}


def variant_of(label: str) -> Variant:
    policy, _, kick = label.partition("/")
    return Variant(policy, kick)


def assessed(case: Case, root: Path, labels: Iterable[str] = ()) -> dict[str, Any]:
    """Return what `asid assess` shows of a case, by label. root: of the project. labels: some of the case's."""
    chosen = [variant_of(label) for label in labels or case.labels]
    work = Workload(root / DIRECTORY / f"{case.name}.toml", case.duration_ms * MS)
    found = assess(work, chosen, seed=SEED, seeds=1, on_run=lambda *_: None)
    rows = {}
    for row, variant in zip(rows_of_all(found, chosen, SEED), chosen, strict=True):
        own = [sample for sample in found.samples if sample.variant == variant]
        causes = found.causes[variant.label]
        rows[row["label"]] = {
            "exits_per_s": [round(sample.per_second("exits"), 1) for sample in own],  # typical, low, high costs
            "kicks_per_s": round(row["kicks_per_s"], 1),
            "kicks_for_halts_per_s": round(sum(cause.kicks_hz for cause in causes if cause.reason == "HLT"), 1),
            "full_percent": own[0].document["figures"]["full_percent"],
            "leave_p50_ns": [sample.document["figures"]["leaves"]["p50_ns"] for sample in own],
            "vs_none": [round(row["vs_none"][key], 4) for key in ("ratio", "low", "high")],
        }
    return rows


def agreed(agreement: Agreement) -> dict[str, Any]:
    """Return the counts of a live run beside those of a simulated one."""
    config = config_of(agreement, configs_dir())
    outcome = drive(config, duration_ns=DURATION_NS)
    with JournalReader(outcome.run.root / "journal.asid") as reader:
        live = tally_of(reader)
    simulated = tally_of(machine_of(load_for(config, {}), costs_of("typical")).play(DURATION_NS).records)
    return {
        "live": {name: getattr(live, name) for name in COUNTS},
        "sim": {name: getattr(simulated, name) for name in COUNTS},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios(live, simulated).items()},
        "differences": differences(agreement, live, simulated),
    }


def figures(root: Path, on_case: Callable[[str], None]) -> dict[str, Any]:
    """Return every figure of the page."""
    found: dict[str, Any] = {"asid": __version__, "assessed": {}, "agreed": {}}
    for case in CASES:
        on_case(case.name)
        found["assessed"][case.name] = assessed(case, root)
    for agreement in AGREEMENTS:
        on_case(f"{agreement.name}, live")
        found["agreed"][agreement.name] = agreed(agreement)
    return found


def main() -> None:
    def say(name: str) -> None:
        sys.stderr.write(f"{name}\n")

    found = figures(Path(), say)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
