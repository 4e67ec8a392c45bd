"""asid policy: which policies there are, which is in force, and whether one of your own keeps what it promises."""

from __future__ import annotations

import click

from asid.commands.session import Session, columns, instance_option
from asid.errors import EXIT_FAIL, PolicyRefused


@click.group(
    epilog="asid policy list\nasid policy set kick-every-exit\nasid policy set asi --kick send\n"
    "asid policy test mine:LazyKick"
)
def command() -> None:
    """List, show, set and test policies."""


@command.command(name="list")
@instance_option
@click.pass_obj
def list_(session: Session) -> None:
    """List the policies; a star marks the one in force."""
    with session.client() as client:
        ret = client.call("policy.list").ret
    rows = [
        ("*" if row.get("name") == ret["current"] else "", row.get("name", "-"), row.get("about") or "-")
        for row in ret["policies"]
    ]
    session.show(ret, columns(("", "POLICY", "WHAT IT DOES"), rows))


@command.command()
@instance_option
@click.pass_obj
def show(session: Session) -> None:
    """Show the policy in force."""
    with session.client() as client:
        ret = client.call("policy.list").ret
    session.show({"policy": ret["current"], "kick": ret["kick"]}, f"{ret['current']}, kick {ret['kick']}")


@command.command(name="set", epilog="asid policy set none")
@click.argument("name")
@click.option("--kick", type=click.Choice(["ack", "send", "rendezvous", "stun", "bare"]), default=None)
@instance_option
@click.pass_obj
def set_(session: Session, name: str, kick: str | None) -> None:
    """Set the policy: all gates are held, everybody changes, then they open."""
    with session.client() as client:
        reply = client.policy_set(name, kick=kick or "")
    text = f"policy {reply['old']} -> {reply['new']}, kick {reply['kick']} (seq {reply.seq})"
    session.show({**reply.ret, "seq": reply.seq}, text)


@command.command(epilog="asid policy test asi\nasid policy test mine:LazyKick --seeds 200")
@click.argument("policy", metavar="MODULE")
@click.option("--seeds", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N")
@click.pass_obj
def test(session: Session, /, policy: str, seeds: int) -> None:
    """Try a policy before it runs live: its decisions, every interleaving of two siblings, random walks of four.

    MODULE is the name of a policy, or MODULE:CLASS. A policy of your own has to pass before a machine starts with it,
    and again after every change of its source. Exit code: 0 passed, 1 not.
    """
    from asid import policies
    from asid.core.policies.base import Policy
    from asid.explore.policy_test import Trial, refused_trial, trials

    done: list[Trial] = []

    def tell(trial: Trial) -> None:
        session.note(f"{'ok' if trial.passed else 'FAIL'}  {trial.what}: {trial.says}")
        done.append(trial)

    like = ""
    try:
        found = policies.find(policy)
    except PolicyRefused as refused:
        tell(refused_trial(refused))
    else:
        like = Policy.like.__func__(found)  # type: ignore[attr-defined]  # not what it says of itself
        for trial in trials(found, range(1, seeds + 1), policy):
            tell(trial)
            if not trial.passed:
                break
    passed = all(trial.passed for trial in done)
    if passed:
        policies.mark_tested(policy)
    rows = [(t.what, "PASS" if t.passed else "FAIL", f"{t.states:,}" if t.states else "-", t.says) for t in done]
    stories = "".join(f"\n\n{t.story}" for t in done if t.story)
    words = f"\n{policy} makes the promises of {like}" + (", and keeps them." if passed else ".") if like else ""
    document = {"ok": passed, "policy": policy, "like": like, "trials": [t._asdict() for t in done]}
    session.show(document, columns(("TRIAL", "VERDICT", "WORLDS", ""), rows, right=(2,)) + words + stories)
    if not passed:
        session.finish(EXIT_FAIL)
