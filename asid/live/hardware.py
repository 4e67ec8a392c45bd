"""What stands for hardware in the live machine, made by the daemon and handed down to all that it bears.

The core pages, the doorbells (in a machine with real guests such that throw a vCPU out of KVM_RUN), and the memory of
real guests. All of it is anonymous: when the last process that has it is gone, so is it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from asid.guest.kvm_kick import make_bell
from asid.guest.kvm_programs import make_memory
from asid.live.page import CorePage, make_page

if TYPE_CHECKING:
    from asid.live.parent import Parent


def build(daemon: Parent) -> None:
    """Make all that the machine of a daemon has."""
    machine = daemon.config.machine
    for vm in daemon.config.real_vms:
        daemon.memories[vm] = make_memory(f"asid-vm{vm}")
    for core in range(machine.cores):
        fd = make_page(core, machine.smt)
        daemon.pages[core] = (fd, CorePage(fd, machine.smt))
        for ht in range(machine.smt):
            if daemon.memories:
                daemon.ears[core, ht], daemon.bells[core, ht] = make_bell()
            else:
                daemon.bells[core, ht] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def dismantle(daemon: Parent) -> None:
    """Let the daemon have none of it any more."""
    for fd, page in daemon.pages.values():
        page.close()
        os.close(fd)
    for fd in (*daemon.bells.values(), *daemon.ears.values(), *daemon.memories.values()):
        os.close(fd)
