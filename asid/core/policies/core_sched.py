"""Policy `core-sched`: only vCPUs of one VM run side by side, and nobody is kicked when a sibling works in HOST."""

from __future__ import annotations

from asid.core.events import Kick
from asid.core.policies.base import Policy


class CoreSched(Policy):
    """Core scheduling as merged in Linux: it keeps tenants apart, and says itself that it does not protect the kernel
    from a sibling (Documentation/admin-guide/hw-vuln/core-scheduling.rst, "Limitations")."""

    name = "core-sched"
    about = "one VM at a time on a core, nobody kicked: leaks from host work of siblings"
    kicks = (Kick.BARE,)
    guarded = False
    host_alone = False
    every_exit_full = True
