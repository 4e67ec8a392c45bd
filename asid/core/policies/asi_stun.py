"""Policy `asi-stun`: as `asi`, with stun kicks, as the 2022 posting has it."""

from __future__ import annotations

from asid.core.events import Kick
from asid.core.policies.base import Policy


class AsiStun(Policy):
    """Siblings are stunned before the switch, and unstunned after the flush at the next entry."""

    name = "asi-stun"
    about = "as asi, with stun kicks"
    kicks = (Kick.STUN,)
