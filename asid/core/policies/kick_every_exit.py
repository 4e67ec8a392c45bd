"""Policy `kick-every-exit`: what safety costs without an isolated address space (RFC comment 4, point 3)."""

from __future__ import annotations

from asid.core.policies.base import Policy


class KickEveryExit(Policy):
    """Every exit in HOST, and every exit kicks; L1D flush at entry."""

    name = "kick-every-exit"
    about = "every exit in HOST, siblings kicked at each"
    every_exit_full = True
