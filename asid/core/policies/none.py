"""Policy `none`: today's kernels without any of this. The negative control: it exposes and it leaks."""

from __future__ import annotations

from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.core.policies.base import Policy


class Unprotected(Policy):
    """Every exit in HOST, nobody kicked, nothing flushed."""

    name = "none"
    about = "every exit in HOST, nobody kicked: the negative control, exposes"
    kicks = (Kick.BARE,)
    rooms = Rooms.ALL
    guarded = False
    host_alone = False
    flush = False
    every_exit_full = True
