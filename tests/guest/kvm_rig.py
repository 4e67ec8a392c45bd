"""What tests of real guests share: whether there can be any here, one vCPU with its kick, and somebody who kicks it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from asid.errors import AsidError
from asid.guest.kvm import RealVcpu, check_kvm
from asid.guest.kvm_kick import Kick, make_bell
from asid.guest.kvm_programs import PROGRAMS, make_memory


def why_not() -> str:
    """Return why no real guest can run here; empty when one can."""
    try:
        check_kvm()
    except AsidError as error:
        return f"no real guests here: {error}"
    return ""


WHY_NOT = why_not()
needs_kvm = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "never")


@contextmanager
def one_vcpu(program: str, *, place: int = 0, rate_hz: float = 0.0) -> Iterator[tuple[RealVcpu, int]]:
    """A vCPU of a VM of its own, and the end of its doorbell to ring."""
    memory_fd = make_memory("test")
    hear, ring = make_bell()
    kick = Kick(hear)
    try:
        vcpu = RealVcpu(memory_fd, PROGRAMS[program], place, kick, rate_hz=rate_hz)
        try:
            yield vcpu, ring
        finally:
            vcpu.close()
    finally:
        kick.close()
        for fd in (memory_fd, hear, ring):
            os.close(fd)
