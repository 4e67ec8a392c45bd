"""The policies that asid has, by name, and what can be chosen with each."""

from __future__ import annotations

from typing import Final

from asid.core.events import Kick
from asid.core.policies.asi import Asi
from asid.core.policies.asi_irqoff import AsiIrqOff
from asid.core.policies.asi_stun import AsiStun
from asid.core.policies.base import Policy
from asid.core.policies.core_sched import CoreSched
from asid.core.policies.kick_every_exit import KickEveryExit
from asid.core.policies.kick_except_idle import KickExceptIdle
from asid.core.policies.none import Unprotected
from asid.core.policies.nosmt import NoSmt
from asid.errors import ConfigError

__all__ = ["KICKS", "NAMES", "POLICIES", "Policy", "kick_of", "make_policy"]

KICKS: Final = {"ack": Kick.ACK, "send": Kick.SEND, "rendezvous": Kick.RENDEZVOUS, "stun": Kick.STUN}

POLICIES: Final[dict[str, type[Policy]]] = {
    policy.name: policy
    for policy in (Unprotected, NoSmt, CoreSched, KickEveryExit, KickExceptIdle, Asi, AsiIrqOff, AsiStun)
}
NAMES: Final = tuple(POLICIES)


def make_policy(name: str, kick: str) -> Policy:
    """Return the policy of that name with that kick variant, or with its own where it has one. Raise ConfigError."""
    found = POLICIES.get(name)
    if found is None:
        raise ConfigError(
            f"policy {name!r}", where="policy.name", allowed=f"one of {', '.join(NAMES)}", hint="Try asi, the default."
        )
    if kick not in KICKS:
        raise ConfigError(
            f"kick {kick!r}", where="policy.kick", allowed=f"one of {', '.join(KICKS)}", hint="Try ack, the default."
        )
    return found(kick_of(found, KICKS[kick]))


def kick_of(policy: type[Policy], kick: Kick) -> Kick:
    """Return the kick that a policy has when this one is chosen: its own, if it has only one."""
    return kick if kick in policy.kicks else policy.kicks[0]
