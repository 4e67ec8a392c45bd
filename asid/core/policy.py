"""Policies: where an exit is handled, whether its leave kicks, and which leases may coexist.

A policy is data. The hyperthread's step function reads `kick` and `guarded`, the gate's reads `rooms`; the engine
asks `needs_full` where an exit is to be handled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.errors import ConfigError

KICKS: Final = {"ack": Kick.ACK, "send": Kick.SEND}


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy as it is in force: with its kick variant."""

    name: str
    kick: Kick
    rooms: Rooms
    guarded: bool
    every_exit_full: bool
    about: str

    def needs_full(self, full: bool) -> bool:
        """Return whether an exit is handled in HOST, given whether its handler needs the full address space."""
        return full or self.every_exit_full


# name: (kick, or None for the configured one; rooms; guarded; every exit full; about)
_POLICIES: Final = {
    "none": (Kick.BARE, Rooms.ALL, False, True, "every exit in HOST, nobody kicked: the negative control, exposes"),
    "nosmt": (Kick.BARE, Rooms.HYPERTHREAD, True, True, "one vCPU at a time on a core: nobody to kick"),
    "kick-every-exit": (None, Rooms.VM, True, True, "every exit in HOST, siblings kicked at each"),
    "asi": (None, Rooms.VM, True, False, "exits in the isolated address space; kicks on leaves only"),
}
NAMES: Final = tuple(_POLICIES)


def make_policy(name: str, kick: str) -> Policy:
    """Return the policy of that name with that kick variant (`ack` or `send`). Raise ConfigError."""
    row = _POLICIES.get(name)
    if row is None:
        raise ConfigError(
            f"policy {name!r}", where="policy.name", allowed=f"one of {', '.join(NAMES)}", hint="Try asi, the default."
        )
    if kick not in KICKS:
        raise ConfigError(
            f"kick {kick!r}", where="policy.kick", allowed=f"one of {', '.join(KICKS)}", hint="Try ack, the default."
        )
    own_kick, rooms, guarded, every, about = row
    return Policy(name, KICKS[kick] if own_kick is None else own_kick, rooms, guarded, every, about)
