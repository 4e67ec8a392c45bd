"""Policy `kick-except-idle`: as kick-every-exit, but a guest that idles kicks nobody (RFC comment 14)."""

from __future__ import annotations

from asid.core.events import Kick
from asid.core.policies.base import Policy


class KickExceptIdle(Policy):
    """The experiment of RFC comment 14: "a big enough win". What the host does on its way into idle is not covered."""

    name = "kick-except-idle"
    about = "every exit in HOST, siblings kicked at each but HLT"
    every_exit_full = True
    idle_kick = Kick.BARE
