"""Policy `nosmt`: SMT as good as off. One vCPU at a time on a core, so a leave finds nobody to kick."""

from __future__ import annotations

from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.core.policies.base import Policy


class NoSmt(Policy):
    """Every exit in HOST; L1D flush at entry (linux l1tf.rst, `full,force` without SMT)."""

    name = "nosmt"
    about = "one vCPU at a time on a core: nobody to kick"
    kicks = (Kick.BARE,)
    rooms = Rooms.HYPERTHREAD
    # With SMT off an interrupt never finds a sibling. Here it may, parked, and then there is somebody to kick.
    irq_kick = Kick.ACK
    every_exit_full = True
