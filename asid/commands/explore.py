"""asid explore: every interleaving of a small core, within bounds."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asid import saving
from asid.commands.session import Session, Usage, columns, require_alone
from asid.errors import EXIT_FAIL, EXIT_OK, EXIT_UNKNOWN, gravest

if TYPE_CHECKING:
    from asid.explore.models import Named
    from asid.explore.parts import Model
    from asid.explore.pool import Outcome

# Options other than budgets that describe a model of one's own.
OWN = ("siblings", "vms", "policy", "kick", "halts", "torn", "apic", "unfixed", "nmi_isolated")
# A budget that can only be spent when something else happens.
NEEDS = {"restart": ("kill", "timer", "loss", "retry", "coordinator", "stop"), "stop": ("broadcast",)}
SAVED = ("the counterexample", "--save")
STATES_MAX = 8_000_000  # of one model; about 300 bytes each
DEADLINE_S = 3600
SCHEMA = "explore/1"  # asid replay FILE --engine explore answers in this, too


@click.command(
    epilog="asid explore\nasid explore n2v1-nmi n2v2-kill\nasid explore --siblings 3 --vms 1,1,2 --kill 1 "
    "--save hit.json\nasid explore --schedule hit.json"
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--all", "every", is_flag=True, help="Every named model, the large ones too.")
@click.option(
    "--matrix", is_flag=True, help="Every policy and kick, searched to the end: what holds and what does not."
)
@click.option("--list", "listing", is_flag=True, help="Name the models and their pinned sizes; search nothing.")
@click.option("--siblings", type=click.Choice(["1", "2", "3", "4", "8"]), help="A model of your own: siblings.")
@click.option("--vms", metavar="LIST", help="... which VM each sibling runs, as in 1,1,2. [1 for all]")
@click.option(
    "--kick",
    type=click.Choice(["ack", "send", "rendezvous", "stun", "bare"]),
    help="... how a leave treats its siblings. [ack, or the policy's own]",
)
@click.option(
    "--policy", metavar="NAME", help="... the policy, its flushes and its idling; bare is none. [exits of asi]"
)
@click.option("--nmi", type=int, metavar="N", help="... NMIs, at any step.")
@click.option("--mce", type=int, metavar="N", help="... #MCs, at any step.")
@click.option("--kill", type=int, metavar="N", help="... kills of a hyperthread, at any step.")
@click.option("--restart", type=int, metavar="N", help="... births after a kill.")
@click.option("--coordinator", type=int, metavar="N", help="... kills of the coordinator, at any step.")
@click.option("--loss", type=int, metavar="N", help="... lost messages.")
@click.option("--retry", type=int, metavar="N", help="... requests that time out too early.")
@click.option("--timer", type=int, metavar="N", help="... time-outs of the gate that strike too early.")
@click.option("--hotplug", type=int, metavar="N", help="... vCPUs taken away or given back.")
@click.option("--halts", is_flag=True, help="... vCPUs may halt.")
@click.option("--irq", type=int, metavar="N", help="... external interrupts, at any step.")
@click.option("--broadcast", type=int, metavar="N", help="... #MCs that reach all siblings, whose handlers meet.")
@click.option("--stop", type=int, metavar="N", help="... processes that stop before their part in that is done.")
@click.option("--fatal", type=int, metavar="N", help="... of the #MCs of both kinds, those that may be fatal.")
@click.option("--apic", type=click.Choice(["x2apic", "xapic", "shorthand"]), help="... how IPIs are written. [x2apic]")
@click.option("--unfixed", is_flag=True, help="... handlers do not restore ICR2.")
@click.option("--nmi-isolated", is_flag=True, help="... handlers of NMI and #MC run isolated.")
@click.option("--torn", is_flag=True, help="... a look reads its words one at a time.")
@click.option("--states-max", type=click.IntRange(1), default=STATES_MAX, show_default=True, metavar="N")
@click.option("--deadline", "deadline_s", type=click.IntRange(1), default=DEADLINE_S, show_default=True, metavar="S")
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Processes. [one a core]")
@click.option("--schedule", type=click.Path(path_type=Path, dir_okay=False), help="Run a counterexample again.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the counterexample there.")
@click.pass_obj
def command(
    session: Session, /, schedule: Path | None, listing: bool, matrix: bool, save: Path | None, **given: Any
) -> None:  # fmt: skip
    """Search every order of steps, messages, time-outs, NMIs and kills of MODEL; without MODEL, of the default set.

    Exits with 0 when every guarantee holds in every world, 1 for a counterexample (its story is printed), 3 when a
    limit was hit: then nothing is proved.
    """
    if schedule is not None:
        require_alone("--schedule")
        run_again(session, Path(schedule))
        return
    if matrix:
        require_alone("--matrix", "states_max", "deadline_s", "jobs")
        _matrix(session, given)
        return
    if listing:
        require_alone("--list", "listing")
        _list(session)
        return
    chosen = _chosen(given)
    if save is not None:
        saving.try_to_write(save, *SAVED)  # before a search that may take an hour
    outcomes, ending = _search(session, chosen, given)
    if ending is None or outcomes or session.json:
        _show(session, outcomes, chosen, ending)
    _compare(session, outcomes)
    failed = next((o for o in outcomes if o.guarantee), None)
    if save is not None and failed is not None and failed.schedule is not None:
        saving.write(save, json.dumps(failed.schedule, indent=1) + "\n", *SAVED)
        session.note(f"Saved. Run it again: asid explore --schedule {save}")
    if ending is not None:
        raise ending
    code = gravest(
        [EXIT_FAIL if o.guarantee or o.missing else EXIT_OK if o.complete else EXIT_UNKNOWN for o in outcomes]
    )
    if code != EXIT_OK:
        session.finish(code)


# --- what to search ---------------------------------------------------------------------------------------


def _chosen(given: dict[str, Any]) -> list[tuple[str, Model]]:
    """Return the models to search, largest first."""
    from difflib import get_close_matches

    from asid.explore.models import MODELS

    own = _own(given)
    names: tuple[str, ...] = given["models"]
    for name in names:
        if name not in MODELS:
            near = get_close_matches(name, MODELS, 1)
            raise Usage(
                f"there is no model {name!r}", where="asid explore",
                hint=f"Did you mean {near[0]}?" if near else "asid explore --list",
            )  # fmt: skip
    if own is not None:
        if names or given["every"]:
            raise Usage(
                "a model of your own goes alone", where="asid explore", hint="asid explore --siblings 2 --nmi 1"
            )
        return [("own", own)]
    wanted = [MODELS[name] for name in names]
    if not wanted:
        wanted = [named for named in MODELS.values() if named.default or given["every"]]
    elif given["every"]:
        raise Usage("--all is every model, so name none", where="asid explore", hint="asid explore --all")
    return [(named.name, named.model) for named in sorted(wanted, key=lambda named: -named.states)]


def _own(given: dict[str, Any]) -> Model | None:
    """Return the model that the options describe, None without them."""
    from asid import policies
    from asid.asking import asked
    from asid.core.apic import BY_NAME
    from asid.core.decisions import decided
    from asid.core.events import Kick
    from asid.explore.models import of_policy
    from asid.explore.parts import Budget, Model
    from asid.explore.schedule import COUNT_MAX

    counts = {name: given[name] for name in Budget._fields if given.get(name)}
    if not counts and not any(given[word] for word in OWN):
        return None
    if any(not 0 <= count <= COUNT_MAX for count in counts.values()):
        raise Usage("a budget is a count", where="asid explore", allowed=f"0 to {COUNT_MAX}")
    for word, others in NEEDS.items():
        if counts.get(word) and not any(counts.get(other) for other in others):
            raise Usage(
                f"--{word}", where="asid explore", state="nothing makes it happen",
                allowed=f"with --{' or --'.join(others)}", hint=f"Add --{others[0]} 1, or leave --{word} out.",
            )  # fmt: skip
    if given["unfixed"] and given["apic"] != "xapic":
        raise Usage("--unfixed", where="asid explore", state="only an xAPIC has an ICR2", allowed="with --apic xapic")
    siblings = int(given["siblings"] or 0)
    vms = (1,) * (siblings or 2)
    if given["vms"]:
        try:
            vms = tuple(int(vm) for vm in given["vms"].split(","))
        except ValueError as error:
            raise Usage(f"{given['vms']!r} is not a list of VMs", where="--vms", allowed="as in 1,1,2") from error
        if min(vms) < 0 or max(vms) > 8 or len(vms) not in (1, 2, 3, 4, 8) or (siblings and siblings != len(vms)):
            raise Usage(
                f"{given['vms']} does not fit",
                where="--vms",
                allowed="one VM from 0 to 8 a sibling, 1, 2, 3, 4 or 8 of them",
            )
    words = {"budget": Budget(**counts), "torn": given["torn"]}
    if given["apic"]:
        words["apic"] = BY_NAME[given["apic"]]
    words |= {"icr_fix": not given["unfixed"], "nmi_isolated": given["nmi_isolated"]}
    kick = given["kick"] or "ack"
    name = given["policy"] or ("none" if kick == "bare" else "")
    if name:
        policies.require_kick(name, given["kick"] or "", "--kick")
        policy = policies.make(name, "ack" if kick == "bare" else kick)
        with asked(name):
            decided(type(policy))  # of all hyperthreads the same, or there is no such model
            return of_policy(policy, vms, **words)
    return Model(vms, Kick[kick.upper()], halts=given["halts"], **words)


# --- search and show --------------------------------------------------------------------------------------


def _search(
    session: Session, chosen: Sequence[tuple[str, Model]], given: dict[str, Any], to_the_end: bool = False
) -> tuple[list[Outcome], BaseException | None]:
    """Return what was found, and what cut the search short: then it is of the models that were complete."""
    import os

    from asid.commands import Terminated
    from asid.explore import pool

    begin = time.monotonic_ns()
    workers = given["jobs"] or len(os.sched_getaffinity(0))
    outcomes: list[Outcome] = []
    ending: BaseException | None = None
    events = pool.explore(
        chosen,
        states_max=given["states_max"],
        deadline_ns=begin + given["deadline_s"] * pool.NS,
        workers=workers,
        to_the_end=to_the_end,
    )
    try:
        with contextlib.closing(events) as found:  # its processes end before anything is shown
            for event in found:
                seconds = (time.monotonic_ns() - begin) / pool.NS
                if isinstance(event, int):
                    so_far = f"{event:,} worlds, {event / seconds if seconds else 0.0:,.0f}/s, {seconds:.0f} s"
                    session.note(f"{len(outcomes)} of {len(chosen)} models, {so_far}")
                    continue
                outcomes.append(event)
                if event.guarantee and not to_the_end:
                    session.note(f"{event.name}: {event.guarantee} is broken after {event.steps} steps")
    except (KeyboardInterrupt, Terminated) as interrupted:
        ending = interrupted
    order = {name: at for at, (name, _) in enumerate(reversed(chosen))}
    return sorted(outcomes, key=lambda outcome: order[outcome.name]), ending


def _completeness(done: int, of: int, what: str, ending: BaseException | None) -> tuple[dict[str, Any], str]:
    """Return what a document, and a table, say of a search that was cut short, or was not."""
    if ending is None:
        return {"complete": True, "stopped": ""}, ""
    text = f"Not complete (interrupted): {done} of {of} {what} are, and the table is of those.\n\n"
    return {"ok": False, "complete": False, "stopped": "interrupted"}, text


def _document(outcome: Outcome) -> dict[str, Any]:
    from asid.explore.schedule import model_as_document

    document = outcome._asdict()
    document["model"] = model_as_document(outcome.model)
    document["passed"] = outcome.passed
    return document


def _verdict(outcome: Outcome) -> str:
    if outcome.guarantee:
        return f"FAIL: {outcome.guarantee} after {outcome.steps} steps"
    if outcome.missing:
        return "FAIL: never happens: " + "; ".join(outcome.missing)
    return "PASS" if outcome.complete else "UNKNOWN: a limit was hit"


def _show(
    session: Session, outcomes: list[Outcome], chosen: Sequence[tuple[str, Model]], ending: BaseException | None
) -> None:
    rows = [(o.name, f"{o.states:,}", f"{o.transitions:,}", o.depth, f"{o.seconds:.1f}", _verdict(o)) for o in outcomes]
    total = sum(o.states for o in outcomes)
    completeness, head = _completeness(len(outcomes), len(chosen), "models", ending)

    def text() -> str:
        table = columns(("MODEL", "STATES", "TRANSITIONS", "DEPTH", "SECONDS", "VERDICT"), rows, right=(1, 2, 3, 4))
        stories = "".join(f"\n\n{o.story}" for o in outcomes if o.story)
        passed = sum(o.passed for o in outcomes)
        return f"{head}{table}\n{passed} of {len(chosen)} models hold in {total:,} worlds.{stories}"

    document = {
        "ok": all(o.passed for o in outcomes),
        "states": total,
        "models": [_document(o) for o in outcomes],
        **completeness,
    }
    session.show(document, text)


def _compare(session: Session, outcomes: list[Outcome]) -> None:
    """Say where a model has not the size that is pinned: its behaviour has changed."""
    from asid.explore.models import MODELS

    for o in outcomes:
        pinned = MODELS.get(o.name)
        if pinned is not None and o.passed and (o.states, o.transitions) != (pinned.states, pinned.transitions):
            session.note(
                f"{o.name}: {o.states:,} worlds and {o.transitions:,} steps, "
                f"pinned are {pinned.states:,} and {pinned.transitions:,}: the behaviour has changed"
            )


def _matrix(session: Session, given: dict[str, Any]) -> None:
    """Search every policy with every kick, and show which guarantee holds where."""
    from asid.explore import matrix

    of_policies, of_apics = matrix.policies(), matrix.apics()
    models = matrix.models_of([*of_policies, *of_apics])
    done, ending = _search(session, models, given, to_the_end=True)
    outcomes = {outcome.model: outcome for outcome in done}
    asked = [*of_policies, *of_apics]
    rows = [matrix.found(row, outcomes) for row in asked if outcomes.keys() >= set(row.searches.values())]
    completeness, head = _completeness(len(rows), len(asked), "rows", ending)
    kept = [matrix.kept(each.row, each.cells) for each in rows]
    states = sum(o.states for o in outcomes.values())

    def text() -> str:
        right = tuple(range(3, 3 + len(matrix.NAMES)))
        first = [(each.row.policy, *each.row.setting, *each.shorts) for each in rows if not each.row.apic]
        second = [(each.row.apic, *each.row.setting, *each.shorts) for each in rows if each.row.apic]
        leaking = [(row.policy, *row.setting, row.apic, *matrix.counted(leaks)) for row, _, leaks in rows if leaks]
        return head + "\n".join(
            (
                columns(("POLICY", "KICK", "VMS", *matrix.NAMES), first, right=right),
                "\nPolicy asi, by how IPIs are written; an NMI that runs isolated may hit at any step:",
                columns(("APIC", "KICK", "VMS", *matrix.NAMES), second, right=right),
                "\nWorlds in which a guest can read what is not its own; every other row has none:",
                columns(("POLICY", "KICK", "VMS", "APIC", "CONCURRENT", "RESIDUAL"), leaking, right=(2, 4, 5)),
                f"\n{len(outcomes)} searches, {states:,} worlds. !N: broken, and the shortest way there takes N steps.",
                f"{sum(k is True for k in kept)} of {len(kept)} rows keep what they promise.",
            )
        )

    documents = [matrix.document(each) for each in rows]
    document = {"ok": all(kept), "states": states, "searches": len(outcomes), "rows": documents, **completeness}
    if ending is None or rows or session.json:
        session.show(document, text)
    if ending is not None:
        raise ending
    if not all(kept):
        session.finish(EXIT_FAIL if False in kept else EXIT_UNKNOWN)


def _list(session: Session) -> None:
    from asid.explore.models import MODELS
    from asid.explore.schedule import model_as_document

    def row(named: Named) -> tuple[object, ...]:
        budget = ", ".join(f"{name} {count}" for name, count in named.model.budget._asdict().items() if count)
        vms = ",".join(map(str, named.model.vms))
        return named.name, "default" if named.default else "--all", vms, budget or "-", f"{named.states:,}"

    rows = [row(named) for named in MODELS.values()]
    document = {
        "models": [
            {"name": m.name, "default": m.default, "states": m.states, "model": model_as_document(m.model)}
            for m in MODELS.values()
        ]
    }
    session.show(document, lambda: columns(("MODEL", "SET", "VMS", "FROM OUTSIDE", "STATES"), rows, right=(4,)))


def run_again(session: Session, file: Path) -> None:
    """Take the steps of a schedule again in the explorer, and say what is broken."""
    from asid.explore import schedule, story

    planned = schedule.read(file)
    w, violation = schedule.replayed(planned)
    document: dict[str, Any] = {"file": str(file), "steps": len(planned.steps), "expected": planned.guarantee}
    if violation is None:
        text = f"{len(planned.steps)} steps, and every guarantee holds."
        session.show({**document, "broken": ""}, text, schema=SCHEMA)
        return
    told = story.told(w, violation)
    session.show({**document, "ok": False, "broken": violation.guarantee, "story": told}, told, schema=SCHEMA)
    session.finish(EXIT_FAIL)
