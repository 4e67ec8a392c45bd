"""What a child is told at its birth. Everything else it learns from its coordinator and the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import get_context, reduction
from typing import Any

from asid.config import Config
from asid.mm.isolated import Entry
from asid.script import Script


class Fd:
    """A descriptor that goes along to a child. In the child, `fd` is the child's own number for it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _adopt, (reduction.DupFd(self.fd),)


def _adopt(handle: Any) -> Fd:
    return Fd(handle.detach())


@dataclass(frozen=True, slots=True)
class Birth:
    """A hyperthread's or coordinator's place, incarnations and lines.

    ht: -1 for a coordinator. doorbells: where to ring each sibling, by number. living: for a coordinator, the
    incarnation of each hyperthread that lives, 0 for none. attached: VM of each hyperthread's vCPU, 0 for none.
    held: for a coordinator, who holds its gate closed. interrupts: its NMI and #MC lines at its birth; checks: the
    BROADCAST and SEVERITY words that go with the latter. script: what its core plays. mapping: what the isolated space
    of each VM maps, by its number - 1, after `generation` changes. bell: where a hyperthread hears its doorbell, when
    that is not where it is rung (see `asid.guest.kvm_kick`). memories: of each VM that is real, by its number.
    """

    core: int
    ht: int
    siblings: int
    inc: int
    coord: int
    page: Fd
    ring: Fd
    doorbells: tuple[Fd, ...]
    gate_path: str
    link_path: str
    config: Config
    base_dir: str
    policy: str
    kick: str
    vcpu: tuple[int, int] = (0, 0)
    living: tuple[int, ...] = ()
    attached: tuple[int, ...] = ()
    held: tuple[str, ...] = ()
    interrupts: tuple[int, int] = (0, 0)
    checks: tuple[int, int] = (0, 0)
    fresh: bool = True
    instance_root: str = ""
    script: Script | None = None
    mapping: tuple[tuple[Entry, ...], ...] = ()
    generation: int = 0
    bell: Fd | None = None
    memories: tuple[tuple[int, Fd], ...] = ()

    def memory_of(self, vm: int) -> int:
        """Return the descriptor of a real VM's memory."""
        return next(memory.fd for number, memory in self.memories if number == vm)

    @property
    def name(self) -> str:
        return f"c{self.core}" if self.ht < 0 else f"c{self.core}h{self.ht}"


# A fork server: children start in milliseconds, and are forked from a process that has one thread and no context.
SPAWN = get_context("forkserver")
PRELOAD = ["asid.live.nest"]
