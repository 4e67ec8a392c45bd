"""What a comparison runs, and in which order: policies, their kick variants, and turns that are dealt anew each repeat.

A policy with a kick of its own, or with none at all, is run once: `none`, `nosmt`. Every other one is run once a kick:
`asi/ack`, `asi/send`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from asid.core.policies.base import Policy
from asid.core.policy import KICKS, NAMES
from asid.errors import ConfigError
from asid.policies import make

BASELINE: Final = "none"


@dataclass(frozen=True, slots=True)
class Variant:
    """One policy with one kick; kick "" where there is none to choose."""

    policy: str
    kick: str = ""

    @property
    def label(self) -> str:
        return f"{self.policy}/{self.kick}" if self.kick else self.policy


def variants(policies: Sequence[str] = (), kicks: Sequence[str] = ()) -> list[Variant]:
    """Return every policy with every kick, each once, in the order given; all that there are for an empty list.

    Raise ConfigError for a name that is none, and for a policy that goes with none of the kicks.
    """
    for kick in kicks:
        if kick not in KICKS:
            raise ConfigError(
                f"kick {kick!r}", where="--kicks", allowed=f"some of {','.join(KICKS)}", hint="Leave it out for all."
            )
    out: list[Variant] = []
    for name in policies or NAMES:
        out += _of_policy(name, kicks or tuple(KICKS))
    return list(dict.fromkeys(out))


def _of_policy(name: str, kicks: Sequence[str]) -> list[Variant]:
    made: dict[str, Policy] = {}
    refusal: ConfigError | None = None
    for kick in KICKS:
        try:
            made[kick] = make(name, kick)
        except ConfigError as refused:
            refusal = refused
    if not made:
        assert refusal is not None, "KICKS is not empty"
        raise refusal
    if len(KICKS) > 1 and len({policy.kick for policy in made.values()}) == 1:  # its own, or none at all
        kick = "" if len(made) == len(KICKS) else next(iter(made))
        return [Variant(name, kick)]
    made = {kick: policy for kick, policy in made.items() if policy.kick.name.lower() == kick}  # else it has its own
    chosen = [Variant(name, kick) for kick in kicks if kick in made]
    if not chosen:
        raise ConfigError(
            f"policy {name!r}", where="--policies", state=f"it does not go with the kick {' or '.join(kicks)}",
            allowed=f"one with a kick of {','.join(made)}", hint="Leave --kicks out for all.",
        )  # fmt: skip
    return chosen


def turns(of: Sequence[Variant], repeats: int, seed: int) -> list[list[Variant]]:
    """Return the variants of each repeat in the order in which they run.

    All of a repeat run before the next one begins, so that whatever changes on the host meets all of them; and in
    another order each time, so that none always follows the same one.
    """
    random = Random(seed)
    return [random.sample(list(of), len(of)) for _ in range(repeats)]
